//! Makes connections: parses the connection string, applies TLS as libpq does, and sets up each
//! session.

mod session;
pub mod string;
mod tls;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use deadpool_postgres::{ConfigConnectImpl, Connect};
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, NoTls,
    config::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::DatabaseError;
use string::{Parameters, Surroundings};

pub use session::{find_pooler, prepare_session};

/// The process's environment and files.
pub struct Process;

impl Surroundings for Process {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }
}

/// libpq's table of `sslmode` (PostgreSQL manual, 34.19.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encryption {
    /// Never.
    Disable,
    /// In clear, and with TLS if the server refuses that.
    Allow,
    /// With TLS, and in clear if the server refuses that.
    Prefer,
    /// With TLS only.
    Require,
}

/// The checks of a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// None: protects against eavesdroppers, not against a man in the middle.
    Anyone,
    /// The authority issued it, for any host.
    Authority(Roots),
    /// Like `Authority`, and for the host of the connection.
    Host(Roots),
}

/// Where the authorities come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    System,
    File(PathBuf),
}

/// Whether a connection string can be read. The files of TLS are read later.
pub fn check(text: &str, around: &dyn Surroundings) -> Result<(), String> {
    let parameters = string::read(text, around)?;
    config_of(&parameters, around)?;
    encryption_of(&parameters, around)?;
    Ok(())
}

/// Makes connections; one for all pools.
#[derive(Clone)]
pub struct Connector {
    pub config: tokio_postgres::Config,
    encryption: Encryption,
    tls: MakeRustlsConnect,
}

impl Connector {
    /// Reads a connection string, and the environment and files that it refers to.
    pub fn new(text: &str, around: &dyn Surroundings) -> Result<Self, DatabaseError> {
        let invalid = |reason: String| DatabaseError::invalid("database-url", reason);
        let parameters = string::read(text, around).map_err(invalid)?;
        let config = config_of(&parameters, around).map_err(invalid)?;
        let (encryption, trust) = encryption_of(&parameters, around).map_err(invalid)?;
        let identity = identity_of(&parameters, around).map_err(invalid)?;
        // Unused settings need no files.
        let tls = match encryption {
            Encryption::Disable => tls::connector(&Trust::Anyone, None),
            _ => tls::connector(&trust, identity.as_ref()),
        };
        Ok(Self {
            config,
            encryption,
            tls: tls.map_err(invalid)?,
        })
    }

    async fn once(
        &self,
        mode: SslMode,
        config: &tokio_postgres::Config,
    ) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let mut config = config.clone();
        config.ssl_mode(mode);
        match mode {
            SslMode::Disable => ConfigConnectImpl { tls: NoTls }.connect(&config).await,
            _ => {
                let tls = self.tls.clone();
                ConfigConnectImpl { tls }.connect(&config).await
            }
        }
    }
}

impl Connect for Connector {
    fn connect(
        &self,
        config: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        let config = config.clone();
        Box::pin(async move {
            let (first, second) = match self.encryption {
                Encryption::Disable => (SslMode::Disable, None),
                Encryption::Allow => (SslMode::Disable, Some(SslMode::Require)),
                Encryption::Prefer => (SslMode::Prefer, Some(SslMode::Disable)),
                Encryption::Require => (SslMode::Require, None),
            };
            match (self.once(first, &config).await, second) {
                (Err(error), Some(second)) if may_go_otherwise(&error) => {
                    // If both attempts fail, the first error is the relevant one.
                    self.once(second, &config).await.map_err(|_| error)
                }
                (result, _) => result,
            }
        })
    }
}

/// Whether the server was reached and may accept the other kind of connection.
fn may_go_otherwise(error: &tokio_postgres::Error) -> bool {
    let is_refused = error.code().is_some_and(|state| state.code() == "28000");
    is_refused || error.to_string().contains("TLS")
}

fn number<T: std::str::FromStr>(
    parameters: &Parameters,
    keyword: &str,
) -> Result<Option<T>, String> {
    parameters
        .get(keyword)
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| format!("{keyword}: {text:?} is not a number that fits"))
        })
        .transpose()
}

