//! Real-world origins: mirrors, redirects, slow archives, special settings.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::{CHUNK, Cluster, Fault, Object, Origin, content};

const MIRRORED: u64 = 6 * CHUNK;

fn add(cluster: &Cluster, arguments: &[&str]) {
    let output = cluster
        .coordinator
        .cli(&[&["source", "add"], arguments].concat());
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A film of some seconds, at both origins.
fn mirrored(first: &Origin, second: &Origin, path: &str, second_etag: &str) {
    let film = |etag| {
        Object::generated(7, MIRRORED)
            .etag(Some(etag))
            .paced(4 << 20)
    };
    first.put(path, film("\"v1\""));
    second.put(path, film(second_etag));
}

#[test]
fn a_film_goes_on_from_another_mirror() {
    let mut cluster = Cluster::start();
    let mirror = Origin::start();
    let first = cluster.origin.url();
    add(&cluster, &["media", &first, &mirror.url()]);
    mirrored(&cluster.origin, &mirror, "/film.mp4", "\"v1\"");
    let mut reply = Call::get("/media/film.mp4")
        .timeout(Duration::from_secs(60))
        .open(cluster.edge().http)
        .unwrap();
    assert_eq!(reply.take(1 << 20).unwrap(), content::bytes(7, 0, 1 << 20));
    assert!(mirror.all_hits().is_empty(), "the first one serves");
    cluster.origin.stop();
    let rest = reply.finish();
    assert!(rest.complete);
    assert!(
        rest.body == content::bytes(7, 1 << 20, MIRRORED),
        "every byte"
    );
    assert!(!mirror.hits("/film.mp4").is_empty());
    // A cold object too, and the health is shown.
    mirror.put("/cold.mp4", Object::generated(8, 1000));
    let cold = Call::get("/media/cold.mp4")
        .send(cluster.edge().http)
        .expect(200);
    assert_eq!(cold.body, content::bytes(8, 0, 1000));
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.and_then(|value| value.parse::<u64>().ok())
    };
    let up = |url: &str| {
        let origin = url.trim_start_matches("http://");
        value(&format!(
            "cache_edge_origin_up{{source=\"media\",origin=\"{origin}\"}}"
        ))
    };
    assert_eq!((up(&first), up(&mirror.url())), (Some(0), Some(1)));
    let of_media = |name| value(&format!("cache_edge_{name}{{source=\"media\"}}"));
    let sent = of_media("source_origin_bytes_total");
    assert!(sent >= Some(MIRRORED), "{sent:?}");
    assert!(of_media("source_origin_errors_total") > Some(0));
    assert!(of_media("source_used_bytes") >= Some(MIRRORED));
    assert_eq!(of_media("source_quota_bytes"), None);
}

#[test]
fn a_mirror_of_another_version_gives_no_byte_of_a_body() {
    let mut cluster = Cluster::start();
    let mirror = Origin::start();
    let first = cluster.origin.url();
    add(&cluster, &["media", &first, &mirror.url()]);
    mirrored(&cluster.origin, &mirror, "/film.mp4", "\"v2\"");
    mirror.put(
        "/film.mp4",
        Object::generated(9, MIRRORED).etag(Some("\"v2\"")),
    );
    let mut reply = Call::get("/media/film.mp4")
        .timeout(Duration::from_secs(90))
        .open(cluster.edge().http)
        .unwrap();
    reply.take(1 << 20).unwrap();
    cluster.origin.stop();
    std::thread::sleep(Duration::from_secs(3));
    cluster.origin.start_again();
    let rest = reply.finish();
    let end = (1 << 20) + rest.body.len() as u64;
    assert!(
        rest.body == content::bytes(7, 1 << 20, end),
        "of one version"
    );
    assert!(rest.complete, "the first one came back");
}

#[test]
fn errors_and_where_it_is_said_absence_go_to_the_next_origin() {
    let cluster = Cluster::start();
    let mirror = Origin::start();
    let first = cluster.origin.url();
    add(
        &cluster,
        &["media", &first, &mirror.url(), "--failover-404"],
    );
    for (number, status) in [500, 503, 429].into_iter().enumerate() {
        let path = format!("/{number}");
        let fault = Fault::Status(status, Vec::new());
        cluster
            .origin
            .put(&path, Object::generated(1, 10).fault(fault, Times::Always));
        mirror.put(&path, Object::generated(2, 10));
        let target = format!("/media{path}");
        let got = Call::get(&target).send(cluster.edge().http).expect(200);
        assert_eq!(got.body, content::bytes(2, 0, 10), "{status}");
    }
    mirror.put("/absent", Object::generated(3, 10));
    Call::get("/media/absent")
        .send(cluster.edge().http)
        .expect(200);
    Call::get("/media/nowhere")
        .send(cluster.edge().http)
        .expect(404);
}

