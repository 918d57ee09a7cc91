use std::task::Waker;

use super::{
    super::channel::{self, Bearer},
    *,
};

fn greeted() -> (Arc<Link>, u64) {
    let link = Link::new("edge".into());
    let endpoint = tonic::transport::Endpoint::from_static("http://127.0.0.1:1");
    let channel = endpoint.connect_lazy();
    let session = link.begin(channel::service(channel, Bearer::default()));
    (link, session)
}

fn ready() -> (Arc<Link>, u64) {
    let (link, session) = greeted();
    link.welcomed(1);
    link.ready();
    (link, session)
}

fn next(link: &Link, session: u64) -> NextItem {
    link.next(session, &Context::from_waker(Waker::noop()))
}

fn entry() -> EntryId {
    "00000000-0000-8000-8000-000000000001".parse().unwrap()
}

fn lose(link: &Link) -> bool {
    link.removed(
        Removal::Nothing(entry()),
        vec![3],
        v1::RemovalReason::Corrupt,
    )
}

fn store(link: &Link) {
    link.stored(entry(), v1::EntryObserved::default, Vec::new(), 7);
}

fn evict(link: &Link) -> bool {
    let removal = Removal::Chunks(entry(), vec![3]);
    link.removed(removal, vec![3], v1::RemovalReason::Evicted)
}

#[tokio::test]
async fn what_is_lost_while_the_inventory_is_compared_is_told_behind_it() {
    let (link, session) = greeted();
    assert!(lose(&link), "its row may have been found right just before");
    let NextItem::Message(told) = next(&link, session) else {
        panic!("the row would stay without bytes");
    };
    assert!(matches!(*told, Message::ChunksRemoved(it) if it.indexes == [3]));
}

#[tokio::test]
async fn what_was_lost_and_fetched_again_is_not_dropped_with_its_old_row() {
    let (link, _) = ready();
    assert!(lose(&link));
    // The chunk may be present again by now.
    assert_eq!(link.committed(1), []);
    let evicted = Removal::Chunks(entry(), vec![3]);
    assert!(link.removed(evicted.clone(), vec![3], v1::RemovalReason::Evicted));
    assert_eq!(link.committed(2), [evicted]);
}

#[tokio::test]
async fn nothing_is_dropped_for_space_before_rows_and_disk_agree() {
    let (link, _) = greeted();
    link.welcomed(1);
    assert!(!evict(&link));
    link.ready();
    assert!(evict(&link));
}

#[tokio::test]
async fn a_coordinator_that_does_not_read_costs_bounded_memory_and_no_session() {
    let (link, session) = ready();
    assert!(evict(&link));
    for _ in 0..MAX_BACKLOG + 10_000 {
        store(&link);
    }
    assert_eq!(link.state.lock().backlog.len(), MAX_BACKLOG);
    assert!(!link.state.lock().overflowed);
    assert!(!link.has_room(), "state waits where it is kept");
    assert!(!evict(&link), "what is said again must not be about to go");
    while let NextItem::Message(_) = next(&link, session) {}
    assert_eq!(
        next(&link, session),
        NextItem::Nothing,
        "a chunk whose row is about to go would be said again"
    );
    assert_eq!(link.committed(1).len(), 1);
    let NextItem::Unreported(unreported) = next(&link, session) else {
        panic!("what did not fit would have no row");
    };
    assert_eq!((unreported.entry, unreported.is_known), (entry(), true));
    assert!(unreported.origin_bytes > 0);
    assert_eq!(next(&link, session), NextItem::Nothing);
    assert!(evict(&link));
}

#[tokio::test]
async fn the_stream_of_an_older_session_takes_nothing_of_a_newer_one() {
    let (link, older) = ready();
    let endpoint = tonic::transport::Endpoint::from_static("http://127.0.0.1:1");
    let channel = endpoint.connect_lazy();
    let newer = link.begin(channel::service(channel, Bearer::default()));
    assert!(lose(&link));
    assert_eq!(next(&link, older), NextItem::Ended);
    assert!(matches!(next(&link, newer), NextItem::Message(_)));
    link.end("over".into());
    assert_eq!(next(&link, newer), NextItem::Ended);
}
