//! A set of integers kept as half-open ranges.
//!
//! Ranges that touch are joined, so the cost of a set depends on its gaps: a completely held film
//! is one node of the tree, whatever its length. Used for chunk indexes (`u32`) and for bytes
//! (`u64`).

use std::collections::BTreeMap;
use std::ops::Range;

/// Ascending, disjoint, non-adjacent half-open ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet<T> {
    /// Start → end of each range.
    runs: BTreeMap<T, T>,
}

impl<T> Default for RangeSet<T> {
    fn default() -> Self {
        Self {
            runs: BTreeMap::new(),
        }
    }
}

impl<T: Copy + Ord + Into<u64>> FromIterator<Range<T>> for RangeSet<T> {
    fn from_iter<I: IntoIterator<Item = Range<T>>>(ranges: I) -> Self {
        let mut set = Self::default();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

impl<T: Copy + Ord + Into<u64>> RangeSet<T> {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range and joins it with those that it overlaps or touches. The cost grows with the
    /// number of ranges joined.
    pub fn insert(&mut self, range: Range<T>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.runs.range(..=start).next_back()
            && before_end >= start
        {
            if before_end >= end {
                return;
            }
            start = before;
        }
        while let Some((&next, &next_end)) = self.runs.range(start..=end).next() {
            end = end.max(next_end);
            self.runs.remove(&next);
        }
        self.runs.insert(start, end);
    }

    /// Removes a range, and cuts ranges that extend beyond it.
    pub fn remove(&mut self, range: Range<T>) {
        if range.start >= range.end {
            return;
        }
        if let Some((&before, &before_end)) = self.runs.range(..range.start).next_back()
            && before_end > range.start
        {
            self.runs.insert(before, range.start);
            if before_end > range.end {
                self.runs.insert(range.end, before_end);
                return;
            }
        }
        while let Some((&next, &next_end)) = self.runs.range(range.start..range.end).next() {
            self.runs.remove(&next);
            if next_end > range.end {
                self.runs.insert(range.end, next_end);
            }
        }
    }

    /// The end of the range that contains `at`.
    #[must_use]
    pub fn run_end(&self, at: T) -> Option<T> {
        self.runs
            .range(..=at)
            .next_back()
            .map(|(_, &end)| end)
            .filter(|&end| end > at)
    }

    /// Whether `at` is in the set.
    #[must_use]
    pub fn contains(&self, at: T) -> bool {
        self.run_end(at).is_some()
    }

    /// The first integer of `within` that is not in the set.
    #[must_use]
    pub fn first_missing(&self, within: Range<T>) -> Option<T> {
        let at = self.run_end(within.start).unwrap_or(within.start);
        (at < within.end).then_some(at)
    }

    /// The first run of `within` that is not in the set.
    #[must_use]
    pub fn first_gap(&self, within: Range<T>) -> Option<Range<T>> {
        let start = self.first_missing(within.clone())?;
        let next = self.runs.range(start..within.end).next();
        Some(start..next.map_or(within.end, |(&next, _)| next))
    }

    /// The first integer of `within` that is in the set.
    #[must_use]
    pub fn first_present(&self, within: Range<T>) -> Option<T> {
        if within.start >= within.end {
            return None;
        }
        if self.contains(within.start) {
            return Some(within.start);
        }
        self.runs.range(within).next().map(|(&start, _)| start)
    }

    /// Whether all of `range` is in the set.
    #[must_use]
    pub fn covers(&self, range: Range<T>) -> bool {
        self.first_missing(range).is_none()
    }

    /// Whether any of `range` is in the set.
    #[must_use]
    pub fn intersects(&self, range: Range<T>) -> bool {
        self.first_present(range).is_some()
    }

    /// The parts of `within` that are in the set, ascending.
    pub fn present_in(&self, within: Range<T>) -> impl Iterator<Item = Range<T>> + '_ {
        let Range { start, end } = within;
        let from = self
            .runs
            .range(..=start)
            .next_back()
            .map_or(start, |(&before, _)| before);
        self.runs
            .range(from..end.max(from))
            .map(move |(&a, &b)| a.max(start)..b.min(end))
            .filter(|range| range.start < range.end)
    }

    /// The parts of `within` that are not in the set, ascending.
    #[must_use]
    pub fn missing_of(&self, within: Range<T>) -> Vec<Range<T>> {
        let mut missing = Vec::new();
        let mut at = within.start;
        for present in self.present_in(within.clone()) {
            if at < present.start {
                missing.push(at..present.start);
            }
            at = present.end;
        }
        if at < within.end {
            missing.push(at..within.end);
        }
        missing
    }

    /// The number of integers of `within` in the set. The cost grows with the number of ranges in
    /// it.
    #[must_use]
    pub fn count_in(&self, within: Range<T>) -> u64 {
        self.present_in(within)
            .map(|range| range.end.into() - range.start.into())
            .sum()
    }

    /// The number of integers in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.iter()
            .map(|range| range.end.into() - range.start.into())
            .sum()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<T>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }

