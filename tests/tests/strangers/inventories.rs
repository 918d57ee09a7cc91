//! Inventories of many small entries, and what is known of keys that clients choose.

use std::time::{Duration, Instant};

use chunkcache_tests::http::{Call, Connection};
use chunkcache_tests::{Cluster, Object, eventually};

const OBJECTS: u64 = 1_500;
const CLIENTS: u64 = 8;

/// Each client takes its part over one connection.
fn ask_for_all(cluster: &Cluster, method: &str, prefix: &str) {
    let address = cluster.edge().http;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut connection = Connection::to(address);
                for number in (client..OBJECTS).step_by(CLIENTS as usize) {
                    let target = format!("/media/{prefix}-{number}");
                    let call = Call::new(method, &target).timeout(Duration::from_secs(20));
                    connection.send(&call).expect(200);
                }
            });
        }
    });
}

fn put_all(cluster: &Cluster, prefix: &str) {
    for number in 0..OBJECTS {
        cluster.put(
            &format!("/{prefix}-{number}"),
            Object::generated(number, 100),
        );
    }
}

fn metric(address: std::net::SocketAddr, name: &str) -> Option<u64> {
    let text = Call::get("/metrics").send(address).text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[test]
fn objects_stored_while_the_coordinator_is_stopped_are_recorded_within_seconds() {
    let mut cluster = Cluster::start();
    put_all(&cluster, "alone");
    cluster.coordinator.terminate();
    ask_for_all(&cluster, "GET", "alone");
    let begun = Instant::now();
    cluster.coordinator.start();
    cluster.edge_mut().wait_ready();
    let took = begun.elapsed();
    let rows = || cluster.postgres.number("SELECT count(*) FROM cache_chunks");
    eventually("all are recorded", Duration::from_secs(20), || {
        (rows() == OBJECTS as i64).then_some(())
    });
    println!("{OBJECTS} objects stored without a coordinator: ready {took:?} after its start");
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn a_cluster_counts_what_it_knows_of_keys_that_clients_choose() {
    let mut cluster = Cluster::start();
    put_all(&cluster, "head");
    let before = cluster.edge_mut().process().resident_anonymous_bytes();
    ask_for_all(&cluster, "HEAD", "head");
    let after = cluster.edge_mut().process().resident_anonymous_bytes();
    let each = after.saturating_sub(before) / OBJECTS;
    println!("a HEAD leaves {each} bytes of the edge's memory");
    assert!(each < 8 << 10, "{each} bytes");
    let admin = cluster.edge().admin;
    let is_of_all = |count: u64| (1..=OBJECTS).contains(&count).then_some(());
    is_of_all(metric(admin, "cache_edge_entries").unwrap()).unwrap();
    is_of_all(metric(admin, "cache_edge_known_keys").unwrap()).unwrap();
    // Counted when it looks for entries to forget.
    let http = cluster.coordinator.http;
    eventually(
        "the coordinator counts them",
        Duration::from_secs(30),
        || is_of_all(metric(http, "cache_coordinator_entries")?),
    );
}
