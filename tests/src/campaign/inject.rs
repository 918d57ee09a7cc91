//! The injector: draws faults from the plan until each kind has reached its count.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::{RngExt as _, rngs::SmallRng, seq::SliceRandom as _};
use rustix::{
    fs::{FallocateFlags, fallocate},
    process::Signal,
};

use super::network::{self, Cut};
use super::{Plan, Shared, SmallDisk, Target, breathe, object, seed};
use crate::CHUNK;
use crate::cluster::Cluster;

const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    EdgeKill,
    EdgePause,
    CoordinatorKill,
    CoordinatorPause,
    DatabaseKill,
    DiskFill,
    ObjectChange,
    NetworkCut,
}

pub struct Injected {
    pub counts: Vec<(&'static str, u32)>,
    pub left_out: Vec<&'static str>,
}

pub fn all(
    plan: &Plan,
    cluster: &mut Cluster,
    shared: &Shared,
    disk: Option<&SmallDisk>,
    random: &mut SmallRng,
) -> Injected {
    let mut left_out = Vec::new();
    let mut kinds = Vec::new();
    let mut add = |kind: Kind, count: u32| kinds.extend(std::iter::repeat_n(kind, count as usize));
    add(Kind::EdgeKill, plan.edge_kills);
    add(Kind::EdgePause, plan.edge_pauses);
    add(Kind::CoordinatorKill, plan.coordinator_kills);
    add(Kind::CoordinatorPause, plan.coordinator_pauses);
    add(Kind::DatabaseKill, plan.database_kills);
    add(Kind::ObjectChange, plan.object_changes);
    match disk {
        Some(_) => add(Kind::DiskFill, plan.disk_fills),
        None if plan.disk_fills > 0 => {
            left_out.push("disk filled (no loop-mounted file system can be made here)")
        }
        None => {}
    }
    if network::is_own() {
        add(Kind::NetworkCut, plan.network_cuts);
    } else if plan.network_cuts > 0 {
        left_out.push("network cut (no network namespace can be made here)");
    }
    kinds.shuffle(random);
    let mut corrupted = 0;
    let mut kills = 0;
    for kind in &kinds {
        breathe(random);
        match kind {
            Kind::EdgeKill => {
                kills += 1;
                // Spread the rest over the remaining kills.
                let wanted = (plan.corrupted_chunks.saturating_sub(corrupted))
                    .div_ceil(plan.edge_kills - kills + 1);
                corrupted += kill_edge(cluster, shared, wanted, random);
            }
            Kind::EdgePause => pause_edge(cluster, shared, random),
            Kind::CoordinatorKill => {
                cluster.coordinator.kill();
                breathe(random);
                cluster.coordinator.spawn();
            }
            Kind::CoordinatorPause => {
                cluster.coordinator.process().signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(random.random_range(200..2_500)));
                cluster.coordinator.process().signal(Signal::CONT);
            }
            Kind::DatabaseKill => {
                cluster.postgres.crash();
                breathe(random);
                cluster.postgres.start_again();
            }
            Kind::DiskFill => fill_disk(disk, random),
            Kind::ObjectChange => change_object(plan, cluster, shared, random),
            Kind::NetworkCut => cut_network(cluster, shared, random),
        }
    }
    let count = |kind| kinds.iter().filter(|it| **it == kind).count() as u32;
    Injected {
        counts: vec![
            (
                "edge killed (SIGKILL) and started again",
                count(Kind::EdgeKill),
            ),
            (
                "edge stopped for a moment (SIGSTOP)",
                count(Kind::EdgePause),
            ),
            (
                "coordinator killed and started again",
                count(Kind::CoordinatorKill),
            ),
            (
                "coordinator stopped for a moment",
                count(Kind::CoordinatorPause),
            ),
            (
                "PostgreSQL killed and started again",
                count(Kind::DatabaseKill),
            ),
            ("chunks corrupted on disk", corrupted),
            ("disk filled by another program", count(Kind::DiskFill)),
            ("object changed at the origin", count(Kind::ObjectChange)),
            (
                "coordinator, PostgreSQL or an edge cut off the network",
                count(Kind::NetworkCut),
            ),
        ],
        left_out,
    }
}

fn begin(target: &Target) {
    target.down.store(true, Ordering::SeqCst);
    target.incidents.fetch_add(1, Ordering::SeqCst);
}

