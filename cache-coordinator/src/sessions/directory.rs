//! Translates between the scheduler's small integers and the wire's names and UUIDs. Owned by the
//! plan, so nothing here is shared or locked.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chunkcache_proto::{EntryId, Geometry, v1};

use scheduler::api::{EdgeId, EntryNo, SourceId};

/// An edge as the plan knows it.
#[derive(Clone, Debug)]
pub struct EdgeRecord {
    /// Its name in the cluster.
    pub name: String,
    /// Where peers reach it.
    pub url: String,
}

/// An entry that the scheduler knows.
#[derive(Clone, Debug)]
pub struct EntryRecord {
    /// As sent to edges.
    pub entry: Arc<v1::Entry>,
    pub id: EntryId,
    pub geometry: Geometry,
}

/// Translates names to numbers and back.
#[derive(Debug, Default)]
pub struct Directory {
    edges: HashMap<EdgeId, EdgeRecord>,
    sources: HashMap<String, SourceId>,
    source_names: HashMap<SourceId, String>,
    entry_numbers: HashMap<EntryId, EntryNo>,
    entries: BTreeMap<EntryNo, EntryRecord>,
    next_source: u32,
    next_entry: u32,
}

impl Directory {
    /// Records an edge that joined, perhaps with a new address.
    pub fn set_edge(&mut self, edge: EdgeId, record: EdgeRecord) {
        self.edges.insert(edge, record);
    }

    /// The edge, if it ever joined.
    #[must_use]
    pub fn edge(&self, edge: EdgeId) -> Option<&EdgeRecord> {
        self.edges.get(&edge)
    }

    /// The number of a source, assigned when it is first mentioned and kept for good, because there
    /// are few.
    pub fn source(&mut self, name: &str) -> SourceId {
        if let Some(&source) = self.sources.get(name) {
            return source;
        }
        let source = SourceId(self.next_source);
        self.next_source += 1;
        self.sources.insert(name.to_owned(), source);
        self.source_names.insert(source, name.to_owned());
        source
    }

    /// The number of a source that was mentioned before.
    #[must_use]
    pub fn known_source(&self, name: &str) -> Option<SourceId> {
        self.sources.get(name).copied()
    }

    /// The source behind a number.
    #[must_use]
    pub fn source_name(&self, source: SourceId) -> Option<&str> {
        self.source_names.get(&source).map(String::as_str)
    }

    /// The number of an entry that is open.
    #[must_use]
    pub fn entry_number(&self, id: EntryId) -> Option<EntryNo> {
        self.entry_numbers.get(&id).copied()
    }

    /// The entry behind a number.
    #[must_use]
    pub fn entry(&self, number: EntryNo) -> Option<&EntryRecord> {
        self.entries.get(&number)
    }

    /// All open entries.
    pub fn entries(&self) -> impl Iterator<Item = (EntryNo, &EntryRecord)> {
        self.entries
            .iter()
            .map(|(number, record)| (*number, record))
    }

    /// Open entries from this number on, in order.
    pub fn entries_from(&self, first: EntryNo) -> impl Iterator<Item = (EntryNo, EntryId)> {
        self.entries
            .range(first..)
            .map(|(&number, record)| (number, record.id))
    }

    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Gives an entry a number that was never used before, so that late messages about a closed one
    /// find nothing.
    pub fn open_entry(&mut self, record: EntryRecord) -> EntryNo {
        let number = EntryNo(self.next_entry);
        self.next_entry = self.next_entry.wrapping_add(1);
        self.entry_numbers.insert(record.id, number);
        self.entries.insert(number, record);
        number
    }

    /// Forgets an entry.
    pub fn close_entry(&mut self, id: EntryId) -> Option<EntryNo> {
        let number = self.entry_numbers.remove(&id)?;
        self.entries.remove(&number);
        Some(number)
    }

    /// Replaces the entry; only its pinned flag can change.
    pub fn update_entry(&mut self, number: EntryNo, entry: Arc<v1::Entry>) {
        if let Some(record) = self.entries.get_mut(&number) {
            record.entry = entry;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reopened_entry_has_another_number() {
        let mut directory = Directory::default();
        let record = EntryRecord {
            entry: Arc::default(),
            id: EntryId::nil(),
            geometry: Geometry::new(1, Geometry::DEFAULT_CHUNK_SIZE).unwrap(),
        };
        let first = directory.open_entry(record.clone());
        assert_eq!(directory.close_entry(EntryId::nil()), Some(first));
        assert_ne!(directory.open_entry(record), first);
    }
}
