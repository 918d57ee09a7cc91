//! Reads from the origin past the store, for readers of chunks that cannot be stored. Answers are
//! checked as always. Each reader has its own request, because there is nowhere to share the bytes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chunkcache_proto::ByteRange;
use tokio::{sync::mpsc, time::Instant};

use crate::fetch::run::{Fetcher, OpenAnswer};
use crate::upstream::{
    OriginError, RequestClass,
    answer::Part,
    give_way::{self, MAY_REST},
};
use crate::{readers::DirectBytes, resolve::ports::ReadError, worker_pool::Workers};
use chunk_store::EntryFile;
use service_kit::backoff::Backoff;

/// Pieces of up to 128 KiB on their way to the player.
const FRAMES: usize = 2;

/// See [`DirectBytes`].
pub struct DirectFetch {
    pub fetcher: Arc<Fetcher>,
    pub workers: Workers,
}

impl DirectBytes for DirectFetch {
    fn open(
        &self,
        file: Arc<EntryFile>,
        range: ByteRange,
    ) -> mpsc::Receiver<Result<Bytes, ReadError>> {
        let (sender, receiver) = mpsc::channel(FRAMES);
        let fetcher = self.fetcher.clone();
        self.workers
            .spawn(async move { pump(&fetcher, &file, range, &sender).await });
        receiver
    }
}

async fn pump(
    fetcher: &Fetcher,
    file: &Arc<EntryFile>,
    mut range: ByteRange,
    sender: &mpsc::Sender<Result<Bytes, ReadError>>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(150), Duration::from_secs(4));
    let mut last_progress = Instant::now();
    while !range.is_empty() {
        let before = range.start;
        let Err(error) = once(fetcher, file, &mut range, sender).await else {
            return;
        };
        if range.start > before {
            last_progress = Instant::now();
            backoff.reset();
        }
        let wait = backoff
            .wait(rand::random())
            .max(error.retry_after().unwrap_or_default());
        if !error.is_transient() || last_progress.elapsed() + wait > fetcher.retry_budget {
            let error = match error {
                OriginError::Changed => ReadError::Changed,
                other => ReadError::Origin(other.to_string()),
            };
            // A reader that left does not need the error.
            let _ = sender.send(Err(error)).await;
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// `Ok`: all bytes were sent, or the reader left.
async fn once(
    fetcher: &Fetcher,
    file: &Arc<EntryFile>,
    range: &mut ByteRange,
    sender: &mpsc::Sender<Result<Bytes, ReadError>>,
) -> Result<(), OriginError> {
    let incoming = fetcher.incoming.of(file);
    let (mut answer, mut skip) = (None, 0);
    while !range.is_empty() {
        let Some(slot) = give_way::reserve(sender, &mut answer, MAY_REST).await else {
            return Ok(());
        };
        let response = match &mut answer {
            Some(response) => response,
            // The first one, or the rest after this one gave way.
            None => {
                let opened = fetcher.open(file, &incoming, *range, RequestClass::Foreground);
                let OpenAnswer { response, part, .. } = opened.await?;
                skip = if part == Part::Whole { range.start } else { 0 };
                answer.insert(response)
            }
        };
        let Some(mut bytes) = response.chunk().await? else {
            return Err(OriginError::Short {
                received: 0,
                expected: range.len(),
                detail: "its body ended early".into(),
            });
        };
        let skipped = skip.min(bytes.len() as u64);
        skip -= skipped;
        let mut bytes = bytes.split_off(skipped as usize);
        bytes.truncate(usize::try_from(range.len()).unwrap_or(usize::MAX));
        if bytes.is_empty() {
            continue;
        }
        range.start += bytes.len() as u64;
        slot.send(Ok(bytes));
    }
    Ok(())
}
