#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc;

use super::super::{pass_through::ChannelBody, ports::ReadError};
use super::*;

fn described(path: &str, fresh_until_ms: i64) -> WholeDescription {
    WholeDescription {
        key: v1::Key {
            source: "films".into(),
            path: path.into(),
            ..v1::Key::default()
        },
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        freshness: v1::Freshness {
            fresh_until_ms,
            ..v1::Freshness::default()
        },
    }
}

fn spawn(future: PumpFuture) {
    tokio::spawn(future);
}

type Feed = mpsc::Sender<Result<Bytes, ReadError>>;

fn keep(answers: &WholeAnswers, id: u128, path: &str) -> (Arc<Whole>, Feed) {
    let Claim::Ask(asking) = answers.claim(id, false, 0) else {
        panic!("asked already");
    };
    let (feed, body) = mpsc::channel(1);
    let body = Box::pin(ChannelBody::new(body));
    (asking.keep(described(path, 100), body, spawn), feed)
}

async fn read(body: PassBody) -> Result<Vec<u8>, String> {
    let collected = body.collect().await.map_err(|error| error.to_string())?;
    Ok(collected.to_bytes().to_vec())
}

async fn say(feed: &Feed, piece: &'static [u8]) {
    feed.send(Ok(Bytes::from_static(piece))).await.unwrap();
}

#[tokio::test]
async fn who_comes_while_it_arrives_gets_all_of_it() {
    let answers = WholeAnswers::default();
    let (whole, feed) = keep(&answers, 1, "a");
    let first = tokio::spawn(read(whole.stream().unwrap()));
    say(&feed, b"one").await;
    say(&feed, b"two").await;
    tokio::task::yield_now().await;
    let Claim::Present(joined) = answers.claim(1, false, 0) else {
        panic!("it is there");
    };
    let second = tokio::spawn(read(joined.stream().unwrap()));
    say(&feed, b"").await;
    assert_eq!(first.await.unwrap().unwrap(), b"onetwo");
    assert_eq!(second.await.unwrap().unwrap(), b"onetwo");
    assert_eq!(whole.arrived().await.unwrap(), "onetwo");
    assert!(answers.get(|| 1, 99).is_some());
    assert!(answers.get(|| 1, 100).is_none(), "stale");
    assert_eq!(answers.state.lock().bytes, 0);
    assert_eq!(answers.arriving.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_breaks_off_is_cut_and_not_kept() {
    let answers = WholeAnswers::default();
    let (whole, feed) = keep(&answers, 1, "a");
    let reader = tokio::spawn(read(whole.stream().unwrap()));
    say(&feed, b"one").await;
    feed.send(Err(ReadError::Origin("broke".into())))
        .await
        .unwrap();
    assert!(reader.await.unwrap().is_err());
    assert!(whole.arrived().await.is_none());
    assert!(matches!(answers.claim(1, false, 0), Claim::Ask(_)));
}

#[tokio::test]
async fn one_asks_and_the_others_wait() {
    let answers = WholeAnswers::default();
    let Claim::Ask(asking) = answers.claim(1, false, 0) else {
        panic!("nobody asks yet");
    };
    let wait = || {
        let Claim::Wait(question) = answers.claim(1, true, 0) else {
            panic!("one asks");
        };
        assert!(!question.at_keeper);
        let answers = answers.clone();
        tokio::spawn(async move { answers.claim_or_wait(1, true, || 0, |_| true).await })
    };
    let not_for_it = answers.claim_or_wait(1, true, || 0, |question| question.at_keeper);
    assert!(not_for_it.await.is_none());
    let waiting = wait();
    tokio::task::yield_now().await;
    // Cancelled: the next one asks.
    drop(asking);
    let Some(Claimed::Ask(asking)) = waiting.await.unwrap() else {
        panic!("it is over");
    };
    assert!(matches!(answers.claim(1, false, 0), Claim::Wait(question) if question.at_keeper));
    let waiting = tokio::spawn({
        let answers = answers.clone();
        async move { answers.claim_or_wait(1, false, || 0, |_| true).await }
    });
    tokio::task::yield_now().await;
    asking.fail();
    assert!(waiting.await.unwrap().is_none());
    assert!(matches!(answers.claim(1, false, 0), Claim::Ask(_)));
    assert!(answers.state.lock().slots.is_empty());
}

#[tokio::test]
async fn what_is_too_large_is_handed_through_and_not_kept() {
    let answers = WholeAnswers::default();
    let (whole, feed) = keep(&answers, 1, "a");
    let reader = tokio::spawn(read(whole.stream().unwrap()));
    let piece = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..20 {
        feed.send(Ok(piece.clone())).await.unwrap();
    }
    say(&feed, b"").await;
    assert_eq!(reader.await.unwrap().unwrap().len(), 20 << 20);
    assert!(whole.stream().is_none(), "nobody joins it");
    assert!(whole.buffered() <= super::super::whole::WINDOW_BYTES);
    assert!(matches!(answers.claim(1, false, 0), Claim::Ask(_)));
    assert_eq!(answers.state.lock().bytes, 0);
}

#[tokio::test]
async fn they_are_bounded_for_each_source_and_forgotten_by_key() {
    let answers = WholeAnswers::default();
    let piece = Bytes::from(vec![7; 7 << 20]);
    for id in 0..4 {
        let (whole, feed) = keep(&answers, id, &id.to_string());
        feed.send(Ok(piece.clone())).await.unwrap();
        say(&feed, b"").await;
        whole.arrived().await.unwrap();
        tokio::task::yield_now().await;
    }
    while answers.arriving.load(Ordering::Relaxed) > 0 {
        tokio::task::yield_now().await;
    }
    assert!(answers.state.lock().bytes <= MAX_SOURCE_BYTES);
    answers.forget(|key, _| key.source == "films");
    let state = answers.state.lock();
    assert_eq!((state.bytes, state.slots.len()), (0, 0));
    assert!(state.of_source.is_empty());
}
