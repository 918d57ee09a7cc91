//! Bytes that hyper passes around as memory and that never are: a slice that points into the mapping of
//! a sparse file, and the registry by which the connection's I/O recognises it and calls `sendfile` instead.
//!
//! Nobody reads through these slices: a page whose file was truncated, or whose disk fails, would be SIGBUS. Only
//! [`super::sendfile_io`] is given them; TLS and HTTP/2 connections copy instead (`super::body::Delivery`).

use std::sync::Arc;

use bytes::Buf;
use parking_lot::Mutex;

use crate::store::{ChunkPin, EntryFile, Mapped};

/// A mapped part of a chunk, and what keeps it there.
pub struct MappedPiece {
    mapped: Mapped,
    // In the order of dropping: the mapping goes before the pin that keeps its chunk from being punched.
    _pin: Option<ChunkPin>,
    _file: Arc<EntryFile>,
}

/// The mapped pieces a connection's bodies have handed to hyper and hyper has not sent yet. The connection's task alone
/// uses it, so its lock is never contended; hyper queues 16 buffers at most, so it is short.
#[derive(Default)]
pub struct Registry(Mutex<Vec<Arc<MappedPiece>>>);

/// Where in which file a slice is.
pub struct FilePart {
    pub piece: Arc<MappedPiece>,
    pub offset: u64,
}

impl Registry {
    /// Makes the piece known and returns it as a buffer; it is forgotten when the buffer is dropped.
    pub fn register(
        self: &Arc<Self>,
        mapped: Mapped,
        pin: Option<ChunkPin>,
        file: Arc<EntryFile>,
    ) -> MappedBuf {
        let piece = Arc::new(MappedPiece {
            mapped,
            _pin: pin,
            _file: file,
        });
        self.0.lock().push(Arc::clone(&piece));
        MappedBuf {
            piece,
            registry: Arc::clone(self),
            position: 0,
        }
    }

    /// The file part a slice stands for; `None`: it is plain memory.
    #[must_use]
    pub fn find(&self, slice: &[u8]) -> Option<FilePart> {
        let address = slice.as_ptr() as usize;
        self.0.lock().iter().find_map(|piece| {
            let offset = address.checked_sub(piece.mapped.as_ptr() as usize)?;
            (offset < piece.mapped.len() && slice.len() <= piece.mapped.len() - offset).then(|| {
                FilePart {
                    piece: Arc::clone(piece),
                    offset: piece.mapped.file_offset() + offset as u64,
                }
            })
        })
    }
}

impl MappedPiece {
    pub fn file(&self) -> std::os::fd::BorrowedFd<'_> {
        self.mapped.file()
    }
}

/// A cursor over a mapped piece.
pub struct MappedBuf {
    piece: Arc<MappedPiece>,
    registry: Arc<Registry>,
    position: usize,
}

impl Buf for MappedBuf {
    fn remaining(&self) -> usize {
        self.piece.mapped.len() - self.position
    }

    fn chunk(&self) -> &[u8] {
        &self.piece.mapped.as_ref()[self.position..]
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
        if let Some(index) = pieces
            .iter()
            .position(|piece| Arc::ptr_eq(piece, &self.piece))
        {
            pieces.swap_remove(index);
        }
    }
}
