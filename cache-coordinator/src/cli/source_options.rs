//! The settings of a source as options, and their effect on it.

use std::{path::Path, path::PathBuf, time::Duration};

use chunkcache_proto::v1::{Header, Source, SourceMode, TtlRule};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use service_kit::config::{parse_bytes, parse_duration, parse_rate, parse_url};
use service_kit::text_file;

use super::failure::CliError;
use super::switch;

pub(super) const MODES: [&str; 3] = ["serve", "record", "passthrough"];

/// Longest file read for an option.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All settings; none is required.
pub(super) fn arguments() -> Vec<Arg> {
    [limits(), connection(), keys(), freshness()].concat()
}

pub(super) fn base_url(text: &str) -> Result<String, String> {
    if text.starts_with("s3://") {
        return Ok(text.to_owned());
    }
    parse_url(text).map(|_| text.to_owned())
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// An option that is given several times, or with several values.
fn list(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    option(name, value, help)
        .action(ArgAction::Append)
        .num_args(1..)
}

fn file(name: &'static str, help: &'static str) -> Arg {
    option(name, "FILE", help).value_parser(value_parser!(PathBuf))
}

fn duration(name: &'static str, help: &'static str) -> Arg {
    option(name, "DURATION", help).value_parser(parse_duration)
}

/// A duration that is stored in whole seconds.
fn seconds(name: &'static str, help: &'static str) -> Arg {
    option(name, "DURATION", help).value_parser(parse_seconds)
}

fn limits() -> Vec<Arg> {
    vec![
        option(
            "max-connections",
            "N",
            "Connections to the origins at a time, in the whole cluster [default: no limit]",
        )
        .value_parser(value_parser!(u32)),
        option(
            "max-rate",
            "BYTES/S",
            "Bytes per second from the origins, in the whole cluster: 10MiB [default: no limit]",
        )
        .value_parser(parse_rate),
        option(
            "quota",
            "BYTES",
            "Bytes of this source on each edge's disk: 500GiB [default: no quota]",
        )
        .value_parser(parse_bytes),
        option(
            "mode",
            "MODE",
            "serve from the cache, record only and compare, or pass through [default: serve]",
        )
        .value_parser(MODES),
        option(
            "background-fill",
            "BOOL",
            "Finish partly cached entries at LOW [default: as each edge says]",
        )
        .num_args(0..=1)
        .default_missing_value("true")
        .value_parser(value_parser!(bool)),
    ]
}

fn connection() -> Vec<Arg> {
    vec![
        option(
            "header",
            "K: V",
            "Header sent with each request to the origins; the value is kept secret",
        )
        .action(ArgAction::Append)
        .value_parser(parse_header),
        file(
            "header-file",
            "File of 'Name: value' lines, each a header as above; nothing shows in the process \
             list",
        ),
        duration(
            "connect-timeout",
            "How long a connection to an origin may take [default: 5s]",
        ),
        duration(
            "first-byte-timeout",
            "How long an origin may think before it answers; clients wait that long [default: \
             10s]",
        ),
        duration(
            "idle-timeout",
            "How long an origin may pause within an answer [default: 10s]",
        ),
        duration(
            "max-connection-age",
            "A connection takes no further request at this age, so that a name that moved is \
             followed [default: 60s]",
        ),
        option(
            "host",
            "HOST",
            "Host field and TLS server name, instead of the base URL's",
        ),
        file(
            "origin-ca",
            "PEM file of the authorities trusted for the origins; --ca is enough where the \
             coordinator needs none [default: the system's]",
        ),
        file("client-cert", "PEM file: certificate shown to the origins").requires("client-key"),
        file("client-key", "PEM file: its key, kept secret").requires("client-cert"),
        option(
            "http-proxy",
            "URL",
            "http://[USER:PASSWORD@]HOST:PORT to reach the origins through [default: HTTPS_PROXY, \
             HTTP_PROXY and NO_PROXY of each edge]",
        ),
        switch(
            "failover-404",
            "Ask the next origin also when one answers 404",
        ),
        list(
            "allow-redirect-to",
            "HOST",
            "Host (or HOST:PORT) that answers may redirect to; it gets no credentials",
        ),
        option("region", "REGION", "Of a bucket [default: us-east-1]"),
        option(
            "s3-endpoint",
            "URL",
            "Server of a bucket that is not at AWS: https://s3.example; with an s3:// URL \
             --endpoint is this, and the coordinator's is given before it or as the second",
        )
        .value_parser(|text: &str| match text {
            "" => Ok(String::new()),
            text => parse_url(text).map(|_| text.to_owned()),
        }),
        switch("path-style", "The bucket is in the path, not in the host"),
        file(
            "access-key-file",
            "Two lines: key id and secret; a third is a session token [default: what the AWS \
             SDKs' variables, files, web identity or instance metadata give each edge]",
        ),
        switch(
            "forward-credentials",
            "The client's Authorization and Cookie reach the origins; nothing is stored then",
        ),
        option(
            "forward-header",
            "NAME",
            "Further client header passed on to the origins",
        )
        .action(ArgAction::Append),
    ]
}

fn keys() -> Vec<Arg> {
    vec![
        list(
            "ignore-query",
            "PATTERN",
            "Query parameters that do not name an object: 'utm_*'; 'presigned' is those of \
             presigned URLs. CMCD is always among them",
        ),
        list(
            "only-query",
            "NAME",
            "The only query parameters that name an object",
        )
        .conflicts_with("ignore-query"),
        list(
            "keep-query",
            "NAME",
            "Query parameters that name an object although another rule leaves them out: CMCD",
        ),
        switch(
            "sort-query",
            "Query parameters in another order name the same object",
        ),
        option(
            "presigned",
            "HOW",
            "With --ignore-query presigned: whoever has another signature or none is given what \
             is cached (trust-cache), or the origin is asked about each signature once, until it \
             expires (ask) [default: ask]",
        )
        .value_parser(["ask", "trust-cache"]),
        switch(
            "fold-path-case",
            "Paths that differ only in the case of letters name the same object",
        ),
    ]
}

fn freshness() -> Vec<Arg> {
    vec![
        seconds(
            "default-ttl",
            "Fresh for this long where the origin does not say [default: 60s]",
        ),
        seconds(
            "override-ttl",
            "Fresh for this long whatever the origin says, except no-store and private",
        ),
        list(
            "ttl",
            "PATTERN=DURATION",
            "As --override-ttl, for paths that match: '*.m3u8=2s'; the first match counts",
        ),
        seconds(
            "stale-if-error",
            "Served for this long past freshness while the origins are down [default: 24h]",
        ),
        seconds(
            "negative-ttl",
            "How long a 404 or 410 is remembered [default: 5s]",
        ),
    ]
}

/// Applies the given options. An empty value resets a setting to its default.
pub(super) fn apply(arguments: &ArgMatches, source: &mut Source) -> Result<(), CliError> {
    if let Some(mut urls) = arguments.get_many::<String>("BASE_URL") {
        source.base_url = urls.next().cloned().unwrap_or_default();
        source.further_base_urls = urls.cloned().collect();
    }
    apply_limits(arguments, source);
    apply_headers(arguments, source)?;
    apply_connection(arguments, source)?;
    apply_bucket(arguments, source)?;
    apply_keys(arguments, source);
    apply_freshness(arguments, source)
}

fn apply_limits(arguments: &ArgMatches, source: &mut Source) {
    set(arguments, "max-connections", &mut source.max_connections);
    set(arguments, "max-rate", &mut source.max_rate_bytes_per_second);
    set(arguments, "quota", &mut source.quota_bytes);
    if let Some(word) = arguments.get_one::<String>("mode") {
        source.set_mode(parse_mode(word));
    }
    if let Some(&fill) = arguments.get_one("background-fill") {
        source.background_fill = Some(fill);
    }
    set(arguments, "failover-404", &mut source.failover_on_not_found);
    set(
        arguments,
        "forward-credentials",
        &mut source.forward_credentials,
    );
    set_list(arguments, "forward-header", &mut source.forward_headers);
    set_list(arguments, "allow-redirect-to", &mut source.redirect_hosts);
}

fn apply_headers(arguments: &ArgMatches, source: &mut Source) -> Result<(), CliError> {
    let given = arguments.get_many::<Header>("header");
    let from_file = arguments.get_one::<PathBuf>("header-file");
    if given.is_none() && from_file.is_none() {
        return Ok(());
    }
    let mut headers: Vec<Header> = given.unwrap_or_default().cloned().collect();
    if let Some(path) = from_file {
        let text = read(path, "header-file")?;
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let header = parse_header(line).map_err(|error| {
                let number = number + 1;
                usage(
                    "header-file",
                    &format!("{}:{number}: {error}", path.display()),
                )
            })?;
            headers.push(header);
        }
    }
    source.headers = headers;
    Ok(())
}

