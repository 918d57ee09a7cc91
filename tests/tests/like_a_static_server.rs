//! An edge against nginx over the same file: the same questions, cold, half warm and warm, get the same answers. Where the
//! two differ on purpose is in [`DIFFERENCES`], and nowhere else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::process::Process;
use chunkcache_tests::{Cluster, ClusterOptions, KIB, Object, content, eventually, ports};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Several chunks of the size below and a part of one.
const SIZE: u64 = 600 * KIB + 321;
const CHUNK_SIZE: &str = "--chunk-size=128KiB";
const QUESTIONS: usize = 3000;
const OLD: &str = "Sat, 01 Jan 2000 00:00:00 GMT";

/// What is asked, its status at nginx and at an edge, and why an edge answers otherwise.
const DIFFERENCES: &[(&str, u16, u16, &str)] = &[];

type Headers = Vec<(&'static str, String)>;

/// A question, and its name where it is one of the odd ones.
struct Question {
    name: String,
    method: &'static str,
    headers: Headers,
}

fn nginx() -> Option<&'static str> {
    ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"]
        .into_iter()
        .find(|path| Path::new(path).exists())
}

fn start_nginx(program: &str, directory: &Path, root: &Path) -> (Process, SocketAddr) {
    let address = ports::reserve();
    let dir = directory.display();
    let config = directory.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx-error.log;
         events {{ worker_connections 64; }}
         http {{ access_log off; types {{ video/mp4 mp4; }} client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2;
           fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
           server {{ listen {address}; root {}; }} }}",
        root.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&config).arg("-p").arg(directory);
    let process = Process::spawn("nginx", &command, &directory.join("nginx.log"));
    eventually("nginx listens", Duration::from_secs(10), || {
        Call::head("/film.mp4").open(address).ok()
    });
    (process, address)
}

/// `Range` values that a parser may stumble over.
fn odd_ranges() -> Vec<String> {
    let size = SIZE;
    let mut all: Vec<String> = [
        "bytes=0-0",
        "bytes=-0",
        "bytes=-1",
        "bytes=5-1",
        "bytes=",
        "bytes=-",
        "bytes=--5",
        "bytes=a-b",
        "bytes=1-b",
        "bytes=+1-5",
        "bytes=0x1-5",
        "bytes=1.5-9",
        "bytes",
        "bytes 0-9",
        "bytes=0-9;",
        "bytes=0-9 5",
        "bytes= 0-9",
        "bytes=0 -9",
        "bytes=0- 9",
        "bytes =0-9",
        "Bytes=0-9",
        "BYTES=0-9",
        "items=0-9",
        "none",
        "",
        "bytes=0-9,",
        "bytes=,0-9",
        "bytes=0-9,,20-29",
        "bytes=0-9 , 20-29",
        "bytes=0-9,20-29",
        "bytes=20-29,0-9",
        "bytes=0-0,-1",
        "bytes=0-9,10-19",
        "bytes=0-99,50-149",
        "bytes=0-9,5-1",
        "bytes=0-9,x",
        "bytes=0-18446744073709551614",
        "bytes=0-18446744073709551615",
        "bytes=0-99999999999999999999999",
        "bytes=18446744073709551615-",
        "bytes=99999999999999999999999-",
        "bytes=-18446744073709551615",
        "bytes=-99999999999999999999999",
        "bytes=0000000000000000000000000-9",
    ]
    .map(str::to_owned)
    .into();
    all.push(format!("bytes={size}-"));
    all.push(format!("bytes={}-", size - 1));
    all.push(format!("bytes={size}-{size}"));
    all.push(format!("bytes=-{size}"));
    all.push(format!("bytes=-{}", size + 1));
    all.push(format!("bytes=0-9,{size}-"));
    all.push(format!("bytes={size}-,{}-", size + 5));
    all.push(format!("bytes=0-,0-{}", size / 2));
    all.push(format!("bytes={}", ["0-9"; 17].join(",")));
    all.push(format!(
        "bytes={}",
        (0..17)
            .map(|n| format!("{}-{}", n * 100, n * 100 + 9))
            .collect::<Vec<_>>()
            .join(",")
    ));
    all
}

