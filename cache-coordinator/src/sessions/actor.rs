//! Connects the plan to time, tables and edges: one task owns the plan, and all others have a
//! handle.
//!
//! Waiting is separate from deciding: this file awaits, `plan.rs` decides.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::{EntryId, FetchId};
use service_kit::clock::now_ms;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{
    plan::{Action, Command, LoadedEntry, Plan},
    registry::Registry,
};
use crate::{metrics::Metrics, service::error::ServiceError};
use scheduler::{Config, Scheduler, api::Millis, api::WantId};

/// Limit of queued commands. Beyond it, sessions wait for space, and so do their edges.
const QUEUE_COMMANDS: usize = 8192;
/// The scheduler needs at least one tick per 100 ms.
const TICK: Duration = Duration::from_millis(50);
/// Entries loaded at a time, so that a cluster that reconnects leaves connections for other reads.
const LOADS_AT_A_TIME: usize = 8;
/// Pause between attempts to load an entry while the database does not answer.
const LOAD_RETRY: Duration = Duration::from_millis(500);

/// The source of entries.
pub trait EntrySource: Send + Sync + 'static {
    /// The entry and its holders; `None` if the table has no such entry.
    fn load_entry(
        &self,
        id: EntryId,
    ) -> impl Future<Output = Result<Option<LoadedEntry>, ServiceError>> + Send;
}

type Question = Box<dyn FnOnce(&Plan) + Send>;

enum ActorMessage {
    Command(Command),
    Question(Question),
    Reset,
}

/// A handle of the plan. Cheap to clone.
#[derive(Clone)]
pub struct PlanHandle {
    letters: mpsc::Sender<ActorMessage>,
}

/// The plan has stopped, because the process is ending.
#[derive(Debug, thiserror::Error)]
#[error("the plan has stopped")]
pub struct ActorStopped;

impl From<ActorStopped> for ServiceError {
    fn from(_: ActorStopped) -> Self {
        Self::ShuttingDown
    }
}

impl PlanHandle {
    /// Waits for space in the queue, but not for the command's effect.
    pub async fn tell(&self, command: Command) -> Result<(), ActorStopped> {
        self.letters
            .send(ActorMessage::Command(command))
            .await
            .map_err(|_| ActorStopped)
    }

    /// Runs a query on the plan, after all earlier commands.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Plan) -> T + Send + 'static,
    ) -> Result<T, ActorStopped> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |plan| {
            let _ = answer.send(question(plan));
        });
        self.letters
            .send(ActorMessage::Question(question))
            .await
            .map_err(|_| ActorStopped)?;
        answered.await.map_err(|_| ActorStopped)
    }

    /// Drops the whole state for another term.
    pub async fn reset(&self) -> Result<(), ActorStopped> {
        self.letters
            .send(ActorMessage::Reset)
            .await
            .map_err(|_| ActorStopped)
    }
}

/// The state of the task.
pub struct Actor<S> {
    letters: mpsc::Receiver<ActorMessage>,
    plan: Plan,
    source: Arc<S>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    done_wants: mpsc::UnboundedSender<WantId>,
    loads: JoinSet<(EntryId, Option<LoadedEntry>)>,
    load_permits: Arc<Semaphore>,
    started: Instant,
    /// Cancels loads of an earlier term, which do not belong to this plan.
    stop_loads: CancellationToken,
}

impl<S: EntrySource> Actor<S> {
    /// The actor, its handle, and a channel of finished wants. The channel is unbounded in type
    /// only: there are never more items than wants, whose number the jobs and requests limit.
    pub fn new(
        source: Arc<S>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> (Self, PlanHandle, mpsc::UnboundedReceiver<WantId>) {
        let (sender, letters) = mpsc::channel(QUEUE_COMMANDS);
        let (done_wants, done) = mpsc::unbounded_channel();
        let actor = Self {
            letters,
            plan: new_plan(),
            source,
            registry,
            metrics,
            done_wants,
            loads: JoinSet::new(),
            load_permits: Arc::new(Semaphore::new(LOADS_AT_A_TIME)),
            started: Instant::now(),
            stop_loads: CancellationToken::new(),
        };
        (actor, PlanHandle { letters: sender }, done)
    }

    /// Runs until `shutdown`, or until no handle is left.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut actions = Vec::new();
        loop {
            let command = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = tick.tick() => Command::Tick,
                Some(loaded) = self.loads.join_next() => match loaded {
                    Ok((id, loaded)) => Command::EntryLoaded { id, loaded: loaded.map(Box::new) },
                    Err(_) => continue,
                },
                letter = self.letters.recv() => match letter {
                    None => break,
                    Some(ActorMessage::Command(command)) => command,
                    Some(ActorMessage::Question(question)) => {
                        question(&self.plan);
                        continue;
                    }
                    Some(ActorMessage::Reset) => {
                        self.reset();
                        continue;
                    }
                },
            };
            let is_tick = matches!(command, Command::Tick);
            let now = self.now();
            let began = Instant::now();
            self.plan.apply(command, now, &mut actions);
            // The work of one event is bounded to keep latency low; the rest follows at once.
            while self.plan.scheduler().has_more() && began.elapsed() < TICK {
                self.plan.apply(Command::Tick, now, &mut actions);
            }
            self.metrics.commands_applied.inc();
            self.metrics
                .apply_seconds
                .observe(began.elapsed().as_secs_f64());
            for action in actions.drain(..) {
                self.act(action);
            }
            if is_tick {
                self.metrics.asked_again(self.plan.take_asked_again());
                let broken = scheduler::take_broken_invariants();
                self.metrics.broken_invariants.inc_by(broken);
                self.metrics
                    .open_entries
                    .set(i64::try_from(self.plan.entry_count()).unwrap_or(i64::MAX));
            }
        }
        self.stop_loads.cancel();
    }

    fn now(&self) -> Millis {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn reset(&mut self) {
        self.stop_loads.cancel();
        self.stop_loads = CancellationToken::new();
        self.loads = JoinSet::new();
        self.plan = new_plan();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(edge, message) => {
                if let Some(live) = self.registry.get(edge) {
                    live.outbox.post(*message);
                }
            }
            Action::WantDone(want) => {
                let _ = self.done_wants.send(want);
            }
            Action::Load(id) => {
                let source = Arc::clone(&self.source);
                let permits = Arc::clone(&self.load_permits);
                let stop = self.stop_loads.clone();
                self.loads.spawn(async move {
                    let loaded = tokio::select! {
                        loaded = load(source, permits, id) => loaded,
                        () = stop.cancelled() => None,
                    };
                    (id, loaded)
                });
            }
        }
    }
}

/// Milliseconds since 1970 times a million, so that no number of an earlier plan, in whatever
/// process, is used again.
fn first_assignment() -> u64 {
    now_ms().unsigned_abs() << 20 & FetchId::MAX_NUMBER
}

fn new_plan() -> Plan {
    Plan::new(Scheduler::new(Config {
        first_assignment: first_assignment(),
        ..Config::default()
    }))
}

/// Retries until the database answers; the number of commands that wait meanwhile is bounded.
async fn load<S: EntrySource>(
    source: Arc<S>,
    permits: Arc<Semaphore>,
    id: EntryId,
) -> Option<LoadedEntry> {
    let _permit = permits.acquire_owned().await.ok()?;
    loop {
        match source.load_entry(id).await {
            Ok(loaded) => return loaded,
            Err(error) => {
                tracing::debug!(%error, entry = %id, "an entry can not be loaded yet");
                tokio::time::sleep(LOAD_RETRY).await;
            }
        }
    }
}
