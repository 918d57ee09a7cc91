//! `entry`: the cached objects, and which edges hold them.

use chunkcache_proto::v1::{
    EntryDetail, EntryName, GetEntryRequest, InvalidateEntryRequest, ListEntriesRequest,
    OpenEntryRequest, PinEntryRequest,
};
use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};
use service_kit::config::human_bytes;

use super::connection::Client;
use super::failure::CliError;
use super::names::entry_name;
use super::output::{Printer, Rows, or_dash, warn_unconfirmed, yes};
use super::{is_set, switch, text, unknown_verb, verb, view};

/// Entries in one page; the server's own limit.
const PAGE_SIZE: u32 = 1000;
/// Ranges of one edge shown in a table; JSON has all.
const MAX_RANGES_SHOWN: usize = 20;

pub(super) const RANGES_HELP: &str = "In JSON, `ranges` are objects {\"start\", \"end\"} in bytes \
    of the object: `start` is the first byte, `end` is one past the last (exclusive). In tables, \
    ranges are written first-last with both ends inclusive, as --range takes them.";

pub(super) fn command() -> Command {
    let name = || {
        Arg::new("ENTRY")
            .required(true)
            .help("SOURCE/PATH, an entry's id, or a URL inside a source")
    };
    Command::new("entry").about("Cached objects").subcommand_required(true).subcommands([
        Command::new("list")
            .about("All entries, or those of one source")
            .after_help(RANGES_HELP)
            .arg(Arg::new("source").long("source").value_name("NAME").help("Only of this source")),
        Command::new("show")
            .about("One entry and the ranges each edge holds")
            .after_help(RANGES_HELP)
            .arg(name()),
        Command::new("invalidate")
            .about("Answer new requests from the origin again")
            .args([name(), switch("purge", "Also drop rows and bytes on every edge")]),
        Command::new("pin").about("Evict it last").arg(name()),
        Command::new("unpin").about("Evict it as any other").arg(name()),
        Command::new("open").about("The URL to give to a player, on the best edge").args([
            name(),
            Arg::new("position")
                .long("position")
                .value_name("BYTES")
                .value_parser(service_kit::config::parse_bytes)
                .help("Where playing begins; edges that hold that part are preferred [default: 0]"),
        ]),
    ])
}

pub(super) async fn run(
    matches: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let (verb, arguments) = verb(matches)?;
    if verb == "list" {
        return list(arguments, client, printer).await;
    }
    let written = text(arguments, "ENTRY")?;
    let name = entry_name(written)?;
    match verb {
        "show" => show(name, client, printer).await,
        "pin" | "unpin" => {
            let request = PinEntryRequest {
                entry: Some(name.clone()),
                pinned: verb == "pin",
            };
            client
                .call(request, async |mut s, r| s.pin_entry(r).await)
                .await?;
            show(name, client, printer).await
        }
        "open" => {
            let position = arguments.get_one("position").copied().unwrap_or_default();
            open(name, position, client, printer).await
        }
        "invalidate" => {
            let purge = is_set(arguments, "purge");
            let request = InvalidateEntryRequest {
                entry: Some(name),
                purge,
            };
            let answer = client
                .call(request, async |mut s, r| s.invalidate_entry(r).await)
                .await?;
            warn_unconfirmed(&answer.unconfirmed_edges);
            let json = json!({
                "name": written,
                "invalidated": true,
                "purged": purge,
                "confirmed_edges": answer.confirmed_edges,
                "unconfirmed_edges": answer.unconfirmed_edges,
            });
            let done = if purge {
                "invalidated and purged"
            } else {
                "invalidated"
            };
            printer.result(&json, || {
                format!(
                    "{written} {done}; confirmed by: {}\n",
                    or_dash(&answer.confirmed_edges.join(", "))
                )
            })
        }
        other => Err(unknown_verb(other)),
    }
}

pub(super) async fn detail(name: EntryName, client: &mut Client) -> Result<EntryDetail, CliError> {
    let request = GetEntryRequest { entry: Some(name) };
    let answer = client
        .call(request, async |mut s, r| s.get_entry(r).await)
        .await?;
    Ok(answer.entry.unwrap_or_default())
}

