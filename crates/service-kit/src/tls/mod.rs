//! TLS from PEM files, for listeners and clients, with reload when the files change.
//!
//! Why the whole configuration is replaced and not only the certificate: a renewed client CA must
//! take effect like a renewed certificate. Accept loops take [`Reloading::current`] for each
//! connection; running connections keep theirs. The ring provider is named everywhere, so that no
//! process-wide default decides.

mod files;
mod reload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use reload::{CHECK_INTERVAL, Reloading};

/// An error in TLS files; names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} can not be read: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} holds no {what} in PEM form", path.display())]
    Missing { path: PathBuf, what: &'static str },
    #[error("{} is not valid PEM: {reason}", path.display())]
    Pem { path: PathBuf, reason: String },
    #[error(
        "certificate {} and key {} do not fit: {source}; expected the key's own certificate first, \
         and RSA of 2048 bits or more, ECDSA with P-256 or P-384, or Ed25519",
        cert.display(),
        key.display()
    )]
    Identity {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("{} is no usable certificate authority: {reason}", path.display())]
    Authority { path: PathBuf, reason: String },
    #[error("the system's certificate authorities can not be read: {0}")]
    SystemRoots(String),
    #[error("tls can not be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// The files of a listener.
#[derive(Clone, Debug)]
pub struct ServerFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// If set, clients must present a certificate of this authority.
    pub client_ca: Option<PathBuf>,
    /// In order of preference: `h2`, `http/1.1`, `http/1.0`.
    pub alpn: Vec<Vec<u8>>,
}

/// The files of a client. All may be absent: then the system's authorities are trusted.
#[derive(Clone, Debug, Default)]
pub struct ClientFiles {
    pub ca: Option<PathBuf>,
    /// Certificate and key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    pub alpn: Vec<Vec<u8>>,
}

/// The provider used everywhere.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes ring the process's default, for libraries that ask for one. May be called repeatedly.
pub fn install_provider() {
    // An error means that there is a default already: nothing to do.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A listener's configuration, reloadable.
pub fn server(files: ServerFiles) -> Result<Arc<Reloading<ServerConfig>>, TlsError> {
    let mut paths = vec![files.cert.clone(), files.key.clone()];
    paths.extend(files.client_ca.clone());
    Reloading::load(paths, move || server_config(&files))
}

/// A client's configuration, reloadable.
pub fn client(files: ClientFiles) -> Result<Arc<Reloading<ClientConfig>>, TlsError> {
    let mut paths: Vec<PathBuf> = files.ca.iter().cloned().collect();
    if let Some((cert, key)) = &files.identity {
        paths.extend([cert.clone(), key.clone()]);
    }
    Reloading::load(paths, move || client_config(&files))
}

/// Refuses a listener that others can reach in clear text, unless the operator allowed it.
/// `cert_option` names the option that would give the listener TLS.
pub fn refuse_plain_listener(
    addr: SocketAddr,
    cert_option: &str,
    tls: bool,
    insecure: bool,
) -> Result<(), String> {
    if tls || insecure || addr.ip().is_loopback() {
        return Ok(());
    }
    Err(format!(
        "{addr} is reachable from other machines without TLS: give --{cert_option} with its key, \
         listen on a loopback address, or accept it with --insecure-listen"
    ))
}

fn server_config(files: &ServerFiles) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|error| TlsError::Authority {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let identity = Arc::new(identity(&files.cert, &files.key, &provider)?);
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(identity));
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols.clone_from(&files.alpn);
    Ok(config)
}

fn client_config(files: &ClientFiles) -> Result<ClientConfig, TlsError> {
    let roots = match &files.ca {
        Some(path) => roots(path)?,
        None => system_roots()?,
    };
    let identity = match &files.identity {
        Some((cert, key)) => Some(identity(cert, key, &provider())?),
        None => None,
    };
    let mut config = client_of(roots, identity)?;
    config.alpn_protocols.clone_from(&files.alpn);
    Ok(config)
}

/// A client that trusts `roots` and shows `identity` to servers that ask.
pub fn client_of(
    roots: RootCertStore,
    identity: Option<CertifiedKey>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let resolver = rustls::sign::SingleCertAndKey::from(Arc::new(identity));
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
    })
}

/// The authorities in PEM text.
pub fn roots_from_pem(pem: &str) -> Result<RootCertStore, TlsError> {
    roots_of(Path::new("the text"), pem.as_bytes())
}

/// A certificate and its key in PEM text.
pub fn identity_from_pem(cert: &str, key: &str) -> Result<CertifiedKey, TlsError> {
    let (cert_name, key_name) = (Path::new("the certificate"), Path::new("the key"));
    identity_of(
        (cert_name, cert.as_bytes()),
        (key_name, key.as_bytes()),
        &provider(),
    )
}

fn identity(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    identity_of(
        (cert, &files::read(cert)?),
        (key, &files::read(key)?),
        provider,
    )
}

fn identity_of(
    (cert, chain): (&Path, &[u8]),
    (key, private): (&Path, &[u8]),
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = files::certificates(cert, chain)?;
    let private = files::private_key(key, private)?;
    CertifiedKey::from_der(chain, private, provider).map_err(|source| TlsError::Identity {
        cert: cert.to_owned(),
        key: key.to_owned(),
        source,
    })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    roots_of(path, &files::read(path)?)
}

fn roots_of(path: &Path, content: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in files::certificates(path, content)? {
        store
            .add(certificate)
            .map_err(|error| TlsError::Authority {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
    }
    Ok(store)
}

/// The authorities this machine trusts. A container may have none; then each server's certificate
/// is refused when it is shown.
pub fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(found.certs);
    match (added, found.errors.first()) {
        (0, Some(error)) => Err(TlsError::SystemRoots(error.to_string())),
        (0, None) => {
            tracing::warn!(
                "this machine trusts no certificate authority: no server with TLS can be used"
            );
            Ok(store)
        }
        _ => Ok(store),
    }
}

#[cfg(test)]
mod tests;
