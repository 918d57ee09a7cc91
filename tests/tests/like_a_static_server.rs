//! An edge against nginx with the same file: the same requests, cold, half warm and warm, get the
//! same answers. Intended differences are in [`DIFFERENCES`], and nowhere else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use chunkcache_tests::http::{Call, Connection, Response};
use chunkcache_tests::process::Process;
use chunkcache_tests::{Cluster, ClusterOptions, MIB, Object, content, eventually, ports};
use rand::{SeedableRng as _, rngs::StdRng};

use questions::{Question, questions};

#[path = "like_a_static_server/questions.rs"]
mod questions;

/// Two chunks and a part of one.
pub const SIZE: u64 = 4 * MIB + 321;
/// Concurrent clients, each with a connection to either server.
const ASKERS: usize = 4;

const MALFORMED: &str = "RFC 9110, 14.2: a Range that does not parse is ignored";
const EMPTY_ELEMENT: &str = "RFC 9110, 5.6.1.2: empty elements of a list are skipped";
const HUGE: &str =
    "RFC 9110, 14.1.2: what lies beyond the end is cut off, however large the number";
const COALESCED: &str =
    "RFC 9110, 15.3.7.2: overlapping and adjacent ranges may be coalesced; that bounds the answer";
const TOO_MANY: &str = "RFC 9110, 14.2: more than 16 ranges are taken as an attack, and ignored";
const TWO_LINES: &str = "RFC 9110, 5.3: Range is no list; two lines of it mean nothing";
const LATER_DATE: &str =
    "RFC 9110, 13.1.3: not modified since a later date either; nginx wants the very date";
const PRECEDENCE: &str = "RFC 9110, 13.2.2: dates are not looked at where entity tags are given";
const NO_DATE: &str = "RFC 9110, 13.1.4: a field that is no date is ignored";

/// A request by GET and by HEAD, its status at nginx and at an edge, and why an edge answers
/// otherwise.
#[rustfmt::skip]
const DIFFERENCES: &[(&str, u16, u16, &str)] = &[
    ("Range: bytes=+1-5", 416, 200, MALFORMED),
    ("Range: bytes=--5", 416, 200, MALFORMED),
    ("Range: bytes=-", 416, 200, MALFORMED),
    ("Range: bytes=0-9 5", 416, 200, MALFORMED),
    ("Range: bytes=0-9,x", 416, 200, MALFORMED),
    ("Range: bytes=0-9;", 416, 200, MALFORMED),
    ("Range: bytes=0x1-5", 416, 200, MALFORMED),
    ("Range: bytes=1-b", 416, 200, MALFORMED),
    ("Range: bytes=1.5-9", 416, 200, MALFORMED),
    ("Range: bytes=5-1", 416, 200, MALFORMED),
    ("Range: bytes=a-b", 416, 200, MALFORMED),
    ("Range: bytes=0 -9", 206, 200, MALFORMED),
    ("Range: bytes=0- 9", 206, 200, MALFORMED),
    ("Range: bytes=0-9,5-1", 206, 200, MALFORMED),
    ("Range: bytes=,0-9", 416, 206, EMPTY_ELEMENT),
    ("Range: bytes=0-9,", 416, 206, EMPTY_ELEMENT),
    ("Range: bytes=0-9,,20-29", 416, 206, EMPTY_ELEMENT),
    ("Range: bytes=-18446744073709551615", 416, 206, HUGE),
    ("Range: bytes=-99999999999999999999999", 416, 206, HUGE),
    ("Range: bytes=0-18446744073709551614", 416, 206, HUGE),
    ("Range: bytes=0-18446744073709551615", 416, 206, HUGE),
    ("Range: bytes=0-99999999999999999999999", 416, 206, HUGE),
    ("Range: bytes=0-,0-2097312", 200, 206, COALESCED),
    ("Range: bytes=0-9,0-9,0-9,0-9,0-9,0-9,0-9,0-9,0-9,0-9,0-9,0-9,0-9,0-", 206, 206, COALESCED),
    ("Range: bytes=0-9,10-19", 206, 206, COALESCED),
    ("Range: bytes=0-99,50-149", 206, 206, COALESCED),
    ("Range: bytes=0-9,100-109,200-209,300-309,400-409,500-509,600-609,70", 206, 200, TOO_MANY),
    ("Range: bytes=0-9; Range: bytes=20-29", 206, 200, TWO_LINES),
    ("If-Modified-Since: Fri, 31 Dec 2100 00:00:00 GMT", 200, 304, LATER_DATE),
    ("If-None-Match: \"ETAG\"; If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT", 200, 304,
        PRECEDENCE),
    ("If-Match: \"ETAG\"; If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT", 412, 200,
        PRECEDENCE),
    ("If-Unmodified-Since: yesterday", 412, 200, NO_DATE),
    ("If-Unmodified-Since: ", 412, 200, NO_DATE),
];

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
         http {{ access_log off; types {{ video/mp4 mp4; }}
           client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2;
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

fn ask(connection: &mut Connection, target: &str, question: &Question) -> Response {
    let call = question
        .headers
        .iter()
        .fold(Call::new(question.method, target), |call, (name, value)| {
            call.header(name, value)
        });
    connection.send(&call)
}

/// The parts of a multipart body: the boundary is each server's own.
fn parts(answer: &Response) -> Vec<(String, Vec<u8>)> {
    let content_type = answer.header("content-type").unwrap_or_default();
    let boundary = content_type.split("boundary=").nth(1).unwrap_or_default();
    let delimiter = format!("--{boundary}\r\n").into_bytes();
    let mut found = Vec::new();
    if answer.body.is_empty() {
        // Answers to a HEAD have none.
        return found;
    }
    // The line break before the first delimiter may be left out (RFC 2046, 5.1.1).
    let mut rest = answer.body.strip_prefix(b"\r\n").unwrap_or(&answer.body);
    while let Some(part) = rest.strip_prefix(&delimiter[..]) {
        let head_end = part
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8_lossy(&part[..head_end]).to_ascii_lowercase();
        let range = head
            .lines()
            .find_map(|line| line.strip_prefix("content-range: "))
            .unwrap();
        let (start, end) = bounds(range).unwrap();
        let (bytes, after) = part[head_end + 4..].split_at((end - start) as usize);
        found.push((range.to_owned(), bytes.to_vec()));
        rest = after.strip_prefix(b"\r\n").unwrap();
    }
    assert_eq!(rest, format!("--{boundary}--\r\n").as_bytes());
    found
}

/// The first byte of a `Content-Range`, and the one after its last.
fn bounds(content_range: &str) -> Option<(u64, u64)> {
    let range = content_range.strip_prefix("bytes ")?.split('/').next()?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse::<u64>().ok()? + 1))
}

