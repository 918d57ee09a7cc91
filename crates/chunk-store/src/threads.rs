//! The store's threads: one commits groups, one does maintenance, one reclaims once after an open.
//!
//! Threads and not tasks, because all their work may block on the disk.

use std::{
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    commit, health, idle, make_directories, reclaim, removal, scrub::Scrub, shared::Shared,
};

/// Longest sleep of an idle committer.
const COMMIT_IDLE: Duration = Duration::from_secs(1);
/// Interval of timed work; a hole is punched this soon after its last reader left.
const HOUSE_INTERVAL: Duration = Duration::from_millis(100);
const IDLE_FILES_INTERVAL: Duration = Duration::from_secs(30);
/// The eviction policy's tick: uses of a chunk within one or two ticks count as one. As long as a
/// slow viewer needs for a chunk.
const TICK_INTERVAL: Duration = Duration::from_secs(16);
/// Time between probes of a disk that refused.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Running threads; stopped and joined by [`stop`](Self::stop).
pub(super) struct Threads {
    handles: Vec<JoinHandle<()>>,
}

/// Ends a sleep.
#[derive(Default)]
pub(super) struct WakeUp {
    is_due: Mutex<bool>,
    condition: Condvar,
}

impl WakeUp {
    fn wait(&self, timeout: Duration) {
        let mut is_due = self.is_due.lock();
        if !*is_due {
            self.condition.wait_for(&mut is_due, timeout);
        }
        *is_due = false;
    }

    pub fn wake(&self) {
        *self.is_due.lock() = true;
        self.condition.notify_all();
    }
}

impl Threads {
    pub fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let mut threads = Self {
            handles: Vec::new(),
        };
        threads.spawn("store-commit", shared, commit_loop)?;
        threads.spawn("store-house", shared, house_loop)?;
        let search = reclaim::Search::new(shared);
        threads.spawn("store-reclaim", shared, |shared| {
            // Not earlier, because nothing at the start waits for these.
            make_directories(&*shared.disk);
            search.run(shared);
        })?;
        Ok(threads)
    }

    fn spawn(
        &mut self,
        name: &str,
        shared: &Arc<Shared>,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> io::Result<()> {
        let shared = shared.clone();
        self.handles.push(
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || run(&shared))?,
        );
        Ok(())
    }

    /// Requires `shared.stopping` to be set.
    pub fn stop(self, shared: &Shared) {
        shared.queue.wake();
        shared.house.wake();
        for handle in self.handles {
            // A panic was printed when it happened; closing continues.
            let _ = handle.join();
        }
    }
}

fn commit_loop(shared: &Shared) {
    while !shared.is_stopping() {
        // While the disk refuses writes nothing can be recorded, so there is no hurry.
        let window = if shared.health.is_degraded() {
            HOUSE_INTERVAL
        } else {
            shared.group_sync_window
        };
        if !shared.health.is_degraded()
            && let Err(error) = shared.spares.refill(&*shared.disk)
        {
            // The next write reports what is wrong with the disk.
            tracing::debug!(%error, "no spare files");
        }
        shared.queue.wait(COMMIT_IDLE, window);
        commit::commit_group(shared);
    }
}

fn house_loop(shared: &Shared) {
    let start = Instant::now();
    let (mut tick_at, mut sweep_at, mut probe_at) = (start, start, start);
    let mut scrub = Scrub::new(shared.tuning.scrub_period, start);
    loop {
        shared.house.wait(HOUSE_INTERVAL);
        if shared.is_stopping() {
            return;
        }
        let now = Instant::now();
        let due = |at: &mut Instant, interval: Duration| {
            let is_due = now.duration_since(*at) >= interval;
            if is_due {
                *at = now;
            }
            is_due
        };
        if due(&mut tick_at, TICK_INTERVAL) {
            shared.advance_tick();
        }
        if shared.health.is_degraded() && due(&mut probe_at, PROBE_INTERVAL) {
            recover(shared);
        }
        removal::reap(shared);
        idle::forget(shared, now);
        if due(&mut sweep_at, IDLE_FILES_INTERVAL) {
            shared.files.sweep_idle();
        }
        scrub.step(shared, now);
    }
}

/// Checks whether the disk works again; rewrites a broken journal.
pub(super) fn recover(shared: &Shared) {
    if health::probe(&*shared.disk).is_err() {
        return;
    }
    let mut journal = shared.journal.lock();
    if journal.is_broken()
        && let Err(error) = shared.rewrite_journal(&mut journal)
    {
        shared.health.degrade("rewriting the journal", &error);
        return;
    }
    drop(journal);
    shared.health.recover();
    shared.queue.wake();
}