fn odd_conditions(etag: &str, date: &str) -> Vec<Headers> {
    let weak = format!("W/{etag}");
    let bare = etag.trim_matches('"').to_owned();
    let one = |name, value: &str| vec![(name, value.to_owned())];
    let mut all = Vec::new();
    for value in [
        etag,
        &weak,
        &bare,
        "*",
        "\"other\"",
        &format!("\"other\", {weak}, \"more\""),
        "",
        "\"",
        "\"a, b\"",
    ] {
        all.push(one("If-None-Match", value));
        all.push(one("If-Match", value));
    }
    for value in [
        date,
        OLD,
        "Fri, 31 Dec 2100 00:00:00 GMT",
        "yesterday",
        "",
        "Sunday, 13-Sep-20 12:26:40 GMT",
        "Sun Sep 13 12:26:40 2020",
    ] {
        all.push(one("If-Modified-Since", value));
        all.push(one("If-Unmodified-Since", value));
    }
    for value in [
        etag,
        &weak,
        "\"other\"",
        date,
        OLD,
        "Fri, 31 Dec 2100 00:00:00 GMT",
        "nonsense",
        "",
    ] {
        all.push(vec![
            ("Range", "bytes=5-9".to_owned()),
            ("If-Range", value.to_owned()),
        ]);
        all.push(one("If-Range", value));
    }
    for (first, second) in [
        (("If-None-Match", "\"other\""), ("If-Modified-Since", date)),
        (("If-None-Match", etag), ("If-Modified-Since", OLD)),
        (("If-Match", etag), ("If-Unmodified-Since", OLD)),
        (("If-Match", etag), ("If-None-Match", etag)),
        (("If-Match", "\"other\""), ("If-None-Match", etag)),
        (("If-Unmodified-Since", OLD), ("If-None-Match", etag)),
        (("If-None-Match", etag), ("Range", "bytes=0-9")),
        (("If-Match", "\"other\""), ("Range", "bytes=0-9")),
        (("If-Match", "\"other\""), ("Range", "bytes=99999999-")),
        (("Range", "bytes=0-9"), ("Range", "bytes=20-29")),
    ] {
        all.push(vec![
            (first.0, first.1.to_owned()),
            (second.0, second.1.to_owned()),
        ]);
    }
    all
}

fn random_range(random: &mut StdRng) -> String {
    let near_end = random.random_bool(0.2);
    let first = if near_end {
        SIZE - random.random_range(1..100)
    } else {
        random.random_range(0..SIZE + 100)
    };
    let length = 1 << random.random_range(0..19);
    match random.random_range(0..6) {
        0 => format!("bytes={first}-"),
        1 => format!("bytes=-{}", random.random_range(1..SIZE * 2)),
        _ => format!("bytes={first}-{}", first + random.random_range(0..length)),
    }
}

fn questions(random: &mut StdRng, etag: &str, date: &str) -> Vec<Question> {
    let mut all = Vec::new();
    for method in ["GET", "HEAD"] {
        for range in odd_ranges() {
            let name = format!(
                "{method} Range: {}",
                range.chars().take(60).collect::<String>()
            );
            all.push(Question {
                name,
                method,
                headers: vec![("Range", range)],
            });
        }
        for headers in odd_conditions(etag, date) {
            let told: Vec<String> = headers
                .iter()
                .map(|(name, value)| {
                    format!(
                        "{name}: {}",
                        value
                            .replace(etag.trim_matches('"'), "ETAG")
                            .replace(date, "DATE")
                    )
                })
                .collect();
            all.push(Question {
                name: format!("{method} {}", told.join("; ")),
                method,
                headers,
            });
        }
    }
    // Each odd question is asked three times, so that it meets a cold, a half warm and a warm object.
    let odd: Vec<Question> = (0..3)
        .flat_map(|_| &all)
        .map(|q| Question {
            name: q.name.clone(),
            method: q.method,
            headers: q.headers.clone(),
        })
        .collect();
    let mut all = odd;
    let conditions = odd_conditions(etag, date);
    while all.len() < QUESTIONS {
        let mut headers = Vec::new();
        if random.random_bool(0.9) {
            headers.push(("Range", random_range(random)));
        }
        if random.random_bool(0.3) {
            let condition = &conditions[random.random_range(0..conditions.len())];
            // Only those both sides read alike; the others are asked above.
            if condition.len() == 1
                && [etag, date, OLD, "\"other\""].contains(&condition[0].1.as_str())
            {
                headers.extend(condition.iter().cloned());
            }
        }
        let method = if random.random_bool(0.1) {
            "HEAD"
        } else {
            "GET"
        };
        all.push(Question {
            name: String::new(),
            method,
            headers,
        });
    }
    all
}

fn ask(address: SocketAddr, target: &str, question: &Question) -> Response {
    let call = question
        .headers
        .iter()
        .fold(Call::new(question.method, target), |call, (name, value)| {
            call.header(name, value)
        });
    call.send(address)
}

