//! Lookahead across objects: an object that a viewer is expected to request next is resolved as its
//! own request would be, and its first bytes are fetched at HIGH.
//!
//! Expectations come from outside and may be wrong. So a client has only a few at a time, an object
//! that is expected again within seconds counts once, and each is worth two chunks at most.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::ByteRange;
use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use http_rules::{
    cmcd::{self, Cmcd, OpenRange},
    conditional::SELECTING,
    credential, fields, links,
    path::{self, Target},
    range::{self, RangeSpec},
};
use parking_lot::Mutex;

use super::{
    connection::Client,
    connection_cache::CachedResolution,
    handler,
    limits::{Share, Shares},
    manifests::{self, Manifests, ReadBody, is_manifest},
    metrics::{Metrics, NextObjectResult},
    players,
    server::Server,
};
use crate::{
    core::{
        consumption::PlayerReport, lookahead::NEXT_OBJECT_CHUNKS, manifest::MAX_TEXT_BYTES,
        viewers::Viewer,
    },
    resolve::{
        ports::{
            FirstBytes, Freshness, ObjectName, ObjectRequest, Objects, OpenReader as _, PassBody,
            PassThrough, Presence, Resolution,
        },
        read_all::{bring, is_plain, read_all},
    },
};

/// Requests whose next objects are being fetched: in total, and per client.
const MAX_FOLLOWED: u32 = 256;
const FOLLOWED_OF_CLIENT: u32 = 16;
const LEAST_OF_CLIENT: u32 = 2;
/// Passed-through manifests that are being read: at most a MiB each.
const MAX_READ: u32 = 64;
const READ_OF_CLIENT: u32 = 8;
/// Next objects of one request.
const MAX_OF_REQUEST: usize = 8;
/// Expectations of one object within this time count as one.
const REPEATED_WITHIN: Duration = Duration::from_secs(5);
const MAX_RECENT: usize = 8_192;
/// After this time the fetch is abandoned: a viewer that comes later requests the object itself.
const WANTED_FOR: Duration = Duration::from_secs(30);
/// Time until a linked object is due, if the player does not report its buffer.
const LINKED_WITHIN: Duration = Duration::from_secs(10);

/// An object that a viewer is expected to request, and when.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NextObject {
    pub name: ObjectName,
    pub range: Option<OpenRange>,
    /// The time after the viewer's request at which it is due.
    pub due: Duration,
}

/// Fetches next objects: those of one request one after the other.
pub(super) struct NextObjects<O> {
    objects: Arc<O>,
    metrics: Arc<Metrics>,
    followed: Arc<Shares>,
    recent: Recent,
    manifests: Manifests,
    /// Passed-through bodies that are read as manifests.
    read: Arc<Shares>,
}

