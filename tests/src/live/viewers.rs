//! Viewers that request what hls.js requests, when it requests it.
//!
//! With LL-HLS: the playlist with a blocking reload for the next part, over and over, and on
//! another connection each part that a playlist lists. Without: the playlist once per segment, and
//! the segment that is new in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{PART_BYTES, PART_MS, PARTS_OF_SEGMENT, PartNumber, SEGMENT_MS, last_segment, now_ms};
use crate::load::percentile;

const STALL_LIMIT: Duration = Duration::from_secs(10);
/// Connections from one loopback address: below the servers' limit for one client.
const CONNECTIONS_PER_ADDRESS: u64 = 200;
const MAX_HEAD_LINES: usize = 64;
const MAX_BODY: usize = 4 << 20;
/// Requests of the first and the last moments are not counted: caches begin cold, and
/// some viewers stop earlier than others.
const EDGES_MS: f64 = 2_000.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Segments of 2 s.
    Plain,
    /// With parts of 500 ms.
    LowLatency,
}

/// Who watches what, where.
pub struct Audience {
    pub kind: Kind,
    /// Viewers go to these in turn.
    pub addresses: Vec<SocketAddr>,
    /// Before each target.
    pub prefix: String,
    pub viewers: u64,
    pub duration: Duration,
    /// Where the ladder is made, to read its counts.
    pub origin: SocketAddr,
}

#[derive(Default)]
struct Tally {
    requests: u64,
    errors: u64,
    first_error: Option<String>,
    /// From the time at which a part is available (a segment: is requested) to its last byte.
    media_us: Vec<u32>,
    /// The same for blocking reloads.
    playlist_us: Vec<u32>,
}

type Shared = Arc<Mutex<Tally>>;

/// Runs the viewers, and returns what they and the origin saw.
pub async fn watch(audience: Audience) -> Result<Value> {
    let mut control = Connection::open(audience.origin, 0).await?;
    control.get("/reset").await?;
    let audience = Arc::new(audience);
    let (tally, began) = (Shared::default(), now_ms());
    let until = Instant::now() + audience.duration;
    let mut viewers = Vec::new();
    for number in 0..audience.viewers {
        let (audience, tally) = (Arc::clone(&audience), Arc::clone(&tally));
        viewers.push(tokio::spawn(async move {
            // Spread over a segment, as viewers join at any time.
            let offset = SEGMENT_MS * number / audience.viewers;
            tokio::time::sleep(Duration::from_millis(offset)).await;
            let watched = match audience.kind {
                Kind::Plain => plain(&audience, number, until, &tally).await,
                Kind::LowLatency => low_latency(&audience, number, until, &tally).await,
            };
            if let Err(error) = watched {
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| error.to_string());
            }
        }));
    }
    for viewer in viewers {
        viewer.await?;
    }
    let ended = now_ms();
    let counts = control.get("/counts").await?;
    let counts: BTreeMap<String, u64> = serde_json::from_slice(&counts)?;
    let mut tally = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
    tally.media_us.sort_unstable();
    tally.playlist_us.sort_unstable();
    let times = |sorted: &[u32]| {
        json!({
            "samples": sorted.len(),
            "p50": percentile(sorted, 0.5),
            "p99": percentile(sorted, 0.99),
            "max": percentile(sorted, 1.0),
        })
    };
    Ok(json!({
        "requests": tally.requests,
        "errors": tally.errors,
        "first_error": tally.first_error,
        "media_ms": times(&tally.media_us),
        "playlist_ms": times(&tally.playlist_us),
        "origin": per_object(&counts, audience.kind, began + EDGES_MS, ended - EDGES_MS),
    }))
}