/// The parts of a multipart body: the boundary is each server's own.
fn parts(answer: &Response) -> Vec<(String, Vec<u8>)> {
    let content_type = answer.header("content-type").unwrap_or_default();
    let boundary = content_type.split("boundary=").nth(1).unwrap_or_default();
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    let mut found = Vec::new();
    let starts: Vec<usize> = answer
        .body
        .windows(delimiter.len())
        .enumerate()
        .filter(|(_, window)| *window == delimiter)
        .map(|(at, _)| at)
        .collect();
    for pair in starts.windows(2) {
        let part = &answer.body[pair[0] + delimiter.len()..pair[1]];
        let head_end = part
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8_lossy(&part[..head_end]).to_ascii_lowercase();
        let range = head
            .lines()
            .find(|line| line.starts_with("content-range"))
            .unwrap();
        found.push((range.to_owned(), part[head_end + 4..].to_vec()));
    }
    found
}

/// What differs, if anything.
fn compare(wanted: &Response, got: &Response) -> Option<String> {
    if got.status != wanted.status {
        return Some(format!("status {} and not {}", got.status, wanted.status));
    }
    let mut names = vec!["content-range"];
    let multipart = wanted
        .header("content-type")
        .is_some_and(|it| it.starts_with("multipart/byteranges"));
    if wanted.status < 400 {
        names.extend(["etag", "last-modified"]);
    }
    if matches!(wanted.status, 200 | 206) {
        names.push("accept-ranges");
        if multipart {
            if parts(wanted) != parts(got) {
                return Some("other parts".to_owned());
            }
        } else {
            names.extend(["content-length", "content-type"]);
            if !got.complete || got.body != wanted.body {
                return Some(format!("another body of {} bytes", got.body.len()));
            }
        }
    }
    names.into_iter().find_map(|name| {
        let (ours, theirs) = (got.header(name), wanted.header(name));
        // nginx does not tell Accept-Ranges with 206.
        let fine = ours == theirs || (name == "accept-ranges" && theirs.is_none());
        (!fine).then(|| format!("{name}: {ours:?} and not {theirs:?}"))
    })
}

#[test]
fn answers_equal_those_of_nginx() {
    let Some(program) = nginx() else {
        eprintln!("skipped: nginx is not installed");
        return;
    };
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false"],
        coordinator_arguments: vec![CHUNK_SIZE],
    });
    let root = cluster.directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let path = root.join("film.mp4");
    fs::write(&path, content::bytes(131, 0, SIZE)).unwrap();
    // Old enough for its date to be a strong validator (RFC 9110, 8.8.2.2).
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let (_process, reference) = start_nginx(program, cluster.directory.path(), &root);
    let facts = Call::head("/film.mp4").send(reference);
    let etag = facts.header("etag").unwrap().to_owned();
    let date = facts.header("last-modified").unwrap().to_owned();
    let object = || {
        Object::file(File::open(&path).unwrap())
            .unwrap()
            .etag(Some(&etag))
            .last_modified(Some(&date))
            .header("Cache-Control", "max-age=3600")
    };
    let edge = cluster.edge().http;
    let warm = cluster.put("/warm.mp4", object());
    Call::get(&warm).send(edge).expect(200);

    let seed = 2024;
    let mut random = StdRng::seed_from_u64(seed);
    let mut unexplained = BTreeSet::new();
    let mut met = BTreeSet::new();
    let all = questions(&mut random, &etag, &date);
    let third = (all.len() / 3).max(1);
    for (number, question) in all.iter().enumerate() {
        // The odd ones of one kind are a fixed distance apart; the state changes with the round they are in.
        let target = match (number / (third / 8).max(1) + number) % 3 {
            0 => {
                let target = cluster.put(&format!("/cold-{number}.mp4"), object());
                if number % 2 == 0 {
                    let middle = SIZE / 2 + number as u64;
                    Call::get(&target)
                        .range(middle, middle + 10)
                        .send(edge)
                        .expect(206);
                }
                target
            }
            _ => warm.clone(),
        };
        let wanted = ask(reference, "/film.mp4", question);
        let got = ask(edge, &target, question);
        let listed = DIFFERENCES.iter().find(|(name, ..)| *name == question.name);
        if let Some((name, theirs, ours, _)) = listed {
            assert_eq!((wanted.status, got.status), (*theirs, *ours), "{name}");
            met.insert(*name);
        } else if let Some(what) = compare(&wanted, &got) {
            let told = if question.name.is_empty() {
                format!("{number}: {} {:?}", question.method, question.headers)
            } else {
                question.name.clone()
            };
            unexplained.insert(format!(
                "{told}: nginx {}, edge {}: {what}",
                wanted.status, got.status
            ));
        }
    }
    let list: Vec<String> = unexplained.into_iter().collect();
    assert!(
        list.is_empty(),
        "seed {seed}: {} differences:\n{}",
        list.len(),
        list.join("\n")
    );
    let never: Vec<_> = DIFFERENCES
        .iter()
        .filter(|(name, ..)| !met.contains(name))
        .collect();
    assert!(never.is_empty(), "never met: {never:?}");
}
