use super::*;

fn key(path: &str) -> v1::Key {
    v1::Key {
        source: "films".into(),
        path: path.into(),
        ..Default::default()
    }
}

fn edge(name: &str) -> EdgeRun {
    EdgeRun {
        name: name.into(),
        epoch: 1,
    }
}

fn claim(resolver: &Resolver, path: &str, by: &str, passed_over: &str) -> Claim {
    let caller = Caller {
        edge: edge(by),
        passed_over,
        since: Instant::now(),
    };
    let seen = resolver.ended(&key(path));
    let claimed = resolver.claim(&key(path), &caller, seen, |edge| edge.name != "gone");
    claimed.unwrap()
}

fn keeper(resolver: &Resolver, path: &str, by: &str, passed_over: &str) -> Option<String> {
    let caller = Caller {
        edge: edge(by),
        passed_over,
        since: Instant::now(),
    };
    let found = resolver.keeper(&key(path), &caller, |edge| edge.name != "gone");
    found.map(|edge| edge.name)
}

#[tokio::test(start_paused = true)]
async fn one_asks_and_the_others_wait_until_it_is_bound() {
    let resolver = Resolver::default();
    let seen = resolver.ended(&key("a"));
    assert!(matches!(claim(&resolver, "a", "east", ""), Claim::Ask));
    let Claim::Wait(mut ended, _) = claim(&resolver, "a", "west", "") else {
        panic!("expected to wait");
    };
    assert!(matches!(claim(&resolver, "b", "west", ""), Claim::Ask));
    resolver.bound(&key("a"));
    assert!(ended.changed().await.is_err());
    let caller = Caller {
        edge: edge("west"),
        passed_over: "",
        since: Instant::now(),
    };
    let late = resolver.claim(&key("a"), &caller, seen, |_| true);
    assert!(matches!(late, Ok(Claim::LookAgain)));
}

#[test]
fn a_key_that_nobody_asks_for_is_waited_for_by_nobody() {
    let resolver = Resolver::default();
    let asked = |path: &str, seen| resolver.asked(&key(path), seen);
    let seen = resolver.ended(&key("a"));
    assert!(asked("a", seen).is_none());
    assert!(matches!(claim(&resolver, "a", "east", ""), Claim::Ask));
    assert!(matches!(asked("a", seen), Some(Claim::Wait(..))));
    resolver.bound(&key("a"));
    assert!(matches!(asked("a", seen), Some(Claim::LookAgain)));
    // Other keys' ends make nobody look again, but for a few with the same counter.
    let looking = (0..100).filter(|n| asked(&n.to_string(), 0).is_some());
    assert!(looking.count() < 10);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_long_joins_the_edge_that_asks_while_it_is_there() {
    let resolver = Resolver::default();
    for (path, by) in [("a", "east"), ("b", "gone")] {
        assert!(matches!(claim(&resolver, path, by, ""), Claim::Ask));
    }
    assert!(matches!(claim(&resolver, "b", "west", ""), Claim::Ask));
    tokio::time::advance(JOIN_AFTER).await;
    let joined = |at: Claim| matches!(at, Claim::Join(edge) if edge.name == "east");
    assert!(joined(claim(&resolver, "a", "west", "")));
    for (by, passed_over) in [("east", ""), ("west", "east")] {
        let waits = claim(&resolver, "a", by, passed_over);
        assert!(matches!(waits, Claim::Wait(..)), "{by} {passed_over}");
    }
    tokio::time::advance(PROBE_LEASE).await;
    assert!(joined(claim(&resolver, "a", "west", "")));
    // Passed over: its report may be on the way.
    let Claim::Wait(_, until) = claim(&resolver, "a", "west", "east") else {
        panic!("expected to wait");
    };
    assert_eq!(until, Instant::now() + REPORTED_WITHIN);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_is_named_to_the_others_until_it_fails_or_falls_silent() {
    let resolver = Resolver::default();
    assert!(matches!(claim(&resolver, "a", "east", ""), Claim::Ask));
    let Claim::Wait(mut ended, _) = claim(&resolver, "a", "west", "") else {
        panic!("expected to wait");
    };
    let is_present = |edge: &EdgeRun| edge.name != "gone";
    resolver.keep(&key("a"), edge("east"), is_present);
    assert!(ended.changed().await.is_err());
    let named = |by, passed_over| keeper(&resolver, "a", by, passed_over);
    assert_eq!(named("west", ""), Some("east".into()));
    assert_eq!((named("east", ""), named("west", "east")), (None, None));
    // One that was not told to ask replaces nobody who is there.
    resolver.keep(&key("a"), edge("west"), is_present);
    assert_eq!(named("south", ""), Some("east".into()));
    assert!(matches!(claim(&resolver, "a", "west", "east"), Claim::Ask));
    resolver.keep(&key("a"), edge("west"), is_present);
    assert_eq!(named("south", ""), Some("west".into()));
    resolver.keep(&key("b"), edge("gone"), is_present);
    assert_eq!(keeper(&resolver, "b", "west", ""), None);
    resolver.keep(&key("b"), edge("west"), is_present);
    assert_eq!(keeper(&resolver, "b", "east", ""), Some("west".into()));
    resolver.bound(&key("b"));
    assert_eq!(keeper(&resolver, "b", "east", ""), None);
    tokio::time::advance(KEPT_FOR).await;
    assert_eq!(named("south", ""), None);
}

#[tokio::test(start_paused = true)]
async fn what_an_edge_asked_ends_with_its_session() {
    let resolver = Resolver::default();
    assert!(matches!(claim(&resolver, "a", "east", ""), Claim::Ask));
    let Claim::Wait(mut ended, _) = claim(&resolver, "a", "west", "") else {
        panic!("expected to wait");
    };
    resolver.keep(&key("b"), edge("east"), |_| true);
    resolver.forget_edge("east", 1);
    assert!(ended.changed().await.is_err());
    assert!(matches!(claim(&resolver, "a", "west", ""), Claim::Ask));
    assert_eq!(keeper(&resolver, "b", "west", ""), None);
    resolver.forget_edge("west", 2);
    assert!(matches!(claim(&resolver, "a", "east", ""), Claim::Wait(..)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_probe_ends_with_its_lease_for_the_edge_itself() {
    let resolver = Resolver::default();
    assert!(matches!(claim(&resolver, "a", "east", ""), Claim::Ask));
    tokio::time::advance(PROBE_LEASE).await;
    assert!(matches!(claim(&resolver, "a", "east", ""), Claim::Ask));
}

#[tokio::test(start_paused = true)]
async fn an_absent_object_is_remembered_for_a_while() {
    let resolver = Resolver::default();
    let negative = |path: &str, valid_for_ms| v1::KeyNegative {
        key: Some(key(path)),
        http_status: 404,
        valid_for_ms,
    };
    resolver.negative(negative("a", u32::MAX));
    let found = resolver.find_negative(&key("a")).unwrap();
    assert!(found.valid_for_ms <= 60_000);
    tokio::time::advance(MAX_NEGATIVE).await;
    assert!(resolver.find_negative(&key("a")).is_none());
    resolver.negative(negative("a", 0));
    assert!(resolver.find_negative(&key("a")).is_none());
    let long = "x".repeat(LONGEST_REMEMBERED + 1);
    resolver.negative(negative(&long, 60_000));
    assert!(resolver.find_negative(&key(&long)).is_none());
}
