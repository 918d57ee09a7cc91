//! Reads certificates and keys from PEM files.

use std::path::Path;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// All certificates of a file's content, at least one.
pub(super) fn certificates(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(content)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad_pem(path, &error))?;
    if chain.is_empty() {
        return Err(TlsError::Missing {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(chain)
}

/// The first private key of a file's content: PKCS#8, PKCS#1 or SEC1.
pub(super) fn private_key(path: &Path, content: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let is_encrypted = content.windows(9).any(|word| word == b"ENCRYPTED");
    PrivateKeyDer::from_pem_slice(content).map_err(|error| match error {
        _ if is_encrypted => TlsError::Missing {
            path: path.to_owned(),
            what: "private key without a passphrase",
        },
        PemError::NoItemsFound => TlsError::Missing {
            path: path.to_owned(),
            what: "private key",
        },
        other => bad_pem(path, &other),
    })
}

/// The kind of error only: its own text may repeat lines of a key.
fn bad_pem(path: &Path, error: &PemError) -> TlsError {
    let reason = match error {
        PemError::MissingSectionEnd { .. } => "a section has no end line",
        PemError::IllegalSectionStart { .. } => "a section has a malformed begin line",
        PemError::Base64Decode(_) => "a section is not base64",
        _ => "it can not be parsed",
    };
    TlsError::Pem {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
