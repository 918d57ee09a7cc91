//! The records of the store's journal, as bytes.
//!
//! A frame is `length u32 | CRC-32 of the body u32 | body`, all little-endian; a body is one kind
//! byte and its fields. A frame with a wrong CRC ends the journal, so a torn write is never taken
//! for a record. Entries have short numbers, so that a chunk costs 12 bytes instead of 28. Chunks
//! are recorded in batches, so that a group shares the cost of a frame.

/// Writer and reader refuse larger bodies, so that a torn length cannot cause a huge allocation.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Maximum number of chunks in one record; a longer list becomes several records.
pub const MAX_CHUNKS_PER_RECORD: usize = 4096;
/// Length and CRC.
pub const FRAME_HEADER_BYTES: usize = 8;

const KIND_ENTRY: u8 = 1;
const KIND_STORED: u8 = 2;
const KIND_REMOVED: u8 = 3;
const KIND_ENTRY_REMOVED: u8 = 4;
const KIND_NOTE: u8 = 5;
const KIND_NOTE_REMOVED: u8 = 6;
const KIND_BLOCKS: u8 = 7;
const KIND_NUMBERED_ENTRY: u8 = 8;
const KIND_NUMBERS: u8 = 9;

/// The store's own short name of an entry; never reused in the life of a data directory.
pub type EntryNumber = u32;

/// How an entry's file is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileNaming {
    /// By the entry's id alone: files of format 1.
    Id,
    /// By id and number: a re-created entry never gets its predecessor's file.
    IdAndNumber,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The entry's description (an encoded `v1.Entry`); a later one for the same number replaces
    /// it.
    Entry {
        number: EntryNumber,
        description: Vec<u8>,
        naming: FileNaming,
    },
    /// These chunks are on the disk, synced, with these checksums.
    Stored {
        number: EntryNumber,
        chunks: Vec<(u32, u64)>,
    },
    /// Numbers below this one may be in use.
    Numbers {
        below: EntryNumber,
    },
    /// The hashes of a stored chunk's blocks; follows the chunk's own record.
    Blocks {
        number: EntryNumber,
        chunk: u32,
        hashes: Box<[u64]>,
    },
    /// These chunks were removed.
    Removed {
        number: EntryNumber,
        chunks: Vec<u32>,
    },
    /// The entry was removed with all its chunks.
    EntryRemoved {
        number: EntryNumber,
    },
    /// A small fact that the store's user recorded.
    Note {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    NoteRemoved {
        key: Vec<u8>,
    },
}

/// The record would not fit a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a journal record of {0} bytes is more than the {MAX_BODY_BYTES} a frame holds")]
pub struct TooLarge(pub usize);

