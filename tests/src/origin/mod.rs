//! An HTTP/1.1 origin under the test's control.
//!
//! Objects are generated from their offset or read from files, so their size costs nothing. Every
//! request and every body byte is counted, and each path can be made slow, broken or dishonest. One
//! thread per connection and hand-written HTTP: a library would refuse to send most of what a
//! hostile origin sends.

mod connection;
mod directory;
mod object;
mod respond;

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use object::{Fault, Object, Times, variant_seed};

use crate::ports;

/// One request as it came, and the answer to it.
#[derive(Debug, Clone)]
pub struct Hit {
    /// When its head had arrived.
    pub at: Instant,
    pub method: String,
    /// Path with its query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub status: u16,
    pub body_bytes: u64,
}

impl Hit {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Where the requested range begins; none: no range.
    pub fn range_start(&self) -> Option<u64> {
        let (first, _) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        first.parse().ok()
    }
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<String, Object>,
    directory: Option<directory::Directory>,
    /// Requests in the order in which their heads arrived; `body_bytes` grows while a body is sent.
    hits: Vec<Hit>,
    connections: HashMap<u64, TcpStream>,
    next_connection: u64,
    most_connections: usize,
    link: Option<Link>,
    delays: Option<Delays>,
}

/// Some answers come late, whatever was asked for.
#[derive(Debug, Clone, Copy)]
struct Delays {
    every: u64,
    by: Duration,
    answers: u64,
}

/// How late the system may wake a thread that paces a body.
const WOKEN_LATE: Duration = Duration::from_millis(20);

/// One link for all connections: each piece waits for those before it.
#[derive(Debug, Clone, Copy)]
struct Link {
    bytes_per_second: u64,
    /// How long a piece may wait in the queue before the link: what connections send beyond it is
    /// not taken. 0: each connection has one piece there.
    queue: Duration,
    free_at: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    stopping: AtomicBool,
}

