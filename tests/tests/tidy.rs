//! Checks the code against ARCHITECTURE.md: allowed dependencies of folders, length of files, and
//! forbidden words. Reads the sources as text; runs in milliseconds.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A folder and the words its sources may not use, with the reason printed on failure.
struct Folder {
    folder: &'static str,
    forbidden: &'static [&'static str],
    why: &'static str,
}

const FOLDERS: &[Folder] = &[
    Folder {
        folder: "crates/scheduler/src",
        forbidden: &["SystemTime", "Instant::now"],
        why: "the scheduler is pure: time and randomness are arguments",
    },
    Folder {
        folder: "cache-coordinator/src/access",
        forbidden: &[
            "tonic",
            "axum",
            "crate::db",
            "crate::sessions",
            "crate::service",
            "crate::grpc",
            "crate::http",
        ],
        why: "who may do what is decided before, and without, what is done",
    },
    Folder {
        folder: "cache-coordinator/src/service",
        forbidden: &["tokio_postgres", "axum::", "SELECT ", "INSERT "],
        why: "use cases know ports, not SQL or HTTP",
    },
    Folder {
        folder: "cache-coordinator/src/db",
        forbidden: &[
            "tonic::",
            "axum::",
            "scheduler",
            "crate::sessions",
            "crate::grpc",
        ],
        why: "`db` knows rows, not the wire and not the plan",
    },
    Folder {
        folder: "cache-coordinator/src/events",
        forbidden: &["tonic::", "axum::", "scheduler", "crate::sessions"],
        why: "the change log knows rows, not the wire and not the plan",
    },
    Folder {
        folder: "cache-coordinator/src/grpc",
        forbidden: &["tokio_postgres", "SELECT ", "INSERT "],
        why: "only translation and error mapping here",
    },
    Folder {
        folder: "cache-coordinator/src/sessions",
        forbidden: &["tokio_postgres", "SELECT ", "INSERT "],
        why: "SQL is in the database code alone",
    },
    Folder {
        folder: "cache-coordinator/src/cli",
        forbidden: &[
            "tokio_postgres",
            "crate::db",
            "crate::sessions",
            "crate::service",
            "scheduler::",
        ],
        why: "the command line is a gRPC client like any other",
    },
    Folder {
        folder: "cache-edge/src/core",
        forbidden: &[
            "tokio::",
            "hyper::",
            "tonic::",
            "std::fs",
            "SystemTime::now",
            "Instant::now",
            "chunk_store::",
            "crate::server",
            "crate::upstream",
            "crate::control",
            "crate::readers",
            "crate::resolve",
        ],
        why: "the core is pure: time and randomness are arguments",
    },
    Folder {
        folder: "cache-edge/src/server",
        forbidden: &[
            "tonic::",
            "crate::upstream",
            "crate::control",
            "crate::readers",
        ],
        why: "the server knows the ports in resolve, not what is behind them",
    },
    Folder {
        folder: "cache-edge/src/upstream",
        forbidden: &["tonic::", "crate::server", "crate::control", "crate::fetch"],
        why: "the HTTP client knows neither our own server nor the session",
    },
    Folder {
        folder: "cache-edge/src/readers",
        forbidden: &["hyper::", "tonic::", "crate::server"],
        why: "who waits for which bytes has nothing to do with HTTP",
    },
    Folder {
        folder: "proto/src",
        forbidden: &["tokio", "std::fs", "SystemTime", "Instant::now"],
        why: "what both sides agree on knows no time and no I/O",
    },
];

/// A file longer than this is too much for one reader.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rust_sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(
        !found.is_empty(),
        "{} has no sources: is the folder gone?",
        folder.display()
    );
    found
}

