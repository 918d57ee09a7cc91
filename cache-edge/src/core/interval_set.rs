//! A set of byte positions as disjoint, ascending, non-touching ranges.
//!
//! A chunk may be fetched from its middle (RFC 0001, 5), so its written part is not one length but
//! a set. It stays tiny: one range per leg of a fetch, merged as soon as two touch.

use chunkcache_proto::ByteRange;

/// A set of bytes, as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    /// Ascending; neither empty nor touching.
    ranges: Vec<ByteRange>,
}

impl IntervalSet {
    /// An empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Adds `range`, and returns how many of its bytes were new.
    pub fn insert(&mut self, range: ByteRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        // Touching ranges merge too, hence `<` and `<=`.
        let first = self.ranges.partition_point(|r| r.end < range.start);
        let last = self.ranges.partition_point(|r| r.start <= range.end);
        let (mut start, mut end, mut held) = (range.start, range.end, 0);
        for old in &self.ranges[first..last] {
            held += old.intersect(range).len();
            start = start.min(old.start);
            end = end.max(old.end);
        }
        self.ranges
            .splice(first..last, [ByteRange::new(start, end)]);
        range.len() - held
    }

    /// Whether every byte of `range` is in the set; true for an empty one.
    #[must_use]
    pub fn contains_range(&self, range: ByteRange) -> bool {
        range.is_empty()
            || self
                .run_end(range.start)
                .is_some_and(|end| end >= range.end)
    }

    /// The end of the range that contains `offset`; `None` if `offset` is not in the set.
    #[must_use]
    pub fn run_end(&self, offset: u64) -> Option<u64> {
        let at = self.ranges.partition_point(|r| r.end <= offset);
        self.ranges
            .get(at)
            .filter(|r| r.start <= offset)
            .map(|r| r.end)
    }

    /// The first range of `within` that is not in the set.
    #[must_use]
    pub fn first_gap(&self, within: ByteRange) -> Option<ByteRange> {
        let start = self.run_end(within.start).unwrap_or(within.start);
        if start >= within.end {
            return None;
        }
        let next = self.ranges.partition_point(|r| r.start <= start);
        let end = self
            .ranges
            .get(next)
            .map_or(within.end, |r| r.start.min(within.end));
        Some(ByteRange::new(start, end))
    }

    /// Number of bytes in the set.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.len()).sum()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// Removes all bytes.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_bitmap(inserts in prop::collection::vec((0u64..200, 0u64..40), 0..40), probe in 0u64..240, len in 0u64..60) {
            let mut set = IntervalSet::new();
            let mut bitmap = vec![false; 300];
            for (start, len) in inserts {
                let mut fresh = 0;
                for bit in &mut bitmap[start as usize..(start + len) as usize] {
                    fresh += u64::from(!*bit);
                    *bit = true;
                }
                prop_assert_eq!(set.insert(ByteRange::new(start, start + len)), fresh);
            }
            for pair in set.ranges().windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            prop_assert_eq!(set.len_bytes(), bitmap.iter().filter(|b| **b).count() as u64);
            let range = ByteRange::new(probe, probe + len);
            let bits = &bitmap[probe as usize..(probe + len) as usize];
            prop_assert_eq!(set.contains_range(range), bits.iter().all(|b| *b));
            let gap_start = bits.iter().position(|b| !*b).map(|i| probe + i as u64);
            prop_assert_eq!(set.first_gap(range).map(|g| g.start), gap_start);
            if let Some(gap) = set.first_gap(range) {
                prop_assert!(bitmap[gap.start as usize..gap.end as usize].iter().all(|b| !*b));
                prop_assert!(gap.end == range.end || bitmap[gap.end as usize]);
            }
        }
    }
}
