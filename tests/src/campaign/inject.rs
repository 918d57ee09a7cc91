//! The injector: draws faults from the plan until each kind has reached its count.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt as _, rngs::SmallRng, seq::SliceRandom as _};
use rustix::{
    fs::{FallocateFlags, fallocate},
    process::Signal,
};

use super::clock::Clock;
use super::commits::Proxy;
use super::network::{self, Cut};
use super::readers::one_request;
use super::{
    CLOCK_SKEW, COORDINATOR_KILL, COORDINATOR_PAUSE, CORRUPTED, CORRUPTED_CHUNK, DATABASE_KILL,
    DISK_FILL, EDGE_KILL, EDGE_PAUSE, FAULTS, Fault, HANGING_ORIGIN, LOST_COMMIT, NETWORK_CUT,
    OBJECT_CHANGE, OTHER, Plan, RUNNING_CORRUPTION, SETTLED, SKEWED, Shared, SmallDisk, Target,
    Title, breathe, object, seed,
};
use crate::cluster::{Cluster, SOURCE};
use crate::http::Call;
use crate::origin::{Object, Origin};
use crate::{CHUNK, MIB};

const PAGE: u64 = 4096;
/// Rows are written all the time; without the database's answer within this, there was none.
const COMMIT_WITHIN: Duration = Duration::from_secs(3);
const PREPARE_WITHIN: Duration = Duration::from_secs(10);
const RECORDED_AFTER: Duration = Duration::from_millis(500);
const HANGING_READERS: u64 = 8;
const HANGING_FOR: Duration = Duration::from_secs(2);

pub struct Injected {
    pub counts: Vec<(&'static str, u32)>,
    pub left_out: Vec<String>,
}

/// What faults need beside the cluster, where this machine has it.
pub struct Tools<'a> {
    pub disk: Option<&'a SmallDisk>,
    pub clock: Option<&'a Clock>,
    pub commits: &'a Proxy,
    pub other: &'a Origin,
}

impl Tools<'_> {
    /// Why this fault cannot be injected here.
    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            DISK_FILL if self.disk.is_none() => {
                Some("no loop-mounted file system can be made here")
            }
            NETWORK_CUT if !network::is_own() => Some("no network namespace can be made here"),
            CLOCK_SKEW if self.clock.is_none() => Some("libfaketime is not installed"),
            _ => None,
        }
    }
}

pub fn all(
    plan: &Plan,
    cluster: &mut Cluster,
    shared: &Shared,
    tools: &mut Tools,
    random: &mut SmallRng,
) -> Injected {
    let mut left_out = Vec::new();
    let mut order = Vec::new();
    for fault in FAULTS.into_iter().filter(|it| *it != CORRUPTED_CHUNK) {
        match tools.lacks(fault) {
            Some(why) if plan.count(fault) > 0 => left_out.push(format!("{} ({why})", fault.words)),
            Some(_) => {}
            None => order.extend(std::iter::repeat_n(fault, plan.count(fault) as usize)),
        }
    }
    order.shuffle(random);
    let mut done: Vec<(Fault, u32)> = FAULTS.iter().map(|fault| (*fault, 0)).collect();
    let mut add = |fault, more| {
        let counts = done.iter_mut().filter(|(it, _)| *it == fault);
        counts.for_each(|(_, count)| *count += more);
    };
    let (mut kills, mut corrupted) = (0, 0);
    for fault in order {
        breathe(random);
        let injected = match fault {
            EDGE_KILL => {
                kills += 1;
                // Spread the rest over the remaining kills.
                let wanted = (plan.count(CORRUPTED_CHUNK).saturating_sub(corrupted))
                    .div_ceil(plan.count(EDGE_KILL) - kills + 1);
                let chunks = kill_edge(cluster, shared, wanted, random);
                corrupted += chunks;
                add(CORRUPTED_CHUNK, chunks);
                1
            }
            EDGE_PAUSE => pause_edge(cluster, shared, random),
            COORDINATOR_KILL => {
                cluster.coordinator.kill();
                breathe(random);
                cluster.coordinator.spawn();
                1
            }
            COORDINATOR_PAUSE => {
                cluster.coordinator.process().signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(random.random_range(200..2_500)));
                cluster.coordinator.process().signal(Signal::CONT);
                1
            }
            DATABASE_KILL => {
                cluster.postgres.crash();
                breathe(random);
                cluster.postgres.start_again();
                1
            }
            LOST_COMMIT => u32::from(tools.commits.lose_one(COMMIT_WITHIN)),
            RUNNING_CORRUPTION => corrupt_running(cluster, shared, random),
            DISK_FILL => fill_disk(tools.disk, random),
            OBJECT_CHANGE => change_object(plan, cluster, shared, random),
            NETWORK_CUT => cut_network(cluster, shared, random),
            CLOCK_SKEW => skew_clock(tools.clock, random),
            HANGING_ORIGIN => hang_other(shared, tools.other, random),
            _ => 0,
        };
        add(fault, injected);
    }
    Injected {
        counts: done
            .into_iter()
            .map(|(it, count)| (it.words, count))
            .collect(),
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
    let corrupted = corrupt_chunks(chunk_files(&edge.data), corrupt, random);
    edge.spawn();
    edge.wait_live();
    end(&shared.edges[number]);
    corrupted
}

