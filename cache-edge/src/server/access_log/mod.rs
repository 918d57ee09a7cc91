//! Writes one line per request, on its own thread.
//!
//! The serving thread collects the parts of a line (mostly reference-counted) and passes them on
//! when the body ends; the writer formats and sends. The queue between them is bounded in lines
//! and in bytes: with a slow target lines are lost and counted, but no request is delayed.

mod line;
mod options;
mod otlp;
mod syslog;
mod target;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use service_kit::telemetry::LogSender;

use self::target::{Batch, FileTarget, Loss, Target};
pub use self::{
    line::{Pending, Record},
    options::{AccessLogOptions, Destination, Format},
};

/// Lines that wait for the writer: a tenth of a second at full speed.
const QUEUE: usize = 8192;
/// Maximum memory of these lines and the ones being sent. A line with an ordinary head takes some
/// 700 bytes.
const QUEUE_BYTES: usize = 16 << 20;
/// Maximum number of lines that are sent together.
const BATCH: usize = 512;
/// A batch of this many bytes is sent: collectors take messages of at most 4 MiB.
const BATCH_BYTES: usize = 1 << 20;
/// Time before the next attempt at a target that took no line of a batch.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

enum Message {
    Line(Box<Record>),
    /// Makes the writer check `reopen` when there are no requests.
    WakeUp,
    /// Ends the writer after the lines before, and answers.
    Close(SyncSender<()>),
}

/// What both ends of the queue share.
#[derive(Default)]
struct Shared {
    reopen: AtomicBool,
    /// Memory of the lines in the queue and in the writer's batch.
    queued_bytes: AtomicUsize,
    dropped: Counter,
}

/// The producer's end of the log.
pub struct AccessLog {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

impl AccessLog {
    /// Opens the target and starts the writer, which ends with the last handle. `sender` is for
    /// lines that go to an OpenTelemetry collector.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or there are no more threads.
    pub fn start(options: &AccessLogOptions, sender: Option<LogSender>) -> io::Result<Arc<Self>> {
        let format = options.format;
        let target: Box<dyn Target> = match options.destination.clone() {
            Destination::Stdout => Box::new(FileTarget::open(None, format)?),
            Destination::File(path) => Box::new(FileTarget::open(Some(path), format)?),
            Destination::Syslog(address) => Box::new(syslog::SyslogTarget::new(address)),
            Destination::Otlp => match sender {
                Some(sender) => Box::new(otlp::OtlpTarget::new(sender)),
                None => return Err(io::Error::other("no OpenTelemetry collector is named")),
            },
        };
        let (queue, lines) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            target,
            format,
            lines,
            shared: Arc::clone(&shared),
            is_failing: false,
        };
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run())?;
        Ok(Arc::new(Self { queue, shared }))
    }

    /// Number of lines that were not written: the target was too slow, or refused them.
    #[must_use]
    pub fn dropped(&self) -> Counter {
        self.shared.dropped.clone()
    }

    /// Reopens the file after log rotation.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        // A full queue wakes the writer as well.
        let _ = self.queue.try_send(Message::WakeUp);
    }

    /// Sends what is queued, within some seconds. Blocks.
    pub fn close(&self) {
        let (done, closed) = sync_channel(1);
        if self.queue.try_send(Message::Close(done)).is_ok() {
            let _ = closed.recv_timeout(CLOSE_TIMEOUT);
        }
    }

    fn write(&self, record: Box<Record>) {
        let size = record.size();
        let queued = self.shared.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let has_space = queued + size <= QUEUE_BYTES;
        if !has_space || self.queue.try_send(Message::Line(record)).is_err() {
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            self.shared.dropped.inc();
        }
    }
}

