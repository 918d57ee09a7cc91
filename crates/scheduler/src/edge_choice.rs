//! Chooses the edge that a reader is sent to.
//!
//! It considers edges that are alive and not draining, and prefers the one that holds most of the
//! entry; among equals the least loaded one; among equals the one with the highest rendezvous hash
//! of (entry, edge). When an edge joins or leaves, that hash moves only the entries of that edge.

use std::cmp::Reverse;

use crate::api::EdgeId;

/// An edge's state when a reader asks for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The edge.
    pub edge: EdgeId,
    /// It has a session.
    pub alive: bool,
    /// It is not offered to new readers.
    pub draining: bool,
    /// Chunks of the entry it holds near where the reader will start, or of all of it.
    pub chunks_held: u64,
    /// Readers that it serves now.
    pub readers: u32,
}

/// Loads that differ by less count as equal, because readers come and go faster than they are
/// counted.
const READERS_PER_LOAD_STEP: u32 = 16;
/// Holdings are compared in steps of this many chunks (32 MiB), for the same reason.
const CHUNKS_PER_HOLDING_STEP: u64 = 16;

/// The best edge for an entry; `None` if no edge can take it. `entry` is any stable 64-bit name of
/// the entry.
#[must_use]
pub fn choose_edge(entry: u64, candidates: &[Candidate]) -> Option<EdgeId> {
    candidates
        .iter()
        .filter(|candidate| candidate.alive && !candidate.draining)
        .max_by_key(|candidate| {
            (
                candidate.chunks_held.div_ceil(CHUNKS_PER_HOLDING_STEP),
                Reverse(candidate.readers / READERS_PER_LOAD_STEP),
                rendezvous(entry, candidate.edge),
                candidate.edge,
            )
        })
        .map(|candidate| candidate.edge)
}

/// Highest random weight: an edge's weight for the entry, independent of the other edges.
fn rendezvous(entry: u64, edge: EdgeId) -> u64 {
    mix(entry ^ mix(u64::from(edge.0)))
}

/// The finaliser of SplitMix64: every input bit moves every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn idle(edge: u32) -> Candidate {
        Candidate {
            edge: EdgeId(edge),
            alive: true,
            draining: false,
            chunks_held: 0,
            readers: 0,
        }
    }

    #[test]
    fn what_is_held_wins_over_load() {
        let held = Candidate {
            chunks_held: 500,
            readers: 900,
            ..idle(1)
        };
        assert_eq!(choose_edge(7, &[idle(0), held, idle(2)]), Some(EdgeId(1)));
    }

    #[test]
    fn one_chunk_held_is_better_than_none() {
        let held = Candidate {
            chunks_held: 1,
            ..idle(1)
        };
        assert_eq!(choose_edge(7, &[idle(0), held, idle(2)]), Some(EdgeId(1)));
    }

    #[test]
    fn nobody_is_an_answer() {
        let gone = Candidate {
            alive: false,
            ..idle(0)
        };
        let draining = Candidate {
            draining: true,
            chunks_held: 10,
            ..idle(1)
        };
        assert_eq!(choose_edge(7, &[gone, draining]), None);
    }

    #[test]
    fn cold_entries_spread_evenly() {
        let edges: Vec<_> = (0..4).map(idle).collect();
        let mut counts = [0u32; 4];
        for entry in 0..4_000 {
            counts[choose_edge(entry, &edges).unwrap().0 as usize] += 1;
        }
        assert!(
            counts.iter().all(|&count| (850..1_150).contains(&count)),
            "{counts:?}"
        );
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..100, 0u32..100), 0..12).prop_map(
            |all| {
                all.into_iter()
                    .zip(0..)
                    .map(
                        |((alive, draining, chunks_held, readers), edge)| Candidate {
                            edge: EdgeId(edge),
                            alive,
                            draining,
                            chunks_held,
                            readers,
                        },
                    )
                    .collect()
            },
        )
    }

    proptest! {
        #[test]
        fn the_choice_is_able_and_does_not_depend_on_order(entry: u64, mut all in candidates()) {
            let chosen = choose_edge(entry, &all);
            let able = |c: &&Candidate| c.alive && !c.draining;
            prop_assert_eq!(chosen.is_some(), all.iter().any(|c| able(&c)));
            if let Some(edge) = chosen {
                prop_assert!(all.iter().filter(able).any(|c| c.edge == edge));
            }
            all.reverse();
            prop_assert_eq!(choose_edge(entry, &all), chosen);
        }

        #[test]
        fn an_edge_that_leaves_moves_only_its_own(
            entry: u64,
            all in candidates(),
            gone in 0usize..12,
        ) {
            let before = choose_edge(entry, &all);
            let mut rest = all;
            if gone < rest.len() {
                let left = rest.remove(gone).edge;
                if before != Some(left) {
                    prop_assert_eq!(choose_edge(entry, &rest), before);
                }
            }
        }
    }
}
