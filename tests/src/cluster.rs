//! The whole system: an origin, PostgreSQL, a coordinator and edges, in their own directory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::origin::{Object, Origin};
use crate::postgres::{Durability, Postgres};
use crate::services::{Coordinator, Edge};
use crate::wait::eventually;

/// The source every cluster has; its base URL is the origin's root.
pub const SOURCE: &str = "media";
/// Time from the last byte on disk to its row: synced in groups, committed in batches.
const RECORD_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
pub struct ClusterOptions {
    pub edges: usize,
    pub edge_arguments: Vec<&'static str>,
    pub coordinator_arguments: Vec<&'static str>,
}

/// Fields are dropped in this order: dependents first.
#[derive(Debug)]
pub struct Cluster {
    pub edges: Vec<Edge>,
    pub coordinator: Coordinator,
    pub postgres: Postgres,
    pub origin: Origin,
    pub directory: TempDir,
}

impl Cluster {
    /// One edge without background fill, so that only the test's own requests cause fetches.
    pub fn start() -> Cluster {
        Cluster::with_edges(1)
    }

    pub fn with_edges(edges: usize) -> Cluster {
        Cluster::start_with(ClusterOptions {
            edges,
            edge_arguments: vec!["--background-fill=false"],
            ..ClusterOptions::default()
        })
    }

    pub fn start_with(options: ClusterOptions) -> Cluster {
        let mut cluster = Cluster::prepare(options);
        cluster.start_prepared();
        cluster
    }

    /// Starts everything but the origin, in order, and adds the source.
    pub fn start_prepared(&mut self) {
        self.postgres.start_again();
        self.coordinator.start();
        self.add_source(SOURCE);
        for edge in &mut self.edges {
            edge.spawn();
        }
        for edge in &mut self.edges {
            edge.wait_ready();
        }
    }

    /// Prepares everything and starts only the origin.
    pub fn prepare(options: ClusterOptions) -> Cluster {
        let directory = directory();
        let path = directory.path();
        let postgres = Postgres::prepare(path, Durability::NoFsync);
        let coordinator = Coordinator::prepare(
            "coordinator",
            path,
            &postgres.url(),
            &options.coordinator_arguments,
        );
        let url = format!("http://{}", coordinator.grpc);
        let edges = (0..options.edges)
            .map(|index| {
                let name = format!("edge-{}", char::from(b'a' + index as u8));
                Edge::prepare(&name, path, &url, &options.edge_arguments)
            })
            .collect();
        Cluster {
            edges,
            coordinator,
            postgres,
            origin: Origin::start(),
            directory,
        }
    }

    pub fn edge(&self) -> &Edge {
        &self.edges[0]
    }

    pub fn edge_mut(&mut self) -> &mut Edge {
        &mut self.edges[0]
    }

    /// Registers the origin under this name.
    pub fn add_source(&self, name: &str) {
        self.add_source_with(name, &[]);
    }

    pub fn add_source_with(&self, name: &str, options: &[&str]) {
        let url = self.origin.url();
        let arguments = [&["source", "add", name, &url], options].concat();
        let output = self.coordinator.cli(&arguments);
        assert!(
            output.status.success(),
            "source add: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Puts an object at the origin; returns its target at an edge.
    pub fn put(&self, path: &str, object: Object) -> String {
        self.origin.put(path, object);
        format!("/{SOURCE}{path}")
    }

    /// Stops every process but the origin in order, and starts them again.
    pub fn restart(&mut self) {
        for edge in &mut self.edges {
            assert_eq!(
                edge.terminate().code(),
                Some(0),
                "an edge drains and exits 0"
            );
        }
        assert_eq!(self.coordinator.terminate().code(), Some(0));
        self.postgres.stop();
        self.postgres.start_again();
        self.coordinator.start();
        for edge in &mut self.edges {
            edge.start();
        }
    }

    /// Byte ranges of the path's entries that an edge holds according to the table, joined,
    /// ascending.
    pub fn recorded(&self, path: &str, edge: &str) -> Vec<(u64, u64)> {
        let rows = self.postgres.query(&format!(
            "SELECT c.start_byte, c.end_byte FROM cache_chunks c
             JOIN cache_entries e ON e.id = c.entry_id JOIN edges d ON d.id = c.edge_id
             WHERE ltrim(e.path, '/') = ltrim('{path}', '/') AND d.name = '{edge}' ORDER BY 1, 2"
        ));
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for row in rows {
            let (start, end) = (row[0].parse().unwrap(), row[1].parse().unwrap());
            match ranges.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                Some(last) => {
                    assert!(last.1 < start, "rows overlap: {last:?} and {start}..{end}");
                    ranges.push((start, end));
                }
                None => ranges.push((start, end)),
            }
        }
        ranges
    }

    pub fn recorded_bytes(&self, path: &str, edge: &str) -> u64 {
        let ranges = self.recorded(path, edge);
        ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Waits until the table covers exactly this on the first edge.
    #[track_caller]
    pub fn wait_recorded(&self, path: &str, expected: &[(u64, u64)]) {
        let edge = self.edges[0].name.clone();
        self.wait_recorded_on(path, &edge, expected);
    }

    #[track_caller]
    pub fn wait_recorded_on(&self, path: &str, edge: &str, expected: &[(u64, u64)]) {
        let what = format!("rows of {path} on {edge} cover {expected:?}");
        eventually(&what, RECORD_TIMEOUT, || {
            let recorded = self.recorded(path, edge);
            (recorded == expected).then_some(())
        });
    }

    /// Sum of all rows of an edge.
    pub fn total_recorded(&self, edge: &str) -> u64 {
        let sql = format!(
            "SELECT coalesce(sum(end_byte - start_byte), 0) FROM cache_chunks c
             JOIN edges d ON d.id = c.edge_id WHERE d.name = '{edge}'"
        );
        self.postgres.number(&sql) as u64
    }
}

/// Directory shared by the runs of this user's tests: locks, reserved ports, a database template.
pub fn shared_directory() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let path = std::env::temp_dir().join(format!("chunkcache-tests-{user}"));
    fs::create_dir_all(&path).expect("the directory tests share");
    path
}

/// A directory that other users may enter: PostgreSQL runs as its own. `CHUNKCACHE_KEEP` in the
/// environment keeps it for inspection.
pub fn directory() -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix("chunkcache-test-")
        .disable_cleanup(std::env::var_os("CHUNKCACHE_KEEP").is_some())
        .tempdir()
        .expect("a temporary directory");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), open).expect("permissions of a temporary directory");
    directory
}
