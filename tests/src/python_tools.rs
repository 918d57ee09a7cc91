//! Python programs that `tests/python-tools` installs.

use std::path::{Path, PathBuf};

/// A program of them. None, with the reason printed, if they are not installed.
pub fn python_tool(name: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let program = target.join("python-tools/bin").join(name);
    if program.exists() {
        return Some(program);
    }
    eprintln!("skipped: {name} is not installed (tests/python-tools)");
    None
}
