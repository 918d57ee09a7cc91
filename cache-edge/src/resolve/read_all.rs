//! Reads whole small objects that this edge itself uses.

use bytes::Bytes;
use chunkcache_proto::ByteRange;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Limited};

use super::ports::{OpenReader, PassBody, Piece, Presence, ReadBytes as _};
use crate::core::consumption::PlayerReport;

/// Fetches the missing bytes of an object at HIGH, below waiting viewers. False: they are not here,
/// and may never be.
pub async fn bring<R: OpenReader>(readers: &R, size: u64) -> bool {
    let range = ByteRange::new(0, size);
    readers.presence(range) == Presence::All
        || readers.fetch_ahead(range, PlayerReport::default()).await
}

/// The bytes of an object. What [`bring`] could not bring is read past the store.
pub async fn read_all<R: OpenReader>(readers: &R, size: u64) -> Option<Vec<u8>> {
    bring(readers, size).await;
    let mut reader = readers.open(ByteRange::new(0, size), PlayerReport::default());
    let mut text = Vec::new();
    while let Some(piece) = reader.next(size).await.ok()? {
        let bytes = tokio::task::spawn_blocking(move || bytes_of(&piece));
        text.extend_from_slice(&bytes.await.ok()??);
    }
    Some(text)
}

/// May wait for the disk.
fn bytes_of(piece: &Piece) -> Option<Bytes> {
    if let Some(bytes) = &piece.unstored {
        return Some(bytes.clone());
    }
    if !piece.file.bring_in(piece.range).ok()? {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(piece.range.len()).ok()?];
    piece.file.read_at(piece.range.start, &mut bytes).ok()?;
    Some(bytes.into())
}

/// Whether the body has no content coding.
#[must_use]
pub fn is_plain(headers: &HeaderMap) -> bool {
    let encoding = headers.get(http::header::CONTENT_ENCODING);
    encoding.is_none_or(|value| value.as_bytes() == b"identity")
}

/// The bytes of a passed-through answer, if there are at most `most`.
pub async fn read_passed(body: PassBody, most: usize) -> Option<Bytes> {
    let read = Limited::new(body, most).collect().await;
    read.ok().map(|read| read.to_bytes())
}
