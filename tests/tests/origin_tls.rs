//! An origin whose TLS is wrong: it gets no request and is not trusted, the client gets an error,
//! cached bytes are still served.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use chunkcache_tests::authority::{Authority, Identity};
use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::{
    CHUNK, Cluster, ClusterOptions, Handshake, Object, TlsFront, content, eventually,
};

const SIZE: u64 = 3 * CHUNK + 77;
const NAMES: &str = "IP:127.0.0.1,DNS:localhost";

/// A fault of an origin, its words in a log or an answer, and the clients' status: 502 if it did
/// something wrong, 504 if it did nothing in time.
struct Fault {
    name: &'static str,
    handshake: Handshake,
    told: &'static str,
    status: u16,
}

struct Library {
    cluster: Cluster,
    good: Identity,
    faults: Vec<Fault>,
}

impl Library {
    /// An edge that trusts one authority in place of the system's.
    fn start(edge_arguments: Vec<&'static str>) -> Library {
        let mut cluster = Cluster::prepare(ClusterOptions {
            edges: 1,
            edge_arguments,
            ..ClusterOptions::default()
        });
        let place = |name: &str| {
            let place = cluster.directory.path().join(name);
            std::fs::create_dir(&place).unwrap();
            place
        };
        let authority = Authority::new(&place("known"));
        let stranger = Authority::new(&place("unknown"));
        let good = authority.issue("good", NAMES);
        let unknown = stranger.issue("unknown", NAMES);
        let expired = authority.issue_expired("expired", NAMES);
        let other = authority.issue("other", "DNS:other.example,IP:127.0.0.2");
        let fault = |name, handshake, told, status| Fault {
            name,
            handshake,
            told,
            status,
        };
        let faults = vec![
            fault("unknown", Handshake::With(unknown), "UnknownIssuer", 502),
            fault("expired", Handshake::With(expired), "expired", 502),
            fault("other", Handshake::With(other), "for another name", 502),
            fault("plain", Handshake::PlainHttp, "corrupt message", 502),
            fault("closes", Handshake::Close, "eof", 502),
            fault("closes-within", Handshake::CloseWithin, "eof", 502),
            fault("stalls", Handshake::Stall, "no answer within", 504),
        ];
        let trusted = authority.pem().display().to_string();
        cluster.edges[0].environment = vec![("SSL_CERT_FILE".into(), trusted)];
        cluster.start_prepared();
        Library {
            cluster,
            good,
            faults,
        }
    }

    /// Adds the origin behind TLS, as a source with this name.
    fn source(&self, name: &str, handshake: &Handshake) -> TlsFront {
        let front = TlsFront::start(self.cluster.origin.address(), handshake.clone());
        let added = self
            .cluster
            .coordinator
            .cli(&["source", "add", name, &front.url()]);
        assert!(added.status.success(), "{added:?}");
        front
    }

    fn origin_errors(&self) -> u64 {
        let metrics = Call::get("/metrics").send(self.cluster.edge().admin);
        let text = metrics.expect(200).text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("cache_edge_origin_errors_total "));
        line.unwrap().parse().unwrap()
    }
}

#[track_caller]
fn assert_problem(answer: &Response, fault: &Fault) {
    let (name, text) = (fault.name, answer.text());
    assert_eq!(answer.status, fault.status, "{name}: {text}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.to_lowercase().contains(&fault.told.to_lowercase()),
        "{name}: {detail}"
    );
    assert!(!detail.contains("other.example"), "{detail}");
    let said = answer.header("cache-status").unwrap();
    let expected = if fault.status == 504 {
        "origin-unreachable"
    } else {
        "bad-origin"
    };
    assert!(said.contains(expected), "{name}: {said}");
}