struct Writer {
    target: Box<dyn Target>,
    format: Format,
    lines: Receiver<Message>,
    shared: Arc<Shared>,
    is_failing: bool,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Batch::default();
        while let Ok(first) = self.lines.recv() {
            let close = self.gather(first, &mut batch);
            if self.shared.reopen.swap(false, Ordering::AcqRel)
                && let Err(error) = self.target.reopen()
            {
                tracing::error!(%error, "the access log cannot be reopened");
            }
            let is_refused = batch.len() > 0 && !self.send(&batch);
            let size = batch.size();
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            batch.clear();
            if let Some(done) = close {
                let _ = done.send(());
                return;
            }
            if is_refused {
                thread::sleep(PAUSE);
            }
        }
    }

    /// Fills the batch with what is queued, and with what comes within the target's time. Returns
    /// whom to tell when it is sent, if it is the last.
    fn gather(&self, first: Message, batch: &mut Batch) -> Option<SyncSender<()>> {
        let linger = self.target.linger();
        let deadline = Instant::now() + linger;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(record) => batch.push(*record, self.format),
                Message::WakeUp => {}
                Message::Close(done) => return Some(done),
            }
            let is_full = batch.len() >= BATCH || batch.text().len() >= BATCH_BYTES;
            next = if is_full {
                None
            } else if linger.is_zero() {
                self.lines.try_recv().ok()
            } else {
                let left = deadline.saturating_duration_since(Instant::now());
                self.lines.recv_timeout(left).ok()
            };
        }
        None
    }

    /// `false`: the target took no line.
    fn send(&mut self, batch: &Batch) -> bool {
        match self.target.send(batch) {
            Ok(()) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the access log is written again");
                }
                true
            }
            Err(Loss { lines, error }) => {
                self.shared.dropped.inc_by(lines as u64);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(%error, lines, "lines of the access log could not be written");
                }
                lines < batch.len()
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_moved_away_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let options = format!("combined:{}", path.display()).parse().unwrap();
        let log = AccessLog::start(&options, None).unwrap();
        let written = |path: &std::path::Path, count: usize| {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                if text.lines().count() == count {
                    return;
                }
                assert!(Instant::now() < deadline, "{text}");
                thread::yield_now();
            }
        };
        log.write(Box::new(Record::sample()));
        written(&path, 1);
        let moved = directory.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        written(&path, 0);
        log.write(Box::new(Record::sample()));
        written(&path, 1);
        written(&moved, 1);
    }

    #[test]
    fn a_client_that_left_before_its_answer_got_no_200() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let options = format!("json:{}", path.display()).parse().unwrap();
        let log = AccessLog::start(&options, None).unwrap();
        let (request, ()) = http::Request::get("/films/a")
            .body(())
            .unwrap()
            .into_parts();
        drop(Pending::new(&log, &request, [127, 0, 0, 1].into()));
        let mut answered = Pending::new(&log, &request, [127, 0, 0, 1].into());
        answered.answered(&http::Response::new(()), false);
        drop(answered);
        log.close();
        let text = std::fs::read_to_string(&path).unwrap();
        let statuses = text
            .lines()
            .map(|line| line.contains(r#""status":499"#))
            .collect::<Vec<_>>();
        assert_eq!(statuses, [true, false], "{text}");
    }

    #[test]
    fn what_is_queued_is_written_before_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let options = format!("json:{}", path.display()).parse().unwrap();
        let log = AccessLog::start(&options, None).unwrap();
        for _ in 0..2 * BATCH {
            log.write(Box::new(Record::sample()));
        }
        log.close();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2 * BATCH);
        assert_eq!(log.shared.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_queue_costs_lines_and_no_request() {
        let (queue, lines) = sync_channel(1);
        let log = AccessLog {
            queue,
            shared: Arc::default(),
        };
        for _ in 0..3 {
            log.write(Box::new(Record::sample()));
        }
        assert_eq!(log.dropped().get(), 2);
        drop(lines);
    }

    #[test]
    fn the_queue_is_bounded_in_bytes() {
        const HEAD: usize = 1 << 20;
        let (queue, lines) = sync_channel(QUEUE);
        let log = AccessLog {
            queue,
            shared: Arc::default(),
        };
        for _ in 0..2 * QUEUE_BYTES / HEAD {
            let mut record = Record::sample();
            record.lengthen(HEAD);
            log.write(Box::new(record));
        }
        let queued = lines.try_iter().count();
        assert!(queued * HEAD < QUEUE_BYTES, "{queued}");
        assert_eq!(
            log.dropped().get() as usize,
            2 * QUEUE_BYTES / HEAD - queued
        );
    }

    /// Refuses everything.
    struct Refusing;

    impl Target for Refusing {
        fn send(&mut self, batch: &Batch) -> Result<(), Loss> {
            let error = io::Error::other("refused");
            let lines = batch.len();
            Err(Loss { lines, error })
        }
    }

    #[test]
    fn what_a_target_refuses_is_counted() {
        let (queue, lines) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let log = AccessLog {
            queue,
            shared: Arc::clone(&shared),
        };
        for _ in 0..3 {
            log.write(Box::new(Record::sample()));
        }
        let (done, _closed) = sync_channel(1);
        log.queue.send(Message::Close(done)).unwrap();
        let target = Box::new(Refusing);
        Writer {
            target,
            format: Format::Json,
            lines,
            shared,
            is_failing: false,
        }
        .run();
        assert_eq!(log.dropped().get(), 3);
    }
}
