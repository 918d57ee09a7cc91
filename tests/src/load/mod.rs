//! What the load generators of `tests/bench` have in common: a small HTTP/1.1 client that reads 256 KiB at a time and
//! compares every byte with what it should be.
//!
//! wrk reads 8 KiB at a time and, at several GB/s, mostly measures itself.

mod client;
mod processes;

pub use client::{Asked, Client, Connection, Timing, Until};
pub use processes::{cpu_seconds, resident_bytes};

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};

/// What the bytes of an object should be.
pub enum Content {
    Memory(Vec<u8>),
    /// A sparse file of this size.
    Zeros(u64),
}

impl Content {
    /// A file's path, or `zeros:SIZE`.
    pub fn parse(text: &str) -> Result<Content> {
        match text.strip_prefix("zeros:") {
            Some(size) => Ok(Content::Zeros(size.parse().context("zeros:SIZE")?)),
            None => Ok(Content::Memory(std::fs::read(text).context("--content")?)),
        }
    }

    pub fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Zeros(size) => *size,
        }
    }

    /// How many of the bytes at the offset are not what they should be.
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

    /// Nothing may be left.
    pub fn end(self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => bail!("--{name}: no such option"),
            None => Ok(()),
        }
    }
}

/// In milliseconds, of sorted microseconds.
pub fn percentile(sorted_us: &[u32], part: f64) -> f64 {
    if sorted_us.is_empty() {
        return 0.0;
    }
    let index = ((sorted_us.len() - 1) as f64 * part).round() as usize;
    f64::from(sorted_us[index]) / 1000.0
}
