//! Writes the body of an answer into the store as it arrives.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use chunkcache_proto::{ByteRange, Level};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::{
    Assignment,
    handle::{FetchHandle, StopMode},
    run::{FetchInterruption, Fetcher, OpenAnswer},
};
use crate::upstream::{OriginError, Response, answer::Part};
use crate::{
    core::block_aligner::BlockAligner,
    readers::{EntryIncoming, IncomingError, incoming_chunk::ChunkClaim, unread::UnreadChunks},
};

/// How long a stopped fetch waits for its answer, and then how long it continues to read it if its
/// chunk can end by then: for a fast origin that is most of the request.
pub(super) const LINGER: Duration = Duration::from_millis(100);
/// How long it continues to read if not: what has arrived is in the socket's buffer, and paid for,
/// but more would delay whatever the fetch was stopped for.
const DRAIN: Duration = Duration::from_millis(10);
/// Within this distance from its start, a fetch writes bytes at once, because a viewer may wait for
/// them.
const FIRST_BYTES: u64 = 512 << 10;
/// How long bytes may wait for the rest of their block. Bytes at the start do not wait at all,
/// because a viewer may wait for them.
const HOLD: Duration = Duration::from_millis(5);

/// Writes the bytes of one answer.
struct ChunkWriter<'a> {
    sink: ChunkSink<'a>,
    block_aligner: BlockAligner,
    /// The latest time at which to write the held bytes.
    due: Instant,
}

impl ChunkWriter<'_> {
    fn push(&mut self, bytes: &[u8], hold: Duration) -> Result<(), IncomingError> {
        let Self {
            sink,
            block_aligner,
            ..
        } = self;
        let mut older = block_aligner.holds();
        block_aligner.push(bytes, |offset, bytes| {
            older = false;
            sink.write(offset, bytes)
        })?;
        let due = Instant::now() + hold;
        self.due = if older { self.due.min(due) } else { due };
        Ok(())
    }

    fn flush(&mut self) -> Result<(), IncomingError> {
        let Self {
            sink,
            block_aligner,
            ..
        } = self;
        block_aligner.flush(|offset, bytes| sink.write(offset, bytes))
    }

    /// Waits until the held bytes must be written.
    async fn due(&self) {
        if self.due > Instant::now() {
            tokio::time::sleep_until(self.due).await;
        }
    }
}

impl Fetcher {
    /// Writes the body into the store. However it ends, received bytes are kept.
    #[allow(clippy::too_many_arguments)] // one call path; a struct would only rename them
    pub(super) async fn stream(
        &self,
        assignment: &Assignment,
        handle: &FetchHandle,
        incoming: &Arc<EntryIncoming>,
        claims: &mut VecDeque<ChunkClaim>,
        range: ByteRange,
        response: Response,
        counter: &Counter,
    ) -> Result<(), FetchInterruption> {
        let mut writer = ChunkWriter {
            sink: ChunkSink {
                incoming,
                unread: assignment.is_ahead().then_some(&self.incoming.unread),
                source: assignment.source(),
            },
            block_aligner: BlockAligner::new(range.start),
            due: Instant::now(),
        };
        let ended = self
            .receive(
                assignment,
                handle,
                &mut writer,
                claims,
                range,
                response,
                counter,
            )
            .await;
        writer.flush().map_err(FetchInterruption::Store)?;
        ended
    }