/// Whether the bytes are those that the head announces, whatever nginx would send.
fn is_true(got: &Response, whole: &[u8]) -> bool {
    let range = got.header("content-range").and_then(bounds);
    let (start, end) = match (got.status, range) {
        (206, Some(range)) => range,
        (200, None) => (0, SIZE),
        _ => return true,
    };
    got.body.is_empty() || (got.complete && got.body == whole[start as usize..end as usize])
}

/// The difference, if there is one.
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
        // nginx sends no Accept-Ranges with 206.
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
        coordinator_arguments: vec![],
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
    let whole = content::bytes(131, 0, SIZE);

    let seed = 2024;
    let mut random = StdRng::seed_from_u64(seed);
    let all = questions(&mut random, &etag, &date);
    // The odd ones are sent in three rounds: for a cold object, for a half warm one, for a warm
    // one.
    let kinds = all
        .iter()
        .filter(|question| !question.name.is_empty())
        .count()
        / 3;
    let next = AtomicUsize::new(0);
    let (unexplained, met) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
    let asker = || {
        let (mut to_nginx, mut to_edge) = (Connection::to(reference), Connection::to(edge));
        while let Some((number, question)) = {
            let number = next.fetch_add(1, Ordering::Relaxed);
            all.get(number).map(|question| (number, question))
        } {
            let turn = (number % kinds + number / kinds) % 3;
            let target = match turn {
                // Fewer of the random ones: each costs a fetch.
                0 | 1 if !question.name.is_empty() || number % 8 == 0 => {
                    let target = cluster.put(&format!("/cold-{number}.mp4"), object());
                    if turn == 1 {
                        let middle = SIZE / 2 + number as u64;
                        let call = Call::get(&target).range(middle, middle + 10);
                        to_edge.send(&call).expect(206);
                    }
                    target
                }
                _ => warm.clone(),
            };
            let wanted = ask(&mut to_nginx, "/film.mp4", question);
            let got = ask(&mut to_edge, &target, question);
            let listed = DIFFERENCES.iter().find(|(name, ..)| *name == question.name);
            let asked = format!("{} {:?}", question.method, question.headers);
            assert!(is_true(&got, &whole), "other bytes: {asked}");
            if let Some((name, theirs, ours, _)) = listed {
                assert_eq!((wanted.status, got.status), (*theirs, *ours), "{name}");
                met.lock().unwrap().insert(*name);
            } else if let Some(what) = compare(&wanted, &got) {
                let told = if question.name.is_empty() {
                    format!("{number}: {asked}")
                } else {
                    format!("{} {}", question.method, question.name)
                };
                let statuses = (wanted.status, got.status);
                let line = format!("{told}: (nginx, edge) {statuses:?}: {what}");
                unexplained.lock().unwrap().insert(line);
            }
        }
    };
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..ASKERS).map(|_| scope.spawn(asker)).collect();
        for asker in askers {
            asker.join().unwrap();
        }
    });
    let (unexplained, met) = (unexplained.into_inner().unwrap(), met.into_inner().unwrap());
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
