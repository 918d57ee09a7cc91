//! `precache`: durable jobs that prefetch whole objects or ranges to edges.

use std::path::PathBuf;

use chunkcache_proto::v1::{
    ByteRange, CancelJobRequest, EntryName, GetEntryRequest, Job, JobState, ListJobsRequest,
    OpenEntryRequest, PrecacheRequest, Priority, TimeWindow, WatchJobRequest,
};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::Value;
use service_kit::config::{human_bytes, human_duration, parse_rate};
use tonic::Code;

use super::connection::Client;
use super::entry::percent;
use super::failure::{CliError, refused};
use super::names::{
    Beginning, WrittenRange, WrittenWindow, entry_name, parse_first, parse_range, parse_window,
};
use super::output::{Printer, Rows, or_dash};
use super::progress::Progress;
use super::watch::{MAX_ATTEMPTS, PAUSE};
use super::{batch, is_set, switch, text, title, unknown_verb, view};

pub(super) fn command() -> Command {
    Command::new("precache")
        .about("Bring an object, or ranges of it, to edges")
        .subcommand_negates_reqs(true)
        .after_help(super::entry::RANGES_HELP)
        .arg(
            Arg::new("TARGET")
                .required_unless_present("file")
                .help("SOURCE/PATH, an entry's id, or a URL inside a source"),
        )
        .arg(
            Arg::new("file")
                .short('f')
                .long("file")
                .value_name("FILE")
                .conflicts_with("TARGET")
                .value_parser(value_parser!(PathBuf))
                .help("A file of targets, one a line, or - for standard input; a job each"),
        )
        .args(title::arguments())
        .args(arguments())
        .subcommands([
            Command::new("list")
                .about("Jobs that run")
                .arg(switch("all", "Also those that ended")),
            Command::new("cancel")
                .about("End a job; what it fetched stays")
                .arg(Arg::new("ID").required(true).help("The job's id")),
        ])
}

/// All options except the target.
pub(super) fn arguments() -> Vec<Arg> {
    vec![
        Arg::new("edge")
            .long("edge")
            .value_name("NAME")
            .action(ArgAction::Append)
            .help("Edge to bring it to; several allowed [default: the coordinator's choice]"),
        Arg::new("range")
            .long("range")
            .value_name("A-B")
            .action(ArgAction::Append)
            .allow_hyphen_values(true)
            .value_parser(parse_range)
            .help(
                "Bytes A to B inclusive, A- to the end, -N the last N; sizes as 10MiB too; \
                 several allowed [default: all]",
            ),
        Arg::new("first")
            .long("first")
            .value_name("BYTES|TIME")
            .value_parser(parse_first)
            .help(
                "Only the first N bytes, for example 60MiB; of a manifest, what plays in the \
                 first 30s",
            ),
        Arg::new("priority")
            .long("priority")
            .value_name("LEVEL")
            .value_parser(["high", "medium", "low"])
            .default_value("medium")
            .help("Level the chunks are fetched at"),
        Arg::new("window")
            .long("window")
            .value_name("HH:MM-HH:MM")
            .value_parser(parse_window)
            .help("Fetch in this part of each day only; it may include midnight"),
        Arg::new("time-zone")
            .long("time-zone")
            .value_name("NAME")
            .requires("window")
            .help("Time zone of --window, for example Europe/Berlin [default: UTC]"),
        Arg::new("max-rate")
            .long("max-rate")
            .value_name("BYTES/S")
            .value_parser(parse_rate)
            .help(
                "Limit of bytes per second, of all its edges together, over some ten seconds \
                 [default: none]",
            ),
        switch(
            "follow",
            "Show progress until the job ends; exit status 1 if it fails",
        ),
    ]
}

/// The parsed arguments.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub target: String,
    ranges: Vec<WrittenRange>,
    edges: Vec<String>,
    priority: Priority,
    window: Option<TimeWindow>,
    max_rate: u64,
}

