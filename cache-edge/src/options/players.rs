//! The options of the HTTP server for players: access, limits and time-outs.

use std::{path::PathBuf, time::Duration};

use clap::{ValueEnum, value_parser};
use http::{HeaderName, HeaderValue};
use service_kit::config::{Problems, parse_duration};

use crate::{
    core::signed_url_keys,
    server::{AccessLogOptions, AllowedOrigins, Cors, Limits, RequestRate, Timeouts},
};

/// See the module.
#[derive(Clone, Debug, clap::Args)]
pub struct PlayerOptions {
    /// Web pages whose scripts may read responses: *, none, or origins such as `https://player.example`
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        default_value = "*",
        value_parser = parse_origin
    )]
    pub cors_allow_origin: Vec<String>,
    /// Request headers that scripts of such pages may set [default: whatever a preflight asks for]
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = parse_header_name
    )]
    pub cors_allow_header: Vec<String>,
    /// Pages that may embed responses without CORS (Cross-Origin-Resource-Policy)
    #[arg(
        long,
        value_name = "POLICY",
        value_enum,
        default_value = "cross-origin"
    )]
    pub cross_origin_resource_policy: ResourcePolicy,
    /// One line a request: json, combined or w3c, then perhaps :FILE, opened anew on SIGHUP, or :- for standard output [default: none]
    #[arg(long, value_name = "FORMAT[:TARGET]", value_parser = value_parser!(AccessLogOptions))]
    pub access_log: Option<AccessLogOptions>,
    /// Answer signed URLs only; a line a key: its id, a space, its secret; read again when it changes [default: none: URLs need no signature]
    #[arg(long, value_name = "FILE")]
    pub signed_url_keys_file: Option<PathBuf>,
    /// Connections of all clients at a time; one more is answered 503 and closed
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "20000",
        value_parser = value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_connections: u32,
    /// Connections of one IPv4 address or IPv6 /64 at a time
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "512",
        value_parser = value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_connections_per_client: u32,
    /// Requests a second of one client, twice as many at once; more are answered 429; 0: not limited
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "0",
        value_parser = value_parser!(u32).range(0..=1_000_000)
    )]
    pub request_rate: u32,
    /// How long a new connection may take for its first request's head, TLS handshake included
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_some_time)]
    pub request_timeout: Duration,
    /// How long a connection stays open between two requests
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = parse_some_time)]
    pub idle_timeout: Duration,
    /// How long a client may take no byte of a body; long, as a paused player does just that
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = parse_some_time)]
    pub send_timeout: Duration,
}

/// `Cross-Origin-Resource-Policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResourcePolicy {
    /// The header is not sent.
    None,
    SameOrigin,
    SameSite,
    CrossOrigin,
}

impl PlayerOptions {
    #[must_use]
    pub fn cors(&self) -> Cors {
        let allows = |word| self.cors_allow_origin.iter().any(|origin| origin == word);
        let origins = if allows("*") {
            AllowedOrigins::Any
        } else if allows("none") {
            AllowedOrigins::None
        } else {
            AllowedOrigins::Listed(self.cors_allow_origin.clone())
        };
        let names = &self.cors_allow_header;
        let policy = match self.cross_origin_resource_policy {
            ResourcePolicy::None => None,
            ResourcePolicy::SameOrigin => Some("same-origin"),
            ResourcePolicy::SameSite => Some("same-site"),
            ResourcePolicy::CrossOrigin => Some("cross-origin"),
        };
        Cors {
            origins,
            request_headers: (!names.is_empty()).then(|| names.clone()),
            resource_policy: policy.map(HeaderValue::from_static),
        }
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        let rate = f64::from(self.request_rate);
        Limits {
            connections: usize::try_from(self.max_connections).unwrap_or(usize::MAX),
            connections_per_client: self.max_connections_per_client,
            request_rate: (rate > 0.0).then_some(RequestRate {
                per_second: rate,
                burst: rate * 2.0,
            }),
            ..Limits::default()
        }
    }

    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        Timeouts {
            request_head: self.request_timeout,
            keep_alive: self.idle_timeout,
            no_progress: self.send_timeout,
        }
    }

    /// Reports conflicts, and values that only their use can check.
    pub fn check(&self, problems: &mut Problems) {
        let is_word = |origin: &String| matches!(origin.as_str(), "*" | "none");
        if self.cors_allow_origin.len() > 1 && self.cors_allow_origin.iter().any(is_word) {
            problems.push("cors-allow-origin", "* and none are given alone");
        }
        if let Some(path) = &self.signed_url_keys_file {
            let keys = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot be read: {error}"))
                .and_then(|text| signed_url_keys::parse(&text).map_err(|error| error.to_string()));
            if let Err(error) = keys {
                let message = format!("{}: {error}", path.display());
                problems.push("signed-url-keys-file", message);
            }
        }
    }
}

fn parse_header_name(text: &str) -> Result<String, String> {
    let name: HeaderName = text.parse().map_err(|_| "expected the name of a header")?;
    Ok(name.as_str().to_owned())
}

fn parse_some_time(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

fn parse_origin(origin: &str) -> Result<String, String> {
    const EXPECTED: &str = "expected *, none, or an origin such as https://player.example:8443";
    if matches!(origin, "*" | "none") {
        return Ok(origin.to_owned());
    }
    // Compared byte by byte with what browsers send: the serialisation of an origin.
    let url = url::Url::parse(origin).map_err(|_| EXPECTED.to_owned())?;
    if url.origin().ascii_serialization() == origin {
        Ok(origin.to_owned())
    } else {
        Err(EXPECTED.to_owned())
    }
}
