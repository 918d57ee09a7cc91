//! The coordinator as other services use it: gRPC, with health and error details.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_proto::v1::cache_service_client::CacheServiceClient;
use chunkcache_proto::v1::{
    ByteRange, CancelJobRequest, DrainEdgeRequest, EdgeState, EntryName, GetAvailabilityRequest,
    GetSourceRequest, HasByteRangeRequest, JobState, ListEntriesRequest, OpenEntryRequest,
    PrecacheRequest, Priority, PutSourceRequest, RequestRangeRequest, Source, SourcePath,
    WaitForRangeRequest, WatchClusterRequest, WatchEntryRequest, entry_name,
    watch_cluster_response::Event, watch_entry_response,
};
use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, MIB, Object, content};
use hyper_util::rt::TokioExecutor;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

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

/// Lists the services and fetches the file of one, in this version of the protocol.
macro_rules! reflection {
    ($version:ident, $channel:expr) => {{
        use pb::server_reflection_request::MessageRequest as Ask;
        use pb::server_reflection_response::MessageResponse as Answer;
        use tonic_reflection::pb::$version as pb;
        let mut client = pb::server_reflection_client::ServerReflectionClient::new($channel);
        let asked = [
            Ask::ListServices(String::new()),
            Ask::FileContainingSymbol("chunkcache.v1.CacheService.OpenEntry".to_owned()),
            Ask::FileContainingSymbol("no.such.Thing".to_owned()),
        ];
        let asked = asked.map(|it| pb::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(it),
        });
        let answers = client
            .server_reflection_info(tokio_stream::iter(asked))
            .await
            .unwrap();
        let mut answers = answers.into_inner();
        let mut next = async || {
            let answer = answers.next().await.unwrap();
            answer.map(|it| it.message_response.unwrap())
        };
        let Ok(Answer::ListServicesResponse(listed)) = next().await else {
            panic!("no list");
        };
        let names: Vec<_> = listed.service.into_iter().map(|it| it.name).collect();
        for expected in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
            assert!(names.iter().any(|it| it == expected), "{names:?}");
        }
        let Ok(Answer::FileDescriptorResponse(files)) = next().await else {
            panic!("no file");
        };
        let described = files.file_descriptor_proto.concat();
        let text = String::from_utf8_lossy(&described);
        assert!(text.contains("OpenEntryRequest"), "not what was asked for");
        match next().await {
            Ok(Answer::ErrorResponse(error)) => assert_eq!(error.error_code, Code::NotFound as i32),
            Ok(other) => panic!("not an error: {other:?}"),
            Err(status) => assert_eq!(status.code(), Code::NotFound),
        }
    }};
}

fn bytes(start: u64, end: u64) -> Option<ByteRange> {
    Some(ByteRange { start, end })
}

fn with_client<T>(cluster: &Cluster, act: impl AsyncFnOnce(Client) -> T) -> T {
    with_channel(cluster, async |channel| act(Client::new(channel)).await)
}

fn with_channel<T>(cluster: &Cluster, act: impl AsyncFnOnce(Channel) -> T) -> T {
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
        let acting = act(channel);
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

        // Nothing fetches the rest: the deadline ends the wait.
        let mut request = Request::new(wait(size));
        request.set_timeout(Duration::from_millis(300));
        let late = client.wait_for_range(request).await.unwrap_err();
        assert!(
            matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled),
            "{late}"
        );
        // There the client's own clock may have ended it. A client without one sends the deadline
        // and leaves it to the coordinator.
        let mut request = Request::new(wait(size));
        request.set_timeout(Duration::from_millis(300));
        let plain = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build_http();
        let origin = format!("http://{}", cluster.coordinator.grpc);
        let mut patient = CacheServiceClient::with_origin(plain, origin.parse().unwrap());
        let late = patient.wait_for_range(request).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        // When a caller leaves, its wait ends and the connection stays usable.
        for _ in 0..50 {
            let mut gone = client.clone();
            let asked = gone.wait_for_range(wait(size));
            let left = tokio::time::timeout(Duration::from_millis(5), asked).await;
            assert!(left.is_err(), "nobody fetches the rest: {left:?}");
        }
        assert!(!has(&mut client, 0, size).await.present);

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
    let cluster = Cluster::start_with(ClusterOptions::default());
    with_client(&cluster, async |mut client| {
        let field = |status: &tonic::Status| {
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            let details = status.get_error_details();
            details.bad_request().unwrap().field_violations[0]
                .field
                .clone()
        };
        let named = |name| Some(EntryName { name: Some(name) });
        let empty = OpenEntryRequest::default();
        let refused = client.open_entry(empty).await.unwrap_err();
        assert_eq!(field(&refused), "entry");
        let request = OpenEntryRequest {
            entry: named(entry_name::Name::Id("seven".to_owned())),
            position: 0,
        };
        let refused = client.open_entry(request).await.unwrap_err();
        assert_eq!(field(&refused), "entry.id");
        let request = OpenEntryRequest {
            entry: named(entry_name::Name::Url("http://elsewhere.test/a".to_owned())),
            position: 0,
        };
        let refused = client.open_entry(request).await.unwrap_err();
        assert_eq!(field(&refused), "entry.url");
        let refused = client.put_source(PutSourceRequest::default()).await;
        assert_eq!(field(&refused.unwrap_err()), "source");
        let refused = client.cancel_job(CancelJobRequest::default()).await;
        assert_eq!(field(&refused.unwrap_err()), "id");
        let refused = client.get_source(GetSourceRequest::default()).await;
        assert_eq!(field(&refused.unwrap_err()), "name");
        let request = ListEntriesRequest {
            page_token: "not one of ours".to_owned(),
            ..Default::default()
        };
        let refused = client.list_entries(request).await.unwrap_err();
        assert_eq!(field(&refused), "page_token");

        let request = GetAvailabilityRequest {
            entry: name("never-seen"),
        };
        let unknown = client.get_availability(request).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
        let details = unknown.get_error_details();
        let resource = details.resource_info().unwrap();
        assert_eq!(resource.resource_type, "entry");
        assert_eq!(resource.resource_name, "media/never-seen");
        let request = GetSourceRequest {
            name: "nobody".to_owned(),
        };
        let unknown = client.get_source(request).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    });
}

