//! The identity of an entry: an id derived from all its identifying fields.
//!
//! An edge that finds an object while no coordinator answers gives it the same id as any other edge
//! would. So registering an entry is idempotent, and two edges that find an object at the same time
//! agree without communication. The source's base URL is part of the id: changing it makes other
//! entries, even if paths and ETags agree.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::v1;

/// An entry's id: a version 8 UUID (RFC 9562) made by [`EntryIdentity::id`].
pub type EntryId = Uuid;

/// Packs many ids into one field, 16 bytes each.
#[must_use]
pub fn pack(ids: &[EntryId]) -> Vec<u8> {
    ids.iter().flat_map(|id| *id.as_bytes()).collect()
}

/// Unpacks the ids; incomplete bytes at the end are ignored.
pub fn unpack(packed: &[u8]) -> impl Iterator<Item = EntryId> + '_ {
    let (ids, _) = packed.as_chunks::<16>();
    ids.iter().map(|id| EntryId::from_bytes(*id))
}

/// All fields that identify an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryIdentity<'a> {
    pub source: &'a str,
    /// The source's base URL without a trailing slash.
    pub base_url: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub variant: &'a str,
    /// The validator in clear, as derived by `http-rules` from the origin's answer.
    pub validator: &'a str,
    pub size_bytes: u64,
    pub chunk_size_bytes: u32,
}

impl EntryIdentity<'_> {
    /// The first 128 bits of SHA-256 over the length-prefixed fields. A faster hash would not
    /// suffice: clients choose paths and queries, and must not be able to make two objects share an
    /// id.
    #[must_use]
    pub fn id(&self) -> EntryId {
        let mut hasher = Sha256::new();
        for field in [
            self.source,
            self.base_url,
            self.path,
            self.query,
            self.variant,
            self.validator,
        ] {
            hasher.update((field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        hasher.update(self.size_bytes.to_le_bytes());
        hasher.update(self.chunk_size_bytes.to_le_bytes());
        let digest = hasher.finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

/// Whether the entry belongs to the source at this base URL. A source may get another base URL: its
/// old entries can still be read, but nothing more is fetched for them.
#[must_use]
pub fn belongs_to(entry: &v1::Entry, base_url: &str) -> bool {
    let Some(key) = &entry.key else { return false };
    let identity = EntryIdentity {
        source: &key.source,
        base_url: base_url.trim_end_matches('/'),
        path: &key.path,
        query: &key.query,
        variant: &key.variant,
        validator: &entry.validator,
        size_bytes: entry.size,
        chunk_size_bytes: entry.chunk_size,
    };
    entry.id.parse() == Ok(identity.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> EntryIdentity<'static> {
        EntryIdentity {
            source: "films",
            base_url: "http://origin",
            path: "a/b.mp4",
            query: "",
            variant: "",
            validator: "\"1\"",
            size_bytes: 10,
            chunk_size_bytes: 2 << 20,
        }
    }

    #[test]
    fn every_field_counts_and_fields_do_not_run_together() {
        let base = identity();
        let others = [
            EntryIdentity {
                source: "film",
                path: "sa/b.mp4",
                ..base
            },
            EntryIdentity {
                base_url: "http://origin2",
                ..base
            },
            EntryIdentity {
                path: "a/b.mp",
                query: "4",
                ..base
            },
            EntryIdentity {
                query: "v=1",
                ..base
            },
            EntryIdentity {
                variant: "en",
                ..base
            },
            EntryIdentity {
                validator: "\"2\"",
                ..base
            },
            EntryIdentity {
                size_bytes: 11,
                ..base
            },
            EntryIdentity {
                chunk_size_bytes: 1 << 20,
                ..base
            },
        ];
        for other in others {
            assert_ne!(other.id(), base.id(), "{other:?}");
        }
        assert_eq!(identity().id(), base.id());
        assert_eq!(base.id().get_version_num(), 8);
    }

    #[test]
    fn an_entry_belongs_to_one_base_url() {
        let entry = v1::Entry {
            id: identity().id().to_string(),
            key: Some(v1::Key {
                source: "films".into(),
                path: "a/b.mp4".into(),
                ..v1::Key::default()
            }),
            size: 10,
            chunk_size: 2 << 20,
            validator: "\"1\"".into(),
            ..v1::Entry::default()
        };
        assert!(belongs_to(&entry, "http://origin"));
        assert!(belongs_to(&entry, "http://origin/"));
        assert!(!belongs_to(&entry, "http://elsewhere"));
    }
}
