//! Presigned URLs: a client without a signature that the origin accepts gets no byte from the
//! cache.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chunkcache_tests::http::{Call, Connection};
use chunkcache_tests::{CHUNK, Cluster, MIB, Object, content, eventually};

const FILM: u64 = 3 * CHUNK;

fn cluster(options: &[&str]) -> Cluster {
    let cluster = Cluster::start();
    let presigned = ["--ignore-query", "presigned"];
    cluster.add_source_with("films", &[&presigned[..], options].concat());
    cluster
}

/// The requests so far with this query: status and body bytes.
fn asked(cluster: &Cluster, query: &str) -> Vec<(u16, u64)> {
    let hits = cluster.origin.hits("/film.mp4");
    let with_query = hits
        .iter()
        .filter(|hit| hit.target.split_once('?').map_or("", |it| it.1) == query);
    with_query.map(|hit| (hit.status, hit.body_bytes)).collect()
}

fn get(cluster: &Cluster, query: &str) -> chunkcache_tests::http::Response {
    Call::get(&format!("/films/film.mp4?{query}")).send(cluster.edge().http)
}

#[test]
fn each_signature_is_asked_of_the_origin_once_and_all_share_the_bytes() {
    let cluster = cluster(&[]);
    let film = Object::generated(1, FILM).accepting(&["v=1&Signature=a", "v=1&Signature=b"]);
    cluster.origin.put("/film.mp4", film);
    for _ in 0..3 {
        // The position of the signature in the query does not matter, nor do other parameters that
        // are left out.
        let got = get(&cluster, "Signature=a&v=1&CMCD=bl%3D1").expect(200);
        assert!(got.body == content::bytes(1, 0, FILM));
    }
    let first = asked(&cluster, "v=1&Signature=a");
    assert_eq!(first[0], (206, 1), "one byte of an unknown object");
    let sent: u64 = first[1..].iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(sent, FILM, "then each byte once: {first:?}");
    for _ in 0..3 {
        let got = get(&cluster, "v=1&Signature=b").expect(200);
        assert!(got.body == content::bytes(1, 0, FILM));
        assert!(got.header("cache-status").unwrap().contains("hit"));
    }
    assert_eq!(asked(&cluster, "v=1&Signature=b"), [(304, 0)]);
    for (query, at_origin) in [("v=1&Signature=c", "v=1&Signature=c"), ("v=1", "v=1")] {
        let refused = get(&cluster, query);
        assert_eq!(refused.status, 403, "{query}");
        assert!(refused.body.len() < 1_000, "a problem and not the film");
        assert_eq!(asked(&cluster, at_origin).len(), 1);
    }
    // Nor is it served by its entry's id.
    let entries = cluster.coordinator.json(&["entry", "list"]);
    let id = entries[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(entries[0]["path"], "film.mp4");
    Call::get(&format!("/v1/entries/{id}"))
        .send(cluster.edge().http)
        .expect(404);
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    for line in [
        "cache_edge_accepted_signatures 2",
        "cache_edge_signature_checks_total{result=\"accepted\"} 2",
        "cache_edge_signature_checks_total{result=\"refused\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn an_expired_signature_is_asked_about_again_and_gives_nothing_for_missing_chunks() {
    let cluster = cluster(&[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let soon = format!("Expires={}&Signature=a", now.as_secs() + 8);
    let later = format!("Expires={}&Signature=b", now.as_secs() + 3_600);
    let film = Object::generated(1, FILM).accepting(&[&soon, &later]);
    cluster.origin.put("/film.mp4", film);
    let long = Object::generated(2, 64 * CHUNK).accepting(&[&soon]);
    cluster.origin.put("/long.mp4", long);
    let mut long = Call::get(&format!("/films/long.mp4?{soon}"))
        .open(cluster.edge().http)
        .unwrap();
    assert!(long.take(MIB as usize).unwrap() == content::bytes(2, 0, MIB));
    let call = Call::get(&format!("/films/film.mp4?{soon}")).range(0, 1_000);
    // The connection's last resolution ends with it too.
    let mut connection = Connection::to(cluster.edge().http);
    assert_eq!(connection.send(&call).expect(206).body.len(), 1_000);
    cluster.origin.change("/film.mp4", |film| {
        *film = film.clone().accepting(&[&later]);
    });
    eventually("the signature expires", Duration::from_secs(20), || {
        (connection.send(&call).status == 403).then_some(())
    });
    // A body that has begun needs bytes that no client may have now: it is aborted, and nothing is
    // requested.
    let rest = long.finish();
    assert!(!rest.complete && rest.body == content::bytes(2, MIB, MIB + rest.body.len() as u64));
    let refused = cluster.origin.hits("/long.mp4");
    assert!(refused.iter().all(|hit| hit.status == 206), "{refused:?}");
    // The rest of the film comes with another client's signature.
    let got = get(&cluster, &later).expect(200);
    assert!(got.body == content::bytes(1, 0, FILM));
    let refused = asked(&cluster, &soon);
    let refused = refused.iter().filter(|(status, _)| *status == 403).count();
    assert_eq!(refused, 1, "only the question was refused");
    let unsigned = asked(&cluster, "");
    assert!(unsigned.is_empty(), "{unsigned:?}");
}

#[test]
fn the_operator_may_trust_whoever_can_name_an_object() {
    let cluster = cluster(&["--presigned", "trust-cache"]);
    cluster.origin.put("/film.mp4", Object::generated(1, 1_000));
    for query in ["Signature=a", "Signature=b", ""] {
        let got = get(&cluster, query).expect(200);
        assert_eq!(got.body, content::bytes(1, 0, 1_000), "{query}");
    }
    assert_eq!(cluster.origin.hits("/film.mp4").len(), 1);
}

/// A source's own access to a bucket is not granted to its clients.
#[test]
fn a_client_of_a_private_bucket_is_let_in_by_its_own_signature() {
    let cluster = Cluster::start();
    let keys = cluster.directory.path().join("keys");
    std::fs::write(&keys, "AKIDEXAMPLE\nsecret\n").unwrap();
    let (url, keys) = (cluster.origin.url(), keys.to_str().unwrap().to_owned());
    let add = ["source", "add", "bucket", "s3://films", "--path-style"];
    let own = ["--s3-endpoint", &url, "--access-key-file", &keys];
    let presigned = ["--ignore-query", "presigned"];
    let output = cluster
        .coordinator
        .cli(&[&add[..], &own, &presigned].concat());
    assert!(output.status.success(), "{output:?}");
    let film = Object::generated(1, FILM).accepting(&["", "X-Amz-Signature=a"]);
    cluster.origin.put("/films/film.mp4", film);
    let ask = |query: &str| {
        let call = Call::get(&format!("/bucket/film.mp4?{query}"));
        call.send(cluster.edge().http)
    };
    assert_eq!(ask("X-Amz-Signature=b").status, 403);
    let got = ask("X-Amz-Signature=a").expect(200);
    assert!(got.body == content::bytes(1, 0, FILM));
    for hit in cluster.origin.hits("/films/film.mp4") {
        // One or the other: servers refuse requests with both.
        let is_presigned = hit.target.contains('?');
        let is_signed = hit.header("authorization").is_some();
        assert!(
            is_presigned != is_signed,
            "{} {:?}",
            hit.target,
            hit.headers
        );
    }
}

fn seconds_from_now(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() + seconds
}

/// An origin can stop accepting a signature before it expires. A client with another signature
/// still gets the film.
#[test]
fn a_signature_that_is_refused_by_now_gives_nothing_any_more() {
    let cluster = cluster(&[]);
    let long = format!("Expires={}&Signature=a", seconds_from_now(90_000));
    let short = format!("Expires={}&Signature=b", seconds_from_now(3_600));
    let film = Object::generated(1, FILM).accepting(&[&long, &short]);
    cluster.origin.put("/film.mp4", film.clone());
    // All but the last chunk.
    let begun = Call::get(&format!("/films/film.mp4?{long}")).range(0, 2 * CHUNK - 1);
    begun.send(cluster.edge().http).expect(206);
    cluster.origin.put("/film.mp4", film.accepting(&[&short]));
    let before = asked(&cluster, &long).len();
    let got = get(&cluster, &short).expect(200);
    assert!(got.complete && got.body == content::bytes(1, 0, FILM));
    let refused = &asked(&cluster, &long)[before..];
    assert_eq!(refused, [(403, 0)], "tried once, then taken back");
    assert_eq!(get(&cluster, &long).status, 403);
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    assert!(metrics.contains("cache_edge_accepted_signatures 1"));
}

/// An answer that is not stored is separate for each client.
#[test]
fn what_is_passed_through_is_asked_for_with_the_clients_own_signature() {
    let cluster = cluster(&[]);
    let long = format!("Expires={}&Signature=a", seconds_from_now(90_000));
    let short = format!("Expires={}&Signature=b", seconds_from_now(3_600));
    let mine = Object::generated(1, 1_000).accepting(&[&long, &short]);
    let mine = mine.header("Cache-Control", "private");
    cluster.origin.put("/film.mp4", mine);
    get(&cluster, &long).expect(200);
    let before = asked(&cluster, &long).len();
    get(&cluster, &short).expect(200);
    let head = Call::head(&format!("/films/film.mp4?{short}")).send(cluster.edge().http);
    assert_eq!(head.header("content-length"), Some("1000"));
    assert_eq!(asked(&cluster, &long).len(), before, "another's signature");
    // Signatures cover the method.
    let hits = cluster.origin.hits("/film.mp4");
    assert!(hits.iter().all(|hit| hit.method == "GET"), "{hits:?}");
}

/// A source may have access to more than its clients.
#[test]
fn the_sources_own_credentials_do_not_speak_for_its_clients() {
    let cluster = cluster(&[
        "--header",
        "Authorization: Bearer own",
        "--header",
        "X-Via: edge",
    ]);
    let film = Object::generated(1, 1_000).accepting(&["Signature=a"]);
    cluster.origin.put("/film.mp4", film);
    assert_eq!(get(&cluster, "Signature=b").status, 403);
    get(&cluster, "Signature=a").expect(200);
    let hits = cluster.origin.hits("/film.mp4");
    let of_source = |hit: &&chunkcache_tests::origin::Hit| hit.header("authorization").is_some();
    let questions: Vec<_> = hits.iter().filter(|hit| !of_source(hit)).collect();
    assert_eq!(questions.len(), 2, "one of each signature: {hits:?}");
    assert!(hits.iter().all(|hit| hit.header("x-via") == Some("edge")));
    assert!(hits.iter().filter(of_source).all(|hit| hit.status != 403));
}

#[test]
fn an_entry_of_a_removed_source_is_nobodys() {
    let cluster = cluster(&[]);
    let film = Object::generated(1, FILM).accepting(&["Signature=a"]);
    cluster.origin.put("/film.mp4", film);
    get(&cluster, "Signature=a").expect(200);
    let id = cluster.coordinator.json(&["entry", "list"])[0]["id"].clone();
    let by_id = Call::get(&format!("/v1/entries/{}", id.as_str().unwrap()));
    by_id.send(cluster.edge().http).expect(404);
    let removed = cluster.coordinator.cli(&["source", "remove", "films"]);
    assert!(removed.status.success(), "{removed:?}");
    by_id.send(cluster.edge().http).expect(404);
}
