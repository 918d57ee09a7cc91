//! The end of a process: a signal or a failed task cancels one token, tasks drain within one grace
//! period.

use std::future::Future;
use std::io::Write as _;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// A token that SIGTERM or SIGINT cancels. A second signal of the same kind has no effect: the
/// grace period limits the shutdown. SIGHUP, which log rotation and reloads send, ends no process.
pub fn token_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Registered for good: from now on it has no effect beyond that of its other receivers.
    drop(signal(SignalKind::hangup())?);
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = cancel.cancelled() => return,
        };
        tracing::info!(signal = name, "shutting down");
        cancel.cancel();
    });
    Ok(token)
}

/// An error and its causes on one line, each once: many errors name their cause themselves.
#[must_use]
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text.extend([separator, &cause]);
        }
    }
    text
}

/// Reports why a process ends. Its standard error may be closed.
pub fn report(program: &str, error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "{program}: {}", describe(error));
}

/// Why a process ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    #[error("task {name} ended although nothing asked it to")]
    EndedEarly { name: &'static str },
    #[error("task {name} failed: {source}")]
    Failed {
        name: &'static str,
        source: anyhow::Error,
    },
    #[error("task {name} panicked")]
    Panicked { name: &'static str },
    #[error("tasks still ran when the grace period of {grace:?} was over: {}", names.join(", "))]
    GraceOver {
        grace: Duration,
        names: Vec<&'static str>,
    },
}

/// The long-running tasks of a process. Each runs until the token is cancelled; one that ends
/// earlier ends the process, because half a service helps nobody and hides the loss.
pub struct TaskSet {
    tasks: JoinSet<anyhow::Result<()>>,
    names: Vec<(Id, &'static str)>,
    shutdown: CancellationToken,
}

impl TaskSet {
    pub fn new(shutdown: CancellationToken) -> Self {
        TaskSet {
            tasks: JoinSet::new(),
            names: Vec::new(),
            shutdown,
        }
    }

    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(task);
        self.names.push((handle.id(), name));
    }

    /// Spawns a task that cannot fail.
    pub fn spawn_infallible(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Runs until the token is cancelled or a task ends, then cancels the token and gives the
    /// others `grace` to end. Returns the first failure.
    pub async fn run(mut self, grace: Duration) -> Result<(), TaskFailure> {
        let shutdown = self.shutdown.clone();
        let mut failure = None;
        if let Some(Some(ended)) = shutdown.run_until_cancelled(self.next_ended()).await {
            // Token and task may be ready in the same poll, and the task wins: its end was
            // requested then.
            let was_asked = shutdown.is_cancelled();
            if !(was_asked && matches!(ended, TaskFailure::EndedEarly { .. })) {
                failure = Some(ended);
            }
        }
        shutdown.cancel();
        let drained = tokio::time::timeout(grace, async {
            while let Some(ended) = self.next_ended().await {
                // A clean end was requested, and is no failure.
                if matches!(ended, TaskFailure::EndedEarly { .. }) {
                    continue;
                }
                tracing::error!(error = %ended, "a task failed while shutting down");
                // A task that ended too early may have ended because this one failed.
                if matches!(failure, None | Some(TaskFailure::EndedEarly { .. })) {
                    failure = Some(ended);
                }
            }
        })
        .await;
        if drained.is_err() {
            let names = self.names.iter().map(|(_, name)| *name).collect();
            failure.get_or_insert(TaskFailure::GraceOver { grace, names });
            self.tasks.shutdown().await;
        }
        failure.map_or(Ok(()), Err)
    }

    /// How the next task ended; `None` when there are no more. Cancel-safe, as `JoinSet` is.
    async fn next_ended(&mut self) -> Option<TaskFailure> {
        let joined: Result<(Id, anyhow::Result<()>), JoinError> =
            self.tasks.join_next_with_id().await?;
        let id = joined.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let at = self.names.iter().position(|(known, _)| *known == id);
        let name = at.map_or("unnamed", |at| self.names.swap_remove(at).1);
        Some(match joined {
            Ok((_, Ok(()))) => TaskFailure::EndedEarly { name },
            Ok((_, Err(source))) => TaskFailure::Failed { name, source },
            Err(_) => TaskFailure::Panicked { name },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn until_cancelled(
        token: &CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let token = token.clone();
        async move {
            token.cancelled().await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_requested_end_is_clean() {
        let token = CancellationToken::new();
        let mut tasks = TaskSet::new(token.clone());
        tasks.spawn("a", until_cancelled(&token));
        tasks.spawn("b", until_cancelled(&token));
        token.cancel();
        assert!(tasks.run(GRACE).await.is_ok());
    }

    #[tokio::test]
    async fn a_task_that_obeys_at_once_has_not_ended_early() {
        let token = CancellationToken::new();
        let mut tasks = TaskSet::new(token.clone());
        let cancel = token.clone();
        tasks.spawn("a", async move {
            cancel.cancel();
            Ok(())
        });
        assert!(tasks.run(GRACE).await.is_ok());
    }

    #[tokio::test]
    async fn a_task_that_ends_early_takes_the_others_with_it() {
        let token = CancellationToken::new();
        let mut tasks = TaskSet::new(token.clone());
        tasks.spawn("a", until_cancelled(&token));
        tasks.spawn("b", async { Ok(()) });
        let failure = tasks.run(GRACE).await.unwrap_err();
        assert!(
            matches!(failure, TaskFailure::EndedEarly { name: "b" }),
            "{failure}"
        );
        assert!(token.is_cancelled());
    }

    #[tokio::test]
    async fn the_cause_is_named_before_its_consequence() {
        let token = CancellationToken::new();
        let mut tasks = TaskSet::new(token.clone());
        let (failing, seen) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn("follows", async move {
            let _ = seen.await;
            Ok(())
        });
        tasks.spawn("fails", async move {
            drop(failing);
            // The other one is joined first.
            tokio::task::yield_now().await;
            token.cancelled().await;
            anyhow::bail!("no rights")
        });
        let failure = tasks.run(GRACE).await.unwrap_err();
        assert_eq!(failure.to_string(), "task fails failed: no rights");
    }

    #[test]
    fn a_cause_is_described_once() {
        let inner = anyhow::anyhow!("disk is full").context("can not write: disk is full");
        assert_eq!(
            describe(&inner.context("at the start")),
            "at the start: can not write: disk is full"
        );
    }

    #[tokio::test]
    async fn failures_and_panics_are_named() {
        let mut tasks = TaskSet::new(CancellationToken::new());
        tasks.spawn("a", async { anyhow::bail!("no more space") });
        let failure = tasks.run(GRACE).await.unwrap_err();
        assert_eq!(failure.to_string(), "task a failed: no more space");
        let mut tasks = TaskSet::new(CancellationToken::new());
        tasks.spawn("p", async { panic!("for the test") });
        assert!(matches!(
            tasks.run(GRACE).await,
            Err(TaskFailure::Panicked { name: "p" })
        ));
    }

    #[tokio::test]
    async fn the_grace_period_ends_what_hangs() {
        let token = CancellationToken::new();
        let mut tasks = TaskSet::new(token.clone());
        tasks.spawn("hangs", std::future::pending());
        token.cancel();
        let failure = tasks.run(Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(&failure, TaskFailure::GraceOver { names, .. } if names == &["hangs"]));
    }
}
