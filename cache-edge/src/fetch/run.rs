//! One fetch: brings a run of adjacent chunks from a peer or the origin into the store.
//!
//! The byte that a reader waits for comes first, and the head of its chunk as a second leg. Written
//! bytes remain: a fetch that is retried, preempted or taken over continues where they end. Writes
//! block, so this runs on the fetch runtime only.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::{ByteRange, EntryId, Level, identity::belongs_to, v1};

use super::{
    Assignment,
    gap::{Gap, NextStep, next_gap},
    handle::{FetchHandle, StopMode},
    retries::Retries,
    stream::LINGER,
};
use crate::clock::now_ms;
use crate::readers::{EntryIncoming, IncomingChunks, IncomingError};
use crate::upstream::{
    Catalogue, Client, OriginError, RequestClass, Response, Source,
    answer::{self, Part},
    client::Question,
    counters::Counters,
    hedging::RequestKind,
    peer::{self, PeerKeys},
    peer_blocks,
    reloading::PeerClient,
    source::OriginSet,
};
use chunk_store::EntryFile;

/// How long a peer may send nothing before it is given up: with a waiting reader, and without one.
const PEER_PATIENCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// Time between checks of chunks that another fetch is bringing.
const FOREIGN_WAIT: Duration = Duration::from_secs(1);

/// How a fetch ended.
#[derive(Debug)]
pub enum RunEnd {
    /// All chunks are present.
    Finished,
    Stopped,
    /// Preempted. Contains the answer that it was reading, which is resumed later: the bytes that
    /// its origin has sent are in the sockets' buffers.
    Paused(Option<Box<OpenAnswer>>),
    Failed(Failure),
}

/// The reason, for the coordinator and for waiting readers.
#[derive(Clone, Debug)]
pub struct Failure {
    pub fault: v1::fetch_failure::Fault,
    pub http_status: u16,
    pub retry_after: Option<Duration>,
    pub message: String,
}

/// An answer that has already begun: a probe's, or a paused one. `part` was checked against the
/// entry.
#[derive(Debug)]
pub struct OpenAnswer {
    pub response: Response,
    pub part: Part,
    /// An origin may close a connection that nobody reads for long: that is no failure of it.
    was_paused: bool,
}

impl OpenAnswer {
    #[must_use]
    pub fn new(response: Response, part: Part) -> Self {
        Self {
            response,
            part,
            was_paused: false,
        }
    }
}

/// The dependencies of a fetch.
pub struct Fetcher {
    pub client: Client,
    pub peer_client: PeerClient,
    pub catalogue: Arc<Catalogue>,
    pub incoming: Arc<IncomingChunks>,
    pub peer_keys: Arc<PeerKeys>,
    /// How long a fetch tries without a new byte.
    pub retry_budget: Duration,
    pub counters: Arc<Counters>,
}

pub(super) enum FetchInterruption {
    Origin(OriginError),
    Peer(OriginError),
    Store(IncomingError),
    Stop(StopMode),
    Pause(Box<OpenAnswer>),
}

impl From<StopMode> for RunEnd {
    fn from(stop: StopMode) -> Self {
        match stop {
            StopMode::AtChunkEnd | StopMode::Now => Self::Stopped,
            StopMode::Preempted => Self::Paused(None),
        }
    }
}