fn apply_connection(arguments: &ArgMatches, source: &mut Source) -> Result<(), CliError> {
    let connection = source.connection.get_or_insert_default();
    for (name, timeout) in [
        ("connect-timeout", &mut connection.connect_timeout_ms),
        ("first-byte-timeout", &mut connection.first_byte_timeout_ms),
        ("idle-timeout", &mut connection.idle_timeout_ms),
        ("max-connection-age", &mut connection.max_age_ms),
    ] {
        if let Some(duration) = arguments.get_one::<Duration>(name) {
            *timeout = Some(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX));
        }
    }
    set(arguments, "host", &mut connection.host);
    set(arguments, "http-proxy", &mut connection.http_proxy);
    for (name, pem) in [
        ("origin-ca", &mut connection.ca_pem),
        ("client-cert", &mut connection.client_cert_pem),
        ("client-key", &mut connection.client_key_pem),
    ] {
        if let Some(path) = arguments.get_one::<PathBuf>(name) {
            *pem = read(path, name)?;
        }
    }
    Ok(())
}

fn apply_bucket(arguments: &ArgMatches, source: &mut Source) -> Result<(), CliError> {
    let s3 = source.s3.get_or_insert_default();
    set(arguments, "region", &mut s3.region);
    set(arguments, "s3-endpoint", &mut s3.endpoint);
    set(arguments, "path-style", &mut s3.path_style);
    if let Some(path) = arguments.get_one::<PathBuf>("access-key-file") {
        let text = read(path, "access-key-file")?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let [id, secret, rest @ ..] = lines.as_slice() else {
            let expected = "expected two lines: key id and secret";
            return Err(usage("access-key-file", expected));
        };
        (*id).clone_into(&mut s3.access_key_id);
        (*secret).clone_into(&mut s3.secret_access_key);
        s3.session_token = rest.first().copied().unwrap_or_default().to_owned();
    }
    if *s3 == Default::default() {
        source.s3 = None;
    }
    Ok(())
}

