//! What every part of the store works on.
//!
//! Locks are taken in this order, and no other: an entry's `emptying`, `journal`, `catalog`, an
//! entry's `path`, then one of the small ones (queue, policy, reaper, digest, open files), of which
//! none is held while another is taken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use chunkcache_proto::{ChunkIndex, EntryId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Durable, Tuning, Victims,
    catalog::{Catalog, snapshot},
    commit::CommitQueue,
    disk::Disk,
    health::Health,
    journal::Journal,
    open_files::OpenFiles,
    policy::Policy,
    removal::Reaper,
    space::Space,
    spares::Spares,
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
    pub files: OpenFiles,
    pub spares: Spares,
    pub health: Health,
    pub policy: Mutex<Policy>,
    pub reaper: Reaper,
    pub durable_chunks: AtomicU64,
    pub durable: Channel<Durable>,
    pub lost: Channel<Victims>,
    pub stopping: AtomicBool,
    /// Coarse time for the eviction policy, moved on by the maintenance thread.
    tick: AtomicU16,
}

/// What [`Shared::new`] is made of.
pub(super) struct Parts {
    pub disk: Arc<dyn Disk>,
    pub store_id: Uuid,
    pub group_sync_window: Duration,
    pub tuning: Tuning,
    pub space: Space,
}

impl Shared {
    pub fn new(parts: Parts) -> Self {
        let Parts {
            disk,
            store_id,
            group_sync_window,
            tuning,
            space,
        } = parts;
        Self {
            store_id,
            group_sync_window,
            files: OpenFiles::new(tuning.max_open_files),
            spares: Spares::default(),
            tuning,
            journal: Mutex::new(Journal::new(disk.clone())),
            disk,
            catalog: RwLock::default(),
            queue: CommitQueue::default(),
            space: Arc::new(space),
            health: Health::default(),
            policy: Mutex::default(),
            reaper: Reaper::default(),
            durable_chunks: AtomicU64::new(0),
            durable: Channel::new(),
            lost: Channel::new(),
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

    /// Chunks withdrawn other than by the caller's wish.
    pub fn report_lost(&self, entry: EntryId, chunks: Vec<ChunkIndex>) {
        if !chunks.is_empty() {
            self.lost.send(Victims { entry, chunks });
        }
    }

    /// A fresh journal that says what is true now.
    pub fn rewrite_journal(&self, journal: &mut Journal) -> std::io::Result<()> {
        let (entries, notes) = {
            let catalog = self.catalog.read();
            (catalog.all(), catalog.notes.clone())
        };
        journal.rewrite(snapshot(&entries, notes))
    }
}

/// A channel whose receiver is taken once. Unbounded, but what goes through it is bounded by the
/// chunks there are.
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
        // Nobody listens: the store is being closed.
        let _ = self.sender.send(item);
    }

    /// A second taker gets one that is closed.
    pub fn take(&self) -> mpsc::UnboundedReceiver<T> {
        self.receiver
            .lock()
            .take()
            .unwrap_or_else(|| mpsc::unbounded_channel().1)
    }
}
