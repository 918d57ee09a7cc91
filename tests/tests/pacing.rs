//! One connection is held to a rate, whether its bytes come by `sendfile` or through TLS.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::{Duration, Instant};

use chunkcache_tests::authority::Authority;
use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, ClusterOptions, MIB, Object, content};

const RATE: u64 = MIB;
/// Five seconds' worth.
const BURST: u64 = 5 * RATE;
const SIZE: u64 = BURST + 2 * RATE;

#[test]
fn a_connection_is_paced_after_a_burst() {
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new(place.path());
    let identity = authority.issue("edge", "IP:127.0.0.1");
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 2,
        edge_arguments: vec!["--background-fill=false", "--client-rate=1MiB"],
        ..ClusterOptions::default()
    });
    cluster.edges[1].arguments.extend([
        format!("--tls-cert={}", identity.cert.display()),
        format!("--tls-key={}", identity.key.display()),
    ]);
    cluster.start_prepared();
    let target = cluster.put("/film", Object::generated(1, SIZE));
    // Two seconds behind the burst; more where the machine is busy.
    let paced = |taken: Duration| {
        assert!(taken > Duration::from_millis(1700), "{taken:?}");
        assert!(taken < Duration::from_secs(15), "{taken:?}");
    };
    let began = Instant::now();
    let answer = Call::get(&target).send(cluster.edge().http).expect(200);
    assert!(answer.body == content::bytes(1, 0, SIZE));
    paced(began.elapsed());
    // Each connection has a burst of its own: without one this takes nine seconds.
    let began = Instant::now();
    for _ in 0..3 {
        Call::get(&target)
            .range(0, 3 * MIB)
            .send(cluster.edge().http)
            .expect(206);
    }
    assert!(began.elapsed() < Duration::from_secs(8));

    let began = Instant::now();
    let url = format!("https://{}{target}", cluster.edges[1].http);
    let authority = authority.pem();
    let output = Command::new("curl")
        .args(["-sS", "--fail", "--http2", "--cacert"])
        .arg(authority)
        .arg(url)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(output.stdout == content::bytes(1, 0, SIZE));
    paced(began.elapsed());
}
