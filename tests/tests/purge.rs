//! Purges: by key, prefix, glob, tag and source; soft and hard; confirmed by every edge, or named.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, Coordinator, MIB, Object, content, eventually, heavy};
use serde_json::Value;

const SIZE: u64 = 3 * MIB;
const WAIT: Duration = Duration::from_secs(30);

fn object(seed: u64, tags: &str) -> Object {
    Object::generated(seed, SIZE)
        .header("Cache-Control", "max-age=3600")
        .header("Surrogate-Key", tags)
}

/// Puts an object, has it cached, and waits for its rows.
fn cached(cluster: &Cluster, path: &str, seed: u64, tags: &str) -> String {
    let target = cluster.put(path, object(seed, tags));
    for edge in &cluster.edges {
        Call::get(&target).send(edge.http).expect(200);
        cluster.wait_recorded_on(path, &edge.name, &[(0, SIZE)]);
    }
    target
}

#[track_caller]
fn cache_status(address: SocketAddr, target: &str) -> String {
    let answer = Call::get(target).send(address).expect(200);
    answer.header("cache-status").unwrap().to_owned()
}

#[track_caller]
fn purge(coordinator: &Coordinator, arguments: &[&str]) -> Value {
    let done = coordinator.json(&[&["purge"], arguments].concat());
    assert_eq!(done["unconfirmed_edges"], Value::Array(Vec::new()));
    done
}

fn is_recorded(cluster: &Cluster, path: &str) -> bool {
    let edges = cluster.edges.iter();
    edges
        .map(|edge| cluster.recorded(path, &edge.name))
        .any(|ranges| !ranges.is_empty())
}

#[test]
fn each_selector_purges_what_it_names_on_every_edge() {
    let cluster = Cluster::with_edges(2);
    let coordinator = &cluster.coordinator;
    let one = cached(&cluster, "/s/1/a.mp4", 1, "show-1 all");
    let two = cached(&cluster, "/s/1/b.mp4", 2, "show-1 all");
    let three = cached(&cluster, "/s/2/a.mp4", 3, "show-2 all");
    let purged = |arguments: &[&str], expected: u64, gone: &[&str], here: &[&str]| {
        let done = purge(coordinator, arguments);
        assert_eq!(done["purged"], expected, "{arguments:?}: {done}");
        assert_eq!(done["confirmed_edges"].as_array().unwrap().len(), 2);
        for edge in &cluster.edges {
            for target in here {
                let status = cache_status(edge.http, target);
                assert!(status.contains("hit"), "{arguments:?} {target}: {status}");
            }
        }
        for target in gone {
            let path = target.strip_prefix("/media").unwrap();
            assert!(!is_recorded(&cluster, path), "{arguments:?} {target}");
            let hits = cluster.origin.hits(path).len();
            for edge in &cluster.edges {
                let status = cache_status(edge.http, target);
                assert!(
                    !status.contains("; hit"),
                    "{arguments:?} {target}: {status}"
                );
                cluster.wait_recorded_on(path, &edge.name, &[(0, SIZE)]);
            }
            assert!(cluster.origin.hits(path).len() > hits);
        }
    };
    purged(&["--key", "media/s/1/a.mp4"], 1, &[&one], &[&two, &three]);
    purged(&["--prefix", "media/s/1/"], 2, &[&one, &two], &[&three]);
    purged(&["--glob", "media/s/*/a.mp4"], 2, &[&one, &three], &[&two]);
    purged(&["--tag", "show-1"], 2, &[&one, &two], &[&three]);
    purged(
        &["--tag", "show-1", "--source", "media"],
        2,
        &[&one, &two],
        &[&three],
    );
    purged(&["--source", "media"], 3, &[&one, &two, &three], &[]);
    purged(&["--tag", "show"], 0, &[], &[&one, &two, &three]);
}

#[test]
fn a_soft_purge_asks_the_origin_and_keeps_the_bytes() {
    let cluster = Cluster::start();
    let target = cached(&cluster, "/soft.mp4", 1, "a b");
    let bytes = cluster.origin.body_bytes("/soft.mp4");
    let done = purge(&cluster.coordinator, &["--tag", "b", "--soft"]);
    assert_eq!(done["purged"], 1);
    let status = cache_status(cluster.edge().http, &target);
    assert!(status.contains("fwd=stale"), "{status}");
    assert!(cluster.origin.body_bytes("/soft.mp4") <= bytes + 1);
    let status = cache_status(cluster.edge().http, &target);
    assert!(status.contains("hit"), "{status}");
}

