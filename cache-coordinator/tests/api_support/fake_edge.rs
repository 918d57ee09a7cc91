//! A hand-written edge side of a session.

use std::collections::HashMap;

use chunkcache_proto::{EntryIdentity, checksum::InventoryDigest, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use uuid::Uuid;
use v1::edge_service_client::EdgeServiceClient;
use v1::probe_report::Outcome;
use v1::{session_request::Message as Request, session_response::Message as Response};

use super::{CHUNK, Coordinator, WAIT};

pub struct FakeEdge {
    pub name: String,
    pub epoch: u64,
    pub welcome: v1::Welcome,
    pub to: mpsc::Sender<v1::SessionRequest>,
    pub from: Streaming<v1::SessionResponse>,
}

/// An edge's inventory: entries and the indexes of their chunks.
pub type Inventory = Vec<(v1::Entry, Vec<u32>)>;

impl FakeEdge {
    /// Joins with an empty inventory; ready when this returns.
    pub async fn join(coordinator: &Coordinator, name: &str) -> Self {
        Self::join_at(coordinator.edge().await, name).await
    }

    /// The same over an existing connection.
    pub async fn join_at(client: EdgeServiceClient<Channel>, name: &str) -> Self {
        let mut edge = Self::hello_at(client, name).await;
        edge.present(&Vec::new()).await;
        edge
    }

    /// Joins up to Welcome.
    pub async fn hello(coordinator: &Coordinator, name: &str) -> Self {
        Self::hello_at(coordinator.edge().await, name).await
    }

    pub async fn hello_at(mut client: EdgeServiceClient<Channel>, name: &str) -> Self {
        let (to, requests) = mpsc::channel(64);
        let hello = v1::Hello {
            name: name.into(),
            store_id: store_id(name).to_string(),
            url: format!("http://{name}:7500"),
            max_downloads: 3,
            version: "test".into(),
            background_fill: false,
            bytes_allowed: 1 << 40,
            kept: Vec::new(),
            last_purge: 0,
            now_ms: 0,
        };
        let first = v1::SessionRequest {
            message: Some(Request::Hello(hello)),
        };
        to.send(first).await.unwrap();
        let from = client
            .session(ReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        let mut edge = Self {
            name: name.into(),
            epoch: 0,
            welcome: v1::Welcome::default(),
            to,
            from,
        };
        edge.welcome = edge
            .expect(|message| match message {
                Response::Welcome(welcome) => Some(welcome),
                other => panic!("expected Welcome first, got {other:?}"),
            })
            .await;
        edge.epoch = edge.welcome.epoch;
        edge
    }

    /// Sends the inventory, up to Ready. Returns the verdicts with dropped chunks.
    pub async fn present(&mut self, inventory: &Inventory) -> Vec<v1::InventoryVerdict> {
        for page in inventory.chunks(1_024) {
            let digests = page.iter().map(|(entry, indexes)| digest(entry, indexes));
            self.say(Request::InventoryDigests(v1::InventoryDigests {
                digests: digests.collect(),
            }))
            .await;
        }
        self.complete().await;
        let by_id: HashMap<&str, &(v1::Entry, Vec<u32>)> = inventory
            .iter()
            .map(|held| (held.0.id.as_str(), held))
            .collect();
        let mut verdicts = Vec::new();
        loop {
            let requested = self
                .expect(|message| match message {
                    Response::InventoryRequest(request) => Some(Some(request.entry_ids)),
                    Response::InventoryVerdict(verdict) => {
                        verdicts.push(verdict);
                        None
                    }
                    Response::Ready(_) => Some(None),
                    _ => None,
                })
                .await;
            let Some(requested) = requested else {
                return verdicts;
            };
            for (entry, indexes) in requested.iter().filter_map(|id| by_id.get(id.as_str())) {
                self.say(Request::InventoryEntry(v1::InventoryEntry {
                    entry: Some(entry.clone()),
                    freshness: Some(v1::Freshness::default()),
                    chunks: indexes.iter().map(|index| chunk(*index)).collect(),
                    is_continued: false,
                }))
                .await;
            }
            self.complete().await;
        }
    }

    /// Ends the digests, or a page.
    pub async fn complete(&self) {
        self.say(Request::InventoryComplete(v1::InventoryComplete {}))
            .await;
    }

    pub async fn say(&self, message: Request) {
        let request = v1::SessionRequest {
            message: Some(message),
        };
        self.to.send(request).await.unwrap();
    }

    /// Waits for the first message that the closure accepts; skips the others.
    pub async fn expect<T>(&mut self, mut take: impl FnMut(Response) -> Option<T>) -> T {
        let found = async {
            loop {
                let response = self
                    .from
                    .message()
                    .await
                    .unwrap()
                    .expect("the session goes on");
                if let Some(found) = response.message.and_then(&mut take) {
                    return found;
                }
            }
        };
        tokio::time::timeout(WAIT, found)
            .await
            .expect("the message comes in time")
    }

    /// How the session ended.
    pub async fn end(&mut self) -> Option<Status> {
        let end = async {
            loop {
                match self.from.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        tokio::time::timeout(WAIT, end)
            .await
            .expect("the session ends in time")
    }

    /// Answers the coordinator's question about an object.
    pub async fn answer_probe(&mut self, outcome: Outcome) {
        let probe = self
            .expect(|message| match message {
                Response::Probe(probe) => Some(probe),
                _ => None,
            })
            .await;
        self.say(Request::ProbeReport(v1::ProbeReport {
            sequence: probe.sequence,
            outcome: Some(outcome),
        }))
        .await;
    }

    pub async fn observe(&self, entry: &v1::Entry) {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let now_ms = i64::try_from(now.as_millis()).unwrap();
        self.say(Request::EntryObserved(v1::EntryObserved {
            entry: Some(entry.clone()),
            freshness: Some(v1::Freshness {
                validated_at_ms: now_ms,
                fresh_until_ms: now_ms + 60_000,
                ..Default::default()
            }),
        }))
        .await;
    }

    /// Reports chunks and waits for their commit.
    pub async fn store(&mut self, sequence: u64, entry: &str, indexes: &[u32]) {
        self.say(Request::ChunksStored(v1::ChunksStored {
            sequence,
            entry_id: entry.into(),
            chunks: indexes.iter().map(|index| chunk(*index)).collect(),
            origin_bytes: 0,
        }))
        .await;
        self.expect(|message| match message {
            Response::Committed(committed) => (committed.sequence >= sequence).then_some(()),
            _ => None,
        })
        .await;
    }

    pub async fn report(&self, assignment_id: u64, state: v1::fetch_report::State) {
        self.say(Request::FetchReport(v1::FetchReport {
            assignment_id,
            state: state.into(),
            ..Default::default()
        }))
        .await;
    }
}

/// An entry as an edge that meets the object creates it.
pub fn entry(source: &str, base_url: &str, path: &str, chunk_count: u64, etag: &str) -> v1::Entry {
    let size = chunk_count * CHUNK;
    let id = EntryIdentity {
        source,
        base_url,
        path,
        query: "",
        variant: "",
        validator: etag,
        size_bytes: size,
        chunk_size_bytes: CHUNK as u32,
    }
    .id();
    v1::Entry {
        id: id.to_string(),
        key: Some(v1::Key {
            source: source.into(),
            path: path.into(),
            ..Default::default()
        }),
        size,
        chunk_size: CHUNK as u32,
        validator: etag.into(),
        etag: etag.into(),
        ..Default::default()
    }
}

pub fn chunk(index: u32) -> v1::Chunk {
    v1::Chunk {
        index,
        checksum: checksum(index),
    }
}

pub fn digest(entry: &v1::Entry, indexes: &[u32]) -> v1::InventoryDigest {
    let mut digest = InventoryDigest::default();
    for index in indexes {
        digest.add(checksum(*index));
    }
    v1::InventoryDigest {
        entry_id: entry.id.clone(),
        chunk_count: digest.chunk_count,
        checksum_xor: digest.checksum_xor,
    }
}

/// The same each time a name comes.
pub fn store_id(name: &str) -> Uuid {
    Uuid::from_u128(name.len() as u128)
}

/// Any number that differs by index is enough.
fn checksum(index: u32) -> u64 {
    (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
