//! The rate of one connection is limited, whether its bytes come by `sendfile` or through TLS, and
//! the rate of one body to the one that its player requests. Responses report both to players.
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
    // Two seconds after the burst; more if the machine is busy.
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

#[test]
fn a_body_is_paced_as_its_player_asks_and_no_other() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    });
    let target = cluster.put("/film", Object::generated(1, 4_000_000));
    let edge = cluster.edge().http;
    Call::get(&target).send(edge).expect(200);
    let time_of = |cmcd: &str, bytes: u64| {
        let began = Instant::now();
        let url = format!("{target}?CMCD={cmcd}");
        let answer = Call::get(&url).range(0, bytes).send(edge).expect(206);
        assert!(answer.body == content::bytes(1, 0, bytes));
        began.elapsed()
    };
    // A second's worth at once, then two seconds; more where the machine is busy.
    let taken = time_of("rtp%3D8000", 3_000_000);
    assert!(taken > Duration::from_millis(1700), "{taken:?}");
    // None of these is held back: at 1 MB/s they take twelve seconds.
    let began = Instant::now();
    for cmcd in ["rtp%3D8000%2Cbr%3D800000", "br%3D8000", "rtp%3D800000", ""] {
        time_of(cmcd, 4_000_000);
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    // At the 125 bytes a second that it asks for, it takes minutes.
    let taken = time_of("rtp%3D1", 80 << 10);
    assert!(taken > Duration::from_millis(1700), "{taken:?}");
    assert!(taken < Duration::from_secs(30), "{taken:?}");
}

/// `Common Media Server Data`, off unless the operator wants it.
#[test]
fn players_are_told_of_responses_where_the_operator_wants_it() {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 2,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    });
    let told = ["--cmsd", "--client-rate=1MiB"].map(String::from);
    cluster.edges[0].arguments.extend(told);
    cluster.start_prepared();
    let audio = Object::generated(1, 100_000)
        .content_type("audio/mp4")
        .header("CMSD-Dynamic", "\"origin\";rtt=900");
    let audio = cluster.put("/audio", audio);
    let film = Object::generated(2, 100_000).header("CMSD-Static", "ot=v, br=3000");
    let film = cluster.put("/film", film);
    for _ in 0..2 {
        let answer = Call::get(&audio).range(0, 9).send(cluster.edges[0].http);
        let answer = answer.expect(206);
        let value = answer.header("CMSD-Dynamic").unwrap().to_owned();
        let member: Vec<_> = value.split(';').collect();
        let keys = member.iter().map(|it| it.split('=').next().unwrap());
        let keys: Vec<_> = keys.filter(|key| *key != "etp").collect();
        assert_eq!(keys, ["\"edge-a\"", "mb", "rd", "rtt"], "{value}");
        assert!(value.contains(";mb=8388;"), "{value}");
        let numbers = member
            .iter()
            .skip(1)
            .map(|it| it.split('=').nth(1).unwrap());
        assert!(
            numbers.into_iter().all(|it| it.parse::<u32>().is_ok()),
            "{value}"
        );
        assert_eq!(answer.header("CMSD-Static"), Some("ot=a"));
    }
    let answer = Call::get(&film).send(cluster.edges[0].http).expect(200);
    assert_eq!(answer.header("CMSD-Static"), Some("ot=v, br=3000"));
    let answer = Call::get(&audio).send(cluster.edges[1].http).expect(200);
    let headers = ["CMSD-Dynamic", "CMSD-Static"].map(|name| answer.header(name));
    assert_eq!(headers, [None, None]);
}
