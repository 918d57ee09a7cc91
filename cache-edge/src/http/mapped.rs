//! Bytes that hyper passes around as memory and that never are: a slice that points into the
//! mapping of a sparse file, and the registry by which the connection's I/O recognises it and calls
//! `sendfile` instead.
//!
//! Nobody reads through these slices: a page whose file was truncated, or whose disk fails, would
//! be SIGBUS. Only [`super::sendfile_io`] is given them; TLS and HTTP/2 connections copy instead
//! (`super::body::Delivery`).

use std::{os::fd::BorrowedFd, sync::Arc};

use bytes::Buf;
use parking_lot::Mutex;

use chunk_store::{ChunkPin, EntryFile, Mapped};

/// The mapped pieces a connection's bodies have handed to hyper and hyper has not sent yet. The
/// connection's task alone uses it, so its lock is never contended; hyper queues 16 buffers at
/// most, so it is short.
#[derive(Default)]
pub struct Registry(Mutex<Pieces>);

#[derive(Default)]
struct Pieces {
    next_id: u64,
    known: Vec<(u64, Mapped)>,
}

/// Where in which file a slice is.
pub struct FilePart {
    mapped: Mapped,
    pub offset: u64,
}

impl FilePart {
    pub fn file(&self) -> BorrowedFd<'_> {
        self.mapped.file()
    }
}

impl Registry {
    /// Makes the piece known and returns it as a buffer; it is forgotten when the buffer is
    /// dropped.
    pub fn register(
        self: &Arc<Self>,
        mapped: Mapped,
        pin: Option<ChunkPin>,
        file: Arc<EntryFile>,
    ) -> MappedBuf {
        let mut pieces = self.0.lock();
        let id = pieces.next_id;
        pieces.next_id += 1;
        pieces.known.push((id, mapped.clone()));
        drop(pieces);
        MappedBuf {
            id,
            mapped,
            position: 0,
            registry: Arc::clone(self),
            _pin: pin,
            _file: file,
        }
    }

    /// The file part a slice stands for; `None`: it is plain memory.
    #[must_use]
    pub fn find(&self, slice: &[u8]) -> Option<FilePart> {
        let pieces = self.0.lock();
        pieces.known.iter().find_map(|(_, mapped)| {
            offset_in(mapped, slice).map(|offset| FilePart {
                mapped: mapped.clone(),
                offset: mapped.file_offset() + offset as u64,
            })
        })
    }

    /// The slice stands for a part of a file.
    #[must_use]
    pub fn holds(&self, slice: &[u8]) -> bool {
        let pieces = self.0.lock();
        let mut known = pieces.known.iter();
        known.any(|(_, mapped)| offset_in(mapped, slice).is_some())
    }
}

fn offset_in(mapped: &Mapped, slice: &[u8]) -> Option<usize> {
    let offset = (slice.as_ptr() as usize).checked_sub(mapped.as_ptr() as usize)?;
    (offset < mapped.len() && slice.len() <= mapped.len() - offset).then_some(offset)
}

/// A cursor over a mapped part of a chunk, and what keeps it there.
pub struct MappedBuf {
    id: u64,
    // In the order of dropping: the mapping goes before the pin that keeps its chunk from being
    // punched.
    mapped: Mapped,
    position: usize,
    registry: Arc<Registry>,
    _pin: Option<ChunkPin>,
    _file: Arc<EntryFile>,
}

impl Buf for MappedBuf {
    fn remaining(&self) -> usize {
        self.mapped.len() - self.position
    }

    fn chunk(&self) -> &[u8] {
        &self.mapped.as_ref()[self.position..]
    }

    fn advance(&mut self, count: usize) {
        assert!(
            count <= self.remaining(),
            "advanced past the end of a piece"
        );
        self.position += count;
    }
}

impl Drop for MappedBuf {
    fn drop(&mut self) {
        let mut pieces = self.registry.0.lock();
        if let Some(index) = pieces.known.iter().position(|(id, _)| *id == self.id) {
            pieces.known.swap_remove(index);
        }
    }
}
