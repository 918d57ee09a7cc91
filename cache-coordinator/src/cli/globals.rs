//! The options that every command has, before or after the verb.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use service_kit::config::{Secret, parse_duration, parse_url};

use super::failure::CliError;

/// Variables these commands read; `serve` shares the prefix and must not call them unknown.
pub const VARIABLES: &[&str] = &[ENDPOINT_VARIABLE, TOKEN_FILE_VARIABLE];

const ENDPOINT_VARIABLE: &str = "CACHE_COORDINATOR_ENDPOINT";
const TOKEN_FILE_VARIABLE: &str = "CACHE_COORDINATOR_TOKEN_FILE";
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
    pub(super) fn from_matches(matches: &ArgMatches) -> Result<Self, CliError> {
        Globals::read(matches, |variable| {
            std::env::var(variable).ok().filter(|v| !v.is_empty())
        })
    }

    pub(super) fn read(
        matches: &ArgMatches,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CliError> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let path = |name: &str| text(name).map(PathBuf::from);
        let endpoints = text("endpoint")
            .or_else(|| variable(ENDPOINT_VARIABLE))
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned())
            .split(',')
            .map(str::trim)
            .filter(|endpoint| !endpoint.is_empty())
            .map(|endpoint| {
                parse_url(endpoint)
                    .map(|_| endpoint.trim_end_matches('/').to_owned())
                    .map_err(|expected| {
                        CliError::Usage(format!("--endpoint {endpoint}: {expected}"))
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(CliError::Usage(
                "--endpoint: expected at least one URL".to_owned(),
            ));
        }
        let identity = match (path("cert"), path("key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(CliError::Usage("--cert and --key go together".to_owned())),
        };
        let token = match text("token-file").or_else(|| variable(TOKEN_FILE_VARIABLE)) {
            None => None,
            Some(path) => Some(read_token(&path)?),
        };
        let output = match text("output").as_deref() {
            Some("json") => Output::Json,
            Some("yaml") => Output::Yaml,
            _ => Output::Table,
        };
        Ok(Globals {
            endpoints,
            output,
            timeout: matches
                .get_one("timeout")
                .copied()
                .unwrap_or(Duration::from_secs(30)),
            ca: path("ca"),
            identity,
            token,
        })
    }
}

fn read_token(path: &str) -> Result<Secret, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::Usage(format!("--token-file {path} can not be read: {error}"))
    })?;
    match text.trim() {
        "" => Err(CliError::Usage(format!("--token-file {path} is empty"))),
        token => Ok(Secret::new(token)),
    }
}