#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Origin {
    /// Starts an origin on its own port, without objects.
    pub fn start() -> Origin {
        Origin::start_at(ports::reserve()).expect("origin listens on a reserved port")
    }

    pub fn start_at(address: SocketAddr) -> std::io::Result<Origin> {
        let mut origin = Origin {
            address,
            shared: Arc::default(),
            accepting: None,
        };
        origin.listen()?;
        Ok(origin)
    }

    /// Serves the regular files below `root`, beside the objects put here. `templates`: for folders
    /// directly below it.
    pub fn serve_directory(
        &self,
        root: &Path,
        template: Object,
        templates: Vec<(String, Object)>,
    ) -> std::io::Result<()> {
        let directory = directory::Directory::new(root, template, templates)?;
        self.state().directory = Some(directory);
        Ok(())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds or replaces the object at a path (with its leading slash and its query).
    pub fn put(&self, path: &str, object: Object) {
        assert!(path.starts_with('/'), "paths begin with a slash");
        self.state().objects.insert(path.to_owned(), object);
    }

    pub fn remove(&self, path: &str) {
        self.state().objects.remove(path);
    }

    /// Changes the object at a path for requests from now on.
    pub fn change(&self, path: &str, change: impl FnOnce(&mut Object)) {
        change(
            self.state()
                .objects
                .get_mut(path)
                .expect("an object that was put"),
        );
    }

    /// The requests for a path (ignoring its query) so far.
    pub fn hits(&self, path: &str) -> Vec<Hit> {
        let state = self.state();
        let of_path = |hit: &&Hit| hit.target.split('?').next() == Some(path);
        state.hits.iter().filter(of_path).cloned().collect()
    }

    pub fn all_hits(&self) -> Vec<Hit> {
        self.state().hits.clone()
    }

    /// Body bytes passed to the network for a path so far.
    pub fn body_bytes(&self, path: &str) -> u64 {
        self.hits(path).iter().map(|hit| hit.body_bytes).sum()
    }

    pub fn most_connections(&self) -> usize {
        self.state().most_connections
    }

    /// Makes all bodies share a link of this rate, first come, first served; none: no limit.
    pub fn set_link(&self, bytes_per_second: Option<u64>) {
        self.set_link_with_queue(bytes_per_second, Duration::ZERO);
    }

    /// The same behind a queue of this length, first in first out, as a home router has: one
    /// connection fills it, and the bytes of all others wait behind.
    pub fn set_link_with_queue(&self, bytes_per_second: Option<u64>, queue: Duration) {
        self.state().link = bytes_per_second.map(|rate| Link {
            bytes_per_second: rate,
            queue,
            free_at: Instant::now(),
        });
    }

    /// Delays each answer of this many, from now on.
    pub fn delay_every(&self, every: u64, by: Duration) {
        let answers = 0;
        self.state().delays = Some(Delays { every, by, answers });
    }

    /// Goes down: refuses connections and cuts the open ones.
    pub fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for stream in self.state().connections.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(accepting) = self.accepting.take() {
            // Wakes the accepting thread, which checks `stopping` first.
            let _ = TcpStream::connect(self.address);
            let _ = accepting.join();
        }
    }

    /// Comes up again, on the same port, with the same objects and counters.
    pub fn start_again(&mut self) {
        self.listen().expect("origin listens on its port again");
    }

    fn listen(&mut self) -> std::io::Result<()> {
        self.shared.stopping.store(false, Ordering::SeqCst);
        let listener = TcpListener::bind(self.address)?;
        let shared = Arc::clone(&self.shared);
        self.accepting = Some(std::thread::spawn(move || accept(&listener, &shared)));
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A test that panicked while holding it has failed already.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn object(&self, target: &str) -> Option<Object> {
        let mut state = self.lock();
        let path = target.split('?').next().unwrap_or_default();
        let key = [target, path]
            .into_iter()
            .find(|key| state.objects.contains_key(*key));
        match key {
            Some(key) => state.objects.get_mut(key).map(Object::for_one_request),
            None => state.directory.as_ref().and_then(|it| it.object(path)),
        }
    }

    fn record(&self, hit: Hit) -> usize {
        let mut state = self.lock();
        state.hits.push(hit);
        state.hits.len() - 1
    }

    fn has_link(&self) -> bool {
        self.lock().link.is_some()
    }

    /// Puts a piece into the queue of the shared link; returns when it has passed the link. `Err`:
    /// the queue is full until then. `is_first`: the connection has no other piece there.
    fn take_link(&self, bytes: u64, is_first: bool) -> Result<Instant, Instant> {
        let mut state = self.lock();
        let now = Instant::now();
        let Some(link) = &mut state.link else {
            return if is_first { Ok(now) } else { Err(now) };
        };
        let has_room = is_first && link.queue.is_zero();
        if !has_room && link.free_at > now + link.queue {
            return Err(link.free_at - link.queue);
        }
        // A thread that was woken late catches up: it has not lost the link's time.
        let earliest = now.checked_sub(WOKEN_LATE).unwrap_or(now);
        link.free_at = link.free_at.max(earliest)
            + Duration::from_secs_f64(bytes as f64 / link.bytes_per_second as f64);
        Ok(link.free_at)
    }

    /// How long the next answer is delayed.
    fn take_delay(&self) -> Duration {
        let mut state = self.lock();
        let Some(delays) = &mut state.delays else {
            return Duration::ZERO;
        };
        delays.answers += 1;
        match delays.answers % delays.every {
            0 => delays.by,
            _ => Duration::ZERO,
        }
    }

    fn add_body_bytes(&self, hit: usize, count: u64) {
        self.lock().hits[hit].body_bytes += count;
    }
}

/// Whether the other side has not closed it: a thread that is pacing its body notices that later
/// than a kernel.
fn is_open(stream: &TcpStream) -> bool {
    const PEEK_WITHOUT_WAITING: i32 = 0x02 | 0x40;
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let peeked = socket2::SockRef::from(stream).recv_with_flags(&mut byte, PEEK_WITHOUT_WAITING);
    match peeked {
        Ok(count) => count > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.is_stopping() {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(handle) = stream.try_clone() else {
            continue;
        };
        let number = {
            let mut state = shared.lock();
            let number = state.next_connection;
            state.next_connection += 1;
            state.connections.insert(number, handle);
            let open = state.connections.values().filter(|it| is_open(it)).count();
            state.most_connections = state.most_connections.max(open);
            number
        };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            connection::serve(&stream, &shared);
            let _ = stream.shutdown(Shutdown::Both);
            shared.lock().connections.remove(&number);
        });
    }
}