    #[allow(clippy::too_many_arguments)] // as above
    async fn receive(
        &self,
        assignment: &Assignment,
        handle: &FetchHandle,
        writer: &mut ChunkWriter<'_>,
        claims: &mut VecDeque<ChunkClaim>,
        range: ByteRange,
        mut response: Response,
        counter: &Counter,
    ) -> Result<(), FetchInterruption> {
        let geometry = assignment.file.geometry();
        let begun = Instant::now();
        response.set_level(handle.level());
        let mut offset = range.start;
        let mut stopping: Option<(StopMode, Instant)> = None;
        let mut first_came: Option<Instant> = None;
        let goes_first =
            |end: u64| assignment.level == Level::Critical && end - range.start <= FIRST_BYTES;
        while offset < range.end {
            let until = stopping.map_or(begun, |(_, since)| {
                let took = first_came.map_or(Duration::ZERO, |first| first.elapsed());
                let end = geometry.chunk_range(geometry.chunk_of(offset)).end;
                since + linger(offset - range.start, took, end.min(range.end) - offset)
            });
            let bytes = tokio::select! {
                biased;
                stop = handle.stopped_now(), if stopping.is_none() => {
                    // A paused fetch keeps no permit that a more urgent fetch may need.
                    if stop == StopMode::Preempted && !response.has_permit() {
                        let part = Part::Range(ByteRange::new(offset, range.end));
                        let rest = OpenAnswer::new(response, part);
                        return Err(FetchInterruption::Pause(Box::new(rest)));
                    }
                    if stop == StopMode::Preempted {
                        return Err(FetchInterruption::Stop(stop));
                    }
                    stopping = Some((stop, Instant::now()));
                    continue;
                }
                () = tokio::time::sleep_until(until), if stopping.is_some() => break,
                bytes = response.chunk() => bytes,
                () = writer.due(), if writer.block_aligner.holds() => {
                    writer.flush().map_err(FetchInterruption::Store)?;
                    continue;
                }
            };
            let short = |detail: &str| {
                let (received, expected) = (offset - range.start, range.len());
                FetchInterruption::Origin(OriginError::Short {
                    received,
                    expected,
                    detail: detail.to_owned(),
                })
            };
            let mut bytes = match bytes {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Err(short("its body ended early")),
                Err(OriginError::Short { detail, .. }) => return Err(short(&detail)),
                Err(error) => return Err(FetchInterruption::Origin(error)),
            };
            // Ignore bytes beyond the announced range.
            bytes.truncate(usize::try_from(range.end - offset).unwrap_or(usize::MAX));
            let chunk_before = geometry.chunk_of(offset);
            first_came.get_or_insert_with(Instant::now);
            offset += bytes.len() as u64;
            let hold = if goes_first(offset) {
                Duration::ZERO
            } else {
                HOLD
            };
            writer
                .push(&bytes, hold)
                .map_err(FetchInterruption::Store)?;
            if offset >= range.end {
                writer.flush().map_err(FetchInterruption::Store)?;
            }
            counter.inc_by(bytes.len() as u64);
            handle.add_bytes(bytes.len() as u64);
            handle.set_position(offset);
            let chunk = geometry.chunk_of(offset);
            if chunk != chunk_before && offset < range.end {
                claims.retain(|claim| !claim.incoming_chunk().is_over());
                handle.chunk_ended();
                let is_taken = |claim: &ChunkClaim| {
                    claim.incoming_chunk().chunk() == chunk && !claim.is_held()
                };
                if claims.iter().any(is_taken) || response.is_in_the_way() {
                    // Either another fetch brings the rest, because its reader could not wait, or a
                    // viewer waits for the permit, and the rest is left to another fetch.
                    return Ok(());
                }
                if let (Some(stop), None) = (handle.wanted_stop(), stopping) {
                    stopping = Some((stop, Instant::now()));
                }
            }
        }
        if let Some((stop, _)) = stopping.filter(|_| offset < range.end) {
            // The chunk is completed from the rest of the answer.
            let last = geometry.chunk_of(range.end.saturating_sub(1));
            if geometry.chunk_of(offset) == last && !response.has_permit() {
                let part = Part::Range(ByteRange::new(offset, range.end));
                let rest = OpenAnswer::new(response, part);
                return Err(FetchInterruption::Pause(Box::new(rest)));
            }
            return Err(FetchInterruption::Stop(
                handle.wanted_stop().unwrap_or(stop),
            ));
        }
        // Reading to the end of the body frees its connection for the next request.
        let _ = tokio::time::timeout(Duration::from_millis(20), response.chunk()).await;
        Ok(())
    }
}

/// How long to read on after a stop, when so many bytes came in so much time, and so many are
/// missing of the chunk.
fn linger(came: u64, took: Duration, rest: u64) -> Duration {
    let ends = took.as_secs_f64() * rest as f64 <= LINGER.as_secs_f64() * came as f64;
    if ends { LINGER } else { DRAIN }
}

/// The chunks that bytes belong to.
struct ChunkSink<'a> {
    incoming: &'a EntryIncoming,
    /// Set for a fetch ahead of a reader: tracks chunks that are not read yet.
    unread: Option<&'a UnreadChunks>,
    source: Arc<str>,
}

impl ChunkSink<'_> {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), IncomingError> {
        let (file, incoming) = (self.incoming.file(), self.incoming);
        let geometry = file.geometry();
        for chunk in geometry.chunks_covering(ByteRange::new(offset, offset + bytes.len() as u64)) {
            let Some(incoming_chunk) = incoming.incoming_chunk(chunk) else {
                continue;
            };
            if !incoming_chunk.write(offset, bytes)? {
                continue;
            }
            if let Some(unread) = self.unread.filter(|_| !incoming_chunk.is_read()) {
                let bytes = geometry.chunk_len(chunk);
                unread.add(
                    (file.id(), chunk),
                    &self.source,
                    bytes,
                    std::time::Instant::now(),
                );
            }
            incoming.landed(chunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_fetch_reads_on_if_its_chunk_can_end_soon() {
        let ms = Duration::from_millis;
        assert_eq!(linger(1 << 20, ms(80), 1 << 20), LINGER);
        assert_eq!(linger(1 << 20, ms(200), 1 << 20), DRAIN);
        assert_eq!(linger(1 << 20, ms(200), 1 << 18), LINGER, "its end");
        assert_eq!(linger(0, ms(0), 1 << 21), LINGER, "nothing is known");
        assert_eq!(linger(1, ms(0), 1 << 21), LINGER, "a burst");
    }
}
