//! An edge in this process over a temporary data directory, and an origin that misbehaves on
//! demand.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cache_edge::{
    app::{Edge, fetch_threads},
    control::notes,
    options::Options,
    resolve::peer_handler::Peers,
    server::{Metrics, Server, Settings},
    worker_pool::WorkerPool,
};
use chunk_store::{Store, StoreOptions};
use chunkcache_proto::v1;
use parking_lot::Mutex;
use service_kit::shutdown::TaskSet;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

pub const MIB: u64 = 1 << 20;

/// The byte of the object's version at an offset: no two chunks are alike.
pub fn content(version: u64, range: std::ops::Range<u64>) -> Vec<u8> {
    range
        .map(|at| ((at / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ version) >> (at % 8 * 8)) as u8)
        .collect()
}

/// A request as the origin saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub range: Option<(u64, Option<u64>)>,
    pub suffix: Option<u64>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(held, _)| held == name)
            .map(|(_, value)| value.as_str())
    }
}

/// How the origin answers one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Like a good static server.
    Serve,
    /// Like a good static server, with these header lines in place of the usual validator and
    /// caching.
    With(Vec<String>),
    /// The whole object, ranges or not.
    Whole,
    Status(u16, Vec<String>),
    /// Announces the whole, sends this many bytes, closes.
    CutAfter(u64),
    /// Announces the whole, sends this many bytes, then nothing for this long, then the rest.
    StallAfter(u64, Duration),
    /// Bytes a second.
    Paced(u64),
    /// `Content-Range` as given, with correct bytes.
    ContentRange(String),
    /// Chunked, without a length.
    Chunked,
    /// These raw bytes; then closes.
    Raw(Vec<u8>),
    /// These raw bytes; then nothing, until the other side closes.
    RawThenHang(Vec<u8>),
    /// Like [`Act::Serve`] for the version at the time of the request, once this is notified.
    Held(Arc<Notify>),
    /// At most this many bytes of a range, consistently announced.
    ShortPart(u64),
    /// Nothing, until the other side closes.
    Hang,
}

type Script = dyn Fn(usize, &Seen) -> Act + Send + Sync;

pub struct Origin {
    pub address: SocketAddr,
    pub size: AtomicU64,
    pub version: AtomicU64,
    pub bytes_sent: AtomicU64,
    requests: AtomicUsize,
    script: Mutex<Arc<Script>>,
    pub seen: Mutex<Vec<Seen>>,
}

