use std::time::{Duration, Instant};

use super::{RequestClass::*, *};

const TTL: Duration = Duration::from_millis(2_500);

struct Bench {
    term: LeaseTerm,
    quota: Quota,
}

impl Bench {
    /// In a session, for a source with `max_connections`.
    fn new(max_connections: u32, max_rate: u64) -> Self {
        let term = LeaseTerm::default();
        let quota = Quota::new(term.clone(), Arc::default());
        quota.set_limits(max_connections, max_rate);
        term.set_in_session(true);
        quota.begin_session();
        Self { term, quota }
    }

    fn lease(&self, sequence: u64, connections: u32, floor: u32) {
        let number = self.term.report(Instant::now());
        self.term.renew(number, TTL);
        self.quota.set_lease(v1::QuotaLease {
            source: "films".into(),
            sequence,
            connections,
            floor_connections: floor,
            bytes_per_second: 1_000_000,
            floor_bytes_per_second: 200_000,
        });
    }

    /// Lets the last lease expire, this long ago.
    fn expire(&self, ago: Duration) {
        self.term.0.lock().expires = Some(Instant::now() - ago);
        let _ = self.quota.enforce();
    }

    fn enter(&self, class: RequestClass) -> Option<ConnectionPermit> {
        use futures_util::FutureExt as _;
        self.quota.acquire(class).now_or_never()?.ok()
    }

    fn all(&self, class: RequestClass) -> Vec<ConnectionPermit> {
        std::iter::from_fn(|| self.enter(class)).take(20).collect()
    }

    fn said(&self) -> Option<(u64, u32, u32, u32)> {
        let said = self.quota.to_report("films", false)?;
        Some((said.sequence, said.held, said.wanted, said.urgent))
    }
}

#[test]
fn leases_are_good_from_when_the_report_was_sent_however_late_the_answer_is() {
    let term = LeaseTerm::default();
    let now = Instant::now();
    assert_eq!(term.state(now), (LeaseState::Unknown, None));
    term.set_in_session(true);
    assert_eq!(term.state(now), (LeaseState::Leased, None), "it is asked");
    let first = term.report(now);
    let _second = term.report(now + TTL);
    term.renew(first, TTL);
    let state = |after: u64| term.state(now + Duration::from_millis(after)).0;
    assert_eq!(state(2_499), LeaseState::Leased);
    assert_eq!(state(2_500), LeaseState::Expired);
    assert_eq!(state(4_999), LeaseState::Expired);
    assert_eq!(state(5_000), LeaseState::Unknown);
    term.renew(first, TTL);
    assert_eq!(state(2_500), LeaseState::Expired, "answered once");
    term.set_in_session(false);
    assert_eq!(
        state(2_499),
        LeaseState::Leased,
        "without a session as well"
    );
    term.renew(2, TTL);
    assert_eq!(state(2_500), LeaseState::Expired, "of a session that ended");
}

#[test]
fn nothing_is_granted_before_the_coordinator_says_so() {
    let bench = Bench::new(4, 0);
    assert_eq!(bench.all(Foreground).len(), 0);
    assert_eq!(bench.all(Assigned).len(), 20, "it counts these itself");
    bench.lease(1, 3, 1);
    assert_eq!(bench.all(Foreground).len(), 3);
    assert_eq!(bench.all(Background).len(), 2, "the last is for a viewer");
    let unlimited = Bench::new(0, 0);
    assert_eq!(unlimited.all(Foreground).len(), 20);
    assert_eq!(unlimited.said(), None);
}

#[test]
fn all_that_is_open_comes_down_to_the_floor_when_the_lease_expires() {
    let bench = Bench::new(6, 0);
    bench.lease(1, 3, 2);
    let own = bench.all(Foreground);
    let assigned = [bench.enter(Assigned), bench.enter(Assigned)];
    assert_eq!((own.len(), bench.quota.enforce()), (3, None));
    bench.expire(Duration::ZERO);
    let excess = bench.quota.enforce().unwrap();
    assert_eq!((excess.connections, excess.is_expired), (3, true));
    assert!(bench.enter(Assigned).is_none());
    drop(own);
    assert!(bench.enter(Foreground).is_none(), "two are assigned");
    drop(assigned);
    assert_eq!(bench.quota.enforce().unwrap().connections, 0);
}

#[test]
fn what_was_not_granted_is_used_when_the_leases_of_others_have_expired_too() {
    let bench = Bench::new(6, 1);
    bench.lease(1, 1, 2);
    let rate = || {
        let state = bench.quota.0.state.lock();
        state.rate(bench.quota.lease_state())
    };
    assert_eq!(rate(), Some(1_000_000));
    bench.expire(Duration::from_millis(2_499));
    assert_eq!(bench.all(Foreground).len(), 1);
    assert_eq!(rate(), Some(200_000));
    bench.expire(TTL);
    assert_eq!(bench.all(Foreground).len(), 2);
    let never = Bench::new(6, 4_000_000);
    never.term.set_in_session(false);
    assert_eq!(never.all(Foreground).len(), 1);
}

#[test]
fn a_smaller_lease_is_reported_as_held_until_it_is() {
    let bench = Bench::new(6, 0);
    assert_eq!(bench.said(), Some((0, 0, 0, 0)), "first of all");
    bench.lease(1, 3, 1);
    assert_eq!(bench.said(), Some((1, 3, 0, 0)));
    let mut own = bench.all(Foreground);
    bench.lease(2, 1, 1);
    assert_eq!(bench.said(), Some((2, 3, 3, 0)));
    assert!(bench.quota.is_wanted(), "by another edge");
    let excess = bench.quota.enforce().unwrap();
    assert_eq!((excess.connections, excess.is_expired), (2, false));
    own.truncate(1);
    assert_eq!(
        bench.said(),
        Some((2, 1, 3, 0)),
        "less is wanted: a moment later"
    );
    assert_eq!(bench.said(), None);
    assert_eq!(bench.quota.enforce(), None);
}

#[tokio::test]
async fn viewers_that_wait_are_held_and_go_before_others() {
    let bench = Bench::new(6, 0);
    bench.lease(1, 1, 1);
    let first = bench.enter(Foreground);
    let wait = |class| {
        let quota = bench.quota.clone();
        tokio::spawn(async move { quota.acquire(class).await })
    };
    let background = wait(Background);
    let viewer = wait(Foreground);
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert!(bench.quota.is_wanted());
    let (_, _, wanted, urgent) = bench.said().unwrap();
    assert_eq!((wanted, urgent), (3, 1));
    drop(first);
    let permit = viewer.await.unwrap();
    assert!(permit.is_ok() && !background.is_finished());
    drop(permit);
    assert!(background.await.unwrap().is_ok());
}

#[test]
fn an_expected_request_is_asked_for_ahead() {
    let bench = Bench::new(6, 0);
    let _ = bench.said();
    let expected = bench.quota.expect();
    assert_eq!(bench.said(), Some((0, 0, 1, 0)));
    drop(expected);
}

#[test]
fn a_second_request_takes_neither_the_last_permit_nor_one_that_is_waited_for() {
    let bench = Bench::new(4, 0);
    bench.lease(1, 3, 1);
    let first = bench.enter(Foreground).unwrap();
    let second = bench.quota.try_acquire().unwrap();
    assert!(
        bench.quota.try_acquire().is_none(),
        "the last is a viewer's"
    );
    drop(second);
    let rest = bench.all(Foreground);
    assert_eq!(rest.len(), 2);
    let waiting = bench.quota.acquire(Foreground);
    assert!(bench.quota.try_acquire().is_none());
    drop((waiting, rest, first));
}
