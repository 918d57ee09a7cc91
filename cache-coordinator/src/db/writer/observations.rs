//! Observations of keys: those of one batch become a few statements.

use std::collections::{HashMap, HashSet};

use chunkcache_proto::EntryId;
use deadpool_postgres::GenericClient;
use http_rules::{fields, tags};
use uuid::Uuid;

use super::super::{
    ChangeKind, DatabaseError,
    chunks::signed,
    entries::{FreshnessColumns, key_hash},
    statements,
};
use super::{Observation, ObservationEffect, ObserveEntry, Operation, Outcome, apply::Batch};

/// Observations that are gathered but not applied yet, at most one per key and per entry.
#[derive(Default)]
pub(super) struct Observations {
    changes: Vec<(usize, ObserveEntry)>,
    keys: HashSet<Uuid>,
    entries: HashSet<EntryId>,
}

impl Observations {
    /// Gathers a change if it is an observation and commutes with those gathered.
    pub(super) fn take(&mut self, number: usize, operation: &Operation) -> bool {
        let Operation::ObserveEntry(change) = operation else {
            return false;
        };
        let key = key_hash(&change.entry.key());
        if self.keys.contains(&key) || !self.entries.insert(change.entry.id) {
            return false;
        }
        self.keys.insert(key);
        self.changes.push((number, change.clone()));
        true
    }
}

/// An observation to be recorded.
pub(super) struct Registration<'a> {
    pub change: &'a ObserveEntry,
    /// No chunk of the entry is recorded in the same transaction.
    pub is_chunkless: bool,
}