impl Origin {
    pub async fn start(size: u64) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            size: AtomicU64::new(size),
            version: AtomicU64::new(1),
            bytes_sent: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            script: Mutex::new(Arc::new(|_, _| Act::Serve)),
            seen: Mutex::default(),
        });
        let serving = origin.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let origin = serving.clone();
                tokio::spawn(async move { origin.connection(stream).await });
            }
        });
        origin
    }

    pub fn script(&self, script: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static) {
        self.requests.store(0, Ordering::SeqCst);
        *self.script.lock() = Arc::new(script);
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().len()
    }

    pub fn sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::SeqCst)
    }

    pub fn expected(&self, range: std::ops::Range<u64>) -> Vec<u8> {
        content(self.version.load(Ordering::SeqCst), range)
    }

    async fn connection(&self, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                    break at + 4;
                }
                let mut part = [0; 4096];
                match stream.read(&mut part).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => buffer.extend_from_slice(&part[..read]),
                }
            };
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end);
            let seen = parse(&head);
            let nth = self.requests.fetch_add(1, Ordering::SeqCst);
            self.seen.lock().push(seen.clone());
            let script = self.script.lock().clone();
            if !self.answer(&mut stream, &seen, script(nth, &seen)).await {
                return;
            }
        }
    }

    async fn answer(&self, stream: &mut TcpStream, seen: &Seen, act: Act) -> bool {
        let (size, version) = (
            self.size.load(Ordering::SeqCst),
            self.version.load(Ordering::SeqCst),
        );
        let usual = vec![
            format!("ETag: \"v{version}\""),
            "Cache-Control: max-age=60".into(),
            "Content-Type: video/mp4".into(),
        ];
        if let Act::Held(gate) = &act {
            gate.notified().await;
        }
        if let Act::RawThenHang(bytes) = &act {
            let _ = stream.write_all(bytes).await;
        }
        if let Act::Hang | Act::RawThenHang(_) = act {
            let _ = stream.read(&mut [0]).await;
            return false;
        }
        if let Act::Raw(bytes) = act {
            let _ = stream.write_all(&bytes).await;
            return false;
        }
        if let Act::Status(status, lines) = act {
            let text = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{}\r\n",
                block(&lines)
            );
            return stream.write_all(text.as_bytes()).await.is_ok();
        }
        let lines = if let Act::With(lines) = &act {
            lines.clone()
        } else {
            usual
        };
        let etag = lines
            .iter()
            .find_map(|l| l.strip_prefix("ETag: ").map(str::to_owned));
        if etag.is_some() && seen.header("if-none-match") == etag.as_deref() {
            let text = format!("HTTP/1.1 304 X\r\n{}\r\n", block(&lines));
            return stream.write_all(text.as_bytes()).await.is_ok();
        }
        if let Some(wanted) = seen.header("if-match")
            && etag.as_deref() != Some(wanted)
        {
            return stream
                .write_all(b"HTTP/1.1 412 X\r\nContent-Length: 0\r\n\r\n")
                .await
                .is_ok();
        }
        let whole = matches!(act, Act::Whole | Act::Chunked);
        let asked = match (seen.range, seen.suffix) {
            _ if whole => None,
            (Some((start, end)), _) => Some((start, end.map_or(size, |end| (end + 1).min(size)))),
            (None, Some(last)) => Some((size.saturating_sub(last), size)),
            (None, None) => None,
        };
        if let Some((start, _)) = asked
            && start >= size
        {
            let text = format!(
                "HTTP/1.1 416 X\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n"
            );
            return stream.write_all(text.as_bytes()).await.is_ok();
        }
        let (start, mut end) = asked.unwrap_or((0, size));
        if let Act::ShortPart(most) = act {
            end = end.min(start + most);
        }
        let content_range = match &act {
            Act::ContentRange(text) => text.clone(),
            _ => format!("bytes {start}-{}/{size}", end.max(1) - 1),
        };
        let mut head = match asked {
            Some(_) => format!("HTTP/1.1 206 X\r\nContent-Range: {content_range}\r\n"),
            None => "HTTP/1.1 200 X\r\n".to_owned(),
        };
        head += &block(&lines);
        head += &match act {
            Act::Chunked => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            _ => format!("Content-Length: {}\r\n\r\n", end - start),
        };
        if stream.write_all(head.as_bytes()).await.is_err() {
            return false;
        }
        if seen.method == "HEAD" {
            return true;
        }
        let limit = match act {
            Act::CutAfter(bytes) => end.min(start + bytes),
            _ => end,
        };
        let mut at = start;
        let mut stalled = false;
        while at < limit {
            let step = match act {
                Act::Paced(rate) => (rate / 50).max(1),
                Act::StallAfter(bytes, _) if !stalled => bytes.clamp(1, 64 << 10),
                _ => 64 << 10,
            };
            let next = limit.min(at + step);
            let bytes = content(version, at..next);
            let sent = match act {
                Act::Chunked => {
                    let framed =
                        [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat();
                    stream.write_all(&framed).await
                }
                _ => stream.write_all(&bytes).await,
            };
            if sent.is_err() {
                return false;
            }
            self.bytes_sent
                .fetch_add(bytes.len() as u64, Ordering::SeqCst);
            at = next;
            match act {
                Act::Paced(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Act::StallAfter(after, time) if !stalled && at - start >= after => {
                    stalled = true;
                    tokio::time::sleep(time).await;
                }
                _ => {}
            }
        }
        if matches!(act, Act::Chunked) && stream.write_all(b"0\r\n\r\n").await.is_err() {
            return false;
        }
        limit == end
    }
}

fn block(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\r\n")).collect()
}

fn parse(head: &str) -> Seen {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap_or_default());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut seen = Seen {
        method,
        path,
        headers,
        ..Seen::default()
    };
    if let Some(range) = seen
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="))
        .map(str::to_owned)
    {
        match range.split_once('-') {
            Some(("", last)) => seen.suffix = last.parse().ok(),
            Some((start, end)) => seen.range = Some((start.parse().unwrap(), end.parse().ok())),
            None => {}
        }
    }
    seen
}

/// A running edge.
pub struct TestEdge {
    pub address: SocketAddr,
    pub edge: Edge,
    stop: CancellationToken,
    tasks: Option<tokio::task::JoinHandle<()>>,
    fetch: Option<WorkerPool>,
}

impl TestEdge {
    pub async fn start(directory: &std::path::Path, origin: Option<&Origin>) -> Self {
        Self::start_with(directory, origin, |_, _| {}).await
    }

