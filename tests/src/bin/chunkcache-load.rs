//! The load generator of `tests/bench`: keep-alive connections that ask for random ranges of one file, read
//! 256 KiB at a time, and compare every byte with the file.
//!
//! wrk reads 8 KiB at a time and, at several GB/s, mostly measures itself. Prints one JSON object.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const READ_SIZE: usize = 256 << 10;
const HEAD_LIMIT: usize = 16 << 10;
/// No answer for so long counts as an error and ends the connection.
const STALL_LIMIT: Duration = Duration::from_secs(30);

struct Options {
    address: SocketAddr,
    /// Request targets; one is drawn for each request.
    targets: Vec<String>,
    content: Arc<Vec<u8>>,
    connections: usize,
    duration: Duration,
    range_bytes: u64,
    aligned: bool,
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
    let mut given: HashMap<String, String> = HashMap::new();
    for argument in arguments {
        let (name, value) = argument
            .strip_prefix("--")
            .and_then(|rest| rest.split_once('='))
            .with_context(|| format!("{argument}: expected --name=value"))?;
        given.insert(name.to_owned(), value.to_owned());
    }
    let mut take = |name: &str, default: Option<&str>| {
        given
            .remove(name)
            .or(default.map(str::to_owned))
            .with_context(|| format!("--{name}= is missing"))
    };
    let options = Options {
        address: take("address", None)?
            .parse()
            .context("--address: expected IP:PORT")?,
        targets: take("targets", None)?
            .split(',')
            .map(str::to_owned)
            .collect(),
        content: Arc::new(std::fs::read(take("content", None)?).context("--content")?),
        connections: take("connections", Some("16"))?
            .parse()
            .context("--connections")?,
        duration: Duration::from_secs_f64(
            take("seconds", Some("3"))?.parse().context("--seconds")?,
        ),
        range_bytes: take("range", Some("2097152"))?
            .parse()
            .context("--range: bytes")?,
        aligned: take("aligned", Some("true"))?
            .parse()
            .context("--aligned")?,
        requests_per_connection: take("requests", Some("0"))?.parse().context("--requests")?,
        pids: take("pids", Some(""))?
            .split(',')
            .filter(|p| !p.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .context("--pids")?,
        seed: take("seed", Some("1"))?.parse().context("--seed")?,
    };
    if let Some(name) = given.keys().next() {
        bail!("--{name}: no such option");
    }
    if !options.address.ip().is_loopback() {
        bail!(
            "--address {}: this generator only loads loopback addresses",
            options.address
        );
    }
    if options.range_bytes == 0 || options.range_bytes > options.content.len() as u64 {
        bail!(
            "--range {}: expected 1 to the content's {} bytes",
            options.range_bytes,
            options.content.len()
        );
    }
    Ok(options)
}

async fn run(options: Options) -> Result<()> {
    let options = Arc::new(options);
    let cpu_before = cpu_seconds(&options.pids);
    let start = Instant::now();
    let workers: Vec<_> = (0..options.connections)
        .map(|number| tokio::spawn(connection(Arc::clone(&options), number as u64, start)))
        .collect();
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
            "first_byte_ms": { "p50": percentile(&total.first_byte_us, 0.5), "p99": percentile(&total.first_byte_us, 0.99) },
            "whole_ms": { "p50": percentile(&total.whole_us, 0.5), "p99": percentile(&total.whole_us, 0.99) },
        })
    );
    Ok(())
}

/// One keep-alive connection until the time is over; a broken one is opened again.
async fn connection(options: Arc<Options>, number: u64, start: Instant) -> Tally {
    let mut random =
        SmallRng::seed_from_u64(options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number);
    let mut tally = Tally::default();
    let mut buffer = vec![0_u8; READ_SIZE];
    let limit = if options.requests_per_connection == 0 {
        u64::MAX
    } else {
        options.requests_per_connection
    };
    while start.elapsed() < options.duration && tally.requests < limit && tally.errors < 100 {
        let result = async {
            let mut stream = TcpStream::connect(options.address).await?;
            stream.set_nodelay(true)?;
            while start.elapsed() < options.duration && tally.requests < limit {
                let target = &options.targets[random.random_range(0..options.targets.len())];
                let range = draw(&options, &mut random);
                let one = request(
                    &mut stream,
                    &options,
                    target,
                    range,
                    &mut buffer,
                    &mut tally,
                );
                tokio::time::timeout(STALL_LIMIT, one)
                    .await
                    .map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
                tally.requests += 1;
            }
            Ok::<(), io::Error>(())
        }
        .await;
        if let Err(error) = result {
            tally.errors += 1;
            tally.first_error.get_or_insert_with(|| error.to_string());
        }
    }
    tally
}

fn draw(options: &Options, random: &mut SmallRng) -> (u64, u64) {
    let size = options.content.len() as u64;
    let last = size - options.range_bytes;
    let start = random.random_range(0..=last);
    let start = if options.aligned {
        start - start % options.range_bytes
    } else {
        start
    };
    (start, start + options.range_bytes)
}

async fn request(
    stream: &mut TcpStream,
    options: &Options,
    target: &str,
    (start, end): (u64, u64),
    buffer: &mut [u8],
    tally: &mut Tally,
) -> io::Result<()> {
    let bad = |text: String| io::Error::new(ErrorKind::InvalidData, text);
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: bench\r\nRange: bytes={start}-{}\r\n\r\n",
        end - 1
    );
    let asked = Instant::now();
    stream.write_all(head.as_bytes()).await?;
    let mut filled = 0;
    let body_at = loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if let Some(at) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if filled > HEAD_LIMIT {
            return Err(bad("a response head over 16 KiB".into()));
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 206") {
        return Err(bad(
            String::from_utf8_lossy(&buffer[..filled.min(64)]).into_owned()
        ));
    }
    let mut position = start;
    let mut part = body_at..filled;
    let mut first = None;
    loop {
        if !part.is_empty() {
            first.get_or_insert_with(|| asked.elapsed());
            let expected = &options.content
                [position as usize..(position as usize + part.len()).min(options.content.len())];
            if &buffer[part.clone()] != expected {
                tally.wrong_bytes += expected
                    .iter()
                    .zip(&buffer[part.clone()])
                    .filter(|(a, b)| a != b)
                    .count() as u64;
            }
            position += part.len() as u64;
            tally.bytes += part.len() as u64;
        }
        if position >= end {
            break;
        }
        let want = ((end - position) as usize).min(buffer.len());
        let read = stream.read(&mut buffer[..want]).await?;
        if read == 0 {
            return Err(bad(format!(
                "the body ended at {position}, {} bytes short",
                end - position
            )));
        }
        part = 0..read;
    }
    let micros = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
    tally.first_byte_us.push(micros(first.unwrap_or_default()));
    tally.whole_us.push(micros(asked.elapsed()));
    Ok(())
}

fn percentile(sorted_us: &[u32], part: f64) -> f64 {
    if sorted_us.is_empty() {
        return 0.0;
    }
    let index = ((sorted_us.len() - 1) as f64 * part).round() as usize;
    f64::from(sorted_us[index]) / 1000.0
}

/// User and system time of the processes so far.
fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    pids.iter()
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some(
                (fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
                    / ticks_per_second,
            )
        })
        .sum()
}