/// Requests at the origin for each object that became available between these times.
fn per_object(counts: &BTreeMap<String, u64>, kind: Kind, from_ms: f64, to_ms: f64) -> Value {
    let (mut media, mut playlists) = ((0, BTreeSet::new()), (0, BTreeSet::new()));
    for (target, count) in counts {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let Some(name) = path.rsplit('/').next() else {
            continue;
        };
        let is_playlist = name == "index.m3u8";
        let numbers: Vec<u64> = match is_playlist {
            true => query
                .split(['&', '='])
                .filter_map(|it| it.parse().ok())
                .collect(),
            false => name.split('.').map_while(|it| it.parse().ok()).collect(),
        };
        let available = match *numbers.as_slice() {
            [segment, part] => PartNumber::of(segment, part).available_ms(),
            [segment] => PartNumber::of(segment, PARTS_OF_SEGMENT - 1).available_ms(),
            _ => continue,
        };
        if (from_ms..to_ms).contains(&available) {
            let of = if is_playlist {
                &mut playlists
            } else {
                &mut media
            };
            of.0 += count;
            of.1.insert(target);
        }
    }
    let ratio = |(count, objects): &(u64, BTreeSet<&String>)| {
        (!objects.is_empty()).then(|| *count as f64 / objects.len() as f64)
    };
    // A playlist without a number has a lifetime of a second.
    let unnumbered = counts.iter().filter(|it| it.0.ends_with("index.m3u8"));
    let unnumbered: u64 = unnumbered.map(|(_, count)| count).sum();
    let seconds = (to_ms - from_ms + 2.0 * EDGES_MS) / 1e3;
    let lifetimes = seconds * PART_BYTES.len() as f64;
    json!({
        "per_media_object": ratio(&media),
        "media_objects": media.1.len(),
        "per_playlist": match kind {
            Kind::LowLatency => ratio(&playlists),
            Kind::Plain => Some(unnumbered as f64 / lifetimes),
        },
        "playlists": match kind {
            Kind::LowLatency => playlists.1.len(),
            Kind::Plain => lifetimes as usize,
        },
    })
}

fn micros(ms: f64) -> u32 {
    (ms.max(0.0) * 1e3) as u32
}

fn rendition(number: u64) -> usize {
    number as usize % PART_BYTES.len()
}

async fn plain(audience: &Audience, number: u64, until: Instant, tally: &Shared) -> io::Result<()> {
    let rendition = rendition(number);
    let folder = format!("{}/plain/{rendition}", audience.prefix);
    let address = audience.address(number);
    let mut connection = Connection::open(address, number).await?;
    let mut seen = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(SEGMENT_MS));
    while Instant::now() < until {
        tick.tick().await;
        let playlist = connection.get(&format!("{folder}/index.m3u8")).await?;
        let playlist = String::from_utf8_lossy(&playlist).into_owned();
        let newest = playlist
            .lines()
            .filter_map(|line| line.strip_suffix(".m4s")?.parse::<u64>().ok())
            .max();
        let newest = newest.ok_or_else(|| io::Error::other("a playlist lists nothing"))?;
        if newest + 3 < last_segment(now_ms()) {
            return Err(io::Error::other("a playlist is outdated"));
        }
        let mut requests = 1;
        let mut took = None;
        if newest > seen {
            seen = newest;
            let asked = now_ms();
            let name = format!("{newest}.m4s");
            let body = connection.get(&format!("{folder}/{name}")).await?;
            check(&body, &name, PART_BYTES[rendition] * PARTS_OF_SEGMENT)?;
            took = Some(micros(now_ms() - asked));
            requests += 1;
        }
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.requests += requests;
        tally.media_us.extend(took);
    }
    Ok(())
}

