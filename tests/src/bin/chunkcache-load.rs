//! The load generator of `tests/bench`: keep-alive connections that request random ranges, or whole
//! files, and compare all bytes, or only those of one connection in `--compare-one-in`. Prints one
//! JSON object.

use std::{
    borrow::Cow,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use chunkcache_tests::load::{
    Arguments, Client, Comparison, Connection, Content, RangeRequest, Until, cpu_seconds,
    percentile, resident_bytes,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Sampling interval of the servers' memory; none of them changes faster.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Errors after which a connection gives up: a failing server is not hammered.
const MAX_ERRORS: u64 = 20;

struct Options {
    client: Client,
    /// Request targets; one is drawn for each request.
    targets: Vec<String>,
    /// Numbers that replace `{}` in the only target, in order and each once.
    numbers: Option<Range<u64>>,
    content: Content,
    connections: u64,
    /// One connection in this many compares every byte; the others only the first ones of each
    /// answer.
    compare_one_in: u64,
    /// Idle connections, opened before the load and kept meanwhile, each after a small request.
    idle: u64,
    duration: Duration,
    /// 0: the whole object, without a range.
    range_bytes: u64,
    aligned: bool,
    /// Ranges are drawn from this many bytes at the object's start.
    within: u64,
    requests_per_connection: u64,
    pids: Vec<u32>,
    seed: u64,
}

#[derive(Default)]
struct Tally {
    bytes: u64,
    requests: u64,
    errors: u64,
    wrong_bytes: u64,
    /// Request sent to first byte of the body, microseconds.
    first_byte_us: Vec<u32>,
    /// Request sent to last byte, microseconds.
    whole_us: Vec<u32>,
    first_error: Option<String>,
}

fn main() -> Result<()> {
    let options = parse(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(options))
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut given = Arguments::new(arguments)?;
    let content = Content::parse(&given.text("content", None)?)?;
    let within: u64 = given.value("within", Some("0"))?;
    let options = Options {
        client: Client::new(
            given.value("address", None)?,
            given.value("tls", Some("false"))?,
        )?,
        targets: given.list("targets")?,
        numbers: parse_numbers(&given.text("numbers", Some(""))?)?,
        connections: given.value("connections", Some("16"))?,
        compare_one_in: given.value("compare-one-in", Some("1"))?,
        idle: given.value("idle", Some("0"))?,
        duration: Duration::from_secs_f64(given.value("seconds", Some("3"))?),
        range_bytes: given.value("range", Some("2097152"))?,
        aligned: given.value("aligned", Some("true"))?,
        within: if within == 0 { content.size() } else { within },
        requests_per_connection: given.value("requests", Some("0"))?,
        pids: given.list("pids")?,
        seed: given.value("seed", Some("1"))?,
        content,
    };
    given.end()?;
    if options.compare_one_in == 0 {
        bail!("--compare-one-in=0: expected 1 or more");
    }
    if options.targets.is_empty() {
        bail!("--targets= is missing");
    }
    if options.within > options.content.size() || options.range_bytes > options.within {
        bail!(
            "--range={} --within={}: expected no more than the content's {} bytes",
            options.range_bytes,
            options.within,
            options.content.size()
        );
    }
    Ok(options)
}

fn parse_numbers(text: &str) -> Result<Option<Range<u64>>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (first, end) = text
        .split_once("..")
        .with_context(|| format!("--numbers={text}: expected FIRST..END"))?;
    Ok(Some(first.parse()?..end.parse()?))
}

async fn run(options: Options) -> Result<()> {
    let options = Arc::new(options);
    let at_first = resident_bytes(&options.pids);
    let (held, refused) = hold_idle(&options).await;
    let resident_idle = resident_bytes(&options.pids);
    // Connecting is not measured.
    let mut opened = Vec::new();
    for number in 0..options.connections {
        opened.push(options.client.connect(number).await.ok());
    }
    let cpu_before = cpu_seconds(&options.pids);
    let start = Instant::now();
    let next = Arc::new(AtomicU64::new(
        options.numbers.as_ref().map_or(0, |all| all.start),
    ));
    let workers: Vec<_> = (0..)
        .zip(opened)
        .map(|(number, open)| {
            let work = connection(Arc::clone(&options), number, open, start, next.clone());
            tokio::spawn(work)
        })
        .collect();
    let sampled = Arc::clone(&options);
    let sampler = tokio::spawn(async move {
        let mut most = 0;
        while start.elapsed() < sampled.duration {
            most = resident_bytes(&sampled.pids).max(most);
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
        most
    });
    let mut total = Tally::default();
    for worker in workers {
        let tally = worker.await.context("a connection's task")?;
        total.bytes += tally.bytes;
        total.requests += tally.requests;
        total.errors += tally.errors;
        total.wrong_bytes += tally.wrong_bytes;
        total.first_byte_us.extend(tally.first_byte_us);
        total.whole_us.extend(tally.whole_us);
        total.first_error = total.first_error.or(tally.first_error);
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds(&options.pids) - cpu_before;
    let most = if sampler.is_finished() {
        sampler.await?
    } else {
        sampler.abort();
        0
    };
    total.first_byte_us.sort_unstable();
    total.whole_us.sort_unstable();
    let gigabytes = total.bytes as f64 / 1e9;
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds,
            "bytes": total.bytes,
            "requests": total.requests,
            "errors": total.errors,
            "wrong_bytes": total.wrong_bytes,
            "first_error": total.first_error,
            "gigabytes_per_second": gigabytes / seconds,
            "requests_per_second": total.requests as f64 / seconds,
            "server_cpu_seconds": cpu,
            "server_cpu_seconds_per_gigabyte": if gigabytes > 0.0 { cpu / gigabytes } else { 0.0 },
            "first_byte_ms": { "p50": percentile(&total.first_byte_us, 0.5),
                "p99": percentile(&total.first_byte_us, 0.99) },
            "whole_ms": { "p50": percentile(&total.whole_us, 0.5),
                "p99": percentile(&total.whole_us, 0.99) },
            "resident_bytes": {
                "at_first": at_first, "idle": resident_idle,
                "most": most.max(resident_bytes(&options.pids)),
            },
            "idle": { "held": held.len(), "refused": refused },
        })
    );
    Ok(())
}

