//! Closes many entries at once.

use std::collections::{BTreeSet, HashSet};

use chunkcache_proto::EntryId;

use super::Plan;

impl Plan {
    /// Those of the entries that are open, being loaded or named by commands: few, even if a purge
    /// selected a million.
    pub(super) fn known_of(&self, ids: &HashSet<EntryId>) -> BTreeSet<EntryId> {
        let open = self.directory.entries().map(|(_, record)| record.id);
        let wanted = self.wants.values().map(|want| want.entry);
        let read = self.readers.values().copied();
        let known = open.chain(self.loading.ids()).chain(wanted).chain(read);
        known.filter(|id| ids.contains(id)).collect()
    }
}