impl Wanted {
    /// From the arguments of a command that has a target.
    pub(super) fn read(matches: &ArgMatches) -> Result<Self, CliError> {
        Self::of(text(matches, "TARGET")?, matches)
    }

    /// The same for another target.
    pub(super) fn of(target: &str, matches: &ArgMatches) -> Result<Self, CliError> {
        let ranges = matches.get_many("range").unwrap_or_default().copied();
        let mut ranges: Vec<WrittenRange> = ranges.collect();
        match matches.get_one("first") {
            Some(Beginning::Bytes(range)) => ranges.push(*range),
            Some(Beginning::Time(_)) => {
                let needs = "--first: a time is of what a manifest names: --manifest";
                return Err(CliError::Usage(needs.to_owned()));
            }
            None => {}
        }
        Self::of_part(target, ranges, matches)
    }

    /// The same of these ranges of another target; none: all of it.
    pub(super) fn of_part(
        target: &str,
        ranges: Vec<WrittenRange>,
        matches: &ArgMatches,
    ) -> Result<Self, CliError> {
        entry_name(target)?;
        Ok(Wanted {
            target: target.to_owned(),
            ranges,
            edges: matches
                .get_many("edge")
                .unwrap_or_default()
                .cloned()
                .collect(),
            priority: match text(matches, "priority")? {
                "high" => Priority::High,
                "low" => Priority::Low,
                _ => Priority::Medium,
            },
            window: matches.get_one("window").map(|window: &WrittenWindow| {
                let zone: Option<&String> = matches.get_one("time-zone");
                TimeWindow {
                    start: window.start.clone(),
                    end: window.end.clone(),
                    time_zone: zone.cloned().unwrap_or_default(),
                }
            }),
            max_rate: matches.get_one("max-rate").copied().unwrap_or_default(),
        })
    }
}

pub(super) async fn run(
    matches: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    match matches.subcommand() {
        None => start(matches, client, printer).await,
        Some((verb, _)) if (matches.contains_id("TARGET") || matches.contains_id("file")) => Err(
            CliError::Usage(format!("{verb} stands alone: precache {verb}")),
        ),
        Some(("list", arguments)) => {
            let jobs = list(is_set(arguments, "all"), client).await?;
            let json: Value = jobs.iter().map(view::job).collect();
            printer.result(&json, || table(&jobs))
        }
        Some(("cancel", arguments)) => {
            let request = CancelJobRequest {
                id: text(arguments, "ID")?.to_owned(),
            };
            let answer = client
                .call(request, async |mut s, r| s.cancel_job(r).await)
                .await?;
            print_job(&answer.job.unwrap_or_default(), printer)
        }
        Some((other, _)) => Err(unknown_verb(other)),
    }
}

async fn start(
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    if let Some(file) = arguments.get_one::<PathBuf>("file") {
        return batch::run(batch::read(file, arguments)?, arguments, client, printer).await;
    }
    if is_set(arguments, "manifest") {
        let targets = title::list(arguments, client).await?;
        return batch::run(targets, arguments, client, printer).await;
    }
    let mut job = ask(&Wanted::read(arguments)?, client).await?;
    if is_set(arguments, "follow") {
        job = follow(job, client).await?;
    }
    print_job(&job, printer)?;
    match job.state() {
        JobState::Failed => Err(CliError::Refused(format!(
            "the job failed: {}",
            or_dash(&job.error)
        ))),
        JobState::Cancelled => Err(CliError::Refused("the job was cancelled".to_owned())),
        _ => Ok(()),
    }
}

/// Creates the job.
pub(super) async fn ask(wanted: &Wanted, client: &mut Client) -> Result<Job, CliError> {
    let name = entry_name(&wanted.target)?;
    let ranges = ranges(&wanted.ranges, &name, client).await?;
    let request = PrecacheRequest {
        entry: Some(name),
        ranges,
        edges: wanted.edges.clone(),
        priority: wanted.priority.into(),
        window: wanted.window.clone(),
        max_rate_bytes_per_second: wanted.max_rate,
    };
    let answer = client
        .call(request, async |mut s, r| s.precache(r).await)
        .await?;
    Ok(answer.job.unwrap_or_default())
}