/// Connections that made one small request and wait for the next.
async fn hold_idle(options: &Options) -> (Vec<Connection>, u64) {
    let (mut held, mut refused) = (Vec::new(), 0);
    for number in 0..options.idle {
        let asked = RangeRequest {
            target: &options.targets[0],
            range: Some((0, 1)),
            content: &options.content,
        };
        // Numbered after the loaded connections.
        let one = async {
            let mut connection = options.client.connect(options.connections + number).await?;
            connection.get(asked, Until::End).await?;
            Ok::<_, std::io::Error>(connection)
        };
        match one.await {
            Ok(connection) => held.push(connection),
            Err(_) => refused += 1,
        }
    }
    (held, refused)
}

/// One keep-alive connection until the time is over; a broken one is opened again.
async fn connection(
    options: Arc<Options>,
    number: u64,
    mut open: Option<Connection>,
    start: Instant,
    next: Arc<AtomicU64>,
) -> Tally {
    let seed = options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number;
    let mut tally = Tally::default();
    let (limit, end) = match (options.requests_per_connection, &options.numbers) {
        (0, None) => (u64::MAX, start + options.duration),
        (0, Some(_)) => (u64::MAX, start + Duration::from_secs(300)),
        (count, _) => (count, start + Duration::from_secs(300)),
    };
    let mut targets = Targets {
        options: &options,
        next: &next,
        random: SmallRng::seed_from_u64(seed),
    };
    while Instant::now() < end
        && tally.requests < limit
        && tally.errors < MAX_ERRORS
        && !targets.are_used_up()
    {
        let turn = async {
            let connection = match open.take() {
                Some(open) => open,
                None => options.client.connect(number).await?,
            };
            let looks = if number.is_multiple_of(options.compare_one_in) {
                Comparison::All
            } else {
                Comparison::FirstBytes
            };
            let connection = connection.looking(looks);
            converse(connection, &mut targets, end, limit, &mut tally).await
        };
        if let Err(error) = turn.await {
            tally.errors += 1;
            tally.first_error.get_or_insert_with(|| error.to_string());
        }
    }
    tally
}

async fn converse(
    mut connection: Connection,
    targets: &mut Targets<'_>,
    end: Instant,
    limit: u64,
    tally: &mut Tally,
) -> std::io::Result<()> {
    let micros = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    while Instant::now() < end
        && tally.requests < limit
        && let Some(target) = targets.next()
    {
        let asked = RangeRequest {
            target: &target,
            range: draw(targets.options, &mut targets.random),
            content: &targets.options.content,
        };
        let timing = connection.get(asked, Until::Time(end)).await?;
        tally.bytes += timing.bytes;
        tally.wrong_bytes += timing.wrong_bytes;
        if timing.bytes > 0 {
            tally.first_byte_us.push(micros(timing.first_byte));
        }
        if !timing.ended {
            // The time is over; do not wait for the rest of slow answers.
            return Ok(());
        }
        tally.requests += 1;
        tally.whole_us.push(micros(timing.whole));
    }
    Ok(())
}

/// The targets of one connection.
struct Targets<'a> {
    options: &'a Options,
    /// The number of the next target, shared by all connections.
    next: &'a AtomicU64,
    random: SmallRng,
}

impl<'a> Targets<'a> {
    fn next(&mut self) -> Option<Cow<'a, str>> {
        let targets = &self.options.targets;
        let Some(numbers) = &self.options.numbers else {
            let target = &targets[self.random.random_range(0..targets.len())];
            return Some(Cow::Borrowed(target));
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let target = targets[0].replace("{}", &number.to_string());
        numbers.contains(&number).then_some(Cow::Owned(target))
    }

    fn are_used_up(&self) -> bool {
        let numbers = self.options.numbers.as_ref();
        numbers.is_some_and(|all| self.next.load(Ordering::Relaxed) >= all.end)
    }
}

fn draw(options: &Options, random: &mut SmallRng) -> Option<(u64, u64)> {
    if options.range_bytes == 0 {
        return None;
    }
    let start = random.random_range(0..=options.within - options.range_bytes);
    let start = if options.aligned {
        start - start % options.range_bytes
    } else {
        start
    };
    Some((start, start + options.range_bytes))
}