impl<O: Objects> NextObjects<O> {
    pub fn new(objects: Arc<O>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            objects,
            metrics,
            followed: Shares::new(MAX_FOLLOWED, FOLLOWED_OF_CLIENT, LEAST_OF_CLIENT),
            recent: Recent::default(),
            manifests: Manifests::default(),
            read: Shares::new(MAX_READ, READ_OF_CLIENT, 1),
        })
    }

    async fn fetch_all(
        &self,
        next: Vec<NextObject>,
        headers: HeaderMap,
        viewer: Option<Viewer>,
        _place: Share,
    ) {
        let began = Instant::now();
        for mut next in next {
            let id = self.recent.id(&next);
            let result = if self.recent.begin(id, Instant::now()) {
                next.due = next.due.saturating_sub(began.elapsed());
                let fetched = self.fetch(&next, &headers, viewer);
                let result = tokio::time::timeout(WANTED_FOR, fetched).await;
                self.recent.end(id, Instant::now());
                result.unwrap_or(NextObjectResult::Failed)
            } else {
                NextObjectResult::Repeated
            };
            tracing::debug!(?next, ?result, "a next object");
            self.metrics.count_next_objects(result, 1);
        }
    }

    async fn fetch(
        &self,
        next: &NextObject,
        headers: &HeaderMap,
        viewer: Option<Viewer>,
    ) -> NextObjectResult {
        let (start, end) = match next.range {
            Some((first, last)) => (first, last.map(|last| last.saturating_add(1))),
            None => (0, None),
        };
        let request = ObjectRequest {
            name: next.name.clone(),
            first_bytes: FirstBytes::From { start, end },
            only_if_cached: false,
            headers: headers.clone(),
            head_only: false,
            past_the_cache: false,
            asker: None,
            ahead: Some(next.due),
        };
        let object = match self.objects.resolve(&request).await {
            Ok(Resolution::Object(object)) => object,
            // An object that is stored as a whole arrives without a reader.
            Ok(Resolution::PassThrough(pass)) => {
                return match pass.status_words {
                    Some(words) if words.forward.is_none() => NextObjectResult::Present,
                    Some(_) => NextObjectResult::Fetched,
                    None => NextObjectResult::Failed,
                };
            }
            Ok(Resolution::Negative { .. }) => return NextObjectResult::Failed,
            Err(error) => {
                tracing::debug!(%error, "a next object is not resolved");
                return NextObjectResult::Failed;
            }
        };
        let geometry = object.entry.geometry();
        if start >= geometry.size() {
            return NextObjectResult::Failed;
        }
        let most = geometry.run_range(geometry.chunk_of(start), NEXT_OBJECT_CHUNKS);
        let end = end.unwrap_or(u64::MAX).min(most.end).min(geometry.size());
        let range = ByteRange::new(start, end);
        if object.readers.presence(range) == Presence::All {
            return match object.freshness {
                Freshness::Probed { .. } => NextObjectResult::Fetched,
                _ => NextObjectResult::Present,
            };
        }
        let player = PlayerReport {
            buffer: Some(next.due),
            viewer,
            ..PlayerReport::default()
        };
        if object.readers.fetch_ahead(range, player).await {
            NextObjectResult::Fetched
        } else {
            NextObjectResult::Failed
        }
    }
}

/// Objects that were expected a moment ago, or are being fetched.
#[derive(Default)]
struct Recent {
    hasher: RandomState,
    /// The time until which a further expectation counts as a repetition.
    until: Mutex<HashMap<u64, Instant>>,
}

impl Recent {
    fn id(&self, next: &NextObject) -> u64 {
        self.hasher.hash_one((&next.name, next.range))
    }

    /// Whether the object is not expected already.
    fn begin(&self, id: u64, now: Instant) -> bool {
        let mut until = self.until.lock();
        if until.get(&id).is_some_and(|until| now < *until) {
            return false;
        }
        if until.len() >= MAX_RECENT {
            until.retain(|_, until| now < *until);
            if until.len() >= MAX_RECENT {
                until.clear();
            }
        }
        until.insert(id, now + WANTED_FOR);
        true
    }

    fn end(&self, id: u64, now: Instant) {
        self.until.lock().insert(id, now + REPEATED_WITHIN);
    }
}

/// Reads the object if it is a manifest; otherwise wants the segments that follow it, if it is a
/// segment of a known manifest.
pub(super) fn follow_manifests<O: Objects>(
    server: &Server<O>,
    client: &Client,
    request: &Parts,
    object: &CachedResolution<O::Open>,
    cmcd: Option<&Cmcd>,
) {
    let path = path_of(server, request);
    let manifests = &server.next_objects.manifests;
    if is_manifest(path, Some(&object.description.content_type)) {
        let size = object.entry.geometry().size();
        let version = manifests.version(object.entry.id());
        let Some(path) = manifests::asked_for(path).filter(|_| size <= MAX_TEXT_BYTES as u64)
        else {
            return;
        };
        if manifests.knows(&path, version) {
            return;
        }
        let Some(place) = place_of(server, client.address) else {
            return;
        };
        let next_objects = Arc::clone(&server.next_objects);
        let readers = Arc::clone(&object.readers);
        tokio::spawn(async move {
            // One that cannot be stored is not asked for once more, only to look ahead.
            let read = async {
                let is_here = bring(&*readers, size).await;
                if is_here {
                    read_all(&*readers, size).await
                } else {
                    None
                }
            };
            let text = tokio::time::timeout(WANTED_FOR, read).await;
            if let Ok(Some(text)) = text {
                next_objects.manifests.read(&path, version, &text);
            }
            drop(place);
        });
    } else if !manifests.is_empty() {
        follow_segment(server, client, request, cmcd);
    }
}

