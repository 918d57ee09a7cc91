//! `purge`: drops many objects on every edge.

use chunkcache_proto::v1::{PurgeEntriesRequest, PurgeSelector, purge_selector::Objects};
use clap::{Arg, ArgGroup, ArgMatches, Command};
use serde_json::json;

use super::connection::Client;
use super::failure::CliError;
use super::output::{Printer, or_dash};
use super::{is_set, switch};

pub(super) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("purge")
        .about("Drop objects on every edge, by key, prefix, glob, tag or source")
        .args([
            option(
                "object-key",
                "SOURCE/PATH",
                "One object with all its variants; --key is enough, as the coordinator's is given \
                 before it or as the second",
            ),
            option(
                "prefix",
                "SOURCE/PATH",
                "All whose path, with its query, begins so",
            ),
            option(
                "glob",
                "SOURCE/PATTERN",
                "All whose path, with its query, matches; * stands for anything",
            ),
            option(
                "tag",
                "TAG",
                "All that the origin tagged so: Surrogate-Key, Cache-Tag, Cache-Groups",
            ),
            option(
                "source",
                "NAME",
                "All of a source; with --tag, only those of it",
            ),
            switch(
                "soft",
                "Keep the bytes; the origin is asked before they are served again",
            ),
        ])
        .group(
            ArgGroup::new("selector")
                .args(["object-key", "prefix", "glob", "tag", "source"])
                .multiple(true)
                .required(true),
        )
        .after_help(
            "Every connected edge has dropped them when the command returns. The exit status is 1 \
             where one did not confirm; it does so when it is back.",
        )
}

pub(super) async fn run(
    matches: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let request = PurgeEntriesRequest {
        selector: Some(selector(matches)?),
        soft: is_set(matches, "soft"),
    };
    let soft = request.soft;
    let named = ["object-key", "prefix", "glob", "tag", "source"];
    let named = named
        .iter()
        .find_map(|name| matches.get_one::<String>(name));
    let answer = client
        .call(request, async |mut s, r| s.purge_entries(r).await)
        .await?;
    let json = json!({
        "name": named,
        "purged": answer.purged,
        "soft": soft,
        "confirmed_edges": answer.confirmed_edges,
        "unconfirmed_edges": answer.unconfirmed_edges,
    });
    printer.result(&json, || {
        format!(
            "{} purged; confirmed by: {}\n",
            answer.purged,
            or_dash(&answer.confirmed_edges.join(", "))
        )
    })?;
    if answer.unconfirmed_edges.is_empty() {
        return Ok(());
    }
    Err(CliError::Refused(format!(
        "not confirmed by {}; they purge when they are connected again",
        answer.unconfirmed_edges.join(", ")
    )))
}

fn selector(matches: &ArgMatches) -> Result<PurgeSelector, CliError> {
    let given = |name: &str| matches.get_one::<String>(name).cloned();
    let named = ["object-key", "prefix", "glob"].map(|name| (name, given(name)));
    let named = named
        .into_iter()
        .filter_map(|(name, written)| Some((name, written?)));
    let named: Vec<(&str, String)> = named.collect();
    match (named.as_slice(), given("tag"), given("source")) {
        ([(name, written)], None, None) => {
            let (source, path) = split(name, written)?;
            let objects = match *name {
                "object-key" => Objects::Key(path),
                "prefix" => Objects::Prefix(path),
                _ => Objects::Glob(path),
            };
            Ok(PurgeSelector {
                source,
                objects: Some(objects),
            })
        }
        ([], Some(tag), source) => Ok(PurgeSelector {
            source: source.unwrap_or_default(),
            objects: Some(Objects::Tag(tag)),
        }),
        ([], None, Some(source)) => Ok(PurgeSelector {
            source,
            objects: Some(Objects::All(true)),
        }),
        _ => Err(CliError::Usage(
            "expected one of --key, --prefix, --glob, --tag and --source".to_owned(),
        )),
    }
}

fn split(name: &str, written: &str) -> Result<(String, String), CliError> {
    match written.trim_start_matches('/').split_once('/') {
        Some((source, path)) if !source.is_empty() && (!path.is_empty() || name == "prefix") => {
            Ok((source.to_owned(), path.to_owned()))
        }
        _ => Err(CliError::Usage(format!(
            "--{name} {written:?}: expected SOURCE/PATH"
        ))),
    }
}
