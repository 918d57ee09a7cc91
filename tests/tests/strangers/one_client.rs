//! One client that takes all it can get: of connections, streams and handshakes. The others are
//! served.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use chunkcache_tests::authority::{Authority, curl_trusting};
use chunkcache_tests::http::Call;
use chunkcache_tests::services::program;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, MIB, Object, content, eventually};

/// Streams of one connection: as many as the edge allows.
const STREAMS: u32 = 128;
/// Size of the object that every stream requests; its first chunk is cached.
const SIZE: u64 = 64 << 20;
/// Requests that the edge grants one client at a time: 512 connections' and one's streams.
const GRANTED: u64 = 640;

/// One client that opens streams and takes nothing, from an address of its own.
fn greedy_connection(edge: SocketAddr, target: &str) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let own: SocketAddr = "127.0.0.2:0".parse().unwrap();
    socket.bind(&own.into()).unwrap();
    // The kernel keeps little for it.
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&edge.into()).unwrap();
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // Windows as wide as they get: the edge itself has to bound what it holds for a stream.
    frame(&mut sent, 4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frame(&mut sent, 8, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    // GET and http of HPACK's table, then authority and path as they are.
    let mut head = vec![0x82, 0x86];
    for (name, value) in [(1, "edge"), (4, target)] {
        head.extend([name, value.len() as u8]);
        head.extend(value.as_bytes());
    }
    for number in 0..STREAMS {
        // END_STREAM and END_HEADERS.
        frame(&mut sent, 1, 0x5, 2 * number + 1, &head);
    }
    let mut stream = TcpStream::from(socket);
    stream
        .set_write_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.write_all(&sent).unwrap();
    stream
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

fn refused(cluster: &Cluster, limit: &str) -> u64 {
    let text = Call::get("/metrics").send(cluster.edge().admin).text();
    let name = format!("cache_edge_http_refused_total{{limit=\"{limit}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn a_client_that_takes_nothing_on_500_connections_costs_the_others_nothing() {
    let mut cluster = Cluster::start();
    let part = cluster.put("/part.mp4", Object::generated(920, SIZE));
    let begun_part = cluster.put("/begun.mp4", Object::generated(921, SIZE));
    for target in [&part, &begun_part] {
        let first = Call::get(target).range(0, CHUNK);
        first.send(cluster.edge().http).expect(206);
    }
    let before = cluster.edge_mut().process().resident_anonymous_bytes();
    let mut connections = Vec::new();
    for (round, count) in [(1, 64), (2, 500)] {
        while connections.len() < count {
            connections.push(greedy_connection(cluster.edge().http, &part));
        }
        let begun = Instant::now();
        let path = format!("/new-{round}.mp4");
        let new = cluster.put(&path, Object::generated(930 + round, MIB));
        let answer = cluster.edge().get(&new).expect(200);
        assert_eq!(answer.body, content::bytes(930 + round, 0, MIB));
        let start = round * 4 * CHUNK;
        let range = Call::get(&begun_part).range(start, start + MIB);
        let answer = range.send(cluster.edge().http).expect(206);
        assert_eq!(answer.body, content::bytes(921, start, start + MIB));
        let took = begun.elapsed();
        let all = count as u64 * u64::from(STREAMS);
        let refused = refused(&cluster, "requests");
        let after = cluster.edge_mut().process().resident_anonymous_bytes();
        let grown = after.saturating_sub(before);
        println!(
            "{all} streams: others served in {took:?}, {refused} refused, {} MiB",
            grown / MIB
        );
        assert!(took < Duration::from_secs(4), "{took:?}");
        assert!(refused > 0 && refused <= all - GRANTED, "{refused}");
        assert!(grown < 160 * MIB, "{} MiB", grown / MIB);
    }
}

/// Connections that never begin their TLS handshake.
fn silent_clients(address: SocketAddr) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(address).unwrap();
    (0..256).map(connect).collect()
}

#[test]
fn silent_tls_clients_hold_nobody_up() {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        ..ClusterOptions::default()
    });
    let authority = Authority::new(cluster.directory.path());
    let identity = authority.issue("all", "IP:127.0.0.1");
    let tls = [
        format!("--tls-cert={}", identity.cert.display()),
        format!("--tls-key={}", identity.key.display()),
    ];
    let (coordinator, edge) = (cluster.coordinator.grpc, cluster.edge().http);
    let arguments = &mut cluster.edge_mut().arguments;
    arguments.retain(|it| !it.starts_with("--coordinator="));
    arguments.push(format!("--coordinator=https://{coordinator}"));
    arguments.push(format!("--coordinator-ca={}", authority.pem().display()));
    arguments.extend(tls.clone());
    cluster.coordinator.arguments.extend(tls);
    cluster.postgres.start_again();
    cluster.coordinator.spawn();
    let command = |arguments: &[&str]| {
        let mut command = std::process::Command::new(program("cache-coordinator"));
        command.args(arguments);
        command.arg(format!("--endpoint=https://{coordinator}"));
        command.arg("--ca").arg(authority.pem());
        command.output().unwrap()
    };
    eventually("the coordinator leads", Duration::from_secs(20), || {
        let added = command(&["source", "add", "media", &cluster.origin.url()]);
        added.status.success().then_some(())
    });
    cluster.edge_mut().start();
    cluster.put("/small", Object::generated(940, 1_000));
    let get = || curl_trusting(&authority.pem(), &format!("https://{edge}/media/small"));
    assert_eq!(get().unwrap().len(), 1_000);
    let _silent = [silent_clients(coordinator), silent_clients(edge)];

    let begun = Instant::now();
    let status = command(&["status"]);
    let status_took = begun.elapsed();
    let begun = Instant::now();
    let answer = get();
    let get_took = begun.elapsed();
    println!("256 silent clients at each: status {status_took:?}, GET {get_took:?}");
    assert!(status.status.success(), "{status:?}");
    assert_eq!(answer.unwrap().len(), 1_000);
    assert!(status_took < Duration::from_secs(1), "{status_took:?}");
    assert!(get_took < Duration::from_secs(1), "{get_took:?}");
}
