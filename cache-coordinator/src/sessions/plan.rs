//! The scheduler with its surroundings: names, entries that are loaded before their first mention,
//! requests and jobs. Synchronous and deterministic, so that it is tested without a runtime;
//! `actor.rs` connects it to time, tables and edges.
//!
//! Why entries are loaded first: a scheduler that does not know which chunks are held would fetch
//! them again. Commands for an entry that is being loaded wait here, in order.

mod close;
mod handover;
mod idle;
mod kept;
mod readers;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use chunkcache_proto::{ChunkIndex, EntryId, Geometry, Level, v1};

pub use super::command::{Action, Command, EdgeSpace, LoadedEntry};
use super::{
    directory::{Directory, EntryRecord},
    loading::{AbsenceOutcome, Loads},
    translate,
};
use scheduler::{
    AskedAgain, Scheduler,
    api::{EdgeId, Effect, EntryNo, Event, Millis, ReaderId, WantId},
};

/// A want as requested, until its entry is open.
#[derive(Clone, Debug)]
struct Want {
    edge: EdgeId,
    entry: EntryId,
    chunks: Vec<Range<ChunkIndex>>,
    level: Level,
}

/// The synchronous core of the actor.
pub struct Plan {
    scheduler: Scheduler,
    directory: Directory,
    epochs: HashMap<EdgeId, u64>,
    readers: HashMap<ReaderId, EntryId>,
    wants: BTreeMap<WantId, Want>,
    loading: Loads,
    /// In-flight fetches of entries that are not open yet.
    kept: HashMap<EntryId, Vec<(EdgeId, v1::KeptFetch)>>,
    idle: idle::Idle,
    handovers: handover::HandOvers,
    effects: Vec<Effect>,
    now: Millis,
}

