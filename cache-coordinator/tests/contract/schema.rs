//! Migrations, readiness, and that every statement fits.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_fits_the_schema() {
    let server = Server::shared();
    let url = server.create_database().await;
    migrated(&url).await;
    let client = client(&url).await;
    for statement in statements::ALL {
        client
            .prepare(statement.sql)
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", statement.name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_migrate_one_at_a_time_and_refuse_a_newer_schema() {
    let server = Server::shared();
    let url = server.create_database().await;
    let (one, two) = (database(&url), database(&url));
    let cancel = CancellationToken::new();
    let waits_for_somebody_elses_migration = database(&url);
    let pending = {
        let cancel = cancel.clone();
        tokio::spawn(async move {
            waits_for_somebody_elses_migration
                .wait_ready(MigrateMode::CheckOnly, &cancel)
                .await
        })
    };
    let (a, b) = tokio::join!(
        one.wait_ready(MigrateMode::Apply, &cancel),
        two.wait_ready(MigrateMode::Apply, &cancel)
    );
    assert_eq!((a, b), (Ok(Some(())), Ok(Some(()))));
    assert_eq!(pending.await.unwrap(), Ok(Some(())));
    assert_eq!(one.health().await, Health::Ready);

    let client = client(&url).await;
    let known = migrations().last().unwrap().version;
    let rows = client
        .query("SELECT version FROM schema_migrations", &[])
        .await
        .unwrap();
    assert_eq!(rows.len(), migrations().len());
    client
        .batch_execute("UPDATE schema_migrations SET checksum = 'x' WHERE version = 1")
        .await
        .unwrap();
    let changed = database(&url).wait_ready(MigrateMode::Apply, &cancel).await;
    assert!(
        matches!(changed, Err(SchemaError::Changed { version: 1, .. })),
        "{changed:?}"
    );
    client
        .batch_execute("INSERT INTO schema_migrations VALUES (999, 'later', 'x')")
        .await
        .unwrap();
    for mode in [MigrateMode::Apply, MigrateMode::CheckOnly] {
        let newer = database(&url).wait_ready(mode, &cancel).await;
        assert_eq!(newer, Err(SchemaError::Newer { found: 999, known }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_yet_is_waited_for() {
    let server = Server::prepare();
    let database = database(&server.url("postgres"));
    let cancel = CancellationToken::new();
    assert!(matches!(database.health().await, Health::NotReady(_)));
    let waiting = {
        let (database, cancel) = (database.clone(), cancel.clone());
        tokio::spawn(async move { database.wait_ready(MigrateMode::Apply, &cancel).await })
    };
    tokio::task::spawn_blocking(move || {
        server.start();
        server
    })
    .await
    .map(|server| async move {
        assert_eq!(waiting.await.unwrap(), Ok(Some(())));
        assert_eq!(database.health().await, Health::Ready);
        drop(server);
        assert!(matches!(database.health().await, Health::NotReady(_)));
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert_eq!(
            database.wait_ready(MigrateMode::Apply, &cancelled).await,
            Ok(None)
        );
    })
    .unwrap()
    .await;
}
