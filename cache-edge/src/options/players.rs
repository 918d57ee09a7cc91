//! The options of the HTTP server that players see: who may ask, how much, and how slowly.

use std::{path::PathBuf, time::Duration};

use service_kit::config::{Kind, OptionSpec, Problems, Settings};

use crate::{
    core::signed_url_keys,
    http::{Cors, Limits, RequestRate, Timeouts},
};

/// See the module.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "cors-allow-origin",
        "ORIGIN",
        Kind::Checked(checked_origin),
        "Web pages whose scripts may read responses: *, none, or origins such as https://player.example",
    )
    .default("*")
    .list(),
    OptionSpec::new(
        "signed-url-keys-file",
        "FILE",
        Kind::Path,
        "Answer signed URLs only; a line a key: its id, a space, its secret; read again when it changes",
    )
    .default_note("none: URLs need no signature"),
    OptionSpec::new(
        "max-connections",
        "COUNT",
        Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        "Connections of all clients at a time; one more is answered 503 and closed",
    )
    .default("20000"),
    OptionSpec::new(
        "max-connections-per-client",
        "COUNT",
        Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        "Connections of one IPv4 address or IPv6 /64 at a time",
    )
    .default("512"),
    OptionSpec::new(
        "request-rate",
        "COUNT",
        Kind::Integer {
            min: 0,
            max: 1_000_000,
        },
        "Requests a second of one client, twice as many at once; more are answered 429; 0: not limited",
    )
    .default("0"),
    OptionSpec::new(
        "request-timeout",
        "DURATION",
        Kind::Duration,
        "How long a new connection may take for its first request's head, TLS handshake included",
    )
    .default("30s"),
    OptionSpec::new(
        "idle-timeout",
        "DURATION",
        Kind::Duration,
        "How long a connection stays open between two requests",
    )
    .default("75s"),
    OptionSpec::new(
        "send-timeout",
        "DURATION",
        Kind::Duration,
        "How long a client may take no byte of a body; long, as a paused player does just that",
    )
    .default("15m"),
];

/// What the operator decided.
#[derive(Clone, Debug, Default)]
pub struct PlayerOptions {
    pub cors: Cors,
    pub signed_url_keys_file: Option<PathBuf>,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

impl PlayerOptions {
    /// After the table's own checks succeeded.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Self {
        let count = |name| settings.value::<u64>(name);
        let rate = count("request-rate") as f64;
        Self {
            cors: cors(settings.list("cors-allow-origin")),
            signed_url_keys_file: settings.get("signed-url-keys-file"),
            limits: Limits {
                connections: usize::try_from(count("max-connections")).unwrap_or(usize::MAX),
                connections_per_client: u32::try_from(count("max-connections-per-client"))
                    .unwrap_or(u32::MAX),
                request_rate: (rate > 0.0).then_some(RequestRate {
                    per_second: rate,
                    burst: rate * 2.0,
                }),
                ..Limits::default()
            },
            timeouts: Timeouts {
                request_head: settings.value("request-timeout"),
                keep_alive: settings.value("idle-timeout"),
                no_progress: settings.value("send-timeout"),
            },
        }
    }
}

fn cors(origins: Vec<String>) -> Cors {
    if origins.iter().any(|origin| origin == "*") {
        Cors::AnyOrigin
    } else if origins.iter().any(|origin| origin == "none") {
        Cors::Off
    } else {
        Cors::Origins(origins)
    }
}

fn checked_origin(origin: &str) -> Result<(), String> {
    const EXPECTED: &str = "expected *, none, or an origin such as https://player.example:8443";
    if matches!(origin, "*" | "none") {
        return Ok(());
    }
    // Compared byte by byte with what browsers send, which is the serialisation of an origin.
    let url = url::Url::parse(origin).map_err(|_| EXPECTED.to_owned())?;
    if url.origin().ascii_serialization() == origin {
        Ok(())
    } else {
        Err(EXPECTED.to_owned())
    }
}

/// Conflicts, and values that only their use can judge.
pub fn check(settings: &Settings, problems: &mut Problems) {
    let origins: Vec<String> = settings.list("cors-allow-origin");
    if origins.len() > 1
        && origins
            .iter()
            .any(|origin| matches!(origin.as_str(), "*" | "none"))
    {
        problems.push("cors-allow-origin", "* and none stand alone");
    }
    for name in ["request-timeout", "idle-timeout", "send-timeout"] {
        if settings.get::<Duration>(name) == Some(Duration::ZERO) {
            problems.push(name, "expected more than nothing");
        }
    }
    if let Some(path) = settings.get::<PathBuf>("signed-url-keys-file") {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                if let Err(error) = signed_url_keys::parse(&text) {
                    problems.push(
                        "signed-url-keys-file",
                        format!("{}: {error}", path.display()),
                    );
                }
            }
            Err(error) => problems.push(
                "signed-url-keys-file",
                format!("{} can not be read: {error}", path.display()),
            ),
        }
    }
}
