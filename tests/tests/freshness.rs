//! Freshness in a shared cache (RFC 9111, RFC 5861), seen from both sides: the client's answers and
//! the origin's requests. Each test has its own objects in one cluster.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::origin::{Hit, Times, variant_seed};
use chunkcache_tests::{CHUNK, Cluster, Fault, KIB, Object, content, eventually};

const SIZE: u64 = 100 * KIB;

fn get(cluster: &Cluster, target: &str) -> Response {
    Call::get(target).send(cluster.edge().http)
}

fn status_of(answer: &Response) -> &str {
    answer.header("cache-status").unwrap_or("none")
}

/// Requests until the cache reports this. Lifetimes are whole seconds, so this may take a moment.
#[track_caller]
fn until(cluster: &Cluster, target: &str, wanted: &str) -> Response {
    eventually(
        &format!("{target} is {wanted}"),
        Duration::from_secs(10),
        || {
            let answer = get(cluster, target);
            status_of(&answer).contains(wanted).then_some(answer)
        },
    )
}

fn is_conditional(hit: &Hit) -> bool {
    hit.header("if-none-match").is_some() || hit.header("if-modified-since").is_some()
}

#[test]
fn lifetimes_of_the_origin() {
    let cluster = Cluster::start();
    let object = |seed| Object::generated(seed, SIZE);
    let now = |seconds: u64| {
        let at = std::time::SystemTime::now() + Duration::from_secs(seconds);
        http_date(at)
    };
    // Path, headers of the origin, and whether a second request within the second is answered
    // without the origin.
    let cases: Vec<(&str, Object, bool)> = vec![
        (
            "/max-age",
            object(1).header("Cache-Control", "max-age=600"),
            true,
        ),
        (
            "/s-maxage",
            object(2).header("Cache-Control", "max-age=0, s-maxage=600"),
            true,
        ),
        (
            "/s-maxage-0",
            object(3).header("Cache-Control", "max-age=600, s-maxage=0"),
            false,
        ),
        (
            "/no-cache",
            object(4).header("Cache-Control", "no-cache"),
            false,
        ),
        ("/pragma", object(5).header("Pragma", "no-cache"), false),
        (
            "/aged",
            object(6)
                .header("Cache-Control", "max-age=600")
                .header("Age", "600"),
            false,
        ),
        (
            "/half-aged",
            object(7)
                .header("Cache-Control", "max-age=600")
                .header("Age", "300"),
            true,
        ),
        (
            "/expires",
            object(8)
                .header("Date", &now(0))
                .header("Expires", &now(600)),
            true,
        ),
        (
            "/expired",
            object(9).header("Date", &now(0)).header("Expires", &now(0)),
            false,
        ),
        (
            "/expires-nonsense",
            object(10).header("Expires", "0"),
            false,
        ),
        (
            "/max-age-beats-expires",
            object(11)
                .header("Cache-Control", "max-age=600")
                .header("Expires", "0"),
            true,
        ),
        ("/says-nothing", object(12), true),
    ];
    for (path, object, fresh) in cases {
        let target = cluster.put(path, object);
        let first = get(&cluster, &target).expect(200);
        assert!(status_of(&first).contains("fwd=miss"), "{path}: {first:?}");
        let second = get(&cluster, &target).expect(200);
        assert_eq!(first.body, second.body);
        let hits = cluster.origin.hits(path);
        assert_eq!(hits.len(), if fresh { 1 } else { 2 }, "{path}: {hits:?}");
        if !fresh {
            assert!(is_conditional(&hits[1]), "{path}");
            assert_eq!((hits[1].status, hits[1].body_bytes), (304, 0), "{path}");
            let said = status_of(&second);
            assert!(said.contains("fwd=stale; fwd-status=304"), "{path}: {said}");
        }
        let age: u64 = second.header("age").unwrap().parse().unwrap();
        let least = match path {
            "/aged" => 600,
            "/half-aged" => 300,
            _ => 0,
        };
        assert!((least..least + 5).contains(&age), "{path}: Age {age}");
    }
    // Caches nearer to the client need the origin's directives too (RFC 9111, 5.2).
    let passed = get(&cluster, "/media/s-maxage");
    let directives = passed.header("cache-control");
    assert_eq!(directives, Some("max-age=0, s-maxage=600"));
}

