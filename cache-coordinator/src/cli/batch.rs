//! `precache -f FILE`: a job for each line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::time::Duration;

use chunkcache_proto::v1::{Job, JobState, ListJobsRequest};
use clap::ArgMatches;
use serde_json::Value;
use service_kit::config::human_bytes;

use super::connection::Client;
use super::failure::CliError;
use super::is_set;
use super::output::Printer;
use super::precache::{self, Wanted};
use super::progress::Progress;
use super::view;

/// Lines of one file, and bytes of all of them.
const MAX_LINES: usize = 100_000;
const MAX_BYTES: u64 = 64 << 20;
/// Calls under way: an object that is new to the cluster is asked for at its origin first.
const AT_A_TIME: usize = 8;
/// Between two looks at the jobs.
const PAUSE: Duration = Duration::from_secs(1);

/// A line that asks for something.
struct Line {
    number: usize,
    wanted: Wanted,
}

pub(super) async fn run(
    file: &Path,
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let (lines, mut bad) = read(file, arguments)?;
    let mut jobs: Vec<Job> = Vec::new();
    for lines in lines.chunks(AT_A_TIME) {
        let asked = lines.iter().map(|line| {
            let mut client = client.another();
            async move { (line, precache::ask(&line.wanted, &mut client).await) }
        });
        for (line, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    bad += 1;
                    let (number, target) = (line.number, &line.wanted.target);
                    eprintln!("{}:{number}: {target}: {}", file.display(), error.text());
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
        1 => Err(CliError::Refused("one line failed".to_owned())),
        bad => Err(CliError::Refused(format!("{bad} lines failed"))),
    }
}

/// Lines that ask for something, and how many are wrong.
fn read(file: &Path, arguments: &ArgMatches) -> Result<(Vec<Line>, usize), CliError> {
    let refuse = |reason: &dyn std::fmt::Display| {
        CliError::Usage(format!("-f {}: {reason}", file.display()))
    };
    let reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin().take(MAX_BYTES)))
    } else {
        let opened = File::open(file).map_err(|error| refuse(&error))?;
        Box::new(BufReader::new(opened.take(MAX_BYTES)))
    };
    let (mut lines, mut bad) = (Vec::new(), 0);
    for (number, line) in reader.lines().enumerate() {
        let line = line.map_err(|error| refuse(&error))?;
        let target = line.trim();
        if target.is_empty() || target.starts_with('#') {
            continue;
        }
        if lines.len() == MAX_LINES {
            return Err(refuse(&format!("more than {MAX_LINES} lines")));
        }
        let number = number + 1;
        match Wanted::of(target, arguments) {
            Ok(wanted) => lines.push(Line { number, wanted }),
            Err(error) => {
                bad += 1;
                eprintln!("{}:{number}: {}", file.display(), error.text());
            }
        }
    }
    Ok((lines, bad))
}

/// Shows the progress of all of them together until each has ended.
async fn follow(jobs: &mut [Job], client: &mut Client) -> Result<(), CliError> {
    let mut progress = Progress::new();
    loop {
        let running = jobs.iter().filter(|job| job.state() == JobState::Running);
        let running = running.count();
        let done = jobs.iter().map(|job| job.bytes_done).sum();
        let total = jobs.iter().map(|job| job.bytes_total).sum();
        progress.show_part(done, total, || {
            let (done, total) = (human_bytes(done), human_bytes(total));
            format!("{done} of {total}, {running} of {} jobs run", jobs.len())
        });
        if running == 0 {
            progress.end();
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
        let request = ListJobsRequest {
            include_ended: true,
        };
        let answer = client
            .call(request, async |mut s, r| s.list_jobs(r).await)
            .await?;
        let mut newest: std::collections::HashMap<String, Job> = answer
            .jobs
            .into_iter()
            .map(|job| (job.id.clone(), job))
            .collect();
        for job in jobs
            .iter_mut()
            .filter(|job| job.state() == JobState::Running)
        {
            match newest.remove(&job.id) {
                Some(now) => *job = now,
                // Its entry is no more.
                None => job.set_state(JobState::Failed),
            }
        }
    }
}
