//! Progress of a job on standard error: a bar on a terminal, otherwise a plain line at intervals.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use chunkcache_proto::v1::Job;
use indicatif::{ProgressBar, ProgressStyle};
use service_kit::config::{human_bytes, human_duration};

use super::entry::percent;

/// Interval of plain lines, which go to logs.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Progress {
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            // Narrow enough for the text beside it on 80 columns. A line that wraps would leave
            // halves behind, so it is cut.
            if let Ok(style) = ProgressStyle::with_template("{bar:20} {percent:>3}% {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Progress {
            bar,
            last_line: None,
        }
    }

    pub(super) fn show(&mut self, job: &Job) {
        self.show_part(job.bytes_done, job.bytes_total, || amounts(job));
    }

    pub(super) fn show_part(&mut self, done: u64, total: u64, amounts: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(amounts());
                bar.update(|state| {
                    state.set_len(total);
                    state.set_pos(done);
                });
            }
            None if self
                .last_line
                .is_none_or(|at| at.elapsed() >= LINE_INTERVAL) =>
            {
                eprintln!("{} {}", percent(done, total), amounts());
                self.last_line = Some(Instant::now());
            }
            None => {}
        }
    }

    /// Clears the bar, so that further output begins on a clean line.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The coordinator's own rate and ETA, because it sees all edges and this process sees only
/// messages.
fn amounts(job: &Job) -> String {
    let eta = job.eta_seconds.map_or(String::new(), |eta| {
        format!(", {} left", human_duration(eta))
    });
    if !job.waiting.is_empty() {
        let (done, total) = (human_bytes(job.bytes_done), human_bytes(job.bytes_total));
        return format!("{done} of {total}, waits: {}", job.waiting);
    }
    format!(
        "{} of {}, {}/s{eta}",
        human_bytes(job.bytes_done),
        human_bytes(job.bytes_total),
        human_bytes(job.rate_bytes_per_second),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        let job = Job {
            bytes_done: 1 << 20,
            bytes_total: 4 << 20,
            rate_bytes_per_second: 1 << 19,
            eta_seconds: Some(6),
            ..Job::default()
        };
        assert_eq!(amounts(&job), "1.0 MiB of 4.0 MiB, 512.0 KiB/s, 6s left");
        let job = Job {
            waiting: "edge-a has no room for it".to_owned(),
            ..job
        };
        assert_eq!(
            amounts(&job),
            "1.0 MiB of 4.0 MiB, waits: edge-a has no room for it"
        );
    }
}
