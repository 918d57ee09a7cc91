//! A certificate authority for one test, made with the `openssl` program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
    /// Creates an authority with its files under `directory`.
    pub fn new(directory: &Path) -> Authority {
        let authority = Authority {
            directory: directory.to_owned(),
        };
        // Two authorities must not have the same name.
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let (subject, usage) = (format!("/CN=ca {name}"), "keyUsage=critical,keyCertSign");
        authority.openssl("ca", &["-subj", &subject, "-addext", usage]);
        authority
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> PathBuf {
        self.path("ca", "pem")
    }

    /// Issues a certificate for these names: `DNS:edge-a`, `IP:127.0.0.1`, comma separated.
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

    /// Like [`issue`](Self::issue), but expired long ago.
    pub fn issue_expired(&self, file: &str, names: &str) -> Identity {
        let place = &self.directory;
        let config = place.join("expired.cnf");
        let database = place.join("expired.db");
        let text = format!(
            "[ca]\ndefault_ca=it\n[it]\nnew_certs_dir={}\ndatabase={}\npolicy=any\n\
             default_md=sha256\n\
             copy_extensions=copy\nrand_serial=yes\n[any]\ncommonName=supplied\n",
            place.display(),
            database.display()
        );
        std::fs::write(&config, text).expect("a file of the authority");
        std::fs::write(&database, "").expect("a file of the authority");
        let request = self.path(file, "csr");
        let names = format!("subjectAltName={names}");
        let asked = Command::new("openssl")
            .args("req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split(' '))
            .args(["-subj", &format!("/CN={file}"), "-addext", &names])
            .arg("-keyout")
            .arg(self.path(file, "key"))
            .arg("-out")
            .arg(&request)
            .output();
        succeeded(&asked.expect("openssl runs"));
        let signed = Command::new("openssl")
            .args(
                "ca -batch -notext -startdate 20200101000000Z -enddate 20200201000000Z".split(' '),
            )
            .arg("-config")
            .arg(config)
            .arg("-cert")
            .arg(self.path("ca", "pem"))
            .arg("-keyfile")
            .arg(self.path("ca", "key"))
            .arg("-in")
            .arg(request)
            .arg("-out")
            .arg(self.path(file, "pem"))
            .output();
        succeeded(&signed.expect("openssl runs"));
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
        succeeded(&output);
    }
}

/// The answer to a client that trusts this authority alone, or its error.
pub fn curl_trusting(ca: &Path, url: &str) -> Result<Vec<u8>, String> {
    let output = Command::new("curl")
        .args(["-sSf", "--max-time", "30", "--cacert"])
        .arg(ca)
        .arg(url)
        .output()
        .expect("curl runs");
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[track_caller]
fn succeeded(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl: {said}");
}
