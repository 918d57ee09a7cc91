//! An edge against nginx serving the same file: the same questions, cold and warm, get the same answers.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::process::Process;
use chunkcache_tests::{Cluster, MIB, Object, content, eventually, ports};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const SIZE: u64 = 7 * MIB + 4321;
const QUESTIONS: usize = 300;

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

fn range(random: &mut StdRng) -> String {
    let near_end = random.random_bool(0.2);
    let first = if near_end {
        SIZE - random.random_range(1..100)
    } else {
        random.random_range(0..SIZE + 100)
    };
    let length = 1 << random.random_range(0..22);
    match random.random_range(0..6) {
        0 => format!("bytes={first}-"),
        1 => format!("bytes=-{}", random.random_range(1..SIZE * 2)),
        _ => format!("bytes={first}-{}", first + random.random_range(0..length)),
    }
}

fn question(random: &mut StdRng, etag: &str, date: &str) -> Vec<(&'static str, String)> {
    let mut headers = Vec::new();
    if random.random_bool(0.85) {
        headers.push(("Range", range(random)));
    }
    let old = "Sat, 01 Jan 2000 00:00:00 GMT".to_owned();
    match random.random_range(0..16) {
        0 => headers.push(("If-Range", etag.to_owned())),
        1 => headers.push(("If-Range", "\"other\"".to_owned())),
        2 => headers.push(("If-Range", date.to_owned())),
        3 => headers.push(("If-None-Match", etag.to_owned())),
        4 => headers.push(("If-None-Match", "\"other\", \"more\"".to_owned())),
        5 => headers.push(("If-Match", etag.to_owned())),
        6 => headers.push(("If-Match", "\"other\"".to_owned())),
        7 => headers.push(("If-Modified-Since", date.to_owned())),
        8 => headers.push(("If-Unmodified-Since", old)),
        _ => {}
    }
    headers
}

fn ask(address: SocketAddr, target: &str, method: &str, headers: &[(&str, String)]) -> Response {
    let call = headers
        .iter()
        .fold(Call::new(method, target), |call, (name, value)| {
            call.header(name, value)
        });
    call.send(address)
}

#[test]
fn answers_equal_those_of_nginx() {
    let Some(program) = nginx() else {
        eprintln!("skipped: nginx is not installed");
        return;
    };
    let cluster = Cluster::start();
    let root = cluster.directory.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("film.mp4"), content::bytes(131, 0, SIZE)).unwrap();
    // Old enough for its date to be a strong validator (RFC 9110, 8.8.2.2).
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    File::options()
        .write(true)
        .open(root.join("film.mp4"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    let (_process, reference) = start_nginx(program, cluster.directory.path(), &root);
    let facts = Call::head("/film.mp4").send(reference);
    let (etag, date) = (
        facts.header("etag").unwrap().to_owned(),
        facts.header("last-modified").unwrap().to_owned(),
    );
    let object = || {
        let file = File::open(root.join("film.mp4")).unwrap();
        Object::file(file)
            .unwrap()
            .etag(Some(&etag))
            .last_modified(Some(&date))
    };

    let seed = 2024;
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0..QUESTIONS {
        let mut headers = question(&mut random, &etag, &date);
        let method = if random.random_bool(0.15) {
            "HEAD"
        } else {
            "GET"
        };
        if method == "HEAD" {
            // Range is defined for GET alone (RFC 9110, 14.2); nginx answers 206 to HEAD all the same.
            headers.retain(|(name, _)| !name.contains("Range"));
        }
        // A third of the questions are the first about their object; the others are about one that fills up.
        let path = if number % 3 == 0 {
            format!("/cold-{number}.mp4")
        } else {
            "/warm.mp4".to_owned()
        };
        cluster.origin.put(&path, object());
        let wanted = ask(reference, "/film.mp4", method, &headers);
        let got = ask(
            cluster.edge().http,
            &format!("/media{path}"),
            method,
            &headers,
        );
        let told = format!("seed {seed}, question {number}: {method} {path} {headers:?}");
        assert_eq!(got.status, wanted.status, "{told}");
        if wanted.status < 400 {
            assert!(
                got.complete && got.body == wanted.body,
                "another body: {told}"
            );
            for name in ["content-range", "content-length", "etag", "last-modified"] {
                assert_eq!(got.header(name), wanted.header(name), "{name}: {told}");
            }
        } else if wanted.status == 416 {
            assert_eq!(
                got.header("content-range"),
                wanted.header("content-range"),
                "{told}"
            );
        }
    }
}
