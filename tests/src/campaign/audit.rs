//! After the faults: are the rows correct, and does every stored byte have a row?
//!
//! First, every row's bytes are requested from its edge, so that chunks that were corrupted on disk
//! and not read since are found, withdrawn and fetched again. Then, when nothing changes any
//! longer, each row must equal the origin's content byte by byte on the disk itself, and no chunk
//! of any file may have a byte on disk without a row.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::inject::chunk_files;
use crate::cluster::Cluster;
use crate::http::Call;
use crate::services::Edge;
use crate::wait::eventually;
use crate::{CHUNK, content};

/// A full campaign leaves gigabytes to compare.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Number of equal reads of the table before it counts as stable, and before a difference counts as
/// permanent.
const STILL_LOOKS: u32 = 4;
const FINAL_LOOKS: u32 = 30;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const COMPLAINTS: usize = 20;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Audit {
    pub rows: u64,
    /// Rows whose bytes on disk are wrong or missing.
    pub rows_without_bytes: u64,
    /// Chunks with any byte on disk that no row accounts for.
    pub bytes_without_rows: u64,
    /// The first few of both, in words.
    pub complaints: Vec<String>,
}

impl Audit {
    fn is_clean(&self) -> bool {
        self.rows_without_bytes == 0 && self.bytes_without_rows == 0
    }

    fn complain(&mut self, text: String) {
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(text);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    edge: String,
    entry: String,
    etag: String,
    start: u64,
    end: u64,
}

impl Row {
    /// The content's seed, from the ETag of a generated object.
    fn seed(&self) -> u64 {
        let number = self.etag.trim_matches('"').split('-').nth(1);
        number
            .and_then(|it| it.parse().ok())
            .expect("an ETag of ours")
    }
}

/// Waits until everything is ready and the table is stable, reads everything once, waits again, and
/// compares.
pub fn settle_and_compare(cluster: &mut Cluster) -> Audit {
    cluster.coordinator.wait_ready();
    for edge in &mut cluster.edges {
        edge.wait_ready();
    }
    stand_still(cluster, |_, _| true);
    for row in rows(cluster) {
        let edge = home(cluster, &row);
        // A corrupt chunk of an object that has changed cannot be fetched again: it must only be
        // gone.
        if let Ok(reply) = Call::get(&format!("/v1/entries/{}", row.entry))
            .range(row.start, row.end)
            .open(edge.http)
        {
            let _ = reply.finish();
        }
    }
    let mut audit = Audit::default();
    stand_still(cluster, |cluster, looks| {
        audit = compare(cluster);
        audit.is_clean() || looks >= FINAL_LOOKS
    });
    audit
}

/// Reads a table until it is stable over some reads and `is_enough` accepts it.
fn stand_still(cluster: &Cluster, mut is_enough: impl FnMut(&Cluster, u32) -> bool) {
    let (mut last, mut looks) = (Vec::new(), 0);
    eventually("rows and bytes settle", SETTLE_TIMEOUT, || {
        std::thread::sleep(LOOK_INTERVAL);
        let now = cluster
            .postgres
            .query("SELECT count(*), coalesce(bit_xor(checksum), 0) FROM cache_chunks");
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
        (looks >= STILL_LOOKS && is_enough(cluster, looks)).then_some(())
    });
}

fn rows(cluster: &Cluster) -> Vec<Row> {
    let rows = cluster.postgres.query(
        "SELECT d.name, e.id, e.etag, c.start_byte, c.end_byte FROM cache_chunks c
         JOIN cache_entries e ON e.id = c.entry_id JOIN edges d ON d.id = c.edge_id
           ORDER BY 1, 2, 4",
    );
    let row = |row: Vec<String>| {
        let [edge, entry, etag, start, end]: [String; 5] = row.try_into().expect("five columns");
        Row {
            edge,
            entry,
            etag,
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        }
    };
    rows.into_iter().map(row).collect()
}

fn home<'a>(cluster: &'a Cluster, row: &Row) -> &'a Edge {
    let edge = cluster.edges.iter().find(|it| it.name == row.edge);
    edge.expect("an edge of ours")
}

fn compare(cluster: &Cluster) -> Audit {
    let mut audit = Audit::default();
    let mut files: BTreeMap<(String, String), Vec<Row>> = BTreeMap::new();
    for row in rows(cluster) {
        let place = (row.edge.clone(), row.entry.clone());
        files.entry(place).or_default().push(row);
    }
    let mut recorded: BTreeSet<(String, String, u64)> = BTreeSet::new();
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for ((edge, id), rows) in &files {
        let data = &home(cluster, &rows[0]).data;
        let file = File::open(crate::services::data_file(data, id));
        for row in rows {
            audit.rows += 1;
            recorded.insert((edge.clone(), id.clone(), row.start / CHUNK));
            let length = (row.end - row.start) as usize;
            bytes.resize(length, 0);
            expected.resize(length, 0);
            content::fill(row.seed(), row.start, &mut expected);
            let is_there = file
                .as_ref()
                .is_ok_and(|it| it.read_exact_at(&mut bytes, row.start).is_ok());
            if !is_there || bytes != expected {
                audit.rows_without_bytes += 1;
                audit.complain(format!("no bytes for {row:?}"));
            }
        }
    }
    for edge in &cluster.edges {
        for path in chunk_files(&edge.data) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let id = name.split('.').next().unwrap_or_default().to_owned();
            for chunk in chunks_with_data(&path) {
                if !recorded.contains(&(edge.name.clone(), id.clone(), chunk)) {
                    audit.bytes_without_rows += 1;
                    audit.complain(format!("no row for chunk {chunk} of {}", path.display()));
                }
            }
        }
    }
    audit
}

/// Chunks of a sparse file that are not entirely a hole.
pub fn chunks_with_data(path: &std::path::Path) -> Vec<u64> {
    use rustix::fs::{SeekFrom, seek};
    let Ok(file) = File::open(path) else {
        return Vec::new();
    };
    let mut chunks = Vec::new();
    let mut at = 0;
    while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
        chunks.push(data / CHUNK);
        at = (data / CHUNK + 1) * CHUNK;
    }
    chunks
}
