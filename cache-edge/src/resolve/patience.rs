//! Retries a request to an origin where that may help, while the client's request is held: the
//! client notices only the delay.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::now_ms;
use crate::upstream::{OriginError, Source, counters::Counters};
use service_kit::backoff::Backoff;

/// New attempts begin within this time, and one that stalls ends within the origin's stall
/// time-out. Together they meet the 15 s that `CACHE_DESIGN.md` allows for a cold object whose
/// origin is down.
const ATTEMPTS_FOR: Duration = Duration::from_secs(4);
/// How often an invalidation may overtake an answer before the client gets an error.
const MAX_OVERTAKEN: u32 = 8;

/// Returns the first success, or the error that ended the attempts. Counts each failed attempt.
pub async fn ask<T, F>(
    source: &Source,
    counters: &Counters,
    attempt: impl Fn() -> F,
) -> Result<T, OriginError>
where
    F: Future<Output = Result<T, OriginError>>,
{
    let begun = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(150), Duration::from_secs(2));
    loop {
        let error = match believed(&attempt).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        count(counters, source.name(), &error);
        source.heed(&error, now_ms());
        let wait = backoff
            .wait(rand::random())
            .max(error.retry_after().unwrap_or_default());
        if !error.is_transient() || begun.elapsed() + wait > ATTEMPTS_FOR {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Counts an origin's fault.
pub fn count(counters: &Counters, source: &str, error: &OriginError) {
    if error.is_of_origin() {
        counters.origin_failed(source);
    }
}

/// Makes one attempt, and repeats it while an invalidation overtakes the answer.
pub async fn believed<T, F>(attempt: impl Fn() -> F) -> Result<T, OriginError>
where
    F: Future<Output = Result<T, OriginError>>,
{
    for _ in 0..MAX_OVERTAKEN {
        match attempt().await {
            Err(OriginError::Overtaken) => {}
            ended => return ended,
        }
    }
    Err(OriginError::Overtaken)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use chunkcache_proto::v1;

    use super::*;

    fn source() -> Source {
        Source::new(v1::Source {
            name: "films".into(),
            base_url: "http://origin/".into(),
            ..v1::Source::default()
        })
        .unwrap()
    }

    /// Answers according to the script, by the number of the attempt.
    async fn run(
        script: impl Fn(u32) -> Result<(), OriginError>,
    ) -> (Result<u32, OriginError>, u32) {
        let (asked, faults) = (AtomicU32::new(0), AtomicU64::new(0));
        let source = source();
        let counters = Counters::default();
        let answer = ask(&source, &counters, || {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            let result = script(number);
            if result
                .as_ref()
                .is_err_and(|error| *error != OriginError::Overtaken)
            {
                faults.fetch_add(1, Ordering::Relaxed);
            }
            async move { result.map(|()| number) }
        });
        let answer = answer.await;
        let asked = asked.load(Ordering::Relaxed);
        let failed = counters.origin_errors.get();
        let faults = faults.load(Ordering::Relaxed);
        assert_eq!(
            failed, faults,
            "the origin's faults are counted, and no other"
        );
        (answer, asked)
    }

    #[tokio::test]
    async fn what_will_not_pass_is_told_at_once() {
        let (answer, asked) = run(|_| Err(OriginError::Refused { status: 403 })).await;
        assert!(answer.is_err());
        assert_eq!(asked, 1);
    }

    #[tokio::test]
    async fn what_passes_is_asked_again() {
        let refused = || OriginError::Unavailable {
            status: 503,
            retry_after: None,
        };
        let (answer, _) = run(|n| if n == 0 { Err(refused()) } else { Ok(()) }).await;
        assert_eq!(answer, Ok(1));
    }

    #[tokio::test]
    async fn an_overtaken_answer_is_asked_for_again_at_once() {
        let overtaken = |until| {
            move |n| {
                if n < until {
                    Err(OriginError::Overtaken)
                } else {
                    Ok(())
                }
            }
        };
        let (answer, asked) = run(overtaken(2)).await;
        assert_eq!((answer, asked), (Ok(2), 3));
        let (answer, asked) = run(overtaken(u32::MAX)).await;
        assert!(answer.is_err() && asked == MAX_OVERTAKEN, "{asked}");
    }
}
