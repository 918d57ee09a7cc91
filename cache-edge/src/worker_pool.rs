//! Worker threads with an event loop each: for connections, and for fetches.
//!
//! Why not one pool with work stealing: a connection or a fetch is served by many short polls. If
//! any thread may take the next one, each poll wakes a second thread to look for work, and the data
//! moves from cache to cache. Here a task stays on its worker, as in nginx and similar servers.

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

/// For files that are not in memory. Further reads wait in a queue, which costs nothing on a disk
/// that is already busy.
const MAX_BLOCKING_THREADS: usize = 32;

thread_local! {
    /// The tasks of the worker that runs on this thread.
    static OWN_TASKS: RefCell<Option<Arc<AtomicUsize>>> = const { RefCell::new(None) };
}

/// Ends its threads when dropped; tasks that still run there are dropped with them.
pub struct WorkerPool {
    workers: Workers,
    stop: CancellationToken,
}

/// Assigns tasks to the workers of a pool. Cheap to clone.
#[derive(Clone)]
pub struct Workers(Arc<[Worker]>);

struct Worker {
    handle: Handle,
    tasks: Arc<AtomicUsize>,
}

impl WorkerPool {
    /// # Errors
    ///
    /// The system has no more threads.
    pub fn start(name: &str, count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut workers = Vec::with_capacity(count);
        // Dropped on an early return if a thread cannot be started, which ends those that were
        // started.
        let ending = stop.clone().drop_guard();
        for _ in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_BLOCKING_THREADS)
                .thread_name(format!("{name}-disk"))
                .build()?;
            let worker = Worker::new(runtime.handle().clone());
            let (stop, tasks) = (stop.clone(), worker.tasks.clone());
            workers.push(worker);
            thread::Builder::new().name(name.into()).spawn(move || {
                OWN_TASKS.set(Some(tasks));
                runtime.block_on(stop.cancelled());
                runtime.shutdown_background();
            })?;
        }
        ending.disarm();
        Ok(Self {
            workers: Workers(workers.into()),
            stop,
        })
    }

    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Workers {
    /// A single worker whose event loop runs elsewhere.
    #[must_use]
    pub fn of(handle: Handle) -> Self {
        Self(Arc::new([Worker::new(handle)]))
    }

    /// Runs the task on the worker with the fewest tasks.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let tasks = |worker: &&Worker| worker.tasks.load(Ordering::Relaxed);
        let worker = self.0.iter().min_by_key(tasks).unwrap_or(&self.0[0]);
        Self::spawn_on(worker, task)
    }

    /// Runs the task on the caller's worker, if that is one of these: the task's connection is
    /// there.
    pub fn spawn_here<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let own = OWN_TASKS.with_borrow(|own| {
            let own = own.as_ref()?;
            self.0.iter().find(|it| Arc::ptr_eq(&it.tasks, own))
        });
        match own {
            Some(worker) => Self::spawn_on(worker, task),
            None => self.spawn(task),
        }
    }

    fn spawn_on<F>(worker: &Worker, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let counted = CountedTask::new(&worker.tasks);
        worker.handle.spawn(async move {
            let _counted = counted;
            task.await
        })
    }

    /// Runs blocking work on a thread beside the workers.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.0[0].handle.spawn_blocking(work)
    }
}

impl Worker {
    fn new(handle: Handle) -> Self {
        Self {
            handle,
            tasks: Arc::default(),
        }
    }
}

/// Counts a task from its assignment to a worker until it is dropped, finished or not.
struct CountedTask(Arc<AtomicUsize>);

impl CountedTask {
    fn new(tasks: &Arc<AtomicUsize>) -> Self {
        tasks.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(tasks))
    }
}

impl Drop for CountedTask {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_goes_on_where_its_caller_is() {
        let pool = WorkerPool::start("test", 2).unwrap();
        for _ in 0..4 {
            let workers = pool.workers().clone();
            let both = pool.workers().spawn(async move {
                let here = thread::current().id();
                let there = workers.spawn_here(async { thread::current().id() });
                (here, there.await.unwrap())
            });
            let (here, there) = both.await.unwrap();
            assert_eq!(here, there);
        }
        let elsewhere = pool.workers().spawn_here(async { thread::current().id() });
        assert_ne!(elsewhere.await.unwrap(), thread::current().id());
    }

    #[tokio::test]
    async fn tasks_are_spread_evenly_and_counted_out() {
        let pool = WorkerPool::start("test", 2).unwrap();
        let workers = pool.workers();
        let (end, _) = tokio::sync::broadcast::channel::<()>(1);
        let (ids, mut seen_on) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let mut end = end.subscribe();
            let ids = ids.clone();
            tasks.push(workers.spawn(async move {
                let _ = ids.send(thread::current().id());
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
        let counts = workers.0.iter().map(|it| it.tasks.load(Ordering::Relaxed));
        assert_eq!(counts.sum::<usize>(), 0);
    }

    #[tokio::test]
    async fn what_runs_ends_with_the_pool() {
        let pool = WorkerPool::start("test", 1).unwrap();
        let (held, mut waiting) = tokio::sync::mpsc::channel::<()>(1);
        pool.workers().spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(pool);
        assert!(waiting.recv().await.is_none());
    }
}
