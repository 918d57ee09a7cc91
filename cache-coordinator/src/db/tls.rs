//! TLS to PostgreSQL, when the URL asks for it. The server's certificate is always verified:
//! `require` without verification would protect from nobody who can stand in between.

use std::{fs::File, io::BufReader, path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::DatabaseError;

/// Trusts `root_certificate` alone if given, else what the system trusts.
pub fn connector(root_certificate: Option<&Path>) -> Result<MakeRustlsConnect, DatabaseError> {
    let mut roots = RootCertStore::empty();
    match root_certificate {
        Some(path) => {
            let problem = |reason: String| {
                DatabaseError::invalid(
                    "database-url",
                    format!("sslrootcert {}: {reason}", path.display()),
                )
            };
            let file = File::open(path).map_err(|error| problem(error.to_string()))?;
            for certificate in CertificateDer::pem_reader_iter(BufReader::new(file)) {
                let certificate = certificate.map_err(|error| problem(error.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|error| problem(error.to_string()))?;
            }
        }
        None => {
            let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(DatabaseError::invalid(
            "database-url",
            "TLS is required and no root certificate was found",
        ));
    }
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| DatabaseError::Internal(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
