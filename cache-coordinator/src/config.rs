//! The options of `serve`: one table, and the checked values.

use std::{net::SocketAddr, path::PathBuf};

use chunkcache_proto::Geometry;
use clap::Command;
use service_kit::{
    config::{Kind, OptionSpec, Problems, Secret, Settings, Table},
    telemetry,
    tls::{self, ServerFiles},
};

use crate::db::MigrateMode;

/// Variables begin with it.
pub const PREFIX: &str = "CACHE_COORDINATOR";

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "database-url",
        "URL",
        Kind::Text,
        "PostgreSQL 15 or later: postgres://user@host/database, or key=value pairs",
    )
    .required()
    .secret(),
    OptionSpec::new(
        "no-migrate",
        "BOOL",
        Kind::Bool,
        "Do not apply migrations at start; wait until the schema is up to date",
    ),
    OptionSpec::new(
        "database-connections",
        "COUNT",
        Kind::Integer { min: 1, max: 1000 },
        "Connections for reads; three more are used for writes, the lease and migrations",
    )
    .default("16"),
    OptionSpec::new(
        "listen",
        "ADDRESS",
        Kind::SocketAddress,
        "gRPC: CacheService, EdgeService, health and reflection",
    )
    .default("127.0.0.1:7400"),
    OptionSpec::new(
        "http-listen",
        "ADDRESS",
        Kind::SocketAddress,
        "HTTP: /livez, /readyz, /metrics and the dashboard at /",
    )
    .default("127.0.0.1:7401"),
    OptionSpec::new(
        "advertise-url",
        "URL",
        Kind::Url,
        "Where clients and edges reach this coordinator's gRPC; standbys name it while it leads",
    )
    .default_note("from --listen"),
    OptionSpec::new(
        "chunk-size",
        "BYTES",
        Kind::Checked(check_chunk_size),
        "Bytes in a chunk of entries made from now on: a power of two from 64KiB to 64MiB",
    )
    .default("2MiB"),
    OptionSpec::new(
        "tls-cert",
        "FILE",
        Kind::Path,
        "Certificate chain (PEM); TLS on both listeners",
    ),
    OptionSpec::new(
        "tls-key",
        "FILE",
        Kind::Path,
        "Private key of --tls-cert (PEM)",
    ),
    OptionSpec::new(
        "tls-client-ca",
        "FILE",
        Kind::Path,
        "Authority (PEM) whose certificates gRPC clients must present",
    ),
    OptionSpec::new(
        "access-tokens-file",
        "FILE",
        Kind::Path,
        "Bearer tokens, a line each: role (viewer, service, operator, edge), name, token or sha256:DIGEST; read again when it changes",
    )
    .default_note("none: everyone who can connect may do everything"),
    OptionSpec::new(
        "insecure-listen",
        "BOOL",
        Kind::Bool,
        "Listen without TLS also where other machines can reach it",
    ),
    OptionSpec::new(
        "drain-grace",
        "DURATION",
        Kind::Duration,
        "How long running calls may take to end after SIGTERM",
    )
    .default("10s"),
];

/// All options of `serve`.
#[must_use]
pub fn table() -> Table {
    Table::new(PREFIX, &[OPTIONS, telemetry::OPTIONS]).foreign_variables(crate::cli::VARIABLES)
}

/// The command `serve`, to stand beside those of [`crate::cli`].
pub fn serve_command() -> Command {
    table().add_to(
        Command::new("serve")
            .about("Runs a coordinator; every option is also an environment variable and a key of --config FILE"),
    )
}

/// What `serve` runs with.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// May hold a password.
    pub database_url: Secret,
    /// Connections for reads.
    pub database_connections: usize,
    /// Whether the schema is brought up to date.
    pub migrate: MigrateMode,
    /// gRPC.
    pub listen: SocketAddr,
    /// HTTP.
    pub http_listen: SocketAddr,
    /// How others reach us; made from the bound address where it is not given.
    pub advertise_url: Option<String>,
    /// Bytes in a chunk.
    pub chunk_size: u32,
    /// TLS of the gRPC listener; the HTTP one has the same without a client CA.
    pub tls: Option<ServerFiles>,
    /// Who may do what; without it, everyone may do everything.
    pub access_tokens: Option<PathBuf>,
    /// How long calls may take to end.
    pub drain_grace: std::time::Duration,
}

