//! Readers: they request random parts of random titles from edges and compare every byte.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::{Shared, Target, Title};
use crate::content;
use crate::http::{Call, Reply};
use crate::{CHUNK, KIB};

const PIECE_BYTES: usize = 256 << 10;
/// A read without a byte for longer than this is a failure of the system.
const PATIENCE: Duration = Duration::from_secs(45);

/// How a request ended.
enum End {
    Whole,
    /// Refused, cut, or timed out, and when.
    Failed(String),
    /// Cut, but the origin no longer has this version: nobody can complete it.
    Outdated,
}

pub fn read_until_stopped(shared: &Shared, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    while !shared.stop.load(Ordering::SeqCst) {
        let edge = &shared.edges[random.random_range(0..shared.edges.len())];
        if edge.down.load(Ordering::SeqCst) || !edge.is_judged {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let title = &shared.titles[random.random_range(0..shared.titles.len())];
        let range = draw(title.size, &mut random);
        one_request(shared, edge, title, range);
    }
}

fn draw(size: u64, random: &mut SmallRng) -> Option<(u64, u64)> {
    let length = match random.random_range(0..10) {
        0 => return None,
        1..=3 => random.random_range(1..64 * KIB),
        4..=7 => random.random_range(64 * KIB..2 * CHUNK),
        _ => random.random_range(CHUNK..5 * CHUNK),
    };
    let start = random.random_range(0..size);
    Some((start, (start + length).min(size)))
}

/// Asks once, and judges the answer.
pub fn one_request(shared: &Shared, edge: &Target, title: &Title, range: Option<(u64, u64)>) {
    let incidents = edge.incidents.load(Ordering::SeqCst);
    let version = title.version.load(Ordering::SeqCst);
    let counters = &shared.counters;
    counters.requests.fetch_add(1, Ordering::SeqCst);
    let mut worst = Duration::ZERO;
    let current = title.current();
    let end = attempt(shared, edge, title, range, &mut worst, current);
    let of_edge =
        edge.incidents.load(Ordering::SeqCst) != incidents || edge.down.load(Ordering::SeqCst);
    let of_object = title.version.load(Ordering::SeqCst) != version;
    if !of_edge {
        counters
            .worst_stall_ms
            .fetch_max(worst.as_millis() as u64, Ordering::SeqCst);
    }
    match end {
        End::Whole => {}
        End::Outdated => {
            counters.excused.fetch_add(1, Ordering::SeqCst);
        }
        End::Failed(_) if of_edge || of_object => {
            counters.excused.fetch_add(1, Ordering::SeqCst);
        }
        End::Failed(why) => {
            counters.unexcused.fetch_add(1, Ordering::SeqCst);
            shared.complain(format!(
                "{} {range:?} at {}, {}: {why}",
                title.path,
                edge.address,
                time_of_day()
            ));
        }
    }
}

/// In the format of the logs, for finding the matching lines.
fn time_of_day() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let (day, ms) = (now.as_secs() % 86_400, now.subsec_millis());
    format!(
        "{:02}:{:02}:{:02}.{ms:03}",
        day / 3600,
        day / 60 % 60,
        day % 60
    )
}

fn attempt(
    shared: &Shared,
    edge: &Target,
    title: &Title,
    range: Option<(u64, u64)>,
    worst: &mut Duration,
    current: Option<u64>,
) -> End {
    let mut call =
        Call::get(&format!("/{}{}", crate::cluster::SOURCE, title.path)).timeout(PATIENCE);
    if let Some((start, end)) = range {
        call = call.range(start, end);
    }
    let asked = Instant::now();
    let mut reply = match call.open(edge.address) {
        Ok(reply) => reply,
        Err(error) => return End::Failed(format!("no answer: {error}")),
    };
    *worst = (*worst).max(asked.elapsed());
    let (start, end) = match (reply.status, range) {
        (200, None) => (0, title.size),
        (206, Some(range)) => range,
        (status, _) => return End::Failed(format!("status {status}: {}", reply.finish().text())),
    };
    let Some(seed) = seed_of(&reply) else {
        return End::Failed(format!("no ETag of ours: {:?}", reply.headers));
    };
    // Known for longer than anything is fresh, and not changed since.
    if current.is_some_and(|current| current != seed) && title.current() == current {
        shared.counters.outdated.fetch_add(1, Ordering::SeqCst);
        let said = ["cache-status", "age"].map(|name| reply.header(name).unwrap_or("-"));
        shared.complain(format!(
            "{} {range:?} of {} at {}: seed {seed}, which is no more; {said:?}",
            title.path,
            time_of_day(),
            edge.address
        ));
    }
    match compare(shared, &mut reply, seed, start, end, worst) {
        End::Failed(_) if title.seed.load(Ordering::SeqCst) != seed => End::Outdated,
        end => end,
    }
}

/// The content's seed, from the ETag of the version that is being served.
fn seed_of(reply: &Reply) -> Option<u64> {
    let tag = reply.header("etag")?.trim_matches('"');
    tag.strip_prefix("generated-")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn compare(
    shared: &Shared,
    reply: &mut Reply,
    seed: u64,
    start: u64,
    end: u64,
    worst: &mut Duration,
) -> End {
    let counters = &shared.counters;
    let (mut buffer, mut expected) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut position = start;
    loop {
        let asked = Instant::now();
        let count = match reply.read(&mut buffer) {
            Ok(count) => count,
            Err(error) => {
                return End::Failed(format!("body cut at {position} of {start}..{end}: {error}"));
            }
        };
        *worst = (*worst).max(asked.elapsed());
        if count == 0 {
            break;
        }
        content::fill(seed, position, &mut expected[..count]);
        if buffer[..count] != expected[..count] {
            let differing = buffer[..count]
                .iter()
                .zip(&expected)
                .filter(|(a, b)| a != b)
                .count();
            counters
                .wrong_bytes
                .fetch_add(differing as u64, Ordering::SeqCst);
            shared.complain(format!(
                "{differing} wrong bytes in {position}..{} of seed {seed}",
                position + count as u64
            ));
        }
        position += count as u64;
        counters
            .bytes_compared
            .fetch_add(count as u64, Ordering::SeqCst);
    }
    if position != end {
        counters.wrong_ends.fetch_add(1, Ordering::SeqCst);
        shared.complain(format!("a clean end at {position}, not {end}"));
    }
    End::Whole
}