/// The newest jobs: those that run, or also those that ended.
pub(super) async fn list(include_ended: bool, client: &mut Client) -> Result<Vec<Job>, CliError> {
    let request = ListJobsRequest {
        include_ended,
        ids: Vec::new(),
    };
    let answer = client
        .call(request, async |mut s, r| s.list_jobs(r).await)
        .await?;
    Ok(answer.jobs)
}

/// Whether one of the jobs, running or finished, requests the same.
pub(super) async fn is_asked_for(
    wanted: &Wanted,
    jobs: &[Job],
    client: &mut Client,
) -> Result<bool, CliError> {
    // The cluster's spellings, in which jobs are listed: of the object's name, of ranges and edges.
    let request = GetEntryRequest {
        entry: Some(entry_name(&wanted.target)?),
    };
    let found = client
        .call(request, async |mut s, r| s.get_entry(r).await)
        .await;
    let Some(key) = found.ok().and_then(|it| it.entry?.entry?.key) else {
        return Ok(false);
    };
    let mut edges = wanted.edges.clone();
    edges.sort_unstable();
    edges.dedup();
    let is_same = |job: &Job| {
        let entry = job.entry.clone().unwrap_or_default();
        let of = entry.key.unwrap_or_default();
        let is_named = (&of.source, &of.path, &of.query) == (&key.source, &key.path, &key.query);
        let ranges = joined(&wanted.ranges, entry.size);
        let asked: Vec<(u64, u64)> = job.ranges.iter().map(|it| (it.start, it.end)).collect();
        let asks = matches!(job.state(), JobState::Running | JobState::Done);
        // When it was fetched does not matter afterwards.
        let is_timed_so = job.state() == JobState::Done
            || (job.window == wanted.window && job.max_rate_bytes_per_second == wanted.max_rate);
        asks && is_named && asked == ranges && job.edges == edges && is_timed_so
    };
    Ok(jobs.iter().any(is_same))
}

/// Ranges of an object of `size` bytes as a job has them: ascending, none touching another; none:
/// all of it.
fn joined(written: &[WrittenRange], size: u64) -> Vec<(u64, u64)> {
    let resolved = written.iter().map(|range| range.resolve(size));
    let mut ranges: Vec<(u64, u64)> = resolved
        .map(|range| (range.start, range.end.min(size)))
        .collect();
    if ranges.is_empty() {
        ranges.push((0, size));
    }
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let touches = next.0 <= last.1;
        if touches {
            last.1 = last.1.max(next.1);
        }
        touches
    });
    ranges
}

/// The requested ranges, half-open. "The last N" needs the size, so it opens the entry.
async fn ranges(
    written: &[WrittenRange],
    name: &EntryName,
    client: &mut Client,
) -> Result<Vec<ByteRange>, CliError> {
    let mut size = u64::MAX;
    if written
        .iter()
        .any(|range| matches!(range, WrittenRange::Last(_)))
    {
        let request = OpenEntryRequest {
            entry: Some(name.clone()),
            position: 0,
        };
        let answer = client
            .call(request, async |mut s, r| s.open_entry(r).await)
            .await?;
        size = answer.entry.unwrap_or_default().size;
    }
    Ok(written.iter().map(|range| range.resolve(size)).collect())
}

