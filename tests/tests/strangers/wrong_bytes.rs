//! Bytes that change on a running edge's disk reach no client through another edge.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, Object, content, eventually};

const SIZE: u64 = 3 * CHUNK;

fn data_file(directory: &Path) -> PathBuf {
    let mut directories = vec![directory.join("entries")];
    while let Some(directory) = directories.pop() {
        for item in std::fs::read_dir(directory).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                return path;
            }
        }
    }
    panic!("no data file in {}", directory.display());
}

#[test]
fn four_bytes_changed_on_a_peers_disk_reach_no_viewer() {
    let mut cluster = Cluster::with_edges(2);
    let target = cluster.put("/changed.mp4", Object::generated(900, SIZE));
    cluster.edges[0].get(&target).expect(200);
    cluster.wait_recorded_on("/changed.mp4", "edge-a", &[(0, SIZE)]);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(data_file(&cluster.edges[0].data))
        .unwrap();
    file.write_all_at(&[0xa5; 4], CHUNK + 1_234_567).unwrap();

    let right = content::bytes(900, 0, SIZE);
    let reply = Call::get(&target)
        .timeout(Duration::from_secs(30))
        .open(cluster.edges[1].http)
        .unwrap()
        .finish();
    assert!(
        reply.status == 200 && right.starts_with(&reply.body),
        "wrong bytes were sent"
    );
    assert_eq!(reply.complete, reply.body.len() as u64 == SIZE);
    let sent = peer_bytes(&cluster);
    assert!(sent > 0, "nothing came from the peer: this shows nothing");
    // The peer found it, and has or gets the right bytes again; both edges serve them.
    eventually("both edges have it right", Duration::from_secs(30), || {
        let is_right = |edge: usize| {
            let answer = cluster.edges[edge].get(&target);
            answer.status == 200 && answer.complete && answer.body == right
        };
        (is_right(0) && is_right(1)).then_some(())
    });
    cluster.edges[0].terminate();
}

fn peer_bytes(cluster: &Cluster) -> u64 {
    let metrics = Call::get("/metrics").send(cluster.edges[1].admin).text();
    let line = metrics
        .lines()
        .find(|line| line.contains("peer_bytes") && !line.starts_with('#'));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.unwrap().parse::<f64>().unwrap() as u64
}