async fn low_latency(
    audience: &Audience,
    number: u64,
    until: Instant,
    tally: &Shared,
) -> io::Result<()> {
    let rendition = rendition(number);
    let folder = format!("{}/ll/{rendition}", audience.prefix);
    let address = audience.address(number);
    let mut playlists = Connection::open(address, number).await?;
    let (listed, mut to_fetch) = mpsc::unbounded_channel::<PartNumber>();
    let parts = {
        let (folder, tally) = (folder.clone(), Arc::clone(tally));
        let mut connection = Connection::open(address, number).await?;
        tokio::spawn(async move {
            while let Some(part) = to_fetch.recv().await {
                let name = format!("{}.{}.m4s", part.segment(), part.part());
                let body = connection.get(&format!("{folder}/{name}")).await?;
                check(&body, &name, PART_BYTES[rendition])?;
                let took = micros(now_ms() - part.available_ms());
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.requests += 1;
                tally.media_us.push(took);
            }
            Ok::<_, io::Error>(())
        })
    };
    let joined = playlists.get(&format!("{folder}/index.m3u8")).await?;
    drop(joined);
    // The part after the one that is being made: whatever is cached of the first playlist, the next
    // reload waits.
    let mut next = PartNumber::at(now_ms()).next();
    while Instant::now() < until {
        let (segment, part) = (next.segment(), next.part());
        let target = format!("{folder}/index.m3u8?_HLS_msn={segment}&_HLS_part={part}");
        let text = playlists.get(&target).await?;
        let took = micros(now_ms() - next.available_ms());
        let uri = format!("{segment}.{part}.m4s");
        if !text.windows(uri.len()).any(|it| it == uri.as_bytes()) {
            return Err(io::Error::other("a playlist does not list its part"));
        }
        {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.requests += 1;
            tally.playlist_us.push(took);
        }
        let _ = listed.send(next);
        next = next.next();
        // A viewer that fell behind continues with the present.
        if next.available_ms() + 4.0 * (PART_MS as f64) < now_ms() {
            next = PartNumber::at(now_ms());
        }
    }
    drop(listed);
    parts.await.map_err(io::Error::other)?
}

fn check(body: &[u8], name: &str, size: u64) -> io::Result<()> {
    if body.len() as u64 == size && body.starts_with(name.as_bytes()) {
        return Ok(());
    }
    Err(io::Error::other(format!("{name} has other bytes")))
}

impl Audience {
    fn address(&self, number: u64) -> SocketAddr {
        // By ladders, so that each server has viewers of all renditions.
        let turn = number as usize / PART_BYTES.len();
        self.addresses[turn % self.addresses.len()]
    }
}

/// A connection that is kept.
struct Connection {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Connection {
    async fn open(address: SocketAddr, number: u64) -> io::Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        let host = u32::try_from(number / CONNECTIONS_PER_ADDRESS).unwrap_or(0) % (1 << 16);
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + host);
        socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: BufReader::new(stream),
            address,
        })
    }

    async fn get(&mut self, target: &str) -> io::Result<Vec<u8>> {
        let answer = timeout(STALL_LIMIT, self.get_in_time(target)).await;
        let answer = answer.map_err(|_| io::Error::other(format!("{target}: no answer")))?;
        answer.map_err(|error| io::Error::other(format!("{target}: {error}")))
    }

    async fn get_in_time(&mut self, target: &str) -> io::Result<Vec<u8>> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        self.stream.get_mut().write_all(head.as_bytes()).await?;
        let status = self.line().await?;
        let (mut length, mut is_chunked) = (None, false);
        for _ in 0..MAX_HEAD_LINES {
            let line = self.line().await?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse::<usize>().ok();
            }
            is_chunked |= line.starts_with("transfer-encoding:") && line.ends_with("chunked");
        }
        let mut body = Vec::new();
        if is_chunked {
            loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                self.read(&mut body, size).await?;
                self.line().await?;
                if size == 0 {
                    break;
                }
            }
        } else {
            let length = length.ok_or_else(|| io::Error::other("an answer without an end"))?;
            self.read(&mut body, length).await?;
        }
        if status.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(status));
        }
        Ok(body)
    }

    async fn read(&mut self, body: &mut Vec<u8>, more: usize) -> io::Result<()> {
        let (start, end) = (body.len(), body.len() + more);
        if end > MAX_BODY {
            return Err(io::Error::other("an answer is too long"));
        }
        body.resize(end, 0);
        self.stream.read_exact(&mut body[start..]).await.map(drop)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}
