//! Chooses the next bytes of a run to request.

use std::sync::Arc;

use chunkcache_proto::ByteRange;

use super::run::Assignment;
use crate::readers::{EntryIncoming, IncomingChunk, incoming_chunk::ChunkClaim};

pub(super) struct Gap {
    pub range: ByteRange,
    pub claims: std::collections::VecDeque<ChunkClaim>,
}

pub(super) enum Next {
    Gap(Gap),
    Foreign(Arc<IncomingChunk>),
    Done,
}

/// The next bytes to request: from the wanted byte to the run's end, then the head; adjacent chunks
/// together.
pub(super) fn next_gap(order: &Assignment, flights: &Arc<EntryIncoming>) -> Next {
    let geometry = order.file.geometry();
    let run = geometry.run_range(order.first_chunk, order.chunk_count);
    let start = order.start_at.clamp(run.start, run.end);
    let mut foreign = None;
    for leg in [
        ByteRange::new(start, run.end),
        ByteRange::new(run.start, start),
    ] {
        let mut gap: Option<Gap> = None;
        for chunk in geometry.chunks_covering(leg) {
            let part = geometry.chunk_range(chunk).intersect(leg);
            let missing = flights
                .flight(chunk)
                .map(|flight| (flight.gap(part), flight));
            match (&mut gap, missing) {
                (None, Some((Some(range), flight))) => match flight.claim(order.id) {
                    Some(claim) => {
                        gap = Some(Gap {
                            range,
                            claims: [claim].into(),
                        })
                    }
                    None => foreign = Some(flight),
                },
                (Some(gap), Some((Some(range), flight)))
                    if range == part && gap.range.end == part.start =>
                {
                    let Some(claim) = flight.claim(order.id) else {
                        break;
                    };
                    gap.range.end = part.end;
                    gap.claims.push_back(claim);
                }
                (Some(_), _) => break,
                // Written or being written by another fetch, the chunk is not complete yet.
                (None, Some((None, flight))) => {
                    if !flight.is_over() {
                        foreign = Some(flight);
                    }
                }
                (None, None) => {}
            }
        }
        if let Some(gap) = gap {
            return Next::Gap(gap);
        }
    }
    match foreign {
        Some(flight) => Next::Foreign(flight),
        None => Next::Done,
    }
}

impl Assignment {
    /// All bytes of its chunks.
    #[must_use]
    pub fn run(&self) -> ByteRange {
        self.file
            .geometry()
            .run_range(self.first_chunk, self.chunk_count)
    }
}