impl Record {
    /// Appends the record's frame to `out`; leaves `out` as it was on an error.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), TooLarge> {
        let frame_start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        self.encode_body(out);
        let body_start = frame_start + FRAME_HEADER_BYTES;
        let body_len = out.len() - body_start;
        if body_len > MAX_BODY_BYTES {
            out.truncate(frame_start);
            return Err(TooLarge(body_len));
        }
        let crc = crc32fast::hash(&out[body_start..]);
        out[frame_start..frame_start + 4].copy_from_slice(&(body_len as u32).to_le_bytes());
        out[frame_start + 4..body_start].copy_from_slice(&crc.to_le_bytes());
        Ok(())
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Entry {
                number,
                description,
                naming,
            } => {
                out.push(match naming {
                    FileNaming::Id => KIND_ENTRY,
                    FileNaming::IdAndNumber => KIND_NUMBERED_ENTRY,
                });
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(description);
            }
            Self::Stored { number, chunks } => {
                out.push(KIND_STORED);
                out.extend_from_slice(&number.to_le_bytes());
                for (index, checksum) in chunks {
                    out.extend_from_slice(&index.to_le_bytes());
                    out.extend_from_slice(&checksum.to_le_bytes());
                }
            }
            Self::Numbers { below } => {
                out.push(KIND_NUMBERS);
                out.extend_from_slice(&below.to_le_bytes());
            }
            Self::Blocks {
                number,
                chunk,
                hashes,
            } => {
                out.push(KIND_BLOCKS);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&chunk.to_le_bytes());
                for hash in hashes {
                    out.extend_from_slice(&hash.to_le_bytes());
                }
            }
            Self::Removed { number, chunks } => {
                out.push(KIND_REMOVED);
                out.extend_from_slice(&number.to_le_bytes());
                for index in chunks {
                    out.extend_from_slice(&index.to_le_bytes());
                }
            }
            Self::EntryRemoved { number } => {
                out.push(KIND_ENTRY_REMOVED);
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Note { key, value } => {
                out.push(KIND_NOTE);
                out.extend_from_slice(&(key.len() as u32).to_le_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Self::NoteRemoved { key } => {
                out.push(KIND_NOTE_REMOVED);
                out.extend_from_slice(key);
            }
        }
    }

    /// `None`: not a record of this format.
    fn decode_body(body: &[u8]) -> Option<Self> {
        let (&kind, rest) = body.split_first()?;
        let number_and = || {
            rest.split_first_chunk::<4>()
                .map(|(n, r)| (u32::from_le_bytes(*n), r))
        };
        match kind {
            KIND_ENTRY | KIND_NUMBERED_ENTRY => {
                let (number, description) = number_and()?;
                Some(Self::Entry {
                    number,
                    description: description.to_vec(),
                    naming: match kind {
                        KIND_ENTRY => FileNaming::Id,
                        _ => FileNaming::IdAndNumber,
                    },
                })
            }
            KIND_STORED => {
                let (number, list) = number_and()?;
                let (items, []) = list.as_chunks::<12>() else {
                    return None;
                };
                let chunks = items
                    .iter()
                    .map(|item| (u32_at(item, 0), u64_at(item, 4)))
                    .collect();
                Some(Self::Stored { number, chunks })
            }
            KIND_NUMBERS => {
                let (below, rest) = number_and()?;
                rest.is_empty().then_some(Self::Numbers { below })
            }
            KIND_BLOCKS => {
                let (number, rest) = number_and()?;
                let (chunk, list) = rest.split_first_chunk::<4>()?;
                let (hashes, []) = list.as_chunks::<8>() else {
                    return None;
                };
                Some(Self::Blocks {
                    number,
                    chunk: u32::from_le_bytes(*chunk),
                    hashes: hashes
                        .iter()
                        .map(|hash| u64::from_le_bytes(*hash))
                        .collect(),
                })
            }
            KIND_REMOVED => {
                let (number, list) = number_and()?;
                let (items, []) = list.as_chunks::<4>() else {
                    return None;
                };
                Some(Self::Removed {
                    number,
                    chunks: items.iter().map(|i| u32::from_le_bytes(*i)).collect(),
                })
            }
            KIND_ENTRY_REMOVED => {
                let (number, rest) = number_and()?;
                rest.is_empty().then_some(Self::EntryRemoved { number })
            }
            KIND_NOTE => {
                let (key_len, rest) = number_and()?;
                let (key, value) = rest.split_at_checked(key_len as usize)?;
                Some(Self::Note {
                    key: key.to_vec(),
                    value: value.to_vec(),
                })
            }
            KIND_NOTE_REMOVED => Some(Self::NoteRemoved { key: rest.to_vec() }),
            _ => None,
        }
    }
}

/// Records of stored chunks, each within the limit.
pub fn stored_records(
    number: EntryNumber,
    chunks: &[(u32, u64)],
) -> impl Iterator<Item = Record> + '_ {
    chunks
        .chunks(MAX_CHUNKS_PER_RECORD)
        .map(move |part| Record::Stored {
            number,
            chunks: part.to_vec(),
        })
}

/// The result of [`next_record`].
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A record, and the size of its frame.
    Record(Record, usize),
    /// The frame is longer than `bytes`: at least this many are needed in all.
    Incomplete(usize),
    /// No frame: a torn or damaged tail, or the zeros of preallocated space.
    Torn,
}