#[test]
fn entries_are_named_in_three_ways_and_listed_in_pages() {
    let cluster = Cluster::start();
    with_client(&cluster, async |mut client| {
        let mut ids = Vec::new();
        for number in 0..5 {
            let path = format!("/list/{number}.mp4");
            cluster.put(&path, Object::generated(number, MIB));
            let by_url = entry_name::Name::Url(format!("{}{path}", cluster.origin.url()));
            let mut open = async |name| {
                let request = OpenEntryRequest {
                    entry: Some(EntryName { name: Some(name) }),
                    position: 0,
                };
                let opened = client.open_entry(request).await.unwrap().into_inner();
                let id = opened.entry.unwrap().id;
                assert_eq!(
                    opened.entry_url,
                    format!("{}/v1/entries/{id}", cluster.edge().url())
                );
                assert_eq!(opened.edge, "edge-a");
                id
            };
            let id = open(by_url).await;
            assert_eq!(open(entry_name::Name::Id(id.clone())).await, id);
            let by_path = name(&path).unwrap().name.unwrap();
            assert_eq!(open(by_path).await, id);
            ids.push(id);
        }
        let mut listed = Vec::new();
        let mut token = String::new();
        loop {
            let request = ListEntriesRequest {
                source: "media".to_owned(),
                page_size: 2,
                page_token: token,
            };
            let page = client.list_entries(request).await.unwrap().into_inner();
            assert!(page.entries.len() <= 2);
            let found = page.entries.into_iter().map(|it| it.entry.unwrap().id);
            listed.extend(found);
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        listed.sort();
        ids.sort();
        assert_eq!(listed, ids, "each once");
    });
}

#[test]
fn a_watch_of_the_cluster_tells_of_sources_jobs_edges_and_chunks() {
    let cluster = Cluster::start();
    cluster.put("/c.mp4", Object::generated(143, 4 * MIB));
    with_client(&cluster, async |mut client| {
        let request = WatchClusterRequest { from_revision: 0 };
        let mut events = client.watch_cluster(request).await.unwrap().into_inner();
        let first = events.next().await.unwrap().unwrap();
        let Some(Event::Snapshot(snapshot)) = first.event else {
            panic!("not a snapshot first: {first:?}");
        };
        assert_eq!(snapshot.edges[0].name, "edge-a");
        assert_eq!(snapshot.sources[0].name, "media");

        let source = Source {
            name: "more".to_owned(),
            base_url: cluster.origin.url(),
            ..Default::default()
        };
        let request = PutSourceRequest {
            validate_only: false,
            check: false,
            source: Some(source),
        };
        let put = client.put_source(request).await.unwrap().into_inner();
        assert_eq!(put.unconfirmed_edges, Vec::<String>::new());
        let request = PrecacheRequest {
            entry: name("c.mp4"),
            ..Default::default()
        };
        let job = client.precache(request).await.unwrap().into_inner();
        let job = job.job.unwrap().id;
        let request = DrainEdgeRequest {
            name: "edge-a".to_owned(),
            drain: true,
        };
        let (mut source_told, mut bytes, mut done, mut drained) = (false, 0, false, false);
        let mut revision = first.revision;
        while !(source_told && bytes == 4 * MIB && done && drained) {
            let told = events.next().await.unwrap().unwrap();
            assert!(told.revision > revision, "revisions rise");
            revision = told.revision;
            match told.event.unwrap() {
                Event::Source(it) => source_told |= it.name == "more",
                Event::Stored(it) => {
                    bytes += it.ranges.iter().map(|r| r.end - r.start).sum::<u64>();
                }
                Event::Job(it) if it.id == job && it.state() == JobState::Done => {
                    done = true;
                    client.drain_edge(request.clone()).await.unwrap();
                }
                Event::Edge(it) => drained |= it.state() == EdgeState::Draining,
                _ => {}
            }
        }
        // Again from the beginning: the log has everything.
        let request = WatchClusterRequest {
            from_revision: first.revision,
        };
        let mut again = client.watch_cluster(request).await.unwrap().into_inner();
        let next = again.next().await.unwrap().unwrap();
        assert_eq!(next.revision, first.revision + 1);
    });
}

const SERVICES: [&str; 2] = ["chunkcache.v1.CacheService", "chunkcache.v1.EdgeService"];

#[test]
fn health_and_both_reflections_answer() {
    let cluster = Cluster::start_with(ClusterOptions::default());
    with_channel(&cluster, async |channel| {
        let mut health = HealthClient::new(channel.clone());
        for service in ["", SERVICES[0], SERVICES[1]] {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            // Reported at the next check, at most a second after `/readyz`: watched as a load
            // balancer would.
            let mut told = health.watch(request).await.unwrap().into_inner();
            let serving = async {
                while let Some(answer) = told.message().await.unwrap() {
                    if answer.status() == ServingStatus::Serving {
                        return true;
                    }
                }
                false
            };
            let within = tokio::time::timeout(Duration::from_secs(10), serving).await;
            assert_eq!(within, Ok(true), "{service} serves");
        }
        let request = HealthCheckRequest {
            service: "nobody.v1.Nothing".to_owned(),
        };
        let unknown = health.check(request).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);

        reflection!(v1, channel.clone());
        reflection!(v1alpha, channel);
    });
}
