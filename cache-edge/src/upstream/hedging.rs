//! A second request in parallel with a late one, up to the heads of their answers.
//!
//! An answer is late if it takes longer than nearly all of its origin's answers. The second request
//! goes to another origin of the source if one is alive, and the first usable answer counts. Both
//! the share of second requests and the number of running ones are bounded, and a second request
//! never waits for a connection. An origin that is slow on purpose gets none.

use std::{
    future::pending,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::{
    Client, OriginError, RequestClass, Response, Source, answer,
    client::{Question, Unanswered},
    quota::ConnectionPermit,
};
use crate::{
    by_source::SourceNames,
    clock::now_ms,
    core::hedging::{HedgeBudget, patience},
};

/// Limit of second requests of this edge that run at a time.
const MAX_RUNNING: usize = 32;
/// When an answer counts as late if little is known of its origin. A question that takes longer is
/// always asked again, whatever the budget, like a failed one: a viewer waits for it.
const LOST_AFTER: Duration = Duration::from_secs(4);

/// The kind of a request; each kind takes a different time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// About an object, or for its whole answer.
    Object,
    /// A range of chunks of a known entry. If it is lost, another edge fetches it.
    Chunks,
    /// A live playlist that does not exist yet: its origin answers once it does (RFC 8216bis,
    /// 6.2.5.2), and a second request would wait as well.
    Blocking,
}

impl RequestKind {
    /// The kind of a question about the object at a URL.
    pub(super) fn of_object(url: &Url) -> Self {
        let mut parameters = url.query().unwrap_or_default().split('&');
        if parameters.any(|it| it.starts_with("_HLS_msn=")) {
            Self::Blocking
        } else {
            Self::Object
        }
    }
}

/// How a late request ended.
#[derive(Clone, Copy, Debug)]
enum HedgeResult {
    /// The answer to the second request counted.
    Won,
    Lost,
    /// There was no second request.
    NoBudget,
}

impl HedgeResult {
    fn label(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
            Self::NoBudget => "no_budget",
        }
    }
}

/// State that the second requests of all sources share.
#[derive(Debug)]
pub struct Hedges {
    running: Arc<Semaphore>,
    names: SourceNames,
    late: Family<[(&'static str, Arc<str>); 2], Counter>,
}

impl Default for Hedges {
    fn default() -> Self {
        Self {
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            names: SourceNames::default(),
            late: Family::default(),
        }
    }
}

impl Hedges {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "origin_hedges",
            "Requests to origins whose answer was late, by what came of a second request",
            self.late.clone(),
        );
    }

    fn count(&self, source: &Source, result: HedgeResult) {
        let name = self.names.label(source.name());
        let labels = [("source", name), ("result", result.label().into())];
        self.late.get_or_create(&labels).inc();
    }
}

/// The right to send a second request.
struct HedgePermit {
    /// For a source with a limit.
    connection: Option<ConnectionPermit>,
    _running: OwnedSemaphorePermit,
}

/// An answer's head, or the reason that there is none.
type Answer = Result<Response, OriginError>;

/// Which of two requests ended first.
enum Ended {
    First(Answer),
    Second(Answer),
}

