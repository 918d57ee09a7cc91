//! The options of `cache-edge serve`, and the conflicts between them.

mod players;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use chunkcache_proto::source_name::check_name;
use service_kit::{
    config::{BytesOrPercent, Kind, OptionSpec, Problems, Settings, Table},
    telemetry,
    tls::{ClientFiles, refuse_plain_listener},
};

pub use self::players::PlayerOptions;
use crate::core::lookahead::DEFAULT_LOOKAHEAD_CHUNKS;
use chunk_store::MinFree;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "name",
        "NAME",
        Kind::Checked(checked_name),
        "The edge's stable identity in the cluster",
    )
    .required(),
    OptionSpec::new(
        "coordinator",
        "URL",
        Kind::Url,
        "One coordinator or several",
    )
    .default("http://127.0.0.1:7400")
    .list(),
    OptionSpec::new(
        "data-dir",
        "DIR",
        Kind::Path,
        "Sparse files and the edge's own files; created if missing, locked while in use",
    )
    .required(),
    OptionSpec::new(
        "listen",
        "ADDRESS:PORT",
        Kind::SocketAddress,
        "HTTP for players",
    )
    .default("127.0.0.1:7500"),
    OptionSpec::new(
        "admin-listen",
        "ADDRESS:PORT",
        Kind::SocketAddress,
        "/livez, /readyz and /metrics",
    )
    .default("127.0.0.1:7501"),
    OptionSpec::new(
        "advertise-url",
        "URL",
        Kind::Url,
        "The base URL players and peer edges reach this edge at",
    )
    .default_note("from --listen"),
    OptionSpec::new(
        "max-size",
        "BYTES",
        Kind::Bytes,
        "Bytes of chunks kept at most",
    )
    .default_note("the smaller of 90 % of the file system and what --min-free leaves"),
    OptionSpec::new(
        "min-free",
        "BYTES|PERCENT",
        Kind::BytesOrPercent,
        "Free space never used",
    )
    .default("5%"),
    OptionSpec::new(
        "max-downloads",
        "COUNT",
        Kind::Integer { min: 1, max: 1024 },
        "Origin or peer fetches at a time; one more is kept for what a reader waits for",
    )
    .default("3"),
    OptionSpec::new(
        "lookahead",
        "CHUNKS",
        Kind::Integer { min: 1, max: 4096 },
        "Chunks fetched ahead of a reader",
    )
    .default_note("adaptive, at least 10 chunks"),
    OptionSpec::new(
        "chunk-wait-timeout",
        "DURATION",
        Kind::Duration,
        "How long a request waits for a byte before 503 or, once streaming, an aborted body",
    )
    .default("30s"),
    OptionSpec::new(
        "background-fill",
        "BOOL",
        Kind::Bool,
        "Finish partly cached entries at LOW",
    )
    .default("true"),
    OptionSpec::new(
        "tls-cert",
        "FILE",
        Kind::Path,
        "HTTPS, and HTTP/2 by ALPN, on --listen: the certificate, PEM",
    ),
    OptionSpec::new("tls-key", "FILE", Kind::Path, "The key of --tls-cert, PEM"),
    OptionSpec::new(
        "admin-tls-cert",
        "FILE",
        Kind::Path,
        "HTTPS on --admin-listen: the certificate, PEM; that of --listen may be of a public authority, this one of the cluster's",
    ),
    OptionSpec::new(
        "admin-tls-key",
        "FILE",
        Kind::Path,
        "The key of --admin-tls-cert, PEM",
    ),
    OptionSpec::new(
        "coordinator-ca",
        "FILE",
        Kind::Path,
        "Authority trusted for coordinators and peers, PEM",
    )
    .default_note("the system's"),
    OptionSpec::new(
        "coordinator-cert",
        "FILE",
        Kind::Path,
        "Certificate shown to coordinators and peers, PEM",
    ),
    OptionSpec::new(
        "coordinator-key",
        "FILE",
        Kind::Path,
        "The key of --coordinator-cert, PEM",
    ),
    OptionSpec::new(
        "coordinator-token-file",
        "FILE",
        Kind::Path,
        "File holding this edge's bearer token; read anew for each connection",
    )
    .default_note("none"),
    OptionSpec::new(
        "insecure-listen",
        "BOOL",
        Kind::Bool,
        "Allow listeners on other addresses than loopback without TLS",
    )
    .default("false"),
    OptionSpec::new(
        "drain-grace",
        "DURATION",
        Kind::Duration,
        "How long running bodies may finish after SIGTERM",
    )
    .default("30s"),
];

