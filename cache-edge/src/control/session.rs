//! Runs one session after another with whichever coordinator leads.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use chunkcache_proto::{EntryId, Level, identity, v1};
use http::HeaderMap;
use http_rules::purge;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use v1::{session_request, session_response::Message};

use super::{
    channel::{self, Coordinators, Credentials, Ended, Why},
    link::{Link, Removal},
    notes,
    outgoing::{self, Outgoing, Page},
    source_statuses,
};
use crate::by_source::SentToViewers;
use crate::clock::now_ms;
use crate::fetch::{Assignment, Downloads};
use crate::{
    readers::DemandRegistry,
    resolve::{Bindings, EdgeObjects},
    upstream::{Catalogue, peer::PeerKeys},
};
use chunk_store::{EntryFile, Store};
use service_kit::backoff::Backoff;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(3);
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Reader movements are batched for this long; waits are reported at once.
const DEMAND_GATHERING: Duration = Duration::from_millis(50);
const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// A larger difference between the clocks is logged.
const MAX_CLOCK_SKEW_MS: i64 = 1_000;
/// Limit of viewers in one status.
const MAX_VIEWERS: usize = 1_000;

/// Totals of a status that the store does not know.
pub trait Totals: Send + Sync + 'static {
    /// Bytes sent, and those of them that came from the cache; bytes from the origin and from
    /// peers; stalls.
    fn totals(&self) -> [u64; 5];
    fn of_source(&self, source: &str) -> SentToViewers;
    /// Requests whose body has not ended.
    fn requests_active(&self) -> u32;
    /// How long they have been counted.
    fn uptime(&self) -> Duration;
}

/// The parts of the edge that a session uses.
pub struct Session {
    pub link: Arc<Link>,
    pub hello: v1::Hello,
    pub credentials: Credentials,
    pub store: Store,
    pub catalogue: Arc<Catalogue>,
    pub bindings: Arc<Bindings>,
    pub peer_keys: Arc<PeerKeys>,
    pub chunk_size: Arc<AtomicU32>,
    pub demand: Arc<DemandRegistry>,
    pub downloads: Downloads,
    pub objects: EdgeObjects,
    pub totals: Arc<dyn Totals>,
}

