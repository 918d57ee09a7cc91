//! `watch`: prints one JSON object per line for each change of an entry, until interrupted.

use std::time::Duration;

use chunkcache_proto::v1::{
    ChunksChanged, EntryName, WatchEntryRequest, watch_entry_response::Event,
};
use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use super::connection::Client;
use super::failure::{CliError, refused};
use super::names::entry_name;
use super::output::Printer;
use super::{entry, text, view};

/// A takeover lasts up to 5 s; ten attempts with this pause are more than enough.
pub(super) const MAX_ATTEMPTS: u32 = 10;
pub(super) const PAUSE: Duration = Duration::from_secs(1);

pub(super) fn command() -> Command {
    Command::new("watch")
        .about("Print changes of an entry as they happen, one JSON object a line")
        .after_help(entry::RANGES_HELP)
        .args([
            Arg::new("ENTRY")
                .required(true)
                .help("SOURCE/PATH, an entry's id, or a URL"),
            Arg::new("from-revision")
                .long("from-revision")
                .value_name("N")
                .value_parser(clap::value_parser!(u64))
                .help("Only changes after this revision [default: a snapshot, then changes]"),
        ])
}

pub(super) async fn run(
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let name = entry_name(text(arguments, "ENTRY")?)?;
    let mut revision = arguments
        .get_one("from-revision")
        .copied()
        .unwrap_or_default();
    let mut attempts = 0;
    // A watch that never began is an error at once; one that broke is resumed.
    let mut has_ever_begun = false;
    loop {
        let mut has_begun = false;
        let failure = match follow(&name, &mut revision, &mut has_begun, client, printer).await {
            Ok(()) => CliError::Refused("the coordinator ended the watch".to_owned()),
            Err(CliError::Refused(message)) => CliError::Refused(message),
            Err(other) => return Err(other),
        };
        has_ever_begun |= has_begun;
        attempts = if has_begun { 0 } else { attempts + 1 };
        if !has_ever_begun || attempts > MAX_ATTEMPTS {
            return Err(failure);
        }
        client.reset();
        tokio::time::sleep(PAUSE).await;
    }
}

/// Follows until the stream breaks. `revision` is the last one printed.
async fn follow(
    name: &EntryName,
    revision: &mut u64,
    has_begun: &mut bool,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let request = WatchEntryRequest {
        entry: Some(name.clone()),
        from_revision: *revision,
    };
    let mut stream = client
        .open(request, async |mut s, r| s.watch_entry(r).await)
        .await?;
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(status) => return Err(refused(&status, client.endpoint())),
        };
        *has_begun = true;
        *revision = message.revision.max(*revision);
        if let Some(event) = &message.event {
            printer.line(&line(message.revision, event))?;
        }
    }
}

pub(super) fn line(revision: u64, event: &Event) -> Value {
    let changed = |what: &str, changed: &ChunksChanged| {
        json!({
            "id": changed.entry_id,
            "revision": revision,
            "event": what,
            "edge": changed.edge,
            "ranges": view::ranges(&changed.ranges),
        })
    };
    match event {
        Event::Snapshot(snapshot) => {
            let mut object = view::entry(&snapshot.entry.clone().unwrap_or_default());
            object["revision"] = json!(revision);
            object["event"] = json!("snapshot");
            object["edges"] = snapshot.edges.iter().map(view::edge_ranges).collect();
            object
        }
        Event::Stored(chunks) => changed("stored", chunks),
        Event::Removed(chunks) => changed("removed", chunks),
        Event::ReplacedBy(entry) => {
            let mut object = view::entry(entry);
            object["revision"] = json!(revision);
            object["event"] = json!("replaced");
            object
        }
    }
}
