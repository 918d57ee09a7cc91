//! The state shared by all parts of the store.
//!
//! Locks are always taken in this order: an entry's `emptying`, `journal`, `catalog`, an entry's
//! `opening`, then one of the small ones (queue, policy, reaper, idle, digest, blocks, open files,
//! sources). While a small one is held, no other lock is taken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use chunkcache_proto::{ChunkIndex, EntryId, v1};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::{
    Durable, Tuning, Victims,
    catalog::{Catalog, snapshot},
    commit::CommitQueue,
    disk::Disk,
    entry_file::EntryFile,
    health::Health,
    idle::IdleEntries,
    journal::Journal,
    open_files::OpenFiles,
    policy::Policy,
    preallocated::PreallocatedFiles,
    removal::Reaper,
    source_space::SourceSpaces,
    space::Space,
    threads::WakeUp,
};

pub(super) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub store_id: Uuid,
    pub group_sync_window: Duration,
    pub tuning: Tuning,
    pub journal: Mutex<Journal>,
    pub catalog: RwLock<Catalog>,
    pub queue: CommitQueue,
    pub space: Arc<Space>,
    pub sources: SourceSpaces,
    pub files: OpenFiles,
    pub spares: PreallocatedFiles,
    pub health: Health,
    pub policy: Mutex<Policy>,
    pub reaper: Reaper,
    pub idle: IdleEntries,
    /// Wakes the evicting task when a source has begun to exceed its quota.
    pub over_quota: Notify,
    /// Wakes the maintenance thread.
    pub house: WakeUp,
    pub durable_chunks: AtomicU64,
    pub durable: Channel<Durable>,
    pub lost: Channel<Victims>,
    pub forgotten: Channel<v1::Entry>,
    pub stopping: AtomicBool,
    /// Coarse time for the eviction policy, advanced by the maintenance thread.
    tick: AtomicU16,
}

/// The arguments of [`Shared::new`].
pub(super) struct SharedConfig {
    pub disk: Arc<dyn Disk>,
    pub store_id: Uuid,
    pub group_sync_window: Duration,
    pub tuning: Tuning,
    pub space: Space,
}

impl Shared {
    pub fn new(config: SharedConfig) -> Self {
        let SharedConfig {
            disk,
            store_id,
            group_sync_window,
            tuning,
            space,
        } = config;
        let space = Arc::new(space);
        Self {
            store_id,
            group_sync_window,
            files: OpenFiles::new(tuning.max_open_files),
            spares: PreallocatedFiles::default(),
            tuning,
            journal: Mutex::new(Journal::new(disk.clone())),
            disk,
            catalog: RwLock::default(),
            queue: CommitQueue::default(),
            sources: SourceSpaces::new(space.clone()),
            space,
            health: Health::default(),
            policy: Mutex::default(),
            reaper: Reaper::default(),
            idle: IdleEntries::default(),
            over_quota: Notify::new(),
            house: WakeUp::default(),
            durable_chunks: AtomicU64::new(0),
            durable: Channel::new(),
            lost: Channel::new(),
            forgotten: Channel::new(),
            stopping: AtomicBool::new(false),
            tick: AtomicU16::new(0),
        }
    }

    pub fn tick(&self) -> u16 {
        self.tick.load(Ordering::Relaxed)
    }

    pub fn advance_tick(&self) {
        self.tick.fetch_add(1, Ordering::Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Reports chunks that were withdrawn without a request by the caller.
    pub fn report_lost(&self, entry: EntryId, chunks: Vec<ChunkIndex>) {
        if !chunks.is_empty() {
            self.lost.send(Victims { entry, chunks });
        }
    }

    /// Writes a fresh journal of the present facts.
    pub fn rewrite_journal(&self, journal: &mut Journal) -> std::io::Result<()> {
        let (entries, notes, numbers) = {
            let mut catalog = self.catalog.write();
            catalog.reserve_numbers();
            (catalog.all(), catalog.notes().clone(), catalog.numbers())
        };
        // An entry without chunks is described with its next chunk, unless it is pinned.
        let is_stored = |entry: &Arc<EntryFile>| {
            !entry.is_removed() && (entry.has_durable() || entry.is_pinned())
        };
        let (stored, empty): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_stored);
        for entry in &empty {
            entry.described.store(false, Ordering::Release);
        }
        for entry in &stored {
            entry.described.store(true, Ordering::Release);
        }
        journal.rewrite(std::iter::once(numbers).chain(snapshot(&stored, notes)))
    }
}

/// A channel whose receiver is taken once. Unbounded, but never has more items than there are
/// chunks or entries.
pub(super) struct Channel<T> {
    sender: mpsc::UnboundedSender<T>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<T>>>,
}

impl<T> Channel<T> {
    fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            receiver: Mutex::new(Some(receiver)),
        }
    }

    pub fn send(&self, item: T) {
        // There is no receiver: the store is closing.
        let _ = self.sender.send(item);
    }

    /// A second call gets a closed receiver.
    pub fn take(&self) -> mpsc::UnboundedReceiver<T> {
        self.receiver
            .lock()
            .take()
            .unwrap_or_else(|| mpsc::unbounded_channel().1)
    }
}