fn pause_edge(cluster: &mut Cluster, shared: &Shared, random: &mut SmallRng) -> u32 {
    let number = random.random_range(0..cluster.edges.len());
    begin(&shared.edges[number]);
    let process = cluster.edges[number].process();
    process.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(random.random_range(100..1_500)));
    process.signal(Signal::CONT);
    end(&shared.edges[number]);
    1
}

/// Cuts the network silently, without an error: the coordinator's, PostgreSQL's, or that of an edge
/// toward its peers and readers.
fn cut_network(cluster: &Cluster, shared: &Shared, random: &mut SmallRng) -> u32 {
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
    1
}

/// Changes some bytes in at most `wanted` chunks that have any, and syncs nothing: the edge reads
/// from the page cache. The bytes are changed on new pages: what the killed edge sent with sendfile
/// is still in sockets as the old pages, and is correct.
fn corrupt_chunks(files: Vec<PathBuf>, wanted: u32, random: &mut SmallRng) -> u32 {
    let mut places: Vec<(PathBuf, u64)> = Vec::new();
    for path in files {
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

fn fill_disk(disk: Option<&SmallDisk>, random: &mut SmallRng) -> u32 {
    let Some(disk) = disk else { return 0 };
    disk.fill();
    std::thread::sleep(Duration::from_millis(random.random_range(200..1_000)));
    disk.give_back();
    1
}

fn change_object(plan: &Plan, cluster: &Cluster, shared: &Shared, random: &mut SmallRng) -> u32 {
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
    title.version.fetch_add(SETTLED, Ordering::SeqCst);
    1
}

/// A peer reads a whole new title, and one of its chunks changes on its disk; then a judged reader
/// asks another edge, which has it from nowhere but that peer and the origin.
fn corrupt_running(cluster: &Cluster, shared: &Shared, random: &mut SmallRng) -> u32 {
    // Its file is known by its size.
    let size = 2 * CHUNK + random.random_range(1..CHUNK);
    let seed = random.random_range(1..1 << 40);
    let title = Title {
        path: format!("/peer-{seed}.mp4"),
        size,
        version: AtomicU64::new(0),
        seed: AtomicU64::new(seed),
    };
    cluster
        .origin
        .put(&title.path, Object::generated(seed, size));
    let edge = &cluster.edges[CORRUPTED];
    let whole = Call::get(&format!("/{SOURCE}{}", title.path)).timeout(PREPARE_WITHIN);
    if let Ok(mut reply) = whole.open(edge.http) {
        let mut buffer = vec![0; 256 << 10];
        while reply.read(&mut buffer).is_ok_and(|count| count > 0) {}
    }
    // Until its rows tell the others.
    std::thread::sleep(RECORDED_AFTER);
    let is_it = |file: &PathBuf| file.metadata().is_ok_and(|it| it.len() == size);
    let files = chunk_files(&edge.data).into_iter().filter(is_it).collect();
    let corrupted = corrupt_chunks(files, 1, random);
    one_request(shared, &shared.edges[SKEWED], &title, None);
    corrupted
}

fn skew_clock(clock: Option<&Clock>, random: &mut SmallRng) -> u32 {
    let Some(clock) = clock else { return 0 };
    clock.set(if random.random() { 3_600 } else { -3_600 });
    std::thread::sleep(Duration::from_millis(random.random_range(1_500..4_000)));
    clock.set(0);
    1
}

/// Readers ask for objects of the other source, whose origin accepts and does not answer.
fn hang_other(shared: &Shared, other: &Origin, random: &mut SmallRng) -> u32 {
    let number: u64 = random.random();
    let readers: Vec<_> = (0..HANGING_READERS)
        .map(|reader| {
            let path = format!("/hangs-{number}-{reader}.mp4");
            let object = Object::generated(reader, MIB).latency(Duration::from_secs(30));
            other.put(&path, object);
            let edge = shared.edges[random.random_range(0..shared.edges.len())].address;
            let call = Call::get(&format!("/{OTHER}{path}")).timeout(HANGING_FOR);
            std::thread::spawn(move || call.open(edge).map(|_| ()))
        })
        .collect();
    for reader in readers {
        // Timed out, as it should.
        let _ = reader.join();
    }
    1
}
