//! Shared by the load generators of `tests/bench`: a small HTTP/1.1 client that reads 256 KiB at a
//! time and compares it with the expected bytes.
//!
//! wrk reads 8 KiB at a time and, at several GB/s, mostly measures itself.

mod client;
mod processes;

pub use client::{Client, Comparison, Connection, RangeRequest, Timing, Until};
pub use processes::{cpu_seconds, resident_bytes};

use std::{collections::HashMap, io::Read as _};

use anyhow::{Context as _, Result, bail};

/// The expected bytes of an object.
pub enum Content {
    Memory(Vec<u8>),
    /// This many bytes, each of which, except the first ones, equals the byte `period` before it.
    Repeating {
        period: Vec<u8>,
        size: u64,
    },
    /// A sparse file of this size.
    Zeros(u64),
}

impl Content {
    /// Parses a file's path, `zeros:SIZE`, or `repeating:PERIOD:PATH`: a file that repeats its
    /// first bytes. A period that fits into the processor's cache leaves the memory to the servers;
    /// a prime one differs at all positions that servers could mix up.
    pub fn parse(text: &str) -> Result<Content> {
        if let Some(size) = text.strip_prefix("zeros:") {
            return Ok(Content::Zeros(size.parse().context("zeros:SIZE")?));
        }
        let Some(repeating) = text.strip_prefix("repeating:") else {
            return Ok(Content::Memory(std::fs::read(text).context("--content")?));
        };
        let (period, path) = repeating.split_once(':').context("repeating:PERIOD:PATH")?;
        let file = std::fs::File::open(path).context("--content")?;
        let size = file.metadata().context("--content")?.len();
        let mut first = Vec::new();
        file.take(period.parse().context("repeating:PERIOD")?)
            .read_to_end(&mut first)
            .context("--content")?;
        if first.is_empty() {
            bail!("--content={text}: nothing repeats");
        }
        Ok(Content::Repeating {
            period: first,
            size,
        })
    }

    pub fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Repeating { size, .. } => *size,
            Content::Zeros(size) => *size,
        }
    }

    /// How many of the bytes at the offset are wrong.
    pub fn wrong_bytes(&self, offset: u64, bytes: &[u8]) -> u64 {
        const ZEROS: [u8; 4096] = [0; 4096];
        let differing = |given: &[u8], expected: &[u8]| {
            if given == expected {
                return 0;
            }
            let pairs = given.iter().zip(expected);
            pairs.filter(|(a, b)| a != b).count() as u64
                + given.len().saturating_sub(expected.len()) as u64
        };
        match self {
            Content::Memory(content) => {
                let start = (offset as usize).min(content.len());
                let end = (start + bytes.len()).min(content.len());
                differing(bytes, &content[start..end])
            }
            Content::Repeating { period, size } => {
                let within = size.saturating_sub(offset).min(bytes.len() as u64) as usize;
                let mut wrong = (bytes.len() - within) as u64;
                let (mut rest, mut at) =
                    (&bytes[..within], (offset % period.len() as u64) as usize);
                while !rest.is_empty() {
                    let (part, later) = rest.split_at(rest.len().min(period.len() - at));
                    wrong += differing(part, &period[at..at + part.len()]);
                    (rest, at) = (later, 0);
                }
                wrong
            }
            Content::Zeros(_) => bytes
                .chunks(ZEROS.len())
                .map(|part| differing(part, &ZEROS[..part.len()]))
                .sum(),
        }
    }
}

/// `--name=value` arguments, each taken once.
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    pub fn new(arguments: impl Iterator<Item = String>) -> Result<Arguments> {
        let mut given = HashMap::new();
        for argument in arguments {
            let (name, value) = argument
                .strip_prefix("--")
                .and_then(|rest| rest.split_once('='))
                .with_context(|| format!("{argument}: expected --name=value"))?;
            given.insert(name.to_owned(), value.to_owned());
        }
        Ok(Arguments(given))
    }

    pub fn text(&mut self, name: &str, default: Option<&str>) -> Result<String> {
        self.0
            .remove(name)
            .or(default.map(str::to_owned))
            .with_context(|| format!("--{name}= is missing"))
    }

    pub fn value<T: std::str::FromStr>(&mut self, name: &str, default: Option<&str>) -> Result<T> {
        let text = self.text(name, default)?;
        match text.parse() {
            Ok(value) => Ok(value),
            Err(_) => bail!("--{name}={text}: is not understood"),
        }
    }

    pub fn list<T: std::str::FromStr>(&mut self, name: &str) -> Result<Vec<T>> {
        let text = self.text(name, Some(""))?;
        let parts = text.split(',').filter(|part| !part.is_empty());
        parts
            .map(|part| match part.parse() {
                Ok(value) => Ok(value),
                Err(_) => bail!("--{name}: {part} is not understood"),
            })
            .collect()
    }

    /// Fails if arguments are left.
    pub fn end(self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => bail!("--{name}: no such option"),
            None => Ok(()),
        }
    }
}

/// In milliseconds, from sorted microseconds.
pub fn percentile(sorted_us: &[u32], part: f64) -> f64 {
    if sorted_us.is_empty() {
        return 0.0;
    }
    let index = ((sorted_us.len() - 1) as f64 * part).round() as usize;
    f64::from(sorted_us[index]) / 1000.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn repeating_content_is_what_its_file_is() {
        let whole: Vec<u8> = (0..1000u32).map(|at| (at % 97) as u8).collect();
        let path =
            std::env::temp_dir().join(format!("chunkcache-repeating-{}", std::process::id()));
        std::fs::write(&path, &whole).unwrap();
        let content = Content::parse(&format!("repeating:97:{}", path.display())).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(content.size(), 1000);
        for start in [0, 1, 96, 97, 500, 999] {
            let mut bytes = whole[start..].to_vec();
            assert_eq!(content.wrong_bytes(start as u64, &bytes), 0);
            assert_eq!(
                content.wrong_bytes(start as u64 + 1, &bytes),
                bytes.len() as u64
            );
            bytes[0] ^= 1;
            assert_eq!(content.wrong_bytes(start as u64, &bytes), 1);
        }
        assert_eq!(
            content.wrong_bytes(999, &[whole[999], 7, 7]),
            2,
            "past its end"
        );
    }
}