impl Session {
    /// Runs sessions, one after the other, until `shutdown`.
    pub async fn run(self, coordinators: Vec<String>, shutdown: CancellationToken) {
        let mut coordinators = Coordinators::new(coordinators);
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let url = coordinators.pick();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.one(&url) => ended,
            };
            let was_ready = self.link.is_ready();
            let wait = match ended {
                Ended::NotLeader(leader) => {
                    self.link.end(format!("{url} stands by for {leader}"));
                    coordinators.try_leader(leader);
                    // Wait at least a moment: two standbys that name each other must not be asked
                    // in a loop.
                    backoff.wait(rand::random())
                }
                Ended::Failed(why, error) => {
                    tracing::info!(
                        coordinator = url,
                        error = format!("{error:#}"),
                        "no session"
                    );
                    self.link.end(format!("{url}: {error:#}"));
                    if was_ready {
                        coordinators.after_session(&url, why, &mut backoff);
                    }
                    backoff.wait(rand::random())
                }
            };
            self.catalogue.set_in_session(false);
            self.downloads.forget_peers();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn one(&self, url: &str) -> Ended {
        match self.talk(url).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn talk(&self, url: &str) -> Result<std::convert::Infallible, Ended> {
        let mut client = channel::connect(url, &self.credentials)
            .await
            .context("can not connect")?;
        let hello = v1::Hello {
            bytes_allowed: self.store.bytes_allowed(),
            kept: self.downloads.kept(),
            last_purge: notes::last_purge(&self.store),
            now_ms: now_ms(),
            ..self.hello.clone()
        };
        let kept = hello.kept.clone();
        let session = self.link.begin(client.clone());
        let (pages, requested) = mpsc::unbounded_channel();
        let outgoing = Outgoing::new(
            self.link.clone(),
            session,
            (self.store.clone(), self.bindings.clone()),
            hello,
            requested,
        );
        let response = client.session(outgoing).await?;
        let mut incoming = response.into_inner();
        let mut timeout = DEFAULT_SESSION_TIMEOUT;
        let mut status = tokio::time::interval(STATUS_INTERVAL);
        status.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut welcomed = false;
        loop {
            let silence = timeout.saturating_sub(self.link.silent_for());
            let has_room = self.link.has_room();
            tokio::select! {
                message = incoming.message() => {
                    let message = message?.context("the coordinator ended the session")?;
                    self.link.heard();
                    if let Some(Message::Welcome(welcome)) = &message.message {
                        welcomed = true;
                        if welcome.session_timeout_ms > 0 {
                            timeout = Duration::from_millis(welcome.session_timeout_ms.into());
                        }
                    }
                    if let Some(message) = message.message {
                        let is_welcome = matches!(message, Message::Welcome(_));
                        self.handle(message, &pages);
                        if is_welcome {
                            self.downloads.report_ended(&kept);
                        }
                    }
                }
                () = self.link.room(), if !has_room => {}
                () = self.demand.due(DEMAND_GATHERING), if welcomed && has_room => {
                    self.send_demand(false);
                }
                _ = status.tick(), if welcomed && has_room => {
                    self.link.send(session_request::Message::Status(self.status()));
                    self.downloads.report_progress();
                    self.demand.sweep();
                    self.report_quotas(true);
                }
                () = self.catalogue.quotas_changed(), if welcomed && has_room => {
                    self.report_quotas(false);
                }
                why = self.link.broken() => return Err(anyhow::anyhow!(why).into()),
                () = tokio::time::sleep(silence) => {
                    let error = anyhow::anyhow!("nothing heard for {timeout:?}");
                    return Err(Ended::Failed(Why::Silent, error));
                }
            }
        }
    }

    fn handle(&self, message: Message, pages: &mpsc::UnboundedSender<Page>) {
        match message {
            Message::Welcome(welcome) => {
                self.note_clock(welcome.now_ms);
                self.bindings.resume_at(welcome.invalidation_epoch);
                notes::set_welcome(&self.store, &self.peer_keys, &self.chunk_size, &welcome);
                self.set_sources(welcome.sources);
                self.link.set_draining(welcome.draining);
                self.catalogue.set_in_session(true);
                self.link.welcomed(welcome.epoch);
                self.send_demand(true);
            }
            Message::InventoryRequest(request) => {
                // The coordinator requests one page at a time. Without a receiver the session has
                // ended.
                let _ = pages.send(outgoing::requested(
                    &self.link,
                    &self.store,
                    &self.bindings,
                    request.entry_ids,
                ));
            }
            Message::InventoryVerdict(verdict) => {
                if let Ok(id) = verdict.entry_id.parse::<EntryId>()
                    && !verdict.drop.is_empty()
                {
                    self.drop_bytes(&Removal::Chunks(id, verdict.drop));
                }
            }
            Message::Ready(_) => {
                tracing::info!(epoch = self.link.epoch(), "in session with the coordinator");
                self.link.ready();
            }
            Message::Assign(assign) => self.assign(assign),
            Message::Probe(probe) => self.probe(probe),
            Message::Title(title) => self.list_title(title),
            Message::SourceCheck(check) => self.check_source(check),
            Message::Reprioritise(change) => {
                if let Ok(level) = Level::try_from(change.priority()) {
                    let id = change.assignment_id.into();
                    tracing::debug!(fetch = change.assignment_id, ?level, "has another level");
                    self.downloads.reprioritise(id, level, change.deadline_ms);
                }
            }
            Message::Cancel(cancel) => {
                let id = cancel.assignment_id.into();
                let is_read = |(entry, chunk)| {
                    self.demand.all().iter().any(|reader| {
                        let file = &reader.file;
                        file.id() == entry && file.geometry().chunk_of(reader.position()) == chunk
                    })
                };
                let wanted = self.downloads.under_way(id).is_some_and(is_read);
                tracing::debug!(fetch = cancel.assignment_id, "cancelled");
                self.downloads.cancel(id, wanted);
            }
            Message::Committed(committed) => {
                for removal in self.link.committed(committed.sequence) {
                    self.drop_bytes(&removal);
                }
            }
            Message::SourcesChanged(change) => {
                self.set_sources(change.sources);
                self.link
                    .send(session_request::Message::SourceAck(v1::SourceAck {
                        sequence: change.sequence,
                    }));
            }
            Message::KeyChanged(change) => self.key_changed(change.binding),
            Message::Invalidate(invalidate) => self.invalidate(invalidate),
            Message::Purge(purge) => self.purge(purge),
            Message::EntryChanged(change) => {
                if let Ok(id) = change.entry_id.parse()
                    && let Some(file) = self.store.entry(&id)
                {
                    file.set_pinned(change.pinned);
                }
            }
            Message::Drain(drain) => self.link.set_draining(drain.draining),
            Message::QuotaLeases(told) => self.catalogue.set_leases(told),
            Message::Held(held) => self.demand.hold(&held.reader_ids, held.wait_ms),
            Message::Forget(_) => {
                tracing::warn!(
                    "this edge was removed from the cluster; everything cached is dropped"
                );
                let ids: Vec<_> = self.store.entries().iter().map(|file| file.id()).collect();
                self.bindings.invalidate(&[], &ids);
                ids.iter().for_each(|id| self.store.remove_entry(id));
            }
        }
    }

    /// Records a clock difference. Above all, other software on this machine may depend on it.
    fn note_clock(&self, coordinator_ms: i64) {
        if coordinator_ms == 0 {
            return;
        }
        let ahead_ms = now_ms().saturating_sub(coordinator_ms);
        self.link.set_clock_ahead(ahead_ms);
        self.downloads.fetcher().counters.set_clock_ahead(ahead_ms);
        if ahead_ms.abs() > MAX_CLOCK_SKEW_MS {
            tracing::warn!(
                ahead_seconds = ahead_ms as f64 / 1_000.0,
                "this machine's clock and the coordinator's differ"
            );
        }
    }

    /// `all`: a heartbeat, which renews the leases even without changes.
    fn report_quotas(&self, all: bool) {
        if let Some(report) = self.catalogue.quota_report(all) {
            self.link
                .send(session_request::Message::QuotaReport(report));
        }
    }

    fn assign(&self, assign: v1::Assign) {
        let refuse = |message: &str| {
            let failure = v1::FetchFailure {
                fault: v1::fetch_failure::Fault::Edge.into(),
                message: message.to_owned(),
                ..v1::FetchFailure::default()
            };
            self.link
                .send(session_request::Message::FetchReport(v1::FetchReport {
                    assignment_id: assign.assignment_id,
                    state: v1::fetch_report::State::Failed.into(),
                    failure: Some(failure),
                    ..v1::FetchReport::default()
                }));
        };
        let Ok(level) = Level::try_from(assign.priority()) else {
            return refuse("no priority");
        };
        let Some(entry) = &assign.entry else {
            return refuse("no entry");
        };
        let file = match self.objects.entry_file(entry) {
            Ok(file) => file,
            Err(error) => return refuse(&error.to_string()),
        };
        self.link.set_known(file.id());
        tracing::debug!(
            fetch = assign.assignment_id,
            chunk = assign.first_chunk,
            count = assign.chunk_count,
            ?level,
            reason = assign.reason,
            peer = assign.peer.as_ref().map(|peer| &peer.url),
            "assigned"
        );
        let order = Assignment {
            id: assign.assignment_id.into(),
            start_at: assign
                .start_at
                .max(file.geometry().chunk_range(assign.first_chunk).start),
            file,
            first_chunk: assign.first_chunk,
            chunk_count: assign.chunk_count,
            level,
            deadline_in_ms: assign.deadline_ms,
            peer: assign
                .peer
                .as_ref()
                .map(|peer| peer.url.clone())
                .filter(|url| !url.is_empty()),
            reader: assign.reader_id,
        };
        if !self.downloads.submit(order) {
            refuse("the fetch queue is full");
        }
    }

    /// Runs beside the session, because an origin may take its time.
    fn probe(&self, probe: v1::ProbeRequest) {
        let (objects, link) = (self.objects.clone(), self.link.clone());
        let key = probe.key.unwrap_or_default();
        self.downloads.workers().spawn(async move {
            let outcome = objects.probe_for_cluster(key).await;
            link.send(session_request::Message::ProbeReport(v1::ProbeReport {
                sequence: probe.sequence,
                outcome: Some(outcome),
            }));
        });
    }

    fn list_title(&self, title: v1::TitleRequest) {
        let (objects, link) = (self.objects.clone(), self.link.clone());
        self.downloads.workers().spawn(async move {
            let first = (title.first_ms > 0).then(|| Duration::from_millis(title.first_ms));
            let key = title.manifest.unwrap_or_default();
            let listed = objects.list_title(key, &title.rendition, first).await;
            let (objects, failed) = match listed {
                Ok(objects) => (objects, String::new()),
                Err(failed) => (Vec::new(), failed),
            };
            link.send(session_request::Message::TitleReport(v1::TitleReport {
                sequence: title.sequence,
                objects,
                failed,
            }));
        });
    }

    fn check_source(&self, check: v1::SourceCheckRequest) {
        let (objects, link) = (self.objects.clone(), self.link.clone());
        self.downloads.workers().spawn(async move {
            let source = check.source.unwrap_or_default();
            let checked = objects.parts().client.check_buckets(source).await;
            link.send(session_request::Message::SourceCheckReport(
                v1::SourceCheckReport {
                    sequence: check.sequence,
                    failed: checked.err().unwrap_or_default(),
                },
            ));
        });
    }

    fn key_changed(&self, binding: Option<v1::KeyBinding>) {
        let Some(v1::KeyBinding {
            entry: Some(entry),
            freshness: Some(freshness),
        }) = binding.map(|it| self.link.received(it))
        else {
            return;
        };
        let Some(key) = entry.key.clone() else { return };
        if let Some(held) = self.bindings.get(&key) {
            if held.freshness.validated_at_ms > freshness.validated_at_ms {
                return;
            }
            if held.entry.id != entry.id
                && let Some(file) = self.store.entry(&held.id)
            {
                self.objects.parts().incoming.of(&file).set_changed();
            }
        }
        self.bindings.bind(entry, freshness);
    }

    fn set_sources(&self, sources: Vec<v1::Source>) {
        if notes::set_sources(&self.store, &self.catalogue, sources) {
            let base_urls = self.catalogue.base_urls();
            self.bindings
                .forget_foreign(|name| base_urls.get(name).cloned());
        }
    }

    fn invalidate(&self, invalidate: v1::Invalidate) {
        let entries: Vec<EntryId> = invalidate
            .entry_ids
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        self.bindings.invalidate(&invalidate.keys, &entries);
        self.bindings.set_cluster_epoch(invalidate.epoch);
        if invalidate.purge {
            for id in entries {
                let Some(file) = self.store.entry(&id) else {
                    continue;
                };
                let indexes: Vec<_> = file
                    .present_chunks()
                    .into_iter()
                    .map(|(chunk, _)| chunk)
                    .collect();
                let (reason, counters) = (
                    v1::RemovalReason::Invalidated,
                    &self.downloads.fetcher().counters,
                );
                counters.removed(reason, indexes.len());
                self.link.removed(Removal::Entry(id), indexes, reason);
            }
        }
        let confirmation = v1::InvalidateAck {
            sequence: invalidate.sequence,
            objects: 0,
        };
        self.link.confirm(confirmation);
    }

    /// Withdraws the selected bytes at once. The coordinator deletes their rows, including those
    /// that are still on their way; until then it hides the keys.
    fn purge(&self, purge: v1::Purge) {
        let selector = purge.selector.unwrap_or_default();
        let named: HashSet<EntryId> = identity::unpack(&purge.entry_ids).collect();
        let objects = self.bindings.purge(&selector, &named, purge.soft);
        self.bindings.set_cluster_epoch(purge.epoch);
        if !purge.soft {
            let is_selected = |file: &EntryFile| {
                let key = file.description().key;
                let no_fields = HeaderMap::new();
                named.contains(&file.id())
                    || key.is_some_and(|key| purge::selects(&selector, &key, &no_fields))
            };
            let mut selected = self.store.entries();
            selected.retain(|file| is_selected(file));
            let counters = &self.downloads.fetcher().counters;
            for file in &selected {
                let chunks = file.present_chunks().len();
                counters.removed(v1::RemovalReason::Invalidated, chunks);
                self.store.remove_entry(&file.id());
            }
            let entries: Vec<EntryId> = selected.iter().map(|file| file.id()).collect();
            self.link.entries_removed(&entries);
        }
        notes::set_last_purge(&self.store, purge.number);
        let confirmation = v1::InvalidateAck {
            sequence: purge.sequence,
            objects,
        };
        self.link.confirm(confirmation);
    }

    /// Drops bytes whose rows are gone. They are withdrawn now, so the next session's inventory
    /// does not list them, however long it takes to free them.
    fn drop_bytes(&self, removal: &Removal) {
        match removal {
            Removal::Chunks(entry, chunks) => self.store.drop_chunks(entry, chunks),
            Removal::Entry(entry) => self.store.remove_entry(entry),
            Removal::Nothing(_) => {}
        }
    }

    fn send_demand(&self, everything: bool) {
        let changes = self.demand.take_changes(everything);
        if changes.readers.is_empty() && changes.closed.is_empty() && !changes.complete {
            return;
        }
        let readers = changes
            .readers
            .iter()
            .map(|reader| self.demand.message(reader))
            .collect();
        self.link
            .send(session_request::Message::Demand(v1::DemandBatch {
                readers,
                closed_readers: changes.closed,
                complete: changes.complete,
            }));
    }

    fn status(&self) -> v1::EdgeStatus {
        let [
            bytes_sent_total,
            bytes_hit_total,
            bytes_origin_total,
            bytes_peer_total,
            stalls_total,
        ] = self.totals.totals();
        let degraded = self.store.degraded();
        let readers = self.demand.all();
        v1::EdgeStatus {
            bytes_used: self.store.bytes_used(),
            bytes_allowed: self.store.bytes_allowed(),
            readers: u32::try_from(self.demand.viewers()).unwrap_or(u32::MAX),
            requests_active: self.totals.requests_active(),
            bytes_sent_total,
            bytes_hit_total,
            bytes_origin_total,
            bytes_peer_total,
            stalls_total,
            degraded: degraded.is_some(),
            reason: degraded.unwrap_or_default(),
            viewers: readers
                .iter()
                .take(MAX_VIEWERS)
                .map(|reader| self.demand.message(reader))
                .collect(),
            sources: source_statuses::of_all(
                self.store.source_uses(),
                &self.catalogue,
                &self.downloads.fetcher().counters,
                &*self.totals,
            ),
            uptime_ms: source_statuses::ms(self.totals.uptime()),
        }
    }

    /// For tests and status pages.
    #[must_use]
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size.load(Ordering::Relaxed)
    }
}
