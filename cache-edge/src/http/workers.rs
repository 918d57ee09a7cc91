//! The threads that serve connections, each with an event loop of its own.
//!
//! Why not one pool that steals work: a connection is served by many short turns. Where any thread may take the next one, each
//! turn wakes a second thread to look for work, and what the connection touches moves from cache to cache. Here a
//! connection stays with the thread it was given to, as with nginx and its kin.

use std::{
    io,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// For files that are not in memory. Beyond it reads wait in line, which costs nothing on a disk that is busy already.
const MAX_BLOCKING_THREADS: usize = 32;

/// Ends its threads when dropped; what they still served is dropped with them.
pub struct Workers {
    workers: Vec<Worker>,
    stop: CancellationToken,
}

struct Worker {
    handle: Handle,
    tasks: Arc<AtomicUsize>,
}

impl Workers {
    /// One thread a processor this process may use.
    pub fn start() -> io::Result<Self> {
        let stop = CancellationToken::new();
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let mut started = Self {
            workers: Vec::with_capacity(count),
            stop,
        };
        for _ in 0..count {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_BLOCKING_THREADS)
                .thread_name("serve-disk")
                .build()?;
            started.workers.push(Worker {
                handle: runtime.handle().clone(),
                tasks: Arc::default(),
            });
            let stop = started.stop.clone();
            thread::Builder::new().name("serve".into()).spawn(move || {
                runtime.block_on(stop.cancelled());
                runtime.shutdown_background();
            })?;
        }
        Ok(started)
    }

    /// Runs it on the thread that has the fewest.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let least = self
            .workers
            .iter()
            .min_by_key(|worker| worker.tasks.load(Ordering::Relaxed));
        if let Some(worker) = least {
            let counted = Counted::new(&worker.tasks);
            worker.handle.spawn(async move {
                let _counted = counted;
                task.await;
            });
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A task from when it is given to a thread until it is dropped, finished or not.
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
        let workers = Workers::start().unwrap();
        let count = workers.workers.len();
        let (end, _) = tokio::sync::broadcast::channel::<()>(1);
        let (told, mut threads) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..2 * count {
            let mut end = end.subscribe();
            let told = told.clone();
            workers.spawn(async move {
                let _ = told.send(thread::current().id());
                let _ = end.recv().await;
                drop(told);
            });
        }
        let mut seen = std::collections::HashMap::new();
        for _ in 0..2 * count {
            *seen.entry(threads.recv().await.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), count);
        assert!(seen.values().all(|tasks| *tasks == 2), "{seen:?}");
        drop((end, told));
        assert!(threads.recv().await.is_none(), "a task did not end");
        // A task's count is given back after its last word.
        while workers
            .workers
            .iter()
            .any(|worker| worker.tasks.load(Ordering::Relaxed) > 0)
        {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_served_ends_with_them() {
        let workers = Workers::start().unwrap();
        let (held, mut waiting) = tokio::sync::mpsc::channel::<()>(1);
        workers.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(workers);
        assert!(waiting.recv().await.is_none());
    }
}