/// 304, or the object once more: while the validator is the same, no chunk is fetched again.
#[test]
fn revalidation_moves_no_chunk() {
    let cluster = Cluster::start();
    let size = 3 * CHUNK;
    let object = |seed| Object::generated(seed, size).header("Cache-Control", "no-cache");
    for (path, object) in [
        ("/by-etag", object(21)),
        ("/by-date", object(22).etag(None)),
        ("/by-weak-etag", object(23).etag(Some("W/\"weak\""))),
        ("/condition-ignored", object(24).ignoring_conditions()),
    ] {
        let target = cluster.put(path, object);
        let first = get(&cluster, &target).expect(200);
        cluster.wait_recorded(path, &[(0, size)]);
        let before = cluster.origin.body_bytes(path);
        assert_eq!(before, size, "{path}");
        for _ in 0..3 {
            let again = get(&cluster, &target).expect(200);
            assert_eq!(again.body, first.body);
        }
        let moved = cluster.origin.body_bytes(path) - before;
        let hits = cluster.origin.hits(path);
        assert_eq!(hits.len(), 4, "{path}: {hits:?}");
        // An origin that ignores conditions sends the one requested byte.
        let allowed = if path == "/condition-ignored" { 3 } else { 0 };
        assert_eq!(moved, allowed, "{path}: {hits:?}");
    }
    // One that supports neither conditions nor ranges sends everything, and is not read.
    let neither = object(25)
        .ignoring_conditions()
        .fault(Fault::IgnoreRange, Times::Always);
    let target = cluster.put("/knows-nothing", neither);
    let first = get(&cluster, &target).expect(200);
    cluster.wait_recorded("/knows-nothing", &[(0, size)]);
    let again = get(&cluster, &target).expect(200);
    assert_eq!(first.body, again.body);
    let said = status_of(&again);
    assert!(
        said.contains("fwd=stale; fwd-status=200") && !said.contains("stored"),
        "{said}"
    );
}

#[test]
fn an_unreachable_origin_is_not_a_deleted_object() {
    let mut cluster = Cluster::start();
    let object = |control| Object::generated(31, SIZE).header("Cache-Control", control);
    let cases = [
        ("/default", "max-age=0", true),
        ("/within", "max-age=0, stale-if-error=600", true),
        ("/beyond", "max-age=0, stale-if-error=0", false),
        ("/must-revalidate", "max-age=0, must-revalidate", false),
        ("/proxy-revalidate", "max-age=0, proxy-revalidate", false),
        ("/no-cache", "no-cache", false),
    ];
    for (path, control, _) in cases {
        let target = cluster.put(path, object(control));
        get(&cluster, &target).expect(200);
        cluster.wait_recorded(path, &[(0, SIZE)]);
    }
    cluster.origin.stop();
    for (path, control, usable) in cases {
        let answer = get(&cluster, &format!("/media{path}"));
        let said = status_of(&answer).to_owned();
        if usable {
            assert_eq!(answer.status, 200, "{control}");
            assert!(answer.body == content::bytes(31, 0, SIZE));
            assert!(
                said.contains("fwd=stale") && said.contains("stale-if-error"),
                "{said}"
            );
        } else {
            assert!(
                matches!(answer.status, 502..=504),
                "{control}: {}",
                answer.status
            );
            assert!(said.contains("origin-unreachable"), "{control}: {said}");
        }
    }
    cluster.origin.start_again();
    // An answer of 5xx counts as none (RFC 5861, 4).
    let failing = Fault::Status(500, Vec::new());
    cluster.put(
        "/default",
        object("max-age=0").fault(failing, Times::Always),
    );
    let answer = get(&cluster, "/media/default").expect(200);
    assert!(status_of(&answer).contains("stale-if-error"));
}

