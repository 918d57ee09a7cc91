//! Answers that another edge keeps as a whole (RFC 0012): this edge streams them from their keeper
//! instead of asking the origin, and gives its own to other edges.
//!
//! A request of another edge is answered from this edge's own answer, or from the origin's. It
//! never waits for a third edge, so requests between edges cannot form a circle.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use chunkcache_proto::{
    ByteRange,
    checksum::{BLOCK_BYTES, chunk_checksum},
    v1,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use http_rules::{conditional::SELECTING, freshness};
use prost::Message as _;
use tokio::{sync::mpsc, time::timeout};
use tracing::{Instrument as _, Span};

use super::{
    objects::{EdgeObjects, Parts},
    pass_through,
    peer_handler::BEAT,
    ports::{FirstBytes, ObjectName, ObjectRequest, PassBody, PassThrough, ReadError, ServeError},
    probe::Finding,
    unknown_key::Whom,
    whole::{Whole, WholeDescription},
    whole_answer::{AS_A_WHOLE, Answer, shares_whole, without_variant},
    whole_store::{Claimed, Question},
};
use crate::clock::now_ms;
use crate::upstream::{
    OriginError, RequestClass, Response, Source,
    counters::Counters,
    peer,
    peer_blocks::{self, block_header, empty_block},
};

/// Larger heads are refused: fields of an answer are bounded by 8 KiB.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Keepers that are tried for one request before this edge asks the origin.
const MAX_TRIED: u32 = 2;

/// A key without a binding.
pub(super) enum Unbound {
    Found(Finding),
    Answered(PassThrough),
}

impl EdgeObjects {
    /// Resolves a key without a binding. If another edge keeps its answer, streams it from there.
    pub(super) async fn unbound(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
    ) -> Result<Unbound, ServeError> {
        let bindings = &self.parts().bindings;
        let mut whom = Whom::Cluster;
        for _ in 0..MAX_TRIED {
            let keeper = match bindings.keeper(key, now_ms()) {
                Some(keeper) => keeper,
                None => {
                    if request.ahead.is_some() {
                        // Wait for the permit before the question, because a viewer may join the
                        // question.
                        let room = source.quota.acquire(RequestClass::Background).await;
                        drop(room.map_err(|error| pass_through::serve_error(&error))?);
                    }
                    match self.unknown(source, key, request, whom).await? {
                        Finding::Kept(keeper) => keeper,
                        found => return Ok(Unbound::Found(found)),
                    }
                }
            };
            if let Some(answer) = self.ask_keeper(source, key, request, &keeper).await? {
                return Ok(Unbound::Answered(answer));
            }
            whom = Whom::ClusterBut(keeper.edge.clone());
        }
        // The edges that were named have no answer.
        match self.unknown(source, key, request, Whom::Origin).await? {
            Finding::Kept(_) => Ok(Unbound::Found(Finding::Unstorable(AS_A_WHOLE))),
            found => Ok(Unbound::Found(found)),
        }
    }

    /// Streams an answer from the edge that keeps it. `None`: that edge gives none, and is not
    /// asked again until it is named again.
    pub(super) async fn ask_keeper(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        keeper: &Arc<v1::Keeper>,
    ) -> Result<Option<PassThrough>, ServeError> {
        if request.only_if_cached {
            return Err(ServeError::OnlyIfCached);
        }
        let bindings = &self.parts().bindings;
        let base = without_variant(key);
        let id = self.whole_id(source, &base, request);
        let claimed = bindings.whole().claim_or_wait(id, true, now_ms, |_| true);
        let asking = match claimed.await {
            None => return Ok(None),
            Some(Claimed::Kept(whole)) => {
                return Ok(self.answer_as_it_arrives(&whole, request, true).await);
            }
            Some(Claimed::Ask(asking)) => asking,
        };
        let since = bindings.now();
        let answer = self.answer_of(source, &base, request, keeper).await;
        let answer = answer.and_then(|(described, body)| {
            // An answer from before an invalidation is not used after it.
            let described = bindings.unless_invalidated(since, key, || {
                bindings.set_keeper(key, keeper.clone(), now_ms());
                described
            });
            described
                .map(|described| (described, body))
                .ok_or(OriginError::Overtaken)
        });
        match answer {
            Ok((described, body)) => {
                let whole = asking.keep(described, body, |pump| self.spawn_pump(pump));
                Ok(self.answer_as_it_arrives(&whole, request, false).await)
            }
            Err(error) => {
                let (keeper, path) = (&keeper.edge, &key.path);
                tracing::debug!(%error, keeper, path, "no answer of a peer");
                let counters = &self.parts().downloads.fetcher().counters;
                counters.peer_errors.inc();
                bindings.forget_keeper(key);
                asking.fail();
                Ok(None)
            }
        }
    }

