//! Chooses the next bytes of a run to request.

use std::sync::Arc;

use chunkcache_proto::ByteRange;

use super::Assignment;
use crate::readers::{EntryIncoming, IncomingChunk, incoming_chunk::ChunkClaim};

pub(super) struct Gap {
    pub range: ByteRange,
    pub claims: std::collections::VecDeque<ChunkClaim>,
}

pub(super) enum NextStep {
    Gap(Gap),
    Foreign(Arc<IncomingChunk>),
    Done,
}

/// The next bytes to request: from the wanted byte to the run's end, then the head; adjacent chunks
/// together.
pub(super) fn next_gap(assignment: &Assignment, incoming: &Arc<EntryIncoming>) -> NextStep {
    let geometry = assignment.file.geometry();
    let run = geometry.run_range(assignment.first_chunk, assignment.chunk_count);
    let start = assignment.start_at.clamp(run.start, run.end);
    let mut foreign = None;
    for leg in [
        ByteRange::new(start, run.end),
        ByteRange::new(run.start, start),
    ] {
        let mut gap: Option<Gap> = None;
        for chunk in geometry.chunks_covering(leg) {
            let part = geometry.chunk_range(chunk).intersect(leg);
            let missing = incoming
                .incoming_chunk(chunk)
                .map(|incoming_chunk| (incoming_chunk.gap(part), incoming_chunk));
            match (&mut gap, missing) {
                (None, Some((Some(range), incoming_chunk))) => {
                    match incoming_chunk.claim(assignment.id) {
                        Some(claim) => {
                            gap = Some(Gap {
                                range,
                                claims: [claim].into(),
                            })
                        }
                        None => foreign = Some(incoming_chunk),
                    }
                }
                (Some(gap), Some((Some(range), incoming_chunk)))
                    if range == part && gap.range.end == part.start =>
                {
                    let Some(claim) = incoming_chunk.claim(assignment.id) else {
                        break;
                    };
                    gap.range.end = part.end;
                    gap.claims.push_back(claim);
                }
                (Some(_), _) => break,
                // All bytes are written or being written by another fetch, but the chunk is not
                // complete yet.
                (None, Some((None, incoming_chunk))) => {
                    if !incoming_chunk.is_over() {
                        foreign = Some(incoming_chunk);
                    }
                }
                (None, None) => {}
            }
        }
        if let Some(gap) = gap {
            return NextStep::Gap(gap);
        }
    }
    match foreign {
        Some(incoming_chunk) => NextStep::Foreign(incoming_chunk),
        None => NextStep::Done,
    }
}
