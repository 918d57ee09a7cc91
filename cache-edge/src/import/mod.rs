//! `cache-edge import`: adopts another cache's complete files into the store, after checking them
//! against the origin.
//!
//! The edge must not be running, because a store has only one user. For each file the origin is
//! asked for one byte (to get validator and size); the file is compared, then copied. When the edge
//! starts, it reports the entries to the coordinator, which adds the rows.

mod compare;
mod files;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use chunkcache_proto::v1;
use clap::{Arg, ArgMatches, Command, value_parser};
use http::HeaderMap;
use serde_json::json;
use service_kit::config;

use self::compare::Comparison;
use crate::{
    app::{self, Edge},
    options::Options,
    resolve::{
        ports::{FirstBytes, ObjectName, ObjectRequest},
        probe::{self, Finding},
    },
    upstream::Source,
    worker_pool::Workers,
};
use chunk_store::EntryFile;
use http_rules::path::{self, Target};

/// How a file is compared with its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The size, and this many samples.
    Sample,
    /// Every byte: the whole object is read from the origin once.
    Whole,
}

/// The command, with every option of `serve`; only the name, the directory and the store's options
/// are used.
#[must_use]
pub fn command() -> Command {
    config::command::<Options>("import")
        .about(
            "Adopt whole files of another cache, checked against their origin; the edge must not \
             run",
        )
        .args([
            Arg::new("source")
                .long("source")
                .value_name("NAME")
                .required(true)
                .help(
                    "The source they are of; this data directory must know it from an earlier \
                 run",
                ),
            Arg::new("from")
                .long("from")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Where the files lie, by their paths below the source's base URL"),
            Arg::new("check")
                .long("check")
                .value_name("HOW")
                .value_parser(["sample", "whole"])
                .default_value("sample")
                .help(
                    "sample: size and 16 pieces of 64 KiB; whole: each byte, read from the \
                 origin once",
                ),
            Arg::new("output")
                .long("output")
                .value_name("FORMAT")
                .value_parser(["table", "json"])
                .default_value("table")
                .help("A line a file, or a JSON array"),
        ])
}

