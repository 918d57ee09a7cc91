//! A network that can be cut: the campaign runs in its own network namespace, where packets to and
//! from a port are dropped.
//!
//! Unlike after a kill, no peer notices: connections stay open and silent, as with a broken switch.

use std::process::{Command, Stdio};

/// Set for the process that runs in the namespace.
const MARK: &str = "CHUNKCACHE_FAULTS_NAMESPACE";

/// Whether this process has its own network.
pub fn is_own() -> bool {
    std::env::var_os(MARK).is_some()
}

/// This program again, in a new network namespace; none if that is impossible (it needs root,
/// `unshare`, `ip`, `iptables`).
pub fn in_own_namespace() -> Option<Command> {
    if is_own() {
        return None;
    }
    let probe = "ip link set lo up && iptables -L -n";
    let made = Command::new("unshare")
        .args(["--net", "sh", "-c", probe])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|it| it.success()) {
        return None;
    }
    let mut command = Command::new("unshare");
    command
        .args([
            "--net",
            "sh",
            "-c",
            r#"ip link set lo up && exec "$0" "$@""#,
        ])
        .arg(std::env::current_exe().ok()?)
        .env(MARK, "1");
    Some(command)
}

/// Drops packets to and from a port for as long as it lives.
pub struct Cut(u16);

impl Cut {
    pub fn off(port: u16) -> Cut {
        change("-A", port);
        Cut(port)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        change("-D", self.0);
    }
}

fn change(how: &str, port: u16) {
    assert!(is_own(), "only a network of our own is cut");
    for side in ["--dport", "--sport"] {
        let done = Command::new("iptables")
            .args(["-w", how, "INPUT", "-i", "lo", "-p", "tcp", side])
            .args([&port.to_string(), "-j", "DROP"])
            .status();
        assert!(done.is_ok_and(|it| it.success()), "iptables {how} {port}");
    }
}
