//! Finding the client behind proxies in front of an edge: the PROXY protocol, and the fields that
//! proxies write, by hand and by common proxies. Those are skipped, with a printed reason, if they
//! are not installed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chunkcache_tests::authority::Authority;
use chunkcache_tests::http::Call;
use chunkcache_tests::process::Process;
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, ClusterOptions, KIB, Object, content, eventually, ports};

/// An address other than the one that everything here comes from.
const CLIENT: &str = "203.0.113.7";
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster whose edges have these options each, and a log of their own.
fn start(edges: &[&[String]]) -> Cluster {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: edges.len(),
        edge_arguments: vec!["--background-fill=false", "--request-timeout=2s"],
        ..ClusterOptions::default()
    });
    let place = cluster.directory.path().to_owned();
    for (edge, more) in cluster.edges.iter_mut().zip(edges) {
        let log = log_of(&place, &edge.name);
        edge.arguments
            .push(format!("--access-log=json:{}", log.display()));
        edge.arguments.extend(more.iter().cloned());
    }
    cluster.start_prepared();
    cluster
}

fn log_of(place: &Path, edge: &str) -> PathBuf {
    place.join(format!("{edge}.access.log"))
}

/// The client of the last request for this key, as the edge logged it.
#[track_caller]
fn logged_client(cluster: &Cluster, edge: usize, key: &str) -> String {
    let log = log_of(cluster.directory.path(), &cluster.edges[edge].name);
    eventually(&format!("{key} is logged"), PATIENCE, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines = text.lines().rev();
        let mut lines =
            lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let line = lines.find(|line| line["key"].as_str() == Some(key))?;
        Some(line["client"].as_str().unwrap().to_owned())
    })
}

fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The edge may have closed already.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "the connection stays open");
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
}

#[test]
fn the_proxy_header_names_the_client() {
    let cluster = start(&[&[
        "--proxy-protocol".to_owned(),
        "--max-connections-per-client=2".to_owned(),
    ]]);
    let address = cluster.edge().http;
    cluster.put("/x", Object::generated(1, 10));
    let v1 = format!("PROXY TCP4 {CLIENT} 127.0.0.1 5000 80\r\n").into_bytes();
    let v2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..],
        &[203, 0, 113, 8, 127, 0, 0, 1, 0x13, 0x88, 0, 80],
    ]
    .concat();
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    for (header, target, client) in [
        (&v1, "/media/x?v=1", CLIENT),
        (&v2, "/media/x?v=2", "203.0.113.8"),
        (&local, "/media/x?v=3", "127.0.0.1"),
    ] {
        let answer = send(address, &[header, get(target).as_bytes()].concat());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(logged_client(&cluster, 0, target), client);
    }
    // Without a header, with half of one, and without any bytes: closed within the time.
    for bytes in [
        get("/media/x").as_bytes(),
        &v1[..20],
        b"",
        b"PROXY TCP4 1 2 3 4\r\n",
    ] {
        assert_eq!(send(address, bytes), "");
    }
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let refused = r#"cache_edge_http_refused_total{limit="no_proxy_header"} 4"#;
    assert!(metrics.contains(refused), "{metrics}");
    // A client's connections are counted under its own address, not the proxy's. Each is known to
    // be counted before the next one begins, because workers accept connections in any order.
    let request = "GET /media/x HTTP/1.1\r\nHost: a\r\n\r\n";
    let open: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
                .write_all(&[&v1, request.as_bytes()].concat())
                .unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
            stream
        })
        .collect();
    let third = send(address, &[&v1, get("/media/x").as_bytes()].concat());
    assert!(third.starts_with("HTTP/1.1 503"), "{third}");
    let other = send(address, &[&v2, get("/media/x").as_bytes()].concat());
    assert!(other.starts_with("HTTP/1.1 200"), "{other}");
    drop(open);
}

