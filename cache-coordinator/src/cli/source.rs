//! `source`: the registered origins.

use std::time::Duration;

use chunkcache_proto::v1::{
    FreshnessPolicy, GetSourceRequest, Header, ListSourcesRequest, PutSourceRequest,
    RemoveSourceRequest, Source, SourceMode,
};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use service_kit::config::{human_bytes, parse_duration, parse_rate, parse_url};

use super::connection::Client;
use super::failure::CliError;
use super::output::{Printer, Rows, or_dash, warn_unconfirmed, yes};
use super::{is_set, switch, text, unknown_verb, verb, view};

pub(super) fn command() -> Command {
    let name = || {
        Arg::new("NAME")
            .required(true)
            .help("The source's name: first part of its URLs")
    };
    let mode = || ["serve", "record", "passthrough"];
    let ttl = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("DURATION")
            .value_parser(parse_duration)
            .help(help)
    };
    let add = Command::new("add")
        .about("Add a source, or change all of one; every connected edge knows it before this ends")
        .args([
            name(),
            Arg::new("BASE_URL")
                .required(true)
                .value_parser(|text: &str| parse_url(text).map(|_| text.to_owned()))
                .help("http:// or https:// URL that the objects lie below"),
            Arg::new("header")
                .long("header")
                .value_name("K: V")
                .action(ArgAction::Append)
                .value_parser(parse_header)
                .help("Header sent with each request to the origin; the value is kept secret"),
            Arg::new("max-connections")
                .long("max-connections")
                .value_name("N")
                .value_parser(value_parser!(u32))
                .help("Connections to the origin at a time, in the whole cluster [default: no limit]"),
            Arg::new("max-rate")
                .long("max-rate")
                .value_name("BYTES/S")
                .value_parser(parse_rate)
                .help("Bytes per second from the origin, in the whole cluster: 10MiB [default: no limit]"),
            Arg::new("mode")
                .long("mode")
                .value_name("MODE")
                .value_parser(mode())
                .default_value("serve")
                .help("serve from the cache, record only and compare, or pass through"),
            Arg::new("background-fill")
                .long("background-fill")
                .value_name("BOOL")
                .num_args(0..=1)
                .default_missing_value("true")
                .value_parser(value_parser!(bool))
                .help("Finish partly cached entries at LOW [default: as each edge says]"),
            ttl("default-ttl", "Fresh for this long where the origin does not say [default: 60s]"),
            ttl("override-ttl", "Fresh for this long whatever the origin says, except no-store and private"),
            ttl("stale-if-error", "Served for this long past freshness while the origin is down [default: 24h]"),
            ttl("negative-ttl", "How long a 404 or 410 is remembered [default: 5s]"),
            switch("forward-credentials", "The client's Authorization and Cookie reach the origin; nothing is stored then"),
            Arg::new("forward-header")
                .long("forward-header")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Further client header passed on to the origin"),
        ]);
    Command::new("source")
        .about("Registered origins")
        .subcommand_required(true)
        .subcommands([
            add,
            Command::new("list").about("All sources"),
            Command::new("show").about("One source").arg(name()),
            Command::new("remove")
                .about("Remove a source; its URLs are 404 from then on")
                .arg(name()),
            Command::new("set-mode")
                .about("Change what edges do with a source's objects")
                .args([
                    name(),
                    Arg::new("MODE")
                        .required(true)
                        .value_parser(mode())
                        .help("serve, record or passthrough"),
                ]),
        ])
}

pub(super) async fn run(
    matches: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let (verb, arguments) = verb(matches)?;
    match verb {
        "add" => put(from_arguments(arguments)?, client, printer).await,
        "list" => {
            let answer = client
                .call(ListSourcesRequest {}, async |mut s, r| {
                    s.list_sources(r).await
                })
                .await?;
            let json: Value = answer.sources.iter().map(view::source).collect();
            printer.result(&json, || table(&answer.sources))
        }
        "show" => {
            let source = get(text(arguments, "NAME")?, client).await?;
            printer.result(&view::source(&source), || fields(&source))
        }
        "remove" => {
            let name = text(arguments, "NAME")?.to_owned();
            let request = RemoveSourceRequest { name: name.clone() };
            let answer = client
                .call(request, async |mut s, r| s.remove_source(r).await)
                .await?;
            warn_unconfirmed(&answer.unconfirmed_edges);
            let json = json!({
                "name": name, "removed": true, "unconfirmed_edges": answer.unconfirmed_edges,
            });
            printer.result(&json, || format!("source {name} removed\n"))
        }
        "set-mode" => {
            let mut source = get(text(arguments, "NAME")?, client).await?;
            source.set_mode(parse_mode(text(arguments, "MODE")?));
            put(source, client, printer).await
        }
        other => Err(unknown_verb(other)),
    }
}

