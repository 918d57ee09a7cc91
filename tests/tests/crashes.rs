//! Processes killed at bad moments: never a wrong byte, and no row without its bytes.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, MIB, Object, content, eventually};
use rustix::process::Signal;

#[test]
fn an_edge_killed_while_it_downloads_lies_about_nothing() {
    let mut cluster = Cluster::start();
    let size = 48 * MIB;
    let object = Object::generated(101, size).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/killed.mp4", object.clone().paced(16 * MIB));
    for round in 0..3 {
        let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
        let read = (round + 1) * 4 * MIB + 99;
        assert_eq!(
            reply.take(read as usize).unwrap(),
            content::bytes(101, 0, read)
        );
        cluster.edge_mut().kill();
        cluster.edge_mut().start();
    }
    cluster.origin.put("/killed.mp4", object);
    // Rows are a subset of the disk: while the origin is down, every recorded byte can be read, and
    // is correct.
    let recorded = cluster.recorded("/killed.mp4", "edge-a");
    assert!(!recorded.is_empty());
    cluster.origin.stop();
    for (start, end) in recorded {
        let part = Call::get(&target)
            .range(start, end)
            .send(cluster.edge().http)
            .expect(206);
        assert!(
            part.body == content::bytes(101, start, end),
            "{start}..{end} is wrong"
        );
    }
    cluster.origin.start_again();
    let whole = Call::get(&target).send(cluster.edge().http).expect(200);
    assert_eq!(content::sha256_of(&whole.body), content::sha256(101, size));
    cluster.wait_recorded("/killed.mp4", &[(0, size)]);
}

#[test]
fn playback_survives_a_restart_of_the_coordinator() {
    let mut cluster = Cluster::start();
    let size = 24 * MIB;
    let target = cluster.put("/playing.mp4", Object::generated(102, size).paced(6 * MIB));
    let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
    let first = reply.take(MIB as usize).unwrap();
    cluster.coordinator.kill();
    let second = reply.take(4 * MIB as usize).unwrap();
    cluster.coordinator.start();
    let rest = reply.finish();
    assert!(rest.complete, "playback ended with the coordinator");
    let body = [first, second, rest.body].concat();
    assert_eq!(content::sha256_of(&body), content::sha256(102, size));
    cluster.wait_recorded("/playing.mp4", &[(0, size)]);
}

#[test]
fn playback_survives_a_restart_of_postgresql() {
    let mut cluster = Cluster::start();
    let size = 24 * MIB;
    let target = cluster.put("/db.mp4", Object::generated(103, size).paced(6 * MIB));
    let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
    let first = reply.take(MIB as usize).unwrap();
    cluster.postgres.stop();
    assert_eq!(cluster.coordinator.get("/livez").status, 200);
    let second = reply.take(4 * MIB as usize).unwrap();
    cluster.postgres.start_again();
    let rest = reply.finish();
    assert!(rest.complete, "playback ended with the database");
    let body = [first, second, rest.body].concat();
    assert_eq!(content::sha256_of(&body), content::sha256(103, size));
    cluster.coordinator.wait_ready();
    cluster.wait_recorded("/db.mp4", &[(0, size)]);
}

#[test]
fn hits_do_not_need_a_coordinator_that_hangs() {
    let mut cluster = Cluster::start();
    let object = Object::generated(104, CHUNK).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/hit.mp4", object);
    cluster.edge().get(&target).expect(200);
    cluster.wait_recorded("/hit.mp4", &[(0, CHUNK)]);
    cluster.coordinator.process().signal(Signal::STOP);
    let hit = cluster.edge().get(&target).expect(200);
    assert_eq!(hit.body, content::bytes(104, 0, CHUNK));
    let cold = cluster.put("/cold.mp4", Object::generated(105, CHUNK));
    let miss = Call::get(&cold)
        .timeout(Duration::from_secs(15))
        .send(cluster.edge().http)
        .expect(200);
    assert_eq!(miss.body, content::bytes(105, 0, CHUNK));
    cluster.coordinator.process().signal(Signal::CONT);
    cluster.wait_recorded("/cold.mp4", &[(0, CHUNK)]);
}

#[test]
fn a_wiped_disk_loses_its_rows() {
    let mut cluster = Cluster::start();
    let target = cluster.put("/wiped.mp4", Object::generated(106, 4 * MIB));
    cluster.edge().get(&target).expect(200);
    cluster.wait_recorded("/wiped.mp4", &[(0, 4 * MIB)]);
    cluster.edge_mut().terminate();
    std::fs::remove_dir_all(&cluster.edge().data).unwrap();
    cluster.edge_mut().start();
    eventually("the rows are gone", Duration::from_secs(20), || {
        (cluster.recorded_bytes("/wiped.mp4", "edge-a") == 0).then_some(())
    });
    let again = cluster.edge().get(&target).expect(200);
    assert_eq!(again.body, content::bytes(106, 0, 4 * MIB));
}

#[test]
fn running_bodies_finish_within_the_grace_of_a_stop() {
    let mut cluster = Cluster::start();
    let size = 6 * MIB;
    let target = cluster.put("/drained.mp4", Object::generated(107, size).paced(3 * MIB));
    let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
    let first = reply.take(1000).unwrap();
    cluster.edge_mut().process().signal(Signal::TERM);
    let rest = reply.finish();
    assert!(rest.complete, "the body was cut");
    assert_eq!([first, rest.body].concat(), content::bytes(107, 0, size));
    let status = cluster
        .edge_mut()
        .process()
        .wait_for_exit(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0));
}