/// These are in no table: an edge has them in memory.
#[test]
fn what_only_edges_know_is_purged_too() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    // Without a validator it is kept as a whole.
    let list = Object::generated(7, 5_000)
        .etag(None)
        .last_modified(None)
        .header("Cache-Control", "max-age=3600")
        .header("Cache-Tag", "lists, other");
    let target = cluster.put("/list.m3u8", list.clone());
    Call::get(&target).send(address).expect(200);
    assert!(cache_status(address, &target).contains("hit"));
    let done = purge(&cluster.coordinator, &["--tag", "lists"]);
    assert_eq!(done["purged"], 1, "{done}");
    assert!(!cache_status(address, &target).contains("hit"));
    // The absence of an object is remembered too.
    Call::get("/media/later.mp4").send(address).expect(404);
    cluster.put("/later.mp4", object(3, "x"));
    purge(&cluster.coordinator, &["--key", "media/later.mp4"]);
    Call::get("/media/later.mp4").send(address).expect(200);
}

#[test]
fn an_edge_that_was_away_is_named_and_purges_when_it_is_back() {
    let mut cluster = Cluster::with_edges(2);
    let target = cached(&cluster, "/away.mp4", 1, "t");
    let other = cached(&cluster, "/other.mp4", 2, "u");
    cluster.edges[1].kill();
    eventually("the session ended", Duration::from_secs(20), || {
        let edges = cluster.coordinator.json(&["edge", "list"]);
        let mut edges = edges.as_array().unwrap().iter();
        edges.any(|edge| edge["state"] == "suspect").then_some(())
    });
    let name = cluster.edges[1].name.clone();
    let output = cluster
        .coordinator
        .cli(&["purge", "--tag", "t", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(done["unconfirmed_edges"], serde_json::json!([name]));
    cluster.put("/away.mp4", object(9, "t"));
    cluster.edges[1].start();
    let answer = Call::get(&target).send(cluster.edges[1].http).expect(200);
    assert!(
        answer.body == content::bytes(9, 0, SIZE),
        "the old version was served"
    );
    assert!(cache_status(cluster.edges[1].http, &other).contains("hit"));
}

/// Edges remember the number of the last purge that they carried out. A database that was restored
/// from a dump which is older than these purges, and than the object, must give higher ones.
#[test]
fn an_edge_that_was_away_learns_of_purges_in_a_restored_database() {
    let mut cluster = Cluster::with_edges(2);
    let target = cluster.put("/away.mp4", object(1, ""));
    Call::get(&target).send(cluster.edges[1].http).expect(200);
    cluster.wait_recorded_on("/away.mp4", "edge-b", &[(0, SIZE)]);
    for _ in 0..3 {
        purge(&cluster.coordinator, &["--key", "media/other.mp4"]);
    }
    cluster.edges[1].kill();
    cluster.coordinator.kill();
    cluster.postgres.query(
        "TRUNCATE cache_purges, cache_chunks, cache_keys, cache_entries, precache_jobs \
         RESTART IDENTITY",
    );
    cluster.coordinator.start();
    let arguments = ["purge", "--key", "media/away.mp4", "--output", "json"];
    // Until the lease of the killed one has ended, nobody leads.
    let done = eventually("it leads", WAIT, || {
        let output = cluster.coordinator.cli(&arguments);
        serde_json::from_slice::<Value>(&output.stdout).ok()
    });
    let unconfirmed = done["unconfirmed_edges"].as_array().unwrap();
    assert!(unconfirmed.contains(&"edge-b".into()), "{done}");
    cluster.put("/away.mp4", object(9, ""));
    cluster.edges[1].start();
    let answer = Call::get(&target).send(cluster.edges[1].http).expect(200);
    assert!(
        answer.body == content::bytes(9, 0, SIZE),
        "the old version was served"
    );
}

#[test]
fn over_http_with_a_method_of_its_own() {
    let cluster = Cluster::start();
    let target = cached(&cluster, "/a/1.mp4", 1, "x y");
    let address = cluster.coordinator.http;
    let purge = |call: Call| call.send(address).expect(200).json();
    assert_eq!(purge(Call::new("PURGE", &target))["purged"], 1);
    assert!(!cache_status(cluster.edge().http, &target).contains("; hit"));
    cluster.wait_recorded("/a/1.mp4", &[(0, SIZE)]);
    let soft = Call::new("PURGE", "/media/a/*").header("Soft-Purge", "1");
    assert_eq!(purge(soft)["purged"], 1);
    assert!(cache_status(cluster.edge().http, &target).contains("fwd=stale"));
    let by_tag = Call::new("PURGE", "/").header("Surrogate-Key", "y z");
    assert_eq!(purge(by_tag)["purged"], 1);
    let nothing = Call::new("PURGE", "/").send(address).expect(400);
    assert!(nothing.text().contains("expected /SOURCE/PATH"));
    Call::new("PURGE", "/unknown/a").send(address).expect(404);
    Call::new("PURGE", "/media/..%2fa")
        .send(address)
        .expect(400);
}

/// A table of `LOAD_PURGE` objects, with one chunk each on an edge: purged by tag, by prefix, and
/// all. With 1,000,000 and release binaries, it gives the figures of docs/bench/coordinator.md.
#[test]
fn many_objects_at_once() {
    let _turn = heavy();
    let count: u64 = std::env::var("LOAD_PURGE").map_or(20_000, |it| it.parse().unwrap());
    let cluster = Cluster::start();
    let edge = &cluster.edge().name;
    cluster.postgres.query(&format!(
        "INSERT INTO cache_entries (id, source, path, validator, size, chunk_size, \
         chunkless_since, tags)
         SELECT md5(n::text)::uuid, 'media', 's/' || n % 9 || '/' || n || '.mp4', '\"v\"', 1000,
                2097152, NULL,
             ARRAY['show-' || n / 1000]
         FROM generate_series(0, {count} - 1) n;
         INSERT INTO cache_keys (hash, entry_id, validated_at, fresh_until)
         SELECT md5('k' || n)::uuid, md5(n::text)::uuid, now(), now()
         FROM generate_series(0, {count} - 1) n;
         INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
         SELECT md5(n::text)::uuid, (SELECT id FROM edges WHERE name = '{edge}'), 0, 1000, n
         FROM generate_series(0, {count} - 1) n"
    ));
    let tables = "cache_entries, cache_keys, cache_chunks";
    cluster.postgres.query(&format!("VACUUM ANALYZE {tables}"));
    let left = |table: &str| {
        let rows = cluster
            .postgres
            .query(&format!("SELECT count(*) FROM {table}"));
        rows[0][0].parse::<u64>().unwrap()
    };
    let of_prefix = (0..count).filter(|n| n % 9 == 3 && n / 1000 != 7).count() as u64;
    let mut expected = count;
    for (arguments, purged) in [
        (["--tag=show-7", "--source=media"].as_slice(), 1_000),
        (&["--prefix=media/s/3/"], of_prefix),
        (&["--source=media"], count - 1_000 - of_prefix),
    ] {
        let began = Instant::now();
        let done = purge(&cluster.coordinator, arguments);
        println!(
            "{purged} of {count} by {arguments:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(done["purged"], purged);
        eventually("the rows are gone", Duration::from_secs(600), || {
            (left("cache_purges WHERE NOT is_done") == 0).then_some(())
        });
        println!("its rows: {:?}", began.elapsed());
        expected -= purged;
        let rows = (left("cache_keys"), left("cache_chunks"));
        assert_eq!(rows, (expected, expected));
    }
    let metrics = Call::get("/metrics").send(cluster.coordinator.http).text();
    for line in metrics.lines() {
        let of_statements = line.starts_with("cache_coordinator_database_statement_seconds_sum");
        let seconds: f64 = line.rsplit(' ').next().unwrap().parse().unwrap_or_default();
        if of_statements && seconds > 0.1 {
            println!("{line}");
        }
    }
}

/// As if the leader had died right after it recorded a purge: no edge was notified, and no row is
/// deleted.
#[test]
fn a_purge_that_a_leader_left_hides_its_keys_and_is_finished() {
    let mut cluster = Cluster::with_edges(2);
    let (first, second) = (cluster.edges[0].http, cluster.edges[1].http);
    let mut targets = Vec::new();
    for path in ["/s/a.mp4", "/s/b.mp4"] {
        let target = cluster.put(path, object(1, ""));
        Call::get(&target).send(first).expect(200);
        cluster.wait_recorded_on(path, "edge-a", &[(0, SIZE)]);
        targets.push(target);
    }
    cluster.postgres.query(
        "INSERT INTO cache_purges (source, kind, value, soft, is_done, first_path, last_path)
         VALUES ('media', 'prefix', 's/', false, false, 's/', 's/' || chr(1114111))",
    );
    cluster.put("/s/a.mp4", object(2, ""));
    let fresh = content::bytes(2, 0, SIZE);
    let asked = Call::get(&targets[0]).send(second).expect(200);
    assert!(
        asked.body == fresh,
        "the key from before the purge is hidden"
    );
    cluster.wait_recorded_on("/s/a.mp4", "edge-b", &[(0, SIZE)]);

    // It would also drop chunks that it fetched since, because it does not know of the purge.
    cluster.edges[1].kill();
    cluster.coordinator.kill();
    cluster.coordinator.start();
    let count = |table: &str| {
        let rows = cluster
            .postgres
            .query(&format!("SELECT count(*) FROM {table}"));
        rows[0][0].clone()
    };
    eventually("the next leader finishes it", WAIT, || {
        (count("cache_purges WHERE NOT is_done") == "0").then_some(())
    });
    assert_eq!(count("cache_keys"), "1", "what was validated since stays");
    let kept = cluster.recorded("/s/a.mp4", "edge-b");
    assert!(!kept.is_empty(), "and what was fetched since");
    eventually("the edge that had it has dropped it", WAIT, || {
        let of_edge = "cache_chunks c JOIN edges e ON e.id = c.edge_id WHERE e.name = 'edge-a'";
        (count(of_edge) == "0").then_some(())
    });
    let again = Call::get(&targets[0]).send(first).expect(200);
    assert!(again.body == fresh);
}
