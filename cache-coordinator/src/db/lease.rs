//! The leader's lease: a row changed by compare-and-set, measured by the database's clock (RFC
//! 0001, 9).
//!
//! The leader trusts its lease only while it certainly holds, counted on the leader's monotonic
//! clock from before the request that renewed it. Writes do not depend on that, because they check
//! the row itself.

use std::time::Duration;

use rand::RngExt as _;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Database, DatabaseError, executor::Executor, statements};

/// Times of the lease.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// How long others wait for a leader that vanished.
    pub duration: Duration,
    /// How often the leader renews.
    pub renew_every: Duration,
    /// How often a standby checks, so a planned step-down takes at most this long.
    pub poll_every: Duration,
    /// How long a coordinator that stepped down lets others take the lease first.
    pub stand_back: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(3),
            renew_every: Duration::from_secs(1),
            poll_every: Duration::from_millis(250),
            stand_back: Duration::from_secs(2),
        }
    }
}

/// This coordinator's role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It leads; `term` rises with each change of leader.
    Leader { term: u64 },
    /// It does not lead; this is the leader's address, if known.
    Standby { leader_address: Option<String> },
}

impl Leadership {
    /// The error with which calls are refused.
    #[must_use]
    pub fn refusal(&self) -> DatabaseError {
        match self {
            Self::Leader { .. } => DatabaseError::NotLeader { leader: None },
            Self::Standby { leader_address } => DatabaseError::NotLeader {
                leader: leader_address.clone(),
            },
        }
    }
}

/// Acquires, renews and releases the lease. One per process; run it as a task.
pub struct LeaseKeeper {
    database: Database,
    holder: Uuid,
    address: String,
    times: LeaseTimes,
    leadership: watch::Sender<Leadership>,
    /// Why the lease can be neither read nor taken.
    trouble: watch::Sender<Option<String>>,
    step_down: watch::Sender<u64>,
}

/// Gives up the lease on behalf of other parts of the process.
#[derive(Clone, Debug)]
pub struct StepDown {
    requests: watch::Sender<u64>,
    leadership: watch::Receiver<Leadership>,
}

impl StepDown {
    /// For a process without a lease to give up.
    #[must_use]
    pub fn of(leadership: watch::Receiver<Leadership>) -> Self {
        Self {
            requests: watch::Sender::new(0),
            leadership,
        }
    }

    /// A channel that shows whether this coordinator leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Requests the step-down without waiting for it.
    pub fn request(&self) {
        self.requests.send_modify(|count| *count += 1);
    }

    /// Returns once this coordinator no longer leads.
    pub async fn step_down(&self) {
        self.request();
        let mut leadership = self.leadership.clone();
        // An error means that the keeper has ended, and with it the leadership.
        let _ = leadership
            .wait_for(|now| matches!(now, Leadership::Standby { .. }))
            .await;
    }
}

impl LeaseKeeper {
    /// `holder` names this process and no other; `address` is the one given to clients.
    #[must_use]
    pub fn new(database: Database, holder: Uuid, address: String, times: LeaseTimes) -> Self {
        let (leadership, _) = watch::channel(Leadership::Standby {
            leader_address: None,
        });
        let (step_down, _) = watch::channel(0);
        Self {
            database,
            holder,
            address,
            times,
            leadership,
            trouble: watch::Sender::new(None),
            step_down,
        }
    }

    /// Why the lease can be neither read nor taken; `None`: it can.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    #[must_use]
    pub fn holder(&self) -> Uuid {
        self.holder
    }

    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    #[must_use]
    pub fn step_down_handle(&self) -> StepDown {
        StepDown {
            requests: self.step_down.clone(),
            leadership: self.leadership.subscribe(),
        }
    }