async fn show(
    name: EntryName,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let detail = detail(name, client).await?;
    printer.result(&view::entry_detail(&detail), || fields(&detail))
}

async fn open(
    name: EntryName,
    position: u64,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let request = OpenEntryRequest {
        entry: Some(name),
        position,
    };
    let answer = client
        .call(request, async |mut s, r| s.open_entry(r).await)
        .await?;
    let mut json = view::entry(&answer.entry.clone().unwrap_or_default());
    json["play_url"] = json!(answer.play_url);
    json["entry_url"] = json!(answer.entry_url);
    json["edge"] = json!(answer.edge);
    json["reason"] = json!(answer.reason);
    printer.result(&json, || {
        Rows::of_fields([
            ("play url", answer.play_url.clone()),
            ("entry url", answer.entry_url.clone()),
            ("edge", answer.edge.clone()),
            ("reason", or_dash(&answer.reason)),
        ])
        .render()
    })
}

async fn list(
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let source = arguments
        .get_one::<String>("source")
        .cloned()
        .unwrap_or_default();
    let mut entries: Vec<EntryDetail> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            source: source.clone(),
            page_size: PAGE_SIZE,
            page_token: page_token.clone(),
        };
        let page = client
            .call(request, async |mut s, r| s.list_entries(r).await)
            .await?;
        entries.extend(page.entries);
        // A token that does not advance would loop for ever.
        if page.next_page_token.is_empty() || page.next_page_token == page_token {
            break;
        }
        page_token = page.next_page_token;
    }
    let json: Value = entries.iter().map(view::entry_detail).collect();
    printer.result(&json, || table(&entries))
}

pub(super) fn table(entries: &[EntryDetail]) -> String {
    let mut rows = Rows::new(&[
        "id", "source", "path", "size", "complete", "pinned", "edges",
    ]);
    for detail in entries {
        let entry = detail.entry.clone().unwrap_or_default();
        let edges: Vec<String> = detail
            .edges
            .iter()
            .map(|held| format!("{} {}", held.edge, percent(held.bytes, entry.size)))
            .collect();
        rows.push([
            entry.id.clone(),
            entry.key.clone().unwrap_or_default().source,
            written_path(&entry),
            human_bytes(entry.size),
            yes(detail.complete),
            yes(entry.pinned),
            or_dash(&edges.join(", ")),
        ]);
    }
    rows.render()
}

pub(super) fn fields(detail: &EntryDetail) -> String {
    let entry = detail.entry.clone().unwrap_or_default();
    let mut rows = Rows::of_fields([
        ("id", entry.id.clone()),
        ("source", entry.key.clone().unwrap_or_default().source),
        ("path", written_path(&entry)),
        (
            "size",
            format!("{} ({} bytes)", human_bytes(entry.size), entry.size),
        ),
        ("etag", or_dash(&entry.etag)),
        ("content type", or_dash(&entry.content_type)),
        ("chunk size", human_bytes(entry.chunk_size.into())),
        ("pinned", yes(entry.pinned)),
        ("complete", yes(detail.complete)),
    ]);
    for held in &detail.edges {
        let shown: Vec<String> = held
            .ranges
            .iter()
            .take(MAX_RANGES_SHOWN)
            .map(|range| format!("{}-{}", range.start, range.end.saturating_sub(1)))
            .collect();
        let more = match held.ranges.len().saturating_sub(MAX_RANGES_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let held_part = percent(held.bytes, entry.size);
        let ranges = or_dash(&shown.join(" "));
        rows.field(
            &format!("on {}", held.edge),
            format!("{held_part}: {ranges}{more}"),
        );
    }
    rows.render()
}

fn written_path(entry: &chunkcache_proto::v1::Entry) -> String {
    let key = entry.key.clone().unwrap_or_default();
    if key.query.is_empty() {
        key.path
    } else {
        format!("{}?{}", key.path, key.query)
    }
}

/// Rounded down: 100 % means all of it.
pub(super) fn percent(part: u64, whole: u64) -> String {
    match u128::from(part) * 100 {
        _ if whole == 0 => "100%".to_owned(),
        scaled => format!("{}%", scaled / u128::from(whole)),
    }
}