fn apply_keys(arguments: &ArgMatches, source: &mut Source) {
    let keys = source.key_rules.get_or_insert_default();
    set_list(arguments, "ignore-query", &mut keys.ignore_query);
    set_list(arguments, "only-query", &mut keys.only_query);
    set_list(arguments, "keep-query", &mut keys.keep_query);
    set(arguments, "sort-query", &mut keys.sort_query);
    if let Some(how) = arguments.get_one::<String>("presigned") {
        keys.trust_cache = how == "trust-cache";
    }
    set(arguments, "fold-path-case", &mut keys.fold_path_case);
    if *keys == Default::default() {
        source.key_rules = None;
    }
}

fn apply_freshness(arguments: &ArgMatches, source: &mut Source) -> Result<(), CliError> {
    let freshness = source.freshness.get_or_insert_default();
    for (name, ttl) in [
        ("default-ttl", &mut freshness.default_ttl_seconds),
        ("override-ttl", &mut freshness.override_ttl_seconds),
        ("stale-if-error", &mut freshness.stale_if_error_seconds),
        ("negative-ttl", &mut freshness.negative_ttl_seconds),
    ] {
        if let Some(seconds) = arguments.get_one::<u32>(name) {
            *ttl = Some(*seconds);
        }
    }
    let mut rules = Vec::new();
    set_list(arguments, "ttl", &mut rules);
    if arguments.contains_id("ttl") {
        source.ttl_rules = rules
            .iter()
            .map(|rule| parse_ttl_rule(rule).map_err(|error| usage("ttl", &error)))
            .collect::<Result<_, _>>()?;
    }
    Ok(())
}

fn set<T: Clone + Send + Sync + 'static>(arguments: &ArgMatches, name: &str, setting: &mut T) {
    if let Some(value) = arguments.get_one::<T>(name) {
        setting.clone_from(value);
    }
}

/// One empty value empties the list.
fn set_list(arguments: &ArgMatches, name: &str, setting: &mut Vec<String>) {
    if let Some(values) = arguments.get_many::<String>(name) {
        *setting = values.filter(|value| !value.is_empty()).cloned().collect();
    }
}

/// Whole seconds: a part of one would be dropped, and 500ms would be no time at all.
fn parse_seconds(text: &str) -> Result<u32, String> {
    let duration = parse_duration(text)?;
    if duration.subsec_nanos() > 0 {
        return Err("expected whole seconds, for example 1s or 1m30s".to_owned());
    }
    // `u32::MAX` seconds are 136 years.
    Ok(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX))
}

fn parse_ttl_rule(text: &str) -> Result<TtlRule, String> {
    let (pattern, ttl) = text
        .rsplit_once('=')
        .filter(|(pattern, _)| !pattern.is_empty())
        .ok_or_else(|| format!("{text:?}: expected PATTERN=DURATION"))?;
    Ok(TtlRule {
        pattern: pattern.to_owned(),
        seconds: parse_seconds(ttl)?,
    })
}

/// clap accepts only these words.
pub(super) fn parse_mode(word: &str) -> SourceMode {
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

/// The text of a file; empty for an empty path.
fn read(path: &Path, option: &str) -> Result<String, CliError> {
    if path.as_os_str().is_empty() {
        return Ok(String::new());
    }
    let refuse = |reason: &dyn std::fmt::Display| {
        usage(
            option,
            &format!("{} can not be read: {reason}", path.display()),
        )
    };
    text_file::read(path, MAX_FILE_BYTES).map_err(|error| refuse(&error))
}

fn usage(option: &str, text: &str) -> CliError {
    CliError::Usage(format!("--{option}: {text}"))
}