    pub async fn start_with(
        directory: &std::path::Path,
        origin: Option<&Origin>,
        adjust: impl FnOnce(&mut Options, &mut v1::Source),
    ) -> Self {
        service_kit::tls::install_provider();
        let data_dir = format!("--data-dir={}", directory.display());
        let mut options = service_kit::config::parse_from::<Options>(&[
            "--name=test",
            "--coordinator=http://127.0.0.1:9",
            &data_dir,
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--max-size=1GiB",
            "--min-free=0",
            "--chunk-wait-timeout=8s",
            "--background-fill=false",
            "--drain-grace=1s",
        ])
        .unwrap();
        let mut source = v1::Source {
            name: "films".into(),
            ..v1::Source::default()
        };
        if let Some(origin) = origin {
            source.base_url = format!("http://{}/library", origin.address);
        }
        adjust(&mut options, &mut source);
        let store = Store::open(StoreOptions {
            data_dir: options.data_dir.clone(),
            max_bytes: options.max_bytes,
            min_free: options.min_free,
            group_sync_window: Duration::from_millis(5),
        })
        .unwrap();
        let fetch = fetch_threads(options.max_downloads as usize).unwrap();
        let edge = Edge::build(&options, store, fetch.workers().clone()).unwrap();
        if origin.is_some() {
            let _ = notes::set_sources(&edge.store, &edge.catalogue, vec![source]);
        }
        let stop = CancellationToken::new();
        let metrics = Metrics::unregistered();
        let mut tasks = TaskSet::new(stop.clone());
        edge.spawn(
            &options,
            "http://127.0.0.1:1".into(),
            metrics.clone(),
            &mut tasks,
            &stop,
        );
        let listener = TcpListener::bind(options.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let peers = Peers {
            objects: edge.objects.clone(),
            keys: edge.peer_keys.clone(),
            metrics: metrics.clone(),
        };
        let server = Server::new(
            Arc::new(edge.objects.clone()),
            Settings::new("test"),
            metrics,
            Some(Arc::new(peers)),
        );
        let serving = stop.clone();
        tasks.spawn("players", async move {
            Ok(server.serve(listener, serving).await?)
        });
        let tasks = tokio::spawn(async move {
            let _ = tasks.run(Duration::from_secs(2)).await;
        });
        Self {
            address,
            edge,
            stop,
            tasks: Some(tasks),
            fetch: Some(fetch),
        }
    }

    /// Stops it cleanly; the data directory can be opened again.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.edge.downloads.close();
        self.tasks.take().unwrap().await.unwrap();
        let store = self.edge.store.clone();
        tokio::task::spawn_blocking(move || store.close())
            .await
            .unwrap();
        drop(self.fetch.take());
    }

    /// Registers a source for each.
    pub fn set_sources(&self, sources: &[(&str, &Origin)]) {
        let sources = sources.iter().map(|(name, origin)| v1::Source {
            name: (*name).into(),
            base_url: format!("http://{}/library", origin.address),
            ..v1::Source::default()
        });
        let _ = notes::set_sources(&self.edge.store, &self.edge.catalogue, sources.collect());
    }

    pub async fn get(&self, path: &str, range: Option<&str>) -> Answer {
        request(self.address, "GET", path, range, &[]).await
    }
}

impl Drop for TestEdge {
    fn drop(&mut self) {
        self.stop.cancel();
        drop(self.fetch.take());
    }
}

/// A response as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection ended before the announced length.
    pub aborted: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(held, _)| held == name)
            .map_or("", |(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn assert_bytes(&self, status: u16, expected: &[u8]) {
        assert_eq!(
            self.status,
            status,
            "{:?} {}",
            self.headers,
            String::from_utf8_lossy(&self.body[..self.body.len().min(300)])
        );
        assert!(
            !self.aborted,
            "aborted after {} of {} bytes",
            self.body.len(),
            expected.len()
        );
        assert_eq!(self.body.len(), expected.len());
        assert!(self.body == expected, "wrong bytes");
    }
}

/// One request on a new connection.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    range: Option<&str>,
    headers: &[(&str, &str)],
) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n");
    if let Some(range) = range {
        text += &format!("Range: {range}\r\n");
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream
        .write_all(format!("{text}\r\n").as_bytes())
        .await
        .unwrap();
    let mut all = Vec::new();
    // A reset after the head is an aborted body.
    let ended = stream.read_to_end(&mut all).await;
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: all[end..].to_vec(),
        aborted: false,
    };
    let announced = answer.header("content-length").parse::<usize>().ok();
    let chunked = answer.header("transfer-encoding") == "chunked";
    if chunked {
        answer.aborted = !answer.body.ends_with(b"0\r\n\r\n");
        answer.body = dechunk(&answer.body);
    } else {
        answer.aborted = ended.is_err()
            || (method != "HEAD" && announced.is_some_and(|length| answer.body.len() < length));
    }
    answer
}

fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = body.windows(2).position(|w| w == b"\r\n") {
        let length = usize::from_str_radix(&String::from_utf8_lossy(&body[..at]), 16).unwrap_or(0);
        if length == 0 || body.len() < at + 2 + length {
            break;
        }
        out.extend_from_slice(&body[at + 2..at + 2 + length]);
        body = &body[(at + 4 + length).min(body.len())..];
    }
    out
}
