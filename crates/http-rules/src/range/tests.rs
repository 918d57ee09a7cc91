//! In the order of RFC 9110, 14; then against a naive model.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn select(header: &str, size: u64) -> Selection {
    parse(header.as_bytes()).map_or(Selection::Whole, |set| set.resolve(size))
}

fn single(start: u64, end: u64) -> Selection {
    Selection::Single(ByteRange::new(start, end))
}

fn several(ranges: &[(u64, u64)]) -> Selection {
    Selection::Several(ranges.iter().map(|&(a, b)| ByteRange::new(a, b)).collect())
}

#[test]
fn the_examples_of_14_1_2() {
    assert_eq!(select("bytes=0-499", 10_000), single(0, 500));
    assert_eq!(select("bytes=500-999", 10_000), single(500, 1000));
    assert_eq!(select("bytes=-500", 10_000), single(9500, 10_000));
    assert_eq!(select("bytes=9500-", 10_000), single(9500, 10_000));
    assert_eq!(
        select("bytes=0-0,-1", 10_000),
        several(&[(0, 1), (9999, 10_000)])
    );
    assert_eq!(
        select("bytes= 0-999, 4500-5499, -1000", 10_000),
        several(&[(0, 1000), (4500, 5500), (9000, 10_000)])
    );
    assert_eq!(select("bytes=500-600,601-999", 10_000), single(500, 1000));
    assert_eq!(select("bytes=500-700,601-999", 10_000), single(500, 1000));
}

#[test]
fn the_first_and_the_last_byte() {
    assert_eq!(select("bytes=0-0", 10), single(0, 1));
    assert_eq!(select("bytes=9-9", 10), single(9, 10));
    assert_eq!(select("bytes=9-", 10), single(9, 10));
    assert_eq!(select("bytes=-1", 10), single(9, 10));
    assert_eq!(select("bytes=0-", 10), single(0, 10));
}

#[test]
fn what_reaches_past_the_end_is_cut() {
    assert_eq!(select("bytes=5-100", 10), single(5, 10));
    assert_eq!(select("bytes=-100", 10), single(0, 10));
}

#[test]
fn what_begins_past_the_end_is_not_satisfiable() {
    assert_eq!(select("bytes=10-", 10), Selection::NotSatisfiable);
    assert_eq!(select("bytes=10-10", 10), Selection::NotSatisfiable);
    assert_eq!(select("bytes=-0", 10), Selection::NotSatisfiable);
    assert_eq!(select("bytes=10-,-0", 10), Selection::NotSatisfiable);
    assert_eq!(
        select("bytes=10-,0-1", 10),
        single(0, 2),
        "one satisfiable range is enough"
    );
}

#[test]
fn an_empty_object() {
    assert_eq!(select("bytes=0-", 0), Selection::NotSatisfiable);
    assert_eq!(select("bytes=-0", 0), Selection::NotSatisfiable);
    assert_eq!(select("bytes=-5", 0), Selection::Whole);
}

#[test]
fn malformed_or_unknown_is_ignored() {
    for header in [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "bytes=5-4",
        "bytes=0-4,5-4",
        "bytes=0--4",
        "bytes=+1-2",
        "bytes=0x1-2",
        "bytes=1.0-2",
        "bytes=1-2;3",
        "bytes =0-4",
        "items=0-4",
        "bytes:0-4",
        "bytes=0 -4",
        "bytes=\u{661}-2",
    ] {
        assert_eq!(parse(header.as_bytes()), None, "{header:?}");
    }
    assert_eq!(parse(b"bytes=\xff-"), None);
}

#[test]
fn the_unit_has_no_case_and_empty_elements_no_meaning() {
    assert_eq!(select("Bytes=1-2", 10), single(1, 3));
    assert_eq!(select("bytes=,\t1-2 ,,", 10), single(1, 3));
}

#[test]
fn huge_numbers() {
    let huge = "9".repeat(40);
    assert_eq!(select(&format!("bytes=0-{huge}"), 10), single(0, 10));
    assert_eq!(select(&format!("bytes=-{huge}"), 10), single(0, 10));
    assert_eq!(
        select(&format!("bytes={huge}-"), 10),
        Selection::NotSatisfiable
    );
    assert_eq!(select("bytes=0-18446744073709551615", 10), single(0, 10));
    assert_eq!(
        select("bytes=000000000000000000000000000000001-2", 10),
        single(1, 3)
    );
}