/// Reads one frame from the beginning of `bytes`. Never panics and allocates at most the size of
/// the frame.
#[must_use]
pub fn next_record(bytes: &[u8]) -> Step {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Step::Incomplete(FRAME_HEADER_BYTES);
    };
    let body_len = u32_at(header, 0) as usize;
    if body_len == 0 || body_len > MAX_BODY_BYTES {
        return Step::Torn;
    }
    let Some(body) = rest.get(..body_len) else {
        return Step::Incomplete(FRAME_HEADER_BYTES + body_len);
    };
    if crc32fast::hash(body) != u32_at(header, 4) {
        return Step::Torn;
    }
    match Record::decode_body(body) {
        Some(record) => Step::Record(record, FRAME_HEADER_BYTES + body_len),
        None => Step::Torn,
    }
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..64);
        prop_oneof![
            (any::<u32>(), bytes(), any::<bool>()).prop_map(|(number, description, by_id)| {
                let naming = if by_id {
                    FileNaming::Id
                } else {
                    FileNaming::IdAndNumber
                };
                Record::Entry {
                    number,
                    description,
                    naming,
                }
            }),
            (
                any::<u32>(),
                prop::collection::vec(any::<(u32, u64)>(), 0..20)
            )
                .prop_map(|(number, chunks)| Record::Stored { number, chunks }),
            (
                any::<u32>(),
                any::<u32>(),
                prop::collection::vec(any::<u64>(), 0..20)
            )
                .prop_map(|(number, chunk, hashes)| Record::Blocks {
                    number,
                    chunk,
                    hashes: hashes.into()
                }),
            (any::<u32>(), prop::collection::vec(any::<u32>(), 0..20))
                .prop_map(|(number, chunks)| Record::Removed { number, chunks }),
            any::<u32>().prop_map(|number| Record::EntryRemoved { number }),
            any::<u32>().prop_map(|below| Record::Numbers { below }),
            (bytes(), bytes()).prop_map(|(key, value)| Record::Note { key, value }),
            bytes().prop_map(|key| Record::NoteRemoved { key }),
        ]
    }

    fn read_all(mut bytes: &[u8]) -> (Vec<Record>, Step) {
        let mut records = Vec::new();
        loop {
            match next_record(bytes) {
                Step::Record(record, taken) => {
                    records.push(record);
                    bytes = &bytes[taken..];
                }
                end => return (records, end),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in prop::collection::vec(any_record(), 0..10)) {
            let mut bytes = Vec::new();
            for record in &records {
                record.encode(&mut bytes).unwrap();
            }
            prop_assert_eq!(read_all(&bytes).0, records);
        }

        #[test]
        fn a_torn_tail_loses_only_the_last(
            records in prop::collection::vec(any_record(), 1..6),
            cut in 1usize..40,
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for record in &records {
                record.encode(&mut bytes).unwrap();
                ends.push(bytes.len());
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let whole = ends.iter().filter(|end| **end <= bytes.len()).count() - 1;
            prop_assert_eq!(read_all(&bytes).0, &records[..whole]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = read_all(&bytes);
        }

        /// With a correct length and checksum: a decoded record takes no more memory than its
        /// bytes.
        #[test]
        fn arbitrary_bodies_are_read_as_they_stand_or_not_at_all(
            body in prop::collection::vec(any::<u8>(), 1..600),
            kind in 0u8..11,
        ) {
            let body = [&[kind], &body[..]].concat();
            let mut frame = (body.len() as u32).to_le_bytes().to_vec();
            frame.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
            frame.extend_from_slice(&body);
            if let Step::Record(record, taken) = next_record(&frame) {
                prop_assert_eq!(taken, frame.len());
                let mut again = Vec::new();
                record.encode(&mut again).unwrap();
                prop_assert_eq!(again, frame);
            }
        }

        #[test]
        fn a_flipped_bit_never_gives_another_record(
            record in any_record(),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes).unwrap();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read_all(&bytes).0.is_empty());
        }
    }

    #[test]
    fn oversized_records_are_refused_and_leave_no_trace() {
        let mut out = vec![7];
        let record = Record::Note {
            key: vec![],
            value: vec![0; MAX_BODY_BYTES],
        };
        assert!(record.encode(&mut out).is_err());
        assert_eq!(out, [7]);
    }
}