fn end(target: &Target) {
    target.incidents.fetch_add(1, Ordering::SeqCst);
    target.down.store(false, Ordering::SeqCst);
}

fn kill_edge(cluster: &mut Cluster, shared: &Shared, corrupt: u32, random: &mut SmallRng) -> u32 {
    let number = random.random_range(0..cluster.edges.len());
    begin(&shared.edges[number]);
    let edge = &mut cluster.edges[number];
    edge.kill();
    let corrupted = corrupt_chunks(&edge.data, corrupt, random);
    edge.spawn();
    edge.wait_live();
    end(&shared.edges[number]);
    corrupted
}

fn pause_edge(cluster: &mut Cluster, shared: &Shared, random: &mut SmallRng) {
    let number = random.random_range(0..cluster.edges.len());
    begin(&shared.edges[number]);
    let process = cluster.edges[number].process();
    process.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(random.random_range(100..1_500)));
    process.signal(Signal::CONT);
    end(&shared.edges[number]);
}

/// Cuts the network silently, without an error: the coordinator's, PostgreSQL's, or that of an edge
/// toward its peers and readers.
fn cut_network(cluster: &Cluster, shared: &Shared, random: &mut SmallRng) {
    let time = Duration::from_millis(random.random_range(300..4_000));
    let cut_for = |port| {
        let _cut = Cut::off(port);
        std::thread::sleep(time);
    };
    match random.random_range(0..3) {
        0 => cut_for(cluster.coordinator.grpc.port()),
        1 => cut_for(cluster.postgres.port()),
        _ => {
            let number = random.random_range(0..cluster.edges.len());
            begin(&shared.edges[number]);
            cut_for(cluster.edges[number].http.port());
            end(&shared.edges[number]);
        }
    }
}

/// Changes some bytes in at most `wanted` chunks that have any, and syncs nothing: the edge reads
/// from the page cache. The bytes are changed on new pages: what the killed edge sent with sendfile
/// is still in sockets as the old pages, and is correct.
fn corrupt_chunks(data: &Path, wanted: u32, random: &mut SmallRng) -> u32 {
    let mut places: Vec<(PathBuf, u64)> = Vec::new();
    for path in chunk_files(data) {
        // Holes are not worth corrupting.
        let chunks = super::audit::chunks_with_data(&path);
        places.extend(chunks.into_iter().map(|it| (path.clone(), it * CHUNK)));
    }
    places.shuffle(random);
    let mut corrupted = 0;
    for (path, start) in places.into_iter().take(wanted as usize) {
        let Ok(file) = File::options().read(true).write(true).open(&path) else {
            continue;
        };
        let at = start + random.random_range(0..CHUNK / 2 / PAGE) * PAGE;
        let mut bytes = [0; PAGE as usize];
        let Ok(count) = file.read_at(&mut bytes, at) else {
            continue;
        };
        let wrong = random.random_range(0..PAGE as usize - 64);
        for byte in bytes[..count].iter_mut().skip(wrong).take(64) {
            *byte ^= 0x5A;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let written = fallocate(&file, flags, at, PAGE)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all_at(&bytes[..count], at));
        corrupted += u32::from(count > wrong && written.is_ok());
    }
    corrupted
}

pub fn chunk_files(data: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(data.join("entries"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for file in std::fs::read_dir(folder.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            files.push(file.path());
        }
    }
    files.sort();
    files
}

fn fill_disk(disk: Option<&SmallDisk>, random: &mut SmallRng) {
    let Some(disk) = disk else { return };
    disk.fill();
    std::thread::sleep(Duration::from_millis(random.random_range(200..1_000)));
    disk.give_back();
}

fn change_object(plan: &Plan, cluster: &Cluster, shared: &Shared, random: &mut SmallRng) {
    let number = random.random_range(0..shared.titles.len());
    let title = &shared.titles[number];
    let version = title.version.fetch_add(1, Ordering::SeqCst) + 1;
    cluster
        .origin
        .put(&title.path, object(plan, number, version, title.size));
    title
        .seed
        .store(seed(plan, number, version), Ordering::SeqCst);
    // Requests that begin before and after both see a change: the edge may notice it up to a second
    // later.
    std::thread::sleep(Duration::from_millis(1_100));
    title.version.fetch_add(1_000_000, Ordering::SeqCst);
}