fn config_of(
    parameters: &Parameters,
    around: &dyn Surroundings,
) -> Result<tokio_postgres::Config, String> {
    let mut config = tokio_postgres::Config::new();
    let get = |keyword: &str| parameters.get(keyword).map(String::as_str);
    let user = get("user")
        .map(str::to_owned)
        .or_else(|| around.variable("USER"));
    let user = user.ok_or("user is missing: give it in the string or in PGUSER")?;
    config.user(&user).dbname(get("dbname").unwrap_or(&user));
    if let Some(password) = get("password") {
        config.password(password);
    }
    if let Some(options) = get("options") {
        config.options(options);
    }
    let hosts = set_hosts(&mut config, parameters)?;
    if let Some(seconds) = number::<u64>(parameters, "connect_timeout")?.filter(|it| *it > 0) {
        // Like libpq: one second counts as two.
        config.connect_timeout(Duration::from_secs(seconds.max(2)));
    }
    set_keepalives(&mut config, parameters)?;
    config.target_session_attrs(match get("target_session_attrs") {
        // With several hosts, the one that accepts writes.
        None if hosts > 1 => TargetSessionAttrs::ReadWrite,
        None | Some("any") => TargetSessionAttrs::Any,
        Some("read-write" | "primary") => TargetSessionAttrs::ReadWrite,
        Some(other @ ("read-only" | "standby" | "prefer-standby")) => {
            return Err(format!(
                "target_session_attrs={other}: a coordinator needs a server that takes writes: \
                 give read-write or leave it out"
            ));
        }
        Some(other) => return Err(format!("target_session_attrs: {other:?} is not known")),
    });
    config.channel_binding(match get("channel_binding") {
        None | Some("prefer") => ChannelBinding::Prefer,
        Some("disable") => ChannelBinding::Disable,
        Some("require") => ChannelBinding::Require,
        Some(other) => return Err(format!("channel_binding: {other:?} is not known")),
    });
    config.load_balance_hosts(match get("load_balance_hosts") {
        None | Some("disable") => LoadBalanceHosts::Disable,
        Some("random") => LoadBalanceHosts::Random,
        Some(other) => return Err(format!("load_balance_hosts: {other:?} is not known")),
    });
    config.ssl_negotiation(match get("sslnegotiation") {
        None | Some("postgres") => SslNegotiation::Postgres,
        Some("direct") => SslNegotiation::Direct,
        Some(other) => return Err(format!("sslnegotiation: {other:?} is not known")),
    });
    match get("gssencmode") {
        None | Some("disable" | "prefer") => {}
        Some(other) => return Err(format!("gssencmode={other} is not supported")),
    }
    Ok(config)
}

