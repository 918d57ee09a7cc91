use proptest::prelude::*;

use super::*;

fn mp4_box(kind: &[u8; 4], length: u32, body: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], kind, body].concat()
}

#[test]
fn mp4_with_its_index_at_the_end() {
    let mut head = mp4_box(b"ftyp", 16, &[0; 8]);
    head.extend(mp4_box(b"free", 8, &[]));
    head.extend(mp4_box(b"mdat", 1, &(1_000_000u64).to_be_bytes()));
    head.extend([0; 100]);
    assert_eq!(
        index_hints(&head, 1_200_000),
        [ByteRange::new(1_000_024, 1_200_000)]
    );
}

#[test]
fn mp4_with_its_index_first_needs_nothing() {
    let mut head = mp4_box(b"ftyp", 16, &[0; 8]);
    head.extend(mp4_box(b"moov", 500_000, &[]));
    assert!(index_hints(&head, 1 << 30).is_empty());
    let mut open = mp4_box(b"ftyp", 16, &[0; 8]);
    open.extend(mp4_box(b"mdat", 0, &[]));
    assert!(index_hints(&open, 1 << 30).is_empty());
}

fn ebml(id: u32, body: &[u8]) -> Vec<u8> {
    let id: Vec<u8> = id
        .to_be_bytes()
        .into_iter()
        .skip_while(|b| *b == 0)
        .collect();
    [
        &id[..],
        &[0x40 | (body.len() >> 8) as u8, body.len() as u8],
        body,
    ]
    .concat()
}

#[test]
fn matroska_with_its_cues_at_the_end() {
    let seek = |id: u32, position: u32| {
        ebml(
            SEEK,
            &[
                ebml(SEEK_ID, &id.to_be_bytes()),
                ebml(SEEK_POSITION, &position.to_be_bytes()),
            ]
            .concat(),
        )
    };
    let seek_head = ebml(
        SEEK_HEAD,
        &[seek(0x1549_A966, 200), seek(CUES, 9_000_000)].concat(),
    );
    let mut head = ebml(EBML, &[0; 20]);
    head.extend(SEGMENT.to_be_bytes());
    head.extend([0x01, 0, 0, 0, 0x10, 0, 0, 0]);
    let segment_data = head.len() as u64;
    head.extend(seek_head);
    let start = segment_data + 9_000_000;
    assert_eq!(
        index_hints(&head, 10_000_000),
        [ByteRange::new(start, 10_000_000)]
    );
    assert!(index_hints(&head, start).is_empty());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), size: u64) {
        for hint in index_hints(&bytes, size) {
            prop_assert!(hint.end <= size && hint.len() <= MAX_HINT_BYTES);
        }
    }

    #[test]
    fn damaged_containers_never_panic(at in 0usize..80, value: u8, size: u64, matroska: bool) {
        let mut head = if matroska {
            let mut head = ebml(EBML, &[0; 20]);
            head.extend(ebml(SEGMENT,
                &ebml(SEEK_HEAD, &ebml(SEEK, &ebml(SEEK_ID, &CUES.to_be_bytes())))));
            head
        } else {
            [mp4_box(b"ftyp", 16, &[0; 8]), mp4_box(b"mdat", 64, &[0; 56])].concat()
        };
        let at = at % head.len();
        head[at] = value;
        let _ = index_hints(&head, size);
    }
}
