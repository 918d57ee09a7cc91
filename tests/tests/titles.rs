//! Titles of many objects, brought to an edge by their manifest.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, KIB, Object, content};
use serde_json::Value;

const SEGMENT: u64 = 40 * KIB;

fn playlist(segments: impl Iterator<Item = String>) -> Object {
    let lines: String = segments.map(|it| format!("#EXTINF:4,\n{it}\n")).collect();
    Object::text(&format!("#EXTM3U\n{lines}#EXT-X-ENDLIST\n")).unwrap()
}

fn segment(seed: u64) -> Object {
    Object::generated(seed, SEGMENT).header("Cache-Control", "max-age=3600")
}

/// The requests at the origin, except those for manifests.
fn asked(cluster: &Cluster) -> BTreeSet<String> {
    let hits = cluster.origin.all_hits().into_iter().map(|hit| hit.target);
    hits.filter(|it| !it.contains(".m3u8") && !it.contains(".mpd"))
        .collect()
}

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn precache(cluster: &Cluster, manifest: &str, options: &[&str]) -> Value {
    let arguments = [&["precache", manifest, "--manifest", "--follow"], options];
    cluster.coordinator.json(&arguments.concat())
}

#[test]
fn a_title_is_brought_by_its_playlist() {
    let cluster = Cluster::start();
    let master = "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"en\",URI=\"en.m3u8\"\n\
                  #EXT-X-STREAM-INF:BANDWIDTH=100,RESOLUTION=640x360,AUDIO=\"a\"\nlow/index.m3u8\n\
                  #EXT-X-STREAM-INF:BANDWIDTH=300,RESOLUTION=1280x720\nhigh/index.m3u8?x=1\n";
    cluster.put("/t/master.m3u8", Object::text(master).unwrap());
    let low = playlist((1..=5).map(|n| format!("{n}.ts")));
    cluster.put("/t/low/index.m3u8", low.header("Cache-Control", "no-store"));
    cluster.put(
        "/t/high/index.m3u8",
        playlist((1..=5).map(|n| format!("{n}.ts?y=2"))),
    );
    // One object, of which each segment is a part.
    let parts =
        (0..5).map(|n| format!("#EXTINF:4,\n#EXT-X-BYTERANGE:1000@{}\nen.mp4\n", n * 1_000));
    let audio = format!("#EXTM3U\n{}", parts.collect::<String>());
    cluster.put("/t/en.m3u8", Object::text(&audio).unwrap());
    cluster.put("/t/en.mp4", segment(99));
    for n in 1..=5 {
        cluster.put(&format!("/t/low/{n}.ts"), segment(n));
        cluster.put(&format!("/t/high/{n}.ts"), segment(10 + n));
    }
    let precache = |options: &[&str]| precache(&cluster, "media/t/master.m3u8", options);
    let jobs = precache(&["--rendition", "lowest", "--first", "8s"]);
    let expected = ["/t/low/1.ts", "/t/low/2.ts", "/t/en.mp4"];
    assert_eq!(asked(&cluster), named(&expected));
    let jobs = jobs.as_array().unwrap();
    assert!(jobs.iter().all(|job| job["state"] == "done"), "{jobs:?}");
    // The playlist that may not be stored is no part of it.
    assert_eq!(jobs.len(), 2 + 3);
    let audio = jobs.iter().find(|job| job["bytes_total"] == 2_000);
    assert!(audio.is_some(), "{jobs:?}");
    precache(&["--rendition", "*x720"]);
    let high: Vec<String> = (1..=5).map(|n| format!("/t/high/{n}.ts?y=2")).collect();
    let mut expected = named(&expected);
    expected.extend(high);
    assert_eq!(asked(&cluster), expected);
    precache(&[]);
    assert_eq!(asked(&cluster).len(), 5 + 5 + 1);
    // And a player is served from there.
    for n in 1..=5 {
        let response = Call::get(&format!("/media/t/low/{n}.ts")).send(cluster.edge().http);
        let status = response.header("Cache-Status").unwrap().to_owned();
        assert!(status.ends_with("; hit"), "{n}: {status}");
        assert!(response.expect(200).body == content::bytes(n, 0, SEGMENT));
    }
}

#[test]
fn a_title_is_brought_by_its_mpd() {
    let cluster = Cluster::start();
    let mpd = "<MPD mediaPresentationDuration=\"PT12S\"><Period>\
               <AdaptationSet contentType=\"video\"><SegmentTemplate duration=\"4\" \
               initialization=\"$RepresentationID$/i.mp4\" \
               media=\"$RepresentationID$/$Number$.m4s\"/>\
               <Representation id=\"l\" bandwidth=\"8\"/><Representation id=\"h\" bandwidth=\"9\"/>\
               </AdaptationSet><AdaptationSet contentType=\"audio\">\
               <Representation id=\"a\" bandwidth=\"80000\">\
               <BaseURL>a.mp4</BaseURL></Representation>\
               </AdaptationSet></Period></MPD>";
    cluster.put(
        "/d/index.mpd",
        Object::text(mpd)
            .unwrap()
            .content_type("application/dash+xml"),
    );
    let names = [
        "l/i.mp4", "l/1.m4s", "l/2.m4s", "l/3.m4s", "h/i.mp4", "h/1.m4s", "h/2.m4s",
    ];
    for (seed, name) in (1..).zip(names.iter().chain(&["h/3.m4s", "a.mp4"])) {
        cluster.put(&format!("/d/{name}"), segment(seed));
    }
    let precache = |options: &[&str]| precache(&cluster, "media/d/index.mpd", options);
    let jobs = precache(&["--rendition", "highest", "--first", "1s"]);
    let expected = ["/d/h/i.mp4", "/d/h/1.m4s", "/d/a.mp4"];
    assert_eq!(asked(&cluster), named(&expected));
    let jobs = jobs.as_array().unwrap();
    let audio = jobs.iter().find(|job| job["bytes_total"] == 20_001);
    assert!(audio.is_some(), "{jobs:?}");
    precache(&[]);
    assert_eq!(asked(&cluster).len(), 4 + 4 + 1);
}

#[test]
fn what_is_no_manifest_is_told() {
    let cluster = Cluster::start();
    cluster.put("/film.mp4", segment(1));
    cluster.put("/large.mpd", Object::generated(2, 2 << 20));
    let out = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nhttp://evil.example/a.m3u8\n";
    cluster.put("/out.m3u8", Object::text(out).unwrap());
    let titles = [
        ("media/missing.m3u8", "it answered 404"),
        ("media/film.mp4", "can not be read as a manifest"),
        ("media/large.mpd", "too long for a manifest"),
        (
            "media/out.m3u8",
            "http://evil.example/a.m3u8 is not in the source",
        ),
        ("other/a.m3u8", "other"),
    ];
    for (title, expected) in titles {
        let output = cluster.coordinator.cli(&["precache", title, "--manifest"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{title}: {errors}");
        assert!(errors.contains(expected), "{title}: {errors}");
    }
}
