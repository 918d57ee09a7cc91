//! A private PostgreSQL: with its own data directory, port and user; never the system's cluster.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::cluster::shared_directory;
use crate::ports;
use crate::process::Process;
use crate::wait::eventually;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether commits survive a crash of the machine. Tests that only kill processes need no fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Full,
    NoFsync,
}

#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    directory: PathBuf,
    address: SocketAddr,
    durability: Durability,
}

impl Postgres {
    /// Starts a new, empty cluster under `directory`.
    pub fn start(directory: &Path, durability: Durability) -> Postgres {
        let mut postgres = Postgres::prepare(directory, durability);
        postgres.start_again();
        postgres
    }

    /// Prepares a new, empty cluster under `directory` with its port reserved.
    pub fn prepare(directory: &Path, durability: Durability) -> Postgres {
        let data = directory.join("postgres");
        let template = template();
        make_data_directory(&data);
        run(as_postgres("cp")
            .arg("-a")
            .arg(format!("{}/.", template.display()))
            .arg(&data));
        Postgres {
            process: None,
            directory: directory.to_owned(),
            address: ports::reserve(),
            durability,
        }
    }

    pub fn start_again(&mut self) {
        let data = self.directory.join("postgres");
        let mut command = as_postgres(binary("postgres"));
        command.arg("-D").arg(&data);
        let port = self.address.port();
        let sync = match self.durability {
            Durability::Full => "on",
            Durability::NoFsync => "off",
        };
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={}", data.display()),
            format!("fsync={sync}"),
            format!("full_page_writes={sync}"),
            "max_connections=60".to_owned(),
            "shared_buffers=32MB".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        let log = self.directory.join("postgres.log");
        self.process = Some(Process::spawn("postgres", &command, &log));
        eventually("PostgreSQL accepts connections", START_TIMEOUT, || {
            self.try_query("SELECT 1").ok()
        });
    }

    /// A fast shutdown: sessions are cut, commits are kept.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::INT);
            process.wait_for_exit(STOP_TIMEOUT);
        }
    }

    /// An immediate shutdown, as after a crash: the next start recovers from the log.
    pub fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::QUIT);
            process.wait_for_exit(STOP_TIMEOUT);
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    /// The rows of a query, columns as text (NULL is the empty text).
    pub fn query(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_query(sql)
            .unwrap_or_else(|error| panic!("query failed: {sql}: {error}"))
    }

    pub fn try_query(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let output = Command::new(binary("psql"))
            .args(["-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"])
            .arg(self.url())
            .args(["-c", sql])
            .env("PGCONNECT_TIMEOUT", "5")
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect())
    }

    /// The single number that a query returns.
    pub fn number(&self, sql: &str) -> i64 {
        let rows = self.query(sql);
        let cell = rows.first().and_then(|row| row.first());
        cell.and_then(|cell| cell.parse().ok())
            .unwrap_or_else(|| panic!("not a number: {sql}: {rows:?}"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT also ends the children; SIGKILL would leave them and the shared memory for a
        // while.
        if let Some(process) = &mut self.process
            && process.is_running()
        {
            process.signal(Signal::QUIT);
            process.wait_for_exit(STOP_TIMEOUT);
        }
    }
}

/// A freshly initialised cluster, made once per machine and copied for each test: initdb takes
/// seconds, a copy does not.
fn template() -> PathBuf {
    let version = Command::new(binary("postgres"))
        .arg("--version")
        .output()
        .expect("version of postgres");
    let version: String = String::from_utf8_lossy(&version.stdout)
        .chars()
        .filter(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let base = shared_directory();
    let path = base.join(format!("postgres-{version}"));
    let lock = fs::File::create(base.join("postgres.lock")).expect("lock of the template");
    flock(&lock, FlockOperation::LockExclusive).expect("lock of the template");
    if !path.exists() {
        let unfinished = path.with_extension("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        make_data_directory(&unfinished);
        run(as_postgres(binary("initdb"))
            .arg("-D")
            .arg(&unfinished)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"])
            .arg("--no-sync"));
        fs::rename(&unfinished, &path).expect("the finished template");
    }
    path
}

/// The newest installed PostgreSQL's program; Debian keeps them out of PATH.
pub fn binary(name: &str) -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let path = entry.path().join("bin").join(name);
            path.exists().then_some((version, path))
        })
        .collect();
    found.sort();
    found
        .pop()
        .map_or_else(|| PathBuf::from(name), |(_, path)| path)
}

fn make_data_directory(path: &Path) {
    fs::create_dir_all(path).expect("data directory of PostgreSQL");
    if am_root() {
        run(Command::new("chown").arg("postgres:postgres").arg(path));
    }
}

fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// PostgreSQL refuses to run as root: then everything on its data directory runs as the user
/// `postgres`.
fn as_postgres(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if !am_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    // The signal is set here again: a change of user clears it. SIGQUIT ends its children too.
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    command.args(["--pdeathsig", "QUIT", "--"]);
    command.arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