impl<C: GenericClient> Batch<'_, C> {
    pub(super) async fn flush_observations(&mut self) -> Result<(), DatabaseError> {
        let Observations { changes, .. } = std::mem::take(&mut self.observations);
        let registrations: Vec<Registration<'_>> = changes
            .iter()
            .map(|(_, change)| Registration {
                change,
                is_chunkless: true,
            })
            .collect();
        let registered = self.register(&registrations).await?;
        for ((number, _), result) in changes.iter().zip(registered) {
            self.judged[*number] = Some(result.map(Outcome::ObserveEntry));
        }
        Ok(())
    }

    /// Records entries and points their keys to them. At most one per key and per entry.
    pub(super) async fn register(
        &mut self,
        registrations: &[Registration<'_>],
    ) -> Result<Vec<Result<ObservationEffect, DatabaseError>>, DatabaseError> {
        if registrations.is_empty() {
            return Ok(Vec::new());
        }
        let sources = self.known_sources(registrations).await?;
        let known: Vec<&Registration<'_>> = registrations
            .iter()
            .filter(|registration| sources.contains(&registration.change.entry.source))
            .collect();
        let created = self.insert_entries(&known).await?;
        let hashes: Vec<Uuid> = known
            .iter()
            .map(|registration| key_hash(&registration.change.entry.key()))
            .collect();
        let before: HashMap<Uuid, EntryId> = self
            .executor
            .query(statements::KEY_BINDINGS, &[&hashes])
            .await?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let live: Vec<EntryId> = known
            .iter()
            .filter(|registration| registration.change.observation == Observation::Live)
            .map(|registration| registration.change.entry.id)
            .collect();
        if !live.is_empty() {
            self.executor
                .execute(statements::ENTRY_CONFIRM, &[&live])
                .await?;
        }
        let mut bound = HashSet::new();
        for observation in [Observation::Live, Observation::Replayed] {
            bound.extend(self.bind_keys(&known, observation).await?);
        }
        let mut results = Vec::with_capacity(registrations.len());
        for registration in registrations {
            let entry = &registration.change.entry;
            if !sources.contains(&entry.source) {
                results.push(Err(DatabaseError::not_found("source", &entry.source)));
                continue;
            }
            let hash = key_hash(&entry.key());
            let previous = before.get(&hash).copied();
            // A replayed observation that lost to a later one did not bind its key.
            let key_changed = bound.contains(&hash) && previous != Some(entry.id);
            let previous = previous.filter(|previous| key_changed && *previous != entry.id);
            // A key's first binding concerns no watcher, because nobody watches an entry before it
            // exists.
            if let Some(previous) = previous {
                self.changes.push(ChangeKind::Key {
                    previous: Some(previous),
                    entry: Some(entry.id),
                });
            }
            results.push(Ok(ObservationEffect {
                created: created.contains(&entry.id),
                key_changed,
                previous,
            }));
        }
        Ok(results)
    }

    async fn known_sources(
        &self,
        registrations: &[Registration<'_>],
    ) -> Result<HashSet<String>, DatabaseError> {
        let asked: HashSet<&str> = registrations
            .iter()
            .map(|registration| registration.change.entry.source.as_str())
            .collect();
        let asked: Vec<&str> = asked.into_iter().collect();
        let rows = self
            .executor
            .query(statements::SOURCE_NAMES, &[&asked])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Returns the entries that were new.
    async fn insert_entries(
        &self,
        registrations: &[&Registration<'_>],
    ) -> Result<HashSet<EntryId>, DatabaseError> {
        let text = |field: fn(&ObserveEntry) -> &str| -> Vec<&str> {
            registrations.iter().map(|it| field(it.change)).collect()
        };
        let ids: Vec<EntryId> = registrations.iter().map(|it| it.change.entry.id).collect();
        let sizes: Vec<i64> = registrations
            .iter()
            .map(|it| signed(it.change.entry.geometry.size()))
            .collect();
        let chunk_sizes: Vec<i32> = registrations
            .iter()
            .map(|it| i32::try_from(it.change.entry.geometry.chunk_size()).unwrap_or(i32::MAX))
            .collect();
        // Tags contain no line breaks.
        let tags: Vec<String> = registrations
            .iter()
            .map(|it| tags::of(&fields::to_headers(&it.change.freshness.fields)).join("\n"))
            .collect();
        let chunkless: Vec<bool> = registrations.iter().map(|it| it.is_chunkless).collect();
        let rows = self
            .executor
            .query(
                statements::ENTRY_REGISTER,
                &[
                    &ids,
                    &text(|it| &it.entry.source),
                    &text(|it| &it.entry.path),
                    &text(|it| &it.entry.query),
                    &text(|it| &it.entry.variant),
                    &text(|it| &it.entry.validator),
                    &text(|it| &it.entry.etag),
                    &text(|it| &it.entry.last_modified),
                    &text(|it| &it.entry.content_type),
                    &sizes,
                    &chunk_sizes,
                    &chunkless,
                    &tags,
                ],
            )
            .await?;
        Ok(rows
            .iter()
            .filter(|row| row.get("created"))
            .map(|row| row.get("id"))
            .collect())
    }

    /// Returns the keys that now point to the observed entries.
    async fn bind_keys(
        &self,
        registrations: &[&Registration<'_>],
        observation: Observation,
    ) -> Result<Vec<Uuid>, DatabaseError> {
        let changes: Vec<&ObserveEntry> = registrations
            .iter()
            .map(|it| it.change)
            .filter(|change| change.observation == observation)
            .collect();
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let hashes: Vec<Uuid> = changes.iter().map(|it| key_hash(&it.entry.key())).collect();
        let entries: Vec<EntryId> = changes.iter().map(|it| it.entry.id).collect();
        let fresh: Vec<FreshnessColumns> = changes
            .iter()
            .map(|it| FreshnessColumns::of(&it.freshness))
            .collect();
        let validated: Vec<_> = fresh.iter().map(|it| it.validated_at).collect();
        let fresh_until: Vec<_> = fresh.iter().map(|it| it.fresh_until).collect();
        let ages: Vec<i32> = fresh.iter().map(|it| it.initial_age).collect();
        let cache_control: Vec<&str> = changes
            .iter()
            .map(|it| it.freshness.cache_control.as_str())
            .collect();
        // Names of header fields contain no line breaks.
        let vary: Vec<String> = changes
            .iter()
            .map(|it| it.freshness.vary.join("\n"))
            .collect();
        let rows = self
            .executor
            .query(
                statements::KEY_BIND,
                &[
                    &hashes,
                    &entries,
                    &validated,
                    &fresh_until,
                    &ages,
                    &cache_control,
                    &vary,
                    &(observation == Observation::Replayed),
                ],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
