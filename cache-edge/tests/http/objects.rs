//! Objects for the server to serve: a real store, and readers that misbehave when told to.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cache_edge::{
    core::consumption::PlayerReport,
    resolve::ports::{
        Freshness, Object, ObjectName, ObjectRequest, Objects, OpenReader, PassThrough, Piece,
        Presence, ReadBytes, ReadError, Resolution, ServeError, Standing,
    },
    server::{Client, EdgeBody, Metrics, PeerHandler, Server, Settings},
};
use chunk_store::{EntryFile, MinFree, Store, StoreOptions};
use chunkcache_proto::{ByteRange, ChunkIndex, Geometry, checksum::ChunkDigest, v1};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Bytes;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const CHUNK: u64 = 64 << 10;
pub const ETAG: &str = "\"v1\"";
pub const DATE: &str = "Sat, 29 Oct 1994 19:43:31 GMT";

/// The byte at an offset of every test object: no period that a chunk or page could hide.
pub fn byte_at(offset: u64) -> u8 {
    let mixed = (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (offset >> 20);
    mixed.to_le_bytes()[(offset % 8) as usize]
}

pub fn bytes_of(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(byte_at).collect()
}

#[derive(Clone)]
pub struct TestObject {
    pub entry: Arc<EntryFile>,
    landed: Arc<Notify>,
    /// A reader's error at a chunk, in place of waiting for it.
    faults: Arc<Mutex<HashMap<ChunkIndex, ReadError>>>,
    freshness: Freshness,
    /// Chunks that are sent from memory: the store has no space.
    unstored: Arc<Mutex<HashSet<ChunkIndex>>>,
    /// Its target would resolve to it again, and need not be resolved.
    stands: Arc<AtomicBool>,
}

struct Stands(Arc<AtomicBool>);

impl Standing for Stands {
    fn age_seconds(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).then_some(7)
    }
}

impl TestObject {
    pub fn set_stands(&self, stands: bool) {
        self.stands.store(stands, Ordering::Relaxed);
    }

    /// Lets the chunk arrive although it cannot be stored.
    pub fn land_unstored(&self, chunk: ChunkIndex) {
        self.unstored.lock().unwrap().insert(chunk);
        self.landed.notify_waiters();
    }

    /// Lets the chunk arrive.
    pub fn land(&self, chunk: ChunkIndex) {
        let range = self.entry.geometry().chunk_range(chunk);
        let reservation = self.entry.reserve(range.len()).unwrap();
        let bytes = bytes_of(range.start..range.end);
        self.entry.write_at(range.start, &bytes).unwrap();
        // The right one: the store's scrub checks it.
        self.entry
            .finish_chunk(chunk, ChunkDigest::of(range.start, &bytes), reservation);
        self.landed.notify_waiters();
    }

    pub fn land_all(&self) {
        for chunk in 0..self.entry.geometry().chunk_count() {
            self.land(chunk);
        }
    }

    pub fn fail_at(&self, chunk: ChunkIndex, error: ReadError) {
        self.faults.lock().unwrap().insert(chunk, error);
        self.landed.notify_waiters();
    }
}

impl OpenReader for TestObject {
    type Reader = TestReader;

    fn open(&self, range: ByteRange, _: PlayerReport) -> TestReader {
        TestReader {
            object: self.clone(),
            range,
        }
    }

    fn presence(&self, range: ByteRange) -> Presence {
        let chunks = self.entry.geometry().chunks_covering(range);
        let here = chunks
            .clone()
            .filter(|chunk| self.entry.is_present(*chunk))
            .count();
        match here {
            0 => Presence::None,
            all if all == chunks.len() => Presence::All,
            _ => Presence::Some,
        }
    }

    async fn fetch_ahead(&self, range: ByteRange, _: PlayerReport) -> bool {
        self.presence(range) == Presence::All
    }
}

pub struct TestReader {
    object: TestObject,
    range: ByteRange,
}

impl ReadBytes for TestReader {
    async fn next(&mut self, max_len: u64) -> Result<Option<Piece>, ReadError> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let entry = Arc::clone(&self.object.entry);
        let chunk = entry.geometry().chunk_of(self.range.start);
        loop {
            let landed = self.object.landed.notified();
            if let Some(error) = self.object.faults.lock().unwrap().get(&chunk) {
                return Err(error.clone());
            }
            let end = (self.range.start + max_len).min(entry.geometry().chunk_range(chunk).end);
            let range = ByteRange::new(self.range.start, end.min(self.range.end));
            if self.object.unstored.lock().unwrap().contains(&chunk) {
                self.range.start = range.end;
                let unstored = Some(Bytes::from(bytes_of(range.start..range.end)));
                return Ok(Some(Piece {
                    file: entry,
                    range,
                    pin: None,
                    unstored,
                }));
            }
            if let Some(pin) = entry.pin(chunk) {
                self.range.start = range.end;
                return Ok(Some(Piece {
                    file: entry,
                    range,
                    pin: Some(pin),
                    unstored: None,
                }));
            }
            landed.await;
        }
    }
}

#[derive(Default)]
pub struct TestObjects(Mutex<HashMap<String, TestObject>>);

impl Objects for TestObjects {
    type Open = TestObject;

