//! Applies the changes of one batch inside its transaction, and collects their answers and log
//! rows.

use chunkcache_proto::{EntryId, v1};
use deadpool_postgres::GenericClient;
use tokio_postgres::types::Json;

use super::super::{
    ChangeKind, DatabaseError, JobStatus, JobTiming, JobWindow,
    chunks::{coalesce, signed},
    edges::{self, state_text},
    executor::Executor,
    jobs::level_number,
    sources::Settings,
    statements,
};
use super::{
    AddJob, DrainEdge, EndJob, ForgetEntries, InvalidateEntry, InvalidationEffect, JoinEdge,
    JoinStep, JoinedEdge, Operation, Outcome, PutSource, SetEdgeState, SetPinned,
    chunks::ChunkReports, observations::Observations,
};

/// Ended jobs of one entry that are kept, the newest.
const KEPT_JOBS: i64 = 1000;

/// The result of a change, unless the whole batch fails.
pub(super) type Judged = Result<Outcome, DatabaseError>;

/// The batch being applied.
pub(super) struct Batch<'a, C> {
    pub(super) executor: Executor<'a, C>,
    /// The newest revision before the batch.
    before: u64,
    pub(super) changes: Vec<ChangeKind>,
    pub(super) judged: Vec<Option<Judged>>,
    pub(super) observations: Observations,
    pub(super) reports: ChunkReports,
}

impl<'a, C: GenericClient> Batch<'a, C> {
    pub(super) fn new(executor: Executor<'a, C>, before: u64) -> Self {
        Self {
            executor,
            before,
            changes: Vec::new(),
            judged: Vec::new(),
            observations: Observations::default(),
            reports: ChunkReports::default(),
        }
    }

