//! Access control: tokens and their roles, certificates, and that an edge may only use its own
//! name.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use chunkcache_tests::authority::{Authority, Identity, curl_trusting};
use chunkcache_tests::browser::Browser;
use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, ClusterOptions, Edge, MIB, Object, eventually, heavy};

const ROLES: [&str; 4] = ["viewer", "service", "operator", "edge"];
const WAIT: Duration = Duration::from_secs(30);

fn token(role: &str) -> String {
    format!("{role}-secret-0123456789")
}

/// Writes the file of tokens, and a file for each of them.
fn write_tokens(directory: &Path) -> PathBuf {
    let mut lines = "# role name token\n".to_owned();
    for role in ROLES {
        let name = if role == "edge" { "edge-a" } else { "someone" };
        lines += &format!("{role} {name} {}\n", token(role));
        fs::write(directory.join(role), token(role) + "\n").unwrap();
    }
    fs::write(directory.join("wrong"), "nobody-secret-0123456789").unwrap();
    let file = directory.join("tokens");
    fs::write(&file, lines).unwrap();
    file
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn readyz(edge: &Edge) -> Option<Response> {
    Some(Call::get("/readyz").open(edge.admin).ok()?.finish())
}

/// Waits until the edge reports that it is not ready for this reason.
#[track_caller]
fn wait_refused(edge: &Edge, reason: &str) {
    eventually(&format!("{} is refused", edge.name), WAIT, || {
        let answer = readyz(edge)?;
        (answer.status == 503 && answer.text().contains(reason)).then_some(())
    });
}

/// Edges with their tokens; a coordinator with tokens for every role.
fn guarded(edges: usize) -> Cluster {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    });
    let directory = cluster.directory.path().to_owned();
    let file = write_tokens(&directory);
    let more = format!("--access-tokens-file={}", file.display());
    cluster.coordinator.arguments.push(more);
    let more = format!("--coordinator-token-file={}/edge", directory.display());
    for edge in &mut cluster.edges {
        edge.arguments.push(more.clone());
    }
    cluster.postgres.start_again();
    cluster.coordinator.start();
    cluster
}

fn cli(cluster: &Cluster, token: Option<&str>, arguments: &[&str]) -> Output {
    let option = token.map(|it| {
        format!(
            "--token-file={}",
            cluster.directory.path().join(it).display()
        )
    });
    let more: Vec<&str> = option.as_deref().into_iter().collect();
    cluster.coordinator.cli(&[arguments, &more].concat())
}

#[test]
fn each_role_may_what_it_may_and_no_more() {
    let mut cluster = guarded(1);
    let origin = cluster.origin.url();
    let add = ["source", "add", "media", &origin];
    // In the order of the table below: read, use, change.
    let commands: [&[&str]; 3] = [&["status"], &["precache", "media/film.mp4"], &add];
    cluster.put("/film.mp4", Object::generated(7, 4 * MIB));
    assert!(cli(&cluster, Some("operator"), &add).status.success());
    cluster.edge_mut().start();

    let known = |role: &str| format!("has the role {role}");
    let needs = [
        "viewer, service or operator",
        "service or operator",
        "operator",
    ];
    for (who, allowed, refusal) in [
        (None, 0, "bearer token".to_owned()),
        (Some("wrong"), 0, "not one of this coordinator's".to_owned()),
        (Some("edge"), 0, known("edge")),
        (Some("viewer"), 1, known("viewer")),
        (Some("service"), 2, known("service")),
        (Some("operator"), 3, String::new()),
    ] {
        for (at, command) in commands.iter().enumerate() {
            let output = cli(&cluster, who, command);
            let said = text(&output);
            let expected = i32::from(at >= allowed);
            assert_eq!(
                output.status.code(),
                Some(expected),
                "{who:?} {command:?}: {said}"
            );
            if at >= allowed {
                assert!(said.contains(&refusal), "{who:?} {command:?}: {said}");
                assert!(who == Some("wrong") || said.contains(needs[at]), "{said}");
            }
            assert!(!said.contains("secret"), "a token is shown: {said}");
        }
    }

    // The dashboard: its page is for everyone, its data and actions are not.
    let http = cluster.coordinator.http;
    for path in ["/", "/assets/app.js", "/livez", "/readyz", "/metrics"] {
        Call::get(path).send(http).expect(200);
    }
    let drain = "/api/v1/edges/edge-a/drain";
    for (who, look, act) in [
        (None, 401, 401),
        (Some("nobody"), 401, 401),
        (Some("edge"), 403, 403),
        (Some("viewer"), 200, 403),
        (Some("service"), 200, 403),
        (Some("operator"), 200, 204),
    ] {
        let with = |call: Call| match who {
            None => call,
            Some(who) => call.header("Authorization", &format!("Bearer {}", token(who))),
        };
        for path in ["/api/v1/overview", "/api/v1/history", "/api/v1/entries"] {
            let answer = with(Call::get(path)).send(http);
            assert_eq!(answer.status, look, "{who:?} {path}: {}", answer.text());
            if look == 401 {
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            }
        }
        let stream = with(Call::get("/api/v1/stream")).open(http).unwrap();
        assert_eq!(stream.status, look, "{who:?}");
        // nginx would hold events back until they fill a buffer.
        assert_eq!(stream.header("x-accel-buffering"), Some("no"));
        let body = "{\"drain\":false}";
        let post = with(Call::new("POST", drain))
            .header("X-Requested-With", "chunkcache")
            .header("Content-Type", "application/json");
        let answer = post.clone().body(body).send(http);
        assert_eq!(answer.status, act, "{who:?}: {}", answer.text());
    }
    // Another site cannot send this header, whoever is signed in.
    let foreign = Call::new("POST", drain)
        .header("Authorization", &format!("Bearer {}", token("operator")))
        .header("Content-Type", "application/json")
        .body("{\"drain\":true}");
    foreign.send(http).expect(403);

    let log = cluster.coordinator.process().output();
    assert!(!log.contains("secret"), "a token is in the log");
}

