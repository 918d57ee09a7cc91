use super::*;

pub fn live(edge: u32, epoch: u64) -> (Arc<EdgeSession>, OutboxStream) {
    let (outbox, inbox) = Outbox::new();
    let live = EdgeSession {
        edge: EdgeId(edge),
        name: format!("edge-{edge}"),
        url: String::new(),
        epoch,
        store_id: String::new(),
        outbox,
        draining: AtomicBool::new(false),
        reconciled: watch::Sender::new(None),
        status: Mutex::default(),
        sources_confirmed: watch::Sender::new(0),
        invalidations_posted: AtomicU64::new(0),
        invalidations_confirmed: watch::Sender::new(0),
        last_purge: 0,
        purged_objects: AtomicU64::new(0),
        clock_ahead_ms: None,
    };
    (Arc::new(live), inbox)
}

fn message(sequence: u64) -> Message {
    Message::SourcesChanged(v1::SourcesChanged {
        sequence,
        sources: Vec::new(),
    })
}

#[test]
fn every_end_is_counted_from_the_start() {
    let ends = [
        End::Closed,
        End::Transport,
        End::Timeout,
        End::Fenced,
        End::Protocol,
        End::Overflow,
        End::Database,
        End::Shutdown,
        End::Forgotten,
        End::Verify,
        End::NotLeader,
    ];
    assert_eq!(ends.map(End::label), crate::metrics::SESSION_ENDS);
}

#[tokio::test]
async fn a_session_whose_opening_fails_is_not_left_in_the_registry() {
    let registry = Registry::default();
    let (first, _inbox) = live(1, 1);
    drop(registry.register(&first));
    assert!(registry.get(first.edge).is_none());
    let (second, _inbox) = live(1, 2);
    registry.register(&second).keep();
    assert!(registry.get(second.edge).is_some());
}

#[tokio::test]
async fn a_newer_session_fences_the_older_whose_leave_changes_nothing() {
    let registry = Registry::default();
    let (old, _inbox) = live(1, 1);
    let (new, _inbox) = live(1, 2);
    registry.join(Arc::clone(&old));
    registry.join(new);
    old.outbox.ended().await;
    assert_eq!(old.outbox.end_reason(), Some(End::Fenced));
    assert!(!registry.leave(EdgeId(1), 1));
    assert!(registry.get(EdgeId(1)).is_some());
    assert!(registry.leave(EdgeId(1), 2));
    assert_eq!(registry.take_lost(Duration::ZERO).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_push_names_who_did_not_confirm() {
    let registry = Registry::default();
    let (quick, mut inbox) = live(1, 1);
    let (slow, _slow_inbox) = live(2, 1);
    registry.join(Arc::clone(&quick));
    registry.join(slow);
    let confirm = async {
        inbox.next().await.unwrap().unwrap();
        quick.sources_confirmed.send_replace(1);
    };
    let push = registry.push(Confirmation::Sources, message, Duration::from_secs(2));
    let (outcome, ()) = tokio::join!(push, confirm);
    assert_eq!(outcome.confirmed, ["edge-1"]);
    assert_eq!(outcome.unconfirmed, ["edge-2"]);
}

#[tokio::test]
async fn any_number_of_commits_waits_as_one() {
    let (live, mut inbox) = live(1, 1);
    for sequence in 1..=100_000 {
        let revision = sequence;
        live.outbox.commit(v1::Committed { sequence, revision });
    }
    live.outbox.post(message(1));
    let first = inbox.next().await.unwrap().unwrap().message;
    assert_eq!(
        first,
        Some(message(1)),
        "nothing overtakes the first message"
    );
    let newest = inbox.next().await.unwrap().unwrap().message;
    assert!(matches!(newest, Some(Message::Committed(it)) if it.sequence == 100_000));
    live.outbox.heartbeat();
    let again = inbox.next().await.unwrap().unwrap().message;
    assert!(matches!(again, Some(Message::Committed(it)) if it.sequence == 100_000));
    assert_eq!(live.outbox.end_reason(), None);
}

#[tokio::test]
async fn an_edge_that_takes_nothing_ends_its_session() {
    let (live, _inbox) = live(1, 1);
    for sequence in 0..=OUTBOX_MESSAGES as u64 {
        live.outbox.post(message(sequence));
    }
    assert_eq!(live.outbox.end_reason(), Some(End::Overflow));
}
