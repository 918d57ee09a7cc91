//! A certificate authority of one test, by the `openssl` program.

use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Its files go under `directory`.
    pub fn new(directory: &Path) -> Authority {
        let authority = Authority {
            directory: directory.to_owned(),
        };
        authority.openssl("ca", &["-addext", "keyUsage=critical,keyCertSign"]);
        authority
    }

    /// Of the authority itself.
    pub fn pem(&self) -> PathBuf {
        self.path("ca", "pem")
    }

    /// A certificate for these names: `DNS:edge-a`, `IP:127.0.0.1`, comma separated.
    pub fn issue(&self, file: &str, names: &str) -> Identity {
        let names = format!("subjectAltName={names}");
        let (ca, key) = (self.path("ca", "pem"), self.path("ca", "key"));
        let [ca, key] = [&ca, &key].map(|path| path.to_str().expect("UTF-8"));
        let leaf = "basicConstraints=critical,CA:FALSE";
        self.openssl(
            file,
            &["-CA", ca, "-CAkey", key, "-addext", leaf, "-addext", &names],
        );
        Identity {
            cert: self.path(file, "pem"),
            key: self.path(file, "key"),
        }
    }

    fn path(&self, file: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{file}.{extension}"))
    }

    fn openssl(&self, file: &str, more: &[&str]) {
        let output = Command::new("openssl")
            .args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
                    .split(' '),
            )
            .args(["-subj", &format!("/CN={file}")])
            .args(more)
            .arg("-keyout")
            .arg(self.path(file, "key"))
            .arg("-out")
            .arg(self.path(file, "pem"))
            .output()
            .expect("openssl runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl: {said}");
    }
}