#[test]
fn order_is_kept_and_a_late_bridge_joins_both_sides() {
    assert_eq!(select("bytes=8-9,0-1", 10), several(&[(8, 10), (0, 2)]));
    assert_eq!(select("bytes=8-9,0-1,4-4,2-7", 10), single(0, 10));
    assert_eq!(
        select("bytes=50-59,0-1,55-65", 100),
        several(&[(50, 66), (0, 2)])
    );
}

#[test]
fn too_many_ranges_are_ignored() {
    let list = |n: usize| {
        (0..n)
            .map(|i| format!("{}-{}", i * 10, i * 10))
            .collect::<Vec<_>>()
            .join(",")
    };
    assert!(matches!(
        select(&format!("bytes={}", list(16)), 10_000),
        Selection::Several(r) if r.len() == 16
    ));
    assert_eq!(
        select(&format!("bytes={}", list(17)), 10_000),
        Selection::Whole
    );
    assert_eq!(parse(format!("bytes={}", list(5000)).as_bytes()), None);
}

#[test]
fn content_range_is_inclusive() {
    assert_eq!(
        content_range(ByteRange::new(0, 500), 10_000),
        "bytes 0-499/10000"
    );
    assert_eq!(unsatisfied_range(0), "bytes */0");
}

/// A naive model: spec by spec, byte by byte.
fn model(specs: &[RangeSpec], size: u64) -> Vec<bool> {
    let mut wanted = vec![false; size as usize];
    for (at, byte) in wanted.iter_mut().enumerate() {
        let at = at as u64;
        *byte = specs.iter().any(|spec| match *spec {
            RangeSpec::From { first, last } => first <= at && last.is_none_or(|last| at <= last),
            RangeSpec::Suffix(length) => at + length >= size,
        });
    }
    wanted
}

fn any_spec() -> impl Strategy<Value = RangeSpec> {
    prop_oneof![
        (0u64..70, 0u64..70).prop_map(|(a, n)| RangeSpec::From {
            first: a,
            last: Some(a + n)
        }),
        (0u64..70).prop_map(|first| RangeSpec::From { first, last: None }),
        (0u64..70).prop_map(RangeSpec::Suffix),
    ]
}

fn written(specs: &[RangeSpec]) -> String {
    let specs: Vec<String> = specs
        .iter()
        .map(|spec| match spec {
            RangeSpec::From {
                first,
                last: Some(last),
            } => format!("{first}-{last}"),
            RangeSpec::From { first, last: None } => format!("{first}-"),
            RangeSpec::Suffix(length) => format!("-{length}"),
        })
        .collect();
    format!("bytes={}", specs.join(", "))
}

proptest! {
    #[test]
    fn selects_what_the_model_selects(
        specs in prop::collection::vec(any_spec(), 1..12),
        size in 1u64..64,
    ) {
        let set = parse(written(&specs).as_bytes()).unwrap();
        prop_assert_eq!(&set.0, &specs);
        let wanted = model(&specs, size);
        let ranges = match set.resolve(size) {
            Selection::Whole => unreachable!("12 specs are not too many"),
            Selection::Single(range) => vec![range],
            Selection::Several(ranges) => {
                prop_assert!(ranges.len() >= 2);
                ranges
            }
            Selection::NotSatisfiable => vec![],
        };
        let mut sent = vec![0u8; size as usize];
        for range in &ranges {
            for at in range.start..range.end {
                sent[at as usize] += 1;
            }
        }
        for (at, count) in sent.iter().enumerate() {
            prop_assert_eq!(*count, u8::from(wanted[at]), "byte {}", at);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        header in prop::collection::vec(any::<u8>(), 0..200),
        size: u64,
    ) {
        if let Some(set) = parse(&header) {
            let _ = set.resolve(size);
        }
    }

    /// However long the header, its parsed form is bounded.
    #[test]
    fn long_headers_make_short_sets(
        specs in prop::collection::vec("(0-|[0-9]{1,25}-[0-9]{0,25}|-[0-9]{1,25}|,)", 0..2_000),
        size: u64,
    ) {
        let header = format!("bytes={}", specs.join(","));
        if let Some(set) = parse(header.as_bytes()) {
            prop_assert!(set.0.len() <= MAX_SPECS);
            if let Selection::Several(ranges) = set.resolve(size) {
                prop_assert!(ranges.len() <= MAX_RANGES);
            }
        }
    }

    #[test]
    fn near_misses_never_panic(header in "bytes=[-0-9, ]{0,60}", size: u64) {
        if let Some(Selection::Single(range)) = parse(header.as_bytes())
            .map(|set| set.resolve(size)) {
            prop_assert!(range.end <= size && !range.is_empty());
        }
    }
}
