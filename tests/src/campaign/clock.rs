//! An edge whose clock can be set: libfaketime changes its time of day, and leaves the monotonic
//! clock as it is.

use std::path::{Path, PathBuf};

use crate::services::Edge;

/// Where distributions put the library.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];

pub struct Clock(PathBuf);

impl Clock {
    /// Before the edge's first start; none if the library is missing.
    pub fn prepare(directory: &Path, edge: &mut Edge) -> Option<Clock> {
        let library = LIBRARIES.iter().find(|it| Path::new(it).exists())?;
        let clock = Clock(directory.join("clock"));
        clock.set(0);
        let variables = [
            ("LD_PRELOAD", (*library).to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", clock.0.display().to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // Read the file anew each second.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        edge.environment.extend(variables);
        Some(clock)
    }

    /// So many seconds ahead, or behind.
    pub fn set(&self, seconds: i64) {
        std::fs::write(&self.0, format!("{seconds:+}\n")).expect("the directory is there");
    }
}
