//! Keeps the coordinator's settings in the store's notes, so that the edge can serve after a
//! restart without a coordinator.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU32, Ordering},
};

use chunkcache_proto::{Geometry, v1};
use prost::Message;

use crate::upstream::{Catalogue, peer::PeerKeys};
use chunk_store::Store;

const SOURCE_PREFIX: &[u8] = b"source\0";
const PEER_KEYS: &[u8] = b"peer-keys";
const CHUNK_SIZE: &[u8] = b"chunk-size";
const LAST_PURGE: &[u8] = b"last-purge";

/// Restores the settings from before the restart.
pub fn restore(store: &Store, catalogue: &Catalogue, peer_keys: &PeerKeys, chunk_size: &AtomicU32) {
    // The message that carries them is also their encoding.
    if let Some(note) = store.note(PEER_KEYS)
        && let Ok(welcome) = v1::Welcome::decode(&*note)
    {
        peer_keys.replace(welcome.peer_keys);
    }
    if let Some(note) = store.note(CHUNK_SIZE)
        && let Ok(bytes) = <[u8; 4]>::try_from(&*note)
    {
        set_chunk_size(chunk_size, u32::from_le_bytes(bytes));
    }
    let notes = store.notes(SOURCE_PREFIX);
    let sources = notes
        .iter()
        .filter_map(|(_, note)| v1::Source::decode(&**note).ok());
    apply(store, catalogue, sources.collect());
}

fn apply(store: &Store, catalogue: &Catalogue, sources: Vec<v1::Source>) {
    let quotas = sources.iter().filter(|source| source.quota_bytes > 0);
    let quotas = quotas.map(|source| (source.name.clone(), source.quota_bytes));
    store.set_quotas(&quotas.collect());
    report_bad(catalogue.replace(sources));
}

/// Replaces the whole set of sources. True if one was removed or got another base URL, so that
/// bindings must be checked.
pub fn set_sources(store: &Store, catalogue: &Catalogue, sources: Vec<v1::Source>) -> bool {
    let before = catalogue.base_urls();
    let names: HashSet<Vec<u8>> = sources
        .iter()
        .map(|source| note_key(&source.name))
        .collect();
    for (key, _) in store.notes(SOURCE_PREFIX) {
        if !names.contains(&key) {
            store.put_note(&key, None);
        }
    }
    for source in &sources {
        store.put_note(&note_key(&source.name), Some(source.encode_to_vec().into()));
    }
    apply(store, catalogue, sources);
    let now = catalogue.base_urls();
    before
        .iter()
        .any(|(name, base_url)| now.get(name) != Some(base_url))
}

/// Stores the settings of a Welcome other than the sources.
pub fn set_welcome(
    store: &Store,
    peer_keys: &PeerKeys,
    chunk_size: &AtomicU32,
    welcome: &v1::Welcome,
) {
    if !welcome.peer_keys.is_empty() {
        let kept = v1::Welcome {
            peer_keys: welcome.peer_keys.clone(),
            ..v1::Welcome::default()
        };
        store.put_note(PEER_KEYS, Some(kept.encode_to_vec().into()));
        peer_keys.replace(welcome.peer_keys.clone());
    }
    if set_chunk_size(chunk_size, welcome.chunk_size) {
        store.put_note(CHUNK_SIZE, Some(welcome.chunk_size.to_le_bytes().into()));
    }
}

/// The number of the last purge that was carried out here.
#[must_use]
pub fn last_purge(store: &Store) -> u64 {
    let note = store.note(LAST_PURGE);
    note.and_then(|note| <[u8; 8]>::try_from(&*note).ok())
        .map_or(0, u64::from_le_bytes)
}

/// Stores the number of a purge. Numbers rise; a repeated one changes nothing.
pub fn set_last_purge(store: &Store, number: u64) {
    if number > last_purge(store) {
        store.put_note(LAST_PURGE, Some(number.to_le_bytes().into()));
    }
}

fn set_chunk_size(held: &AtomicU32, chunk_size: u32) -> bool {
    let usable = Geometry::new(0, chunk_size).is_ok();
    if usable {
        held.store(chunk_size, Ordering::Relaxed);
    }
    usable
}

fn note_key(name: &str) -> Vec<u8> {
    [SOURCE_PREFIX, name.as_bytes()].concat()
}

fn report_bad(bad: Vec<crate::upstream::source::BadSource>) {
    for error in bad {
        tracing::error!(%error, "a source is left out");
    }
}