#[test]
fn an_edge_speaks_for_itself_alone_and_tokens_change_while_running() {
    let mut cluster = guarded(2);
    let directory = cluster.directory.path().to_owned();
    cluster.edges[0].start();
    // edge-b has edge-a's token.
    cluster.edges[1].spawn();
    wait_refused(&cluster.edges[1], "an edge speaks for itself alone");

    let with = |file: &str| {
        format!(
            "--coordinator-token-file={}",
            directory.join(file).display()
        )
    };
    let url = format!("http://{}", cluster.coordinator.grpc);
    let mut nobody = Edge::prepare("edge-c", &directory, &url, &[]);
    nobody.spawn();
    wait_refused(&nobody, "needs a bearer token of the role edge");
    nobody.kill();
    let mut operator = Edge::prepare("edge-c", &directory, &url, &[&with("operator")]);
    operator.spawn();
    wait_refused(&operator, "has the role operator");

    // Its own token is issued, and takes effect without a restart of either.
    let tokens = directory.join("tokens");
    let mut lines = fs::read_to_string(&tokens).unwrap();
    lines += "edge edge-b another-secret-0123456789\n";
    fs::write(directory.join("edge"), "another-secret-0123456789").unwrap();
    fs::write(&tokens, &lines).unwrap();
    cluster.edges[1].wait_ready();
    // And revoked: what is open under it ends.
    let bearer = format!("Bearer {}", token("viewer"));
    let stream = Call::get("/api/v1/stream").header("Authorization", &bearer);
    let stream = stream.open(cluster.coordinator.http).unwrap();
    assert_eq!(stream.status, 200);
    let kept: String = lines
        .lines()
        .filter(|line| !line.starts_with("viewer") && !line.starts_with("edge edge-a"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&tokens, kept).unwrap();
    eventually("the viewer's token is taken back", WAIT, || {
        let output = cli(&cluster, Some("viewer"), &["status"]);
        (!output.status.success()).then_some(())
    });
    let ended = thread::spawn(move || stream.finish().complete);
    eventually("its stream ends", WAIT, || {
        ended.is_finished().then_some(())
    });
    assert!(ended.join().unwrap());
    wait_refused(&cluster.edges[0], "an edge speaks for itself alone");
    assert!(
        cli(&cluster, Some("operator"), &["status"])
            .status
            .success()
    );
}

#[test]
fn a_file_of_tokens_that_can_not_be_used_ends_the_start() {
    let mut cluster = Cluster::prepare(ClusterOptions::default());
    let file = cluster.directory.path().join("tokens");
    fs::write(&file, "viewer wall secret\n").unwrap();
    let more = format!("--access-tokens-file={}", file.display());
    cluster.coordinator.arguments.push(more);
    cluster.coordinator.spawn();
    let status = cluster.coordinator.process().wait_for_exit(WAIT);
    let log = cluster.coordinator.process().output();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("line 1") && !log.contains("secret"), "{log}");
}

