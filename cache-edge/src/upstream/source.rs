//! The registered sources: the only places that this edge ever asks.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use chunkcache_proto::v1;
use http::{HeaderName, HeaderValue, StatusCode};
use http_rules::{path, query_rules, ttl_rules};
use parking_lot::Mutex;
use tokio::sync::Notify;
use url::Url;

use super::{
    OriginError, Response,
    health::Failure,
    hedging::RequestKind,
    origin::Origin,
    quota::{LeaseState, LeaseTerm, Quota},
    s3::Signer,
    transport::Transport,
};
use crate::core::{hedging::HedgeBudget, permissions::Permissions};

/// How much longer than its origin may take a client waits, to cover the round trip.
const PATIENCE_BEYOND: Duration = Duration::from_secs(5);

/// A source as received from the coordinator, parsed once.
#[derive(Debug)]
pub struct Source {
    pub config: v1::Source,
    pub(super) key_rules: v1::KeyRules,
    /// In the order in which they are asked; at least one.
    origins: Vec<Origin>,
    /// For hosts that redirects lead to.
    pub(super) elsewhere: OnceLock<Transport>,
    /// Signs requests to a bucket.
    pub(super) signer: Option<Signer>,
    /// Sent with each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The time before which no request is sent (in ms since the epoch): all requests to the source
    /// obey 429 and `Retry-After`.
    not_before_ms: AtomicI64,
    /// This edge's part of the source's limits.
    pub quota: Quota,
    pub(super) hedge_budget: Mutex<HedgeBudget>,
}

/// A source that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSource {
    #[error("source {name:?}: base URL {url:?} can not be used: {reason}")]
    BaseUrl {
        name: String,
        url: String,
        reason: String,
    },
    #[error("source {name:?}: header {header:?} can not be sent")]
    Header { name: String, header: String },
}