    /// Runs until cancelled, then releases the lease so that a standby need not wait until it
    /// expires.
    pub async fn run(self, cancel: CancellationToken) {
        let mut requests = self.step_down.subscribe();
        let mut stands_back_until = Instant::now();
        loop {
            let looked = self.look(Instant::now() >= stands_back_until).await;
            self.note_trouble(looked.as_ref().err().map(ToString::to_string));
            let pause = match looked {
                Ok(Some((term, until))) => {
                    self.publish(Leadership::Leader { term });
                    tracing::info!(term, "leading");
                    if self.lead(term, until, &mut requests, &cancel).await {
                        stands_back_until = Instant::now() + self.times.stand_back;
                    }
                    Duration::ZERO
                }
                Ok(None) => jittered(self.times.poll_every),
                Err(_) => jittered(self.times.renew_every),
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes the lease if it is free and `may_take`, else reads who has it. Returns the term, and
    /// the time until which the lease certainly holds.
    async fn look(&self, may_take: bool) -> Result<Option<(u64, Instant)>, DatabaseError> {
        let asked_at = Instant::now();
        let mut loan = self.database.lease_connection().await?;
        let result = async {
            let executor = Executor::new(&*loan.client()?, &self.database);
            if let Some(row) = executor.query_opt(statements::LEASE_READ, &[]).await? {
                let (holder, address, held): (Uuid, String, bool) =
                    (row.get("holder"), row.get("address"), row.get("held"));
                if held && holder != self.holder {
                    self.publish(Leadership::Standby {
                        leader_address: Some(address),
                    });
                    return Ok(None);
                }
            }
            if !may_take {
                return Ok(None);
            }
            let milliseconds = milliseconds(self.times.duration);
            let taken = executor
                .query_opt(
                    statements::LEASE_ACQUIRE,
                    &[&self.holder, &self.address, &milliseconds],
                )
                .await?;
            Ok(taken.map(|row| {
                (
                    row.get::<_, i64>("term").unsigned_abs(),
                    asked_at + self.times.duration,
                )
            }))
        }
        .await;
        loan.end(result)
    }

    /// Renews until the lease is lost, is given up (true), or the process ends.
    async fn lead(
        &self,
        term: u64,
        mut until: Instant,
        requests: &mut watch::Receiver<u64>,
        cancel: &CancellationToken,
    ) -> bool {
        requests.mark_unchanged();
        let mut next = Instant::now() + self.times.renew_every;
        loop {
            let asked = tokio::select! {
                biased;
                () = cancel.cancelled() => true,
                _ = requests.changed() => true,
                () = tokio::time::sleep_until(next.min(until)) => false,
            };
            if asked {
                // Refuse calls first and release then, so that nobody writes in between.
                self.publish(Leadership::Standby {
                    leader_address: None,
                });
                if let Err(error) = self
                    .change(
                        statements::LEASE_RELEASE,
                        term,
                        None,
                        self.times.renew_every,
                    )
                    .await
                {
                    tracing::warn!("could not release the lease, it will expire: {error}");
                }
                tracing::info!(term, "stepped down");
                return true;
            }
            let asked_at = Instant::now();
            if asked_at >= until {
                break;
            }
            match self
                .change(
                    statements::LEASE_RENEW,
                    term,
                    Some(self.times.duration),
                    until - asked_at,
                )
                .await
            {
                Ok(true) => {
                    until = asked_at + self.times.duration;
                    next = asked_at + self.times.renew_every;
                }
                Ok(false) => break,
                // Retried while the lease holds.
                Err(error) => {
                    tracing::warn!("could not renew the lease: {error}");
                    next = Instant::now() + self.times.poll_every;
                }
            }
        }
        tracing::warn!(term, "lost the lease");
        self.publish(Leadership::Standby {
            leader_address: None,
        });
        false
    }

    /// Compares and sets (holder, term), within a time limit. False: the row belongs to another
    /// holder by now.
    async fn change(
        &self,
        statement: statements::Statement,
        term: u64,
        duration: Option<Duration>,
        patience: Duration,
    ) -> Result<bool, DatabaseError> {
        let work = async {
            let mut loan = self.database.lease_connection().await?;
            let term = i64::try_from(term).unwrap_or(i64::MAX);
            let executor = Executor::new(&*loan.client()?, &self.database);
            let result = match duration.map(milliseconds) {
                Some(milliseconds) => {
                    executor
                        .execute(statement, &[&self.holder, &term, &milliseconds])
                        .await
                }
                None => executor.execute(statement, &[&self.holder, &term]).await,
            };
            loan.end(result)
        };
        match tokio::time::timeout(patience, work).await {
            Ok(result) => Ok(result? == 1),
            Err(_) => Err(DatabaseError::unavailable(
                "the database did not answer in time",
            )),
        }
    }

    fn note_trouble(&self, now: Option<String>) {
        self.trouble.send_if_modified(|before| {
            let is_new = *before != now;
            if is_new && let Some(reason) = &now {
                tracing::warn!("the lease can not be taken: {reason}");
            }
            *before = now;
            is_new
        });
    }

    fn publish(&self, now: Leadership) {
        self.leadership.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Half to all of a wait, so that many coordinators do not retry in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..1.0))
}
