//! Objects that a viewer is expected to request next are cached before it requests them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::{Cluster, Fault, KIB, Object, content, eventually};

const SOON: Duration = Duration::from_secs(20);
const SEGMENT: u64 = 300 * KIB;

fn put_segment(cluster: &Cluster, path: &str, seed: u64) -> String {
    let object = Object::generated(seed, SEGMENT).header("Cache-Control", "max-age=3600");
    cluster.put(path, object)
}

fn next_objects(cluster: &Cluster, result: &str) -> u64 {
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let name = format!("cache_edge_next_objects_total{{result=\"{result}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap().parse().unwrap()
}

fn wait_for(cluster: &Cluster, result: &str, count: u64) {
    eventually(&format!("{count} {result}"), SOON, || {
        (next_objects(cluster, result) >= count).then_some(())
    });
}

fn play(cluster: &Cluster, target: &str, seed: u64, cmcd: &str) -> String {
    let mut call = Call::get(target);
    if !cmcd.is_empty() {
        call = call.header("CMCD-Request", cmcd);
    }
    let response = call.send(cluster.edge().http).expect(200);
    assert!(response.body == content::bytes(seed, 0, SEGMENT));
    response.header("Cache-Status").unwrap().to_owned()
}

#[test]
fn what_a_player_names_is_there_before_it_asks() {
    let cluster = Cluster::start();
    let targets: Vec<String> = (1..=4)
        .map(|n| put_segment(&cluster, &format!("/v/{n}.m4s"), n))
        .collect();
    play(&cluster, &targets[0], 1, "bl=20000,nor=\"2.m4s\"");
    wait_for(&cluster, "fetched", 1);
    let status = play(&cluster, &targets[1], 2, "bl=20000,nor=\"..%2Fv%2F3.m4s\"");
    assert!(status.ends_with("; hit"), "{status}");
    wait_for(&cluster, "fetched", 2);
    // For a starved player nothing is fetched ahead.
    let status = play(&cluster, &targets[2], 3, "bl=20000,bs,nor=\"4.m4s\"");
    assert!(status.ends_with("; hit"), "{status}");
    for n in 1..=3 {
        assert_eq!(cluster.origin.hits(&format!("/v/{n}.m4s")).len(), 1);
    }
    assert!(cluster.origin.hits("/v/4.m4s").is_empty());
    assert_eq!(next_objects(&cluster, "fetched"), 2);
}

#[test]
fn what_is_fetched_for_a_viewer_s_next_request_is_explained_with_its_time() {
    let cluster = Cluster::start();
    let first = put_segment(&cluster, "/v/1.m4s", 1);
    put_segment(&cluster, "/v/2.m4s", 2);
    let slow = |it: &mut Object| *it = it.clone().paced(20 * KIB);
    cluster.origin.change("/v/2.m4s", slow);
    let said = "bl=20000,nor=\"2.m4s\",sid=\"one\"";
    play(&cluster, &first, 1, said);
    let reason = eventually("the next segment is explained", SOON, || {
        let arguments = [
            "explain",
            "media/v/2.m4s",
            "--chunk",
            "0",
            "--output",
            "json",
        ];
        // It fails as long as the entry is not registered.
        let told = cluster.coordinator.cli(&arguments).stdout;
        let told: serde_json::Value = serde_json::from_slice(&told).ok()?;
        let reason = told["decisions"].as_array()?.first()?["reason"].as_str()?;
        let rest = reason.strip_prefix("next segment of viewer ")?;
        Some(rest.to_owned())
    });
    let (_, due) = reason.split_once(", due in ").unwrap();
    let seconds: f64 = due.strip_suffix(" s").unwrap().parse().unwrap();
    assert!((1.0..=20.0).contains(&seconds), "{reason}");
}

#[test]
fn nothing_outside_of_the_source_is_asked_for_whatever_a_player_names() {
    let cluster = Cluster::start();
    cluster.add_source("other");
    let target = put_segment(&cluster, "/v/1.m4s", 1);
    put_segment(&cluster, "/secret.m4s", 2);
    let names = [
        "%2Fother%2Fsecret.m4s",
        "..%2F..%2Fother%2Fsecret.m4s",
        "%2F%2Fevil.example%2Fsecret.m4s",
        "http%3A%2F%2Fevil.example%2Fsecret.m4s",
    ];
    for name in names {
        play(&cluster, &target, 1, &format!("bl=20000,nor=\"{name}\""));
    }
    assert_eq!(next_objects(&cluster, "outside"), 4);
    // An object that does not exist costs one request.
    for _ in 0..5 {
        play(&cluster, &target, 1, "bl=20000,nor=\"missing.m4s\"");
    }
    wait_for(&cluster, "repeated", 4);
    wait_for(&cluster, "failed", 1);
    assert_eq!(cluster.origin.hits("/v/missing.m4s").len(), 1);
    assert!(cluster.origin.hits("/secret.m4s").is_empty());
    let paths = cluster.origin.all_hits().len();
    assert_eq!(paths, 2, "{:?}", cluster.origin.all_hits());
}

fn playlist(names: impl Iterator<Item = String>) -> String {
    let lines: String = names.map(|name| format!("#EXTINF:2,\n{name}\n")).collect();
    format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n{lines}#EXT-X-ENDLIST\n")
}

#[test]
fn the_segments_of_a_ladder_are_there_before_they_are_asked_for() {
    let cluster = Cluster::start();
    let seed = |rendition: u64, n: u64| rendition * 100 + n;
    let mut ladder = Vec::new();
    for rendition in 0..2 {
        let text = playlist((1..=8).map(|n| format!("{n}.ts")));
        let object = Object::text(&text).unwrap();
        // One that is kept, and one that is passed through.
        let object = match rendition {
            0 => object.header("Cache-Control", "max-age=3600"),
            _ => object.header("Cache-Control", "no-store"),
        };
        let index = cluster.put(&format!("/{rendition}/index.m3u8"), object);
        let segments: Vec<String> = (1..=8)
            .map(|n| {
                put_segment(
                    &cluster,
                    &format!("/{rendition}/{n}.ts"),
                    seed(rendition, n),
                )
            })
            .collect();
        ladder.push((index, segments));
    }
    let load = |rendition: usize| {
        let response = Call::get(&ladder[rendition].0).send(cluster.edge().http);
        assert!(response.expect(200).text().starts_with("#EXTM3U"));
    };
    let play = |rendition: u64, n: u64| {
        let target = &ladder[rendition as usize].1[n as usize - 1];
        play(&cluster, target, seed(rendition, n), "")
    };
    let is_asked = |rendition: u64, n: u64| {
        let path = format!("/{rendition}/{n}.ts");
        eventually(&path, SOON, || {
            (!cluster.origin.hits(&path).is_empty()).then_some(())
        });
    };
    load(0);
    // The playlist is read in parallel with its answer, so the first segment is played once that is
    // done.
    eventually("the playlist is read", SOON, || {
        play(0, 1);
        (!cluster.origin.hits("/0/2.ts").is_empty()).then_some(())
    });
    wait_for(&cluster, "fetched", 3);
    for n in 2..=4 {
        let status = play(0, n);
        assert!(status.ends_with("; hit"), "{n}: {status}");
        is_asked(0, n + 3);
    }
    // A switch of the rendition, in the middle.
    load(1);
    play(1, 5);
    is_asked(1, 8);
    wait_for(&cluster, "fetched", 9);
    for n in 6..=8 {
        let status = play(1, n);
        assert!(status.ends_with("; hit"), "{n}: {status}");
    }
    for hit in cluster.origin.all_hits() {
        let path = hit.target.as_str();
        let is_segment = path.ends_with(".ts");
        assert!(
            !is_segment || cluster.origin.hits(path).len() == 1,
            "{path}"
        );
    }
    for never in ["/0/8.ts", "/1/1.ts", "/1/4.ts"] {
        assert!(cluster.origin.hits(never).is_empty(), "{never}");
    }
}

#[test]
fn the_segments_of_an_mpd_are_there_before_they_are_asked_for() {
    let cluster = Cluster::start();
    let mpd = "<MPD mediaPresentationDuration=\"PT16S\"><Period><AdaptationSet>\
               <SegmentTemplate duration=\"2\" media=\"$RepresentationID$/$Number$.m4s\"/>\
               <Representation id=\"low\"/><Representation id=\"high\"/>\
               </AdaptationSet></Period></MPD>";
    let object = Object::text(mpd)
        .unwrap()
        .content_type("application/dash+xml");
    let manifest = cluster.put("/d/index.mpd", object.header("Cache-Control", "max-age=60"));
    let seed = |name: &str, n: u64| 1_000 * name.len() as u64 + n;
    for (name, n) in (1..=8).flat_map(|n| [("low", n), ("high", n)]) {
        put_segment(&cluster, &format!("/d/{name}/{n}.m4s"), seed(name, n));
    }
    let play = |name: &str, n: u64| {
        let target = format!("/media/d/{name}/{n}.m4s");
        play(&cluster, &target, seed(name, n), "")
    };
    Call::get(&manifest).send(cluster.edge().http).expect(200);
    eventually("the MPD is read", SOON, || {
        play("low", 1);
        (!cluster.origin.hits("/d/low/2.m4s").is_empty()).then_some(())
    });
    wait_for(&cluster, "fetched", 3);
    for n in 2..=4 {
        let status = play("low", n);
        assert!(status.ends_with("; hit"), "{n}: {status}");
    }
    wait_for(&cluster, "fetched", 6);
    // Another rendition, in the middle.
    play("high", 6);
    wait_for(&cluster, "fetched", 8);
    let status = play("high", 8);
    assert!(status.ends_with("; hit"), "{status}");
    for never in ["/d/high/1.m4s", "/d/high/5.m4s", "/d/high/9.m4s"] {
        assert!(cluster.origin.hits(never).is_empty(), "{never}");
    }
}

#[test]
fn parts_and_hints_are_asked_for_before_a_player_does() {
    let cluster = Cluster::start();
    let part = |name: &str| format!("#EXT-X-PART:DURATION=0.5,URI=\"{name}\"\n");
    let text = format!(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n{}{}#EXTINF:1,\n1.mp4\n{}\
         #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"2.1.mp4\"\n",
        part("1.0.mp4"),
        part("1.1.mp4"),
        part("2.0.mp4")
    );
    let object = Object::text(&text)
        .unwrap()
        .header("Cache-Control", "max-age=1");
    let index = cluster.put("/l/index.m3u8", object);
    for (n, name) in ["1.0", "1.1", "2.0"].into_iter().enumerate() {
        put_segment(&cluster, &format!("/l/{name}.mp4"), n as u64);
    }
    // The one that is hinted at: answered once it is there, without a length.
    let object = Object::generated(3, SEGMENT).etag(None).last_modified(None);
    let hinted = [Fault::Chunked, Fault::IgnoreRange].into_iter();
    let hinted = hinted.fold(object, |it, fault| it.fault(fault, Times::Always));
    let hinted = hinted.latency(Duration::from_secs(1));
    let hinted = cluster.put("/l/2.1.mp4", hinted.header("Cache-Control", "max-age=60"));
    Call::get(&index).send(cluster.edge().http).expect(200);
    eventually("the playlist is read", SOON, || {
        play(&cluster, "/media/l/1.0.mp4", 0, "");
        (!cluster.origin.hits("/l/1.1.mp4").is_empty()).then_some(())
    });
    wait_for(&cluster, "fetched", 3);
    let status = play(&cluster, "/media/l/2.0.mp4", 2, "");
    assert!(status.ends_with("; hit"), "{status}");
    // The hint was followed, and its answer is for all who come.
    let viewers: Vec<_> = (0..10)
        .map(|_| {
            let (hinted, edge) = (hinted.clone(), cluster.edge().http);
            std::thread::spawn(move || Call::get(&hinted).send(edge))
        })
        .collect();
    for viewer in viewers {
        let response = viewer.join().unwrap().expect(200);
        assert!(response.body == content::bytes(3, 0, SEGMENT));
    }
    for name in ["1.0", "1.1", "2.0", "2.1"] {
        let hits = cluster.origin.hits(&format!("/l/{name}.mp4"));
        assert_eq!(hits.len(), 1, "{name}: {hits:?}");
    }
}

#[test]
fn a_hostile_playlist_costs_a_bounded_prefetch() {
    let cluster = Cluster::start();
    let target = put_segment(&cluster, "/0.ts", 1);
    let lines = (0..100_000).map(|n| match n % 3 {
        0 => "0.ts".to_owned(),
        1 => format!("//e/{n}"),
        _ => format!("{n}"),
    });
    let text = playlist(lines);
    let text = &text[..text.len().min(1 << 20)];
    let index = cluster.put("/index.m3u8", Object::text(text).unwrap());
    Call::get(&index).send(cluster.edge().http).expect(200);
    for _ in 0..20 {
        play(&cluster, &target, 1, "");
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("what follows fails", SOON, || {
        (next_objects(&cluster, "failed") > 0).then_some(())
    });
    let asked = cluster.origin.all_hits().len();
    assert!(asked <= 8, "{asked} requests");
}

#[test]
fn what_an_origin_links_to_is_there_before_it_is_asked_for() {
    let mut cluster = Cluster::start();
    let here = cluster.origin.url();
    let linking = |seed: u64, links: &str| {
        let object = Object::generated(seed, SEGMENT).header("Link", links);
        object.header("Cache-Control", "max-age=3600")
    };
    let links = format!("<2.m4s>; rel=next, <{here}/v/3.m4s>; rel=\"x prefetch\", <4>; rel=prev");
    let first = cluster.put("/v/1.m4s", linking(1, &links));
    let second = put_segment(&cluster, "/v/2.m4s", 2);
    let third = put_segment(&cluster, "/v/3.m4s", 3);
    play(&cluster, &first, 1, "");
    wait_for(&cluster, "fetched", 2);
    for (n, target) in [(2, &second), (3, &third)] {
        let status = play(&cluster, target, n, "");
        assert!(status.ends_with("; hit"), "{n}: {status}");
        assert_eq!(cluster.origin.hits(&format!("/v/{n}.m4s")).len(), 1);
    }
    // The same of an answer that is passed through.
    let passed = Object::generated(5, SEGMENT).header("Link", "</v/6.m4s>; rel=next");
    let passed = cluster.put("/v/5.m4s", passed.header("Cache-Control", "no-store"));
    put_segment(&cluster, "/v/6.m4s", 6);
    play(&cluster, &passed, 5, "");
    wait_for(&cluster, "fetched", 3);
    // The fields are kept with the object.
    let edge = cluster.edge_mut();
    assert_eq!(edge.terminate().code(), Some(0));
    edge.start();
    let status = play(&cluster, &first, 1, "");
    assert!(status.ends_with("; hit"), "{status}");
    wait_for(&cluster, "present", 2);
    assert_eq!(cluster.origin.hits("/v/1.m4s").len(), 1);
}

#[test]
fn hostile_links_cost_a_bounded_prefetch() {
    let cluster = Cluster::start();
    cluster.add_source("other");
    let outside = ["http://evil.example/a", "//evil.example/a", "x:y"];
    let inside: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let named = outside.into_iter().chain(inside.iter().map(String::as_str));
    let links: Vec<String> = named.map(|it| format!("<{it}>; rel=next")).collect();
    let object = Object::generated(1, SEGMENT).header("Link", &links.join(","));
    let target = cluster.put("/v/1.m4s", object.header("Cache-Control", "max-age=3600"));
    for _ in 0..20 {
        play(&cluster, &target, 1, "");
    }
    wait_for(&cluster, "failed", 5);
    assert!(next_objects(&cluster, "outside") >= 3);
    let asked = cluster.origin.all_hits().len();
    assert!(asked <= 1 + 5, "{:?}", cluster.origin.all_hits());
}
