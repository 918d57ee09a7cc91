#![allow(clippy::unwrap_used)]

mod contexts;
mod fake;
mod rendering;

use std::sync::Arc;

use chunkcache_proto::v1::JobState;
use parking_lot::Mutex;
use serde_json::Value;

use super::*;
use fake::Fake;

/// Runs a command line against an address: returns its output, or its error.
async fn run_at(endpoint: &str, arguments: &[&str]) -> Result<String, CliError> {
    let mut line = vec!["cache-coordinator", "--endpoint", endpoint];
    line.extend(arguments);
    let line = shared_names::resolve(line.into_iter().map(Into::into));
    let matches = command()
        .try_get_matches_from(line)
        .map_err(|e| CliError::Usage(e.to_string()))?;
    let mut out = Vec::new();
    execute(&command(), &matches, &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

/// Runs against a fresh fake: returns the result, and the requests.
async fn run_fake(arguments: &[&str]) -> (Result<String, CliError>, Vec<String>) {
    let fake = Fake {
        job_ends: JobState::Done,
        ..Fake::default()
    };
    let asked = fake.asked.clone();
    let endpoint = fake.start().await;
    let result = run_at(&endpoint, arguments).await;
    let asked = asked.lock().clone();
    (result, asked)
}

async fn json(arguments: &[&str]) -> Value {
    let mut line = arguments.to_vec();
    line.extend(["--output", "json"]);
    let (result, _) = run_fake(&line).await;
    serde_json::from_str(&result.unwrap()).unwrap()
}

fn message(error: CliError) -> (u8, String) {
    let status = error.exit_status();
    match error {
        CliError::Usage(text) | CliError::Refused(text) => (status, text),
        CliError::OutputClosed => (status, String::new()),
    }
}

#[test]
fn the_tree_of_commands_is_sound() {
    command().debug_assert();
}

#[tokio::test]
async fn every_verb_answers_in_both_forms() {
    for line in [
        "source add films http://127.0.0.1:9/films",
        "source list",
        "source show films",
        "source set films --first-byte-timeout 90s",
        "source set-mode films record",
        "source remove films",
        "entry list",
        "entry show films/a.mp4",
        "entry pin films/a.mp4",
        "entry unpin 018f6a0e-0000-8000-8000-000000000001",
        "entry open films/a.mp4 --position 1MiB",
        "entry invalidate films/a.mp4 --purge",
        "purge --object-key films/a.mp4",
        "purge --prefix films/",
        "purge --glob films/*.mp4 --soft",
        "purge --tag show-7 --source films",
        "purge --source films",
        "precache films/a.mp4",
        "precache http://127.0.0.1:9/films/a.mp4 --edge east --follow",
        "precache films/a.m3u8 --manifest --first 30s --rendition lowest",
        "precache list",
        "precache cancel j1",
        "edge list",
        "edge drain east",
        "edge drain east --undo",
        "edge drain east --follow",
        "edge forget east --force",
        "edge verify west",
        "status",
        "explain films/a.mp4 --chunk 1",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let (table, _) = run_fake(&words).await;
        let table = table.unwrap_or_else(|error| panic!("{line}: {error:?}"));
        assert!(
            table.ends_with('\n') && !table.contains(['\u{1b}', '\r']),
            "{line}: {table:?}"
        );
        let json = json(&words).await;
        let items = json.as_array().cloned().unwrap_or(vec![json]);
        for item in items {
            assert!(
                item.get("id")
                    .or(item.get("name"))
                    .is_some_and(Value::is_string),
                "{line}: {item}"
            );
        }
    }
}

#[tokio::test]
async fn lists_are_arrays_and_pages_are_joined() {
    assert_eq!(json(&["entry", "list"]).await.as_array().unwrap().len(), 2);
    assert_eq!(json(&["edge", "list"]).await.as_array().unwrap().len(), 1);
    assert_eq!(json(&["precache", "list"]).await[0]["eta_seconds"], 3);
}

#[tokio::test]
async fn global_options_stand_anywhere() {
    for line in [
        "--output json source list",
        "source --output json list",
        "source list --output json",
        "--output json precache list",
        "precache --output=json list",
        "precache list --output json --timeout 5s",
    ] {
        let (result, _) = run_fake(&line.split(' ').collect::<Vec<_>>()).await;
        let text = result.unwrap_or_else(|error| panic!("{line}: {error:?}"));
        assert!(text.starts_with('['), "{line}: {text}");
    }
}

#[tokio::test]
async fn a_source_is_sent_as_written() {
    let (result, asked) = run_fake(&[
        "source",
        "add",
        "films",
        "http://127.0.0.1:9/films",
        "--header",
        "X-Key: a:b",
        "--max-connections",
        "4",
        "--max-rate",
        "10MiB",
        "--mode",
        "record",
        "--background-fill=false",
        "--default-ttl",
        "5m",
        "--forward-credentials",
    ])
    .await;
    result.unwrap();
    for expected in [
        "name: \"X-Key\", value: \"a:b\"",
        "max_connections: 4",
        "max_rate_bytes_per_second: 10485760",
        "background_fill: Some(false)",
        "mode: Record",
        "default_ttl_seconds: Some(300)",
        "override_ttl_seconds: None",
        "forward_credentials: true",
    ] {
        assert!(
            asked[0].contains(expected),
            "{expected} is missing in {}",
            asked[0]
        );
    }
}

#[tokio::test]
async fn settings_of_origins_are_sent_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let headers = file("headers", "# of the archive\nX-Key: a:b\n\nX-Two: 2\n");
    let keys = file("keys", "AKID\nsecret\n");
    let (result, asked) = run_fake(&[
        "source",
        "add",
        "films",
        "s3://films/top",
        "s3://mirror",
        "--header-file",
        &headers,
        "--access-key-file",
        &keys,
        "--endpoint=https://s3.example",
        "--path-style",
        "--first-byte-timeout=90s",
        "--ignore-query",
        "utm_*",
        "presigned",
        "--ignore-query=x",
        "--ttl",
        "a=b*=2s",
        "--quota=1GiB",
        "--allow-redirect-to",
        "cdn.example",
    ])
    .await;
    result.unwrap();
    for expected in [
        "base_url: \"s3://films/top\"",
        "further_base_urls: [\"s3://mirror\"]",
        "name: \"X-Key\", value: \"a:b\"",
        "name: \"X-Two\", value: \"2\"",
        "access_key_id: \"AKID\", secret_access_key: \"secret\", session_token: \"\"",
        "endpoint: \"https://s3.example\", path_style: true",
        "first_byte_timeout_ms: Some(90000)",
        "ignore_query: [\"utm_*\", \"presigned\", \"x\"]",
        "pattern: \"a=b*\", seconds: 2",
        "quota_bytes: 1073741824",
        "redirect_hosts: [\"cdn.example\"]",
        "validate_only: false, check: true",
    ] {
        assert!(
            asked[0].contains(expected),
            "{expected} is missing in {}",
            asked[0]
        );
    }
}

#[tokio::test]
async fn a_bucket_is_not_checked_where_the_operator_says_so() {
    let (result, asked) = run_fake(&["source", "add", "films", "s3://films", "--no-check"]).await;
    result.unwrap();
    assert!(asked[0].contains("check: false"), "{}", asked[0]);
}

#[tokio::test]
async fn a_change_keeps_what_it_does_not_name() {
    let (result, asked) = run_fake(&["source", "set", "films", "--host=films.example"]).await;
    result.unwrap();
    for expected in [
        "base_url: \"http://127.0.0.1:9/films\"",
        "name: \"X-Key\", value: \"***\"",
        "host: \"films.example\"",
    ] {
        assert!(asked[1].contains(expected), "{expected}: {}", asked[1]);
    }
}

#[tokio::test]
async fn ranges_are_sent_half_open() {
    let (result, asked) = run_fake(&[
        "precache",
        "films/a.mp4",
        "--range",
        "0-1048575",
        "--range",
        "-1MiB",
        "--first",
        "1KiB",
        "--edge",
        "east",
        "--edge",
        "west",
    ])
    .await;
    result.unwrap();
    assert!(asked[0].starts_with("OpenEntryRequest"), "{asked:?}");
    let ranges = "ranges: [ByteRange { start: 0, end: 1048576 }, \
        ByteRange { start: 4194304, end: 5242880 }, ByteRange { start: 0, end: 1024 }]";
    assert!(asked[1].contains(ranges), "{}", asked[1]);
    assert!(
        asked[1].contains("edges: [\"east\", \"west\"]"),
        "{}",
        asked[1]
    );
}

#[tokio::test]
async fn a_title_is_a_job_for_each_object() {
    let line = "precache films/a.m3u8 --manifest --first 1m30s --rendition 1280x* --edge east";
    let (result, asked) = run_fake(&line.split(' ').collect::<Vec<_>>()).await;
    result.unwrap();
    assert!(asked[0].starts_with("ListTitleRequest"), "{asked:?}");
    let expected = "rendition: \"1280x*\", first_ms: 90000";
    assert!(asked[0].contains(expected), "{}", asked[0]);
    let mut jobs = asked[1..].to_vec();
    jobs.sort();
    for (job, expected) in jobs.iter().zip([
        "path: \"a/1.ts?x=1\" })) }), ranges: []",
        "path: \"a/2.ts\" })) }), ranges: [ByteRange { start: 0, end: 99 }]",
    ]) {
        assert!(job.contains(expected), "{job}");
        assert!(job.contains("edges: [\"east\"]"), "{job}");
    }
    assert_eq!(jobs.len(), 2);
}

#[tokio::test]
async fn usage_is_2_and_nothing_is_asked() {
    for line in [
        "entry show films",
        "precache films/a.mp4 --range 9-1",
        "source add films ftp://x/",
        "source add films http://x/ --header nonsense",
        "source add films http://x/ --max-rate fast",
        "source add films http://x/ --header-file /absent",
        "source add films http://x/ --ttl 5s",
        "source add films http://x/ --ignore-query a --only-query b",
        "source add films http://x/ --client-cert /x",
        "explain films/a.mp4",
        "source list --output xml",
        "source list --cert /c.pem",
        "precache films/a.mp4 list",
        "precache films/a.mp4 --first 30s",
        "precache films/a.m3u8 --manifest --first 30MiB",
        "precache films/a.m3u8 --manifest --range 0-9",
        "precache films/a.mp4 --rendition highest",
        "precache --manifest",
        "precache",
        "nonsense",
    ] {
        let (result, asked) = run_fake(&line.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(result.map_err(|e| e.exit_status()), Err(2), "{line}");
        assert!(asked.is_empty(), "{line}");
    }
    let line = [
        "source",
        "add",
        "films",
        "http://x/",
        "--max-connections",
        "-1",
    ];
    let (_, text) = message(run_fake(&line).await.0.unwrap_err());
    assert!(
        text.contains("invalid value '-1' for '--max-connections"),
        "{text}"
    );
}

#[tokio::test]
async fn a_refusal_names_field_and_remedy() {
    let (result, _) = run_fake(&["source", "add", "Bad", "http://127.0.0.1:9/"]).await;
    let (status, text) = message(result.unwrap_err());
    assert_eq!(status, 1);
    assert_eq!(
        text,
        "the source can not be kept\n  source.name: is not a name: expected a-z, 0-9"
    );
    let (result, _) = run_fake(&["entry", "show", "music/a.mp3"]).await;
    let (status, text) = message(result.unwrap_err());
    assert_eq!(
        (status, text.as_str()),
        (1, "no such source\n  source music: add it first")
    );
    let (result, _) = run_fake(&["edge", "verify"]).await;
    assert_eq!(message(result.unwrap_err()).0, 1);
}

#[tokio::test]
async fn a_watch_that_never_begins_is_refused_at_once() {
    let (result, asked) = run_fake(&["watch", "music/a.mp3"]).await;
    assert_eq!(message(result.unwrap_err()).0, 1);
    assert_eq!(asked.len(), 1);
}

#[tokio::test]
async fn a_failed_job_that_is_followed_is_1() {
    let fake = Fake {
        job_ends: JobState::Failed,
        ..Fake::default()
    };
    let endpoint = fake.start().await;
    let result = run_at(&endpoint, &["precache", "films/a.mp4", "--follow"]).await;
    assert_eq!(message(result.unwrap_err()).0, 1);
    assert!(
        run_at(&endpoint, &["precache", "films/a.mp4"])
            .await
            .is_ok()
    );
}

/// An address without a listener: bound once, so that it was free, and closed.
async fn dead_endpoint() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn an_absent_coordinator_is_named() {
    let endpoint = dead_endpoint().await;
    let (status, text) = message(run_at(&endpoint, &["status"]).await.unwrap_err());
    assert_eq!(status, 1);
    assert!(
        text.contains(&endpoint) && text.contains("--endpoint"),
        "{text}"
    );
}

#[tokio::test]
async fn the_next_address_is_tried_and_a_standby_is_followed_to_its_leader() {
    let leader = Fake::default();
    let asked: Arc<Mutex<Vec<String>>> = leader.asked.clone();
    let leader = leader.start().await;
    // Without a scheme, as a coordinator may know it.
    let address = leader.trim_start_matches("http://").to_owned();
    let standby = Fake {
        leader: Some(address),
        ..Fake::default()
    }
    .start()
    .await;
    let endpoints = format!("{},{standby}", dead_endpoint().await);
    assert!(run_at(&endpoints, &["source", "list"]).await.is_ok());
    assert_eq!(asked.lock().len(), 1);
}

#[tokio::test]
async fn standbys_that_name_each_other_are_no_endless_loop() {
    let first = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let named = |listener: &tokio::net::TcpListener| Fake {
        leader: Some(listener.local_addr().unwrap().to_string()),
        ..Fake::default()
    };
    let (one, other) = (named(&second), named(&first));
    let asked = one.asked.clone();
    let endpoint = one.start_on(first);
    other.start_on(second);
    let (status, text) = message(run_at(&endpoint, &["source", "list"]).await.unwrap_err());
    assert_eq!((status, text.as_str()), (1, "a standby"));
    assert_eq!(asked.lock().len(), 2);
}

/// Right after a step-down there is no leader for a moment; a command must not fail because of
/// that.
#[tokio::test]
async fn a_moment_without_a_leader_is_waited_for() {
    let between = Fake {
        without_leader: 2,
        ..Fake::default()
    };
    let asked = between.asked.clone();
    let endpoint = between.start().await;
    assert!(run_at(&endpoint, &["source", "list"]).await.is_ok());
    assert_eq!(asked.lock().len(), 3);
    // But it does not wait longer than a call may take.
    let none = Fake {
        without_leader: usize::MAX,
        ..Fake::default()
    };
    let endpoint = none.start().await;
    let arguments = ["source", "list", "--timeout=300ms"];
    let (status, text) = message(run_at(&endpoint, &arguments).await.unwrap_err());
    assert_eq!((status, text.as_str()), (1, "a standby"));
}

/// Accepts some lines, then is closed, like the input of `head`.
struct Head {
    lines: usize,
    taken: Vec<u8>,
}

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.lines == 0 {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        self.lines -= 1;
        self.taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_watch_prints_until_its_reader_has_seen_enough_and_resumes_where_it_was() {
    let fake = Fake::default();
    let asked = fake.asked.clone();
    let endpoint = fake.start().await;
    let line = [
        "cache-coordinator",
        "--endpoint",
        &endpoint,
        "watch",
        "films/a.mp4",
    ];
    let matches = command().try_get_matches_from(line).unwrap();
    let mut out = Head {
        lines: 3,
        taken: Vec::new(),
    };
    let result = execute(&command(), &matches, &mut out).await;
    assert!(matches!(result, Err(CliError::OutputClosed)));
    let text = String::from_utf8(out.taken).unwrap();
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&events[0]["event"], &events[1]["event"]),
        (&"snapshot".into(), &"stored".into())
    );
    // The stream ended after two events: the second watch begins after the last revision seen.
    let asked = asked.lock();
    assert!(
        asked[0].contains("from_revision: 0") && asked[1].contains("from_revision: 5"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn tls_wants_the_right_authority_and_certificate() {
    let endpoint = Fake::default().start_with_mutual_tls().await;
    let (ca, cert, key) = (
        fake::fixture("ca.pem"),
        fake::fixture("client.pem"),
        fake::fixture("client.key"),
    );
    let all = ["status", "--ca", &ca, "--cert", &cert, "--key", &key];
    assert!(run_at(&endpoint, &all).await.is_ok());
    assert_eq!(
        message(run_at(&endpoint, &all[..3]).await.unwrap_err()).0,
        1
    );
    let (status, text) = message(
        run_at(&endpoint, &["status", "--ca", &key])
            .await
            .unwrap_err(),
    );
    assert_eq!(status, 1);
    assert!(text.contains("--ca"), "{text}");
}

#[tokio::test]
async fn the_token_comes_from_its_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let fake = Fake::default();
    let tokens = fake.tokens.clone();
    let endpoint = fake.start().await;
    let path = file.path().to_str().unwrap();
    run_at(&endpoint, &["status", "--token-file", path])
        .await
        .unwrap();
    assert_eq!(*tokens.lock(), ["Bearer hunter2"]);
}
