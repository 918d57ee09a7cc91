//! `source`: the registered origins.

use chunkcache_proto::v1::{
    GetSourceRequest, GetSourceResponse, ListSourcesRequest, PutSourceRequest, RemoveSourceRequest,
    Source, SourceUse,
};
use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};
use service_kit::config::human_bytes;

use super::connection::Client;
use super::failure::CliError;
use super::output::{Printer, Rows, or_dash, warn_unconfirmed, yes};
use super::{is_set, source_options, source_use, switch, text, unknown_verb, verb, view};

pub(super) fn command() -> Command {
    let name = || {
        Arg::new("NAME")
            .required(true)
            .help("The source's name: first part of its URLs")
    };
    let no_check = || {
        switch(
            "no-check",
            "Store a bucket without an edge asking it whether it can be read",
        )
    };
    let urls = || {
        Arg::new("BASE_URL")
            .num_args(1..)
            .value_parser(source_options::base_url)
            .help(
                "http://, https:// or s3://BUCKET/PREFIX URL that the objects lie below; \
             further ones are asked, in order, when those before them fail",
            )
    };
    let add = Command::new("add")
        .about("Add a source, or change all of one; every connected edge knows it before this ends")
        .args([name(), urls().required(true)])
        .args(source_options::arguments())
        .arg(no_check());
    let set = Command::new("set")
        .about("Change some settings of a source; an empty value is the default")
        .args([name(), urls()])
        .args(source_options::arguments())
        .arg(no_check());
    Command::new("source")
        .about("Registered origins")
        .subcommand_required(true)
        .subcommands([
            add,
            set,
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
                        .value_parser(source_options::MODES)
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
        "add" => {
            let mut source = Source {
                name: text(arguments, "NAME")?.to_owned(),
                ..Source::default()
            };
            source_options::apply(arguments, &mut source)?;
            put(source, !is_set(arguments, "no-check"), client, printer).await
        }
        "set" => {
            let mut source = get(text(arguments, "NAME")?, client).await?;
            source_options::apply(arguments, &mut source)?;
            put(source, !is_set(arguments, "no-check"), client, printer).await
        }
        "list" => {
            let answer = client
                .call(ListSourcesRequest {}, async |mut s, r| {
                    s.list_sources(r).await
                })
                .await?;
            let listed: Vec<Listed> = answer
                .sources
                .iter()
                .map(|source| {
                    let of_it = |of: &&SourceUse| of.source == source.name;
                    (source, answer.uses.iter().find(of_it))
                })
                .collect();
            let json = |(source, of): &Listed| {
                let mut json = view::source(source);
                json["use"] = of.map_or(Value::Null, source_use::json);
                json
            };
            let all: Value = listed.iter().map(json).collect();
            printer.result(&all, || table(&listed))
        }
        "show" => {
            let answer = ask(text(arguments, "NAME")?, client).await?;
            let source = answer.source.unwrap_or_default();
            let mut json = view::source(&source);
            json["uses"] = answer.uses.iter().map(source_use::json).collect();
            printer.result(&json, || {
                let mut rows = fields(&source);
                source_use::add_rows(&mut rows, &answer.uses);
                rows.render()
            })
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
            source.set_mode(source_options::parse_mode(text(arguments, "MODE")?));
            put(source, false, client, printer).await
        }
        other => Err(unknown_verb(other)),
    }
}

async fn ask(name: &str, client: &mut Client) -> Result<GetSourceResponse, CliError> {
    let request = GetSourceRequest {
        name: name.to_owned(),
    };
    client
        .call(request, async |mut s, r| s.get_source(r).await)
        .await
}

async fn get(name: &str, client: &mut Client) -> Result<Source, CliError> {
    let answer = ask(name, client).await?;
    Ok(answer.source.unwrap_or_default())
}

async fn put(
    source: Source,
    check: bool,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let request = PutSourceRequest {
        validate_only: false,
        check,
        source: Some(source),
    };
    let answer = client
        .call(request, async |mut s, r| s.put_source(r).await)
        .await?;
    warn_unconfirmed(&answer.unconfirmed_edges);
    if !answer.unchecked.is_empty() {
        let reason = &answer.unchecked;
        eprintln!("warning: stored, but the bucket is unchecked: {reason}");
    }
    let source = answer.source.unwrap_or_default();
    let mut json = view::source(&source);
    json["unconfirmed_edges"] = json!(answer.unconfirmed_edges);
    json["unchecked"] = json!(Some(answer.unchecked).filter(|reason| !reason.is_empty()));
    printer.result(&json, || fields(&source).render())
}

fn limit(amount: u64, shown: String) -> String {
    if amount == 0 {
        "no limit".to_owned()
    } else {
        shown
    }
}

/// A source, and its use on all connected edges.
pub(super) type Listed<'a> = (&'a Source, Option<&'a SourceUse>);

pub(super) fn table(sources: &[Listed]) -> String {
    let mut rows = Rows::new(&[
        "name",
        "base url",
        "mode",
        "connections",
        "rate",
        "sent",
        "hits",
        "used",
        "origins",
    ]);
    for (source, of) in sources {
        let rate = source.max_rate_bytes_per_second;
        let [sent, hits, used, origins] = source_use::cells(*of);
        rows.push([
            source.name.clone(),
            source.base_url.clone(),
            view::mode(source.mode()).to_owned(),
            limit(
                source.max_connections.into(),
                source.max_connections.to_string(),
            ),
            limit(rate, format!("{}/s", human_bytes(rate))),
            sent,
            hits,
            used,
            origins,
        ]);
    }
    rows.render()
}

fn fields(source: &Source) -> Rows {
    let freshness = source.freshness.unwrap_or_default();
    let connection = source.connection.clone().unwrap_or_default();
    let keys = source.key_rules.clone().unwrap_or_default();
    let rate = source.max_rate_bytes_per_second;
    let seconds = |ttl: Option<u32>| ttl.map_or("default".to_owned(), |ttl| format!("{ttl}s"));
    let ms = |timeout: Option<u32>| timeout.map_or("default".to_owned(), |ms| format!("{ms}ms"));
    let joined = |list: &[String]| or_dash(&list.join(", "));
    let given = |text: &str| if text.is_empty() { "-" } else { "given" }.to_owned();
    let headers: Vec<String> = source.headers.iter().map(|h| h.name.clone()).collect();
    let ttls = source.ttl_rules.iter();
    let ttls: Vec<String> = ttls
        .map(|r| format!("{}={}s", r.pattern, r.seconds))
        .collect();
    let mut rows = Rows::of_fields([
        ("name", source.name.clone()),
        ("base url", source.base_url.clone()),
        ("further base urls", joined(&source.further_base_urls)),
        ("mode", view::mode(source.mode()).to_owned()),
        ("headers", joined(&headers)),
        (
            "max connections",
            limit(
                source.max_connections.into(),
                source.max_connections.to_string(),
            ),
        ),
        ("max rate", limit(rate, format!("{}/s", human_bytes(rate)))),
        (
            "quota",
            limit(source.quota_bytes, human_bytes(source.quota_bytes)),
        ),
        (
            "background fill",
            source
                .background_fill
                .map_or("as each edge says".to_owned(), yes),
        ),
        ("default ttl", seconds(freshness.default_ttl_seconds)),
        ("override ttl", seconds(freshness.override_ttl_seconds)),
        ("ttl rules", joined(&ttls)),
        ("stale if error", seconds(freshness.stale_if_error_seconds)),
        ("negative ttl", seconds(freshness.negative_ttl_seconds)),
        ("forward credentials", yes(source.forward_credentials)),
        ("failover on 404", yes(source.failover_on_not_found)),
        ("redirects allowed to", joined(&source.redirect_hosts)),
        ("ignored query", joined(&keys.ignore_query)),
        ("only query", joined(&keys.only_query)),
        ("kept query", joined(&keys.keep_query)),
        ("connect timeout", ms(connection.connect_timeout_ms)),
        ("first byte timeout", ms(connection.first_byte_timeout_ms)),
        ("idle timeout", ms(connection.idle_timeout_ms)),
        ("max connection age", ms(connection.max_age_ms)),
        ("host", or_dash(&connection.host)),
        ("ca", given(&connection.ca_pem)),
        ("client certificate", given(&connection.client_cert_pem)),
        ("http proxy", or_dash(&connection.http_proxy)),
    ]);
    if let Some(s3) = &source.s3 {
        rows.field("region", or_dash(&s3.region));
        rows.field("endpoint", or_dash(&s3.endpoint));
        rows.field("path style", yes(s3.path_style));
        rows.field("access key", or_dash(&s3.access_key_id));
    }
    rows
}
