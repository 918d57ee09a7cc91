//! The catalogue of entries and notes: in memory, and as records.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use chunkcache_proto::{EntryId, Geometry, v1};
use prost::Message;

use super::{entry_file::EntryFile, shared::Shared};
use crate::journal_record::{EntryNumber, FileNaming, Record, stored_records};

/// Numbers reserved at a time: more than the entries created between two groups.
const NUMBERS: EntryNumber = 1 << 16;

/// Notes by key. The values are shared with the edge, which has most of them in use.
pub(super) type Notes = BTreeMap<Vec<u8>, Arc<[u8]>>;

#[derive(Default)]
pub(super) struct Catalog {
    by_id: HashMap<EntryId, Arc<EntryFile>>,
    by_number: HashMap<EntryNumber, Arc<EntryFile>>,
    next_number: EntryNumber,
    /// The journal says that numbers below this one may be in use: the next process uses higher
    /// ones, so it never meets a file of an unrecorded entry.
    numbers_below: EntryNumber,
    notes: Notes,
    /// Total size of all keys and values.
    notes_bytes: u64,
}

impl Catalog {
    pub fn get(&self, id: &EntryId) -> Option<&Arc<EntryFile>> {
        self.by_id.get(id)
    }

    pub fn by_number(&self, number: EntryNumber) -> Option<&Arc<EntryFile>> {
        self.by_number.get(&number)
    }

    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    pub fn notes_bytes(&self) -> u64 {
        self.notes_bytes
    }