impl Source {
    /// Parses the coordinator's message.
    pub fn new(config: v1::Source) -> Result<Self, BadSource> {
        let urls = std::iter::once(&config.base_url).chain(&config.further_base_urls);
        let origins = urls
            .map(|url| {
                Origin::new(url, &config).map_err(|reason| BadSource::BaseUrl {
                    name: config.name.clone(),
                    url: url.clone(),
                    reason,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut headers = Vec::with_capacity(config.headers.len());
        for header in &config.headers {
            let bad = || BadSource::Header {
                name: config.name.clone(),
                header: header.name.clone(),
            };
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| bad())?;
            let mut value = HeaderValue::from_str(&header.value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.push((name, value));
        }
        let quota = Quota::default();
        quota.set_limits(config.max_connections, config.max_rate_bytes_per_second);
        Ok(Self {
            quota,
            key_rules: config.key_rules.clone().unwrap_or_default(),
            origins,
            elsewhere: OnceLock::new(),
            signer: Signer::of(&config),
            config,
            headers,
            not_before_ms: AtomicI64::new(0),
            hedge_budget: Mutex::default(),
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// As in entries: without a trailing slash.
    #[must_use]
    pub fn base_url(&self) -> &str {
        self.config.base_url.trim_end_matches('/')
    }

    /// In the order in which they are asked.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// How long an origin may take before its first byte; `default` if nothing is set.
    #[must_use]
    pub fn first_byte_timeout(&self, default: Duration) -> Duration {
        let timeout = self.connection().and_then(|it| it.first_byte_timeout_ms);
        timeout.map_or(default, |ms| Duration::from_millis(ms.into()))
    }

    /// How long an origin may pause within an answer; `default` if nothing is set.
    #[must_use]
    pub fn idle_timeout(&self, default: Duration) -> Duration {
        let timeout = self.connection().and_then(|it| it.idle_timeout_ms);
        timeout.map_or(default, |ms| Duration::from_millis(ms.into()))
    }

    /// How long a request is held. `default` is the edge's own patience; an origin that is
    /// configured as slow gets its configured time.
    #[must_use]
    pub fn patience(&self, default: Duration) -> Duration {
        let thinking = self.first_byte_timeout(Duration::ZERO);
        let pausing = self.idle_timeout(Duration::ZERO);
        match thinking.max(pausing) {
            Duration::ZERO => default,
            longest => default.max(longest + PATIENCE_BEYOND),
        }
    }

    /// Whether the origin is slow on purpose, so that a second request would not be faster.
    #[must_use]
    pub fn may_think(&self) -> bool {
        self.connection()
            .is_some_and(|it| it.first_byte_timeout_ms.is_some())
    }

    fn connection(&self) -> Option<&v1::OriginConnection> {
        self.config.connection.as_ref()
    }

    #[must_use]
    pub fn mode(&self) -> v1::SourceMode {
        match self.config.mode() {
            v1::SourceMode::Unspecified => v1::SourceMode::Serve,
            mode => mode,
        }
    }

    /// The freshness policy of the object at a path.
    #[must_use]
    pub fn policy(&self, path: &str) -> v1::FreshnessPolicy {
        let policy = self.config.freshness.unwrap_or_default();
        ttl_rules::policy_for(policy, &self.config.ttl_rules, path)
    }

    /// The key of an object that a client named, by the source's rules.
    #[must_use]
    pub fn key(&self, named: v1::Key) -> v1::Key {
        let path = query_rules::fold_path(&named.path, &self.key_rules).into_owned();
        let query = query_rules::split(&named.query, &self.key_rules)
            .key
            .into_owned();
        v1::Key {
            path,
            query,
            ..named
        }
    }

    /// Whether the source has limits, which apply to the whole cluster.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.config.max_connections > 0 || self.config.max_rate_bytes_per_second > 0
    }

    /// The object's URL. `None` if it would not lie below the base URL; the path is already
    /// normalised, so this is a second safeguard.
    #[must_use]
    pub fn url(&self, path: &str, query: &str) -> Option<Url> {
        let mut text = format!("{}/{}", self.base_url(), path);
        if !query.is_empty() {
            text.push('?');
            text.push_str(query);
        }
        let url = Url::parse(&text).ok()?;
        self.allows(&url).then_some(url)
    }

    /// The path and query of what a reference names in an answer for the object at a path.
    #[must_use]
    pub fn resolve_link(&self, path: &str, reference: &str) -> Option<(String, String)> {
        let base = Url::parse(self.base_url()).ok()?;
        path::resolve_at_origin(&base, path, reference)
    }

    /// Whether the URL is below the source's base URL: same scheme, host and port, no credentials.
    #[must_use]
    pub fn allows(&self, url: &Url) -> bool {
        self.origins.first().is_some_and(|origin| origin.holds(url))
    }

    /// Translates a URL below the base URL to one of its origins.
    pub(super) fn target(&self, origin: &Origin, url: &Url) -> Option<Url> {
        origin.target_of(self.origins.first()?.logical_base(), url)
    }

    /// The origins to ask, in order: dead ones last.
    pub(super) fn order(&self, skip: &OriginSet) -> Vec<usize> {
        let (alive, dead): (Vec<usize>, Vec<usize>) = (0..self.origins.len())
            .filter(|&index| !skip.has(index))
            .partition(|&index| self.origins[index].health.dead_since().is_none());
        [alive, dead].concat()
    }

    /// The first of these origins that is alive.
    pub(super) fn first_alive(&self, indexes: &[usize]) -> Option<usize> {
        let is_alive = |index: &usize| self.origins[*index].health.dead_since().is_none();
        indexes.iter().copied().find(is_alive)
    }

    /// Records how long an origin's answer took to begin.
    pub(super) fn record_time(&self, index: usize, kind: RequestKind, took: Duration) {
        if let Some(origin) = self.origins.get(index) {
            origin.record_time(kind, took);
        }
    }

    /// The time after which an origin's answer is late; `None`: not known yet.
    pub(super) fn late_after(&self, index: usize, kind: RequestKind) -> Option<Duration> {
        self.origins.get(index)?.late_after(kind)
    }

    /// Whether the link to the origin that is asked first is full, or for a moment counts as full.
    #[must_use]
    pub fn is_link_full(&self) -> bool {
        let origin = self.first_asked();
        origin.is_some_and(|origin| origin.link.is_for_one())
    }

    /// Bytes that the link brings in the time that the origin takes to begin an answer that waits
    /// for no other, if both are known.
    #[must_use]
    pub fn bytes_of_round_trip(&self) -> Option<u64> {
        let origin = self.first_asked()?;
        let rate = origin.link.bytes_per_second()? as f64;
        Some((rate * origin.least_time()?.as_secs_f64()) as u64)
    }

    fn first_asked(&self) -> Option<&Origin> {
        let is_alive = |origin: &&Origin| origin.health.dead_since().is_none();
        let alive = self.origins.iter().find(is_alive);
        alive.or_else(|| self.origins.first())
    }

    /// Dead origins whose pause is over. Each is returned once.
    pub(super) fn due_trials(&self) -> Vec<usize> {
        if self.origins.len() == 1 {
            return Vec::new();
        }
        let now = Instant::now();
        let due = |index: &usize| self.origins[*index].health.take_trial(now);
        (0..self.origins.len()).filter(due).collect()
    }

    /// Records how one origin answered.
    pub(super) fn judge(&self, index: usize, answer: &Result<Response, OriginError>) {
        let Some(origin) = self.origins.get(index) else {
            return;
        };
        let (failure, text) = match answer {
            Ok(response) if is_failing(response.status) => {
                let text = format!("answered {}", response.status.as_u16());
                (Failure::Quick, text)
            }
            Ok(_) => return origin.health.succeed(),
            Err(error @ OriginError::TimedOut(_)) => (Failure::Slow, error.to_string()),
            Err(error) if error.is_transient() => (Failure::Quick, error.to_string()),
            Err(_) => return,
        };
        origin.health.fail(failure, text, Instant::now());
    }

    /// Whether an answer with this status is ignored while there is another origin to ask.
    pub(super) fn fails_over(&self, status: StatusCode) -> bool {
        is_failing(status) || (self.config.failover_on_not_found && status == StatusCode::NOT_FOUND)
    }

    /// Whether another origin may have the version that this one lacks: one that was not asked, and
    /// that has not been failing for longer than readers are held.
    pub(crate) fn may_have_it(&self, asked: &OriginSet, patience: Duration) -> bool {
        let is_lost = |origin: &Origin| {
            let since = origin.health.dead_since();
            since.is_some_and(|since| since.elapsed() > patience)
        };
        let mut others = self.origins.iter().enumerate();
        others.any(|(index, origin)| !asked.has(index) && !is_lost(origin))
    }

    /// Backs off as the origin requested.
    pub fn heed(&self, error: &OriginError, now_ms: i64) {
        if let OriginError::Busy { retry_after } = error {
            let wait = i64::try_from(retry_after.as_millis()).unwrap_or(0);
            let until = now_ms.saturating_add(wait);
            self.not_before_ms.fetch_max(until, Ordering::AcqRel);
        }
    }

    /// Milliseconds to wait before the next request.
    #[must_use]
    pub fn held_off_for_ms(&self, now_ms: i64) -> u64 {
        u64::try_from(self.not_before_ms.load(Ordering::Acquire) - now_ms).unwrap_or(0)
    }
}

/// 5xx, except for a loop, which every origin would answer; and 429.
fn is_failing(status: StatusCode) -> bool {
    (status.is_server_error() && status != StatusCode::LOOP_DETECTED)
        || status == StatusCode::TOO_MANY_REQUESTS
}

/// Some of a source's origins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginSet(u64);

impl OriginSet {
    /// Indexes beyond 64 are ignored: a source has at most eight.
    pub fn insert(&mut self, index: usize) {
        self.0 |= u32::try_from(index)
            .ok()
            .and_then(|index| 1_u64.checked_shl(index))
            .unwrap_or(0);
    }

    #[must_use]
    pub fn has(&self, index: usize) -> bool {
        index < 64 && self.0 >> index & 1 == 1
    }
}

/// All sources. Reading is lock-free; a change replaces the whole map.
#[derive(Default)]
pub struct Catalogue {
    sources: ArcSwap<HashMap<String, Arc<Source>>>,
    changes: AtomicU64,
    /// When the leases of all sources expire.
    term: LeaseTerm,
    /// Notified when there may be something to report about some source's quota.
    quota_news: Arc<Notify>,
    /// Notified when leases, or the session that renews them, changed.
    term_changed: Notify,
    /// Clients' signatures that origins accepted.
    pub(super) permissions: Mutex<Permissions>,
}

impl Catalogue {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Source>> {
        self.sources.load().get(name).cloned()
    }

    /// How often it was replaced. Read it before a look-up: while it stays the same, so does the
    /// result.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.sources.load().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The base URLs of all sources, by name.
    #[must_use]
    pub fn base_urls(&self) -> HashMap<String, String> {
        let sources = self.sources.load();
        sources
            .iter()
            .map(|(name, source)| (name.clone(), source.base_url().to_owned()))
            .collect()
    }

    /// Replaces the whole set. Unchanged sources keep their state; invalid ones are left out and
    /// returned.
    pub fn replace(&self, sources: Vec<v1::Source>) -> Vec<BadSource> {
        let old = self.sources.load();
        let mut bad = Vec::new();
        let mut map = HashMap::with_capacity(sources.len());
        for config in sources {
            let name = config.name.clone();
            match old.get(&name) {
                Some(kept) if kept.config == config => {
                    map.insert(name, kept.clone());
                }
                known => match Source::new(config) {
                    Ok(mut source) => {
                        source.quota = self.quota_of(known, &source.config);
                        map.insert(name, Arc::new(source));
                    }
                    Err(error) => bad.push(error),
                },
            }
        }
        self.sources.store(Arc::new(map));
        self.changes.fetch_add(1, Ordering::Release);
        bad
    }

    /// A changed source keeps its connections, and the requests that wait for one.
    fn quota_of(&self, known: Option<&Arc<Source>>, config: &v1::Source) -> Quota {
        let quota = known.map_or_else(
            || Quota::new(self.term.clone(), Arc::clone(&self.quota_news)),
            |it| it.quota.clone(),
        );
        quota.set_limits(config.max_connections, config.max_rate_bytes_per_second);
        quota
    }

    /// Records whether the coordinator renews leases.
    pub fn set_in_session(&self, in_session: bool) {
        self.term.set_in_session(in_session);
        if in_session {
            for source in self.sources.load().values() {
                source.quota.begin_session();
            }
        }
        self.term_changed.notify_one();
        self.quota_news.notify_one();
    }

    /// All sources.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Source>> {
        self.sources.load().values().cloned().collect()
    }

    /// Applies the coordinator's answer to a report, or changed leases.
    pub fn set_leases(&self, told: v1::QuotaLeases) {
        let ttl = Duration::from_millis(told.expires_ms.into());
        self.term.renew(told.answers, ttl);
        for lease in told.leases {
            if let Some(source) = self.get(&lease.source) {
                source.quota.set_lease(lease);
            }
        }
        self.term_changed.notify_one();
    }

    /// How far this edge may rely on its leases, and the time after which that may change by
    /// itself.
    #[must_use]
    pub fn lease_state(&self) -> (LeaseState, Option<Duration>) {
        self.term.state(Instant::now())
    }

    /// Returns when leases, or the state of all of them, may have changed. For a single waiter;
    /// cancel safe.
    pub async fn leases_changed(&self) {
        self.term_changed.notified().await;
    }

    /// Returns when there may be something to report about quotas. Cancel safe.
    pub async fn quotas_changed(&self) {
        self.quota_news.notified().await;
    }

    /// The uses that the coordinator does not know yet; see [`Quota::to_report`]. With `all` it is
    /// a heartbeat, which is sent even without changes.
    #[must_use]
    pub fn quota_report(&self, all: bool) -> Option<v1::QuotaReport> {
        let sources = self.sources.load();
        let uses = sources
            .values()
            .filter_map(|source| source.quota.to_report(source.name(), all));
        let uses: Vec<_> = uses.collect();
        let is_limited = || sources.values().any(|source| source.is_limited());
        if uses.is_empty() && !(all && is_limited()) {
            return None;
        }
        Some(v1::QuotaReport {
            number: self.term.report(Instant::now()),
            uses,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(base: &str) -> Source {
        Source::new(v1::Source {
            name: "films".into(),
            base_url: base.into(),
            ..v1::Source::default()
        })
        .unwrap()
    }

    #[test]
    fn objects_lie_below_the_base() {
        let films = source("http://origin:8080/library/");
        assert_eq!(
            films.url("a/b.mp4", "v=1").unwrap().as_str(),
            "http://origin:8080/library/a/b.mp4?v=1"
        );
        assert!(films.url("../secret", "").is_none());
        assert!(films.url("%2e%2e/secret", "").is_none());
        let allowed = |url: &str| films.allows(&Url::parse(url).unwrap());
        assert!(allowed("http://origin:8080/library/other"));
        for other in [
            "https://origin:8080/library/x",
            "http://origin/library/x",
            "http://evil:8080/library/x",
            "http://origin:8080/librarything/x",
            "http://origin:8080/library",
            "http://user@origin:8080/library/x",
            "http://169.254.169.254:8080/library/x",
            "http://[::ffff:169.254.169.254]:8080/library/x",
            "http://origin:8080/library/..%2f..%2fx",
            "http://origin:8080/library/a%2F..%2F..%2Fx",
            "http://origin:8080/library/..%5Cx",
        ] {
            assert!(!allowed(other), "{other}");
        }
    }

    #[test]
    fn unusable_sources_are_refused() {
        for base in ["ftp://x/", "http://", "http://x/?q", "http://x/#f", "x"] {
            assert!(
                Source::new(v1::Source {
                    base_url: base.into(),
                    ..v1::Source::default()
                })
                .is_err(),
                "{base}"
            );
        }
    }

    #[test]
    fn a_change_keeps_what_did_not_change() {
        let catalogue = Catalogue::default();
        let config = source("http://a/").config;
        catalogue.replace(vec![config.clone()]);
        let first = catalogue.get("films").unwrap();
        catalogue.replace(vec![config]);
        assert!(Arc::ptr_eq(&first, &catalogue.get("films").unwrap()));
        catalogue.replace(vec![]);
        assert!(catalogue.get("films").is_none());
    }
}