#[test]
fn people_sign_in_to_the_dashboard() {
    let _turn = heavy();
    let mut cluster = guarded(1);
    cluster.edge_mut().start();
    let Some(browser) = Browser::start(cluster.directory.path()) else {
        return;
    };
    browser.open(&format!("http://{}/", cluster.coordinator.http));
    let sign_in = |token: &str| {
        browser.wait("the form", "document.querySelector('#token')");
        browser.run(&format!(
            "document.querySelector('#token').value = '{token}'"
        ));
        browser.click("main form button");
    };
    browser.wait(
        "why",
        "document.querySelector('main .notice').textContent.includes('needs a bearer token')",
    );
    sign_in("nobody-secret-0123456789");
    browser.wait(
        "why",
        "document.querySelector('main .notice').textContent.includes('is not one of')",
    );
    sign_in(&token("viewer"));
    browser.wait("the edge", "document.body.innerText.includes('edge-a')");
    browser.wait(
        "it is live",
        "document.querySelector('#live').textContent.startsWith('live')",
    );
    browser.click("[data-key='dedge-a']");
    browser.wait(
        "a viewer may not drain",
        "document.querySelector('#live').textContent.includes('needs operator')",
    );
    browser.click("#sign-out");
    sign_in(&token("operator"));
    browser.wait("the edge", "document.body.innerText.includes('edge-a')");
    browser.click("[data-key='dedge-a']");
    browser.wait("it drains", "document.querySelector('.state-draining')");
}

/// A page of another site whose name points to this machine (DNS rebinding) is same-origin with the
/// dashboard for the browser, and may send any header. Without tokens, its host name reveals it.
#[test]
fn another_site_that_leads_here_by_its_name_gets_nothing() {
    let cluster = Cluster::with_edges(1);
    let http = cluster.coordinator.http;
    let look = |host: &str| {
        let call = Call::get("/api/v1/overview").without_host();
        call.header("Host", host).send(http).status
    };
    let drain = |host: &str| {
        let call = Call::new("POST", "/api/v1/edges/edge-a/drain").without_host();
        let call = call
            .header("Host", host)
            .header("X-Requested-With", "chunkcache")
            .header("Content-Type", "application/json");
        call.body(r#"{"drain":true}"#).send(http).status
    };
    let port = http.port();
    for host in ["rebound.example", "127.0.0.1.example", ""] {
        let host = &format!("{host}:{port}");
        assert!([400, 421].contains(&look(host)), "{host}");
        assert!([400, 421].contains(&drain(host)), "{host}");
    }
    let edges = cluster.coordinator.json(&["edge", "list"]);
    assert_eq!(edges[0]["state"], "active");
    for host in ["127.0.0.1", "localhost", "[::1]", "workstation"] {
        assert_eq!(look(&format!("{host}:{port}")), 200, "{host}");
    }
    // With tokens a caller proves its identity, whatever host name it uses.
    let mut cluster = guarded(1);
    cluster.edge_mut().start();
    let call = Call::get("/api/v1/overview").without_host();
    let call = call
        .header("Host", "cache.example")
        .header("Authorization", &format!("Bearer {}", token("viewer")));
    call.send(cluster.coordinator.http).expect(200);
}

/// A client that never completes a request's head is disconnected, before many of them use up all
/// descriptors.
#[test]
fn a_head_that_never_ends_is_not_waited_for() {
    let cluster = Cluster::start();
    let mut silent = TcpStream::connect(cluster.coordinator.http).unwrap();
    let patience = Duration::from_secs(60);
    silent.set_read_timeout(Some(patience)).unwrap();
    silent
        .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        .unwrap();
    let mut said = Vec::new();
    // Ended by the server, with or without an answer.
    silent.read_to_end(&mut said).unwrap();
}

fn tls(identity: &Identity, prefix: &str) -> [String; 2] {
    let Identity { cert, key } = identity;
    [
        format!("--{prefix}-cert={}", cert.display()),
        format!("--{prefix}-key={}", key.display()),
    ]
}

/// The endpoints of probes and scrapers, over TLS with their own certificate; the images' health
/// check follows.
#[test]
fn the_edges_admin_listener_speaks_tls() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let mut edge = Edge::prepare("edge-a", directory.path(), "http://127.0.0.1:9", &[]);
    let identity = authority.issue("admin", "IP:127.0.0.1");
    edge.arguments.extend(tls(&identity, "admin-tls"));
    edge.spawn();
    let mut health = edge.arguments.clone();
    health[0] = "health".to_owned();
    let healthy = || {
        let mut command = Command::new(program("cache-edge"));
        command.args(&health).output().unwrap().status.success()
    };
    eventually("it is healthy", WAIT, || healthy().then_some(()));
    let address = edge.admin;
    let ask = |path: &str| curl_trusting(&authority.pem(), &format!("https://{address}{path}"));
    assert_eq!(ask("/livez").unwrap(), b"ok\n");
    let metrics = String::from_utf8(ask("/metrics").unwrap()).unwrap();
    assert!(metrics.contains("cache_edge_http_requests_total"));
    let plain = Call::get("/livez").open(address);
    assert!(plain.is_err(), "answers in clear: {plain:?}");
    edge.kill();
    assert!(!healthy());
}

