//! The options of `cache-edge serve`, and the conflicts between them.

mod players;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use chunkcache_proto::source_name::check_name;
use clap::value_parser;
use service_kit::{
    config::{
        self, BytesOrPercent, Problems, parse_base_url, parse_bytes, parse_bytes_or_percent,
        parse_duration, parse_socket_address,
    },
    telemetry::{Signal, TelemetryOptions},
    tls::{ClientFiles, refuse_plain_listener},
};

pub use self::players::PlayerOptions;
use crate::core::lookahead::DEFAULT_LOOKAHEAD_CHUNKS;
use chunk_store::MinFree;

/// The operator's settings.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The edge's stable identity in the cluster
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub name: String,
    /// One coordinator or several
    #[arg(
        long = "coordinator",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7400",
        value_parser = parse_base_url
    )]
    pub coordinators: Vec<String>,
    /// Sparse files and the edge's own files; created if missing, locked while in use
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// HTTP for players
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:7500",
        value_parser = parse_socket_address
    )]
    pub listen: SocketAddr,
    /// /livez, /readyz and /metrics
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:7501",
        value_parser = parse_socket_address
    )]
    pub admin_listen: SocketAddr,
    /// The base URL at which players and peer edges reach this edge [default: from --listen; of all
    /// addresses, the one that the route to the coordinator has]
    #[arg(long, value_name = "URL", value_parser = parse_base_url)]
    pub advertise_url: Option<String>,
    /// Maximum bytes of chunks kept [default: the smaller of 90 % of the file system and what
    /// --min-free leaves]
    #[arg(long = "max-size", value_name = "BYTES", value_parser = parse_bytes)]
    pub max_bytes: Option<u64>,
    /// Free space never used
    #[arg(long, value_name = "BYTES|PERCENT", default_value = "5%", value_parser = parse_min_free)]
    pub min_free: MinFree,
    /// Origin or peer fetches at a time, 1 to 1024; one more is reserved for chunks that readers
    /// wait for
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "3",
        value_parser = value_parser!(u32).range(1..=1024)
    )]
    pub max_downloads: u32,
    /// Chunks fetched ahead of a reader, 1 to 4096 [default: adaptive, at least 10 chunks; it
    /// starts at 2 and grows with what is read beyond the first 8 MiB]
    #[arg(long, value_name = "CHUNKS", value_parser = value_parser!(u32).range(1..=4096))]
    pub lookahead: Option<u32>,
    /// An adaptive lookahead is no longer than what its reader plays in this time, or 10 chunks
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub lookahead_time: Duration,
    /// How long a request waits for a byte before 503 or, once streaming, an aborted body
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub chunk_wait_timeout: Duration,
    /// Finish partly cached entries at LOW
    #[arg(long, default_value = "true")]
    pub background_fill: bool,
    /// HTTPS, and HTTP/2 by ALPN, on --listen: the certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The key of --tls-cert, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// HTTPS on --admin-listen: the certificate, PEM; that of --listen may be of a public
    /// authority, this one of the cluster's
    #[arg(long, value_name = "FILE")]
    pub admin_tls_cert: Option<PathBuf>,
    /// The key of --admin-tls-cert, PEM
    #[arg(long, value_name = "FILE")]
    pub admin_tls_key: Option<PathBuf>,
    /// Authority trusted for coordinators and peers, PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub coordinator_ca: Option<PathBuf>,
    /// Certificate shown to coordinators and peers, PEM
    #[arg(long, value_name = "FILE")]
    pub coordinator_cert: Option<PathBuf>,
    /// The key of --coordinator-cert, PEM
    #[arg(long, value_name = "FILE")]
    pub coordinator_key: Option<PathBuf>,
    /// File holding this edge's bearer token; read again for each connection
    #[arg(long, value_name = "FILE")]
    pub coordinator_token_file: Option<PathBuf>,
    /// Allow listeners on other addresses than loopback without TLS
    #[arg(long)]
    pub insecure_listen: bool,
    /// How long running bodies may finish after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub drain_grace: Duration,
    #[command(flatten)]
    pub players: PlayerOptions,
    #[command(flatten)]
    pub telemetry: TelemetryOptions,
}

impl Options {
    /// Certificate and key of the listener for players.
    #[must_use]
    pub fn tls(&self) -> Option<(PathBuf, PathBuf)> {
        self.tls_cert.clone().zip(self.tls_key.clone())
    }

    /// Certificate and key of the listener for operators.
    #[must_use]
    pub fn admin_tls(&self) -> Option<(PathBuf, PathBuf)> {
        self.admin_tls_cert.clone().zip(self.admin_tls_key.clone())
    }

    /// The certificate shown to coordinators and peers, and the authority to trust.
    #[must_use]
    pub fn coordinator_tls(&self) -> ClientFiles {
        ClientFiles {
            ca: self.coordinator_ca.clone(),
            identity: self
                .coordinator_cert
                .clone()
                .zip(self.coordinator_key.clone()),
            alpn: Vec::new(),
        }
    }

    /// The lookahead while no coordinator decides.
    #[must_use]
    pub fn lookahead_chunks(&self) -> u32 {
        self.lookahead.unwrap_or(DEFAULT_LOOKAHEAD_CHUNKS)
    }
}

impl config::Options for Options {
    const PREFIX: &'static str = "CACHE_EDGE";

    fn check(&self, problems: &mut Problems) {
        self.players.check(problems);
        self.telemetry.check(problems);
        if self.players.logs_to_collector()
            && !self.telemetry.is_disabled()
            && self.telemetry.endpoint(Signal::Logs).is_none()
        {
            problems.push(
                "access-log",
                "otlp needs --otlp-endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT",
            );
        }
        for (cert, has_cert, key, has_key) in [
            (
                "tls-cert",
                self.tls_cert.is_some(),
                "tls-key",
                self.tls_key.is_some(),
            ),
            (
                "admin-tls-cert",
                self.admin_tls_cert.is_some(),
                "admin-tls-key",
                self.admin_tls_key.is_some(),
            ),
            (
                "coordinator-cert",
                self.coordinator_cert.is_some(),
                "coordinator-key",
                self.coordinator_key.is_some(),
            ),
        ] {
            if has_cert != has_key {
                let (given, missing) = if has_cert { (cert, key) } else { (key, cert) };
                problems.push(missing, format!("is needed with --{given}"));
            }
        }
        for (name, address, cert, tls) in [
            ("listen", self.listen, "tls-cert", self.tls_cert.is_some()),
            (
                "admin-listen",
                self.admin_listen,
                "admin-tls-cert",
                self.admin_tls_cert.is_some(),
            ),
        ] {
            if let Err(message) = refuse_plain_listener(address, cert, tls, self.insecure_listen) {
                problems.push(name, message);
            }
        }
        if self.listen == self.admin_listen && self.listen.port() != 0 {
            problems.push("admin-listen", "is the same as --listen");
        }
    }
}

fn parse_name(name: &str) -> Result<String, String> {
    check_name(name).map_err(|error| error.to_string())?;
    Ok(name.to_owned())
}

fn parse_min_free(text: &str) -> Result<MinFree, String> {
    Ok(match parse_bytes_or_percent(text)? {
        BytesOrPercent::Bytes(bytes) => MinFree::Bytes(bytes),
        BytesOrPercent::Percent(percent) => MinFree::Percent(percent),
    })
}
