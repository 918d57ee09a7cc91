//! `edge`: the machines that store and serve the bytes.

use chunkcache_proto::v1::{
    DrainEdgeRequest, Edge, ForgetEdgeRequest, ListEdgesRequest, VerifyEdgeRequest,
    VerifyEdgeResponse,
};
use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};
use service_kit::config::human_bytes;

use super::connection::Client;
use super::failure::CliError;
use super::output::{Printer, Rows};
use super::{is_set, switch, text, unknown_verb, verb, view};

pub(super) fn command() -> Command {
    let name = || Arg::new("NAME").required(true).help("The edge's name");
    Command::new("edge")
        .about("The edges of the cluster")
        .subcommand_required(true)
        .subcommands([
            Command::new("list").about("All edges"),
            Command::new("drain")
                .about("Send it no new readers; what runs is finished")
                .args([
                    name(),
                    switch("undo", "Send it readers again"),
                    switch(
                        "follow",
                        "Show progress until its last request has ended and its chunks are handed \
                         over; it may be stopped then",
                    ),
                ]),
            Command::new("forget")
                .about("Remove it and all its rows from the cluster")
                .args([name(), switch("force", "Also when it is connected")]),
            Command::new("verify")
                .about("Compare the rows with what edges hold; exit status 1 if they differ")
                .arg(Arg::new("NAME").help("One edge [default: all]")),
        ])
}

pub(super) async fn run(
    matches: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let (verb, arguments) = verb(matches)?;
    match verb {
        "list" => {
            let edges = list(client).await?;
            let json: Value = edges.iter().map(view::edge).collect();
            printer.result(&json, || table(&edges))
        }
        "drain" => {
            let name = text(arguments, "NAME")?.to_owned();
            let request = DrainEdgeRequest {
                name,
                drain: !is_set(arguments, "undo"),
            };
            let answer = client
                .call(request, async |mut s, r| s.drain_edge(r).await)
                .await?;
            let mut edge = answer.edge.unwrap_or_default();
            if is_set(arguments, "follow") && !is_set(arguments, "undo") {
                edge = super::drain::follow(edge, client).await?;
            }
            printer.result(&view::edge(&edge), || table(std::slice::from_ref(&edge)))
        }
        "forget" => {
            let name = text(arguments, "NAME")?.to_owned();
            let request = ForgetEdgeRequest {
                name: name.clone(),
                force: is_set(arguments, "force"),
            };
            let answer = client
                .call(request, async |mut s, r| s.forget_edge(r).await)
                .await?;
            let removed = answer.chunks_removed;
            let json = json!({"name": name, "forgotten": true, "chunks_removed": removed});
            printer.result(&json, || {
                format!("edge {name} forgotten, {removed} chunks removed\n")
            })
        }
        "verify" => verify(arguments, client, printer).await,
        other => Err(unknown_verb(other)),
    }
}

pub(super) async fn list(client: &mut Client) -> Result<Vec<Edge>, CliError> {
    Ok(client
        .call(ListEdgesRequest {}, async |mut s, r| s.list_edges(r).await)
        .await?
        .edges)
}

async fn verify(
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let names: Vec<String> = match arguments.get_one::<String>("NAME") {
        Some(name) => vec![name.clone()],
        None => list(client)
            .await?
            .into_iter()
            .map(|edge| edge.name)
            .collect(),
    };
    let mut results: Vec<(String, VerifyEdgeResponse)> = Vec::new();
    for name in names {
        let request = VerifyEdgeRequest { name: name.clone() };
        let answer = client
            .call(request, async |mut s, r| s.verify_edge(r).await)
            .await?;
        results.push((name, answer));
    }
    let json: Value = results
        .iter()
        .map(|(name, found)| {
            json!({
                "name": name,
                "chunks_checked": found.chunks_checked,
                "rows_without_bytes": found.rows_without_bytes,
                "bytes_without_rows": found.bytes_without_rows,
            })
        })
        .collect();
    printer.result(&json, || {
        let mut rows = Rows::new(&["name", "chunks", "rows without bytes", "bytes without rows"]);
        for (name, found) in &results {
            rows.push([
                name.clone(),
                found.chunks_checked.to_string(),
                found.rows_without_bytes.to_string(),
                found.bytes_without_rows.to_string(),
            ]);
        }
        rows.render()
    })?;
    let differs = results
        .iter()
        .any(|(_, found)| found.rows_without_bytes + found.bytes_without_rows > 0);
    if differs {
        Err(CliError::Refused("rows and bytes differ".to_owned()))
    } else {
        Ok(())
    }
}

pub(super) fn table(edges: &[Edge]) -> String {
    let mut rows = Rows::new(&[
        "name", "state", "url", "used", "allowed", "chunks", "readers",
    ]);
    for edge in edges {
        rows.push([
            edge.name.clone(),
            view::edge_state(edge.state()).to_owned(),
            edge.url.clone(),
            human_bytes(edge.bytes_used),
            human_bytes(edge.bytes_allowed),
            edge.chunks.to_string(),
            edge.readers.to_string(),
        ]);
    }
    rows.render()
}