/// Mutual TLS everywhere: coordinator, edges, peers, command line, players.
#[test]
fn a_certificate_says_which_edge_it_is() {
    let mut cluster = Cluster::prepare(ClusterOptions::default());
    let directory = cluster.directory.path().to_owned();
    let authority = Authority::new(&directory);
    let ca = authority.pem();
    let coordinator = authority.issue("coordinator", "IP:127.0.0.1");
    cluster
        .coordinator
        .arguments
        .extend(tls(&coordinator, "tls"));
    cluster
        .coordinator
        .arguments
        .push(format!("--tls-client-ca={}", ca.display()));
    cluster.postgres.start_again();
    cluster.coordinator.spawn();

    let people = authority.issue("people", "DNS:people");
    let grpc = cluster.coordinator.grpc;
    let command = |arguments: &[&str], identity: Option<&Identity>| {
        let mut command = Command::new(program("cache-coordinator"));
        command
            .args(arguments)
            .arg(format!("--endpoint=https://{grpc}"))
            .arg("--ca")
            .arg(&ca);
        if let Some(Identity { cert, key }) = identity {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        command.output().unwrap()
    };
    eventually("the coordinator leads", WAIT, || {
        let url = cluster.origin.url();
        command(&["source", "add", "media", &url], Some(&people))
            .status
            .success()
            .then_some(())
    });
    assert!(
        !command(&["status"], None).status.success(),
        "a certificate is needed"
    );

    let edge = |name: &str, identity: &Identity| {
        let mut edge = Edge::prepare(
            name,
            &directory,
            &format!("https://{grpc}"),
            &["--background-fill=false"],
        );
        edge.arguments
            .push(format!("--coordinator-ca={}", ca.display()));
        edge.arguments.extend(tls(identity, "coordinator"));
        edge.arguments.extend(tls(identity, "tls"));
        edge
    };
    let own = authority.issue("a", "DNS:edge-a,IP:127.0.0.1");
    let mut first = edge("edge-a", &own);
    first.start();
    let mut liar = edge("edge-b", &own);
    liar.spawn();
    wait_refused(&liar, "the client certificate is not edge \\\"edge-b\\\"'s");
    liar.kill();
    // A wildcard vouches for each edge of its domain, at its host name.
    let wildcard = authority.issue("wildcard", "DNS:*.edges.internal,IP:127.0.0.1");
    let mut elsewhere = edge("edge-c", &wildcard);
    elsewhere
        .arguments
        .push("--advertise-url=https://edge-d.edges.internal:1".to_owned());
    elsewhere.spawn();
    wait_refused(&elsewhere, "the client certificate is not edge");
    elsewhere.kill();
    let mut named = edge("edge-c", &wildcard);
    named
        .arguments
        .push("--advertise-url=https://edge-c.edges.internal:1".to_owned());
    named.start();
    let mut second = edge("edge-b", &authority.issue("b", "DNS:edge-b,IP:127.0.0.1"));
    second.start();

    // From the origin once, between the edges by TLS.
    cluster.put("/film.mp4", Object::generated(8, 8 * MIB));
    let film = |edge: &Edge| {
        let url = format!("https://{}/media/film.mp4", edge.http);
        curl_trusting(&ca, &url).unwrap()
    };
    let expected = film(&first);
    assert_eq!(expected.len() as u64, 8 * MIB);
    cluster_recorded(&cluster, "edge-a", 8 * MIB);
    assert!(film(&second) == expected);
    assert_eq!(cluster.origin.body_bytes("/film.mp4"), 8 * MIB);
    // A certificate of the form NAME.DOMAIN is valid for each call, not only for the session: the
    // coordinator resolves the key, and the origin gets no request.
    let asked = cluster.origin.hits("/film.mp4").len();
    assert!(film(&named) == expected);
    assert_eq!(cluster.origin.hits("/film.mp4").len(), asked);

    // Clients that begin no handshake block nobody.
    let silent: Vec<TcpStream> = (0..400)
        .filter_map(|_| TcpStream::connect(grpc).ok())
        .collect();
    assert!(silent.len() >= 300, "{}", silent.len());
    let began = Instant::now();
    assert!(command(&["status"], Some(&people)).status.success());
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    drop(silent);
    named.terminate();
    assert_eq!(first.terminate().code(), Some(0));
    assert_eq!(second.terminate().code(), Some(0));
}

fn cluster_recorded(cluster: &Cluster, edge: &str, bytes: u64) {
    eventually("it is recorded", WAIT, || {
        (cluster.recorded_bytes("/film.mp4", edge) == bytes).then_some(())
    });
}