    /// Applies all changes in order. A database error fails the batch; an error of a single change
    /// becomes the answer to that change.
    pub(super) async fn apply<'o>(
        mut self,
        operations: impl Iterator<Item = &'o Operation>,
    ) -> Result<(Vec<Judged>, Vec<ChangeKind>), DatabaseError> {
        for (number, operation) in operations.enumerate() {
            self.judged.push(None);
            if self.gather(number, operation) {
                continue;
            }
            // It does not commute with the gathered changes.
            self.flush().await?;
            if self.gather(number, operation) {
                continue;
            }
            let judged = match self.one(operation).await {
                Err(error @ (DatabaseError::NotFound { .. } | DatabaseError::Fenced)) => Err(error),
                Err(error) => return Err(error),
                Ok(outcome) => Ok(outcome),
            };
            self.judged[number] = Some(judged);
        }
        self.flush().await?;
        let judged = self
            .judged
            .into_iter()
            .map(|judged| {
                judged.unwrap_or_else(|| {
                    Err(DatabaseError::Internal("a change was not applied".into()))
                })
            })
            .collect();
        Ok((judged, self.changes))
    }

    fn gather(&mut self, number: usize, operation: &Operation) -> bool {
        self.observations.take(number, operation) || self.reports.take(number, operation)
    }

    /// Observations come first, because a report about an entry closely follows its observation.
    async fn flush(&mut self) -> Result<(), DatabaseError> {
        self.flush_observations().await?;
        self.flush_reports().await
    }

    async fn one(&mut self, operation: &Operation) -> Result<Outcome, DatabaseError> {
        Ok(match operation {
            Operation::StoreChunks(_)
            | Operation::RemoveChunks(_)
            | Operation::TouchEdge(_)
            | Operation::ObserveEntry(_) => {
                return Err(DatabaseError::Internal(
                    "reports are applied together".into(),
                ));
            }
            Operation::ReconcileEntries(page) => {
                Outcome::ReconcileEntries(self.reconcile(page).await?)
            }
            Operation::TouchEntry(change) => {
                self.executor
                    .execute(statements::ENTRY_TOUCH, &[&change.entry])
                    .await?;
                Outcome::TouchEntry(())
            }
            Operation::ForgetEntries(change) => {
                Outcome::ForgetEntries(self.forget_entries(change).await?)
            }
            Operation::RemoveEntriesOfSource(change) => Outcome::RemoveEntriesOfSource(
                self.executor
                    .execute(
                        statements::ENTRY_DELETE_OF_SOURCE,
                        &[&change.name, &i64::from(change.limit)],
                    )
                    .await?,
            ),
            Operation::SetPinned(change) => Outcome::SetPinned(self.pin(change).await?),
            Operation::InvalidateEntry(change) => {
                Outcome::InvalidateEntry(self.invalidate(change).await?)
            }
            Operation::RecordPurge(change) => {
                Outcome::RecordPurge(self.record_purge(change).await?)
            }
            Operation::UnbindEntries(change) => {
                Outcome::UnbindEntries(self.unbind_entries(change).await?)
            }
            Operation::RemoveRowsOfEntries(change) => Outcome::RemoveRowsOfEntries(
                self.remove_rows_of_purged(
                    statements::CHUNK_DELETE_OF_ENTRIES,
                    &[
                        &change.entries,
                        &i64::from(change.limit),
                        &change.stored_before,
                    ],
                )
                .await?,
            ),
            Operation::FinishPurge(change) => {
                self.executor
                    .execute(statements::PURGE_FINISH, &[&signed(change.number)])
                    .await?;
                Outcome::FinishPurge(())
            }
            Operation::DropEntries(change) => {
                self.remove_rows(
                    statements::CHUNK_DELETE_ON_EDGE,
                    &[&change.edge, &signed(change.epoch), &change.entries],
                )
                .await?;
                Outcome::DropEntries(())
            }
            Operation::PutSource(change) => Outcome::PutSource(self.put_source(change).await?),
            Operation::RemoveRowsOfSource(change) => Outcome::RemoveRowsOfSource(
                self.remove_rows(
                    statements::CHUNK_DELETE_OF_SOURCE,
                    &[&change.name, &i64::from(change.limit)],
                )
                .await?,
            ),
            Operation::RemoveSource(change) => {
                Outcome::RemoveSource(self.remove_source(&change.name).await?)
            }
            Operation::JoinEdge(change) => Outcome::JoinEdge(self.join(change).await?),
            Operation::SetEdgeState(change) => Outcome::SetEdgeState(self.set_state(change).await?),
            Operation::DrainEdge(change) => Outcome::DrainEdge(self.drain(change).await?),
            Operation::RetireEdge(change) => Outcome::RetireEdge(self.retire(&change.name).await?),
            Operation::RemoveRowsOfEdge(change) => Outcome::RemoveRowsOfEdge(
                self.remove_rows(
                    statements::CHUNK_DELETE_OF_EDGE,
                    &[&change.edge, &i64::from(change.limit)],
                )
                .await?,
            ),
            Operation::ForgetEdge(change) => Outcome::ForgetEdge(self.forget(&change.name).await?),
            Operation::AddJob(change) => Outcome::AddJob(self.add_job(change).await?),
            Operation::EndJob(change) => Outcome::EndJob(self.end_job(change).await?),
        })
    }

    async fn pin(&mut self, change: &SetPinned) -> Result<(), DatabaseError> {
        let row = self
            .executor
            .query_opt(
                statements::ENTRY_SET_PINNED,
                &[&change.entry, &change.pinned],
            )
            .await?;
        let before: bool = row
            .ok_or_else(|| DatabaseError::not_found("entry", change.entry))?
            .get(0);
        if before != change.pinned {
            self.changes.push(ChangeKind::Entry {
                entry: change.entry,
            });
        }
        Ok(())
    }

    async fn invalidate(
        &mut self,
        change: &InvalidateEntry,
    ) -> Result<InvalidationEffect, DatabaseError> {
        self.require_entry(change.entry).await?;
        self.executor
            .execute(statements::ENTRY_INVALIDATE, &[&change.entry])
            .await?;
        let keys: Vec<v1::Key> = self
            .executor
            .query(statements::KEY_DELETE_OF_ENTRY, &[&change.entry])
            .await?
            .iter()
            .map(|row| v1::Key {
                source: row.get(0),
                path: row.get(1),
                query: row.get(2),
                variant: row.get(3),
            })
            .collect();
        if !keys.is_empty() {
            self.changes.push(ChangeKind::Key {
                previous: Some(change.entry),
                entry: None,
            });
        }
        let chunks_removed = if change.purge {
            self.remove_rows(statements::CHUNK_DELETE_OF_ENTRY, &[&change.entry])
                .await?
        } else {
            0
        };
        Ok(InvalidationEffect {
            keys,
            chunks_removed,
        })
    }

    async fn put_source(&mut self, change: &PutSource) -> Result<v1::Source, DatabaseError> {
        self.changes.push(ChangeKind::Source {
            name: change.source.name.clone(),
        });
        let revision = self.before + self.changes.len() as u64;
        let source = v1::Source {
            revision,
            ..change.source.clone()
        };
        let settings = Json(Settings::of(&source));
        self.executor
            .execute(
                statements::SOURCE_PUT,
                &[&source.name, &source.base_url, &settings, &signed(revision)],
            )
            .await?;
        Ok(source)
    }

    async fn remove_source(&mut self, name: &str) -> Result<u64, DatabaseError> {
        let removed = self
            .remove_rows(statements::CHUNK_DELETE_OF_SOURCE, &[&name, &i64::MAX])
            .await?;
        if self
            .executor
            .execute(statements::SOURCE_DELETE, &[&name])
            .await?
            == 0
        {
            return Err(DatabaseError::not_found("source", name));
        }
        self.changes.push(ChangeKind::Source {
            name: name.to_owned(),
        });
        Ok(removed)
    }

    async fn join(&mut self, change: &JoinEdge) -> Result<JoinStep, DatabaseError> {
        if let Some(row) = self
            .executor
            .query_opt(statements::EDGE_GET, &[&change.name])
            .await?
        {
            let edge = edges::from_row(&row);
            let rows = self
                .executor
                .query_one(statements::EDGE_CHUNK_COUNT, &[&edge.id, &1_i64])
                .await?;
            if edge.store_id != change.store_id && rows.get::<_, i64>(0) > 0 {
                // The old disk's session must not add rows while they are being removed.
                self.retire(&change.name).await?;
                return Ok(JoinStep::OldRows(edge.id));
            }
        }
        let row = self
            .executor
            .query_one(
                statements::EDGE_JOIN,
                &[
                    &change.name,
                    &change.url,
                    &change.store_id,
                    &signed(change.bytes_allowed),
                ],
            )
            .await?;
        self.changes.push(ChangeKind::Edge {
            name: change.name.clone(),
        });
        Ok(JoinStep::Joined(JoinedEdge {
            edge: edges::from_row(&row),
        }))
    }

    async fn set_state(&mut self, change: &SetEdgeState) -> Result<bool, DatabaseError> {
        let state = state_text(change.state)?;
        let row = self
            .executor
            .query_opt(
                statements::EDGE_SET_STATE,
                &[&change.edge, &signed(change.epoch), &state],
            )
            .await?;
        if let Some(row) = &row {
            self.changes.push(ChangeKind::Edge {
                name: row.get("name"),
            });
        }
        Ok(row.is_some())
    }

    async fn drain(
        &mut self,
        change: &DrainEdge,
    ) -> Result<super::super::EdgeRecord, DatabaseError> {
        let row = self
            .executor
            .query_opt(statements::EDGE_DRAIN, &[&change.name, &change.draining])
            .await?;
        let row = row.ok_or_else(|| DatabaseError::not_found("edge", &change.name))?;
        self.changes.push(ChangeKind::Edge {
            name: change.name.clone(),
        });
        Ok(edges::from_row(&row))
    }

    async fn retire(&mut self, name: &str) -> Result<edges::EdgeId, DatabaseError> {
        let row = self
            .executor
            .query_opt(statements::EDGE_RETIRE, &[&name])
            .await?;
        let row = row.ok_or_else(|| DatabaseError::not_found("edge", name))?;
        self.changes.push(ChangeKind::Edge {
            name: name.to_owned(),
        });
        Ok(row.get("id"))
    }

    async fn forget(&mut self, name: &str) -> Result<u64, DatabaseError> {
        let id = self.retire(name).await?;
        let removed = self
            .remove_rows(statements::CHUNK_DELETE_OF_EDGE, &[&id, &i64::MAX])
            .await?;
        self.executor
            .execute(statements::EDGE_DELETE, &[&name])
            .await?;
        Ok(removed)
    }

    async fn forget_entries(&mut self, change: &ForgetEntries) -> Result<u64, DatabaseError> {
        let seconds = i64::try_from(change.unused_for.as_secs()).unwrap_or(i64::MAX);
        self.executor
            .execute(
                statements::ENTRY_FORGET,
                &[&seconds, &change.are_too_many, &change.entries],
            )
            .await
    }

    async fn require_entry(&self, entry: EntryId) -> Result<(), DatabaseError> {
        let found = self
            .executor
            .query_opt(statements::ENTRY_GET, &[&entry])
            .await?;
        match found {
            Some(_) => Ok(()),
            None => Err(DatabaseError::not_found("entry", entry)),
        }
    }

    async fn add_job(&mut self, change: &AddJob) -> Result<(), DatabaseError> {
        self.require_entry(change.entry).await?;
        let ranges = coalesce(change.ranges.clone());
        let starts: Vec<i64> = ranges.iter().map(|range| signed(range.start)).collect();
        let ends: Vec<i64> = ranges.iter().map(|range| signed(range.end)).collect();
        let level = level_number(change.level);
        let JobTiming { window, max_rate } = &change.timing;
        // Minutes of a day.
        let minute = |of: fn(&JobWindow) -> u16| {
            let minute = window.as_ref().map(of);
            minute.and_then(|minute| i16::try_from(minute).ok())
        };
        let (start, end) = (minute(|it| it.start), minute(|it| it.end));
        let time_zone = window.as_ref().map_or("", |it| it.time_zone.as_str());
        let max_rate = signed(*max_rate);
        let added = self
            .executor
            .execute(
                statements::JOB_INSERT,
                &[
                    &change.id,
                    &change.entry,
                    &starts,
                    &ends,
                    &change.edges,
                    &level,
                    &start,
                    &end,
                    &time_zone,
                    &max_rate,
                ],
            )
            .await?;
        if added == 1 {
            self.changes.push(ChangeKind::Job { id: change.id });
        }
        Ok(())
    }

    async fn end_job(&mut self, change: &EndJob) -> Result<bool, DatabaseError> {
        if change.status == JobStatus::Running {
            return Err(DatabaseError::invalid(
                "status",
                "a job does not end by running",
            ));
        }
        if self
            .executor
            .query_opt(statements::JOB_GET, &[&change.id])
            .await?
            .is_none()
        {
            return Err(DatabaseError::not_found("job", change.id));
        }
        let ended = self
            .executor
            .execute(
                statements::JOB_END,
                &[
                    &change.id,
                    &change.status.text(),
                    &change.error,
                    &(KEPT_JOBS - 1),
                ],
            )
            .await?
            == 1;
        if ended {
            self.changes.push(ChangeKind::Job { id: change.id });
        }
        Ok(ended)
    }
}