    /// Asks on a worker, because the connection stays on the thread that opens it.
    async fn answer_of(
        &self,
        source: &Arc<Source>,
        base: &v1::Key,
        request: &ObjectRequest,
        keeper: &Arc<v1::Keeper>,
    ) -> Result<(WholeDescription, PassBody), OriginError> {
        let protocol = |text: &str| OriginError::Protocol(text.to_owned());
        let parts = self.parts();
        let mut headers = pass_through::allowed_headers(source, &request.headers);
        SELECTING.iter().for_each(|name| {
            headers.remove(name);
        });
        parts.client.mark(&mut headers);
        let question = v1::KeeperRequest {
            key: Some(base.clone()),
            headers: fields_of(&headers).ok_or_else(|| protocol("a header is no text"))?,
            invalidation_epoch: parts.bindings.cluster_epoch(),
        };
        let (objects, keeper, base) = (self.clone(), keeper.clone(), base.clone());
        let asked = async move {
            let (head, response) = ask(objects.parts(), &keeper.url, &question).await?;
            let status = u16::try_from(head.status).ok();
            let status = status.and_then(|status| StatusCode::from_u16(status).ok());
            let described = WholeDescription {
                key: base,
                status: status.ok_or_else(|| protocol("the peer names no status"))?,
                headers: headers_of(&head.headers),
                freshness: freshness::receive(head.freshness.unwrap_or_default(), now_ms(), None),
            };
            let counters = objects.parts().downloads.fetcher().counters.clone();
            Ok((described, body_of(response, counters)))
        };
        let workers = parts.downloads.workers();
        let asked = workers.spawn(asked.instrument(Span::current())).await;
        asked.map_err(|_| protocol("the request to the peer was given up"))?
    }

    /// The answer for another edge, which this edge keeps or requests from the origin now.
    pub(super) async fn whole_for_peer(&self, asked: v1::KeeperRequest) -> Option<Arc<Whole>> {
        let parts = self.parts();
        let named = asked.key?;
        let headers = headers_of(&asked.headers);
        if parts.client.sees_loop(&headers)
            || asked.invalidation_epoch > parts.bindings.cluster_epoch()
        {
            return None;
        }
        let source = parts.catalogue.get(&named.source)?;
        if !shares_whole(&source) {
            return None;
        }
        let request = ObjectRequest {
            name: ObjectName::Key {
                source: named.source.clone(),
                path: named.path.clone(),
                query: named.query.clone(),
            },
            first_bytes: FirstBytes::From {
                start: 0,
                end: None,
            },
            only_if_cached: false,
            headers,
            head_only: false,
            past_the_cache: false,
            asker: None,
            ahead: None,
        };
        let base = source.key(named);
        let id = self.whole_id(&source, &base, &request);
        if let Some(whole) = parts.bindings.whole().get(|| id, now_ms()) {
            return Some(whole);
        }
        let (key, _) = self.with_variant(&source, base.clone(), &request);
        if !chunkcache_proto::key::is_key_recordable(&key)
            || parts.bindings.negative(&key, now_ms()).is_some()
            || parts.bindings.get(&key).is_some()
        {
            return None;
        }
        match parts.bindings.unstorable(&key, now_ms()) {
            Some(AS_A_WHOLE) => {}
            Some(_) => return None,
            None => match self.unknown(&source, &key, &request, Whom::Cluster).await {
                Ok(Finding::Whole { whole, .. }) => return Some(whole),
                Ok(Finding::Unstorable(AS_A_WHOLE)) => {}
                _ => return None,
            },
        }
        let whole = parts.bindings.whole();
        // Not for a third edge.
        let may_wait = |question: &Question| !question.at_keeper;
        match whole.claim_or_wait(id, false, now_ms, may_wait).await? {
            Claimed::Kept(whole) => Some(whole),
            Claimed::Ask(asking) => {
                let asked = self.ask_as(asking, &source, &base, &request, AS_A_WHOLE);
                match asked.await {
                    Ok(Answer::Kept(whole)) => Some(whole),
                    Ok(Answer::Passed(_)) | Err(_) => None,
                }
            }
        }
    }
}

