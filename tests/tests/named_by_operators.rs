//! Objects that a service or an operator names before any player does: an edge asks the origin, by
//! the same rules as for players.

#![allow(clippy::unwrap_used)]

use std::process::Output;

use chunkcache_tests::cluster::Cluster;
use chunkcache_tests::origin::{Fault, Object, Origin, Times};

const SIZE: u64 = 100_000;

fn precache(cluster: &Cluster, name: &str) -> Output {
    cluster.coordinator.cli(&["precache", name, "--follow"])
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Faults that the coordinator's own client once had: it followed a redirect out of the base with
/// the source's secret, sent `..%2f` on, and treated a closed connection as an error.
#[test]
fn an_origin_is_asked_by_an_edges_rules() {
    let cluster = Cluster::start();
    let elsewhere = Origin::start();
    elsewhere.put("/taken", Object::generated(1, SIZE));
    let base = format!("{}/library", cluster.origin.url());
    let secret = ["--header", "X-Secret: s3cr3t"];
    let added = cluster
        .coordinator
        .cli(&[&["source", "add", "films", &base], &secret[..]].concat());
    assert!(added.status.success(), "{}", said(&added));

    // To another host, and out of the base on the same host.
    let away = Fault::Redirect(format!("{}/taken", elsewhere.url()));
    let out = Fault::Redirect("/private".to_owned());
    for (path, fault) in [("/library/away", away), ("/library/out", out)] {
        let object = Object::generated(1, SIZE).fault(fault, Times::Always);
        cluster.origin.put(path, object);
    }
    cluster.origin.put("/private", Object::generated(1, SIZE));
    for name in ["films/away", "films/out"] {
        let refused = precache(&cluster, name);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    }
    assert!(elsewhere.all_hits().is_empty());
    assert!(cluster.origin.hits("/private").is_empty());

    // Paths that climb once they are decoded are refused before any origin is asked.
    let asked = cluster.origin.all_hits().len();
    let climbing = precache(&cluster, "films/..%2f..%2fsecret");
    assert_eq!(climbing.status.code(), Some(1), "{}", said(&climbing));
    assert_eq!(cluster.origin.all_hits().len(), asked);

    // Each connection is closed after its answer, as if it were kept.
    for number in 0..6 {
        let object = Object::generated(number, SIZE).fault(Fault::CloseSilently, Times::Always);
        cluster.origin.put(&format!("/library/{number}"), object);
        let done = precache(&cluster, &format!("films/{number}"));
        assert!(done.status.success(), "{number}: {}", said(&done));
    }
    let first = &cluster.origin.hits("/library/0")[0];
    assert_eq!(first.header("x-secret"), Some("s3cr3t"));
}

#[test]
fn without_an_edge_it_says_so() {
    let cluster = Cluster::with_edges(0);
    cluster.put("/film", Object::generated(1, SIZE));
    let refused = precache(&cluster, "media/film");
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("no edge is in session"),
        "{}",
        said(&refused)
    );
    assert!(cluster.origin.all_hits().is_empty());
}
