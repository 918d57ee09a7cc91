//! Renders fixed messages to fixed text: output that people script against must not change
//! unnoticed.

use chunkcache_proto::v1::watch_entry_response::Event;
use chunkcache_proto::v1::{ByteRange, ChunksChanged, GetAvailabilityResponse, JobState};
use serde_json::json;

use super::super::*;
use super::fake;

#[test]
fn an_entry_in_json() {
    let json = view::entry_detail(&fake::detail());
    for (key, value) in [
        ("id", json!(fake::ENTRY_ID)),
        ("source", json!("films")),
        ("path", json!("a.mp4")),
        ("size", json!(5 << 20)),
        ("etag", json!("\"v1\"")),
        ("chunk_size", json!(2 << 20)),
        ("pinned", json!(false)),
        ("complete", json!(false)),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    assert_eq!(
        json["edges"],
        json!([{
            "name": "east", "url": "http://127.0.0.1:7500", "state": "active",
            "bytes": 2 << 20, "ranges": [{"start": 0, "end": 2 << 20}],
        }])
    );
}

#[test]
fn a_job_in_json() {
    let mut job = fake::job(JobState::Running, 1 << 20);
    let shown = view::job(&job);
    assert_eq!(shown["state"], "running");
    assert_eq!(
        (
            &shown["bytes_done"],
            &shown["bytes_total"],
            &shown["rate"],
            &shown["eta_seconds"]
        ),
        (&json!(1 << 20), &json!(5 << 20), &json!(1 << 20), &json!(3))
    );
    job.eta_seconds = None;
    assert_eq!(view::job(&job)["eta_seconds"], json!(null));
}

#[test]
fn an_edge_in_json() {
    let json = view::edge(&fake::edge());
    assert_eq!(
        (&json["name"], &json["state"]),
        (&json!("east"), &json!("active"))
    );
    assert_eq!(json["bytes_used"], 2 << 20);
    assert_eq!(json["bytes_allowed"], 10_u64 << 30);
}

#[test]
fn tables_are_plain_text() {
    assert_eq!(
        source::table(&[(&fake::source(), Some(&fake::source_use()))]),
        "NAME   BASE URL                  MODE   CONNECTIONS  RATE        SENT     HITS    \
         USED                ORIGINS\n\
         films  http://127.0.0.1:9/films  serve  no limit     10.0 MiB/s  2.0 KiB  75.0 %  \
         1.0 GiB of 4.0 GiB  1 down\n"
    );
    assert_eq!(
        edge::table(&[fake::edge()]),
        "NAME  STATE   URL                    USED     ALLOWED   CHUNKS  READERS\n\
         east  active  http://127.0.0.1:7500  2.0 MiB  10.0 GiB  1       0\n"
    );
    assert_eq!(
        precache::table(&[fake::job(JobState::Running, 1 << 20)]),
        "ID  OBJECT       STATE    DONE  OF       RATE       ETA\n\
         j1  films/a.mp4  running  20%   5.0 MiB  1.0 MiB/s  3s\n"
    );
    let entry = entry::fields(&fake::detail());
    assert!(entry.contains("on east       40%: 0-2097151\n"), "{entry}");
}

#[test]
fn the_use_of_a_source() {
    let mut rows = output::Rows::of_fields([]);
    source_use::add_rows(&mut rows, &[fake::source_use()]);
    assert_eq!(
        rows.render(),
        "on east  2.0 KiB sent in 1h02m, 75.0 % of it from the cache; 500 B from origins, \
         3 errors; 1.0 GiB on disk of 4.0 GiB\n\
         \u{20} a:81   down for 5s; 1m05s ago: answered 503\n\
         \u{20} b      up, first byte 12.3 ms\n"
    );
    assert_eq!(
        source_use::json(&fake::source_use()),
        json!({
            "name": "east", "uptime_ms": 3_720_000, "bytes_used": 1 << 30,
            "quota_bytes": 4_u64 << 30, "bytes_sent": 2_000, "bytes_hit": 1_500,
            "bytes_origin": 500, "origin_errors": 3, "origins_down": 1,
            "origins": [
                {
                    "name": "a:81", "down_ms": 5_000, "first_byte_ms": null,
                    "last_error": "answered 503", "last_error_ms": 65_000,
                },
                {
                    "name": "b", "down_ms": null, "first_byte_ms": 12.3, "last_error": "",
                    "last_error_ms": null,
                },
            ],
        })
    );
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let mut edge = fake::edge();
    edge.url = "http://x/\u{1b}[31m".to_owned();
    assert!(!edge::table(&[edge]).contains('\u{1b}'));
}

#[test]
fn a_watch_is_one_object_a_line() {
    let snapshot = GetAvailabilityResponse {
        entry: Some(fake::entry()),
        edges: fake::detail().edges,
        revision: 4,
    };
    let line = watch::line(4, &Event::Snapshot(snapshot));
    assert_eq!(
        (&line["event"], &line["id"]),
        (&json!("snapshot"), &json!(fake::ENTRY_ID))
    );
    let stored = ChunksChanged {
        entry_id: fake::ENTRY_ID.to_owned(),
        edge: "east".to_owned(),
        ranges: vec![ByteRange { start: 0, end: 9 }],
    };
    let line = watch::line(5, &Event::Stored(stored));
    assert_eq!(
        line,
        json!({
            "id": fake::ENTRY_ID, "revision": 5, "event": "stored", "edge": "east",
            "ranges": [{"start": 0, "end": 9}],
        })
    );
    assert!(!line.to_string().contains('\n'));
}

#[test]
fn completions_and_manual_name_the_commands() {
    let whole = command().subcommand(Command::new("serve").about("Run"));
    for shell in ["bash", "zsh", "fish"] {
        let matches = command()
            .try_get_matches_from(["cache-coordinator", "completions", shell])
            .unwrap();
        let (verb, arguments) = matches.subcommand().unwrap();
        let out = shell::text(&whole, verb, arguments).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("precache") && text.contains("set-mode") && text.contains("serve"),
            "{shell}"
        );
    }
    let matches = command().get_matches_from(["cache-coordinator", "man"]);
    let out = shell::text(&whole, "man", &matches).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains("cache\\-coordinator\\-precache")
            && text.contains("cache\\-coordinator\\-serve"),
        "{text}"
    );
}