fn checked_name(name: &str) -> Result<(), String> {
    check_name(name).map_err(|error| error.to_string())
}

/// All options, with those every binary has.
#[must_use]
pub fn table() -> Table {
    Table::new(
        "CACHE_EDGE",
        &[OPTIONS, players::OPTIONS, telemetry::OPTIONS],
    )
}

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    pub coordinators: Vec<String>,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub advertise_url: Option<String>,
    pub max_bytes: Option<u64>,
    pub min_free: MinFree,
    pub max_downloads: usize,
    /// While no coordinator decides.
    pub lookahead_chunks: u32,
    /// Asked for with `--lookahead`; unset: the coordinator adapts it.
    pub fixed_lookahead_chunks: Option<u32>,
    pub chunk_wait_timeout: Duration,
    pub background_fill: bool,
    pub tls: Option<(PathBuf, PathBuf)>,
    pub admin_tls: Option<(PathBuf, PathBuf)>,
    pub coordinator_tls: ClientFiles,
    /// Of a bearer token.
    pub coordinator_token: Option<PathBuf>,
    pub drain_grace: Duration,
    pub players: PlayerOptions,
}

impl Options {
    /// After the table's own checks succeeded.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Self {
        let pair = |cert, key| {
            settings
                .get::<PathBuf>(cert)
                .zip(settings.get::<PathBuf>(key))
        };
        let lookahead = settings
            .get::<u64>("lookahead")
            .and_then(|chunks| u32::try_from(chunks).ok());
        Self {
            name: settings.value("name"),
            coordinators: settings
                .list::<url::Url>("coordinator")
                .into_iter()
                .map(|url| url.as_str().trim_end_matches('/').to_owned())
                .collect(),
            data_dir: settings.value("data-dir"),
            listen: settings.value("listen"),
            admin_listen: settings.value("admin-listen"),
            advertise_url: settings
                .get::<url::Url>("advertise-url")
                .map(|url| url.as_str().trim_end_matches('/').to_owned()),
            max_bytes: settings.get("max-size"),
            min_free: match settings.value::<BytesOrPercent>("min-free") {
                BytesOrPercent::Bytes(bytes) => MinFree::Bytes(bytes),
                BytesOrPercent::Percent(percent) => MinFree::Percent(percent),
            },
            max_downloads: usize::try_from(settings.value::<u64>("max-downloads")).unwrap_or(3),
            lookahead_chunks: lookahead.unwrap_or(DEFAULT_LOOKAHEAD_CHUNKS),
            fixed_lookahead_chunks: lookahead,
            chunk_wait_timeout: settings.value("chunk-wait-timeout"),
            background_fill: settings.value("background-fill"),
            tls: pair("tls-cert", "tls-key"),
            admin_tls: pair("admin-tls-cert", "admin-tls-key"),
            coordinator_tls: ClientFiles {
                ca: settings.get("coordinator-ca"),
                identity: pair("coordinator-cert", "coordinator-key"),
                alpn: Vec::new(),
            },
            coordinator_token: settings.get("coordinator-token-file"),
            drain_grace: settings.value("drain-grace"),
            players: PlayerOptions::from_settings(settings),
        }
    }
}

/// Conflicts between options; runs also when single ones are wrong.
pub fn check(settings: &Settings, problems: &mut Problems) {
    players::check(settings, problems);
    for (cert, key) in [
        ("tls-cert", "tls-key"),
        ("admin-tls-cert", "admin-tls-key"),
        ("coordinator-cert", "coordinator-key"),
    ] {
        let has = |name| settings.get::<PathBuf>(name).is_some();
        if has(cert) != has(key) {
            let (given, missing) = if has(cert) { (cert, key) } else { (key, cert) };
            problems.push(missing, format!("is needed with --{given}"));
        }
    }
    let insecure = settings.is_set("insecure-listen");
    for (name, cert) in [("listen", "tls-cert"), ("admin-listen", "admin-tls-cert")] {
        let tls = settings.get::<PathBuf>(cert).is_some();
        if let Some(address) = settings.get::<SocketAddr>(name)
            && let Err(message) = refuse_plain_listener(address, cert, tls, insecure)
        {
            problems.push(name, message);
        }
    }
    if let (Some(listen), Some(admin)) = (
        settings.get::<SocketAddr>("listen"),
        settings.get::<SocketAddr>("admin-listen"),
    ) && listen == admin
        && listen.port() != 0
    {
        problems.push("admin-listen", "is the same as --listen");
    }
}