/// Sets the hosts and ports; returns how many there are.
fn set_hosts(
    config: &mut tokio_postgres::Config,
    parameters: &Parameters,
) -> Result<usize, String> {
    let list = |keyword: &str| -> Vec<&str> {
        parameters
            .get(keyword)
            .map(|text| text.split(',').map(str::trim).collect())
            .unwrap_or_default()
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    for address in &addresses {
        let address = address
            .parse()
            .map_err(|_| format!("hostaddr: {address:?} is not an address"))?;
        config.hostaddr(address);
    }
    let count = hosts.len().max(addresses.len()).max(1);
    if hosts.is_empty() && addresses.is_empty() {
        // The directory of Debian's socket, if it exists, as in Debian's libpq.
        let socket = "/var/run/postgresql";
        let is_there = Path::new(socket).is_dir();
        config.host(if is_there { socket } else { "localhost" });
    }
    for host in &hosts {
        config.host(if host.is_empty() { "localhost" } else { *host });
    }
    if !matches!(ports.len(), 0 | 1) && ports.len() != count {
        return Err(format!("{} ports do not match {count} hosts", ports.len()));
    }
    for port in ports {
        let port = if port.is_empty() { "5432" } else { port };
        let number = port
            .parse()
            // Not repeated: it may be a password of a URL without a host.
            .map_err(|_| "port: what is given is not a port, 1 to 65535")?;
        config.port(number);
    }
    Ok(count)
}

fn set_keepalives(
    config: &mut tokio_postgres::Config,
    parameters: &Parameters,
) -> Result<(), String> {
    config.keepalives_idle(Duration::from_secs(10));
    if let Some(on) = number::<u32>(parameters, "keepalives")? {
        config.keepalives(on != 0);
    }
    if let Some(seconds) = number(parameters, "keepalives_idle")? {
        config.keepalives_idle(Duration::from_secs(seconds));
    }
    if let Some(seconds) = number(parameters, "keepalives_interval")? {
        config.keepalives_interval(Duration::from_secs(seconds));
    }
    if let Some(count) = number(parameters, "keepalives_count")? {
        config.keepalives_retries(count);
    }
    if let Some(ms) = number(parameters, "tcp_user_timeout")? {
        config.tcp_user_timeout(Duration::from_millis(ms));
    }
    Ok(())
}

/// `~/.postgresql/NAME`, if it exists.
fn personal_file(name: &str, around: &dyn Surroundings) -> Option<PathBuf> {
    let home = around.variable("HOME").filter(|home| !home.is_empty())?;
    let path = Path::new(&home).join(".postgresql").join(name);
    around.file(&path).map(|_| path)
}

fn encryption_of(
    parameters: &Parameters,
    around: &dyn Surroundings,
) -> Result<(Encryption, Trust), String> {
    let get = |keyword: &str| parameters.get(keyword).map(String::as_str);
    let root = get("sslrootcert");
    let mode = match (get("sslmode"), root) {
        (None, Some("system")) => "verify-full",
        (None, _) => "prefer",
        (Some(mode), Some("system")) if mode != "verify-full" => {
            return Err(format!(
                "sslmode={mode} is too weak for sslrootcert=system: give sslmode=verify-full"
            ));
        }
        (Some(mode), _) => mode,
    };
    if get("sslnegotiation") == Some("direct") && matches!(mode, "disable" | "allow" | "prefer") {
        return Err(format!(
            "sslmode={mode} is too weak for sslnegotiation=direct: give sslmode=require"
        ));
    }
    let given = match root {
        Some("system") => Some(Roots::System),
        Some(path) => Some(Roots::File(path.into())),
        None => personal_file("root.crt", around).map(Roots::File),
    };
    let needed = |roots: Option<Roots>| {
        roots.ok_or_else(|| {
            format!(
                "sslmode={mode} needs an authority: give sslrootcert=FILE, or sslrootcert=system \
                 for those this machine trusts"
            )
        })
    };
    Ok(match mode {
        "disable" => (Encryption::Disable, Trust::Anyone),
        "allow" => (Encryption::Allow, Trust::Anyone),
        "prefer" => (Encryption::Prefer, Trust::Anyone),
        // With an authority it means verify-ca, as in libpq.
        "require" => (
            Encryption::Require,
            given.map_or(Trust::Anyone, Trust::Authority),
        ),
        "verify-ca" => (Encryption::Require, Trust::Authority(needed(given)?)),
        "verify-full" => (Encryption::Require, Trust::Host(needed(given)?)),
        other => {
            return Err(format!(
                "sslmode: {other:?} is none of disable, allow, prefer, require, verify-ca, \
                 verify-full"
            ));
        }
    })
}

/// The client's certificate and key, if they exist.
fn identity_of(
    parameters: &Parameters,
    around: &dyn Surroundings,
) -> Result<Option<(PathBuf, PathBuf)>, String> {
    let cert = parameters.get("sslcert").map(PathBuf::from);
    let key = parameters.get("sslkey").map(PathBuf::from);
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some((cert, key))),
        (None, None) => {
            let cert = personal_file("postgresql.crt", around);
            Ok(cert.zip(personal_file("postgresql.key", around)))
        }
        (Some(cert), None) => {
            let key = personal_file("postgresql.key", around);
            let key = key.ok_or("sslcert is given without sslkey")?;
            Ok(Some((cert, key)))
        }
        (None, Some(key)) => {
            let cert = personal_file("postgresql.crt", around);
            let cert = cert.ok_or("sslkey is given without sslcert")?;
            Ok(Some((cert, key)))
        }
    }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
