//! A child process: logs to a file, is always ended, and its memory can be measured.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// How much of a log is printed when a test fails.
const LOG_TAIL_BYTES: usize = 16 << 10;
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Process {
    pub name: String,
    pub log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts the command with both outputs appended to `log`. The child dies with the thread that
    /// started it, so that a killed test leaves nothing behind.
    pub fn spawn(name: &str, command: &Command, log: &Path) -> Process {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("log file of a process");
        let mut wrapped = die_with_parent(command);
        wrapped
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log file of a process"))
            .stderr(output);
        let child = wrapped
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({wrapped:?}): {error}"));
        Process {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signal a child that runs");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("state of a child").is_none()
    }

    /// SIGTERM, then the exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        if self.is_running() {
            self.signal(Signal::TERM);
        }
        let status = self.wait_for_exit(EXIT_TIMEOUT);
        if !status.success() {
            self.print_log();
        }
        status
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn wait_for_exit(&mut self, within: Duration) -> ExitStatus {
        let name = self.name.clone();
        let child = &mut self.child;
        eventually(&format!("end of {name}"), within, || {
            child.try_wait().expect("state of a child")
        })
    }

    /// All output since the first start with this log.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Resident memory that belongs to the process: anonymous pages, not the page cache it has
    /// mapped.
    pub fn resident_anonymous_bytes(&self) -> u64 {
        self.status_bytes("RssAnon:")
    }

    /// All resident pages, those of mapped files included.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn print_log(&self) {
        let output = self.output();
        let mut from = output.len().saturating_sub(LOG_TAIL_BYTES);
        while !output.is_char_boundary(from) {
            from += 1;
        }
        eprintln!("--- log of {} ---\n{}", self.name, &output[from..]);
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).expect("status of a child that runs");
        let line = status.lines().find(|line| line.starts_with(field));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect(field) * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped (SIGSTOP) process is killed as well as a running one.
        self.kill();
        if std::thread::panicking() {
            self.print_log();
        }
    }
}

/// "exit 2" or "signal 9".
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => format!("{status:?}"),
    }
}

/// The same command under `setpriv --pdeathsig`, which replaces itself by it: the pid stays the
/// same.
fn die_with_parent(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    wrapped
}
