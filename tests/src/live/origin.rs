//! The origin: makes the ladder by the clock, holds requests for what is not there yet, and counts.
//!
//! Like many live packagers it sends neither validators nor lengths.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{PART_BYTES, PARTS_OF_SEGMENT, PartNumber, last_segment, now_ms, playlist};

/// Requests for what is later than this are answered with 404.
const LONGEST_WAIT_MS: f64 = 6_000.0;
const HEAD_LINES: usize = 64;
/// Lifetimes in seconds: of a playlist that will change, and of what never does.
const PLAYLIST_SECONDS: u32 = 1;
const FINAL_SECONDS: u32 = 12;

/// Requests by target.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

struct Answer {
    status: u16,
    content_type: &'static str,
    max_age: u32,
    body: Vec<u8>,
}

impl Answer {
    fn none() -> Answer {
        Answer {
            status: 404,
            content_type: "text/plain",
            max_age: 0,
            body: b"not here\n".to_vec(),
        }
    }

    fn playlist(last: PartNumber, parts: bool, max_age: u32) -> Answer {
        Answer {
            status: 200,
            content_type: "application/vnd.apple.mpegurl",
            max_age,
            body: playlist(last, parts).into_bytes(),
        }
    }

    /// Bytes that begin with the target's last part.
    fn media(name: &str, size: u64) -> Answer {
        let mut body = name.as_bytes().to_vec();
        body.resize(size as usize, b'.');
        Answer {
            status: 200,
            content_type: "video/iso.segment",
            max_age: FINAL_SECONDS,
            body,
        }
    }
}

/// Serves until the process ends. `GET /counts` answers the requests so far by target, and
/// `GET /reset` forgets them.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let counts = Counts::default();
    loop {
        let (stream, _) = listener.accept().await?;
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            // The other side may close at any time.
            let _ = connection(stream, counts).await;
        });
    }
}

async fn connection(stream: TcpStream, counts: Counts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut target = None;
        let mut lines = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 || lines == HEAD_LINES {
                return Ok(());
            }
            lines += 1;
            if line.trim().is_empty() {
                break;
            }
            if target.is_none() {
                target = line.split(' ').nth(1).map(str::to_owned);
            }
        }
        let Some(target) = target else { return Ok(()) };
        let answer = answer(&target, &counts).await;
        let mut out = format!(
            "HTTP/1.1 {} X\r\nContent-Type: {}\r\nCache-Control: max-age={}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            answer.status,
            answer.content_type,
            answer.max_age,
            answer.body.len()
        )
        .into_bytes();
        out.extend_from_slice(&answer.body);
        out.extend_from_slice(b"\r\n0\r\n\r\n");
        stream.get_mut().write_all(&out).await?;
    }
}

async fn answer(target: &str, counts: &Counts) -> Answer {
    let lock = || counts.lock().unwrap_or_else(PoisonError::into_inner);
    match target {
        "/counts" => {
            let text = serde_json::json!(*lock()).to_string();
            return Answer {
                status: 200,
                content_type: "application/json",
                max_age: 0,
                body: text.into_bytes(),
            };
        }
        "/reset" => {
            lock().clear();
            return Answer {
                status: 200,
                ..Answer::none()
            };
        }
        _ => *lock().entry(target.to_owned()).or_default() += 1,
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parts = path.trim_start_matches('/').split('/');
    let (kind, rendition, name) = (parts.next(), parts.next(), parts.next());
    let rendition = rendition.and_then(|it| it.parse::<usize>().ok());
    let part_bytes = rendition.and_then(|it| PART_BYTES.get(it)).copied();
    let (Some(kind), Some(part_bytes), Some(name)) = (kind, part_bytes, name) else {
        return Answer::none();
    };
    let numbers: Vec<u64> = name.split('.').map_while(|it| it.parse().ok()).collect();
    match (kind, name, numbers.as_slice()) {
        ("plain", "index.m3u8", _) => {
            let last = PartNumber::of(last_segment(now_ms()), PARTS_OF_SEGMENT - 1);
            Answer::playlist(last, false, PLAYLIST_SECONDS)
        }
        ("plain", _, [segment]) if *segment <= last_segment(now_ms()) => {
            Answer::media(name, part_bytes * PARTS_OF_SEGMENT)
        }
        ("ll", "index.m3u8", _) => {
            let of = |name: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(key, _)| *key == name)?.1.parse::<u64>().ok()
            };
            match of("_HLS_msn").zip(of("_HLS_part")) {
                Some((segment, part)) => {
                    let asked = PartNumber::of(segment, part);
                    if !reached(asked).await {
                        return Answer::none();
                    }
                    Answer::playlist(asked, true, FINAL_SECONDS)
                }
                None => Answer::playlist(PartNumber::at(now_ms()), true, PLAYLIST_SECONDS),
            }
        }
        ("ll", _, [segment, part]) if reached(PartNumber::of(*segment, *part)).await => {
            Answer::media(name, part_bytes)
        }
        _ => Answer::none(),
    }
}

/// Waits until the part is complete. False: that would take too long.
async fn reached(part: PartNumber) -> bool {
    let wait_ms = part.available_ms() - now_ms();
    if wait_ms > LONGEST_WAIT_MS {
        return false;
    }
    if wait_ms > 0.0 {
        tokio::time::sleep(Duration::from_micros((wait_ms * 1e3) as u64)).await;
    }
    true
}
