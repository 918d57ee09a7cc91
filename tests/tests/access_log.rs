//! The access log at receivers of syslog: messages by RFC 5424 on each transport, and a receiver
//! that takes nothing costs lines, but delays no request.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use chunkcache_tests::http::{Call, Connection};
use chunkcache_tests::{Cluster, ClusterOptions, KIB, Object, eventually};

const WAIT: Duration = Duration::from_secs(20);

/// The header's fields and the line of a message.
fn parse(message: &str) -> (Vec<&str>, serde_json::Value) {
    let mut parts = message.splitn(8, ' ');
    let header: Vec<&str> = parts.by_ref().take(7).collect();
    let line = parts.next().unwrap();
    (header, serde_json::from_str(line).unwrap())
}

fn check(message: &str, bytes: u64) {
    let (header, line) = parse(message);
    let [start, time, host, program, process, id, data] = header[..] else {
        panic!("{message}");
    };
    assert_eq!(
        (start, program, id, data),
        ("<134>1", "cache-edge", "access", "-")
    );
    assert!(time.ends_with('Z') && time.contains('T'), "{time}");
    assert!(!host.is_empty());
    assert!(process.parse::<u32>().is_ok(), "{process}");
    assert_eq!(line["status"], 206);
    assert_eq!(line["bytes"], bytes);
}

/// A message after its length.
fn read_frame(stream: &mut BufReader<TcpStream>) -> String {
    let mut length = Vec::new();
    stream.read_until(b' ', &mut length).unwrap();
    let length = String::from_utf8(length).unwrap();
    let mut message = vec![0; length.trim().parse().unwrap()];
    stream.read_exact(&mut message).unwrap();
    String::from_utf8(message).unwrap()
}

fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let (stream, _) = eventually("the edge connects", WAIT, || listener.accept().ok());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    BufReader::new(stream)
}

fn prepare(edges: usize) -> Cluster {
    Cluster::prepare(ClusterOptions {
        edges,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    })
}

fn log_to(cluster: &mut Cluster, edge: usize, target: &str) {
    cluster.edges[edge]
        .arguments
        .push(format!("--access-log=json:syslog:{target}"));
}

#[test]
fn a_syslog_message_for_each_request() {
    let mut cluster = prepare(3);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(WAIT)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = cluster.directory.path().join("log.socket");
    let unix = UnixDatagram::bind(&path).unwrap();
    unix.set_read_timeout(Some(WAIT)).unwrap();
    log_to(
        &mut cluster,
        0,
        &format!("udp://{}", udp.local_addr().unwrap()),
    );
    log_to(
        &mut cluster,
        1,
        &format!("tcp://{}", tcp.local_addr().unwrap()),
    );
    log_to(&mut cluster, 2, &format!("unix://{}", path.display()));
    cluster.start_prepared();
    let film = cluster.put("/film.mp4", Object::generated(31, 100 * KIB));
    let ask = |edge: usize, bytes: u64| {
        let call = Call::get(&film).range(0, bytes);
        call.send(cluster.edges[edge].http).expect(206);
    };

    let mut buffer = [0; 8192];
    ask(0, 1001);
    let count = udp.recv(&mut buffer).unwrap();
    check(std::str::from_utf8(&buffer[..count]).unwrap(), 1001);
    ask(2, 1002);
    let count = unix.recv(&mut buffer).unwrap();
    check(std::str::from_utf8(&buffer[..count]).unwrap(), 1002);

    ask(1, 1003);
    let mut stream = accept(&tcp);
    check(&read_frame(&mut stream), 1003);
    ask(1, 1004);
    check(&read_frame(&mut stream), 1004);
    // A receiver that starts again loses nothing that comes afterwards.
    drop(stream);
    ask(1, 1005);
    check(&read_frame(&mut accept(&tcp)), 1005);
}

#[test]
fn a_receiver_that_takes_nothing_delays_no_request() {
    let mut cluster = prepare(1);
    // Connections are accepted by the system, and their bytes stay in its buffers.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(16).unwrap();
    let dead = TcpListener::from(socket);
    log_to(
        &mut cluster,
        0,
        &format!("tcp://{}", dead.local_addr().unwrap()),
    );
    cluster.start_prepared();
    let film = cluster.put("/film.mp4", Object::generated(32, 100 * KIB));
    // More than the buffers of the connection and the queue hold.
    let agent = "a".repeat(8 * 1024);
    let call = Call::get(&film).range(0, 9).header("User-Agent", &agent);
    let mut connection = Connection::to(cluster.edge().http);
    for _ in 0..6000 {
        assert_eq!(connection.send(&call).status, 206);
    }
    eventually("dropped lines are counted", WAIT, || {
        let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("cache_edge_access_log_dropped_lines_total "));
        value.filter(|value| *value != "0").map(str::to_owned)
    });
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
}

#[test]
fn a_target_that_can_not_be_is_refused_by_name() {
    for (value, expected) in [
        ("json:syslog:udp://", "syslog:udp://HOST"),
        ("json:syslog:tls://127.0.0.1", "syslog:udp://HOST"),
        ("json:otlp", "needs --otlp-endpoint"),
    ] {
        let output = std::process::Command::new(chunkcache_tests::services::program("cache-edge"))
            .args(["serve", "--name=edge-a", "--data-dir=/nonexistent"])
            .arg(format!("--access-log={value}"))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(
            error.contains("access-log") && error.contains(expected),
            "{error}"
        );
    }
}
