//! A private bucket on a third-party S3 server: moto's, which checks signatures.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::ports;
use crate::process::Process;
use crate::python_tools::python_tool;
use crate::wait::eventually;

pub const BUCKET: &str = "films";

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct BucketServer {
    pub address: SocketAddr,
    /// The key of a user that may read.
    pub access_key_id: String,
    pub secret_access_key: String,
    /// Key id and secret of a user that may do nothing.
    pub without_rights: [String; 2],
    _process: Process,
}

impl BucketServer {
    /// Starts it with these objects. None, with the reason printed, if it is not installed.
    pub fn start(directory: &Path, objects: &[(&str, Vec<u8>)]) -> Option<BucketServer> {
        let python = python_tool("python")?;
        let mut keys = serde_json::Map::new();
        for (number, (key, body)) in objects.iter().enumerate() {
            let path = directory.join(format!("object-{number}"));
            std::fs::write(&path, body).expect("an object's file");
            keys.insert((*key).to_owned(), path.to_str().expect("a path").into());
        }
        let address = ports::reserve();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bucket_server.py");
        let mut command = Command::new(python);
        command.arg(script).arg(address.ip().to_string());
        command.arg(address.port().to_string()).arg(BUCKET);
        command.arg(serde_json::Value::from(keys).to_string());
        let process = Process::spawn("bucket-server", &command, &directory.join("bucket.log"));
        let credentials = eventually("the bucket is there", Duration::from_secs(60), || {
            let output = process.output();
            let ready = output
                .lines()
                .find_map(|line| line.strip_prefix("ready "))?;
            serde_json::from_str::<serde_json::Value>(ready).ok()
        });
        let text = |name: &str| credentials[name].as_str().expect("a credential").to_owned();
        Some(BucketServer {
            address,
            access_key_id: text("id"),
            secret_access_key: text("secret"),
            without_rights: [text("stranger_id"), text("stranger_secret")],
            _process: process,
        })
    }
}
