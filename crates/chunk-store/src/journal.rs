//! The journal: proves which chunks are on the disk.
//!
//! `journal/<sequence>.log` begins with a snapshot of all facts, followed by the changes since. The
//! newest file is authoritative; older ones are leftovers. A new file is written under a temporary
//! name, synced and renamed, and its directory is synced before any change is appended. A torn tail
//! is cut at open. After a failed sync the file's content is unknown (fsync reports a lost page
//! only once), so it is never appended to again: the journal is `broken` until a fresh snapshot has
//! replaced it.
//!
//! The journal knows records and files; not tables, readers or policy.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use chunkcache_proto::ByteRange;

use super::disk::{Disk, DiskFile, Open};
use crate::journal_record::{MAX_BODY_BYTES, Record, Step, next_record};

pub const JOURNAL_DIR: &str = "journal";
const MAGIC: &[u8; 8] = b"CHUNKJ01";
/// Size of a read during replay, and of a write during a snapshot. Larger than a frame.
const BLOCK_BYTES: usize = MAX_BODY_BYTES + (1 << 16);
/// Blocks are allocated this far ahead, so that removals can be recorded on a full disk.
const ALLOCATE_AHEAD_BYTES: u64 = 4 << 20;

pub struct Journal {
    disk: Arc<dyn Disk>,
    /// `None`: broken, or not begun.
    active: Option<Segment>,
    /// Number of the newest file ever created in this directory.
    sequence: u64,
}

struct Segment {
    file: Arc<dyn DiskFile>,
    /// Synced bytes; anything behind them is invalid.
    len: u64,
    allocated_to: u64,
}

impl Journal {
    /// A journal that has not been read, and so is broken.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            active: None,
            sequence: 0,
        }
    }

    /// Finds the newest file and passes its records to `on_record`, in order. Cuts a torn tail.
    pub fn load(&mut self, mut on_record: impl FnMut(Record)) -> io::Result<()> {
        let names = self.disk.list(Path::new(JOURNAL_DIR))?;
        let Some(newest) = names
            .iter()
            .filter_map(|name| name.strip_suffix(".log")?.parse().ok())
            .max()
        else {
            return Ok(());
        };
        self.sequence = newest;
        let file = self
            .disk
            .open(&segment_path(newest, "log"), Open::Existing)?;
        let len = replay(&*file, &mut on_record)?;
        // A file whose first bytes are damaged proves nothing and is not appended to; a new file
        // replaces it.
        if len > 0 {
            file.set_len(len)?;
            file.sync_data()?;
            self.active = Some(Segment {
                file,
                len,
                allocated_to: 0,
            });
            self.remove_all_but_newest();
        }
        Ok(())
    }

    /// Whether a snapshot is needed before anything can be appended.
    pub fn is_broken(&self) -> bool {
        self.active.is_none()
    }

    /// Makes it broken.
    pub fn give_up(&mut self) {
        self.active = None;
    }

    /// Size of the current file.
    pub fn len_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, |segment| segment.len)
    }

    /// Appends encoded records and syncs. On an error none of them counts. If the sync failed, or
    /// the tail cannot be cut, the journal is broken.
    pub fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        let Some(segment) = &mut self.active else {
            return Err(io::Error::other(
                "the journal waits to be rewritten after a failed sync",
            ));
        };
        if frames.is_empty() {
            return Ok(());
        }
        let end = segment.len + frames.len() as u64;
        if end > segment.allocated_to {
            let ahead = ByteRange::new(segment.len, end + ALLOCATE_AHEAD_BYTES);
            // Best effort: not every file system supports it, and if there is no space the write
            // fails.
            if segment.file.allocate(ahead).is_ok() {
                segment.allocated_to = ahead.end;
            }
        }
        if let Err(error) = segment.file.write_all_at(frames, segment.len) {
            // A partial write must not be taken for records later.
            if segment.file.set_len(segment.len).is_err() {
                self.active = None;
            } else {
                segment.allocated_to = 0;
            }
            return Err(error);
        }
        if let Err(error) = segment.file.sync_data() {
            self.active = None;
            return Err(error);
        }
        segment.len = end;
        Ok(())
    }

    /// Replaces the journal by one that begins with `records`. On an error the old one is never
    /// appended to again: the rename may or may not survive a crash, and either file must remain
    /// valid.
    pub fn rewrite(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        self.active = None;
        // Incremented even on failure, because a name is used only once.
        self.sequence += 1;
        let aside = segment_path(self.sequence, "tmp");
        let file = self.disk.open(&aside, Open::Truncate)?;
        let len = write_snapshot(&*file, records)?;
        file.sync_data()?;
        self.disk
            .rename(&aside, &segment_path(self.sequence, "log"))?;
        self.disk.sync_dir(Path::new(JOURNAL_DIR))?;
        self.active = Some(Segment {
            file,
            len,
            allocated_to: 0,
        });
        self.remove_all_but_newest();
        Ok(())
    }

    /// Best effort: leftovers are harmless, because the newest file wins.
    fn remove_all_but_newest(&self) {
        let newest = segment_path(self.sequence, "log");
        for name in self.disk.list(Path::new(JOURNAL_DIR)).unwrap_or_default() {
            let path = Path::new(JOURNAL_DIR).join(name);
            if path != newest
                && let Err(error) = self.disk.remove_file(&path)
            {
                tracing::warn!(?path, %error, "an old journal file stays behind");
            }
        }
    }
}

fn segment_path(sequence: u64, suffix: &str) -> PathBuf {
    Path::new(JOURNAL_DIR).join(format!("{sequence:016}.{suffix}"))
}

fn write_snapshot(file: &dyn DiskFile, records: impl Iterator<Item = Record>) -> io::Result<u64> {
    let mut block = MAGIC.to_vec();
    let mut len = 0;
    for record in records {
        record.encode(&mut block).map_err(io::Error::other)?;
        if block.len() >= 1 << 20 {
            file.write_all_at(&block, len)?;
            len += block.len() as u64;
            block.clear();
        }
    }
    file.write_all_at(&block, len)?;
    Ok(len + block.len() as u64)
}

/// The length of the file's valid records; 0 if it is not a journal.
fn replay(file: &dyn DiskFile, on_record: &mut impl FnMut(Record)) -> io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut have = file.read_at(&mut block, 0)?;
    if block.get(..MAGIC.len()) != Some(MAGIC) || have < MAGIC.len() {
        return Ok(0);
    }
    // Offset of the block in the file, and of the next frame in the block.
    let (mut base, mut at) = (0u64, MAGIC.len());
    loop {
        match next_record(&block[at..have]) {
            Step::Record(record, taken) => {
                on_record(record);
                at += taken;
            }
            Step::Torn => return Ok(base + at as u64),
            Step::Incomplete(_) => {
                base += at as u64;
                let kept = have - at;
                block.copy_within(at..have, 0);
                let more = file.read_at(&mut block[kept..], base + kept as u64)?;
                if more == 0 {
                    return Ok(base);
                }
                (at, have) = (0, kept + more);
            }
        }
    }
}