    async fn resolve(&self, request: &ObjectRequest) -> Result<Resolution<TestObject>, ServeError> {
        let path = match request.name.clone() {
            ObjectName::Key { path, .. } => path,
            ObjectName::Entry(id) => return Err(ServeError::UnknownEntry(id)),
        };
        match path.as_str() {
            "gone" => {
                return Ok(Resolution::Negative {
                    status: http::StatusCode::NOT_FOUND,
                    remembered: true,
                });
            }
            "pass" => {
                return Ok(Resolution::PassThrough(pass_through(
                    request.head_only,
                    Some(10),
                    true,
                )));
            }
            "pass-short" => {
                return Ok(Resolution::PassThrough(pass_through(
                    request.head_only,
                    Some(20),
                    false,
                )));
            }
            "pass-chunked" => {
                return Ok(Resolution::PassThrough(pass_through(
                    request.head_only,
                    None,
                    true,
                )));
            }
            "pass-chunked-short" => {
                return Ok(Resolution::PassThrough(pass_through(
                    request.head_only,
                    None,
                    false,
                )));
            }
            "down" => {
                return Err(ServeError::OriginUnreachable(
                    "connection refused".to_owned(),
                ));
            }
            "busy" => {
                return Err(ServeError::OriginBusy {
                    message: "503".to_owned(),
                    retry_after: Duration::from_millis(6500),
                });
            }
            _ => {}
        }
        let object = self.0.lock().unwrap().get(&path).cloned();
        let Some(object) = object else {
            return Err(ServeError::UnknownSource(path));
        };
        Ok(Resolution::Object(Object {
            standing: Some(Box::new(Stands(Arc::clone(&object.stands)))),
            entry: Arc::clone(&object.entry),
            age_seconds: 7,
            freshness: object.freshness,
            cache_control: String::new(),
            fields: Arc::default(),
            readers: object,
        }))
    }
}

/// Ten bytes in two frames, then a clean end or an error.
fn pass_through(head_only: bool, length: Option<u64>, clean: bool) -> PassThrough {
    let mut frames = vec![
        Ok(Frame::data(Bytes::from_static(b"01234"))),
        Ok(Frame::data(Bytes::from_static(b"56789"))),
    ];
    if !clean {
        frames.push(Err(ReadError::Origin("ended short".to_owned())));
    }
    if head_only {
        frames.clear();
    }
    let mut headers = http::HeaderMap::new();
    headers.insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain"),
    );
    if let Some(length) = length {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    let body = Box::pin(StreamBody::new(futures_util::stream::iter(frames)));
    PassThrough {
        source: "media".to_owned(),
        status: http::StatusCode::OK,
        headers,
        body,
        why: "no validator",
        status_words: None,
    }
}

/// Answers peers with their request, in words.
struct EchoPeer;

impl PeerHandler for EchoPeer {
    fn handle<'a>(
        &'a self,
        request: &'a http::request::Parts,
        _: &'a Client,
    ) -> Pin<Box<dyn Future<Output = http::Response<EdgeBody>> + Send + 'a>> {
        let text = Bytes::from(request.uri.path().to_owned());
        Box::pin(async move { http::Response::new(EdgeBody::full(text)) })
    }
}

/// A running server with its store.
pub struct Edge {
    pub address: SocketAddr,
    pub metrics: Arc<Metrics>,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<std::io::Result<()>>,
    objects: Arc<TestObjects>,
    store: Store,
    _directory: tempfile::TempDir,
}

impl Edge {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions {
            data_dir: directory.path().to_owned(),
            max_bytes: None,
            min_free: MinFree::Bytes(0),
            group_sync_window: Duration::from_millis(1),
        })
        .unwrap();
        let mut settings = Settings::new("edge-1");
        change(&mut settings);
        let objects = Arc::new(TestObjects::default());
        let metrics = Metrics::unregistered();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = Server::new(
            Arc::clone(&objects),
            settings,
            Arc::clone(&metrics),
            Some(Arc::new(EchoPeer)),
        );
        let serving = tokio::spawn(server.serve(listener, shutdown.clone()));
        Self {
            address,
            metrics,
            shutdown,
            serving,
            objects,
            store,
            _directory: directory,
        }
    }

    /// An object without any chunk.
    pub fn cold(&self, path: &str, size: u64) -> TestObject {
        self.cold_in_chunks(path, size, CHUNK)
    }

    pub fn cold_in_chunks(&self, path: &str, size: u64, chunk: u64) -> TestObject {
        let geometry = Geometry::new(size, chunk as u32).unwrap();
        let entry = v1::Entry {
            id: Uuid::new_v4().to_string(),
            size,
            chunk_size: chunk as u32,
            validator: ETAG.to_owned(),
            etag: ETAG.to_owned(),
            last_modified: DATE.to_owned(),
            content_type: "video/mp4".to_owned(),
            ..v1::Entry::default()
        };
        let object = TestObject {
            entry: self.store.put_entry(&entry, geometry).unwrap(),
            landed: Arc::default(),
            faults: Arc::default(),
            unstored: Arc::default(),
            stands: Arc::default(),
            freshness: Freshness::Fresh,
        };
        self.objects
            .0
            .lock()
            .unwrap()
            .insert(path.to_owned(), object.clone());
        object
    }

    /// A completely stored object.
    pub fn warm(&self, path: &str, size: u64) -> TestObject {
        let object = self.cold(path, size);
        object.land_all();
        object
    }

    /// Waits until a condition of the server's own counters holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Metrics) -> bool) {
        let waiting = async {
            while !holds(&self.metrics) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap_or_else(|_| panic!("not within 10 s: {what}"));
    }
}
