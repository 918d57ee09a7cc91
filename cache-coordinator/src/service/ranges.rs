//! Byte ranges of clients' requests. Pure.

use chunkcache_proto::{ByteRange, ChunkIndex, Geometry, v1};

use super::error::ServiceError;

/// Limit of ranges in one request.
const MAX_RANGES: usize = 1000;

/// A required, non-empty range, cut to the object.
pub fn required(
    field: &str,
    range: Option<v1::ByteRange>,
    geometry: Geometry,
) -> Result<ByteRange, ServiceError> {
    let range = range.ok_or_else(|| {
        ServiceError::invalid(field, "expected a range of bytes, half-open: start and end")
    })?;
    checked(field, range, geometry)
}

/// A range, or the whole object.
pub fn or_whole(
    field: &str,
    range: Option<v1::ByteRange>,
    geometry: Geometry,
) -> Result<ByteRange, ServiceError> {
    match range {
        None => Ok(ByteRange::new(0, geometry.size())),
        Some(range) => checked(field, range, geometry),
    }
}

/// Several ranges, or the whole object; ascending and disjoint.
pub fn several(
    field: &str,
    ranges: &[v1::ByteRange],
    geometry: Geometry,
) -> Result<Vec<ByteRange>, ServiceError> {
    if ranges.len() > MAX_RANGES {
        return Err(ServiceError::invalid(
            field,
            format!("expected at most {MAX_RANGES} ranges"),
        ));
    }
    if ranges.is_empty() {
        return Ok(vec![ByteRange::new(0, geometry.size())]);
    }
    let mut checked_ranges = Vec::with_capacity(ranges.len());
    for (index, range) in ranges.iter().enumerate() {
        checked_ranges.push(checked(&format!("{field}[{index}]"), *range, geometry)?);
    }
    Ok(joined(checked_ranges))
}

/// Sorted, with touching ranges joined.
#[must_use]
pub fn joined(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable();
    let mut joined: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Chunks that contain a byte of the ranges, ascending and disjoint.
#[must_use]
pub fn chunks_of(ranges: &[ByteRange], geometry: Geometry) -> Vec<std::ops::Range<ChunkIndex>> {
    let mut chunks: Vec<std::ops::Range<ChunkIndex>> = Vec::new();
    for range in ranges {
        let run = geometry.chunks_covering(*range);
        match chunks.last_mut() {
            _ if run.is_empty() => {}
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => chunks.push(run),
        }
    }
    chunks
}

fn checked(
    field: &str,
    range: v1::ByteRange,
    geometry: Geometry,
) -> Result<ByteRange, ServiceError> {
    if range.start >= range.end {
        return Err(ServiceError::invalid(
            field,
            "expected start before end (half-open)",
        ));
    }
    if range.start >= geometry.size() {
        return Err(ServiceError::invalid(
            field,
            format!(
                "expected a start inside the object of {} bytes",
                geometry.size()
            ),
        ));
    }
    Ok(ByteRange::new(range.start, range.end.min(geometry.size())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(10 << 20, 2 << 20).unwrap()
    }

    #[test]
    fn ranges_are_cut_and_bad_ones_named() {
        let range = |start, end| v1::ByteRange { start, end };
        let cut = required("range", Some(range(5, u64::MAX)), geometry()).unwrap();
        assert_eq!(cut, ByteRange::new(5, 10 << 20));
        for bad in [
            None,
            Some(range(5, 5)),
            Some(range(6, 5)),
            Some(range(10 << 20, u64::MAX)),
        ] {
            assert!(required("range", bad, geometry()).is_err(), "{bad:?}");
        }
        assert_eq!(or_whole("range", None, geometry()).unwrap().len(), 10 << 20);
    }

    #[test]
    fn several_ranges_become_few_chunk_runs() {
        let range = |start: u64, end: u64| v1::ByteRange {
            start: start << 20,
            end: end << 20,
        };
        let ranges = several(
            "ranges",
            &[range(5, 6), range(0, 1), range(1, 3)],
            geometry(),
        )
        .unwrap();
        assert_eq!(ranges.len(), 2);
        assert_eq!(chunks_of(&ranges, geometry()), vec![0..3]);
    }
}
