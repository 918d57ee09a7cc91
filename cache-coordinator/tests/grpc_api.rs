//! The coordinator through its public services: a real PostgreSQL, a hand-written edge.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api_support;
#[path = "grpc_api/conflicts.rs"]
mod conflicts;
#[path = "grpc_api/json.rs"]
mod json;
#[path = "grpc_api/purges.rs"]
mod purges;
#[path = "grpc_api/sizes.rs"]
mod sizes;
mod support;

use std::time::Duration;

use api_support::{
    Coordinator, WAIT, by_id, by_path, chunks, coordinator,
    fake_edge::{FakeEdge, entry},
};
use chunkcache_proto::v1;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;
use v1::{
    probe_report::Outcome as Probed, session_request::Message as Ask,
    session_response::Message as Say, watch_entry_response::Event,
};

const BASE: &str = "http://origin.test";

async fn has(coordinator: &Coordinator, id: &str, range: std::ops::Range<u64>) -> bool {
    let request = v1::HasByteRangeRequest {
        entry: by_id(id),
        range: chunks(range),
        edge: String::new(),
    };
    let response = coordinator
        .cache()
        .await
        .has_byte_range(request)
        .await
        .unwrap();
    response.into_inner().present
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_chunks_are_committed_announced_and_wake_who_waits() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    assert_eq!(edge.welcome.sources.len(), 1);
    assert_eq!(edge.welcome.peer_keys[0].len(), 32);
    let film = entry("films", BASE, "film.mp4", 4, "\"1\"");
    edge.observe(&film).await;
    edge.store(1, &film.id, &[0]).await;
    assert!(has(&coordinator, &film.id, 0..1).await);
    assert!(!has(&coordinator, &film.id, 0..2).await);

    let mut client = coordinator.cache().await;
    let watch = v1::WatchEntryRequest {
        entry: by_path("films", "film.mp4"),
        from_revision: 0,
    };
    let mut watched = client.watch_entry(watch).await.unwrap().into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert!(
        matches!(first.event, Some(Event::Snapshot(s)) if s.edges[0].bytes == api_support::CHUNK)
    );

    let wait = v1::WaitForRangeRequest {
        entry: by_id(&film.id),
        range: chunks(0..3),
        ..Default::default()
    };
    let mut waiting = coordinator.cache().await;
    let waiter = tokio::spawn(async move { waiting.wait_for_range(wait).await });
    edge.store(2, &film.id, &[2, 1]).await;
    let answered = tokio::time::timeout(WAIT, waiter)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(answered.into_inner().revision > first.revision);
    let stored = watched.message().await.unwrap().unwrap();
    let Some(Event::Stored(stored)) = stored.event else {
        panic!("expected stored, got {stored:?}");
    };
    assert_eq!(stored.ranges, [chunks(1..3).unwrap()]);
    coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_callers_deadline() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    let film = entry("films", BASE, "film.mp4", 4, "\"1\"");
    edge.observe(&film).await;
    edge.store(1, &film.id, &[0]).await;
    let mut request = Request::new(v1::WaitForRangeRequest {
        entry: by_id(&film.id),
        range: chunks(0..4),
        ..Default::default()
    });
    request
        .metadata_mut()
        .insert("grpc-timeout", "150m".parse().unwrap());
    let answer = coordinator.patient().wait_for_range(request).await;
    assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn reconciliation_deletes_rows_without_bytes_and_adopts_bytes_without_rows() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let kept = entry("films", BASE, "kept.mp4", 4, "\"1\"");
    let gone = entry("films", BASE, "gone.mp4", 4, "\"1\"");
    let new = entry("films", BASE, "new.mp4", 4, "\"1\"");
    let foreign = entry("other", BASE, "x.mp4", 4, "\"1\"");
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    for (sequence, film) in [(1, &kept), (2, &gone)] {
        edge.observe(film).await;
        edge.store(sequence, &film.id, &[0, 1]).await;
    }
    drop(edge);

    let mut edge = FakeEdge::hello(&coordinator, "edge-1").await;
    // One chunk less and one more of `kept`, nothing of `gone`, one entry the table never saw.
    let inventory = vec![
        (kept.clone(), vec![1, 2]),
        (new.clone(), vec![0]),
        (foreign.clone(), vec![0]),
    ];
    let verdicts = edge.present(&inventory).await;
    let dropped = |id: &str| {
        verdicts
            .iter()
            .find(|v| v.entry_id == id)
            .map(|v| v.drop.clone())
            .unwrap_or_default()
    };
    assert!(dropped(&kept.id).is_empty());
    assert_eq!(dropped(&foreign.id), [0]);
    assert!(has(&coordinator, &kept.id, 1..3).await);
    assert!(!has(&coordinator, &kept.id, 0..1).await);
    assert!(!has(&coordinator, &gone.id, 0..1).await);
    assert!(has(&coordinator, &new.id, 0..1).await);
    coordinator
        .until(|s| s.drift_rows_without_bytes == 3 && s.drift_bytes_without_rows == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_fences_the_first() {
    let coordinator = coordinator().await;
    let mut first = FakeEdge::join(&coordinator, "edge-1").await;
    let second = FakeEdge::join(&coordinator, "edge-1").await;
    assert!(second.epoch > first.epoch);
    let status = first.end().await.unwrap();
    assert_eq!(
        status.get_error_details().error_info().unwrap().reason,
        "STALE_EPOCH"
    );
    let resolve = v1::ResolveKeyRequest {
        edge: "edge-1".into(),
        epoch: first.epoch,
        key: entry("films", BASE, "a", 1, "\"1\"").key,
        passed_over: String::new(),
    };
    let refused = coordinator
        .edge()
        .await
        .resolve_key(resolve)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_edge_probes_and_the_others_get_what_it_finds() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let one = FakeEdge::join(&coordinator, "edge-1").await;
    let two = FakeEdge::join(&coordinator, "edge-02").await;
    let film = entry("films", BASE, "film.mp4", 4, "\"1\"");
    let resolve = |edge: &FakeEdge| v1::ResolveKeyRequest {
        edge: edge.name.clone(),
        epoch: edge.epoch,
        key: film.key.clone(),
        passed_over: String::new(),
    };
    use v1::resolve_key_response::Outcome;
    let first = resolve(&one);
    // Otherwise it would soon be sent to the edge that asks.
    let second = v1::ResolveKeyRequest {
        passed_over: one.name.clone(),
        ..resolve(&two)
    };
    let mut client = coordinator.edge().await;
    let leased = client.resolve_key(first).await.unwrap().into_inner();
    assert!(matches!(leased.outcome, Some(Outcome::Probe(p)) if p.chunk_size == film.chunk_size));
    let mut waiting = coordinator.edge().await;
    let waiter = tokio::spawn(async move { waiting.resolve_key(second).await });
    // A client of the API, whose viewer may have the first bytes already, waits as the edge does.
    let mut caller = coordinator.cache().await;
    let get = v1::GetEntryRequest {
        entry: by_path("films", "film.mp4"),
    };
    let called = tokio::spawn(async move { caller.get_entry(get).await });
    let unasked = v1::GetEntryRequest {
        entry: by_path("films", "other.mp4"),
    };
    let refused = coordinator.cache().await.get_entry(unasked).await;
    assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    assert!(!called.is_finished());
    one.observe(&film).await;
    let called = tokio::time::timeout(WAIT, called).await.unwrap();
    let detail = called.unwrap().unwrap().into_inner().entry.unwrap();
    assert_eq!(detail.entry.unwrap().id, film.id);
    let found = tokio::time::timeout(WAIT, waiter)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let Some(Outcome::Known(binding)) = found.into_inner().outcome else {
        panic!("expected the entry");
    };
    assert_eq!(binding.entry.unwrap().id, film.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_asks_or_keeps_a_whole_answer_is_named_to_the_others() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let one = FakeEdge::join(&coordinator, "edge-1").await;
    let two = FakeEdge::join(&coordinator, "edge-02").await;
    let mut client = coordinator.edge().await;
    use v1::resolve_key_response::Outcome;
    let ask = |edge: &FakeEdge, path: &str, passed_over: &str| v1::ResolveKeyRequest {
        edge: edge.name.clone(),
        epoch: edge.epoch,
        key: entry("films", BASE, path, 1, "\"1\"").key,
        passed_over: passed_over.into(),
    };
    let is_one = |outcome: &Option<Outcome>| match outcome {
        Some(Outcome::Keeper(it)) => it.edge == "edge-1" && !it.url.is_empty(),
        _ => false,
    };
    // It is still asking.
    for (edge, is_named) in [(&one, false), (&two, true)] {
        let answer = client
            .resolve_key(ask(edge, "live.m3u8", ""))
            .await
            .unwrap();
        assert_eq!(is_one(&answer.into_inner().outcome), is_named);
    }
    let key = entry("films", BASE, "live.m3u8", 1, "\"1\"").key;
    one.say(v1::session_request::Message::WholeAnswer(v1::WholeAnswer {
        key,
    }))
    .await;
    for (edge, passed_over, is_named) in [(&two, "", true), (&two, "edge-1", false)] {
        let answer = client
            .resolve_key(ask(edge, "live.m3u8", passed_over))
            .await;
        let outcome = answer.unwrap().into_inner().outcome;
        assert_eq!(is_one(&outcome), is_named, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_assigned_to_an_edge_and_ends_when_its_rows_are_there() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    let mut client = coordinator.cache().await;
    let request = v1::PrecacheRequest {
        entry: by_path("films", "film.mp4"),
        ..Default::default()
    };
    let (asked, ()) = tokio::join!(client.precache(request), edge.answer_probe(found()));
    let job = asked.unwrap().into_inner().job.unwrap();
    assert_eq!(job.bytes_total, 3 * api_support::CHUNK);
    let watch = v1::WatchJobRequest { id: job.id.clone() };
    let mut progress = client.watch_job(watch).await.unwrap().into_inner();
    let mut missing = 3;
    let mut sequence = 0;
    while missing > 0 {
        let assign = edge
            .expect(|message| match message {
                Say::Assign(assign) => Some(assign),
                _ => None,
            })
            .await;
        assert!(assign.peer.is_none());
        let indexes: Vec<u32> =
            (assign.first_chunk..assign.first_chunk + assign.chunk_count).collect();
        edge.report(assign.assignment_id, v1::fetch_report::State::Started)
            .await;
        sequence += 1;
        edge.store(sequence, &assign.entry.unwrap().id, &indexes)
            .await;
        edge.report(assign.assignment_id, v1::fetch_report::State::Finished)
            .await;
        missing -= indexes.len();
    }
    let done = async {
        while let Some(response) = progress.message().await.unwrap() {
            let job = response.job.unwrap();
            if job.state() == v1::JobState::Done {
                return job.bytes_done;
            }
        }
        panic!("the stream ended before the job");
    };
    let bytes = tokio::time::timeout(WAIT, done).await.unwrap();
    assert_eq!(bytes, job.bytes_total);
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_an_entry_makes_it_and_names_an_edge() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let mut client = coordinator.cache().await;
    let open = v1::OpenEntryRequest {
        entry: Some(v1::EntryName {
            name: Some(v1::entry_name::Name::Url(format!("{BASE}/film.mp4"))),
        }),
        position: 0,
    };
    let refused = client.open_entry(open.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("no edge"), "{refused:?}");
    assert_eq!(
        refused.get_error_details().error_info().unwrap().reason,
        "NO_EDGE"
    );
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    let (opened, ()) = tokio::join!(client.open_entry(open), edge.answer_probe(found()));
    let opened = opened.unwrap().into_inner();
    let id = opened.entry.unwrap().id;
    assert_eq!(opened.play_url, "http://edge-1:7500/films/film.mp4");
    assert_eq!(
        opened.entry_url,
        format!("http://edge-1:7500/v1/entries/{id}")
    );
    let absent = v1::OpenEntryRequest {
        entry: by_path("films", "nothing.mp4"),
        position: 0,
    };
    let gone = edge.answer_probe(Probed::AbsentStatus(404));
    let (absent, ()) = tokio::join!(client.open_entry(absent), gone);
    assert_eq!(absent.unwrap_err().code(), Code::NotFound);
    let open = || v1::OpenEntryRequest {
        entry: by_path("films", "other.mp4"),
        position: 0,
    };
    let private = edge.answer_probe(Probed::Uncacheable("private".into()));
    let (private, ()) = tokio::join!(client.open_entry(open()), private);
    assert_eq!(private.unwrap_err().code(), Code::FailedPrecondition);
    // The edge leaves while it asks.
    let leaving = async {
        edge.expect(|message| matches!(message, Say::Probe(_)).then_some(()))
            .await;
        drop(edge);
    };
    let mut second = client.clone();
    let (left, ()) = tokio::join!(second.open_entry(open()), leaving);
    assert_eq!(left.unwrap_err().code(), Code::Unavailable);
    // Paths that lead out of the source are refused before an edge is asked.
    let climbing = v1::OpenEntryRequest {
        entry: by_path("films", "..%2f..%2fsecret"),
        position: 0,
    };
    let refused = client.open_entry(climbing).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

/// An edge's answer for `film.mp4`, of three chunks.
fn found() -> Probed {
    Probed::Found(v1::KeyBinding {
        entry: Some(entry("films", BASE, "film.mp4", 3, "\"v1\"")),
        freshness: Some(v1::Freshness::default()),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_arguments_name_their_field() {
    let coordinator = coordinator().await;
    let mut client = coordinator.cache().await;
    let field = |status: tonic::Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let details = status.get_error_details();
        details.bad_request().unwrap().field_violations[0]
            .field
            .clone()
    };
    let put = v1::PutSourceRequest {
        validate_only: false,
        check: false,
        source: Some(v1::Source {
            name: "films".into(),
            base_url: "ftp://x".into(),
            ..Default::default()
        }),
    };
    assert_eq!(
        field(client.put_source(put).await.unwrap_err()),
        "source.base_url"
    );
    let get = v1::GetEntryRequest { entry: None };
    assert_eq!(field(client.get_entry(get).await.unwrap_err()), "entry");
    let list = v1::ListEntriesRequest {
        page_token: "?".into(),
        ..Default::default()
    };
    assert_eq!(
        field(client.list_entries(list).await.unwrap_err()),
        "page_token"
    );
    let forget = v1::ForgetEdgeRequest::default();
    assert_eq!(field(client.forget_edge(forget).await.unwrap_err()), "name");
    let cancel = v1::CancelJobRequest { id: "x".into() };
    assert_eq!(field(client.cancel_job(cancel).await.unwrap_err()), "id");
    let mut job = v1::PrecacheRequest {
        entry: by_path("films", "a"),
        priority: 99,
        ..Default::default()
    };
    let unknown = client.precache(job.clone()).await.unwrap_err();
    assert_eq!(field(unknown), "priority");
    // Nothing has a name with a zero byte.
    let zero = || "a\0b".to_owned();
    job.priority = 0;
    job.edges = vec![zero()];
    for status in [
        client.precache(job).await.unwrap_err(),
        client
            .get_source(v1::GetSourceRequest { name: zero() })
            .await
            .unwrap_err(),
        client
            .forget_edge(v1::ForgetEdgeRequest {
                name: zero(),
                ..Default::default()
            })
            .await
            .unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
    let list = v1::ListEntriesRequest {
        source: zero(),
        ..Default::default()
    };
    let none = client.list_entries(list).await.unwrap().into_inner();
    assert!(none.entries.is_empty());
    let unknown = v1::GetEntryRequest {
        entry: by_path("films", "a"),
    };
    let status = client.get_entry(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let details = status.get_error_details();
    assert_eq!(details.resource_info().unwrap().resource_name, "films/a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_known_to_every_edge_before_the_answer_or_the_edge_is_named() {
    let coordinator = coordinator().await;
    let mut quick = FakeEdge::join(&coordinator, "edge-1").await;
    let _slow = FakeEdge::join(&coordinator, "edge-02").await;
    let mut client = coordinator.cache().await;
    let put = v1::PutSourceRequest {
        validate_only: false,
        check: false,
        source: Some(v1::Source {
            name: "films".into(),
            base_url: BASE.into(),
            ..Default::default()
        }),
    };
    let putting = tokio::spawn(async move { client.put_source(put).await });
    let changed = quick
        .expect(|message| match message {
            Say::SourcesChanged(changed) => Some(changed),
            _ => None,
        })
        .await;
    assert_eq!(changed.sources[0].name, "films");
    let ack = v1::SourceAck {
        sequence: changed.sequence,
    };
    quick.say(Ask::SourceAck(ack)).await;
    let answer = tokio::time::timeout(WAIT, putting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(answer.into_inner().unconfirmed_edges, ["edge-02"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_names_the_leader_and_takes_over() {
    let leader = coordinator().await;
    let standby = leader.standby().await;
    let url = leader.url();
    standby.until(|status| status.leader == url).await;
    let drain = v1::DrainEdgeRequest {
        name: "edge-1".into(),
        drain: true,
    };
    let refused = standby.cache().await.drain_edge(drain).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["leader"], url);

    let mut edge = FakeEdge::join(&leader, "edge-1").await;
    leader
        .cache()
        .await
        .step_down(v1::StepDownRequest {})
        .await
        .unwrap();
    assert_eq!(edge.end().await.unwrap().code(), Code::FailedPrecondition);
    let began = std::time::Instant::now();
    standby.leads().await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    FakeEdge::join(&standby, "edge-1").await;
    leader.stop().await.unwrap();
    standby.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn verifying_an_edge_compares_its_next_inventory() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let film = entry("films", BASE, "film.mp4", 4, "\"1\"");
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    edge.observe(&film).await;
    edge.store(1, &film.id, &[0, 1]).await;
    let mut client = coordinator.cache().await;
    let request = v1::VerifyEdgeRequest {
        name: "edge-1".into(),
    };
    let verifying = tokio::spawn(async move { client.verify_edge(request).await });
    edge.end().await;
    let mut edge = FakeEdge::hello(&coordinator, "edge-1").await;
    edge.present(&vec![(film, vec![1])]).await;
    let answer = tokio::time::timeout(WAIT, verifying)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let answer = answer.into_inner();
    assert_eq!((answer.chunks_checked, answer.rows_without_bytes), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalidating_is_confirmed_by_the_edges() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let film = entry("films", BASE, "film.mp4", 4, "\"1\"");
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    edge.observe(&film).await;
    edge.store(1, &film.id, &[0, 1]).await;
    let mut client = coordinator.cache().await;
    let request = v1::InvalidateEntryRequest {
        entry: by_id(&film.id),
        purge: true,
    };
    let invalidating = tokio::spawn(async move { client.invalidate_entry(request).await });
    let told = edge
        .expect(|message| match message {
            Say::Invalidate(told) => Some(told),
            _ => None,
        })
        .await;
    assert_eq!(
        (told.entry_ids.as_slice(), told.purge),
        ([film.id.clone()].as_slice(), true)
    );
    assert_eq!(told.keys, [film.key.clone().unwrap()]);
    let ack = v1::InvalidateAck {
        sequence: told.sequence,
        objects: 0,
    };
    edge.say(Ask::InvalidateAck(ack)).await;
    let answer = tokio::time::timeout(WAIT, invalidating)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(answer.into_inner().confirmed_edges, ["edge-1"]);
    assert!(!has(&coordinator, &film.id, 0..1).await);
}
