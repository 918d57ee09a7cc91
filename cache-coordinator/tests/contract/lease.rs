//! Leadership, gained and lost.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_step_down_hands_over_within_a_second_and_old_terms_are_fenced() {
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let two = coordinator(&url, "http://two", WriterConfig::default()).await;
    let mut standby = two.leadership.clone();
    let named = standby
        .wait_for(|now| {
            matches!(
                now,
                Leadership::Standby {
                    leader_address: Some(_)
                }
            )
        })
        .await
        .unwrap()
        .clone();
    assert_eq!(
        named,
        Leadership::Standby {
            leader_address: Some("http://one".into())
        }
    );
    let refused = two
        .writer
        .write(DrainEdge {
            name: "a".into(),
            draining: true,
        })
        .await;
    assert_eq!(
        refused,
        Err(DatabaseError::NotLeader {
            leader: Some("http://one".into())
        })
    );
    assert!(two.log.subscribe(0, Filter::Cluster).is_err());
    let mut watching = one.log.subscribe(0, Filter::Cluster).unwrap();
    assert!(watching.next().await.unwrap().is_ok());

    let began = Instant::now();
    one.step_down.step_down().await;
    two.leads().await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // The former leader names its successor at once, not only when it may lead again.
    let leader_address = Some("http://two".to_owned());
    let told = Leadership::Standby { leader_address };
    let mut former = one.leadership.clone();
    former.wait_for(|now| *now == told).await.unwrap();
    assert!(
        began.elapsed() < cache_coordinator::db::lease::LeaseTimes::default().stand_back,
        "{:?}",
        began.elapsed()
    );
    assert!(matches!(
        watching.next().await,
        Some(Err(DatabaseError::NotLeader { .. }))
    ));
    let first = one.database.latest_revision().await.unwrap();
    let film = two.entry(1, "a.mp4", 1).await;
    let refused = one
        .writer
        .write(SetPinned {
            entry: film.id,
            pinned: true,
        })
        .await;
    assert!(matches!(refused, Err(DatabaseError::NotLeader { .. })));
    assert_eq!(
        two.database.latest_revision().await.unwrap(),
        first,
        "revisions go on where they were"
    );

    // A leader that was paused believes in a term that is over: the row shows otherwise.
    let (_send, belief) = tokio::sync::watch::channel(Leadership::Leader { term: 1 });
    let (paused, task) = WriterTask::new(
        one.database.clone(),
        one.holder,
        StepDown::of(belief),
        WriterConfig::default(),
        Arc::new(NoObserver),
    );
    let cancel = CancellationToken::new();
    tokio::spawn(task.run(cancel.clone()));
    let fenced = paused
        .write(SetPinned {
            entry: film.id,
            pinned: true,
        })
        .await;
    assert!(
        matches!(fenced, Err(DatabaseError::NotLeader { .. })),
        "{fenced:?}"
    );
    assert!(!one.database.entry(film.id).await.unwrap().unwrap().pinned);
    cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_lost_in_the_middle_of_a_write_is_replaced_within_five_seconds() {
    let (_server, url, one) = leader().await;
    one.source("films").await;
    // Another process leads from now on, and is stopped between its lease check and its commit.
    let lost = client(&url).await;
    lost.batch_execute(
        "UPDATE coordinator_lease SET holder = gen_random_uuid(), term = term + 1, expires_at = \
         clock_timestamp() + interval '3 s'",
    )
    .await
    .unwrap();
    lost.batch_execute(
        "SET idle_in_transaction_session_timeout = 1500;
         BEGIN;
         SELECT 1 FROM coordinator_lease FOR KEY SHARE;
         UPDATE sources SET base_url = 'http://half-done'",
    )
    .await
    .unwrap();
    let began = Instant::now();
    let mut leadership = one.leadership.clone();
    tokio::time::timeout(
        Duration::from_secs(10),
        leadership.wait_for(|now| matches!(now, Leadership::Standby { .. })),
    )
    .await
    .unwrap()
    .unwrap();
    one.leads().await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert!(
        lost.batch_execute("COMMIT").await.is_err(),
        "its transaction has ended"
    );
    assert_eq!(
        one.database
            .source("films")
            .await
            .unwrap()
            .unwrap()
            .base_url,
        "http://origin"
    );
    assert_eq!(*one.leadership.borrow(), Leadership::Leader { term: 3 });
    one.entry(1, "a.mp4", 1).await;
}