impl ServeConfig {
    /// From settings that [`check`] accepted.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Self {
        let chunk_size: String = settings.value("chunk-size");
        let tls = settings
            .get::<PathBuf>("tls-cert")
            .zip(settings.get::<PathBuf>("tls-key"))
            .map(|(cert, key)| ServerFiles {
                cert,
                key,
                client_ca: settings.get("tls-client-ca"),
                alpn: vec![b"h2".to_vec()],
            });
        Self {
            database_url: settings.value("database-url"),
            database_connections: usize::try_from(settings.value::<u64>("database-connections"))
                .unwrap_or(1),
            migrate: if settings.is_set("no-migrate") {
                MigrateMode::CheckOnly
            } else {
                MigrateMode::Apply
            },
            listen: settings.value("listen"),
            http_listen: settings.value("http-listen"),
            advertise_url: settings
                .get::<url::Url>("advertise-url")
                .map(|url| url.as_str().trim_end_matches('/').to_owned()),
            chunk_size: parse_chunk_size(&chunk_size).unwrap_or(Geometry::DEFAULT_CHUNK_SIZE),
            tls,
            access_tokens: settings.get("access-tokens-file"),
            drain_grace: settings.value("drain-grace"),
        }
    }
}

/// What options must agree on.
pub fn check(settings: &Settings, problems: &mut Problems) {
    let has = |name| settings.get::<PathBuf>(name).is_some();
    let (cert, key) = (has("tls-cert"), has("tls-key"));
    if cert != key {
        let missing = if cert { "tls-key" } else { "tls-cert" };
        problems.push(missing, "--tls-cert and --tls-key are given together");
    }
    if has("tls-client-ca") && !cert {
        problems.push("tls-client-ca", "needs --tls-cert and --tls-key");
    }
    let is_insecure = settings.is_set("insecure-listen");
    for name in ["listen", "http-listen"] {
        if let Some(address) = settings.get::<SocketAddr>(name)
            && let Err(reason) =
                tls::refuse_plain_listener(address, "tls-cert", cert && key, is_insecure)
        {
            problems.push(name, reason);
        }
    }
    let addresses = settings
        .get::<SocketAddr>("listen")
        .zip(settings.get::<SocketAddr>("http-listen"));
    if addresses.is_some_and(|(grpc, http)| grpc == http && grpc.port() != 0) {
        problems.push("http-listen", "is the same address as --listen");
    }
}

fn check_chunk_size(text: &str) -> Result<(), String> {
    parse_chunk_size(text).map(drop)
}

fn parse_chunk_size(text: &str) -> Result<u32, String> {
    let bytes = service_kit::config::parse_bytes(text)?;
    let bytes = u32::try_from(bytes).map_err(|_| "expected at most 64MiB".to_owned())?;
    if bytes < Geometry::MIN_SERVED_CHUNK_SIZE {
        return Err("expected at least 2MiB".into());
    }
    Geometry::new(1, bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(arguments: &[&str]) -> Result<ServeConfig, String> {
        let table = table();
        let command = table.add_to(clap::Command::new("serve"));
        let matches = command.get_matches_from([&["serve"], arguments].concat());
        table
            .load_from(&matches, [], check)
            .map(|settings| ServeConfig::from_settings(&settings))
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn defaults_are_the_contracts() {
        let config = load(&["--database-url", "postgres://x"]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7400");
        assert_eq!(config.http_listen.to_string(), "127.0.0.1:7401");
        assert_eq!(config.chunk_size, 2 << 20);
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let problems = load(&[
            "--chunk-size",
            "3MiB",
            "--listen",
            "0.0.0.0:1",
            "--tls-client-ca",
            "ca.pem",
            "--nonsense",
        ])
        .unwrap_err();
        for part in [
            "database-url",
            "chunk-size",
            "0.0.0.0:1",
            "tls-client-ca",
            "nonsense",
        ] {
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }

    #[test]
    fn a_plain_listener_for_others_must_be_wanted() {
        let insecure = [
            "--database-url",
            "x",
            "--listen",
            "0.0.0.0:1",
            "--insecure-listen",
        ];
        assert!(load(&insecure).is_ok());
        assert!(load(&insecure[..4]).is_err());
    }
}