    /// The ranges from the one that contains or follows `at`, ascending.
    pub fn iter_from(&self, at: T) -> impl Iterator<Item = Range<T>> + '_ {
        let holder = self
            .runs
            .range(..=at)
            .next_back()
            .filter(|&(_, &end)| end > at);
        let from = holder.map_or(at, |(&start, _)| start);
        self.runs.range(from..).map(|(&start, &end)| start..end)
    }

    /// From the first integer to one past the last.
    #[must_use]
    pub fn span(&self) -> Option<Range<T>> {
        let (&start, _) = self.runs.first_key_value()?;
        let (_, &end) = self.runs.last_key_value()?;
        Some(start..end)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn ranges_that_touch_are_one() {
        let set: RangeSet<u32> = [0..2, 4..6, 2..4].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), vec![0..6]);
    }

    #[test]
    fn a_hole_cuts_a_range_in_two() {
        let mut set: RangeSet<u64> = std::iter::once(0..10).collect();
        set.remove(3..5);
        assert_eq!(set.iter().collect::<Vec<_>>(), vec![0..3, 5..10]);
        assert_eq!(set.missing_of(0..12), vec![3..5, 10..12]);
    }

    fn range() -> impl Strategy<Value = Range<u32>> {
        (0u32..64, 0u32..12).prop_map(|(start, len)| start..start + len)
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_its_members(
            steps in prop::collection::vec((any::<bool>(), range()), 0..40),
            probe in range(),
        ) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, range) in steps {
                if add {
                    set.insert(range.clone());
                    model.extend(range);
                } else {
                    set.remove(range.clone());
                    model.retain(|at| !range.contains(at));
                }
            }
            let members: Vec<u32> = set.iter().flatten().collect();
            prop_assert_eq!(&members, &model.iter().copied().collect::<Vec<_>>());
            let runs: Vec<_> = set.iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(set.count(), model.len() as u64);
            let inside: Vec<u32> = probe.clone().filter(|at| model.contains(at)).collect();
            let outside: Vec<u32> = probe.clone().filter(|at| !model.contains(at)).collect();
            prop_assert_eq!(set.first_present(probe.clone()), inside.first().copied());
            prop_assert_eq!(set.first_missing(probe.clone()), outside.first().copied());
            prop_assert_eq!(set.count_in(probe.clone()), inside.len() as u64);
            prop_assert_eq!(set.present_in(probe.clone()).flatten().collect::<Vec<_>>(), inside);
            prop_assert_eq!(
                set.first_gap(probe.clone()),
                set.missing_of(probe.clone()).into_iter().next()
            );
            prop_assert_eq!(
                set.missing_of(probe.clone()).into_iter().flatten().collect::<Vec<_>>(),
                outside
            );
            let tail: Vec<u32> = set.iter_from(probe.start).flatten()
                .filter(|&at| at >= probe.start).collect();
            prop_assert_eq!(tail, model.range(probe.start..).copied().collect::<Vec<_>>());
        }
    }
}
