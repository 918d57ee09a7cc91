//! Disks that are full, refuse writes or are small: serving continues, health shows why, recovery
//! is automatic.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use chunkcache_tests::campaign::SmallDisk;
use chunkcache_tests::http::Call;
use chunkcache_tests::services::data_file;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, MIB, Object, content, eventually};

const RECOVERY: Duration = Duration::from_secs(30);

/// An edge whose data directory is its own small file system; none if this machine allows no mount.
fn on_a_small_disk(mkfs: &[&str]) -> Option<(Cluster, SmallDisk)> {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false", "--min-free=1MiB"],
        ..ClusterOptions::default()
    });
    let Some(disk) = SmallDisk::mount_with(cluster.directory.path(), 96 * MIB, mkfs) else {
        println!("skipped: no loop-mounted file system can be made here (needs root)");
        return None;
    };
    let data = disk.path().join("data");
    cluster.edge_mut().put_data_at(data);
    cluster.start_prepared();
    Some((cluster, disk))
}

/// Ends the edge before its disk.
fn end(mut cluster: Cluster, disk: SmallDisk) {
    cluster.edges.clear();
    drop(disk);
}

fn object(seed: u64) -> Object {
    Object::generated(seed, 2 * CHUNK + 5).header("Cache-Control", "max-age=3600")
}

#[track_caller]
fn comes_right(cluster: &Cluster, target: &str, seed: u64) {
    let answer = cluster.edge().get(target).expect(200);
    assert!(answer.body == content::bytes(seed, 0, 2 * CHUNK + 5));
}

/// Requests missing chunks until health reports this.
fn says(cluster: &Cluster, seed: u64, what: &str) {
    let mut next = seed;
    eventually(&format!("health says {what:?}"), RECOVERY, || {
        let path = format!("/miss-{next}.mp4");
        let target = cluster.put(&path, object(next));
        comes_right(cluster, &target, next);
        next += 1;
        let ready = Call::get("/readyz").send(cluster.edge().admin);
        // The store's words or the system's, whichever found it.
        ready.text().to_lowercase().contains(what).then_some(())
    });
}

/// Requests new objects until one has its rows: chunks are stored again.
fn keeps_again(cluster: &Cluster, seed: u64) {
    let mut next = seed;
    eventually("chunks are kept again", RECOVERY, || {
        let path = format!("/again-{next}.mp4");
        let target = cluster.put(&path, object(next));
        comes_right(cluster, &target, next);
        next += 1;
        std::thread::sleep(Duration::from_millis(200));
        (cluster.recorded_bytes(&path, "edge-a") > 0).then_some(())
    });
    eventually("ready again", RECOVERY, || {
        let ready = Call::get("/readyz").send(cluster.edge().admin);
        (ready.status == 200).then_some(())
    });
}

#[test]
fn a_disk_others_filled_is_passed_by_and_used_again() {
    let Some((mut cluster, disk)) = on_a_small_disk(&[]) else {
        return;
    };
    let kept = cluster.put("/kept.mp4", object(1));
    comes_right(&cluster, &kept, 1);
    cluster.wait_recorded("/kept.mp4", &[(0, 2 * CHUNK + 5)]);
    // Without a coordinator nothing is evicted to make space.
    cluster.coordinator.kill();
    disk.fill();
    says(&cluster, 1_000, "no space");
    comes_right(&cluster, &kept, 1);
    disk.give_back();
    cluster.coordinator.start();
    keeps_again(&cluster, 2_000);
    end(cluster, disk);
}

#[test]
fn a_disk_without_inodes_is_passed_by_and_used_again() {
    let Some((cluster, disk)) = on_a_small_disk(&["-N", "256"]) else {
        return;
    };
    let kept = cluster.put("/kept.mp4", object(1));
    comes_right(&cluster, &kept, 1);
    cluster.wait_recorded("/kept.mp4", &[(0, 2 * CHUNK + 5)]);
    disk.fill_inodes();
    says(&cluster, 1_000, "no space");
    comes_right(&cluster, &kept, 1);
    disk.give_inodes_back();
    keeps_again(&cluster, 2_000);
    end(cluster, disk);
}

#[test]
fn a_disk_that_became_read_only_still_serves() {
    let Some((mut cluster, disk)) = on_a_small_disk(&[]) else {
        return;
    };
    let kept = cluster.put("/kept.mp4", object(1));
    let spoilt = cluster.put("/spoilt.mp4", object(2));
    for (target, seed) in [(&kept, 1), (&spoilt, 2)] {
        comes_right(&cluster, target, seed);
        let path = target.trim_start_matches("/media");
        cluster.wait_recorded(path, &[(0, 2 * CHUNK + 5)]);
    }
    // A corrupt chunk is found at its first use after a start, and cannot be withdrawn then.
    cluster.edge_mut().terminate();
    spoil(&cluster, "/spoilt.mp4");
    cluster.edge_mut().start();
    if disk.abort() {
        says(&cluster, 1_000, "os error");
        comes_right(&cluster, &kept, 1);
        comes_right(&cluster, &spoilt, 2);
    } else {
        println!("skipped: this kernel does not abort a file system on demand");
    }
    end(cluster, disk);
}

/// Overwrites bytes in the first chunk of the path's entry, on the disk of the only edge, which is
/// stopped.
fn spoil(cluster: &Cluster, path: &str) {
    let sql = format!("SELECT id FROM cache_entries WHERE ltrim(path, '/') = ltrim('{path}', '/')");
    let id = cluster.postgres.query(&sql).remove(0).remove(0);
    let file = data_file(&cluster.edge().data, &id);
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(b"other bytes", 1_000).unwrap();
}
