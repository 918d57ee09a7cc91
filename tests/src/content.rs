//! Content that is a function of its offset: objects of any size need no disk, and any range can be
//! checked on its own.

use sha2::{Digest, Sha256};

const WORD_BYTES: u64 = 8;
const HASH_PIECE_BYTES: u64 = 1 << 20;

/// Writes the bytes `[offset, offset + buffer.len())` of the object with this seed.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let unaligned = (offset % WORD_BYTES) as usize;
    let mut index = offset / WORD_BYTES;
    let mut rest = buffer;
    if unaligned != 0 {
        let word = word(seed, index);
        let count = rest.len().min(WORD_BYTES as usize - unaligned);
        rest[..count].copy_from_slice(&word[unaligned..unaligned + count]);
        rest = &mut rest[count..];
        index += 1;
    }
    let mut words = rest.chunks_exact_mut(WORD_BYTES as usize);
    for piece in &mut words {
        piece.copy_from_slice(&word(seed, index));
        index += 1;
    }
    let tail = words.into_remainder();
    let count = tail.len();
    tail.copy_from_slice(&word(seed, index)[..count]);
}

/// The bytes `[start, end)` of the object with this seed.
pub fn bytes(seed: u64, start: u64, end: u64) -> Vec<u8> {
    let mut buffer = vec![0; (end - start) as usize];
    fill(seed, start, &mut buffer);
    buffer
}

/// SHA-256, in hex, of the whole object of this size.
pub fn sha256(seed: u64, size: u64) -> String {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; HASH_PIECE_BYTES as usize];
    let mut offset = 0;
    while offset < size {
        let count = HASH_PIECE_BYTES.min(size - offset) as usize;
        fill(seed, offset, &mut buffer[..count]);
        hash.update(&buffer[..count]);
        offset += count as u64;
    }
    hex(&hash.finalize())
}

pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SplitMix64 of the word's index: every word differs from its neighbours and from the same
/// position of another seed.
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed
        .wrapping_mul(0xD6E8_FEB8_6659_FD93)
        .wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_bytes() {
        let whole = bytes(7, 0, 100);
        for start in 0..40 {
            for end in start..100 {
                assert_eq!(bytes(7, start, end), whole[start as usize..end as usize]);
            }
        }
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let size = HASH_PIECE_BYTES + 13;
        assert_eq!(sha256(3, size), sha256_of(&bytes(3, 0, size)));
    }
}