#[test]
fn stale_while_revalidate_answers_at_once() {
    let cluster = Cluster::start();
    let slow = Duration::from_secs(2);
    let object = Object::generated(41, SIZE)
        .header("Cache-Control", "max-age=0, stale-while-revalidate=600");
    let target = cluster.put("/swr", object.clone());
    get(&cluster, &target).expect(200);
    cluster.wait_recorded("/swr", &[(0, SIZE)]);
    cluster.put("/swr", object.latency(slow));
    let began = std::time::Instant::now();
    let answer = get(&cluster, &target).expect(200);
    let said = status_of(&answer);
    assert!(
        said.contains("hit; detail=\"stale-while-revalidate\""),
        "{said}"
    );
    assert!(began.elapsed() < slow, "{:?}", began.elapsed());
    // The origin was asked meanwhile, once, and conditionally.
    eventually("the origin was asked", Duration::from_secs(10), || {
        let hits = cluster.origin.hits("/swr");
        (hits.len() == 2 && is_conditional(&hits[1]) && hits[1].status == 304).then_some(())
    });
}

#[test]
fn each_variant_is_an_object_of_its_own() {
    let cluster = Cluster::start();
    cluster.add_source_with("varied", &["--forward-header=X-Quality"]);
    // Longer than the first request brings: later chunks must be requested with the same header.
    let size = 16 * CHUNK + 7;
    let object = Object::generated(51, size)
        .varying_on("X-Quality")
        .header("Cache-Control", "max-age=600");
    cluster.origin.put("/v.mp4", object.clone());
    let address = cluster.edge().http;
    let ask = |quality: &str| {
        Call::get("/varied/v.mp4")
            .header("X-Quality", quality)
            .send(address)
            .expect(200)
    };
    // At the same time: no request may get the result of another one's question.
    let answers: Vec<(&str, Response)> = std::thread::scope(|scope| {
        let asked: Vec<_> = ["high", "low", "a&b=c%"]
            .into_iter()
            .map(|quality| (quality, scope.spawn(move || ask(quality))))
            .collect();
        asked
            .into_iter()
            .map(|(quality, thread)| (quality, thread.join().unwrap()))
            .collect()
    });
    for (quality, answer) in answers {
        let wanted = content::sha256(variant_seed(51, quality), size);
        assert_eq!(content::sha256_of(&answer.body), wanted, "{quality}");
        assert_eq!(answer.header("vary"), Some("x-quality"), "{quality}");
        let again = ask(quality);
        assert_eq!(content::sha256_of(&again.body), wanted, "{quality}");
    }
    // A source that does not get the header has one variant, whatever the client sends.
    cluster.origin.put("/v1.mp4", object.clone());
    for quality in ["high", "low"] {
        let call = Call::get("/media/v1.mp4").header("X-Quality", quality);
        let answer = call.send(address).expect(200);
        let wanted = content::sha256(variant_seed(51, ""), size);
        assert_eq!(content::sha256_of(&answer.body), wanted);
    }
    // Answers that vary on everything are not stored.
    cluster
        .origin
        .put("/v2.mp4", Object::generated(52, SIZE).header("Vary", "*"));
    for _ in 0..2 {
        let answer = get(&cluster, "/media/v2.mp4").expect(200);
        assert_eq!(
            status_of(&answer),
            "edge-a; fwd=bypass; fwd-status=200; detail=\"vary-any\""
        );
    }
}

#[test]
fn credentials_go_past_the_cache() {
    let cluster = Cluster::start();
    cluster.add_source_with("closed", &["--forward-credentials"]);
    let address = cluster.edge().http;
    cluster.origin.put("/mine", Object::generated(61, SIZE));
    let call = || Call::get("/closed/mine").header("Authorization", "Bearer me");
    for _ in 0..2 {
        let answer = call().send(address).expect(200);
        let said = status_of(&answer);
        assert!(
            said.contains("fwd=bypass") && said.contains("credentials"),
            "{said}"
        );
    }
    let hits = cluster.origin.hits("/mine");
    assert!(
        hits.iter()
            .all(|hit| hit.header("authorization") == Some("Bearer me"))
    );
    assert_eq!(hits.len(), 2);
    assert!(cluster.recorded("/mine", "edge-a").is_empty());
}