/// Sends an answer to another edge: its head, then its body as it arrives, in blocks. While bytes
/// are awaited, sends empty blocks: the other edge gives up a peer that is silent for a second.
pub(super) async fn send(
    found: impl Future<Output = Option<Arc<Whole>>>,
    sender: mpsc::Sender<Result<Bytes, ReadError>>,
) {
    let mut found = pin!(found);
    let whole = loop {
        match timeout(BEAT, found.as_mut()).await {
            Ok(whole) => break whole,
            Err(_) if sender.send(Ok(empty_block())).await.is_err() => return,
            Err(_) => {}
        }
    };
    let stream = whole.as_ref().and_then(|whole| {
        let head = head_of(&whole.described)?;
        Some((head, whole.stream()?))
    });
    let Some((head, mut body)) = stream else {
        let none = ReadError::Origin("there is no answer to give".into());
        let _ = sender.send(Err(none)).await;
        return;
    };
    let mut sent = 0;
    if !send_blocks(&sender, &mut sent, head.encode_to_vec().into()).await {
        return;
    }
    loop {
        let item = match timeout(BEAT, body.frame()).await {
            Err(_) => Ok(empty_block()),
            // The end is sent explicitly, because an abort must not look like one.
            Ok(None) => Ok(Bytes::new()),
            Ok(Some(Err(error))) => Err(error),
            Ok(Some(Ok(frame))) => {
                let bytes = frame.into_data().unwrap_or_default();
                if !send_blocks(&sender, &mut sent, bytes).await {
                    return;
                }
                continue;
            }
        };
        let is_last = item.as_ref().map_or(true, Bytes::is_empty);
        if sender.send(item).await.is_err() || is_last {
            return;
        }
    }
}

/// False: the other edge has left.
async fn send_blocks(
    sender: &mpsc::Sender<Result<Bytes, ReadError>>,
    sent: &mut u64,
    mut bytes: Bytes,
) -> bool {
    while !bytes.is_empty() {
        let block = bytes.split_to(bytes.len().min(BLOCK_BYTES as usize));
        let range = ByteRange::new(*sent, *sent + block.len() as u64);
        let header = block_header(range, chunk_checksum(*sent, &block));
        *sent = range.end;
        if sender.send(Ok(header)).await.is_err() || sender.send(Ok(block)).await.is_err() {
            return false;
        }
    }
    true
}

/// The head of an answer, for another edge.
fn head_of(described: &WholeDescription) -> Option<v1::WholeHead> {
    Some(v1::WholeHead {
        status: described.status.as_u16().into(),
        headers: fields_of(&described.headers)?,
        freshness: Some(freshness::stamp(described.freshness.clone(), now_ms())),
    })
}

/// Sends the request, and reads the head of the answer, which is its first block.
async fn ask(
    parts: &Parts,
    keeper_url: &str,
    question: &v1::KeeperRequest,
) -> Result<(v1::WholeHead, Response), OriginError> {
    let protocol = |text: &str| OriginError::Protocol(text.to_owned());
    let fetcher = parts.downloads.fetcher();
    let path = peer::keeper_path(question);
    let url = format!("{}{path}", keeper_url.trim_end_matches('/'));
    let url = url::Url::parse(&url).map_err(|_| protocol("the peer has no usable URL"))?;
    let seconds = u64::try_from(now_ms() / 1000).unwrap_or(0);
    let headers = fetcher.peer_keys.keeper_headers(&path, seconds);
    let headers = headers.ok_or_else(|| protocol("no key to ask peers with is known"))?;
    let mut response = fetcher
        .peer_client
        .get()
        .send(Method::GET, &url, headers)
        .await?;
    if response.status != StatusCode::OK
        || response.header(header::CONTENT_TYPE) != Some(peer_blocks::CONTENT_TYPE)
    {
        return Err(protocol("the peer has no answer to give"));
    }
    response.expect_blocks(ByteRange::new(0, u64::MAX));
    let head = response.chunk().await?;
    let head = head.filter(|head| head.len() <= MAX_HEAD_BYTES);
    let head = head.ok_or_else(|| protocol("the peer sends no head"))?;
    let head = v1::WholeHead::decode(head).map_err(|_| protocol("the peer's head is none"))?;
    Ok((head, response))
}

fn body_of(response: Response, counters: Arc<Counters>) -> PassBody {
    let frames = futures_util::stream::try_unfold(
        (response, counters),
        |(mut response, counters)| async move {
            let next = response.chunk().await;
            let next =
                next.map_err(|error| ReadError::Origin(format!("by way of a peer: {error}")))?;
            Ok(next.map(|bytes: Bytes| {
                let count = bytes.len() as u64;
                counters.peer_bytes.inc_by(count);
                (Frame::data(bytes), (response, counters))
            }))
        },
    );
    Box::pin(StreamBody::new(frames))
}

/// `None`: a value is no text.
fn fields_of(headers: &HeaderMap) -> Option<Vec<v1::Header>> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        Some(v1::Header {
            name: name.as_str().to_owned(),
            value: std::str::from_utf8(value.as_bytes()).ok()?.to_owned(),
        })
    };
    headers.iter().map(field).collect()
}

fn headers_of(fields: &[v1::Header]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        if let Ok(name) = HeaderName::from_bytes(field.name.as_bytes())
            && let Ok(value) = HeaderValue::from_bytes(field.value.as_bytes())
        {
            headers.append(name, value);
        }
    }
    headers
}
