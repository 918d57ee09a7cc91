//! Compares a file with its origin. Each request is bound to the entry's version.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use chunkcache_proto::{ByteRange, v1};

use super::Check;
use crate::clock::now_ms;
use crate::{
    app::Edge,
    upstream::{
        Client, RequestClass, Response, Source,
        answer::{self, Part},
    },
};

/// Another cache's file is wrong in large parts (cut, filled with zeros, another version) or not at
/// all. A sample of this length in each of this many equal parts always finds a contiguous wrong
/// eighth, and finds a scattered wrong tenth four times in five.
const SAMPLES: u64 = 16;
const SAMPLE_BYTES: u64 = 64 << 10;

/// One comparison of one file.
pub(super) struct Comparison<'a> {
    check: Check,
    client: &'a Client,
    source: &'a Arc<Source>,
    entry: &'a v1::Entry,
    whole: Option<Stream>,
}

/// An answer that is read in parallel with the file.
struct Stream {
    response: Response,
    unread: bytes::Bytes,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        check: Check,
        edge: &'a Edge,
        source: &'a Arc<Source>,
        entry: &'a v1::Entry,
    ) -> Self {
        Self {
            check,
            client: &edge.downloads.fetcher().client,
            source,
            entry,
            whole: None,
        }
    }

    /// Compares samples before anything is stored.
    pub(super) async fn before(&mut self, file: &File) -> anyhow::Result<()> {
        let size = self.entry.size;
        if self.check == Check::Whole {
            if size > 0 {
                self.whole = Some(self.ask(ByteRange::new(0, size)).await?);
            }
            return Ok(());
        }
        for range in samples(size, rand::random) {
            let mut stream = self.ask(range).await?;
            let mut own = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut own, range.start)?;
            stream.compare(range.start, &own).await?;
        }
        Ok(())
    }

    /// Compares bytes as they are copied.
    pub(super) async fn while_copying(&mut self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        match &mut self.whole {
            Some(stream) => stream.compare(offset, bytes).await,
            None => Ok(()),
        }
    }

    async fn ask(&self, range: ByteRange) -> anyhow::Result<Stream> {
        let key = self.entry.key.clone().unwrap_or_default();
        let url = self.source.url(&key.path, &key.query);
        let url = url.ok_or_else(|| anyhow::anyhow!("its path leaves the source"))?;
        let mut headers = answer::variant_headers(&key.variant);
        headers.extend(answer::range_headers(range, Some(self.entry)));
        let response = self
            .client
            .get(self.source, url, &headers, RequestClass::Import)
            .await?;
        let (status, answered) = (response.status, &response.headers);
        match answer::check(status, answered, range, self.entry, now_ms())? {
            // A range was requested; an origin that ignores ranges sends the whole object.
            Part::Range(_) => {}
            Part::Whole if range.start == 0 => {}
            Part::Whole => anyhow::bail!("the origin ignores ranges: import it with --check whole"),
        }
        Ok(Stream {
            response,
            unread: bytes::Bytes::new(),
        })
    }
}

impl Stream {
    async fn compare(&mut self, offset: u64, own: &[u8]) -> anyhow::Result<()> {
        let mut at = 0;
        while at < own.len() {
            if self.unread.is_empty() {
                let next = self.response.chunk().await?;
                self.unread = next.ok_or_else(|| {
                    anyhow::anyhow!("the origin's answer ends at byte {}", offset + at as u64)
                })?;
            }
            let theirs = self.unread.split_to(self.unread.len().min(own.len() - at));
            let ours = &own[at..at + theirs.len()];
            if theirs != ours {
                let differing = theirs.iter().zip(ours).position(|(a, b)| a != b);
                let place = offset + at as u64 + differing.unwrap_or(0) as u64;
                anyhow::bail!("it differs from the origin's object at byte {place}");
            }
            at += theirs.len();
        }
        Ok(())
    }
}

/// The first and the last sample, and one within each equal part between them.
fn samples(size: u64, random: impl Fn() -> u64) -> Vec<ByteRange> {
    if size <= SAMPLES * SAMPLE_BYTES {
        return (size > 0)
            .then(|| ByteRange::new(0, size))
            .into_iter()
            .collect();
    }
    let part = size / SAMPLES;
    (0..SAMPLES)
        .map(|index| {
            let start = match index {
                0 => 0,
                last if last == SAMPLES - 1 => size - SAMPLE_BYTES,
                _ => index * part + random() % (part - SAMPLE_BYTES).max(1),
            };
            ByteRange::new(start, start + SAMPLE_BYTES)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn samples_lie_within_the_file_and_apart(size in 0u64..1 << 40, random in any::<u64>()) {
            let samples = samples(size, || random);
            let mut end = 0;
            for range in &samples {
                prop_assert!(range.start >= end && range.end > range.start && range.end <= size);
                end = range.end;
            }
            prop_assert_eq!(samples.first().map(|range| range.start), (size > 0).then_some(0));
            prop_assert_eq!(samples.last().map_or(0, |range| range.end), size);
        }
    }
}