#[test]
fn a_source_says_what_its_origin_does_not() {
    let mut cluster = Cluster::start();
    cluster.add_source_with("long", &["--override-ttl=1h"]);
    cluster.add_source_with("short", &["--default-ttl=0s", "--negative-ttl=0s"]);
    cluster.add_source_with("strict", &["--override-ttl=0s", "--stale-if-error=0s"]);
    let address = cluster.edge().http;
    let ask = |target: &str| Call::get(target).send(address);
    let hits = |cluster: &Cluster, path: &str| cluster.origin.hits(path).len();

    cluster.origin.put(
        "/a",
        Object::generated(71, SIZE).header("Cache-Control", "max-age=0, must-revalidate"),
    );
    cluster.origin.put("/b", Object::generated(72, SIZE));
    cluster.origin.put(
        "/c",
        Object::generated(73, SIZE).header("Cache-Control", "max-age=600"),
    );
    cluster.origin.put(
        "/d",
        Object::generated(74, SIZE).header("Cache-Control", "no-store"),
    );
    for target in ["/long/a", "/short/b", "/strict/c", "/long/d"] {
        for _ in 0..2 {
            ask(target).expect(200);
        }
    }
    assert_eq!(hits(&cluster, "/a"), 1, "overridden for longer");
    assert_eq!(hits(&cluster, "/b"), 2, "no lifetime given: the source's");
    assert_eq!(hits(&cluster, "/c"), 2, "overridden for shorter");
    // The request that found it out, and one for each further request.
    assert_eq!(hits(&cluster, "/d"), 3, "no-store is never overridden");
    assert!(cluster.recorded("/d", "edge-a").is_empty());
    for _ in 0..2 {
        assert_eq!(ask("/short/nothing").status, 404);
    }
    assert_eq!(hits(&cluster, "/nothing"), 2);

    cluster.origin.stop();
    assert_eq!(ask("/short/b").status, 200, "stale for a day by default");
    assert!(ask("/strict/c").status >= 500);
}

#[test]
fn no_object_is_remembered_for_seconds() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    let gone = Fault::Status(410, Vec::new());
    cluster.put("/gone", Object::generated(81, 1).fault(gone, Times::Always));
    for (path, status) in [("/missing", 404), ("/gone", 410)] {
        let target = format!("/media{path}");
        let first = Call::get(&target).send(address);
        let again = Call::get(&target).send(address);
        assert_eq!((first.status, again.status), (status, status));
        assert_eq!(
            status_of(&first),
            format!("edge-a; fwd=miss; fwd-status={status}")
        );
        assert_eq!(status_of(&again), "edge-a; hit; detail=\"negative\"");
        assert_eq!(cluster.origin.hits(path).len(), 1);
    }
    let began = std::time::Instant::now();
    cluster.put("/missing", Object::generated(82, SIZE));
    until(&cluster, "/media/missing", "stored").expect(200);
    assert!(
        began.elapsed() < Duration::from_secs(7),
        "{:?}",
        began.elapsed()
    );
    // A temporary refusal is not remembered at all.
    let forbidden = Fault::Status(403, Vec::new());
    cluster.put(
        "/forbidden",
        Object::generated(83, SIZE).fault(forbidden, Times::Always),
    );
    assert_eq!(Call::get("/media/forbidden").send(address).status, 403);
    // It may have been asked twice: some origins refuse a range with 403.
    cluster.put("/forbidden", Object::generated(83, SIZE));
    Call::get("/media/forbidden").send(address).expect(200);
}

#[test]
fn only_if_cached_asks_nobody() {
    let cluster = Cluster::start();
    let target = cluster.put("/o", Object::generated(91, SIZE));
    let ask = || {
        Call::get(&target)
            .header("Cache-Control", "only-if-cached")
            .send(cluster.edge().http)
    };
    let refused = ask();
    assert_eq!(refused.status, 504);
    assert_eq!(status_of(&refused), "edge-a; detail=\"only-if-cached\"");
    assert!(cluster.origin.hits("/o").is_empty());
    get(&cluster, &target).expect(200);
    cluster.wait_recorded("/o", &[(0, SIZE)]);
    assert_eq!(status_of(&ask().expect(200)), "edge-a; hit");
}

/// In the format of origins (RFC 9110, 5.6.7).
fn http_date(at: std::time::SystemTime) -> String {
    let seconds = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let output = std::process::Command::new("date")
        .args([
            "-u",
            "-d",
            &format!("@{seconds}"),
            "+%a, %d %b %Y %H:%M:%S GMT",
        ])
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
