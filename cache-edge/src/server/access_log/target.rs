//! Where a batch of lines is written to, on the writer's thread.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    time::Duration,
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use super::{Format, Record, line};

/// Lines that are sent together, each with its record.
#[derive(Default)]
pub(super) struct Batch {
    records: Vec<Record>,
    /// All lines, each with its end.
    text: String,
    ends: Vec<usize>,
    /// Bytes that the records keep in memory.
    size: usize,
}

impl Batch {
    pub(super) fn push(&mut self, record: Record, format: Format) {
        record.format(format, &mut self.text);
        self.text.push('\n');
        self.ends.push(self.text.len());
        self.size += record.size();
        self.records.push(record);
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.text.clear();
        self.ends.clear();
        self.size = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The lines without their ends.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&Record, &str)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let lines = starts
            .zip(&self.ends)
            .map(|(start, end)| self.text.get(start..end - 1).unwrap_or_default());
        self.records.iter().zip(lines)
    }
}

/// Some lines of a batch, or all, were not sent.
#[derive(Debug)]
pub(super) struct Loss {
    pub lines: usize,
    pub error: io::Error,
}

/// Takes lines. Each call may block, but only for some seconds.
pub(super) trait Target: Send {
    fn send(&mut self, batch: &Batch) -> Result<(), Loss>;

    /// After log rotation.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// How long lines are gathered before they are sent.
    fn linger(&self) -> Duration {
        Duration::ZERO
    }
}

/// A file, a named pipe, or standard output.
pub(super) struct FileTarget {
    path: Option<PathBuf>,
    /// `None`: a named pipe that nobody reads yet. It is opened for the next lines.
    out: Option<Box<dyn Write + Send>>,
    header: &'static str,
    /// The last line was written in part: the next begins on a line of its own.
    is_torn: bool,
}

impl FileTarget {
    /// `None`: standard output.
    pub(super) fn open(path: Option<PathBuf>, format: Format) -> io::Result<Self> {
        let header = match format {
            Format::W3c => line::W3C_HEADER,
            Format::Json | Format::Combined => "",
        };
        let mut target = Self {
            path,
            out: None,
            header,
            is_torn: false,
        };
        match target.reopen() {
            Err(error) if is_unread(&error) => {
                tracing::warn!(%error, "nobody reads the access log's pipe yet");
            }
            opened => opened?,
        }
        Ok(target)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.out.is_none() {
            self.reopen()?;
        }
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        if self.is_torn {
            out.write_all(b"\n")?;
            self.is_torn = false;
        }
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match out.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let (written, left) = rest.split_at(count.min(rest.len()));
                    self.is_torn = !written.ends_with(b"\n");
                    rest = left;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.flush()
    }
}

impl Target for FileTarget {
    fn send(&mut self, batch: &Batch) -> Result<(), Loss> {
        self.write(batch.text()).map_err(|error| Loss {
            lines: batch.len(),
            error,
        })
    }

    /// If the file cannot be opened, the old one remains in use.
    fn reopen(&mut self) -> io::Result<()> {
        self.out = Some(match &self.path {
            Some(path) => Box::new(append(path)?),
            None => Box::new(io::stdout()),
        });
        self.is_torn = false;
        self.write(self.header)
    }
}

/// Opens without waiting for the reader of a named pipe; writing waits for it.
fn append(path: &PathBuf) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

fn is_unread(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::default();
        batch.push(Record::sample(), Format::Combined);
        batch
    }

    /// Takes some bytes, refuses the next ones, then takes all.
    struct FullOnce {
        left: usize,
        written: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    }

    impl Write for FullOnce {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                self.left = usize::MAX;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(self.left);
            self.left -= count;
            self.written
                .lock()
                .unwrap()
                .extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_after_one_that_a_full_disk_cut_is_whole() {
        let whole = batch().text().to_owned();
        for left in [5, whole.len() - 1, whole.len()] {
            let written = std::sync::Arc::default();
            let mut target = FileTarget {
                path: None,
                out: Some(Box::new(FullOnce {
                    left,
                    written: std::sync::Arc::clone(&written),
                })),
                header: "",
                is_torn: false,
            };
            let lost = [target.send(&batch()), target.send(&batch())];
            assert_eq!(lost.iter().filter(|it| it.is_err()).count(), 1);
            target.send(&batch()).unwrap();
            let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
            assert!(text.ends_with(&format!("\n{whole}")), "{text:?}");
            assert!(!text.contains("\n\n"), "{text:?}");
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_yet_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            &path,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )
        .unwrap();
        let mut target = FileTarget::open(Some(path.clone()), Format::W3c).unwrap();
        assert_eq!(target.send(&batch()).unwrap_err().lines, 1);
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        target.send(&batch()).unwrap();
        let mut bytes = [0; 4096];
        let count = io::Read::read(&mut reader, &mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..count]).unwrap();
        assert!(text.starts_with("#Version: 1.0\n"), "{text}");
        assert!(text.ends_with(batch().text()), "{text}");
    }
}
