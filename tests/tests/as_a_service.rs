//! The coordinator as other services use it: gRPC, with its health and its error details.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_proto::v1::cache_service_client::CacheServiceClient;
use chunkcache_proto::v1::{
    ByteRange, EntryName, GetAvailabilityRequest, HasByteRangeRequest, OpenEntryRequest, Priority,
    RequestRangeRequest, SourcePath, WaitForRangeRequest, WatchEntryRequest, entry_name,
    watch_entry_response,
};
use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, MIB, Object, content};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Request};

type Client = CacheServiceClient<Channel>;

fn name(path: &str) -> Option<EntryName> {
    let source_path = SourcePath {
        source: "media".to_owned(),
        path: path.to_owned(),
    };
    Some(EntryName {
        name: Some(entry_name::Name::SourcePath(source_path)),
    })
}

fn bytes(start: u64, end: u64) -> Option<ByteRange> {
    Some(ByteRange { start, end })
}

fn with_client<T>(cluster: &Cluster, act: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint = format!("http://{}", cluster.coordinator.grpc);
        let channel = Channel::from_shared(endpoint)
            .unwrap()
            .connect()
            .await
            .unwrap();
        let client = CacheServiceClient::new(channel);
        let acting = act(client);
        tokio::time::timeout(Duration::from_secs(60), acting)
            .await
            .unwrap()
    })
}

#[test]
fn open_request_wait_and_ask() {
    let cluster = Cluster::start();
    let size = 9 * MIB + 3;
    cluster.put("/s.mp4", Object::generated(141, size));
    let opened = with_client(&cluster, async |mut client| {
        let request = OpenEntryRequest {
            entry: name("s.mp4"),
            position: 0,
        };
        let opened = client.open_entry(request).await.unwrap().into_inner();
        let has = async |client: &mut Client, start, end| {
            let request = HasByteRangeRequest {
                entry: name("s.mp4"),
                range: bytes(start, end),
                edge: String::new(),
            };
            client.has_byte_range(request).await.unwrap().into_inner()
        };
        assert!(!has(&mut client, 0, size).await.present);
        let request = RequestRangeRequest {
            entry: name("s.mp4"),
            range: bytes(CHUNK, 3 * CHUNK),
            priority: Priority::Medium as i32,
            edge: String::new(),
        };
        client.request_range(request).await.unwrap();
        let wait = |end| WaitForRangeRequest {
            entry: name("s.mp4"),
            range: bytes(CHUNK, end),
            edge: String::new(),
            request_priority: 0,
        };
        client.wait_for_range(wait(3 * CHUNK)).await.unwrap();
        assert!(
            has(&mut client, CHUNK + 5, 3 * CHUNK - 5).await.present,
            "across chunks"
        );
        let missing = has(&mut client, 0, size).await;
        assert!(!missing.present);
        assert_eq!(missing.missing.last().unwrap().end, size);

        // Nobody fetches the rest: the deadline is what ends the wait.
        let mut request = Request::new(wait(size));
        request.set_timeout(Duration::from_millis(300));
        let late = client.wait_for_range(request).await.unwrap_err();
        assert!(
            matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled),
            "{late}"
        );

        let request = GetAvailabilityRequest {
            entry: name("s.mp4"),
        };
        let availability = client.get_availability(request).await.unwrap().into_inner();
        assert_eq!(availability.edges[0].edge, "edge-a");
        opened
    });
    assert_eq!(opened.entry.unwrap().size, size);
    let target = opened.play_url.strip_prefix(&cluster.edge().url()).unwrap();
    let played = Call::get(target).send(cluster.edge().http).expect(200);
    assert_eq!(content::sha256_of(&played.body), content::sha256(141, size));
}

#[test]
fn a_watch_sees_what_is_stored() {
    let cluster = Cluster::start();
    let size = 6 * MIB;
    let target = cluster.put("/w.mp4", Object::generated(142, size));
    Call::head(&target).send(cluster.edge().http).expect(200);
    with_client(&cluster, async |mut client| {
        let request = OpenEntryRequest {
            entry: name("w.mp4"),
            position: 0,
        };
        client.open_entry(request).await.unwrap();
        let request = WatchEntryRequest {
            entry: name("w.mp4"),
            from_revision: 0,
        };
        let mut events = client.watch_entry(request).await.unwrap().into_inner();
        let first = events.next().await.unwrap().unwrap();
        let Some(watch_entry_response::Event::Snapshot(snapshot)) = first.event else {
            panic!("not a snapshot first: {first:?}");
        };
        let mut seen: u64 = snapshot.edges.iter().map(|edge| edge.bytes).sum();
        let address = cluster.edge().http;
        let reader = std::thread::spawn(move || Call::get(&target).send(address).expect(200));
        let mut revision = first.revision;
        while seen < size {
            let event = events.next().await.unwrap().unwrap();
            assert!(event.revision > revision, "revisions rise");
            revision = event.revision;
            if let Some(watch_entry_response::Event::Stored(stored)) = event.event {
                seen += stored
                    .ranges
                    .iter()
                    .map(|range| range.end - range.start)
                    .sum::<u64>();
            }
        }
        assert_eq!(seen, size);
        reader.join().unwrap();
    });
}

#[test]
fn errors_say_what_was_wrong() {
    let cluster = Cluster::start();
    with_client(&cluster, async |mut client| {
        let empty = client
            .open_entry(OpenEntryRequest::default())
            .await
            .unwrap_err();
        assert_eq!(empty.code(), Code::InvalidArgument, "{empty}");
        assert!(
            !empty.details().is_empty(),
            "google.rpc details are missing"
        );
        let request = GetAvailabilityRequest {
            entry: name("never-seen"),
        };
        let unknown = client.get_availability(request).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    });
}
