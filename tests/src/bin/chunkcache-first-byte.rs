//! Measures the time from a request to its first byte where bytes are missing: one request after
//! the other, each for another object or position. Prints one JSON object.
//!
//! `--follow-ms=N`: a first reader requests each object, and N ms later the measured one does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use chunkcache_tests::load::{
    Arguments, Client, Connection, Content, RangeRequest, Until, percentile,
};

struct Options {
    client: Client,
    targets: Vec<String>,
    content: Content,
    /// Each target is requested at each of these.
    offsets: Vec<u64>,
    range_bytes: u64,
    /// Without an end, as players request it; then this many bytes are read and the connection is
    /// cut.
    open_ended: bool,
    follow: Option<Duration>,
    /// Pause between two requests, for the effects of the last one to end.
    pause: Duration,
}

fn main() -> Result<()> {
    let mut given = Arguments::new(std::env::args().skip(1))?;
    let follow_ms: u64 = given.value("follow-ms", Some("0"))?;
    let options = Options {
        client: Client::new(
            given.value("address", None)?,
            given.value("tls", Some("false"))?,
        )?,
        targets: given.list("targets")?,
        content: Content::parse(&given.text("content", None)?)?,
        offsets: given.list("offsets")?,
        range_bytes: given.value("range", Some("65536"))?,
        open_ended: given.value("open-ended", Some("false"))?,
        follow: (follow_ms > 0).then(|| Duration::from_millis(follow_ms)),
        pause: Duration::from_millis(given.value("pause-ms", Some("30"))?),
    };
    given.end()?;
    if options.targets.is_empty() || options.offsets.is_empty() {
        bail!("--targets= and --offsets= are needed");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(Arc::new(options)))
}

async fn run(options: Arc<Options>) -> Result<()> {
    let (mut times, mut wrong_bytes, mut errors, mut first_error) = (Vec::new(), 0, 0_u64, None);
    let mut connection: Option<Connection> = None;
    for target in 0..options.targets.len() {
        for &offset in &options.offsets {
            let leader = match options.follow {
                Some(after) => {
                    let leader = tokio::spawn(lead(Arc::clone(&options), target));
                    tokio::time::sleep(after).await;
                    Some(leader)
                }
                None => None,
            };
            let measured = async {
                // Connecting is not measured: players have an open connection.
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => options.client.connect(0).await?,
                };
                let (end, until) = if options.open_ended {
                    (options.content.size(), Until::Bytes(options.range_bytes))
                } else {
                    (offset + options.range_bytes, Until::End)
                };
                let asked = RangeRequest {
                    target: &options.targets[target],
                    range: Some((offset, end.min(options.content.size()))),
                    content: &options.content,
                };
                let timing = open.get(asked, until).await?;
                if timing.ended {
                    connection = Some(open);
                }
                Ok::<_, std::io::Error>(timing)
            };
            match measured.await {
                Ok(timing) => {
                    let micros = timing.first_byte.as_micros();
                    times.push(u32::try_from(micros).unwrap_or(u32::MAX));
                    wrong_bytes += timing.wrong_bytes;
                }
                Err(error) => {
                    errors += 1;
                    first_error.get_or_insert_with(|| error.to_string());
                }
            }
            if let Some(leader) = leader {
                leader.abort();
            }
            tokio::time::sleep(options.pause).await;
        }
    }
    times.sort_unstable();
    println!(
        "{}",
        serde_json::json!({
            "samples": times.len(),
            "errors": errors,
            "first_error": first_error,
            "wrong_bytes": wrong_bytes,
            "first_byte_ms": {
                "p50": percentile(&times, 0.5), "p90": percentile(&times, 0.9),
                "p99": percentile(&times, 0.99),
            },
        })
    );
    Ok(())
}

/// Reads the object from its start until it is stopped.
async fn lead(options: Arc<Options>, target: usize) -> std::io::Result<()> {
    let mut connection = options.client.connect(0).await?;
    let asked = RangeRequest {
        target: &options.targets[target],
        range: Some((0, options.content.size())),
        content: &options.content,
    };
    let until = Until::Time(Instant::now() + Duration::from_secs(20));
    connection.get(asked, until).await.map(drop)
}