/// Code lines above the unit tests, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn folders_do_not_know_what_they_may_not() {
    let mut problems = Vec::new();
    for rule in FOLDERS {
        for path in rust_sources(&root().join(rule.folder)) {
            let text = fs::read_to_string(&path).expect("UTF-8 sources");
            for (number, line) in code_lines(&text) {
                for word in rule.forbidden.iter().filter(|word| line.contains(**word)) {
                    problems.push(format!(
                        "{}:{}: {word:?}: {}",
                        path.display(),
                        number + 1,
                        rule.why
                    ));
                }
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_folder_says_what_it_is() {
    for rule in FOLDERS {
        let folder = root().join(rule.folder);
        let main = ["mod.rs", "lib.rs"]
            .iter()
            .map(|f| folder.join(f))
            .find(|p| p.exists());
        let main = main.unwrap_or_else(|| panic!("{} has no mod.rs", rule.folder));
        let text = fs::read_to_string(&main).expect("UTF-8 sources");
        assert!(
            text.starts_with("//!"),
            "{} does not open with what it does",
            main.display()
        );
    }
}

#[test]
fn files_are_read_in_one_sitting() {
    let mut long = Vec::new();
    for folder in [
        "proto/src",
        "crates",
        "cache-coordinator/src",
        "cache-edge/src",
        "tests/src",
    ] {
        for path in rust_sources(&root().join(folder)) {
            let lines = fs::read_to_string(&path)
                .expect("UTF-8 sources")
                .lines()
                .count();
            if lines > MAX_LINES {
                long.push(format!("{}: {lines} lines", path.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "over {MAX_LINES} lines:\n{}",
        long.join("\n")
    );
}

#[test]
fn sql_stands_in_db_alone() {
    for folder in [
        "cache-coordinator/src/service",
        "cache-coordinator/src/sessions",
        "cache-coordinator/src/grpc",
        "cache-coordinator/src/http",
        "cache-edge/src",
    ] {
        for path in rust_sources(&root().join(folder)) {
            let text = fs::read_to_string(&path).expect("UTF-8 sources");
            for (number, line) in code_lines(&text) {
                assert!(
                    !line.contains(" FROM cache_"),
                    "{}:{}: SQL outside the database code",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_its_documented_places_only() {
    let allowed = [
        "crates/chunk-store/src/cachestat.rs",
        "cache-edge/src/system_calls.rs",
    ];
    for folder in [
        "proto/src",
        "crates",
        "cache-coordinator/src",
        "cache-edge/src",
    ] {
        for path in rust_sources(&root().join(folder)) {
            let relative = path
                .strip_prefix(root())
                .unwrap_or(&path)
                .to_string_lossy()
                .replace("/../", "/");
            let text = fs::read_to_string(&path).expect("UTF-8 sources");
            let uses = code_lines(&text).any(|(_, line)| {
                line.contains("unsafe {")
                    || line.contains("unsafe impl")
                    || line.contains("unsafe fn")
            });
            assert!(
                !uses || allowed.iter().any(|a| relative.ends_with(a)),
                "{relative} uses unsafe; allowed: {allowed:?}"
            );
        }
    }
}

/// The table of rules names its proofs: each exists.
#[test]
fn the_proofs_that_docs_name_are_there() {
    let folders = [
        "tests/tests",
        "cache-edge/tests",
        "cache-edge/src",
        "crates",
    ];
    let sources: Vec<_> = folders
        .iter()
        .flat_map(|folder| rust_sources(&root().join(folder)))
        .collect();
    let texts: Vec<String> = sources
        .iter()
        .map(|path| fs::read_to_string(path).expect("UTF-8 sources"))
        .collect();
    let is_there = |name: &str| {
        let function = format!("fn {name}(");
        if name.ends_with(".rs") {
            sources.iter().any(|path| path.ends_with(name))
        } else if name.contains('/') {
            root().join(name).exists()
        } else {
            texts.iter().any(|text| text.contains(&function))
        }
    };
    let page = fs::read_to_string(root().join("docs/http.md")).expect("docs/http.md");
    let mut missing = Vec::new();
    let mut checked = 0;
    for line in page.lines() {
        let is_rule = |rest: &str| !rest.starts_with("---") && !rest.starts_with(" shown by");
        let proofs = if line.starts_with('|') {
            let row = line.trim_end_matches('|');
            row.rsplit_once('|').map(|(_, last)| last)
        } else {
            let sentence = line.split_once("hown by ").map(|(_, rest)| rest);
            sentence.map(|rest| rest.split_once(". ").map_or(rest, |(sentence, _)| sentence))
        };
        let Some(proofs) = proofs.filter(|rest| is_rule(rest)) else {
            continue;
        };
        let names: Vec<&str> = proofs.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !proofs.contains("same") {
            missing.push(format!("no proof is named in: {line}"));
        }
        checked += names.len();
        missing.extend(
            names
                .into_iter()
                .filter(|name| !is_there(name))
                .map(|name| format!("{name} is not there: {line}")),
        );
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(checked > 40, "only {checked} proofs were found");
}