#[test]
fn requests_are_as_the_source_says() {
    let cluster = Cluster::start();
    let file = cluster.directory.path().join("headers");
    std::fs::write(&file, "# of the archive\nX-Secret: s3cr3t\n").unwrap();
    let (url, file) = (cluster.origin.url(), file.to_str().unwrap().to_owned());
    let settings = ["--header-file", &file, "--host", "films.example"];
    let rules = ["--ignore-query", "utm_*", "--ttl", "*.m3u8=0s"];
    add(
        &cluster,
        &[&["media", &url][..], &settings, &rules].concat(),
    );
    let address = cluster.edge().http;
    cluster.origin.put("/a?v=1", Object::generated(1, 10));
    for query in ["v=1&utm_source=x", "v=1", "CMCD=br%3D1&v=1"] {
        let got = Call::get(&format!("/media/a?{query}")).send(address);
        assert_eq!(got.expect(200).body, content::bytes(1, 0, 10), "{query}");
    }
    let hits = cluster.origin.hits("/a");
    assert_eq!(hits.len(), 1, "one object");
    assert_eq!(hits[0].header("host"), Some("films.example"));
    assert_eq!(hits[0].header("x-secret"), Some("s3cr3t"));
    assert!(
        hits[0]
            .header("cdn-loop")
            .unwrap()
            .starts_with("chunkcache-")
    );
    assert!(hits[0].header("via").unwrap().contains("edge-a"));
    let playlist = Object::generated(2, 10).header("Cache-Control", "max-age=600");
    let target = cluster.put("/live.m3u8", playlist);
    for _ in 0..3 {
        Call::get(&target).send(address).expect(200);
    }
    assert_eq!(cluster.origin.hits("/live.m3u8").len(), 3, "always asked");

    let shown = cluster.coordinator.json(&["source", "show", "media"]);
    assert!(!shown.to_string().contains("s3cr3t"), "{shown}");
    let changed = cluster
        .coordinator
        .cli(&["source", "set", "media", "--quota=1GiB"]);
    assert!(changed.status.success());
    cluster.put("/after", Object::generated(1, 10));
    Call::get("/media/after").send(address).expect(200);
    let after = &cluster.origin.hits("/after")[0];
    assert_eq!(after.header("x-secret"), Some("s3cr3t"), "kept");
}

#[test]
fn an_archive_that_thinks_is_waited_for() {
    let cluster = Cluster::start();
    let url = cluster.origin.url();
    add(&cluster, &["media", &url, "--first-byte-timeout", "40s"]);
    let slow = Object::generated(1, 1000).latency(Duration::from_secs(13));
    let target = cluster.put("/tape", slow);
    let got = Call::get(&target)
        .timeout(Duration::from_secs(60))
        .send(cluster.edge().http)
        .expect(200);
    assert_eq!(got.body, content::bytes(1, 0, 1000));
    assert_eq!(cluster.origin.hits("/tape").len(), 1, "asked once");
}

#[test]
fn redirects_go_where_the_source_says_without_its_secrets() {
    let cluster = Cluster::start();
    let cdn = Origin::start();
    cdn.put("/film?sig=1", Object::generated(1, 3 * CHUNK));
    let (url, host) = (cluster.origin.url(), cdn.address().to_string());
    add(
        &cluster,
        &[
            "media",
            &url,
            "--header",
            "X-Secret: s3cr3t",
            "--allow-redirect-to",
            &host,
        ],
    );
    let to = format!("http://{host}/film?sig=1");
    let redirecting = Object::generated(2, 10).fault(Fault::Redirect(to), Times::Always);
    let target = cluster.put("/film", redirecting);
    let got = Call::get(&target).send(cluster.edge().http).expect(200);
    assert_eq!(got.body, content::bytes(1, 0, 3 * CHUNK));
    assert!(
        cdn.all_hits()
            .iter()
            .all(|hit| hit.header("x-secret").is_none())
    );
    assert!(cluster.origin.hits("/film")[0].header("x-secret").is_some());
    cluster.wait_recorded("/film", &[(0, 3 * CHUNK)]);
}

#[test]
fn a_source_that_leads_to_the_edge_is_a_loop_at_once() {
    let cluster = Cluster::start();
    for mode in ["serve", "record", "passthrough"] {
        let own = cluster.edge().url();
        let base = format!("{own}/{mode}");
        add(&cluster, &[mode, &base, "--mode", mode]);
        let begun = Instant::now();
        let answer = Call::get(&format!("/{mode}/a")).send(cluster.edge().http);
        assert_eq!(answer.status, 508, "{mode}: {}", answer.text());
        assert!(begun.elapsed() < Duration::from_secs(2), "{mode}");
    }
}

#[test]
fn bad_settings_are_named_and_nothing_is_stored() {
    let cluster = Cluster::with_edges(0);
    let file = cluster.directory.path().join("not-pem");
    std::fs::write(&file, "nothing").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, field) in [
        (
            &["http://x", "s3://bucket", "--s3-endpoint=http://y"][..],
            "further_base_urls[0]",
        ),
        (&["https://x", "--ca", file], "connection.ca_pem"),
        (&["http://x", "--host", "a b"], "connection.host"),
        (
            &["http://x", "--http-proxy", "ftp://p"],
            "connection.http_proxy",
        ),
        (
            &["http://x", "--idle-timeout", "0s"],
            "connection.idle_timeout_ms",
        ),
        (
            &["http://x", "--allow-redirect-to", "https://c"],
            "redirect_hosts[0]",
        ),
        (&["http://x", "--path-style"], "source.s3"),
        (
            &["s3://b", "--region", "a b", "--s3-endpoint=http://y"],
            "s3.region",
        ),
        (
            &["http://x", "--ignore-query", "a=b"],
            "key_rules.ignore_query[0]",
        ),
    ] {
        let refused = cluster
            .coordinator
            .cli(&[&["source", "add", "bad"], arguments].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(field), "{arguments:?}: {said}");
    }
    let names = cluster.coordinator.json(&["source", "list"]).to_string();
    assert!(!names.contains("bad"), "{names}");
}
