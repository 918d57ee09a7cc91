//! The options of `serve`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use chunkcache_proto::Geometry;
use clap::value_parser;
use service_kit::{
    config::{
        self, Problems, Secret, parse_base_url, parse_bytes, parse_duration, parse_socket_address,
    },
    telemetry::TelemetryOptions,
    tls::{self, ServerFiles},
};

use crate::db::{MigrateMode, connect};

/// The operator's settings.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeOptions {
    /// PostgreSQL 15 or later: postgres://user@host/database, or key=value pairs
    #[arg(long, value_name = "URL", value_parser = Secret::parse)]
    pub database_url: Secret,
    /// Do not apply migrations at start; wait until the schema is up to date
    #[arg(long)]
    pub no_migrate: bool,
    /// Connections for reads, 1 to 1000; three more are used for writes, the lease and migrations
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "16",
        value_parser = value_parser!(u32).range(1..=1000)
    )]
    pub database_connections: u32,
    /// gRPC: CacheService, EdgeService, health and reflection
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:7400",
        value_parser = parse_socket_address
    )]
    pub listen: SocketAddr,
    /// HTTP: /livez, /readyz, /metrics and the dashboard at /
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:7401",
        value_parser = parse_socket_address
    )]
    pub http_listen: SocketAddr,
    /// Where clients and edges reach this coordinator's gRPC; standbys name it while it leads
    /// [default: from --listen; of all addresses, the one that the default route has]
    #[arg(long, value_name = "URL", value_parser = parse_base_url)]
    pub advertise_url: Option<String>,
    /// Bytes in a chunk of entries made from now on: a power of two from 64KiB to 64MiB
    #[arg(long, value_name = "BYTES", default_value = "2MiB", value_parser = parse_chunk_size)]
    pub chunk_size: u32,
    /// Certificate chain (PEM); TLS on both listeners
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Authority (PEM) whose certificates gRPC clients must present
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Bearer tokens, one per line: role (viewer, service, operator, edge), name, token or
    /// sha256:DIGEST; read again when it changes [default: none: everyone who can connect may do
    /// everything]
    #[arg(long, value_name = "FILE")]
    pub access_tokens_file: Option<PathBuf>,
    /// Listen without TLS also where other machines can reach it
    #[arg(long)]
    pub insecure_listen: bool,
    /// How long running calls may take to end after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub drain_grace: Duration,
    #[command(flatten)]
    pub telemetry: TelemetryOptions,
}

impl ServeOptions {
    #[must_use]
    pub fn migrate(&self) -> MigrateMode {
        if self.no_migrate {
            MigrateMode::CheckOnly
        } else {
            MigrateMode::Apply
        }
    }

    /// What distinguishes this process from others of its kind.
    #[must_use]
    pub fn instance(&self) -> String {
        self.listen.to_string()
    }

    /// TLS of the gRPC listener; the HTTP listener uses the same, without a client CA.
    #[must_use]
    pub fn tls(&self) -> Option<ServerFiles> {
        let (cert, key) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        Some(ServerFiles {
            cert,
            key,
            client_ca: self.tls_client_ca.clone(),
            alpn: vec![b"h2".to_vec()],
        })
    }
}

impl config::Options for ServeOptions {
    const PREFIX: &'static str = "CACHE_COORDINATOR";
    const FOREIGN_VARIABLES: &'static [&'static str] = crate::cli::VARIABLES;

    fn check(&self, problems: &mut Problems) {
        self.telemetry.check(problems);
        if let Err(reason) = connect::check(self.database_url.expose(), &connect::Process) {
            problems.push("database-url", reason);
        }
        let (cert, key) = (self.tls_cert.is_some(), self.tls_key.is_some());
        if cert != key {
            let missing = if cert { "tls-key" } else { "tls-cert" };
            problems.push(missing, "--tls-cert and --tls-key are given together");
        }
        if self.tls_client_ca.is_some() && !cert {
            problems.push("tls-client-ca", "needs --tls-cert and --tls-key");
        }
        let is_tls = cert && key;
        for (name, address) in [("listen", self.listen), ("http-listen", self.http_listen)] {
            let refused =
                tls::refuse_plain_listener(address, "tls-cert", is_tls, self.insecure_listen);
            if let Err(reason) = refused {
                problems.push(name, reason);
            }
        }
        if self.listen == self.http_listen && self.listen.port() != 0 {
            problems.push("http-listen", "is the same address as --listen");
        }
    }
}

fn parse_chunk_size(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text)?;
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

    fn load(flags: &[&str]) -> Result<ServeOptions, String> {
        config::parse_from(flags).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_contracts() {
        let options = load(&["--database-url", "postgres://u@x"]).unwrap();
        assert_eq!(options.listen.to_string(), "127.0.0.1:7400");
        assert_eq!(options.http_listen.to_string(), "127.0.0.1:7401");
        assert_eq!(options.chunk_size, 2 << 20);
    }

    #[test]
    fn what_is_wrong_is_said_at_once() {
        let values = load(&["--chunk-size", "3MiB", "--listen", "nowhere"]).unwrap_err();
        for part in ["database-url", "chunk-size", "listen"] {
            assert!(values.contains(part), "{part}: {values}");
        }
        let conflicts = load(&[
            "--database-url=postgres://u@x",
            "--listen=0.0.0.0:1",
            "--tls-client-ca=ca.pem",
        ])
        .unwrap_err();
        for part in ["0.0.0.0:1", "tls-client-ca"] {
            assert!(conflicts.contains(part), "{part}: {conflicts}");
        }
    }

    #[test]
    fn a_plain_listener_for_others_must_be_wanted() {
        let insecure = [
            "--database-url",
            "postgres://u@x",
            "--listen",
            "0.0.0.0:1",
            "--insecure-listen",
        ];
        assert!(load(&insecure).is_ok());
        assert!(load(&insecure[..4]).is_err());
    }
}