#[test]
fn fields_of_trusted_proxies_name_the_client() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    fs::write(keys.path(), "k1 0123456789abcdef0123\n").unwrap();
    let keys = keys.path().to_str().unwrap();
    let signing = format!("--signed-url-keys-file={keys}");
    let cluster = start(&[
        &["--trusted-proxies=127.0.0.0/8,10.0.0.0/8".into(), signing],
        &["--trusted-proxies=192.0.2.1".into()],
    ]);
    cluster.put("/x", Object::generated(1, 10));
    let signed = Command::new(program("cache-edge"))
        .args(["sign", "--key=k1", "--client", CLIENT, "/media/x"])
        .arg(format!("--keys-file={keys}"))
        .output()
        .unwrap();
    let target = String::from_utf8(signed.stdout).unwrap().trim().to_owned();
    let ask = |edge: usize, fields: &[(&str, &str)]| {
        let call = fields
            .iter()
            .fold(Call::get(&target), |call, (name, value)| {
                call.header(name, value)
            });
        call.send(cluster.edges[edge].http).status
    };
    const XFF: &str = "X-Forwarded-For";
    assert_eq!(ask(0, &[]), 403);
    assert_eq!(ask(0, &[(XFF, CLIENT)]), 200);
    assert_eq!(
        ask(0, &[("Forwarded", "for=203.0.113.7:1;proto=https")]),
        200
    );
    let through_two = "198.51.100.9, 203.0.113.7, 10.0.0.1";
    assert_eq!(ask(0, &[(XFF, through_two)]), 200);
    // Fields that the client itself wrote do not count.
    let spoofed = [(XFF, "203.0.113.7, 198.51.100.9")];
    assert_eq!(ask(0, &spoofed), 403);
    let other_field = [("Forwarded", "for=203.0.113.7"), (XFF, "198.51.100.9")];
    assert_eq!(ask(0, &other_field), 403);
    // Nor do fields from a proxy that is not trusted.
    assert_eq!(
        ask(1, &[(XFF, CLIENT)]),
        200,
        "this edge wants no signature"
    );
    let log = fs::read_to_string(log_of(cluster.directory.path(), "edge-b")).unwrap_or_default();
    assert!(!log.contains(CLIENT), "{log}");
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = [PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")];
    let found = std::env::split_paths(&path)
        .chain(more)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Starts a proxy and waits until it listens.
fn start_proxy(
    cluster: &Cluster,
    program: &Path,
    options: &[&str],
    listens: SocketAddr,
) -> Process {
    let mut command = Command::new(program);
    command.args(options);
    let log = cluster.directory.path().join("proxy.log");
    let mut process = Process::spawn("proxy", &command, &log);
    eventually("the proxy listens", PATIENCE, || {
        assert!(process.is_running(), "{}", process.output());
        TcpStream::connect(listens).ok().map(drop)
    });
    process
}

/// Requests with curl from another loopback address than the proxy's.
fn curl_from(address: &str, url: &str, more: &[&str]) -> Vec<u8> {
    let output = Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "20", "--interface", address])
        .args(more)
        .arg(url)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{url}: {error}");
    output.stdout
}

#[test]
fn behind_haproxy() {
    let Some(haproxy) = find("haproxy") else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new(place.path());
    let identity = authority.issue("edge", "IP:127.0.0.1,DNS:localhost");
    let tls = [
        "--proxy-protocol".to_owned(),
        format!("--tls-cert={}", identity.cert.display()),
        format!("--tls-key={}", identity.key.display()),
    ];
    let cluster = start(&[&["--proxy-protocol".to_owned()], &tls]);
    let target = cluster.put("/x", Object::generated(1, 100 * KIB));
    let (first, second) = (ports::reserve(), ports::reserve());
    let config = cluster.directory.path().join("haproxy.cfg");
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         listen one\n bind {first}\n server edge {} send-proxy\n\
         listen two\n bind {second}\n server edge {} send-proxy-v2\n",
        cluster.edges[0].http, cluster.edges[1].http
    );
    fs::write(&config, text).unwrap();
    let options = ["-db", "-f", config.to_str().unwrap()];
    let _haproxy = start_proxy(&cluster, &haproxy, &options, first);
    let expected = content::bytes(1, 0, 100 * KIB);
    let body = curl_from("127.0.0.5", &format!("http://{first}{target}"), &[]);
    assert_eq!(body, expected);
    assert_eq!(logged_client(&cluster, 0, &target), "127.0.0.5");
    // TLS begins after the header.
    let authority = authority.pem();
    let trust = ["--cacert", authority.to_str().unwrap()];
    let body = curl_from("127.0.0.6", &format!("https://{second}{target}"), &trust);
    assert_eq!(body, expected);
    assert_eq!(logged_client(&cluster, 1, &target), "127.0.0.6");
}

#[test]
fn behind_nginx() {
    let Some(nginx) = find("nginx") else { return };
    let cluster = start(&[&["--trusted-proxies=127.0.0.1".to_owned()]]);
    let target = cluster.put("/x", Object::generated(1, 100 * KIB));
    let listens = ports::reserve();
    let place = cluster.directory.path().to_str().unwrap();
    let config = format!("{place}/nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/nginx-error.log;
         events {{}}
         http {{
           access_log off; proxy_temp_path {place}/proxy; client_body_temp_path {place}/body;
           fastcgi_temp_path {place}/fcgi; uwsgi_temp_path {place}/uwsgi;
           scgi_temp_path {place}/scgi;
           server {{ listen {listens}; location / {{
             proxy_pass http://{};
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}
         }}",
        cluster.edge().http
    );
    fs::write(&config, text).unwrap();
    let _nginx = start_proxy(&cluster, &nginx, &["-c", &config, "-p", place], listens);
    let spoof = ["--header", "X-Forwarded-For: 6.6.6.6"];
    for more in [&[][..], &spoof] {
        let body = curl_from("127.0.0.5", &format!("http://{listens}{target}"), more);
        assert_eq!(body, content::bytes(1, 0, 100 * KIB));
        assert_eq!(logged_client(&cluster, 0, &target), "127.0.0.5");
    }
}
