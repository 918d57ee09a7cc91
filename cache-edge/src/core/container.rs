//! Finds the index of a media file from its first bytes.
//!
//! A player that opens an MP4 file whose `moov` follows the media data, or a Matroska file whose
//! Cues are at its end, will request that part next. Knowing this early saves a round trip before
//! playback.
//!
//! The bytes come from the origin and can be anything: each step checks what it reads, the number
//! of steps is bounded, and anything that is not understood gives no hint.

use chunkcache_proto::ByteRange;

/// How much of the file's head is examined.
pub const HEAD_BYTES: usize = 64 << 10;
/// Longest index fetched ahead: a film's `moov` is a few MiB.
const MAX_HINT_BYTES: u64 = 16 << 20;
/// How many top-level boxes or elements are examined.
const MAX_STEPS: usize = 64;

/// Ranges that a player will want in addition to what it reads in order; at most one at present.
#[must_use]
pub fn index_hints(head: &[u8], size_bytes: u64) -> Vec<ByteRange> {
    let start = mp4_index(head, size_bytes).or_else(|| matroska_index(head, size_bytes));
    start
        .filter(|start| *start >= head.len() as u64 && *start < size_bytes)
        .map(|start| ByteRange::new(start, size_bytes.min(start.saturating_add(MAX_HINT_BYTES))))
        .into_iter()
        .collect()
}

/// ISO/IEC 14496-12, 4.2: boxes of `size:u32 type:[4] (size:u64)?`. The offset after `mdat` if no
/// `moov` came before it.
fn mp4_index(head: &[u8], size_bytes: u64) -> Option<u64> {
    if head.get(4..8)? != b"ftyp" {
        return None;
    }
    let mut offset = 0u64;
    for _ in 0..MAX_STEPS {
        let at = usize::try_from(offset).ok()?;
        let short = u64::from(u32::from_be_bytes(
            head.get(at..at.checked_add(4)?)?.try_into().ok()?,
        ));
        let kind = head.get(at + 4..at + 8)?;
        let length = match short {
            // It extends to the end of the file, so nothing follows.
            0 => return None,
            1 => u64::from_be_bytes(head.get(at + 8..at + 16)?.try_into().ok()?),
            length => length,
        };
        if length < 8 || kind == b"moov" {
            return None;
        }
        let next = offset.checked_add(length)?;
        if kind == b"mdat" {
            return (next < size_bytes).then_some(next);
        }
        offset = next;
    }
    None
}

const EBML: u32 = 0x1A45_DFA3;
const SEGMENT: u32 = 0x1853_8067;
const SEEK_HEAD: u32 = 0x114D_9B74;
const SEEK: u32 = 0x4DBB;
const SEEK_ID: u32 = 0x53AB;
const SEEK_POSITION: u32 = 0x53AC;
const CUES: u32 = 0x1C53_BB6B;
const CLUSTER: u32 = 0x1F43_B675;

/// RFC 9559, 6: the SeekHead's entry for Cues, relative to the start of the Segment's data.
fn matroska_index(head: &[u8], size_bytes: u64) -> Option<u64> {
    let (id, body, after) = element(head, 0)?;
    if id != EBML {
        return None;
    }
    let _ = body;
    let (id, segment, _) = element(head, after?)?;
    if id != SEGMENT {
        return None;
    }
    let mut at = segment.start;
    for _ in 0..MAX_STEPS {
        let (id, body, after) = element(head, at)?;
        match id {
            SEEK_HEAD => {
                let position = cues_position(head.get(body)?)?;
                let offset = position.checked_add(segment.start as u64)?;
                return (offset < size_bytes).then_some(offset);
            }
            CLUSTER => return None,
            _ => at = after?,
        }
    }
    None
}

fn cues_position(seek_head: &[u8]) -> Option<u64> {
    let mut at = 0;
    for _ in 0..MAX_STEPS {
        let (id, body, after) = element(seek_head, at)?;
        if id == SEEK {
            let seek = seek_head.get(body)?;
            let (mut is_cues, mut position, mut inner) = (false, None, 0);
            while let Some((id, body, after)) = element(seek, inner) {
                let value = seek.get(body)?;
                match id {
                    SEEK_ID => is_cues = value == CUES.to_be_bytes(),
                    SEEK_POSITION => position = unsigned(value),
                    _ => {}
                }
                let Some(after) = after else { break };
                inner = after;
            }
            if is_cues {
                return position;
            }
        }
        at = after?;
    }
    None
}

/// An element's id, the range of its data, and the start of the next element (`None` if the size is
/// unknown). The range is not checked against `bytes`, because a Segment is longer than any head.
fn element(bytes: &[u8], at: usize) -> Option<(u32, std::ops::Range<usize>, Option<usize>)> {
    let first = *bytes.get(at)?;
    let id_length = first.leading_zeros() as usize + 1;
    if id_length > 4 {
        return None;
    }
    let id = bytes
        .get(at..at + id_length)?
        .iter()
        .fold(0u32, |id, byte| id << 8 | u32::from(*byte));
    let size_at = at + id_length;
    let first = *bytes.get(size_at)?;
    let size_length = first.leading_zeros() as usize + 1;
    if size_length > 8 {
        return None;
    }
    let raw = bytes.get(size_at..size_at + size_length)?;
    let marker = 1u64 << (7 * size_length);
    let size = (raw
        .iter()
        .fold(0u64, |size, byte| size << 8 | u64::from(*byte)))
        & (marker - 1);
    let body = size_at + size_length;
    if size == marker - 1 {
        return Some((id, body..bytes.len(), None));
    }
    let end = body.checked_add(usize::try_from(size).ok()?)?;
    Some((id, body..end, Some(end)))
}

fn unsigned(bytes: &[u8]) -> Option<u64> {
    (bytes.len() <= 8).then(|| {
        bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    })
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