/// Exit status 0: all files are adopted, now or earlier; 1: some are not; 2: usage.
pub fn run(arguments: &ArgMatches) -> ExitCode {
    let options = match config::load::<Options>(arguments) {
        Ok(options) => options,
        Err(error) => return error.report(),
    };
    match import(&options, arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cache-edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The outcome for one file.
struct Outcome {
    path: String,
    bytes: u64,
    /// Why it was not adopted.
    refused: Option<String>,
}

fn import(options: &Options, arguments: &ArgMatches) -> anyhow::Result<bool> {
    let text = |name: &str| arguments.get_one::<String>(name).map(String::as_str);
    let name = text("source").unwrap_or_default();
    let root = arguments.get_one::<PathBuf>("from").cloned();
    let root = root.unwrap_or_default();
    let check = match text("check") {
        Some("whole") => Check::Whole,
        _ => Check::Sample,
    };
    let is_json = text("output") == Some("json");
    let files = files::below(&root)?;
    let fetch = app::fetch_threads(options.max_downloads as usize)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let importer = runtime.block_on(Importer::open(options, name, check, fetch.workers()))?;
    let mut outcomes = Vec::new();
    for file in files {
        let outcome = runtime.block_on(importer.adopt(&root, &file));
        let outcome = Outcome {
            path: format!("{name}/{}", file.path),
            bytes: *outcome.as_ref().unwrap_or(&0),
            refused: outcome.err().map(|error| format!("{error:#}")),
        };
        if !is_json {
            say(&outcome)?;
        }
        outcomes.push(outcome);
    }
    importer.close();
    if is_json {
        let all: Vec<_> = outcomes
            .iter()
            .map(|it| {
                json!({
                    "name": it.path, "bytes": it.bytes,
                    "imported": it.refused.is_none(), "reason": it.refused,
                })
            })
            .collect();
        writeln!(std::io::stdout(), "{}", serde_json::Value::from(all))?;
    }
    Ok(outcomes.iter().all(|outcome| outcome.refused.is_none()))
}

fn say(outcome: &Outcome) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    match &outcome.refused {
        None => writeln!(out, "{}  imported, {} bytes", outcome.path, outcome.bytes),
        Some(why) => writeln!(out, "{}  left out: {why}", outcome.path),
    }
}

/// An edge that does not serve.
struct Importer {
    edge: Edge,
    source: Arc<Source>,
    check: Check,
}

impl Importer {
    async fn open(
        options: &Options,
        source: &str,
        check: Check,
        fetch: &Workers,
    ) -> anyhow::Result<Self> {
        let store = app::open_store(options).await?;
        let edge = Edge::build(options, store, fetch.clone())?;
        let known = edge.catalogue.get(source);
        let source = known.with_context(|| {
            format!(
                "{} knows no source {source:?}: start the edge once with its coordinator, \
             which tells it",
                options.data_dir.display()
            )
        })?;
        Ok(Self {
            edge,
            source,
            check,
        })
    }

    /// Syncs a last time.
    fn close(self) {
        self.edge.downloads.close();
        self.edge.store.close();
    }

    /// Adopts a file; returns its size.
    async fn adopt(&self, root: &Path, found: &files::FoundFile) -> anyhow::Result<u64> {
        let path = root.join(&found.file);
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        let before = file.metadata()?;
        let entry = self.entry(&found.path).await?;
        anyhow::ensure!(
            before.len() == entry.size,
            "it has {} bytes, and the origin's object {}",
            before.len(),
            entry.size
        );
        let target = self.edge.objects.entry_file(&entry)?;
        let mut comparison = Comparison::new(self.check, &self.edge, &self.source, &entry);
        comparison.before(&file).await?;
        let geometry = target.geometry();
        let mut buffer = vec![0; geometry.chunk_size() as usize];
        for chunk in 0..geometry.chunk_count() {
            let range = geometry.chunk_range(chunk);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            file.read_exact(bytes)?;
            comparison.while_copying(range.start, bytes).await?;
            self.put(&target, chunk, range.start, bytes)?;
        }
        let after = file.metadata()?;
        if (after.len(), after.modified()?) != (before.len(), before.modified()?) {
            self.edge.store.remove_entry(&target.id());
            anyhow::bail!("it changed while it was read");
        }
        Ok(entry.size)
    }

    /// Describes the origin's present object at the path, by requesting one byte.
    async fn entry(&self, below: &str) -> anyhow::Result<v1::Entry> {
        let target = path::parse(&format!("/{}/{below}", self.source.name()), None)?;
        let Target::Key {
            source,
            path,
            query,
        } = target
        else {
            anyhow::bail!("it has no place in the source");
        };
        let request = ObjectRequest {
            name: ObjectName::Key {
                source: source.clone(),
                path: path.clone(),
                query: query.clone(),
            },
            past_the_cache: false,
            asker: None,
            ahead: None,
            first_bytes: FirstBytes::From {
                start: 0,
                end: Some(1),
            },
            only_if_cached: false,
            headers: HeaderMap::new(),
            head_only: true,
        };
        let key = v1::Key {
            source,
            path,
            query,
            variant: String::new(),
        };
        let found = probe::probe(&self.edge.objects, &self.source, &key, &request).await;
        match found.map_err(|error| anyhow::anyhow!("{error}"))? {
            Finding::Object(bound, _) => Ok(bound.entry.clone()),
            Finding::Negative(status) => anyhow::bail!("the origin answers {status}"),
            Finding::Whole { .. } | Finding::Kept(_) => {
                anyhow::bail!("it has no validator or no length, and is not stored in parts")
            }
            Finding::Unstorable(why) => {
                anyhow::bail!("the origin's answer can not be stored: {why}")
            }
        }
    }

    fn put(
        &self,
        target: &Arc<EntryFile>,
        chunk: u32,
        offset: u64,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        // `None`: it is already present, from an earlier import or a player.
        let Some(incoming_chunk) = self.edge.incoming().of(target).incoming_chunk(chunk) else {
            return Ok(());
        };
        incoming_chunk.write(offset, bytes)?;
        self.edge.incoming().of(target).landed(chunk);
        Ok(())
    }
}
