//! After the storm: are the rows true, and does every byte kept have a row?

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Duration;

use super::inject::chunk_files;
use crate::cluster::Cluster;
use crate::wait::eventually;
use crate::{CHUNK, MIB, content};

const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Blocks of file-system metadata and partly written chunks may differ from the sum of rows by this much an edge.
const SLACK_BYTES: u64 = 4 * MIB;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Audit {
    pub rows: u64,
    pub rows_without_bytes: u64,
    /// Chunks' worth of disk that no row accounts for.
    pub bytes_without_rows: u64,
}

/// Waits until everything is ready and the table stands still, then compares each row with the file's bytes and the
/// disk used with the rows.
pub fn settle_and_compare(cluster: &mut Cluster) -> Audit {
    cluster.coordinator.wait_ready();
    for edge in &mut cluster.edges {
        edge.wait_ready();
    }
    let mut last = (String::new(), 0);
    let mut audit = Audit::default();
    eventually("rows and bytes settle", SETTLE_TIMEOUT, || {
        std::thread::sleep(Duration::from_millis(500));
        let count = cluster
            .postgres
            .query("SELECT count(*), coalesce(bit_xor(checksum), 0) FROM cache_chunks");
        let now = format!("{count:?}");
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        if last.1 < 4 {
            return None;
        }
        audit = compare(cluster);
        // Background fill may go on between two looks; a difference must stay to count.
        (audit.rows_without_bytes == 0 && audit.bytes_without_rows == 0 || last.1 > 20)
            .then_some(())
    });
    audit
}

fn compare(cluster: &Cluster) -> Audit {
    let rows = cluster.postgres.query(
        "SELECT e.id, e.etag, d.name, c.start_byte, c.end_byte FROM cache_chunks c
         JOIN cache_entries e ON e.id = c.entry_id JOIN edges d ON d.id = c.edge_id",
    );
    let mut audit = Audit {
        rows: rows.len() as u64,
        ..Audit::default()
    };
    let mut recorded: HashMap<&str, u64> = HashMap::new();
    let mut files: HashMap<String, Option<File>> = HashMap::new();
    for row in &rows {
        let [id, etag, edge, start, end] = row.as_slice() else {
            panic!("five columns")
        };
        let (start, end): (u64, u64) = (start.parse().unwrap(), end.parse().unwrap());
        *recorded.entry(edge).or_default() += end - start;
        let home = cluster
            .edges
            .iter()
            .find(|it| it.name == *edge)
            .expect("an edge of ours");
        let path = home
            .data
            .join("entries")
            .join(&id[..2])
            .join(format!("{id}.chunks"));
        let file = files
            .entry(format!("{edge}/{id}"))
            .or_insert_with(|| File::open(path).ok());
        let seed: u64 = etag
            .trim_matches('"')
            .split('-')
            .nth(1)
            .and_then(|it| it.parse().ok())
            .expect("an ETag of ours");
        let mut bytes = vec![0; (end - start) as usize];
        let whole = file
            .as_ref()
            .is_some_and(|it| it.read_exact_at(&mut bytes, start).is_ok());
        // Corrupted chunks that nobody asked for since may still be on disk: the scrub's work, found by their checksum.
        if !whole
            || (bytes != content::bytes(seed, start, end) && bytes.iter().all(|byte| *byte == 0))
        {
            audit.rows_without_bytes += 1;
        }
    }
    for edge in &cluster.edges {
        let used: u64 = chunk_files(&edge.data)
            .iter()
            .filter_map(|it| it.metadata().ok())
            .map(|it| it.blocks() * 512)
            .sum();
        let told = recorded.get(edge.name.as_str()).copied().unwrap_or(0);
        audit.bytes_without_rows += used
            .saturating_sub(told + told / 100 + SLACK_BYTES)
            .div_ceil(CHUNK);
    }
    audit
}
