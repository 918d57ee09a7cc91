//! Readers of edges: their present and withdrawn demand, and which of their waits continue.

use std::collections::HashSet;

use chunkcache_proto::{EntryId, v1};
use v1::session_response::Message;

use super::{Action, Command, Plan, translate};
use scheduler::api::{EdgeId, Event, Millis, ReaderId};

/// How long an edge leaves a planned wait to the coordinator. A fetch of its own would not come
/// sooner, because the origin's limits, its back-off, or other readers delay it. Limited, because
/// late is better than never.
const PLANNED_MS: u32 = 10_000;

impl Plan {
    pub(super) fn demand(
        &mut self,
        edge: EdgeId,
        epoch: u64,
        batch: v1::DemandBatch,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        if batch.complete {
            let there: HashSet<u64> = batch.readers.iter().map(|it| it.reader_id).collect();
            let gone: Vec<ReaderId> = self
                .readers
                .keys()
                .filter(|reader| reader.edge == edge && !there.contains(&reader.number))
                .copied()
                .collect();
            for reader in gone {
                self.close_reader(reader, now, actions);
            }
        }
        let mut held = Vec::new();
        for demand in batch.readers {
            let Ok(id) = demand.entry_id.parse::<EntryId>() else {
                continue;
            };
            let reader = ReaderId {
                edge,
                number: demand.reader_id,
            };
            self.readers.insert(reader, id);
            if self.load(id, actions) {
                if let Some(event) = translate::demand(&self.directory, edge, &demand) {
                    self.event(event, now, actions);
                    if demand.waiting && self.is_schedulable(edge, id) {
                        held.push(demand.reader_id);
                    }
                }
            } else {
                let batch = v1::DemandBatch {
                    readers: vec![demand],
                    ..Default::default()
                };
                self.loading
                    .keep(id, Command::Demand { edge, epoch, batch });
            }
        }
        for number in batch.closed_readers {
            self.close_reader(ReaderId { edge, number }, now, actions);
        }
        if !held.is_empty() {
            let message = Message::Held(v1::Held {
                reader_ids: held,
                wait_ms: PLANNED_MS,
            });
            actions.push(Action::Send(edge, Box::new(message)));
        }
    }

    fn is_schedulable(&self, edge: EdgeId, id: EntryId) -> bool {
        let open = self.open_geometry(id);
        open.is_some_and(|(number, _)| self.scheduler.is_schedulable(edge, number))
    }

    fn close_reader(&mut self, reader: ReaderId, now: Millis, actions: &mut Vec<Action>) {
        let Some(id) = self.readers.remove(&reader) else {
            return;
        };
        // Its demand waits for the entry, and must not be revived after this.
        self.loading.retain(id, |command| {
            !matches!(command, Command::Demand { edge, batch, .. }
                if *edge == reader.edge
                    && batch.readers.iter().any(|r| r.reader_id == reader.number))
        });
        self.event(Event::DemandClosed { reader }, now, actions);
    }
}
