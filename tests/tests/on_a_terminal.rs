//! A followed job or drain on a terminal: a bar with rate and time left, and at the end a clean
//! line. The terminal is `script` of util-linux.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::process::Process;
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, MIB, Object, eventually};

const WAIT: Duration = Duration::from_secs(30);
const COLUMNS: usize = 80;
const ESCAPE: char = '\u{1b}';
/// Characters of a bar, done and not done.
const DONE: char = '█';
const LEFT: char = '░';

/// Runs the command line on a terminal of 24 lines; the log has the terminal's output.
fn on_a_terminal(cluster: &Cluster, arguments: &[&str]) -> Process {
    let line = format!(
        "stty cols {COLUMNS} rows 24; exec {} {} --endpoint=http://{}",
        program("cache-coordinator").display(),
        arguments.join(" "),
        cluster.coordinator.grpc
    );
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--flush", "--return", "--command", &line])
        .arg("/dev/null")
        .env("TERM", "xterm-256color");
    let log = cluster.directory.path().join("terminal.log");
    Process::spawn("script", &command, &log)
}

/// Each state of the lines that had a bar, without colours and movements.
fn bars(said: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut characters = said.chars();
    while let Some(character) = characters.next() {
        if character == ESCAPE {
            // ESC [ parameters, and a letter.
            characters.find(|it| it.is_ascii_alphabetic());
            plain.push('\n');
        } else {
            plain.push(character);
        }
    }
    let lines = plain.split(['\r', '\n']);
    let with_bar = lines.filter(|line| line.contains([DONE, LEFT]));
    with_bar.map(|line| line.trim().to_owned()).collect()
}

fn wait_for_bar(process: &Process, what: &str, found: impl Fn(&str) -> bool) {
    eventually(what, WAIT, || {
        bars(&process.output())
            .iter()
            .any(|bar| found(bar))
            .then_some(())
    });
}

#[track_caller]
fn assert_fits(said: &str) {
    for bar in bars(said) {
        let columns = bar.chars().count();
        assert!(columns <= COLUMNS, "{columns} columns: {bar}");
    }
}

/// The text on the terminal after the last bar was removed: the result alone.
fn last_words(said: &str) -> &str {
    let end = said.rfind([DONE, LEFT]).unwrap();
    &said[end..]
}

#[test]
fn a_job_is_followed_by_a_bar_with_rate_and_time_left() {
    let cluster = Cluster::start();
    cluster.put("/film.mp4", Object::generated(81, 16 * MIB).paced(2 * MIB));
    let mut following = on_a_terminal(&cluster, &["precache", "media/film.mp4", "--follow"]);
    wait_for_bar(&following, "a bar with rate and time left", |bar| {
        bar.contains([DONE])
            && bar.contains("of 16.0 MiB")
            && bar.contains("MiB/s")
            && bar.ends_with("left")
    });
    assert!(following.is_running());
    assert_eq!(following.wait_for_exit(WAIT).code(), Some(0));
    let said = following.output();
    assert_fits(&said);
    // The bar grew.
    let done = |bar: &String| bar.chars().filter(|it| *it == DONE).count();
    let bars = bars(&said);
    assert!(bars.iter().map(done).max() > bars.iter().map(done).min());
    assert!(last_words(&said).contains("16.0 MiB of 16.0 MiB (100%)"));
}

#[test]
fn a_drain_is_followed_by_a_bar_with_rate_and_time_left() {
    let cluster = Cluster::start();
    let film = cluster.put("/film.mp4", Object::generated(82, 64 * MIB));
    cluster.edge().get(&film).expect(200);
    cluster.wait_recorded("film.mp4", &[(0, 64 * MIB)]);
    let play = || {
        let mut playing = Call::get(&film).open(cluster.edge().http).unwrap();
        playing.take(1000).unwrap();
        playing
    };
    let (first, second) = (play(), play());
    let mut draining = on_a_terminal(&cluster, &["edge", "drain", "edge-a", "--follow"]);
    wait_for_bar(&draining, "both run", |bar| {
        bar.contains("0 of 2 requests ended")
    });
    drop(first);
    wait_for_bar(&draining, "one has ended, with rate and time left", |bar| {
        bar.contains("1 of 2 requests ended")
            && bar.contains("a minute")
            && bar.ends_with("left")
            && bar.contains([DONE])
            && bar.contains([LEFT])
    });
    assert!(draining.is_running());
    drop(second);
    assert_eq!(draining.wait_for_exit(WAIT).code(), Some(0));
    let said = draining.output();
    assert_fits(&said);
    assert!(last_words(&said).contains("draining"), "{said:?}");
}

/// Into a pipe: lines for a log, each complete, and nothing that moves a cursor.
#[test]
fn without_a_terminal_it_is_plain_lines() {
    let cluster = Cluster::start();
    cluster.put("/film.mp4", Object::generated(83, 8 * MIB));
    let output = cluster
        .coordinator
        .cli(&["precache", "media/film.mp4", "--follow"]);
    assert!(output.status.success());
    for said in [&output.stdout, &output.stderr] {
        let said = String::from_utf8(said.clone()).unwrap();
        assert!(!said.contains([ESCAPE, '\r', DONE, LEFT]), "{said:?}");
        assert!(said.ends_with('\n'), "{said:?}");
    }
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(progress.contains("of 8.0 MiB"), "{progress}");
}
