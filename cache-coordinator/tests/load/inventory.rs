//! An edge with very many small entries, of which the table knows none, while new ones come.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::v1;
use tokio::sync::{Mutex, mpsc};
use tonic::transport::Channel;
use v1::{
    edge_service_client::EdgeServiceClient, session_request::Message as Request,
    session_response::Message as Response,
};

use crate::api_support::fake_edge::{FakeEdge, chunk, digest, entry};

const BASE: &str = "http://origin.test";
const PAGE: usize = 1_024;

fn small(number: u32) -> v1::Entry {
    entry("films", BASE, &format!("{number}.ts"), 1, "\"1\"")
}

/// The measured results.
pub struct Outcome {
    /// From the first digest to Ready.
    pub ready: Duration,
    /// New entries committed by then, and all of them.
    pub new_at_ready: u64,
    pub new: u64,
    pub longest_page: usize,
}

/// Everything that must be sent without anything between it goes under the lock.
#[derive(Clone)]
struct Sender(Arc<Mutex<mpsc::Sender<v1::SessionRequest>>>);

impl Sender {
    async fn send(&self, messages: impl IntoIterator<Item = Request>) {
        let to = self.0.lock().await;
        for message in messages {
            let message = Some(message);
            let _ = to.send(v1::SessionRequest { message }).await;
        }
    }
}

/// Reports `rate` new entries a second until it is aborted or there are `most`; answers how many.
async fn report_new(sender: Sender, first: u32, rate: u32, until: Arc<Mutex<bool>>) -> u64 {
    let began = Instant::now();
    let mut sent = 0_u32;
    while !*until.lock().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u32;
        for number in sent..due {
            let new = small(first + number);
            let stored = v1::ChunksStored {
                sequence: u64::from(number) + 1,
                entry_id: new.id.clone(),
                chunks: vec![chunk(0)],
                origin_bytes: 0,
            };
            let observed = v1::EntryObserved {
                entry: Some(new),
                freshness: Some(v1::Freshness::default()),
            };
            let messages = [
                Request::EntryObserved(observed),
                Request::ChunksStored(stored),
            ];
            sender.send(messages).await;
        }
        sent = due;
    }
    sent.into()
}

/// Reconciles `count` entries while `rate` new ones a second come.
pub async fn reconcile(client: EdgeServiceClient<Channel>, count: u32, rate: u32) -> Outcome {
    let numbers: HashMap<String, u32> = (0..count).map(|it| (small(it).id, it)).collect();
    let digests: Vec<_> = numbers
        .values()
        .map(|it| digest(&small(*it), &[0]))
        .collect();
    let FakeEdge { to, mut from, .. } = FakeEdge::hello_at(client, "edge-1").await;
    let sender = Sender(Arc::new(Mutex::new(to)));
    let complete = || Request::InventoryComplete(v1::InventoryComplete {});
    let is_over = Arc::new(Mutex::new(false));
    let began = Instant::now();
    let news = tokio::spawn(report_new(sender.clone(), count, rate, is_over.clone()));
    let pages = digests.chunks(PAGE).map(|page| {
        let digests = page.to_vec();
        Request::InventoryDigests(v1::InventoryDigests { digests })
    });
    let pages: Vec<_> = pages.chain([complete()]).collect();
    let presenting = tokio::spawn({
        let sender = sender.clone();
        async move { sender.send(pages).await }
    });
    let (mut ready, mut committed, mut longest_page) = (None, 0, 0);
    let mut new_at_ready = 0;
    let mut new = None;
    let mut counting = Box::pin(news);
    while ready.is_none() || new.is_none_or(|new| committed < new) {
        let response = tokio::select! {
            response = from.message() => response.unwrap().expect("the session goes on"),
            counted = &mut counting, if new.is_none() => {
                new = Some(counted.unwrap());
                continue;
            }
        };
        match response.message {
            Some(Response::InventoryRequest(request)) => {
                longest_page = longest_page.max(request.entry_ids.len());
                let entries: Vec<_> = request
                    .entry_ids
                    .iter()
                    .map(|id| {
                        Request::InventoryEntry(v1::InventoryEntry {
                            entry: Some(small(numbers[id])),
                            freshness: Some(v1::Freshness::default()),
                            chunks: vec![chunk(0)],
                            is_continued: false,
                        })
                    })
                    .chain([complete()])
                    .collect();
                // Beside: this side never stops reading.
                let sender = sender.clone();
                tokio::spawn(async move { sender.send(entries).await });
            }
            Some(Response::Committed(it)) => committed = committed.max(it.sequence),
            Some(Response::Ready(_)) => {
                ready = Some(began.elapsed());
                new_at_ready = committed;
                *is_over.lock().await = true;
            }
            _ => {}
        }
    }
    presenting.await.unwrap();
    Outcome {
        ready: ready.unwrap_or_default(),
        new_at_ready,
        new: new.unwrap_or_default(),
        longest_page,
    }
}
