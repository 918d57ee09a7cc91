#![allow(clippy::unwrap_used)]

use super::*;

fn places(limit: u32) -> Places {
    let places = Places::default();
    places.set_limit(limit);
    places
}

fn lend(of: &Places, sequence: u64, places: u32) {
    of.set_lent(&v1::Places {
        source: "films".into(),
        sequence,
        places,
        alone: 2,
        alone_bytes_per_second: 0,
    });
}

async fn waits(of: &Places, turn: Turn) -> tokio::task::JoinHandle<Result<Place, OriginError>> {
    let before = of.0.state.lock().waiting();
    let places = of.clone();
    let task = tokio::spawn(async move { places.enter(turn).await });
    while of.0.state.lock().waiting() == before {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test]
async fn a_place_is_lent_and_its_want_is_told() {
    let places = places(4);
    places.begin_session();
    let first = places.to_tell(false);
    assert_eq!(first, Some((0, 0, 0)), "what is open, be it nothing");
    assert_eq!(places.to_tell(false), None, "there is nothing to tell");
    let first = waits(&places, Turn::Viewer).await;
    assert_eq!(places.to_tell(false), Some((0, 0, 1)));
    lend(&places, 1, 1);
    let first = first.await.unwrap().unwrap();
    assert_eq!(places.to_tell(false), Some((1, 1, 1)));
    let second = waits(&places, Turn::Viewer).await;
    assert_eq!(places.to_tell(false), Some((1, 1, 2)));
    drop(first);
    let second = second.await.unwrap().unwrap();
    drop(second);
    assert_eq!(
        places.to_tell(false),
        None,
        "not each request that ends is told of"
    );
    assert_eq!(
        places.to_tell(true),
        None,
        "so many were wanted a moment ago"
    );
    assert_eq!(places.to_tell(true), Some((1, 1, 0)));
    lend(&places, 2, 0);
    assert_eq!(places.to_tell(false), Some((2, 0, 0)));
}

#[tokio::test]
async fn less_is_held_when_what_is_open_has_ended() {
    let places = places(4);
    places.begin_session();
    lend(&places, 1, 2);
    let open = (
        places.enter(Turn::Viewer).await.unwrap(),
        places.enter(Turn::Viewer).await.unwrap(),
    );
    assert_eq!(places.to_tell(false), Some((1, 2, 2)));
    lend(&places, 2, 0);
    assert_eq!(places.to_tell(false), Some((2, 2, 2)));
    let late = waits(&places, Turn::Viewer).await;
    drop(open.0);
    assert_eq!(places.to_tell(false), Some((2, 1, 2)), "nobody follows it");
    drop(open.1);
    assert_eq!(places.to_tell(false).map(|it| it.1), Some(0));
    assert!(!late.is_finished());
}

#[tokio::test]
async fn who_finds_no_place_for_long_is_told() {
    let places = places(1);
    let _open = places.enter(Turn::Viewer).await.unwrap();
    let brief = Duration::from_millis(5);
    let refused = places.enter_within(Turn::Viewer, brief).await;
    assert!(matches!(refused, Err(OriginError::NoPlace { .. })));
    assert_eq!(
        refused.unwrap_err().retry_after(),
        Some(Duration::from_secs(1))
    );
}

#[tokio::test]
async fn viewers_do_not_wait_behind_others() {
    let places = places(4);
    places.begin_session();
    lend(&places, 1, 2);
    let background = places.enter(Turn::Background).await.unwrap();
    let other = waits(&places, Turn::Background).await;
    let viewer = places.enter(Turn::Viewer).await.unwrap();
    let second = waits(&places, Turn::Viewer).await;
    assert!(places.is_wanted());
    drop(background);
    let second = second.await.unwrap().unwrap();
    drop(viewer);
    assert!(!other.is_finished(), "the last place is for viewers");
    drop(second);
    other.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_coordinator_a_part_of_the_limit_is_its_own() {
    let places = places(6);
    let first = places.enter(Turn::Viewer).await.unwrap();
    let second = waits(&places, Turn::Viewer).await;
    places.begin_session();
    lend(&places, 1, 0);
    assert!(!second.is_finished());
    places.end_session();
    assert_eq!(places.come_down(), Some((2, 1)));
    tokio::task::yield_now().await;
    assert!(
        !second.is_finished(),
        "others may have more than their part"
    );
    places.stand_alone();
    let second = second.await.unwrap().unwrap();
    drop((first, second));
    let _assigned = places.enter(Turn::Assigned).await.unwrap();
    let _open = places.enter(Turn::Viewer).await.unwrap();
    let third = waits(&places, Turn::Viewer).await;
    assert!(!third.is_finished(), "assignments that go on are counted");
}

#[tokio::test]
async fn what_was_open_is_opened_again_up_to_the_part_of_the_edge() {
    let places = places(6);
    places.begin_session();
    lend(&places, 1, 1);
    let assigned = (
        places.enter(Turn::Assigned).await.unwrap(),
        places.enter(Turn::Assigned).await.unwrap(),
    );
    places.end_session();
    // Lent and not in use is its own as well, but two are its part.
    let viewer = waits(&places, Turn::Viewer).await;
    let next_leg = waits(&places, Turn::Assigned).await;
    drop(assigned.0);
    let viewer = viewer.await.unwrap().unwrap();
    drop(assigned.1);
    let next_leg = next_leg.await.unwrap().unwrap();
    let third = waits(&places, Turn::Viewer).await;
    let leg = waits(&places, Turn::Assigned).await;
    assert!(!third.is_finished() && !leg.is_finished());
    places.begin_session();
    let leg = leg.await.unwrap().unwrap();
    assert!(
        !third.is_finished(),
        "the coordinator knows what it assigned"
    );
    drop((viewer, next_leg, leg));
}

#[tokio::test]
async fn who_had_nothing_opens_nothing_until_others_have_come_down() {
    let places = places(6);
    places.begin_session();
    lend(&places, 1, 0);
    places.end_session();
    let first = waits(&places, Turn::Viewer).await;
    tokio::task::yield_now().await;
    assert!(!first.is_finished());
    places.stand_alone();
    drop(first.await.unwrap().unwrap());
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_is_taken_as_absent() {
    let places = places(6);
    places.begin_session();
    lend(&places, 1, 0);
    let waiting = waits(&places, Turn::Viewer).await;
    assert!(places.to_tell(false).is_some());
    places.0.state.lock().asked = Instant::now().checked_sub(ANSWERS_WITHIN);
    places.admit(&mut places.0.state.lock());
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_leaves_takes_no_place_along() {
    let places = places(1);
    let open = places.enter(Turn::Viewer).await.unwrap();
    let gone = waits(&places, Turn::Viewer).await;
    let next = waits(&places, Turn::Viewer).await;
    gone.abort();
    let _ = gone.await;
    drop(open);
    drop(next.await.unwrap().unwrap());
    places.set_limit(0);
    assert_eq!(places.0.state.lock().open, 0);
}

#[tokio::test]
async fn a_place_is_asked_for_before_it_is_needed() {
    let places = places(4);
    places.begin_session();
    let expected = places.expect();
    assert_eq!(places.to_tell(false), Some((0, 0, 1)));
    lend(&places, 1, 1);
    drop(expected);
    assert!(places.expect().0.is_none(), "there is one");
    let _open = places.enter(Turn::Viewer).await.unwrap();
    assert_eq!(places.to_tell(false), Some((1, 1, 1)));
}
