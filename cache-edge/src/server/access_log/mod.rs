//! Writes one line per request, on its own thread.
//!
//! The serving thread collects the parts of a line (mostly reference-counted) and passes them on
//! when the body ends; the writer formats and writes. The queue between them is bounded: with a
//! slow target lines are lost and counted, but no request is delayed.

mod line;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use prometheus_client::metrics::counter::Counter;

pub use self::line::{Pending, Record};

/// Lines that wait for the writer: a tenth of a second at full speed.
const QUEUE: usize = 8192;
/// Maximum number of lines between two flushes.
const BATCH: usize = 512;

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object per line, with all fields.
    Json,
    /// The Combined Log Format of Apache and nginx.
    Combined,
    /// W3C Extended Log File Format.
    W3c,
}

/// `FORMAT[:TARGET]`; the target is a file, or `-` for standard output, which is the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogOptions {
    pub format: Format,
    /// `None`: standard output.
    pub file: Option<PathBuf>,
}

impl FromStr for AccessLogOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, target) = text.split_once(':').unwrap_or((text, "-"));
        let format = match format {
            "json" => Format::Json,
            "combined" => Format::Combined,
            "w3c" => Format::W3c,
            _ => return Err("expected json, combined or w3c, and perhaps :FILE".to_owned()),
        };
        match target {
            "" => Err("expected a file, or -, after the colon".to_owned()),
            "-" => Ok(Self { format, file: None }),
            file => Ok(Self {
                format,
                file: Some(file.into()),
            }),
        }
    }
}

enum Message {
    Line(Box<Record>),
    /// Makes the writer check `reopen` when there are no requests.
    WakeUp,
}

/// The producer's end of the log.
pub struct AccessLog {
    queue: SyncSender<Message>,
    reopen: Arc<AtomicBool>,
    dropped: Counter,
}

impl AccessLog {
    /// Opens the target and starts the writer, which ends with the last handle.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or there are no more threads.
    pub fn start(options: &AccessLogOptions) -> io::Result<Arc<Self>> {
        let target = Target::open(options.clone())?;
        let (queue, lines) = sync_channel(QUEUE);
        let reopen = Arc::new(AtomicBool::new(false));
        let wanted = Arc::clone(&reopen);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(target, &lines, &wanted))?;
        Ok(Arc::new(Self {
            queue,
            reopen,
            dropped: Counter::default(),
        }))
    }

    /// Number of lines dropped because the target was too slow.
    #[must_use]
    pub fn dropped(&self) -> Counter {
        self.dropped.clone()
    }

    /// Reopens the file after log rotation.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        // A full queue wakes the writer as well.
        let _ = self.queue.try_send(Message::WakeUp);
    }

    fn write(&self, record: Box<Record>) {
        if self.queue.try_send(Message::Line(record)).is_err() {
            self.dropped.inc();
        }
    }
}

struct Target {
    options: AccessLogOptions,
    out: BufWriter<Box<dyn Write + Send>>,
}

impl Target {
    fn open(options: AccessLogOptions) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match &options.file {
            None => Box::new(io::stdout()),
            Some(path) => Box::new(append(path)?),
        };
        let mut target = Self {
            options,
            out: BufWriter::with_capacity(64 * 1024, out),
        };
        if target.options.format == Format::W3c {
            target.out.write_all(line::W3C_HEADER.as_bytes())?;
        }
        Ok(target)
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn write_lines(mut target: Target, lines: &Receiver<Message>, reopen: &AtomicBool) {
    let mut text = String::with_capacity(1024);
    while let Ok(first) = lines.recv() {
        if reopen.swap(false, Ordering::AcqRel) {
            // If the file cannot be opened, the old one remains in use.
            match Target::open(target.options.clone()) {
                Ok(new) => target = new,
                Err(error) => tracing::error!(%error, "the access log cannot be reopened"),
            }
        }
        let batch = std::iter::once(first).chain(lines.try_iter().take(BATCH));
        for message in batch {
            let Message::Line(record) = message else {
                continue;
            };
            text.clear();
            record.format(target.options.format, &mut text);
            text.push('\n');
            if let Err(error) = target.out.write_all(text.as_bytes()) {
                tracing::warn!(%error, "a line of the access log could not be written");
            }
        }
        if let Err(error) = target.out.flush() {
            tracing::warn!(%error, "the access log could not be written");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_targets() {
        let parse = |text: &str| text.parse::<AccessLogOptions>();
        assert_eq!(parse("json").unwrap().file, None);
        assert_eq!(parse("w3c:-").unwrap().format, Format::W3c);
        let file = parse("combined:/var/log/edge.log").unwrap().file;
        assert_eq!(file, Some(PathBuf::from("/var/log/edge.log")));
        for wrong in ["", "xml", "json:", ":/x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_moved_away_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let options = format!("combined:{}", path.display()).parse().unwrap();
        let log = AccessLog::start(&options).unwrap();
        let written = |path: &std::path::Path, count: usize| {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            loop {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                if text.lines().count() == count {
                    return;
                }
                assert!(std::time::Instant::now() < deadline, "{text}");
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
    fn a_full_queue_costs_lines_and_no_request() {
        let (queue, lines) = sync_channel(1);
        let log = AccessLog {
            queue,
            reopen: Arc::default(),
            dropped: Counter::default(),
        };
        for _ in 0..3 {
            log.write(Box::new(Record::sample()));
        }
        assert_eq!(log.dropped().get(), 2);
        drop(lines);
    }
}
