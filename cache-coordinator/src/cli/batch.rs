//! Jobs for many objects: one for each line of a file, or for each object of a title.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use chunkcache_proto::v1::{Job, JobState, ListJobsRequest};
use clap::ArgMatches;
use serde_json::Value;
use service_kit::config::{human_bytes, human_duration};

use super::connection::Client;
use super::failure::CliError;
use super::output::Printer;
use super::precache::{self, Wanted};
use super::progress::Progress;
use super::{is_set, read_text, view};

/// Limits of a file: its lines and its bytes.
const MAX_LINES: usize = 100_000;
const MAX_BYTES: u64 = 64 << 20;
/// Concurrent calls. A call for an object that is new to the cluster waits for its origin.
const AT_A_TIME: usize = 8;
/// Jobs that one poll asks about.
const LOOKS: usize = 200;
/// Pause between two polls of the jobs.
const PAUSE: Duration = Duration::from_secs(1);

/// The objects to prefetch, each with the place that names it: a line of a file, or a manifest.
pub(super) struct Targets {
    wanted: Vec<(String, Wanted)>,
    /// Number of invalid lines.
    bad: usize,
}

impl Targets {
    pub(super) fn of_title(manifest: &str, wanted: Vec<Wanted>) -> Result<Self, CliError> {
        if wanted.is_empty() {
            return Err(CliError::Refused(format!("{manifest} names no object")));
        }
        let wanted = wanted.into_iter();
        Ok(Self {
            wanted: wanted.map(|it| (manifest.to_owned(), it)).collect(),
            bad: 0,
        })
    }
}

pub(super) async fn run(
    targets: Targets,
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let Targets { wanted, mut bad } = targets;
    let mut jobs: Vec<Job> = Vec::new();
    for wanted in wanted.chunks(AT_A_TIME) {
        let asked = wanted.iter().map(|(place, wanted)| {
            let mut client = client.another();
            async move { (place, wanted, precache::ask(wanted, &mut client).await) }
        });
        for (place, wanted, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    bad += 1;
                    eprintln!("{place}: {}: {}", wanted.target, error.text());
                }
            }
        }
    }
    if is_set(arguments, "follow") {
        follow(&mut jobs, client).await?;
        let failed = jobs.iter().filter(|job| job.state() != JobState::Done);
        for job in failed {
            bad += 1;
            let state = view::job_state(job.state());
            eprintln!("{}: {state}: {}", precache::object(job), job.error);
        }
    }
    let json: Value = jobs.iter().map(view::job).collect();
    printer.result(&json, || precache::table(&jobs))?;
    match bad {
        0 => Ok(()),
        1 => Err(CliError::Refused("one object failed".to_owned())),
        bad => Err(CliError::Refused(format!("{bad} objects failed"))),
    }
}

/// The objects that the lines of a file name.
pub(super) fn read(file: &Path, arguments: &ArgMatches) -> Result<Targets, CliError> {
    let refuse = |reason: &dyn std::fmt::Display| {
        CliError::Usage(format!("-f {}: {reason}", file.display()))
    };
    let text = read_text(file, MAX_BYTES).map_err(|error| refuse(&error))?;
    let (mut wanted, mut bad) = (Vec::new(), 0);
    for (number, line) in text.lines().enumerate() {
        let target = line.trim();
        if target.is_empty() || target.starts_with('#') {
            continue;
        }
        if wanted.len() == MAX_LINES {
            return Err(refuse(&format!("more than {MAX_LINES} lines")));
        }
        let place = format!("{}:{}", file.display(), number + 1);
        match Wanted::of(target, arguments) {
            Ok(it) => wanted.push((place, it)),
            Err(error) => {
                bad += 1;
                eprintln!("{place}: {}", error.text());
            }
        }
    }
    Ok(Targets { wanted, bad })
}

/// Shows the progress of all jobs together until each has ended.
async fn follow(jobs: &mut [Job], client: &mut Client) -> Result<(), CliError> {
    let mut progress = Progress::new();
    let (begun, mut before, mut last) = (Instant::now(), None, 0);
    loop {
        let is_running = |job: &&Job| job.state() == JobState::Running;
        let running = jobs.iter().filter(is_running).count();
        let done: u64 = jobs.iter().map(|job| job.bytes_done).sum();
        let total: u64 = jobs.iter().map(|job| job.bytes_total).sum();
        let gained = done.saturating_sub(*before.get_or_insert(done));
        progress.show_part(done, total, || {
            let left = time_left(gained, total.saturating_sub(done), begun.elapsed());
            let (done, total) = (human_bytes(done), human_bytes(total));
            format!(
                "{done} of {total}, {running} of {} jobs run{left}",
                jobs.len()
            )
        });
        if running == 0 {
            progress.end();
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
        // In turn: those that wait hide no others.
        let turn = (last..jobs.len()).chain(0..last);
        let asked: Vec<usize> = turn
            .filter(|it| is_running(&&jobs[*it]))
            .take(LOOKS)
            .collect();
        last = asked.last().map_or(0, |it| it + 1);
        let request = ListJobsRequest {
            ids: asked.iter().map(|it| jobs[*it].id.clone()).collect(),
            ..ListJobsRequest::default()
        };
        let answer = client
            .call(request, async |mut s, r| s.list_jobs(r).await)
            .await?;
        let mut newest: HashMap<String, Job> = answer
            .jobs
            .into_iter()
            .map(|job| (job.id.clone(), job))
            .collect();
        for it in asked {
            let job = &mut jobs[it];
            match newest.remove(&job.id) {
                Some(now) => *job = now,
                // Its entry no longer exists.
                None => job.set_state(JobState::Failed),
            }
        }
    }
}

/// By the mean rate so far.
fn time_left(gained: u64, left: u64, elapsed: Duration) -> String {
    let rate = gained as f64 / elapsed.as_secs_f64().max(1.0);
    if gained == 0 || left == 0 {
        return String::new();
    }
    let seconds = (left as f64 / rate).ceil() as u64;
    format!(", {} left", human_duration(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left() {
        let after = |gained, left| time_left(gained, left, Duration::from_secs(10));
        assert_eq!(after(1 << 20, 3 << 20), ", 30s left");
        assert_eq!(after(0, 1), "");
        assert_eq!(after(1, 0), "");
    }
}