#[test]
fn an_origin_whose_tls_is_wrong_is_a_problem_until_it_is_mended() {
    let library = Library::start(vec!["--background-fill=false"]);
    let (cluster, address) = (&library.cluster, library.cluster.edge().http);
    let errors = library.origin_errors();
    std::thread::scope(|scope| {
        for (seed, fault) in (1..).zip(&library.faults) {
            let library = &library;
            scope.spawn(move || {
                let front = library.source(fault.name, &fault.handshake);
                let path = format!("/{}.mp4", fault.name);
                cluster.origin.put(&path, Object::generated(seed, SIZE));
                let target = format!("/{}{path}", fault.name);
                let began = Instant::now();
                let answer = Call::get(&target).send(address);
                assert!(
                    began.elapsed() < Duration::from_secs(15),
                    "{}: {:?}",
                    fault.name,
                    began.elapsed()
                );
                assert_problem(&answer, fault);
                let asked = front.connections();
                assert!(
                    (2..40).contains(&asked),
                    "{}: asked {asked} times",
                    fault.name
                );
                assert!(cluster.origin.hits(&path).is_empty(), "{}", fault.name);
                assert!(cluster.recorded(&path, "edge-a").is_empty());
                // Nothing of it is remembered.
                front.set(Handshake::With(library.good.clone()));
                let mended = Call::get(&target).send(address).expect(200);
                assert!(mended.body == content::bytes(seed, 0, SIZE));
            });
        }
    });
    let counted = library.origin_errors() - errors;
    let faults = library.faults.len() as u64;
    assert!(counted >= faults, "{counted} of {faults} were counted");
}

#[test]
fn cached_ranges_outlive_an_origins_tls() {
    let library = Library::start(vec!["--background-fill=false", "--chunk-wait-timeout=6s"]);
    let (cluster, address) = (&library.cluster, library.cluster.edge().http);
    std::thread::scope(|scope| {
        for (seed, fault) in (11..).zip(&library.faults) {
            let library = &library;
            scope.spawn(move || {
                let name = fault.name;
                let good = Handshake::With(library.good.clone());
                let front = library.source(name, &good);
                let paths = [format!("/{name}-stale"), format!("/{name}-strict")];
                let controls = ["max-age=0", "max-age=0, must-revalidate"];
                let part = |path: &str, start: u64, end: u64| {
                    Call::get(&format!("/{name}{path}"))
                        .range(start, end)
                        .send(address)
                };
                for (path, control) in paths.iter().zip(controls) {
                    let object = Object::generated(seed, SIZE).header("Cache-Control", control);
                    cluster.origin.put(path, object);
                    part(path, 0, CHUNK).expect(206);
                    cluster.wait_recorded(path, &[(0, CHUNK)]);
                }
                front.set(fault.handshake.clone());
                // Stored bytes are served and marked stale; if the origin forbids that, the answer
                // is a problem.
                let cached = part(&paths[0], 1000, CHUNK).expect(206);
                assert!(cached.body == content::bytes(seed, 1000, CHUNK), "{name}");
                let said = cached.header("cache-status").unwrap();
                assert!(
                    said.contains("fwd=stale") && said.contains("stale-if-error"),
                    "{name}: {said}"
                );
                assert_problem(&part(&paths[1], 0, CHUNK), fault);
                // Missing bytes are waited for as long as an edge waits.
                let missing = part(&paths[0], 2 * CHUNK, SIZE);
                assert_eq!(missing.status, 503, "{name}: {}", missing.text());
                let said = missing.header("cache-status").unwrap();
                assert!(said.contains("timed-out"), "{name}: {said}");
                assert!(missing.header("retry-after").is_some());
                // They arrive once the origin is repaired, even for requests that waited meanwhile.
                let mut waiting = Call::get(&format!("/{name}{}", paths[0]))
                    .open(address)
                    .unwrap();
                let first = waiting.take(CHUNK as usize).unwrap();
                front.set(good);
                let rest = waiting.finish();
                assert!(rest.complete, "{name}");
                assert!([first, rest.body].concat() == content::bytes(seed, 0, SIZE));
                eventually("the strict one is back", Duration::from_secs(20), || {
                    let answer = part(&paths[1], 0, CHUNK);
                    (answer.status == 206).then_some(())
                });
            });
        }
    });
}
