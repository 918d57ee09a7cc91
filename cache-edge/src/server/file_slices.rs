//! Slices that hyper treats as memory although they are none: addresses that represent part of a
//! file, which the connection's I/O recognises and sends with `sendfile`.
//!
//! hyper needs the bytes of a body as slices. A slice of a [`FileSlice`] points into [`NO_MEMORY`],
//! a range of addresses that can be neither read nor written. If it were read by mistake, the
//! process would end at once, and no client would be sent wrong bytes. Only [`super::sendfile_io`]
//! is given such slices; TLS and HTTP/2 connections read the file instead
//! (`super::body::Delivery`).

use std::sync::Arc;

use bytes::Buf;
use parking_lot::Mutex;

use crate::system_calls::{NO_MEMORY, ReservedAddresses};
use chunk_store::{ChunkPin, StoredFile};

/// The longest slice.
pub const MAX_SLICE_BYTES: usize = 2 << 20;

/// Maximum number of slices of one connection. hyper queues 16 buffers at most.
pub const MAX_SLICES: usize = ReservedAddresses::LEN / MAX_SLICE_BYTES;

/// The slices that a connection's bodies have passed to hyper and hyper has not sent yet. Each has
/// a slot of [`MAX_SLICE_BYTES`] in [`NO_MEMORY`], which all connections share, because a slice is
/// only looked up in its own connection. Only the connection's task uses it, so its lock is never
/// contended.
/// contended.
#[derive(Default)]
pub struct FileSlices(Mutex<Vec<Option<FilePart>>>);

/// A file, and the offset at which a slice begins in it.
#[derive(Clone)]
pub struct FilePart {
    pub file: StoredFile,
    pub offset: u64,
}

impl FileSlices {
    /// Adds a slice that represents `len` bytes of the part. It ends when the buffer is dropped.
    /// `None`: it is too long, or there are too many.
    pub fn add(self: &Arc<Self>, part: FilePart, len: usize) -> Option<FileSlice> {
        if len > MAX_SLICE_BYTES {
            return None;
        }
        let mut parts = self.0.lock();
        let slot = parts
            .iter()
            .position(Option::is_none)
            .unwrap_or(parts.len());
        if slot >= MAX_SLICES {
            return None;
        }
        let start = slot * MAX_SLICE_BYTES;
        let token = NO_MEMORY.token(start..start + len)?;
        match parts.get_mut(slot) {
            Some(free) => *free = Some(part),
            None => parts.push(Some(part)),
        }
        drop(parts);
        Some(FileSlice {
            slot,
            token,
            position: 0,
            slices: Arc::clone(self),
            _pin: None,
        })
    }

    /// The file part that the slice represents; `None`: it is ordinary memory.
    #[must_use]
    pub fn find(&self, slice: &[u8]) -> Option<FilePart> {
        let at = NO_MEMORY.offset_of(slice)?;
        let parts = self.0.lock();
        let part = parts.get(at / MAX_SLICE_BYTES)?.as_ref()?;
        Some(FilePart {
            file: part.file.clone(),
            offset: part.offset + (at % MAX_SLICE_BYTES) as u64,
        })
    }

    /// Whether the slice represents part of a file.
    #[must_use]
    pub fn holds(slice: &[u8]) -> bool {
        NO_MEMORY.offset_of(slice).is_some()
    }
}

/// A cursor over part of a chunk; keeps the chunk from being punched.
pub struct FileSlice {
    slot: usize,
    /// Its address encodes the slot and the offset in it; never read.
    token: &'static [u8],
    position: usize,
    slices: Arc<FileSlices>,
    _pin: Option<ChunkPin>,
}

impl FileSlice {
    /// Keeps the chunk from being punched while the slice exists.
    #[must_use]
    pub fn with_pin(mut self, pin: Option<ChunkPin>) -> Self {
        self._pin = pin;
        self
    }
}

impl Buf for FileSlice {
    fn remaining(&self) -> usize {
        self.token.len() - self.position
    }

    fn chunk(&self) -> &[u8] {
        &self.token[self.position..]
    }

    fn advance(&mut self, count: usize) {
        assert!(
            count <= self.remaining(),
            "advanced past the end of a slice"
        );
        self.position += count;
    }
}

impl Drop for FileSlice {
    fn drop(&mut self) {
        if let Some(part) = self.slices.0.lock().get_mut(self.slot) {
            *part = None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use chunk_store::{MinFree, Store, StoreOptions};
    use chunkcache_proto::{Geometry, v1};

    use super::*;

    #[test]
    fn a_slice_is_found_by_its_address_in_its_own_connection_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions {
            data_dir: directory.path().to_owned(),
            max_bytes: None,
            min_free: MinFree::Bytes(0),
            group_sync_window: std::time::Duration::from_millis(1),
        })
        .unwrap();
        let entry = v1::Entry {
            id: "00000000-0000-8000-8000-000000000001".into(),
            size: 8 << 20,
            chunk_size: 2 << 20,
            ..v1::Entry::default()
        };
        let geometry = Geometry::new(entry.size, entry.chunk_size).unwrap();
        let entry = store.put_entry(&entry, geometry).unwrap();
        let bytes = vec![7; 2 << 20];
        entry.write_at(0, &bytes).unwrap();
        let part = |offset| FilePart {
            file: entry.stored_file().unwrap(),
            offset,
        };
        let (one, other) = (Arc::new(FileSlices::default()), FileSlices::default());
        let first = one.add(part(10), 1000).unwrap();
        let mut second = one.add(part(5000), MAX_SLICE_BYTES).unwrap();
        assert_eq!((first.remaining(), second.remaining()), (1000, 2 << 20));
        second.advance(7);
        assert_eq!(one.find(first.chunk()).unwrap().offset, 10);
        assert_eq!(one.find(second.chunk()).unwrap().offset, 5007);
        assert!(other.find(first.chunk()).is_none());
        assert!(FileSlices::holds(first.chunk()) && !FileSlices::holds(&bytes));
        assert!(one.find(&bytes).is_none());
        let token = first.chunk();
        let token = NO_MEMORY.token(0..token.len()).unwrap();
        drop(first);
        assert!(one.find(token).is_none(), "its slot is free");
        assert!(one.add(part(0), MAX_SLICE_BYTES + 1).is_none());
        let most: Vec<_> = (1..MAX_SLICES)
            .map(|_| one.add(part(0), 1).unwrap())
            .collect();
        assert!(one.add(part(0), 1).is_none());
        drop(most);
        assert!(one.add(part(0), 1).is_some());
    }
}
