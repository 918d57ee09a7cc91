//! Threads with an event loop each: those that serve connections, and those that fetch.
//!
//! Why not one pool that steals work: a connection, or a fetch, is served by many short turns.
//! Where any thread may take the next one, each turn wakes a second thread to look for work, and
//! what the turns touch moves from cache to cache. Here a task stays on the lane it was given to,
//! as with nginx and its kin; and what it starts on its own lane runs when it rests, with no switch
//! between.

use std::{
    cell::{Cell, RefCell},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::getpid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use tokio::{
    runtime::{Builder, Handle},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::system_calls::processor;

/// For files that are not in memory. Beyond it reads wait in line, which costs nothing on a disk
/// that is busy already.
const MAX_BLOCKING_THREADS: usize = 32;
/// Whether a lane is at leisure is seen from so much of the past.
const LATELY: Duration = Duration::from_millis(10);
/// What is done [`later`] is done after the first bytes of what is done now.
const LATER: Duration = Duration::from_millis(1);

thread_local! {
    /// The lane that this thread is.
    static HERE: RefCell<Option<Lane>> = const { RefCell::new(None) };
    static LOAD: Cell<Load> = const { Cell::new(Load::NONE) };
    static STAYS: RefCell<Stays> = const { RefCell::new(Stays { count: 0, before: None }) };
}

/// Of those started so far.
static GROUPS: AtomicU64 = AtomicU64::new(0);

/// Ends its threads when dropped; what still runs there is dropped with them.
pub struct Threads {
    lanes: Lanes,
    stop: CancellationToken,
}

/// The way to them. Cheap to clone.
#[derive(Clone)]
pub struct Lanes(Arc<[Lane]>);

/// One of them.
#[derive(Clone)]
pub struct Lane {
    handle: Handle,
    tasks: Arc<AtomicUsize>,
    /// Those that were started with it have the same.
    group: u64,
}

/// Tells threads that serve from threads that fetch; none of both: `None`.
#[must_use]
pub fn group() -> Option<u64> {
    HERE.with_borrow(|it| it.as_ref().map(|lane| lane.group))
}

/// The lane that this thread is, if it is one.
#[must_use]
pub fn here() -> Option<Lane> {
    HERE.with_borrow(Clone::clone)
}

/// The lane that this thread is, if it is one that had nothing to do for half of the last
/// milliseconds, or more. It has time for what other threads are there for.
#[must_use]
pub fn at_leisure() -> Option<Lane> {
    LOAD.get().is_light().then(here).flatten()
}

/// Does it a millisecond later on a lane at leisure, elsewhere at once. For what wakes another
/// thread for something that nobody waits for: on a small machine that thread would go before who
/// is waited for. It is done in any case, also where the lane ends before.
pub fn later(what: impl FnOnce() + Send + 'static) {
    let what = Later(Some(what));
    if let Some(lane) = at_leisure() {
        lane.handle.spawn(async {
            tokio::time::sleep(LATER).await;
            drop(what);
        });
    }
}

/// Done when it is dropped, as it also is with the lane it waits on.
struct Later<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Later<F> {
    fn drop(&mut self) {
        if let Some(what) = self.0.take() {
            what();
        }
    }
}

/// Keeps the thread of a lane at leisure on the processor it is on, until it is dropped. For who
/// waits for an answer.
///
/// Why: the kernel moves a thread that is woken by what comes through a socket to the processor of
/// who sent it, where it may wait for the sender to end its turn while its own processor is idle.
/// Of an origin on the same machine that is most of a millisecond.
pub struct Stay(Option<thread::ThreadId>);

/// See [`Stay`].
#[must_use]
pub fn stay() -> Stay {
    if at_leisure().is_none() {
        return Stay(None);
    }
    STAYS.with_borrow_mut(|stays| {
        // Only where it can be let go again.
        if stays.count == 0
            && let Some(processor) = processor().filter(|number| *number < CpuSet::MAX_CPU)
            && let Ok(before) = sched_getaffinity(None)
        {
            stays.before = Some(before);
            let mut here = CpuSet::new();
            here.set(processor);
            // Refused, it goes where it is taken: slower, and no worse than that.
            let _ = sched_setaffinity(None, &here);
        }
        stays.count += 1;
    });
    Stay(Some(thread::current().id()))
}

impl Drop for Stay {
    fn drop(&mut self) {
        // With its lane it ends elsewhere; that thread is no more.
        if self.0 != Some(thread::current().id()) {
            return;
        }
        STAYS.with_borrow_mut(|stays| {
            stays.count -= 1;
            if stays.count == 0 {
                stays.end();
            }
        });
    }
}

/// Of one thread.
struct Stays {
    count: u32,
    /// Where it may be otherwise, while it stays.
    before: Option<CpuSet>,
}

impl Stays {
    fn end(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = sched_setaffinity(None, &before);
        }
    }
}

/// A thread has the processors of the one it was started by, which may stay on one just then; the
/// process's first thread never does.
fn take_all_processors() {
    if let Ok(all) = sched_getaffinity(Some(getpid())) {
        let _ = sched_setaffinity(None, &all);
    }
}

fn rests() {
    LOAD.set(LOAD.get().rests(Instant::now()));
}

/// A lane that is at leisure no more goes wherever there is room, whoever still waits on it.
fn goes_on() {
    let load = LOAD.get().goes_on(Instant::now());
    LOAD.set(load);
    if !load.is_light() {
        STAYS.with_borrow_mut(Stays::end);
    }
}

/// How long a lane had something to do lately, and how long not.
#[derive(Clone, Copy)]
struct Load {
    /// When that changed last.
    turned: Option<Instant>,
    busy: Duration,
    idle: Duration,
}

impl Load {
    const NONE: Self = Self {
        turned: None,
        busy: Duration::ZERO,
        idle: Duration::ZERO,
    };

    fn rests(mut self, now: Instant) -> Self {
        let lasted = self.turns(now);
        self.busy += lasted;
        self.forget_old()
    }

    fn goes_on(mut self, now: Instant) -> Self {
        let lasted = self.turns(now);
        self.idle += lasted;
        self.forget_old()
    }

    /// How long it was as it was. Of more than counts, what counts.
    fn turns(&mut self, now: Instant) -> Duration {
        let since = self.turned.replace(now).unwrap_or(now);
        now.saturating_duration_since(since).min(LATELY)
    }

    fn forget_old(mut self) -> Self {
        if self.busy + self.idle > LATELY {
            self.busy /= 2;
            self.idle /= 2;
        }
        self
    }

    fn is_light(&self) -> bool {
        self.idle >= self.busy
    }
}

impl Threads {
    /// # Errors
    ///
    /// The system has no more threads.
    pub fn start(name: &str, count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut lanes = Vec::with_capacity(count);
        let group = GROUPS.fetch_add(1, Ordering::Relaxed);
        // Dropped on the way out if one can not be started: those that were end.
        let ending = stop.clone().drop_guard();
        for _ in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_BLOCKING_THREADS)
                .thread_name(format!("{name}-disk"))
                .on_thread_start(take_all_processors)
                .on_thread_park(rests)
                .on_thread_unpark(goes_on)
                .build()?;
            let lane = Lane::of(runtime.handle().clone(), group);
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
        let group = GROUPS.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new([Lane::of(handle, group)]))
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
        let here = HERE.with_borrow(|here| here.clone().filter(|it| self.has(it)));
        here.as_ref().unwrap_or_else(|| self.least()).spawn(task)
    }

    /// It is one of these.
    #[must_use]
    pub fn has(&self, lane: &Lane) -> bool {
        self.0.iter().any(|own| own.is(lane))
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
    fn of(handle: Handle, group: u64) -> Self {
        Self {
            handle,
            tasks: Arc::default(),
            group,
        }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tasks, &other.tasks)
    }

    /// Runs it on this lane.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
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

    #[test]
    fn a_lane_is_at_leisure_that_rests_as_long_as_it_works() {
        let begun = Instant::now();
        let at = |micros: u64| begun + Duration::from_micros(micros);
        let mut load = Load::NONE.rests(at(0));
        assert!(load.is_light(), "nothing is known yet");
        load = load.goes_on(at(30_000)).rests(at(31_000));
        assert!(load.is_light(), "one request, after a long rest");
        // Hardly any rest between its turns.
        for turn in 0..100 {
            let now = 31_000 + turn * 300;
            load = load.goes_on(at(now + 5)).rests(at(now + 300));
        }
        assert!(!load.is_light());
        // What was long ago does not count.
        load = load.goes_on(at(1_000_000)).rests(at(1_000_100));
        assert!(load.is_light());
    }

    #[tokio::test]
    async fn what_is_done_later_is_done_though_its_lane_ends_before() {
        let threads = Threads::start("test", 1).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (done, seen) = tokio::sync::oneshot::channel();
        let waits = threads.lanes().spawn(async move {
            assert!(at_leisure().is_some());
            later(move || done.send(()).unwrap());
            // Its time does not come while this goes on.
            thread::sleep(LATER / 2);
        });
        waits.await.unwrap();
        drop(threads);
        let seen = tokio::time::timeout(Duration::from_secs(5), seen).await;
        assert!(matches!(seen, Ok(Ok(()))));
    }

    #[tokio::test]
    async fn what_is_done_later_is_done_behind_what_is_ready() {
        let threads = Threads::start("test", 1).unwrap();
        let (done, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let ready = done.clone();
        // Elsewhere at once: this thread is no lane.
        later({
            let done = done.clone();
            move || done.send("at once").unwrap()
        });
        assert_eq!(seen.try_recv().ok(), Some("at once"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        threads.lanes().spawn(async move {
            assert!(at_leisure().is_some_and(|here| here.group == group().unwrap()));
            later(move || done.send("later").unwrap());
            tokio::task::yield_now().await;
            ready.send("ready").unwrap();
        });
        assert_eq!(seen.recv().await, Some("ready"));
        assert_eq!(seen.recv().await, Some("later"));
    }

    #[tokio::test]
    async fn a_lane_stays_where_it_is_until_the_last_who_waits_has_its_answer() {
        let threads = Threads::start("test", 1).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let may_be_on = || sched_getaffinity(None).unwrap().count();
        let counts = threads.lanes().spawn(async move {
            let before = may_be_on();
            let (first, second) = (stay(), stay());
            let both = may_be_on();
            drop(first);
            let one = may_be_on();
            drop(second);
            (before, both, one, may_be_on())
        });
        let (before, both, one, after) = counts.await.unwrap();
        assert_eq!((both, one, after), (1, 1, before));
        let elsewhere = may_be_on();
        drop(stay());
        assert_eq!(may_be_on(), elsewhere, "no lane");
    }

    #[tokio::test]
    async fn who_has_much_to_do_stays_nowhere_and_nobody_inherits_a_stay() {
        let threads = Threads::start("test", 1).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let may_be_on = || sched_getaffinity(None).unwrap().count();
        let all = may_be_on();
        let counts = threads.lanes().spawn(async move {
            let _waiting = stay();
            let started = tokio::task::spawn_blocking(may_be_on).await.unwrap();
            let at_leisure = may_be_on();
            for _ in 0..10 {
                let busy = Instant::now() + LATELY / 2;
                while Instant::now() < busy {}
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (started, at_leisure, may_be_on())
        });
        assert_eq!(counts.await.unwrap(), (all, 1, all));
    }
}
