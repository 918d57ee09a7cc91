//! Tests the policy's guarantees, and compares it with LRU on a trace with scans.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Cache {
    chunks: RefCell<HashMap<ChunkKey, (Resident, bool)>>,
}

impl Cache {
    fn add(&self, key: ChunkKey, resident: Resident) {
        self.chunks.borrow_mut().insert(key, (resident, false));
    }

    fn use_it(&self, key: ChunkKey) -> bool {
        let mut chunks = self.chunks.borrow_mut();
        let Some((chunk, _)) = chunks.get_mut(&key) else {
            return false;
        };
        chunk.uses = (chunk.uses + 1).min(3);
        true
    }

    fn remove(&self, key: ChunkKey) {
        self.chunks.borrow_mut().remove(&key);
    }
}

impl Residents for Cache {
    fn look(&self, key: ChunkKey) -> Option<Resident> {
        self.chunks.borrow().get(&key).map(|(chunk, _)| *chunk)
    }

    fn enqueue(&self, key: ChunkKey) -> bool {
        self.chunks
            .borrow_mut()
            .get_mut(&key)
            .is_some_and(|(_, queued)| !std::mem::replace(queued, true))
    }

    fn dequeue(&self, key: ChunkKey) {
        if let Some((_, queued)) = self.chunks.borrow_mut().get_mut(&key) {
            *queued = false;
        }
    }

    fn forget_use(&self, key: ChunkKey) {
        if let Some((chunk, _)) = self.chunks.borrow_mut().get_mut(&key) {
            chunk.uses = chunk.uses.saturating_sub(1);
        }
    }
}

fn amount(bytes: u64) -> Amount {
    Amount {
        bytes,
        max_chunks: usize::MAX,
        may_take_pinned: true,
    }
}

fn plain() -> Resident {
    Resident {
        bytes: 1,
        ..Resident::default()
    }
}

proptest! {
    #[test]
    fn enough_is_chosen_and_nothing_held(
        chunks in prop::collection::vec((0u8..4, any::<bool>(), any::<bool>(), any::<bool>()),
            1..200),
        want in 0u64..220,
    ) {
        let (cache, mut policy) = (Cache::default(), Eviction::default());
        let mut free = 0;
        for (key, (uses, is_held, is_pinned, is_favoured)) in chunks.iter().copied().enumerate() {
            cache.add(key as u64, Resident { bytes: 1, uses, is_held, is_pinned, is_favoured });
            policy.insert(key as u64, &cache);
            free += u64::from(!is_held && !is_pinned);
        }
        let victims = policy.victims(amount(want), &cache);
        prop_assert!(
            victims.len() as u64 >= want.min(free),
            "{} of {free} for {want}",
            victims.len()
        );
        prop_assert!(victims.len() as u64 <= want);
        let distinct: HashSet<_> = victims.iter().collect();
        prop_assert_eq!(distinct.len(), victims.len());
        for key in &victims {
            prop_assert!(!cache.look(*key).unwrap_or_default().is_held);
        }
        let pinned = victims.iter()
            .filter(|key| cache.look(**key).is_some_and(|chunk| chunk.is_pinned)).count() as u64;
        prop_assert!(pinned == 0 || want > free, "pinned ones go last");
        prop_assert_eq!(policy.len(), chunks.len() - victims.len());
    }

    #[test]
    fn queues_do_not_grow_with_what_is_gone(rounds in 1u64..40) {
        let (cache, mut policy) = (Cache::default(), Eviction::default());
        for round in 0..rounds {
            for key in round * 100..(round + 1) * 100 {
                cache.add(key, plain());
                policy.insert(key, &cache);
            }
            (round * 100..(round + 1) * 100).for_each(|key| cache.remove(key));
            policy.note_gone(100);
        }
        prop_assert!(policy.len() <= 400, "{}", policy.len());
    }
}

#[test]
fn heads_outlive_the_rest() {
    let (cache, mut policy) = (Cache::default(), Eviction::default());
    for key in 0..100 {
        cache.add(
            key,
            Resident {
                is_favoured: key % 20 == 0,
                ..plain()
            },
        );
        policy.insert(key, &cache);
    }
    let victims = policy.victims(amount(60), &cache);
    assert!(victims.iter().all(|key| key % 20 != 0), "{victims:?}");
}

/// Viewers watch titles by a Zipf-like law, chunk after chunk; occasionally one long file is read
/// once from start to end.
fn scan_mixed_trace() -> Vec<ChunkKey> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut trace = Vec::new();
    let mut scans = 0;
    for round in 0..1500 {
        // The product of two uniform numbers favours small titles.
        let title = random(60) * random(60) / 60;
        trace.extend((0..20).map(|chunk| title * 1000 + chunk));
        if round % 50 == 49 {
            scans += 1;
            trace.extend((0..1000).map(|chunk| (1_000 + scans) * 1_000_000 + chunk));
        }
    }
    trace
}

const CACHE_CHUNKS: usize = 600;

fn hits_of_eviction(trace: &[ChunkKey]) -> usize {
    let (cache, mut policy) = (Cache::default(), Eviction::default());
    let (mut hits, mut len) = (0, 0);
    for key in trace {
        if cache.use_it(*key) {
            hits += 1;
            continue;
        }
        if len == CACHE_CHUNKS {
            for victim in policy.victims(amount(1), &cache) {
                cache.remove(victim);
                len -= 1;
            }
        }
        cache.add(*key, plain());
        policy.insert(*key, &cache);
        len += 1;
    }
    hits
}

fn hits_of_lru(trace: &[ChunkKey]) -> usize {
    let (mut last_use, mut by_age) = (HashMap::new(), BTreeMap::new());
    let mut hits = 0;
    for (now, key) in trace.iter().enumerate() {
        if let Some(before) = last_use.insert(*key, now) {
            hits += 1;
            by_age.remove(&before);
        } else if last_use.len() > CACHE_CHUNKS
            && let Some((_, oldest)) = by_age.pop_first()
        {
            last_use.remove(&oldest);
        }
        by_age.insert(now, *key);
    }
    hits
}

#[test]
fn scans_cost_less_than_with_lru() {
    let trace = scan_mixed_trace();
    let (ours, lru) = (hits_of_eviction(&trace), hits_of_lru(&trace));
    let percent = |hits: usize| hits as f64 * 100.0 / trace.len() as f64;
    println!(
        "hit ratio: S3-FIFO {:.1} %, LRU {:.1} %, of {} reads",
        percent(ours),
        percent(lru),
        trace.len()
    );
    assert!(ours as f64 > lru as f64 * 1.1, "{ours} against {lru}");
}
