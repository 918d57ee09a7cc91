//! The options that every command has, before or after the verb.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use service_kit::config::{Secret, parse_duration, parse_url};
use service_kit::text_file;

use super::context::{Context, Contexts};
use super::failure::CliError;

/// Variables that these commands read; `serve` shares the prefix and must not call them unknown.
pub const VARIABLES: &[&str] = &[ENDPOINT_VARIABLE, TOKEN_FILE_VARIABLE, CONTEXT_VARIABLE];

const CONTEXT_VARIABLE: &str = "CACHE_COORDINATOR_CONTEXT";
const ENDPOINT_VARIABLE: &str = "CACHE_COORDINATOR_ENDPOINT";
const TOKEN_FILE_VARIABLE: &str = "CACHE_COORDINATOR_TOKEN_FILE";
/// Limit of the size of a file with a token.
const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7400";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Clone, Debug)]
pub(super) struct Globals {
    /// Tried in this order; at least one.
    pub endpoints: Vec<String>,
    pub output: Output,
    /// Time limit for one call; streams have none.
    pub timeout: Duration,
    pub ca: Option<PathBuf>,
    pub identity: Option<(PathBuf, PathBuf)>,
    pub token: Option<Secret>,
}

pub(super) fn add_to(command: Command) -> Command {
    let option = |name: &'static str, value: &'static str, help: String| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .global(true)
            .help(help)
    };
    let heading = "Options of all commands but serve";
    command.next_help_heading(heading).args([
        option(
            "endpoint",
            "URL",
            format!(
                "Coordinators to talk to, comma separated [default: {DEFAULT_ENDPOINT}] \
                 [env: {ENDPOINT_VARIABLE}]"
            ),
        ),
        option(
            "context",
            "NAME",
            format!(
                "Context that names the coordinator, its CA and the token (`context add`) \
                 [default: the one in use, unless an endpoint is given] [env: {CONTEXT_VARIABLE}]"
            ),
        ),
        option(
            "output",
            "FORMAT",
            "How results are printed [default: table]".to_owned(),
        )
        .value_parser(["table", "json", "yaml"])
        .short('o'),
        option(
            "timeout",
            "DURATION",
            "How long one call may take, such as 30s or 500ms [default: 30s]".to_owned(),
        )
        .value_parser(parse_duration),
        option(
            "ca",
            "FILE",
            "Certificate authority of the coordinator, PEM".to_owned(),
        ),
        option(
            "cert",
            "FILE",
            "Certificate of this client, PEM; with --key".to_owned(),
        ),
        option(
            "key",
            "FILE",
            "Private key of this client, PEM; with --cert".to_owned(),
        ),
        option(
            "token-file",
            "FILE",
            format!("File holding the bearer token [env: {TOKEN_FILE_VARIABLE}]"),
        ),
    ])
}

impl Globals {
    /// Options of the command take precedence over the environment, and both over the context in
    /// use. A context that the command names takes precedence over the environment too: its
    /// endpoint and its token belong together.
    pub(super) fn read(
        matches: &ArgMatches,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CliError> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let path = |name: &str| text(name).map(PathBuf::from);
        let named = text("context");
        let of_environment = |name| variable(name).filter(|_| named.is_none());
        let endpoint = text("endpoint").or_else(|| of_environment(ENDPOINT_VARIABLE));
        let token_file =
            path("token-file").or_else(|| of_environment(TOKEN_FILE_VARIABLE).map(PathBuf::from));
        let chosen = named.clone().or_else(|| variable(CONTEXT_VARIABLE));
        let (place, context) = match chosen {
            Some(name) => {
                let context = Contexts::read(&variable)?.named(&name)?;
                (format!("context {name}: endpoint"), context)
            }
            None => in_use(endpoint.is_some(), &variable)?,
        };
        let endpoints = match &endpoint {
            Some(given) => endpoints(given, "--endpoint")?,
            None => endpoints(&context.endpoint, &place)?,
        };
        let identity = match (path("cert"), path("key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => context.cert.zip(context.key),
            _ => return Err(CliError::Usage("--cert and --key go together".to_owned())),
        };
        let token = match token_file.or(context.token_file) {
            None => None,
            Some(path) => Some(read_token(&path)?),
        };
        Ok(Globals {
            endpoints,
            output: output(matches),
            timeout: matches
                .get_one("timeout")
                .copied()
                .unwrap_or(Duration::from_secs(30)),
            ca: path("ca").or(context.ca),
            identity,
            token,
        })
    }
}

/// The context in use and the name of its endpoint setting; without a context, the default.
///
/// Ignored if an endpoint is given, because the context's token is for its own coordinator.
fn in_use(
    has_endpoint: bool,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(String, Context), CliError> {
    let has_home = variable("XDG_CONFIG_HOME")
        .or_else(|| variable("HOME"))
        .is_some();
    if !has_endpoint
        && has_home
        && let Some((name, context)) = Contexts::read(variable)?.current()?
    {
        return Ok((format!("context {name}: endpoint"), context));
    }
    let default = Context {
        endpoint: DEFAULT_ENDPOINT.to_owned(),
        ..Context::default()
    };
    Ok(("--endpoint".to_owned(), default))
}

/// One URL or several, comma separated. `place`: the setting that an error names.
pub(super) fn endpoints(text: &str, place: &str) -> Result<Vec<String>, CliError> {
    let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
    let endpoints = urls.map(|url| match parse_url(url) {
        Ok(_) => Ok(url.trim_end_matches('/').to_owned()),
        Err(expected) => Err(CliError::Usage(format!("{place} {url}: {expected}"))),
    });
    let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
    if endpoints.is_empty() {
        let message = format!("{place}: expected at least one URL");
        return Err(CliError::Usage(message));
    }
    Ok(endpoints)
}

/// How results are printed.
pub(super) fn output(matches: &ArgMatches) -> Output {
    match matches.get_one::<String>("output").map(String::as_str) {
        Some("json") => Output::Json,
        Some("yaml") => Output::Yaml,
        _ => Output::Table,
    }
}

/// An environment variable; an empty one counts as unset.
pub(super) fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|v| !v.is_empty())
}

fn read_token(path: &Path) -> Result<Secret, CliError> {
    let named = path.display();
    let text = text_file::read(path, MAX_TOKEN_FILE_BYTES).map_err(|error| {
        CliError::Usage(format!("--token-file {named} can not be read: {error}"))
    })?;
    match text.trim() {
        "" => Err(CliError::Usage(format!("--token-file {named} is empty"))),
        token => Ok(Secret::new(token)),
    }
}
