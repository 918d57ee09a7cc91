//! The options of the HTTP server for players: access, limits and time-outs.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{ValueEnum, value_parser};
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use service_kit::{
    config::{Problems, parse_bytes, parse_duration},
    token_bucket::Rate,
};

use crate::{
    core::trusted_proxies::TrustedProxies,
    server::{
        AccessLogOptions, AllowedOrigins, Cors, Destination, KeyFiles, Limits, Proxies, Timeouts,
    },
};

/// See the module.
#[derive(Clone, Debug, clap::Args)]
pub struct PlayerOptions {
    /// Web pages whose scripts may read responses: *, none, or origins such as
    /// `https://player.example`
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
    /// Send players data about each response (CMSD): the round trip and throughput of their
    /// connection, the time to its first byte, --client-rate; and properties of its media type
    #[arg(long)]
    pub cmsd: bool,
    /// Write one line per request: json, combined or w3c, optionally followed by :FILE, which is
    /// reopened on SIGHUP; :- for standard output; :syslog for /dev/log, or
    /// :syslog:udp://HOST:PORT, :syslog:tcp://HOST:PORT, :syslog:unix:///PATH (RFC 5424; the port
    /// is 514 by default); or :otlp for log records to --otlp-endpoint [default: none]
    #[arg(long, value_name = "FORMAT[:TARGET]", value_parser = value_parser!(AccessLogOptions))]
    pub access_log: Option<AccessLogOptions>,
    /// Answer signed URLs only; one key per line: its id, a space, its secret; read again when it
    /// changes [default: none: URLs need no signature]
    #[arg(long, value_name = "FILE")]
    pub signed_url_keys_file: Option<PathBuf>,
    /// Answer requests with a JSON Web Token (HS256, RS256, ES256) of a key in this JWK Set, beside
    /// those that --signed-url-keys-file allows; read again when it changes [default: none]
    #[arg(long, value_name = "FILE")]
    pub signed_url_jwks_file: Option<PathBuf>,
    /// Expect a PROXY protocol header (version 1 or 2) before anything else on connections to
    /// --listen: from --trusted-proxies, or from all if none is named; connections without it are
    /// closed
    #[arg(long)]
    pub proxy_protocol: bool,
    /// Addresses and networks of proxies whose PROXY header, Forwarded and X-Forwarded-For name the
    /// client [default: none: the client is the connection's other end]
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = parse_network
    )]
    pub trusted_proxies: Vec<IpNet>,
    /// Connections of all clients at a time; further ones are answered with 503 and closed. Half of
    /// the files that the process may open is the most (LimitNOFILE, ulimit -Hn)
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "20000",
        value_parser = value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_connections: u32,
    /// Connections of one IPv4 address or IPv6 /64 at a time; over HTTP/2 also the limit of its
    /// requests at a time, plus 128
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "512",
        value_parser = value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_connections_per_client: u32,
    /// Requests per second of one client, with bursts of twice as many; more are answered with 429;
    /// 0: no limit
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "0",
        value_parser = value_parser!(u32).range(0..=1_000_000)
    )]
    pub request_rate: u32,
    /// Bytes per second of one connection, at least 16KiB; five seconds' worth is sent at once at
    /// its start and after a pause [default: no limit]
    #[arg(long, value_name = "BYTES/S", value_parser = parse_client_rate)]
    pub client_rate: Option<u64>,
    /// How long a new connection may take for its first request's head, TLS handshake included
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_some_time)]
    pub request_timeout: Duration,
    /// How long a connection stays open between two requests
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = parse_some_time)]
    pub idle_timeout: Duration,
    /// How long a client may take no byte of a body; long, because a paused player takes none
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
            request_rate: (rate > 0.0).then_some(Rate {
                per_second: rate,
                burst: rate * 2.0,
            }),
            client_rate: self.client_rate,
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

    #[must_use]
    pub fn proxies(&self) -> Proxies {
        Proxies {
            send_header: self.proxy_protocol,
            trusted: TrustedProxies::new(self.trusted_proxies.clone()),
        }
    }

    /// Whether the access log needs an OpenTelemetry collector.
    #[must_use]
    pub fn logs_to_collector(&self) -> bool {
        let options = self.access_log.as_ref();
        options.is_some_and(|it| it.destination == Destination::Otlp)
    }

    /// Where the keys of signatures are; none: nothing has to be signed.
    #[must_use]
    pub fn key_files(&self) -> Option<KeyFiles> {
        let (keys, jwks) = (&self.signed_url_keys_file, &self.signed_url_jwks_file);
        (keys.is_some() || jwks.is_some()).then(|| KeyFiles {
            keys: keys.clone(),
            jwks: jwks.clone(),
        })
    }

    /// Reports conflicts, and values that cannot be checked by parsing alone.
    pub fn check(&self, problems: &mut Problems) {
        let is_word = |origin: &String| matches!(origin.as_str(), "*" | "none");
        if self.cors_allow_origin.len() > 1 && self.cors_allow_origin.iter().any(is_word) {
            problems.push("cors-allow-origin", "* and none are given alone");
        }
        let (keys, jwks) = (
            self.signed_url_keys_file.clone(),
            self.signed_url_jwks_file.clone(),
        );
        for (option, files) in [
            ("signed-url-keys-file", KeyFiles { keys, jwks: None }),
            ("signed-url-jwks-file", KeyFiles { keys: None, jwks }),
        ] {
            if let Err(error) = files.read() {
                let why = std::error::Error::source(&error).filter(|_| error.is_of_the_system());
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                problems.push(option, format!("{error}{why}"));
            }
        }
    }
}

fn parse_header_name(text: &str) -> Result<String, String> {
    let name: HeaderName = text.parse().map_err(|_| "expected the name of a header")?;
    Ok(name.as_str().to_owned())
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse::<IpNet>().or_else(|_| address());
    network.map_err(|_| "expected an address or a network such as 192.0.2.0/24".to_owned())
}

fn parse_client_rate(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        rate if rate < 16 << 10 => Err("expected at least 16KiB a second".to_owned()),
        rate => Ok(rate),
    }
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
    // Compared byte by byte with the browser's header, which is the serialisation of an origin.
    let url = url::Url::parse(origin).map_err(|_| EXPECTED.to_owned())?;
    if url.origin().ascii_serialization() == origin {
        Ok(origin.to_owned())
    } else {
        Err(EXPECTED.to_owned())
    }
}
