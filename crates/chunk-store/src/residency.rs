//! Residency: finds out whether pages are in memory, and requests them, so that sendfile does not
//! block a serving thread.

use std::{
    cell::RefCell,
    io::IoSliceMut,
    time::{Duration, Instant},
};

use chunkcache_proto::{ByteRange, ChunkIndex, EntryId};
use rustix::{
    fs::Advice,
    io::{Errno, ReadWriteFlags},
};

use super::{cachestat::cached_pages, disk::DiskFile};

/// Size of one read.
const READ_BYTES: u64 = 256 << 10;

/// Number of pages probed in a range where the kernel cannot count them. It reads ahead and evicts
/// in larger units than a page, so a few suffice.
const PROBES: u64 = 4;

/// Asks the kernel, or tries to read single bytes without waiting.
pub(super) fn is_resident(file: &dyn DiskFile, range: ByteRange) -> bool {
    let Some(fd) = file.fd() else { return true };
    if range.is_empty() {
        return true;
    }
    let last = range.end - 1;
    if let Some(cached) = cached_pages(fd, range) {
        let page = rustix::param::page_size() as u64;
        return cached > last / page - range.start / page;
    }
    let step = (range.len() / PROBES).max(1);
    let offsets = (0..PROBES)
        .map(|i| (range.start + i * step).min(last))
        .chain([last]);
    for offset in offsets {
        let mut byte = [0];
        match rustix::io::preadv2(
            fd,
            &mut [IoSliceMut::new(&mut byte)],
            offset,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(_) => {}
            // The file system cannot tell (some in-memory ones): there is nothing to wait for or to
            // do.
            Err(Errno::OPNOTSUPP) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// How long a chunk that was in memory is assumed to be still there. The kernel seldom evicts pages
/// that were just used; if it does, one read blocks a serving thread once.
const TRUSTED: Duration = Duration::from_millis(250);

/// Number of chunks that a thread remembers. Further hot ones are checked each time.
const REMEMBERED: usize = 512;

thread_local! {
    static RECENT: RefCell<Recent> = RefCell::new(Recent::default());
}

/// This thread's recent findings about chunks, because for a small range a check costs almost as
/// much as sending.
struct Recent(Vec<Option<Remembered>>);

#[derive(Clone, Copy)]
struct Remembered {
    key: (EntryId, ChunkIndex),
    until: Instant,
    found: PageState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageState {
    /// Part of it was checked.
    Asked,
    /// All of it is in memory.
    Whole,
    /// Not all of it is in memory.
    Part,
}

impl Default for Recent {
    fn default() -> Self {
        Self(vec![None; REMEMBERED])
    }
}

impl Recent {
    /// `whole` and `part` check the chunk and the wanted range. The whole chunk is checked only the
    /// second time, which is cheaper where each chunk is wanted once.
    fn is_resident(
        &mut self,
        key: (EntryId, ChunkIndex),
        now: Instant,
        whole: impl FnOnce() -> bool,
        part: impl FnOnce() -> bool,
    ) -> bool {
        let mixed = (key.0.as_u64_pair().1 ^ u64::from(key.1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let slot = &mut self.0[(mixed >> 32) as usize % REMEMBERED];
        let known = slot.filter(|slot| slot.key == key && now < slot.until);
        let found = match known.map(|slot| slot.found) {
            Some(PageState::Whole) => return true,
            Some(PageState::Part) => return part(),
            Some(PageState::Asked) if whole() => PageState::Whole,
            Some(PageState::Asked) => PageState::Part,
            None => PageState::Asked,
        };
        let until = now + TRUSTED;
        *slot = Some(Remembered { key, until, found });
        found == PageState::Whole || part()
    }
}

/// Like [`is_resident`] for part of a chunk, but trusts recent findings about the chunk.
pub(super) fn is_resident_lately(
    file: &dyn DiskFile,
    entry: EntryId,
    (chunk, whole): (ChunkIndex, ByteRange),
    range: ByteRange,
    now: Instant,
) -> bool {
    let asked = |range| move || is_resident(file, range);
    RECENT.with_borrow_mut(|recent| {
        recent.is_resident((entry, chunk), now, asked(whole), asked(range))
    })
}

/// Requests the range, because all of it will be wanted soon.
pub(super) fn ask_for(file: &dyn DiskFile, range: ByteRange) {
    advise(file, range, Advice::WillNeed);
}

/// Reads the range into memory. Blocks until it is there or reading fails; the code that sends it
/// then gets the error.
pub(super) fn read_all(file: &dyn DiskFile, range: ByteRange) {
    let mut scratch = vec![0; range.len().min(READ_BYTES) as usize];
    let mut at = range.start;
    while at < range.end {
        let wanted = (range.end - at).min(READ_BYTES) as usize;
        match file.read_at(&mut scratch[..wanted], at) {
            Ok(0) | Err(_) => return,
            Ok(read) => at += read as u64,
        }
    }
}

/// Releases the pages, because they will not be wanted soon.
pub(super) fn let_go(file: &dyn DiskFile, range: ByteRange) {
    advise(file, range, Advice::DontNeed);
}

fn advise(file: &dyn DiskFile, range: ByteRange, advice: Advice) {
    if let Some(fd) = file.fd() {
        // Only advice, so a failure does not matter.
        let _ = rustix::fs::fadvise(
            fd,
            range.start,
            std::num::NonZeroU64::new(range.len()),
            advice,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u128) -> EntryId {
        EntryId::from_u128(number)
    }

    #[test]
    fn a_chunk_is_asked_about_as_a_whole_once_it_is_wanted_again() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        let never = || -> bool { unreachable!("not to be asked") };
        assert!(recent.is_resident((entry(1), 2), now, never, || true));
        assert!(recent.is_resident((entry(1), 2), now, || true, never));
        assert!(recent.is_resident((entry(1), 2), now, never, never));
        assert!(
            !recent.is_resident((entry(1), 3), now, never, || false),
            "another chunk"
        );
        assert!(
            !recent.is_resident((entry(2), 2), now, never, || false),
            "another file"
        );
        let later = now + TRUSTED;
        assert!(
            !recent.is_resident((entry(1), 2), later, never, || false),
            "too long ago"
        );
    }

    #[test]
    fn a_chunk_that_is_partly_there_is_asked_about_by_range() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        let never = || -> bool { unreachable!("not to be asked") };
        recent.is_resident((entry(1), 2), now, never, || true);
        assert!(recent.is_resident((entry(1), 2), now, || false, || true));
        assert!(!recent.is_resident((entry(1), 2), now, never, || false));
        assert!(recent.is_resident((entry(1), 2), now, never, || true));
    }
}