impl Fetcher {
    /// Fetches the run.
    pub async fn run(
        &self,
        assignment: &Assignment,
        handle: &FetchHandle,
        mut opened: Option<OpenAnswer>,
    ) -> RunEnd {
        let incoming = self.incoming.of(&assignment.file);
        let name = assignment.source();
        let source = self.catalogue.get(&name);
        let budget = source.map_or(self.retry_budget, |it| it.patience(self.retry_budget));
        let mut retries = Retries::new(budget);
        let mut from_peer = assignment.peer.clone();
        loop {
            // Do not drop an answer that has begun: like that of any stopped fetch, it is read for
            // a moment longer.
            if opened.is_none()
                && let Some(stop) = handle.wanted_stop()
            {
                // A fetch that was stopped amid its last bytes is over nevertheless. Reported as
                // cancelled, another edge would be sent to the origin for what is written here.
                return match assignment.is_complete() {
                    true => RunEnd::Finished,
                    false => stop.into(),
                };
            }
            if incoming.is_changed() {
                return RunEnd::Failed(failure(&OriginError::Changed));
            }
            let gap = match next_gap(assignment, &incoming) {
                NextStep::Done => return RunEnd::Finished,
                NextStep::Gap(gap) => gap,
                NextStep::Foreign(incoming_chunk) => {
                    if retries.is_over() {
                        return RunEnd::Failed(failure(&OriginError::Stalled(budget)));
                    }
                    let changed = incoming_chunk.changed();
                    tokio::select! {
                        stop = handle.stopped_now() => return stop.into(),
                        _ = tokio::time::timeout(FOREIGN_WAIT, changed) => {}
                    }
                    continue;
                }
            };
            let before = handle.bytes_done();
            let (answer, peer) = (opened.take(), from_peer.as_deref());
            let was_paused = answer.as_ref().is_some_and(|answer| answer.was_paused);
            let fetching = self.fetch(assignment, handle, &incoming, gap, answer, peer);
            let result = fetching.await;
            let came = handle.bytes_done().saturating_sub(before);
            if from_peer.is_none() {
                self.counters.origin_bytes_of.add(&name, came);
            }
            if came > 0 {
                retries.progressed();
            }
            let error = match result {
                Ok(()) => {
                    incoming.set_last_error(None);
                    continue;
                }
                Err(FetchInterruption::Stop(stop)) => return stop.into(),
                Err(FetchInterruption::Pause(mut rest)) => {
                    rest.was_paused = true;
                    return RunEnd::Paused(Some(rest));
                }
                Err(FetchInterruption::Store(error)) => {
                    return RunEnd::Failed(store_failure(&error));
                }
                Err(FetchInterruption::Peer(error)) => {
                    tracing::debug!(
                        %error,
                        peer = from_peer,
                        entry = %assignment.file.id(),
                        "a peer failed"
                    );
                    self.counters.peer_errors.inc();
                    // Leave the choice of another peer or the origin to the coordinator: it chose
                    // this peer, and knows which others hold the chunk and whether the origin is
                    // being asked.
                    if !assignment.is_local() {
                        return RunEnd::Failed(peer_failure(&error));
                    }
                    from_peer = None;
                    continue;
                }
                // The origin is not asked meanwhile, and this is not its error.
                Err(FetchInterruption::Origin(OriginError::WholeStreamRuns)) => {
                    tokio::select! {
                        stop = handle.stopped_now() => return stop.into(),
                        () = incoming.whole_stream_ended() => {}
                    }
                    continue;
                }
                // Not the origin's fault: readers that still need the chunk ask again.
                Err(FetchInterruption::Origin(OriginError::TooManyWaiting)) => {
                    return RunEnd::Stopped;
                }
                Err(FetchInterruption::Origin(error)) if was_paused => {
                    tracing::debug!(%error, "a paused answer ended");
                    continue;
                }
                Err(FetchInterruption::Origin(error)) => error,
            };
            self.origin_failed(&name, &incoming, &error);
            let Some(wait) = retries.wait(&error, assignment) else {
                return RunEnd::Failed(failure(&error));
            };
            tracing::debug!(
                %error,
                ?wait,
                entry = %assignment.file.id(),
                "asking the origin again"
            );
            tokio::select! {
                stop = handle.stopped_now() => return stop.into(),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Counts an error of an origin, and passes it on to the readers.
    fn origin_failed(&self, source: &str, incoming: &EntryIncoming, error: &OriginError) {
        if error.is_of_origin() {
            self.counters.origin_failed(source);
        }
        incoming.set_last_error(Some(error.to_string()));
        match error {
            OriginError::Changed => incoming.set_changed(),
            OriginError::Refused { .. } | OriginError::Unsigned | OriginError::Protocol(_) => {
                incoming.set_fatal(error.to_string());
            }
            _ => {}
        }
    }

    async fn fetch(
        &self,
        assignment: &Assignment,
        handle: &FetchHandle,
        incoming: &Arc<EntryIncoming>,
        gap: Gap,
        opened: Option<OpenAnswer>,
        peer: Option<&str>,
    ) -> Result<(), FetchInterruption> {
        handle.begin_leg(gap.range.start);
        if let (Some(peer), None) = (peer, &opened) {
            return self
                .fetch_from_peer(assignment, handle, incoming, gap, peer)
                .await
                .map_err(|error| match error {
                    FetchInterruption::Origin(error) => FetchInterruption::Peer(error),
                    // A peer still has it, and bytes on the way from it cost no origin anything.
                    FetchInterruption::Pause(_) => FetchInterruption::Stop(StopMode::Preempted),
                    other => other,
                });
        }
        let fits = |opened: &OpenAnswer| match opened.part {
            Part::Range(range) => range.start == gap.range.start,
            Part::Whole => true,
        };
        let opened = match opened.filter(fits) {
            Some(opened) => opened,
            None => self.ask(assignment, handle, incoming, gap.range).await?,
        };
        let counter = &self.counters.origin_bytes;
        match opened.part {
            Part::Range(range) => {
                // A paused answer may cover more than is missing now.
                let range = ByteRange::new(range.start, range.end.min(gap.range.end));
                self.stream(
                    assignment,
                    handle,
                    incoming,
                    &mut { gap.claims },
                    range,
                    opened.response,
                    counter,
                )
                .await
            }
            Part::Whole => {
                drop(gap);
                let Some(_turn) = incoming.begin_whole_stream() else {
                    return Err(FetchInterruption::Origin(OriginError::WholeStreamRuns));
                };
                let all = ByteRange::new(0, assignment.file.geometry().size());
                self.stream(
                    assignment,
                    handle,
                    incoming,
                    &mut Default::default(),
                    all,
                    opened.response,
                    counter,
                )
                .await
            }
        }
    }

    /// Opens the answer that a fetch reads. A stopped fetch waits for it nevertheless: the origin
    /// sends what it was asked for, and the chunk is completed from it.
    async fn ask(
        &self,
        assignment: &Assignment,
        handle: &FetchHandle,
        incoming: &EntryIncoming,
        range: ByteRange,
    ) -> Result<OpenAnswer, FetchInterruption> {
        let class = assignment.class();
        let open = self.open(&assignment.file, incoming, range, class);
        tokio::pin!(open);
        let stop = tokio::select! {
            stop = handle.stopped_now() => stop,
            opened = &mut open => return opened.map_err(FetchInterruption::Origin),
        };
        let source = self.catalogue.get(&assignment.source());
        let is_limited = source.is_none_or(|source| source.is_limited());
        // A paused fetch keeps no permit that a more urgent fetch may need.
        if is_limited && class != RequestClass::Assigned {
            return Err(FetchInterruption::Stop(stop));
        }
        let patience = async {
            handle.ended_now().await;
            // The connection to a limited origin is returned at once, and the answer is not read.
            if !is_limited {
                tokio::time::sleep(LINGER).await;
            }
        };
        tokio::select! {
            () = patience => Err(FetchInterruption::Stop(StopMode::Now)),
            opened = open => Err(match opened {
                Ok(opened) => FetchInterruption::Pause(Box::new(opened)),
                // When the fetch is resumed, it asks again and fails again.
                Err(_) => FetchInterruption::Stop(stop),
            }),
        }
    }

    /// Requests a range of the entry from the origin and checks the answer's head.
    pub async fn open(
        &self,
        file: &EntryFile,
        incoming: &EntryIncoming,
        range: ByteRange,
        class: RequestClass,
    ) -> Result<OpenAnswer, OriginError> {
        if incoming.has_whole_stream() {
            return Err(OriginError::WholeStreamRuns);
        }
        let entry = file.description();
        let key = entry.key.clone().unwrap_or_default();
        let source = self.source(&key.source)?;
        if !belongs_to(&entry, source.base_url()) {
            // The source's base URL was changed: the object there is another one, whatever its ETag
            // says.
            return Err(OriginError::Changed);
        }
        let held_off = source.held_off_for_ms(now_ms());
        if held_off > 0 {
            return Err(OriginError::Busy {
                retry_after: Duration::from_millis(held_off),
            });
        }
        let mut asked = answer::variant_headers(&key.variant);
        asked.extend(answer::range_headers(range, Some(&entry)));
        let mut is_conditional = true;
        tracing::debug!(start = range.start, end = range.end, "asking the origin");
        let mut skip = OriginSet::default();
        loop {
            let ask = |url| {
                let question = Question {
                    method: http::Method::GET,
                    url,
                    headers: &asked,
                    class,
                    kind: RequestKind::Chunks,
                    is_presigned: false,
                    skip,
                };
                let (client, source) = (&self.client, &source);
                async move { client.ask_origins(source, &question).await }
            };
            let response = self.catalogue.ask_signed(&source, &key, ask).await?;
            let part = answer::check(response.status, &response.headers, range, &entry, now_ms())
                .map_err(OriginError::from);
            if let (Err(OriginError::Changed), true) = (&part, source.origins().len() > 1) {
                // Another origin's version says nothing about the first one's.
                if let Some(error) = response.passed_over() {
                    return Err(error.clone());
                }
                skip.insert(response.origin());
                if source.may_have_it(&skip, self.retry_budget) {
                    continue;
                }
            }
            if let (Err(OriginError::Changed), true) = (&part, is_conditional) {
                // Perhaps it is not: some servers refuse a condition that is met, and of several
                // behind one name each may have tags of its own. Without a condition, the answer
                // itself tells its version.
                asked = answer::variant_headers(&key.variant);
                asked.extend(answer::range_headers(range, None));
                (is_conditional, skip) = (false, OriginSet::default());
                continue;
            }
            if let Err(error) = &part {
                source.heed(error, now_ms());
            }
            return Ok(OpenAnswer::new(response, part?));
        }
    }

    /// Returns after the connection is closed and its permit released: another edge may be granted
    /// the permit next.
    pub async fn connection_closed(&self, assignment: &Assignment) {
        if assignment.peer.is_none()
            && let Some(source) = self.catalogue.get(&assignment.source())
        {
            self.client.closed(&source).await;
        }
    }

    fn source(&self, name: &str) -> Result<Arc<Source>, OriginError> {
        self.catalogue.get(name).ok_or_else(|| {
            OriginError::Protocol(format!("no source named {name:?} is registered any more"))
        })
    }

    async fn fetch_from_peer(
        &self,
        assignment: &Assignment,
        handle: &FetchHandle,
        incoming: &Arc<EntryIncoming>,
        gap: Gap,
        peer: &str,
    ) -> Result<(), FetchInterruption> {
        let protocol =
            |text: &str| FetchInterruption::Origin(OriginError::Protocol(text.to_owned()));
        let id = assignment.file.id();
        let url = format!("{}{}", peer.trim_end_matches('/'), peer::path(&id));
        let url = url::Url::parse(&url).map_err(|_| protocol("the peer has no usable URL"))?;
        let seconds = u64::try_from(now_ms() / 1000).unwrap_or(0);
        let mut headers = self
            .peer_keys
            .request_headers(&id, gap.range, seconds)
            .ok_or_else(|| protocol("no key to ask peers with is known"))?;
        headers.insert(peer::PRIORITY, peer::urgency(assignment.level));
        let patience = PEER_PATIENCE[usize::from(assignment.level != Level::Critical)];
        let client = self.peer_client.get().with_stall_timeout(patience);
        let mut response = client
            .send(http::Method::GET, &url, headers)
            .await
            .map_err(FetchInterruption::Origin)?;
        if response.status != http::StatusCode::OK {
            let error = answer::status_error(response.status, &response.headers, now_ms());
            return Err(FetchInterruption::Origin(error.into()));
        }
        if response.header(http::header::CONTENT_TYPE) != Some(peer_blocks::CONTENT_TYPE) {
            return Err(protocol("the peer does not send blocks"));
        }
        response.expect_blocks(gap.range);
        let mut claims = gap.claims;
        let bytes = &self.counters.peer_bytes;
        let ended = self
            .stream(
                assignment,
                handle,
                incoming,
                &mut claims,
                gap.range,
                response,
                bytes,
            )
            .await;
        if matches!(
            ended,
            Err(FetchInterruption::Origin(OriginError::WrongBytes))
        ) {
            tracing::warn!(entry = %id, peer, "a peer's bytes do not have the hash it sent");
            self.report_wrong_bytes(&client, &url, id, gap.range).await;
        }
        ended
    }

    /// Asks the peer to check its copy of the range. Best effort.
    async fn report_wrong_bytes(
        &self,
        client: &Client,
        url: &url::Url,
        entry: EntryId,
        range: ByteRange,
    ) {
        let seconds = u64::try_from(now_ms() / 1000).unwrap_or(0);
        let Some(mut headers) = self.peer_keys.request_headers(&entry, range, seconds) else {
            return;
        };
        headers.insert(peer::MISMATCH, http::HeaderValue::from_static("1"));
        if let Err(error) = client.send(http::Method::HEAD, url, headers).await {
            tracing::debug!(%error, "a peer could not be told that its bytes are wrong");
        }
    }
}

fn failure(error: &OriginError) -> Failure {
    let fault = match error {
        OriginError::Changed => v1::fetch_failure::Fault::Changed,
        OriginError::Unsigned => v1::fetch_failure::Fault::Unsigned,
        _ => v1::fetch_failure::Fault::Origin,
    };
    Failure {
        fault,
        http_status: error.status().unwrap_or(0),
        retry_after: error.retry_after(),
        message: error.to_string(),
    }
}

fn peer_failure(error: &OriginError) -> Failure {
    Failure {
        fault: v1::fetch_failure::Fault::Peer,
        ..failure(error)
    }
}

fn store_failure(error: &IncomingError) -> Failure {
    let fault = match error {
        IncomingError::Refused(_) => v1::fetch_failure::Fault::Edge,
        IncomingError::OverQuota(_) => v1::fetch_failure::Fault::Quota,
    };
    Failure {
        fault,
        http_status: 0,
        retry_after: None,
        message: error.to_string(),
    }
}
