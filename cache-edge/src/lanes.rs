//! Threads with an event loop each: those that serve connections, and those that fetch.
//!
//! Why not one pool that steals work: a connection, or a fetch, is served by many short turns. Where any thread may take the next one, each
//! turn wakes a second thread to look for work, and what the turns touch moves from cache to cache. Here a task
//! stays on the lane it was given to, as with nginx and its kin; and what it starts on its own lane runs when it rests, with no switch between.

use std::{
    cell::RefCell,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// For files that are not in memory. Beyond it reads wait in line, which costs nothing on a disk that is busy already.
const MAX_BLOCKING_THREADS: usize = 32;

thread_local! {
    /// The lane that this thread is.
    static HERE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

/// Ends its threads when dropped; what still runs there is dropped with them.
pub struct Threads {
    lanes: Lanes,
    stop: CancellationToken,
}

/// The way to them. Cheap to clone.
#[derive(Clone)]
pub struct Lanes(Arc<[Lane]>);

#[derive(Clone)]
struct Lane {
    handle: Handle,
    tasks: Arc<AtomicUsize>,
}

impl Threads {
    /// # Errors
    ///
    /// The system has no more threads.
    pub fn start(name: &str, count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut lanes = Vec::with_capacity(count);
        // Dropped on the way out if one can not be started: those that were end.
        let ending = stop.clone().drop_guard();
        for _ in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_BLOCKING_THREADS)
                .thread_name(format!("{name}-disk"))
                .build()?;
            let lane = Lane::of(runtime.handle().clone());
            lanes.push(lane.clone());
            let stop = stop.clone();
            thread::Builder::new().name(name.into()).spawn(move || {
                HERE.set(Some(lane));
                runtime.block_on(stop.cancelled());
                runtime.shutdown_background();
            })?;
        }
        ending.disarm();
        Ok(Self {
            lanes: Lanes(lanes.into()),
            stop,
        })
    }

    #[must_use]
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Lanes {
    /// One lane that somebody else runs.
    #[must_use]
    pub fn of(handle: Handle) -> Self {
        Self(Arc::new([Lane::of(handle)]))
    }

    /// Runs it on the lane that has the fewest tasks.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.least().spawn(task)
    }

    /// Runs it on this very lane, or where this thread is none of these, as [`spawn`](Self::spawn).
    pub fn spawn_here<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let is_one = |here: &Lane| self.0.iter().any(|lane| lane.is(here));
        let here = HERE.with_borrow(|here| here.clone().filter(is_one));
        here.as_ref().unwrap_or_else(|| self.least()).spawn(task)
    }

    /// On a thread beside the lanes.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.0[0].handle.spawn_blocking(work)
    }

    fn least(&self) -> &Lane {
        let tasks = |lane: &&Lane| lane.tasks.load(Ordering::Relaxed);
        self.0.iter().min_by_key(tasks).unwrap_or(&self.0[0])
    }
}

impl Lane {
    fn of(handle: Handle) -> Self {
        Self {
            handle,
            tasks: Arc::default(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tasks, &other.tasks)
    }

    fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let counted = Counted::new(&self.tasks);
        self.handle.spawn(async move {
            let _counted = counted;
            task.await
        })
    }
}

/// A task from when it is given to a lane until it is dropped, finished or not.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(tasks: &Arc<AtomicUsize>) -> Self {
        tasks.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(tasks))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_are_shared_out_evenly_and_given_back() {
        let threads = Threads::start("test", 2).unwrap();
        let lanes = threads.lanes();
        let (end, _) = tokio::sync::broadcast::channel::<()>(1);
        let (told, mut seen_on) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let mut end = end.subscribe();
            let told = told.clone();
            tasks.push(lanes.spawn(async move {
                let _ = told.send(thread::current().id());
                let _ = end.recv().await;
            }));
        }
        let mut seen = std::collections::HashMap::new();
        for _ in 0..4 {
            *seen.entry(seen_on.recv().await.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 2);
        assert!(seen.values().all(|tasks| *tasks == 2), "{seen:?}");
        drop(end);
        for task in tasks {
            task.await.unwrap();
        }
        let counts = || lanes.0.iter().map(|it| it.tasks.load(Ordering::Relaxed));
        assert_eq!(counts().sum::<usize>(), 0);
    }

    #[tokio::test]
    async fn what_a_task_starts_here_stays_on_its_lane() {
        let threads = Threads::start("test", 2).unwrap();
        let lanes = threads.lanes().clone();
        let own = lanes.clone();
        let here = lanes.spawn(async move {
            let started = own.spawn_here(async { thread::current().id() });
            (thread::current().id(), started.await.unwrap())
        });
        let (first, second) = here.await.unwrap();
        assert_eq!(first, second);
        let elsewhere = lanes.spawn_here(async { thread::current().id() });
        assert_ne!(elsewhere.await.unwrap(), thread::current().id());
    }

    #[tokio::test]
    async fn what_runs_ends_with_them() {
        let threads = Threads::start("test", 1).unwrap();
        let (held, mut waiting) = tokio::sync::mpsc::channel::<()>(1);
        threads.lanes().spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(threads);
        assert!(waiting.recv().await.is_none());
    }
}
