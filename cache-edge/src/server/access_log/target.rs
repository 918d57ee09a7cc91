//! Where a batch of lines is written to, on the writer's thread.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    time::Duration,
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

/// A file, or standard output.
pub(super) struct FileTarget {
    path: Option<PathBuf>,
    out: Box<dyn Write + Send>,
    header: &'static str,
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
            out: Box::new(io::stdout()),
            header,
        };
        if let Some(path) = &target.path {
            target.out = Box::new(append(path)?);
        }
        target.write(header)?;
        Ok(target)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
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
        let Some(path) = &self.path else {
            return Ok(());
        };
        self.out = Box::new(append(path)?);
        self.write(self.header)
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}
