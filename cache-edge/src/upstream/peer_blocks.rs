//! The format of bytes between edges: blocks, each preceded by its position and its hash.
//!
//! The hash is the one that the sending edge computed when it received the bytes, or the one in its
//! journal. The receiving edge passes on only bytes that it has compared with it. So a viewer gets
//! no byte that changed on a peer's disk, in its memory, or on the way.
//!
//! A block is `offset u64 | length u32 | XXH3-64 seeded with the offset u64 | bytes`, all
//! little-endian. A hash covers a whole block, so the first block may begin before the requested
//! range and the last may end after it. An empty block says that the peer is alive and is itself
//! waiting for the bytes.

use bytes::{Buf, Bytes, BytesMut};
use chunkcache_proto::{
    ByteRange,
    checksum::{BLOCK_BYTES, chunk_checksum},
};

use super::OriginError;

/// The type of a body made of blocks.
pub const CONTENT_TYPE: &str = "application/x-chunkcache-blocks";
const HEADER_BYTES: usize = 20;

/// A block without bytes, which says that the next bytes are awaited.
#[must_use]
pub fn empty_block() -> Bytes {
    Bytes::from_static(&[0; HEADER_BYTES])
}

/// The header before the block's bytes.
#[must_use]
pub fn block_header(range: ByteRange, hash: u64) -> Bytes {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&range.start.to_le_bytes());
    header.extend_from_slice(&(range.len() as u32).to_le_bytes());
    header.extend_from_slice(&hash.to_le_bytes());
    header.into()
}

/// Decodes a body of blocks, and returns the bytes of a range in order, each once its block was
/// checked. Holds at most one block and the bytes that arrived with it.
#[derive(Debug)]
pub struct BlockDecoder {
    /// The part that was not returned yet.
    range: ByteRange,
    received: BytesMut,
}

impl BlockDecoder {
    #[must_use]
    pub fn new(range: ByteRange) -> Self {
        Self {
            range,
            received: BytesMut::new(),
        }
    }

    /// Adds the next bytes of the body.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Whether all bytes of the range were returned.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.range.is_empty()
    }

    /// The next bytes of the range; `None`: more of the body is needed, or it is done.
    pub fn next_bytes(&mut self) -> Result<Option<Bytes>, OriginError> {
        while self.received.starts_with(&empty_block()) {
            self.received.advance(HEADER_BYTES);
        }
        let Some(header) = self.received.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        if self.is_done() {
            return Ok(None);
        }
        let mut header = &header[..];
        let (offset, len, hash) = (
            header.get_u64_le(),
            header.get_u32_le(),
            header.get_u64_le(),
        );
        let block = ByteRange::new(offset, offset.saturating_add(u64::from(len)));
        if u64::from(len) > BLOCK_BYTES || !block.contains(self.range.start) {
            let text = "the peer sends a block that was not asked for";
            return Err(OriginError::Protocol(text.into()));
        }
        if self.received.len() < HEADER_BYTES + len as usize {
            return Ok(None);
        }
        self.received.advance(HEADER_BYTES);
        let bytes = self.received.split_to(len as usize).freeze();
        if chunk_checksum(offset, &bytes) != hash {
            return Err(OriginError::WrongBytes);
        }
        let wanted = block.intersect(self.range);
        self.range.start = wanted.end;
        let start = (wanted.start - offset) as usize;
        Ok(Some(bytes.slice(start..start + wanted.len() as usize)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn body(start: u64, bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut body = Vec::new();
        for cut in cuts.windows(2) {
            let at = start + cut[0] as u64;
            let block = &bytes[cut[0]..cut[1]];
            let range = ByteRange::new(at, at + block.len() as u64);
            body.extend_from_slice(&block_header(range, chunk_checksum(at, block)));
            body.extend_from_slice(block);
        }
        body
    }

    fn decode(range: ByteRange, body: &[u8], piece: usize) -> Result<Vec<u8>, OriginError> {
        let mut decoder = BlockDecoder::new(range);
        let mut out = Vec::new();
        for part in body.chunks(piece) {
            decoder.push(part);
            while let Some(bytes) = decoder.next_bytes()? {
                out.extend_from_slice(&bytes);
            }
        }
        assert_eq!(decoder.is_done(), out.len() as u64 == range.len());
        Ok(out)
    }

    #[test]
    fn a_range_comes_out_of_blocks_that_cover_it_however_they_arrive() {
        let bytes: Vec<u8> = (0..5000_u32).map(|i| (i * 7) as u8).collect();
        let sent = body(1000, &bytes, &[0, 100, 2500, 5000]);
        let range = ByteRange::new(1050, 5500);
        let blocks = [&sent[..120], &sent[120..2540], &sent[2540..]];
        let awaited = blocks.map(|block| [&empty_block()[..], &empty_block(), block].concat());
        for piece in [1, 19, 20, 21, 777, 6000] {
            assert_eq!(decode(range, &sent, piece).unwrap(), &bytes[50..4500]);
            let slowly = decode(range, &awaited.concat(), piece).unwrap();
            assert_eq!(slowly, &bytes[50..4500]);
        }
    }

    #[test]
    fn no_byte_of_a_wrong_block_is_given() {
        let bytes = vec![7_u8; 3000];
        let mut sent = body(0, &bytes, &[0, 1000, 2000, 3000]);
        sent[HEADER_BYTES + 1000 + HEADER_BYTES + 999] ^= 1;
        let mut decoder = BlockDecoder::new(ByteRange::new(0, 3000));
        decoder.push(&sent);
        assert_eq!(decoder.next_bytes().unwrap().unwrap(), bytes[..1000]);
        assert_eq!(decoder.next_bytes(), Err(OriginError::WrongBytes));
        // Correct bytes at a wrong position are wrong.
        let mut moved = body(0, &bytes, &[0, 1000]);
        moved[0] = 1;
        let range = ByteRange::new(1, 900);
        assert_eq!(decode(range, &moved, 5000), Err(OriginError::WrongBytes));
    }

    #[test]
    fn blocks_that_were_not_asked_for_are_refused_before_they_are_taken_in() {
        let range = ByteRange::new(1000, 2000);
        for (start, len) in [(0, 1000), (1001, 10), (0, u64::from(u32::MAX)), (1000, 0)] {
            let header = block_header(ByteRange::new(start, start + len), 0);
            let refused = decode(range, &header, 100);
            assert!(
                matches!(refused, Err(OriginError::Protocol(_))),
                "{start}+{len}"
            );
        }
    }
}