    /// Sets a note. False: it had this value already.
    pub fn set_note(&mut self, key: Vec<u8>, value: Option<Arc<[u8]>>) -> bool {
        let len =
            |value: Option<&Arc<[u8]>>, key: usize| value.map_or(0, |it| key + it.len()) as u64;
        let (key_len, new_len) = (key.len(), len(value.as_ref(), key.len()));
        let (before, is_same) = match value {
            Some(value) => {
                let is_same = self.notes.get(&key) == Some(&value);
                let before = self.notes.insert(key, value);
                (before, is_same)
            }
            None => {
                let before = self.notes.remove(&key);
                let is_same = before.is_none();
                (before, is_same)
            }
        };
        self.notes_bytes = self.notes_bytes + new_len - len(before.as_ref(), key_len);
        !is_same
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn all(&self) -> Vec<Arc<EntryFile>> {
        self.by_id.values().cloned().collect()
    }

    pub fn insert_new(
        &mut self,
        shared: &Arc<Shared>,
        description: v1::Entry,
        id: EntryId,
        geometry: Geometry,
    ) -> Arc<EntryFile> {
        let naming = FileNaming::IdAndNumber;
        self.insert(
            shared,
            self.next_number,
            (id, geometry, description),
            naming,
        )
    }

    pub fn next_number(&self) -> EntryNumber {
        self.next_number
    }

    /// The record that reserves more numbers, if they are about to run out.
    pub fn reserve_numbers(&mut self) -> Option<Record> {
        let is_enough = self.next_number.saturating_add(NUMBERS / 2) < self.numbers_below;
        if is_enough || self.numbers_below == EntryNumber::MAX {
            return None;
        }
        self.numbers_below = self.next_number.saturating_add(NUMBERS);
        Some(self.numbers())
    }

    pub fn numbers(&self) -> Record {
        Record::Numbers {
            below: self.numbers_below,
        }
    }

    fn insert(
        &mut self,
        shared: &Arc<Shared>,
        number: EntryNumber,
        (id, geometry, description): (EntryId, Geometry, v1::Entry),
        naming: FileNaming,
    ) -> Arc<EntryFile> {
        self.next_number = self.next_number.max(number.saturating_add(1));
        let entry = EntryFile::new(shared.clone(), number, id, geometry, description, naming);
        self.by_id.insert(id, entry.clone());
        self.by_number.insert(number, entry.clone());
        entry
    }

    pub fn remove(&mut self, entry: &EntryFile) {
        self.by_number.remove(&entry.number());
        if self
            .by_id
            .get(&entry.id())
            .is_some_and(|held| held.number() == entry.number())
        {
            self.by_id.remove(&entry.id());
        }
    }

    /// Entries refer to the store that refers to them; this breaks the cycle.
    pub fn clear(&mut self) {
        self.by_id.clear();
        self.by_number.clear();
    }

    /// Applies one record of the journal, at open. Inconsistent records are ignored: they prove
    /// nothing.
    pub fn replay(&mut self, shared: &Arc<Shared>, record: Record) {
        match record {
            Record::Entry {
                number,
                description,
                naming,
            } => {
                self.next_number = self.next_number.max(number.saturating_add(1));
                if let Some((description, id, geometry)) = decode_description(&description) {
                    match self.by_number.get(&number) {
                        Some(known) if known.id() == id => known.restore_pinned(description.pinned),
                        _ => {
                            let description = (id, geometry, description);
                            let entry = self.insert(shared, number, description, naming);
                            entry.described.store(true, Ordering::Release);
                        }
                    }
                } else {
                    tracing::warn!(
                        number,
                        "an entry of the journal can not be read and is dropped"
                    );
                }
            }
            Record::Stored { number, chunks } => {
                if let Some(entry) = self.by_number.get(&number) {
                    for (chunk, checksum) in chunks {
                        entry.restore(chunk, checksum);
                    }
                }
            }
            Record::Numbers { below } => {
                self.next_number = self.next_number.max(below);
            }
            Record::Blocks {
                number,
                chunk,
                hashes,
            } => {
                if let Some(entry) = self.by_number.get(&number)
                    && entry.is_present(chunk)
                {
                    entry.set_blocks(chunk, hashes);
                }
            }
            Record::Removed { number, chunks } => {
                if let Some(entry) = self.by_number.get(&number) {
                    chunks
                        .into_iter()
                        .for_each(|chunk| entry.restore_removed(chunk));
                }
            }
            Record::EntryRemoved { number } => {
                if let Some(entry) = self.by_number.get(&number).cloned() {
                    entry.restore_all_removed();
                    self.remove(&entry);
                }
            }
            Record::Note { key, value } => {
                self.set_note(key, Some(value.into()));
            }
            Record::NoteRemoved { key } => {
                self.set_note(key, None);
            }
        }
    }
}

/// Decodes a description; `None` unless its id, size and chunk size are consistent.
pub(super) fn decode_description(bytes: &[u8]) -> Option<(v1::Entry, EntryId, Geometry)> {
    let description = v1::Entry::decode(bytes).ok()?;
    let id = description.id.parse().ok()?;
    let geometry = Geometry::new(description.size, description.chunk_size).ok()?;
    Some((description, id, geometry))
}

pub(super) fn describe(entry: &EntryFile) -> Record {
    let mut description = entry.description();
    description.pinned = entry.is_pinned();
    Record::Entry {
        number: entry.number(),
        description: description.encode_to_vec(),
        naming: entry.naming(),
    }
}

/// All present facts, for the start of a journal. The caller holds the journal's lock, because
/// chunks become durable and removals are recorded only under it.
pub(super) fn snapshot(
    entries: &[Arc<EntryFile>],
    notes: Notes,
) -> impl Iterator<Item = Record> + '_ {
    let notes = notes.into_iter().map(|(key, value)| Record::Note {
        key,
        value: value.to_vec(),
    });
    let entries = entries
        .iter()
        .filter(|entry| !entry.is_removed())
        .flat_map(|entry| {
            let chunks = entry.durable_chunks();
            std::iter::once(describe(entry))
                .chain(stored_records(entry.number(), &chunks).collect::<Vec<_>>())
                .chain(entry.block_records(&chunks))
        });
    notes.chain(entries)
}
