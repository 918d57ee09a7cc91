use super::{
    super::channel::{self, Bearer},
    *,
};

fn greeted() -> (Arc<Link>, mpsc::Receiver<v1::SessionRequest>) {
    let link = Link::new("edge".into());
    let (sender, receiver) = mpsc::channel(16);
    let endpoint = tonic::transport::Endpoint::from_static("http://127.0.0.1:1");
    let channel = endpoint.connect_lazy();
    link.begin(sender, channel::service(channel, Bearer::default()));
    (link, receiver)
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

#[tokio::test]
async fn what_is_lost_while_the_inventory_is_compared_is_told_after_it() {
    let (link, mut sent) = greeted();
    assert!(lose(&link), "its row may have been found right just before");
    assert!(sent.try_recv().is_err(), "not before rows and disk agree");
    link.welcomed(1);
    link.ready();
    let told = sent.try_recv().unwrap().message;
    assert!(
        matches!(told, Some(Message::ChunksRemoved(it)) if it.indexes == [3]),
        "the row would stay without bytes"
    );
}

#[tokio::test]
async fn what_was_lost_and_fetched_again_is_not_dropped_with_its_old_row() {
    let (link, _sent) = greeted();
    link.welcomed(1);
    link.ready();
    assert!(lose(&link));
    // The chunk may be present again by now.
    assert_eq!(link.committed(1), []);
    let evicted = Removal::Chunks(entry(), vec![3]);
    assert!(link.removed(evicted.clone(), vec![3], v1::RemovalReason::Evicted));
    assert_eq!(link.committed(2), [evicted]);
}