/// Shows progress on standard error until the job ends. The job is durable: if the coordinator goes
/// away, this waits for as long as a takeover may take.
async fn follow(job: Job, client: &mut Client) -> Result<Job, CliError> {
    let mut progress = Progress::new();
    let mut newest = job;
    progress.show(&newest);
    let mut attempts = 0;
    let result = loop {
        match follow_once(&mut newest, &mut progress, client).await {
            Ok(()) if newest.state() != JobState::Running => break Ok(newest),
            Ok(()) | Err(StreamError::Retry(_)) if attempts < MAX_ATTEMPTS => {}
            Ok(()) => {
                break Err(CliError::Refused(format!(
                    "the coordinator ended the watch; job {} may still run: see precache list",
                    newest.id
                )));
            }
            Err(StreamError::Retry(error) | StreamError::Final(error)) => break Err(error),
        }
        attempts += 1;
        client.reset();
        tokio::time::sleep(PAUSE).await;
    };
    progress.end();
    result
}

/// Why the watch of a job broke, and whether retrying can help.
enum StreamError {
    Retry(CliError),
    Final(CliError),
}

/// Follows until the stream ends; `newest` is its last message.
async fn follow_once(
    newest: &mut Job,
    progress: &mut Progress,
    client: &mut Client,
) -> Result<(), StreamError> {
    let request = WatchJobRequest {
        id: newest.id.clone(),
    };
    let opened = client
        .open(request, async |mut s, r| s.watch_job(r).await)
        .await;
    let mut stream = opened.map_err(StreamError::Retry)?;
    loop {
        match stream.message().await {
            Ok(Some(update)) => {
                if let Some(job) = update.job {
                    *newest = job;
                }
                progress.show(newest);
            }
            Ok(None) => return Ok(()),
            Err(status) => {
                let error = refused(&status, client.endpoint());
                return Err(match status.code() {
                    Code::NotFound | Code::InvalidArgument | Code::PermissionDenied => {
                        StreamError::Final(error)
                    }
                    _ => StreamError::Retry(error),
                });
            }
        }
    }
}

fn print_job(job: &Job, printer: &mut Printer<'_>) -> Result<(), CliError> {
    printer.result(&view::job(job), || fields(job))
}

pub(super) fn table(jobs: &[Job]) -> String {
    let mut rows = Rows::new(&["id", "object", "state", "done", "of", "rate", "eta"]);
    for job in jobs {
        rows.push([
            job.id.clone(),
            object(job),
            match job.resumes_at_ms {
                Some(_) => "waiting".to_owned(),
                None => view::job_state(job.state()).to_owned(),
            },
            percent(job.bytes_done, job.bytes_total),
            human_bytes(job.bytes_total),
            format!("{}/s", human_bytes(job.rate_bytes_per_second)),
            match (job.resumes_at_ms, job.eta_seconds) {
                (Some(at), _) => format!("from {}", time(at)),
                (None, eta) => eta.map_or("-".to_owned(), human_duration),
            },
        ]);
    }
    rows.render()
}

fn fields(job: &Job) -> String {
    let (done, total) = (human_bytes(job.bytes_done), human_bytes(job.bytes_total));
    let part = percent(job.bytes_done, job.bytes_total);
    let mut rows = Rows::of_fields([
        ("id", job.id.clone()),
        ("object", object(job)),
        ("edges", or_dash(&job.edges.join(", "))),
        ("state", view::job_state(job.state()).to_owned()),
        ("done", format!("{done} of {total} ({part})")),
    ]);
    if let Some(window) = &job.window {
        rows.field("window", window.to_string());
    }
    if job.max_rate_bytes_per_second > 0 {
        let rate = human_bytes(job.max_rate_bytes_per_second);
        rows.field("at most", format!("{rate}/s"));
    }
    if !job.error.is_empty() {
        rows.field("error", job.error.clone());
    }
    if !job.waiting.is_empty() {
        rows.field("waiting", job.waiting.clone());
    }
    rows.render()
}

/// A time in UTC, to the minute.
fn time(at_ms: i64) -> String {
    let at = jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default();
    at.strftime("%Y-%m-%d %H:%MZ").to_string()
}

pub(super) fn object(job: &Job) -> String {
    let key = job
        .entry
        .clone()
        .unwrap_or_default()
        .key
        .unwrap_or_default();
    format!("{}/{}", key.source, key.path)
}