fn follow_segment<O: Objects>(
    server: &Server<O>,
    client: &Client,
    request: &Parts,
    cmcd: Option<&Cmcd>,
) {
    // Without the parameters that a player or a signature adds to a segment's own query.
    let query = request.uri.query().unwrap_or_default().split('&');
    let is_own = |it: &&str| !it.starts_with("CMCD=") && !it.starts_with("cc-");
    let query = query.filter(is_own).collect::<Vec<_>>().join("&");
    let Ok(Target::Key {
        source,
        path,
        query,
    }) = path::parse(path_of(server, request), Some(&query))
    else {
        return;
    };
    let range = request.headers.get(header::RANGE);
    let range = range.and_then(|value| range::parse(value.as_bytes()));
    let start = match range.map(|ranges| ranges.first()) {
        Some(RangeSpec::From { first, .. }) => first,
        _ => 0,
    };
    let buffer = cmcd.and_then(Cmcd::time_left).unwrap_or_default();
    let manifests = &server.next_objects.manifests;
    let Some(next) = manifests.next((&source, &path, &query), start) else {
        return;
    };
    let next = next.into_iter().map(|(segment, due)| NextObject {
        name: ObjectName::Key {
            source: source.clone(),
            path: segment.path,
            query: segment.query,
        },
        range: segment.range,
        due: buffer.saturating_add(due),
    });
    let next = next.take(MAX_OF_REQUEST).collect();
    follow(server, client, request, cmcd, next);
}

/// Wants the objects that the origin's answer links to as next. A link gives no time.
pub(super) fn follow_links<O: Objects>(
    server: &Server<O>,
    client: &Client,
    request: &Parts,
    fields: &HeaderMap,
    cmcd: Option<&Cmcd>,
) {
    // Most answers have no link, and an answer from the cache must not pay for the parsing.
    if !fields.contains_key(header::LINK) {
        return;
    }
    let links = links::next(fields);
    if links.is_empty() {
        return;
    }
    let Ok(Target::Key { source, path, .. }) = path::parse(path_of(server, request), None) else {
        return;
    };
    let due = cmcd.and_then(Cmcd::time_left).unwrap_or(LINKED_WITHIN);
    let resolve = |reference: &&str| server.objects.resolve_link(&source, &path, reference);
    let names: Vec<ObjectName> = links.iter().filter_map(resolve).collect();
    let outside = (links.len() - names.len()) as u64;
    server
        .metrics
        .count_next_objects(NextObjectResult::Outside, outside);
    let next = names.into_iter().map(|name| NextObject {
        name,
        range: None,
        due,
    });
    follow(server, client, request, cmcd, next.collect());
}

/// Wants the objects that a passed-through answer links to as next, and reads the answer if it is a
/// manifest.
pub(super) fn follow_passed<O: Objects>(
    server: &Server<O>,
    client: &Client,
    request: &Parts,
    pass: &mut PassThrough,
) {
    if request.method != Method::GET || !pass.status.is_success() {
        return;
    }
    follow_links(server, client, request, &pass.headers, None);
    let path = path_of(server, request);
    let content_type = pass.headers.get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let is_whole = pass.status == StatusCode::OK;
    if !is_whole || !is_manifest(path, content_type) || !is_plain(&pass.headers) {
        return;
    }
    let Some(path) = manifests::asked_for(path) else {
        return;
    };
    let Some(place) = server.share_of(&server.next_objects.read, client.address) else {
        return;
    };
    let next_objects = Arc::clone(&server.next_objects);
    let ended = move |text: Vec<u8>| {
        let version = next_objects.manifests.version(&text);
        if !next_objects.manifests.knows(&path, version) {
            next_objects.manifests.read(&path, version, &text);
        }
    };
    let none: PassBody = Box::pin(http_body_util::Empty::new().map_err(|never| match never {}));
    let body = std::mem::replace(&mut pass.body, none);
    let length = pass.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    pass.body = ReadBody::wrap(body, length, place, ended);
}