impl Plan {
    /// Wraps a scheduler with an empty state.
    #[must_use]
    pub fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            directory: Directory::default(),
            epochs: HashMap::new(),
            readers: HashMap::new(),
            wants: BTreeMap::new(),
            loading: Loads::default(),
            kept: HashMap::new(),
            idle: idle::Idle::default(),
            handovers: handover::HandOvers::default(),
            effects: Vec::new(),
            now: 0,
        }
    }

    /// The time of the last command.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Read access, for explanations and counts.
    #[must_use]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// See [`Scheduler::take_asked_again`].
    pub fn take_asked_again(&mut self) -> AskedAgain {
        self.scheduler.take_asked_again()
    }

    /// Translates the scheduler's numbers to names.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Number of open entries.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.directory.entry_count()
    }

    /// Applies one command and appends the resulting actions.
    pub fn apply(&mut self, command: Command, now: Millis, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        match command {
            Command::EdgeJoined {
                edge,
                epoch,
                record,
                max_downloads,
                background_fill,
                draining,
                space,
                kept,
            } => {
                if self.epochs.contains_key(&edge) {
                    // The end of its last session was not noticed.
                    self.event(Event::EdgeLost { edge }, now, actions);
                }
                self.edge_space(edge, space, now, actions);
                self.directory.set_edge(edge, record);
                self.epochs.insert(edge, epoch);
                self.readers.retain(|reader, _| reader.edge != edge);
                self.keep_fetches(edge, kept, now, actions);
                self.event(
                    Event::EdgeJoined {
                        edge,
                        max_downloads,
                        background_fill,
                    },
                    now,
                    actions,
                );
                // The table decides, because an edge that shut down may have reported that it
                // drains.
                if self.scheduler.is_draining(edge) != draining {
                    self.event(Event::EdgeDraining { edge, draining }, now, actions);
                }
                self.handovers.look_again(now);
            }
            Command::EdgeSpace { edge, epoch, space } => {
                if self.is_present(edge, epoch) {
                    self.edge_space(edge, space, now, actions);
                }
            }
            Command::SourceSpaces {
                edge,
                epoch,
                sources,
            } => {
                if self.is_present(edge, epoch) {
                    let spaces = translate::source_spaces(&self.directory, &sources);
                    self.event(Event::SourceSpaces { edge, spaces }, now, actions);
                }
            }
            Command::EdgeLeft { edge, epoch } => {
                if self.is_present(edge, epoch) {
                    self.epochs.remove(&edge);
                    self.forget_kept(|of, _| of == edge);
                    self.readers.retain(|reader, _| reader.edge != edge);
                    self.end_hand_overs(edge, now, actions);
                    self.event(Event::EdgeLost { edge }, now, actions);
                }
            }
            Command::EdgeDraining { edge, draining } => {
                self.end_hand_overs(edge, now, actions);
                self.event(Event::EdgeDraining { edge, draining }, now, actions);
                if draining {
                    self.hand_over(edge, now, actions);
                }
            }
            Command::HandOver { edge, entry } => {
                if self.load(entry, actions) {
                    self.hand_over_one(edge, entry, now, actions);
                } else {
                    self.loading.keep(entry, Command::HandOver { edge, entry });
                }
            }
            Command::EdgeForgotten(edge) => self.forget_edge(edge, now, actions),
            Command::SourceSet(source) => {
                let event = Event::SourceSet {
                    source: self.directory.source(&source.name),
                    max_connections: source.max_connections,
                    max_rate_bytes_per_second: source.max_rate_bytes_per_second,
                    background_fill: translate::background_fill(&source),
                };
                self.event(event, now, actions);
            }
            Command::EdgesExpected(edges) => {
                self.event(Event::EdgesExpected { edges }, now, actions);
            }
            Command::SourceRemoved(name) => {
                let source = self.directory.source(&name);
                self.event(Event::SourceRemoved { source }, now, actions);
            }
            Command::EntryWanted(id) => {
                if self.directory.entry_number(id).is_none() && self.loading.registered(id) {
                    actions.push(Action::Load(id));
                }
            }
            Command::EntryExpected(id) => {
                if self.directory.entry_number(id).is_none() {
                    self.loading.expect(id, now);
                }
            }
            Command::EntryCreated(entry) => {
                if let Ok(id) = entry.id.parse() {
                    let (entry, holders) = (*entry, Vec::new());
                    let loaded = Box::new(LoadedEntry { entry, holders });
                    self.entry_loaded(id, Some(loaded), now, actions);
                }
            }
            Command::EntryRegistered(id) => {
                if self.loading.registered_quietly(id) {
                    actions.push(Action::Load(id));
                }
            }
            Command::EntryChanged(entry) => {
                let number = entry
                    .id
                    .parse()
                    .ok()
                    .and_then(|id| self.directory.entry_number(id));
                if let Some(number) = number {
                    self.directory.update_entry(number, Arc::from(entry));
                }
            }
            Command::EntryClosed(id) => {
                self.wants.retain(|_, want| want.entry != id);
                self.readers.retain(|_, entry| *entry != id);
                if self.loading.contains(id) {
                    self.loading.keep(id, Command::EntryClosed(id));
                } else if let Some(entry) = self.directory.entry_number(id) {
                    self.event(Event::EntryClosed { entry }, now, actions);
                    self.directory.close_entry(id);
                    self.idle.used(entry);
                }
            }
            Command::EntriesClosed(ids) => {
                for id in self.known_of(&ids) {
                    self.apply(Command::EntryClosed(id), now, actions);
                }
            }
            Command::EntryLoaded { id, loaded } => self.entry_loaded(id, loaded, now, actions),
            Command::Held {
                edge,
                entry,
                chunks,
            } => {
                self.rows_changed(edge, entry, Some(chunks), true, now, actions);
            }
            Command::Dropped {
                edge,
                entry,
                chunks,
            } => {
                self.rows_changed(edge, entry, chunks, false, now, actions);
            }
            Command::Demand { edge, epoch, batch } => {
                if self.is_present(edge, epoch) {
                    self.demand(edge, epoch, batch, now, actions);
                }
            }
            Command::FetchReport {
                edge,
                epoch,
                report,
            } => {
                if self.is_present(edge, epoch) {
                    self.fetch_report(edge, &report, now, actions);
                }
            }
            Command::LocalFetch { edge, epoch, fetch } => {
                if self.is_present(edge, epoch)
                    && let Ok(id) = fetch.entry_id.parse()
                {
                    self.local_fetch(id, edge, epoch, fetch, now, actions);
                }
            }
            Command::QuotaReported {
                edge,
                epoch,
                report,
            } => {
                if self.is_present(edge, epoch) {
                    let uses = translate::quota_uses(&self.directory, &report);
                    let number = report.number;
                    let event = Event::QuotaReported { edge, number, uses };
                    self.event(event, now, actions);
                }
            }
            Command::Want {
                want,
                edge,
                entry,
                chunks,
                level,
            } => {
                let asked = Want {
                    edge,
                    entry,
                    chunks,
                    level,
                };
                self.wants.insert(want, asked.clone());
                if self.load(entry, actions) {
                    self.set_want(want, asked, now, actions);
                }
            }
            Command::WantClosed(want) => {
                if self.wants.remove(&want).is_some() {
                    self.event(Event::WantClosed { want }, now, actions);
                }
            }
            Command::Tick => {
                let overdue = self.loading.overdue(self.now);
                actions.extend(overdue.into_iter().map(Action::Load));
                self.forget_absent();
                self.event(Event::Tick, now, actions);
                self.look_at_hand_overs(now, actions);
                self.close_idle_entries(now, actions);
            }
        }
    }

    fn edge_space(
        &mut self,
        edge: EdgeId,
        space: EdgeSpace,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let event = Event::EdgeSpace {
            edge,
            bytes_used: space.bytes_used,
            bytes_allowed: space.bytes_allowed,
        };
        self.event(event, now, actions);
    }

    /// Whether the epoch is the present one. Checked here and not only in the session, because
    /// commands of an older session may still be in the queue when a newer one joins.
    fn is_present(&self, edge: EdgeId, epoch: u64) -> bool {
        self.epochs.get(&edge) == Some(&epoch)
    }

    fn event(&mut self, event: Event, now: Millis, actions: &mut Vec<Action>) {
        self.scheduler.apply(event, now, &mut self.effects);
        for effect in self.effects.drain(..) {
            if let Effect::WantDone { want } = effect {
                if !self.handovers.is_done(want, now) {
                    self.wants.remove(&want);
                    actions.push(Action::WantDone(want));
                }
            } else if let Some((edge, message)) = translate::effect(&self.directory, &effect) {
                actions.push(Action::Send(edge, Box::new(message)));
            }
        }
    }

    /// True if the entry is open; otherwise its load is running when this returns.
    fn load(&mut self, id: EntryId, actions: &mut Vec<Action>) -> bool {
        if let Some(entry) = self.directory.entry_number(id) {
            self.idle.used(entry);
            return true;
        }
        if self.loading.begin(id) {
            actions.push(Action::Load(id));
        }
        false
    }

    /// Drops commands for entries that were never registered.
    fn forget_absent(&mut self) {
        for id in self.loading.expire(self.now) {
            self.wants.retain(|_, want| want.entry != id);
        }
    }

    fn entry_loaded(
        &mut self,
        id: EntryId,
        loaded: Option<Box<LoadedEntry>>,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        if self.directory.entry_number(id).is_some() {
            // It was created while it was being read.
            return;
        }
        let Some(loaded) = loaded else {
            match self.loading.absent(id, now) {
                AbsenceOutcome::Load => actions.push(Action::Load(id)),
                AbsenceOutcome::Wait => {}
                AbsenceOutcome::Forget => self.wants.retain(|_, want| want.entry != id),
            }
            return;
        };
        let waiting = self.loading.finish(id);
        let Ok(geometry) = Geometry::new(loaded.entry.size, loaded.entry.chunk_size) else {
            tracing::error!(entry = %id, "an entry's size and chunk size do not go together");
            return;
        };
        let source_name = loaded
            .entry
            .key
            .as_ref()
            .map_or("", |key| key.source.as_str());
        let source = self.directory.source(source_name);
        let entry = self.directory.open_entry(EntryRecord {
            entry: Arc::new(loaded.entry),
            id,
            geometry,
        });
        let opened = Event::EntryOpened {
            entry,
            source,
            geometry,
        };
        self.event(opened, now, actions);
        self.entry_of_kept_opened(id, now, actions);
        self.handovers.look_again(now);
        for (edge, chunks) in loaded.holders {
            self.event(
                Event::ChunksHeld {
                    edge,
                    entry,
                    chunks,
                },
                now,
                actions,
            );
        }
        let wants: Vec<(WantId, Want)> = self
            .wants
            .iter()
            .filter(|(_, want)| want.entry == id)
            .map(|(number, want)| (*number, want.clone()))
            .collect();
        for (number, want) in wants {
            self.set_want(number, want, now, actions);
        }
        for command in waiting {
            self.apply(command, now, actions);
        }
    }

    fn fetch_report(
        &mut self,
        edge: EdgeId,
        report: &v1::FetchReport,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        use v1::fetch_report::State;
        if !matches!(report.state(), State::Started | State::Progress) {
            // It ended before its entry was open, and must not begin after that.
            let of_it = |command: &Command| {
                matches!(command, Command::LocalFetch { edge: of, fetch, .. }
                    if *of == edge && fetch.assignment_id == report.assignment_id)
            };
            self.loading.retain_all(|command| !of_it(command));
            self.forget_kept(|of, id| of == edge && id == report.assignment_id);
        }
        if let Some(event) = translate::fetch_report(edge, report) {
            self.event(event, now, actions);
        }
    }

    fn set_want(&mut self, want: WantId, asked: Want, now: Millis, actions: &mut Vec<Action>) {
        if let Some(entry) = self.directory.entry_number(asked.entry) {
            let event = Event::WantSet {
                want,
                edge: asked.edge,
                entry,
                chunks: asked.chunks,
                level: asked.level,
            };
            self.event(event, now, actions);
        }
    }

    fn rows_changed(
        &mut self,
        edge: EdgeId,
        id: EntryId,
        chunks: Option<Vec<ChunkIndex>>,
        held: bool,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let Some((entry, geometry)) = self.open_geometry(id) else {
            let command = match (held, chunks) {
                (true, Some(chunks)) => Command::Held {
                    edge,
                    entry: id,
                    chunks,
                },
                (_, chunks) => Command::Dropped {
                    edge,
                    entry: id,
                    chunks,
                },
            };
            self.loading.keep(id, command);
            return;
        };
        let chunks = match chunks {
            Some(indexes) => translate::coalesce(indexes, geometry),
            None => std::iter::once(0..geometry.chunk_count()).collect(),
        };
        let event = if held {
            Event::ChunksHeld {
                edge,
                entry,
                chunks,
            }
        } else {
            Event::ChunksDropped {
                edge,
                entry,
                chunks,
            }
        };
        self.event(event, now, actions);
    }

    fn forget_edge(&mut self, edge: EdgeId, now: Millis, actions: &mut Vec<Action>) {
        self.epochs.remove(&edge);
        self.readers.retain(|reader, _| reader.edge != edge);
        self.end_hand_overs(edge, now, actions);
        self.event(Event::EdgeLost { edge }, now, actions);
        let entries: Vec<(EntryNo, u32)> = self
            .directory
            .entries()
            .map(|(number, record)| (number, record.geometry.chunk_count()))
            .collect();
        for (entry, count) in entries {
            let chunks = std::iter::once(0..count).collect();
            self.event(
                Event::ChunksDropped {
                    edge,
                    entry,
                    chunks,
                },
                now,
                actions,
            );
        }
        let wants: Vec<WantId> = self
            .wants
            .iter()
            .filter(|(_, want)| want.edge == edge)
            .map(|(number, _)| *number)
            .collect();
        for want in wants {
            self.wants.remove(&want);
            self.event(Event::WantClosed { want }, now, actions);
        }
    }

    fn open_geometry(&self, id: EntryId) -> Option<(EntryNo, Geometry)> {
        let number = self.directory.entry_number(id)?;
        self.directory
            .entry(number)
            .map(|record| (number, record.geometry))
    }

    fn local_fetch(
        &mut self,
        id: EntryId,
        edge: EdgeId,
        epoch: u64,
        fetch: v1::LocalFetch,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        if self.load(id, actions) {
            if let Some(event) = translate::local_fetch(&self.directory, edge, &fetch) {
                self.event(event, now, actions);
            }
        } else {
            self.loading
                .keep(id, Command::LocalFetch { edge, epoch, fetch });
        }
    }
}
