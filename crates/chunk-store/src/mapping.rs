//! Memory mappings of sparse files, in windows: the store's only unsafe code.
//!
//! Why mappings: hyper's body wants memory, the connection's I/O object recognises the range and
//! sends it with `sendfile` from [`Mapped::file`], so the pages are never touched. Why windows: one
//! mapping a reader and piece would cost a system call and a TLB shootdown each; a window of 1 GiB
//! is made once and shared.
//!
//! Safety: a mapping is read-only and shared. Its file is never truncated while open here (entries
//! keep their size from creation to unlink, and unlinking leaves the inode alone), so no access
//! faults for lack of file. The bytes of a range are not written while a [`super::ChunkPin`] or its
//! fetch holds it. A read error of the disk under a touched page is SIGBUS, hence: send it with
//! sendfile, and read with [`super::EntryFile::read_at`] where the bytes must be touched.
#![allow(unsafe_code)] // mmap and the pointers it gives; see above

use std::{io, os::fd::BorrowedFd, ptr::NonNull, sync::Arc};

use chunkcache_proto::ByteRange;
use rustix::mm::{MapFlags, ProtFlags};

use super::disk::DiskFile;

/// A mapped part of a file.
pub(super) struct Window {
    base: NonNull<u8>,
    range: ByteRange,
    file: Arc<dyn DiskFile>,
}

// SAFETY: the pointer is to shared read-only memory that lives as long as the window, and nothing
// in it is bound to a thread.
unsafe impl Send for Window {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for Window {}

impl Window {
    /// `range.start` must be a multiple of the page size and the range must lie in the file.
    pub(super) fn map(file: Arc<dyn DiskFile>, range: ByteRange) -> io::Result<Self> {
        let Some(fd) = file.fd() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let len = usize::try_from(range.len()).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of this
        // program.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                range.start,
            )?
        };
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        Ok(Self { base, range, file })
    }

    pub(super) fn range(&self) -> ByteRange {
        self.range
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`; every `Mapped` into it
        // holds the window.
        let unmapped =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.range.len() as usize) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A mapped range and the file it maps, for an I/O object that sends it with sendfile.
#[derive(Clone)]
pub struct Mapped {
    window: Arc<Window>,
    range: ByteRange,
}

impl Mapped {
    /// `None` if the window does not hold the range.
    pub(super) fn new(window: Arc<Window>, range: ByteRange) -> Option<Self> {
        (window.range.intersect(range) == range && !range.is_empty())
            .then_some(Self { window, range })
    }

    /// Where the range begins in memory. Not to be read through: see the module.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.window
            .base
            .as_ptr()
            .wrapping_add((self.range.start - self.window.range.start) as usize)
    }

    /// Bytes in the range; never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.range.len() as usize
    }

    /// The file mapped.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        match self.window.file.fd() {
            Some(fd) => fd,
            // `Window::map` refuses files without one.
            None => unreachable!("a window maps a file with a descriptor"),
        }
    }

    /// Where the range begins in the file.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.range.start
    }
}

/// So that `Bytes::from_owner` takes it and no other room needs unsafe code.
impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range lies in the window (checked in `new`), which is mapped readable as long
        // as it is held; the bytes are not written while held (see the module).
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }
}
