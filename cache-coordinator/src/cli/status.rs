//! `status` and `explain`: the state of the cluster, and the reasons for the state of a chunk.

use chunkcache_proto::Level;
use chunkcache_proto::v1::{
    ExplainChunkRequest, ExplainChunkResponse, GetStatusRequest, GetStatusResponse,
};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use service_kit::config::human_bytes;

use super::connection::Client;
use super::failure::CliError;
use super::names::entry_name;
use super::output::{Printer, Rows, or_dash, yes};
use super::{text, view};

pub(super) fn command() -> Command {
    Command::new("status").about("The cluster at a glance")
}

pub(super) fn explain_command() -> Command {
    Command::new("explain")
        .about("The present scheduling decision on one chunk")
        .args([
            Arg::new("ENTRY")
                .required(true)
                .help("SOURCE/PATH, an entry's id, or a URL"),
            Arg::new("chunk")
                .long("chunk")
                .value_name("N")
                .required(true)
                .value_parser(value_parser!(u32))
                .help("The chunk's number: byte offset divided by the entry's chunk size, from 0"),
        ])
}

pub(super) async fn run(client: &mut Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let status = client
        .call(GetStatusRequest {}, async |mut s, r| s.get_status(r).await)
        .await?;
    printer.result(&status_json(&status, client.endpoint()), || {
        status_fields(&status)
    })
}

pub(super) async fn explain(
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let entry = entry_name(text(arguments, "ENTRY")?)?;
    let chunk = arguments.get_one("chunk").copied().unwrap_or_default();
    let request = ExplainChunkRequest {
        entry: Some(entry),
        chunk,
    };
    let answer = client
        .call(request, async |mut s, r| s.explain_chunk(r).await)
        .await?;
    printer.result(&explain_json(&answer), || explain_text(&answer))
}

fn by_level(counts: &[u64]) -> Value {
    let levels = Level::ALL.into_iter().zip(counts);
    levels
        .map(|(level, count)| (level.label().to_owned(), json!(count)))
        .collect()
}

pub(super) fn status_json(status: &GetStatusResponse, endpoint: &str) -> Value {
    json!({
        "name": endpoint,
        "version": status.version,
        "leader": status.leader,
        "is_leader": status.is_leader,
        "database_ready": status.database_ready,
        "revision": status.revision,
        "edges_active": status.edges_active,
        "edges_total": status.edges_total,
        "entries": status.entries,
        "chunks": status.chunks,
        "bytes_cached": status.bytes_cached,
        "readers": status.readers,
        "jobs_running": status.jobs_running,
        "queued_by_level": by_level(&status.queued_by_level),
        "running_by_level": by_level(&status.running_by_level),
        "drift_rows_without_bytes": status.drift_rows_without_bytes,
        "drift_bytes_without_rows": status.drift_bytes_without_rows,
        "refused_changes": status.refused_changes,
    })
}

fn status_fields(status: &GetStatusResponse) -> String {
    let levels = |counts: &[u64]| {
        let parts = Level::ALL
            .into_iter()
            .zip(counts)
            .map(|(level, count)| format!("{} {count}", level.label()));
        or_dash(&parts.collect::<Vec<_>>().join(", "))
    };
    let drift = (
        status.drift_rows_without_bytes,
        status.drift_bytes_without_rows,
    );
    Rows::of_fields([
        ("version", status.version.clone()),
        ("leader", or_dash(&status.leader)),
        ("database ready", yes(status.database_ready)),
        ("revision", status.revision.to_string()),
        (
            "edges",
            format!("{} active of {}", status.edges_active, status.edges_total),
        ),
        ("entries", status.entries.to_string()),
        (
            "chunks",
            format!("{} ({})", status.chunks, human_bytes(status.bytes_cached)),
        ),
        ("readers", status.readers.to_string()),
        ("jobs running", status.jobs_running.to_string()),
        ("chunks queued", levels(&status.queued_by_level)),
        ("chunks running", levels(&status.running_by_level)),
        (
            "drift mended",
            format!(
                "{} rows without bytes, {} bytes without rows",
                drift.0, drift.1
            ),
        ),
        ("changes refused", status.refused_changes.to_string()),
    ])
    .render()
}

pub(super) fn explain_json(answer: &ExplainChunkResponse) -> Value {
    let decisions: Vec<Value> = answer
        .decisions
        .iter()
        .map(|decision| {
            json!({
                "name": decision.edge,
                "priority": view::priority(decision.priority()),
                "state": decision.state,
                "from": decision.from,
                "reason": decision.reason,
                "readers": decision.readers,
                "deadline_ms": decision.deadline_ms,
            })
        })
        .collect();
    json!({
        "id": answer.entry_id,
        "chunk": answer.chunk,
        "range": answer.range.map(|range| json!({"start": range.start, "end": range.end})),
        "present_on": answer.present_on,
        "decisions": decisions,
        "summary": answer.summary,
    })
}

fn explain_text(answer: &ExplainChunkResponse) -> String {
    let range = answer.range.unwrap_or_default();
    let mut text = Rows::of_fields([
        (
            "chunk",
            format!(
                "{} (bytes {}-{})",
                answer.chunk,
                range.start,
                range.end.saturating_sub(1)
            ),
        ),
        ("present on", or_dash(&answer.present_on.join(", "))),
        ("summary", or_dash(&answer.summary)),
    ])
    .render();
    if !answer.decisions.is_empty() {
        let mut rows = Rows::new(&["edge", "level", "state", "from", "readers", "reason"]);
        for decision in &answer.decisions {
            rows.push([
                decision.edge.clone(),
                view::priority(decision.priority()).to_owned(),
                decision.state.clone(),
                or_dash(&decision.from),
                decision.readers.to_string(),
                or_dash(&decision.reason),
            ]);
        }
        text.push('\n');
        text.push_str(&rows.render());
    }
    text
}