/// Wants the objects that the player announced as next. The requested body comes first: nothing
/// else is wanted unless the player's buffer is ample.
pub(super) fn follow_player<O: Objects>(
    server: &Server<O>,
    client: &Client,
    request: &Parts,
    cmcd: &Cmcd,
) {
    if cmcd.next_objects.is_empty() {
        return;
    }
    let Some(targets) = cmcd.prefetch_targets(path_of(server, request)) else {
        return;
    };
    let outside = cmcd.next_objects.len() - targets.len();
    server
        .metrics
        .count_next_objects(NextObjectResult::Outside, outside as u64);
    let due = cmcd.time_left().unwrap_or_default();
    let next = targets.into_iter().filter_map(|(target, range)| {
        let name = name_of(target)?;
        Some(NextObject { name, range, due })
    });
    follow(server, client, request, Some(cmcd), next.collect());
}

/// The request's path without a signature.
fn path_of<'a, O: Objects>(server: &Server<O>, request: &'a Parts) -> &'a str {
    let path = request.uri.path();
    match server.settings.signed_urls {
        Some(_) => credential::split_path(path).0,
        None => path,
    }
}

fn name_of(target: Target) -> Option<ObjectName> {
    match target {
        Target::Key {
            source,
            path,
            query,
        } => Some(ObjectName::Key {
            source,
            path,
            query,
        }),
        Target::Entry { .. } | Target::Peer => None,
    }
}

/// Fetches them in parallel with the request, if the viewer could request them itself.
fn follow<O: Objects>(
    server: &Server<O>,
    client: &Client,
    request: &Parts,
    cmcd: Option<&Cmcd>,
    mut next: Vec<NextObject>,
) {
    let metrics = &server.metrics;
    let count = next.len();
    next.truncate(MAX_OF_REQUEST);
    metrics.count_next_objects(NextObjectResult::Refused, (count - next.len()) as u64);
    let count = next.len();
    next.retain_mut(|next| is_allowed(server, client, request, &mut next.name));
    metrics.count_next_objects(NextObjectResult::Outside, (count - next.len()) as u64);
    if next.is_empty() {
        return;
    }
    let Some(place) = place_of(server, client.address) else {
        metrics.count_next_objects(NextObjectResult::Refused, next.len() as u64);
        return;
    };
    let mut headers = fields::end_to_end(&request.headers);
    // These fields concern the viewer's own range, and its player at that moment.
    for name in &SELECTING {
        headers.remove(name);
    }
    for name in cmcd::HEADERS {
        headers.remove(name);
    }
    let next_objects = Arc::clone(&server.next_objects);
    let viewer = cmcd.and_then(|cmcd| players::viewer_of(cmcd, client.address));
    tokio::spawn(async move { next_objects.fetch_all(next, headers, viewer, place).await });
}

fn place_of<O: Objects>(server: &Server<O>, client: IpAddr) -> Option<Share> {
    server.share_of(&server.next_objects.followed, client)
}

/// Whether the viewer's signature covers the object, if signatures are required. Removes the
/// signature's own parameters from the query.
fn is_allowed<O: Objects>(
    server: &Server<O>,
    client: &Client,
    request: &Parts,
    name: &mut ObjectName,
) -> bool {
    if server.settings.signed_urls.is_none() {
        return true;
    }
    let ObjectName::Key {
        source,
        path,
        query,
    } = name
    else {
        return false;
    };
    let word = credential::split_path(request.uri.path()).1;
    let word = word.or_else(|| credential::cookie(&request.headers));
    let check = |query: String| {
        let path = || format!("/{source}/{path}");
        handler::check_signature(server, client, path, query, word).ok()
    };
    // A player sends the parameters of its first URL with every object of a title.
    let allowed = check(query.clone()).or_else(|| {
        let own = request.uri.query().filter(|_| query.is_empty())?;
        check(own.to_owned())
    });
    match allowed {
        Some(allowed) => {
            *query = allowed;
            true
        }
        None => false,
    }
}

#[cfg(test)]
#[path = "next_objects_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