impl Client {
    /// Asks an origin, and if its answer is late, asks a second time: the origin `other`, if there
    /// is one. Returns the answer that counts and the origin that gave it; its permit is in
    /// `unanswered`.
    pub(super) async fn ask_in_time(
        &self,
        source: &Arc<Source>,
        (index, other): (usize, Option<usize>),
        question: &Question<'_>,
        unanswered: &mut Unanswered<'_>,
    ) -> (usize, Answer) {
        source.hedge_budget.lock().earn();
        // Dropped after the requests, because a permit is free only once its connection is closed.
        let mut spare = Unanswered::new(self, source);
        let begun = Instant::now();
        let mut first = pin!(self.ask_and_time(source, index, question));
        let permit = tokio::select! {
            biased;
            answer = first.as_mut() => return (index, answer),
            permit = self.wait_until_late(source, index, question) => permit,
        };
        spare.permit = permit.connection;
        let beside = other.unwrap_or(index);
        let mut second = pin!(self.ask_and_time(source, beside, question));
        let ended = tokio::select! {
            biased;
            answer = first.as_mut() => Ended::First(answer),
            answer = second.as_mut() => Ended::Second(answer),
        };
        let lost = |answer| {
            self.hedges.count(source, HedgeResult::Lost);
            (index, answer)
        };
        let (mut response, passed_over) = match ended {
            Ended::First(Ok(response)) if !source.fails_over(response.status) => {
                return lost(Ok(response));
            }
            Ended::First(answer) => match second.await {
                Ok(response) if replaces(&response) => {
                    source.judge(index, &answer);
                    (response, passed_over(answer))
                }
                failed => {
                    source.judge(beside, &failed);
                    return lost(answer);
                }
            },
            Ended::Second(Ok(response)) if replaces(&response) => {
                // The answer to the first request would have taken longer.
                let waited = begun.elapsed();
                source.record_time(index, question.kind, waited);
                let silent = OriginError::TimedOut(waited);
                // No time-out will record this failure, because the second request always ends
                // first.
                if beside != index && waited >= LOST_AFTER {
                    source.judge(index, &Err(silent.clone()));
                }
                (response, Some(silent))
            }
            Ended::Second(failed) => {
                source.judge(beside, &failed);
                return lost(first.await);
            }
        };
        self.hedges.count(source, HedgeResult::Won);
        std::mem::swap(&mut unanswered.permit, &mut spare.permit);
        if beside != index {
            response.passed_over = passed_over;
        }
        (beside, Ok(response))
    }

    async fn ask_and_time(
        &self,
        source: &Arc<Source>,
        index: usize,
        question: &Question<'_>,
    ) -> Answer {
        let begun = Instant::now();
        let response = self.ask_origin(source, index, question).await?;
        source.record_time(index, question.kind, begun.elapsed());
        Ok(response)
    }

    /// Returns when the answer is late and a second request may be sent; otherwise never.
    async fn wait_until_late(
        &self,
        source: &Source,
        index: usize,
        question: &Question<'_>,
    ) -> HedgePermit {
        let is_waited_for = matches!(
            question.class,
            RequestClass::Foreground | RequestClass::Assigned
        );
        let may_think = source.may_think() || question.kind == RequestKind::Blocking;
        if !is_waited_for || may_think {
            return pending().await;
        }
        let is_question = question.kind == RequestKind::Object;
        let late_after = source.late_after(index, question.kind);
        let late_after = patience(late_after, LOST_AFTER, is_question);
        tokio::time::sleep(late_after).await;
        if let Some(permit) = self.hedge_permit(source, |budget| budget.take()) {
            return permit;
        }
        self.hedges.count(source, HedgeResult::NoBudget);
        if is_question {
            tokio::time::sleep(LOST_AFTER.saturating_sub(late_after)).await;
            if let Some(permit) = self.hedge_permit(source, |_| true) {
                return permit;
            }
        }
        pending().await
    }

    fn hedge_permit(
        &self,
        source: &Source,
        pay: impl FnOnce(&mut HedgeBudget) -> bool,
    ) -> Option<HedgePermit> {
        let running = self.hedges.running.clone().try_acquire_owned().ok()?;
        let connection = match source.config.max_connections {
            0 => None,
            _ => Some(source.quota.try_acquire()?),
        };
        pay(&mut source.hedge_budget.lock()).then_some(HedgePermit {
            connection,
            _running: running,
        })
    }
}

/// Whether the answer to a second request may replace the first one's. Another origin's refusal
/// says nothing about an object.
fn replaces(response: &Response) -> bool {
    response.status.is_success() || response.status == StatusCode::NOT_MODIFIED
}

/// Why an answer is passed over, if asking again may help.
pub(super) fn passed_over(answer: Answer) -> Option<OriginError> {
    let error = match answer {
        Ok(response) => answer::status_error(response.status, &response.headers, now_ms()).into(),
        Err(error) => error,
    };
    error.is_transient().then_some(error)
}
