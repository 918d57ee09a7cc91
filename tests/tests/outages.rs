//! One or two parts of the system are down at a time: stored chunks are served, and chunks that
//! finish meanwhile are recorded later.

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, MIB, Object, content};

fn lasting(seed: u64, size: u64) -> Object {
    Object::generated(seed, size).header("Cache-Control", "max-age=3600")
}

#[test]
fn hits_need_neither_coordinator_nor_origin() {
    let mut cluster = Cluster::start();
    let target = cluster.put("/here.mp4", lasting(1, 3 * CHUNK));
    cluster.edge().get(&target).expect(200);
    cluster.wait_recorded("/here.mp4", &[(0, 3 * CHUNK)]);
    cluster.coordinator.kill();
    cluster.origin.stop();
    // Also after a restart: the journal alone proves it.
    cluster.edge_mut().kill();
    cluster.edge_mut().spawn();
    cluster.edge_mut().wait_live();
    let hit = cluster.edge().get(&target).expect(200);
    assert!(hit.body == content::bytes(1, 0, 3 * CHUNK));
    let cold = Call::get("/media/cold.mp4")
        .timeout(Duration::from_secs(45))
        .send(cluster.edge().http);
    assert!(matches!(cold.status, 502..=504), "{}", cold.status);
    cluster.origin.start_again();
    cluster.coordinator.start();
    cluster.edge_mut().wait_ready();
    cluster.wait_recorded("/here.mp4", &[(0, 3 * CHUNK)]);
}

#[test]
fn an_edge_restarted_without_database_keeps_what_it_finishes() {
    let mut cluster = Cluster::start();
    let known = cluster.put("/known.mp4", lasting(1, 2 * CHUNK));
    cluster.edge().get(&known).expect(200);
    cluster.wait_recorded("/known.mp4", &[(0, 2 * CHUNK)]);
    cluster.postgres.crash();
    cluster.edge_mut().kill();
    cluster.edge_mut().spawn();
    cluster.edge_mut().wait_live();
    let hit = cluster.edge().get(&known).expect(200);
    assert!(hit.body == content::bytes(1, 0, 2 * CHUNK));
    let cold = cluster.put("/cold.mp4", lasting(2, 5 * MIB));
    let miss = cluster.edge().get(&cold).expect(200);
    assert!(miss.body == content::bytes(2, 0, 5 * MIB));
    cluster.postgres.start_again();
    cluster.coordinator.wait_ready();
    cluster.edge_mut().wait_ready();
    cluster.wait_recorded("/cold.mp4", &[(0, 5 * MIB)]);
    cluster.wait_recorded("/known.mp4", &[(0, 2 * CHUNK)]);
}

#[test]
fn new_work_beyond_the_bound_is_refused_and_running_bodies_go_on() {
    let cluster = Cluster::start();
    let size = 6 * MIB;
    let running = cluster.put("/running.mp4", Object::generated(1, size).paced(2 * MIB));
    let mut body = Call::get(&running).open(cluster.edge().http).unwrap();
    let first = body.take(1000).unwrap();
    let address = cluster.edge().http;
    let (told, answers) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for number in 0..700 {
            let path = format!("/slow-{number}.mp4");
            // Slow enough that all are requested at the same time, even on a busy machine.
            let slow = Object::generated(2, CHUNK).latency(Duration::from_secs(12));
            let target = cluster.put(&path, slow);
            let told = told.clone();
            scope.spawn(move || {
                let call = Call::get(&target).timeout(Duration::from_secs(14));
                let _ = told.send(call.open(address));
            });
        }
        drop(told);
        // One source may have 512 running questions: the others are refused at once.
        let mut refused = 0;
        for answer in answers.into_iter().flatten() {
            if answer.status == 503 {
                assert!(answer.header("retry-after").is_some());
                refused += 1;
            }
        }
        assert!(refused >= 40, "{refused} of 700 were refused");
    });
    let rest = body.finish();
    assert!(rest.complete, "a running body was cut");
    assert!([first, rest.body].concat() == content::bytes(1, 0, size));
}
