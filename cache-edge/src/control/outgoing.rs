//! The messages that this edge sends in a session, taken one at a time as the connection has room.
//!
//! HTTP/2 flow control slows the sender down. A message is made only when it can be sent, so a page
//! of the inventory shows the disk at that moment; chunks that become durable later are reported
//! later.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use chunkcache_proto::{EntryId, v1};
use futures_util::Stream;
use tokio::sync::mpsc;
use v1::session_request::Message;

use super::{
    link::{Link, NextItem},
    maintenance::{inventory_entry, observed},
};
use crate::resolve::Bindings;
use chunk_store::Store;

/// Entries in a page of digests.
const PAGE_ENTRIES: usize = 1_024;
/// Chunks in a message.
const MAX_CHUNKS: usize = 65_536;
/// Number of backlog messages that are sent before the next page.
const BACKLOG_SHARE: usize = 1_024;

/// A part of the inventory, made as it is sent.
pub type Page = Box<dyn Iterator<Item = Message> + Send>;

/// See the module.
pub struct Outgoing {
    link: Arc<Link>,
    /// The session's number on this side: the stream of an older session takes nothing from a newer
    /// one.
    session: u64,
    store: Store,
    bindings: Arc<Bindings>,
    /// Sent before anything else.
    first: VecDeque<Message>,
    page: Option<Page>,
    pages: mpsc::UnboundedReceiver<Page>,
    since_page: usize,
}

impl Outgoing {
    /// Hello is sent first, then the digests, then the pages that arrive through `pages`: the
    /// coordinator requests one at a time.
    #[must_use]
    pub fn new(
        link: Arc<Link>,
        session: u64,
        (store, bindings): (Store, Arc<Bindings>),
        hello: v1::Hello,
        pages: mpsc::UnboundedReceiver<Page>,
    ) -> Self {
        let page = digests(&store);
        Self {
            link,
            session,
            store,
            bindings,
            first: VecDeque::from([Message::Hello(hello)]),
            page: Some(page),
            pages,
            since_page: 0,
        }
    }

    /// Reports all durable chunks of an entry that had more than the backlog could hold.
    fn catch_up(&mut self, unreported: &super::link::UnreportedEntry) {
        let Some(file) = self.store.entry(&unreported.entry) else {
            return;
        };
        if !unreported.is_known {
            let observed = observed(&self.bindings, &file);
            self.first.push_back(Message::EntryObserved(observed));
        }
        let mut origin_bytes = unreported.origin_bytes;
        for chunks in file.present_chunks().chunks(MAX_CHUNKS) {
            let chunks = chunks
                .iter()
                .map(|&(index, checksum)| v1::Chunk { index, checksum });
            self.first
                .push_back(Message::ChunksStored(v1::ChunksStored {
                    sequence: unreported.sequence,
                    entry_id: unreported.entry.to_string(),
                    chunks: chunks.collect(),
                    origin_bytes: std::mem::take(&mut origin_bytes),
                }));
        }
    }
}

impl Stream for Outgoing {
    type Item = v1::SessionRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(message) = this.first.pop_front() {
                return sent(message);
            }
            if let Some(page) = &mut this.page {
                if let Some(message) = page.next() {
                    return sent(message);
                }
                this.page = None;
                this.since_page = 0;
            }
            let next = this.link.next(this.session, context);
            let is_turn = this.since_page >= BACKLOG_SHARE || !matches!(next, NextItem::Message(_));
            if is_turn && let Poll::Ready(Some(page)) = this.pages.poll_recv(context) {
                this.page = Some(page);
            }
            this.since_page += 1;
            match next {
                // Sent before the page that has just begun, whose entries are read later.
                NextItem::Message(message) => return sent(*message),
                NextItem::Unreported(unreported) => this.catch_up(&unreported),
                NextItem::Ended => return Poll::Ready(None),
                NextItem::Nothing if this.page.is_none() => return Poll::Pending,
                NextItem::Nothing => {}
            }
        }
    }
}

fn sent(message: Message) -> Poll<Option<v1::SessionRequest>> {
    Poll::Ready(Some(v1::SessionRequest {
        message: Some(message),
    }))
}

/// The digests of all entries whose chunks can be proved.
fn digests(store: &Store) -> Page {
    let store = store.clone();
    let ids: Vec<_> = store.entries().iter().map(|file| file.id()).collect();
    let mut ids = ids.into_iter();
    let mut is_complete = false;
    Box::new(std::iter::from_fn(move || {
        let digests: Vec<_> = ids
            .by_ref()
            .filter_map(|entry| digest(&store, entry))
            .take(PAGE_ENTRIES)
            .collect();
        if !digests.is_empty() {
            return Some(Message::InventoryDigests(v1::InventoryDigests { digests }));
        }
        (!std::mem::replace(&mut is_complete, true)).then(complete)
    }))
}

fn digest(store: &Store, entry: EntryId) -> Option<v1::InventoryDigest> {
    let digest = store.digest(&entry);
    (digest.chunk_count > 0).then(|| v1::InventoryDigest {
        entry_id: entry.to_string(),
        chunk_count: digest.chunk_count,
        checksum_xor: digest.checksum_xor,
    })
}

/// The requested entries, in full.
#[must_use]
pub fn requested(
    link: &Arc<Link>,
    store: &Store,
    bindings: &Arc<Bindings>,
    ids: Vec<String>,
) -> Page {
    let (link, store, bindings) = (link.clone(), store.clone(), bindings.clone());
    let entries = ids.into_iter().flat_map(move |id| {
        let id = id.parse().ok().filter(|id| !link.is_removing(*id));
        let entry = id.and_then(|id| inventory_entry(&store, &bindings, &id));
        entry.map(in_parts).unwrap_or_default()
    });
    Box::new(entries.chain(std::iter::once_with(complete)))
}

fn in_parts(mut entry: v1::InventoryEntry) -> Vec<Message> {
    let chunks = std::mem::take(&mut entry.chunks);
    let count = chunks.len().div_ceil(MAX_CHUNKS).max(1);
    let mut chunks = chunks.into_iter();
    (1..=count)
        .map(|part| {
            Message::InventoryEntry(v1::InventoryEntry {
                chunks: chunks.by_ref().take(MAX_CHUNKS).collect(),
                is_continued: part < count,
                ..entry.clone()
            })
        })
        .collect()
}

fn complete() -> Message {
    Message::InventoryComplete(v1::InventoryComplete {})
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_many_chunks_goes_in_parts() {
        let chunk = |index| v1::Chunk { index, checksum: 1 };
        let entry = |count| v1::InventoryEntry {
            chunks: (0..count).map(chunk).collect(),
            ..v1::InventoryEntry::default()
        };
        let parts = |count| -> Vec<(usize, bool)> {
            let parts = in_parts(entry(count)).into_iter();
            let part = |message| match message {
                Message::InventoryEntry(part) => (part.chunks.len(), part.is_continued),
                _ => unreachable!(),
            };
            parts.map(part).collect()
        };
        assert_eq!(parts(0), [(0, false)]);
        assert_eq!(parts(65_536), [(65_536, false)]);
        assert_eq!(parts(65_537), [(65_536, true), (1, false)]);
    }
}