async fn get(name: &str, client: &mut Client) -> Result<Source, CliError> {
    let request = GetSourceRequest {
        name: name.to_owned(),
    };
    let answer = client
        .call(request, async |mut s, r| s.get_source(r).await)
        .await?;
    Ok(answer.source.unwrap_or_default())
}

async fn put(
    source: Source,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let request = PutSourceRequest {
        source: Some(source),
    };
    let answer = client
        .call(request, async |mut s, r| s.put_source(r).await)
        .await?;
    warn_unconfirmed(&answer.unconfirmed_edges);
    let source = answer.source.unwrap_or_default();
    let mut json = view::source(&source);
    json["unconfirmed_edges"] = json!(answer.unconfirmed_edges);
    printer.result(&json, || fields(&source))
}

fn from_arguments(arguments: &ArgMatches) -> Result<Source, CliError> {
    let ttl = |name: &str| {
        let duration = arguments.get_one::<Duration>(name)?;
        // Whole seconds on the wire; u32::MAX of them is 136 years.
        Some(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX))
    };
    Ok(Source {
        name: text(arguments, "NAME")?.to_owned(),
        base_url: text(arguments, "BASE_URL")?.to_owned(),
        headers: arguments
            .get_many("header")
            .unwrap_or_default()
            .cloned()
            .collect(),
        max_connections: arguments
            .get_one("max-connections")
            .copied()
            .unwrap_or_default(),
        max_rate_bytes_per_second: arguments.get_one("max-rate").copied().unwrap_or_default(),
        background_fill: arguments.get_one("background-fill").copied(),
        mode: parse_mode(text(arguments, "mode")?).into(),
        freshness: Some(FreshnessPolicy {
            default_ttl_seconds: ttl("default-ttl"),
            override_ttl_seconds: ttl("override-ttl"),
            stale_if_error_seconds: ttl("stale-if-error"),
            negative_ttl_seconds: ttl("negative-ttl"),
        }),
        forward_credentials: is_set(arguments, "forward-credentials"),
        forward_headers: arguments
            .get_many("forward-header")
            .unwrap_or_default()
            .cloned()
            .collect(),
        revision: 0,
    })
}

/// clap lets only these words through.
fn parse_mode(word: &str) -> SourceMode {
    match word {
        "record" => SourceMode::Record,
        "passthrough" => SourceMode::Passthrough,
        _ => SourceMode::Serve,
    }
}

/// `K: V`. The error does not repeat the value.
fn parse_header(text: &str) -> Result<Header, String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => Ok(Header {
            name: name.trim().to_owned(),
            value: value.trim().to_owned(),
        }),
        _ => Err("expected 'Name: value'".to_owned()),
    }
}

fn limit(amount: u64, shown: String) -> String {
    if amount == 0 {
        "no limit".to_owned()
    } else {
        shown
    }
}

pub(super) fn table(sources: &[Source]) -> String {
    let mut rows = Rows::new(&["name", "base url", "mode", "connections", "rate"]);
    for source in sources {
        let rate = source.max_rate_bytes_per_second;
        rows.push([
            source.name.clone(),
            source.base_url.clone(),
            view::mode(source.mode()).to_owned(),
            limit(
                source.max_connections.into(),
                source.max_connections.to_string(),
            ),
            limit(rate, format!("{}/s", human_bytes(rate))),
        ]);
    }
    rows.render()
}

fn fields(source: &Source) -> String {
    let freshness = source.freshness.unwrap_or_default();
    let rate = source.max_rate_bytes_per_second;
    let seconds = |ttl: Option<u32>| ttl.map_or("default".to_owned(), |ttl| format!("{ttl}s"));
    let headers: Vec<&str> = source
        .headers
        .iter()
        .map(|header| header.name.as_str())
        .collect();
    Rows::of_fields([
        ("name", source.name.clone()),
        ("base url", source.base_url.clone()),
        ("mode", view::mode(source.mode()).to_owned()),
        ("headers", or_dash(&headers.join(", "))),
        (
            "max connections",
            limit(
                source.max_connections.into(),
                source.max_connections.to_string(),
            ),
        ),
        ("max rate", limit(rate, format!("{}/s", human_bytes(rate)))),
        (
            "background fill",
            source
                .background_fill
                .map_or("as each edge says".to_owned(), yes),
        ),
        ("default ttl", seconds(freshness.default_ttl_seconds)),
        ("override ttl", seconds(freshness.override_ttl_seconds)),
        ("stale if error", seconds(freshness.stale_if_error_seconds)),
        ("negative ttl", seconds(freshness.negative_ttl_seconds)),
        ("forward credentials", yes(source.forward_credentials)),
    ])
    .render()
}
