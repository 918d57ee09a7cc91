//! The two services as processes: the real binaries, with ports and directories that survive
//! restarts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::http::{Call, Response};
use crate::ports;
use crate::process::Process;
use crate::wait::eventually;

const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The built program: from `CHUNKCACHE_BIN_DIR`, otherwise built now by cargo in this test's own
/// profile, so that a test never runs an old binary.
pub fn program(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        if let Some(directory) = std::env::var_os("CHUNKCACHE_BIN_DIR") {
            return PathBuf::from(directory);
        }
        let test = std::env::current_exe().expect("path of the test program");
        let directory = test
            .ancestors()
            .nth(2)
            .expect("target directory")
            .to_owned();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args([
            "build",
            "--quiet",
            "-p",
            "cache-coordinator",
            "-p",
            "cache-edge",
            "--bins",
        ]);
        // Variables of this very test: build scripts would see them as a change, and rebuild half
        // of the services.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_CRATE_",
                "CARGO_BIN_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            {
                cargo.env_remove(&*name);
            }
        }
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if directory.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo builds the services");
        assert!(status.success(), "the services do not build");
        directory
    });
    let path = directory.join(name);
    assert!(path.exists(), "no program {}", path.display());
    path
}

#[derive(Debug)]
pub struct Coordinator {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub arguments: Vec<String>,
    /// Added to this process's own variables.
    pub environment: Vec<(String, String)>,
    log: PathBuf,
    process: Option<Process>,
}

impl Coordinator {
    /// Prepares a coordinator without starting it. `name` is for its log only.
    pub fn prepare(name: &str, directory: &Path, database_url: &str, more: &[&str]) -> Coordinator {
        let (grpc, http) = (ports::reserve(), ports::reserve());
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--database-url={database_url}"),
            format!("--listen={grpc}"),
            format!("--http-listen={http}"),
        ];
        arguments.extend(more.iter().map(|&it| it.to_owned()));
        Coordinator {
            grpc,
            http,
            arguments,
            environment: Vec::new(),
            log: directory.join(format!("{name}.log")),
            process: None,
        }
    }

    /// Starts it and returns at once.
    pub fn spawn(&mut self) {
        let mut command = Command::new(program("cache-coordinator"));
        command.args(&self.arguments);
        command.envs(self.environment.iter().cloned());
        self.process = Some(Process::spawn("cache-coordinator", &command, &self.log));
    }

    pub fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    pub fn wait_ready(&mut self) {
        wait_ready(self.process.as_mut().expect("started"), self.http);
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("started")
    }

    pub fn terminate(&mut self) -> ExitStatus {
        self.process.take().expect("started").terminate()
    }

    pub fn kill(&mut self) {
        self.process.take().expect("started").kill();
    }

    pub fn get(&self, path: &str) -> Response {
        Call::get(path).send(self.http)
    }

    /// Runs a command of the command line against this coordinator.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        Command::new(program("cache-coordinator"))
            .args(arguments)
            .arg(format!("--endpoint=http://{}", self.grpc))
            .env_remove("CACHE_COORDINATOR_ENDPOINT")
            .output()
            .expect("the command line runs")
    }

    /// The same with `--output json`; panics unless it exits 0 with one JSON document.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--output", "json"]].concat();
        let output = self.cli(&arguments);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {:?}\n{stdout}{stderr}",
            output.status
        );
        serde_json::from_str(&stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {stdout}"))
    }
}

#[derive(Debug)]
pub struct Edge {
    pub name: String,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub data: PathBuf,
    pub arguments: Vec<String>,
    /// Added to this process's own variables.
    pub environment: Vec<(String, String)>,
    log: PathBuf,
    process: Option<Process>,
}

impl Edge {
    /// Prepares an edge without starting it. `coordinators` is the value of `--coordinator`.
    pub fn prepare(name: &str, directory: &Path, coordinators: &str, more: &[&str]) -> Edge {
        let (http, admin) = (ports::reserve(), ports::reserve());
        let data = directory.join(name);
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--name={name}"),
            format!("--coordinator={coordinators}"),
            format!("--data-dir={}", data.display()),
            format!("--listen={http}"),
            format!("--admin-listen={admin}"),
        ];
        arguments.extend(more.iter().map(|&it| it.to_owned()));
        Edge {
            name: name.to_owned(),
            http,
            admin,
            data,
            arguments,
            environment: Vec::new(),
            log: directory.join(format!("{name}.log")),
            process: None,
        }
    }

    /// Sets another data directory, before the first start.
    pub fn put_data_at(&mut self, data: PathBuf) {
        let option = format!("--data-dir={}", data.display());
        let is_it = |it: &&mut String| it.starts_with("--data-dir=");
        *self
            .arguments
            .iter_mut()
            .find(is_it)
            .expect("has the option") = option;
        self.data = data;
    }

    pub fn spawn(&mut self) {
        let mut command = Command::new(program("cache-edge"));
        command.args(&self.arguments);
        command.envs(self.environment.iter().cloned());
        self.process = Some(Process::spawn(&self.name, &command, &self.log));
    }

    pub fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    pub fn wait_ready(&mut self) {
        wait_ready(self.process.as_mut().expect("started"), self.admin);
    }

    /// Waits until it listens and its process lives; it may not be ready.
    pub fn wait_live(&mut self) {
        let admin = self.admin;
        eventually("the edge is live", READY_TIMEOUT, || {
            let answer = Call::get("/livez").open(admin).ok()?;
            (answer.status == 200).then_some(())
        });
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("started")
    }

    pub fn terminate(&mut self) -> ExitStatus {
        self.process.take().expect("started").terminate()
    }

    pub fn kill(&mut self) {
        self.process.take().expect("started").kill();
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The file of what all its processes wrote.
    pub fn log(&self) -> &Path {
        &self.log
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        Call::get(target).send(self.http)
    }

    /// Size of the data directory on disk: allocated blocks, not lengths.
    pub fn disk_bytes(&self) -> u64 {
        let output = Command::new("du")
            .args(["-s", "--block-size=1"])
            .arg(&self.data)
            .output()
            .expect("du");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let bytes = text
            .split_whitespace()
            .next()
            .and_then(|it| it.parse().ok());
        bytes.unwrap_or_else(|| panic!("du said {text:?}"))
    }
}

/// The sparse file of an entry in a data directory; a path that does not exist if there is none.
pub fn data_file(data: &Path, entry: &str) -> PathBuf {
    let directory = data.join("entries").join(&entry[..2]);
    let names = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten();
    let is_its = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(entry) && name.ends_with(".chunks")
    };
    let mut paths = names.map(|item| item.path());
    paths.find(is_its).unwrap_or_else(|| directory.join(entry))
}

fn wait_ready(process: &mut Process, address: SocketAddr) {
    let what = format!("{} is ready", process.name);
    let mut said = String::new();
    eventually(&what, READY_TIMEOUT, || {
        assert!(
            process.is_running(),
            "{} ended: {}",
            process.name,
            process.output()
        );
        let answer = Call::get("/readyz").open(address).ok()?.finish();
        if answer.status == 200 {
            return Some(());
        }
        if said != answer.text() {
            said = answer.text();
            eprintln!("{}: {} {said}", process.name, answer.status);
        }
        None
    });
}
