//! A private bucket on a third-party S3 server.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use chunkcache_tests::bucket_server::{BUCKET, BucketServer};
use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, Fault, MIB, Object};
use chunkcache_tests::{content, eventually};

const FILM: u64 = 2 * CHUNK + MIB;
/// Keys, and how a client may write them.
const KEYS: [(&str, &[&str]); 8] = [
    ("plain.mp4", &["plain.mp4"]),
    ("a b.mp4", &["a%20b.mp4"]),
    ("a+b.mp4", &["a+b.mp4", "a%2Bb.mp4", "a%2bb.mp4"]),
    ("100%.mp4", &["100%25.mp4"]),
    ("100%25.mp4", &["100%2525.mp4"]),
    (
        "größe-日本.mp4",
        &["gr%C3%B6%C3%9Fe-%E6%97%A5%E6%9C%AC.mp4"],
    ),
    ("a//b///c.mp4", &["a//b///c.mp4"]),
    (
        "(it's) [one]=~a!&,;:@$*.mp4",
        &["(it's)%20%5Bone%5D=~a!&,;:@$*.mp4"],
    ),
];

/// Writes a file of credentials; returns its path.
fn key_file(cluster: &Cluster, name: &str, id: &str, secret: &str) -> String {
    let file = cluster.directory.path().join(format!("{name}.key"));
    std::fs::write(&file, format!("{id}\n{secret}\n")).unwrap();
    path(&file).to_owned()
}

/// Exit status and standard error.
fn try_add(
    cluster: &Cluster,
    name: &str,
    (base, server): (&str, SocketAddr),
    options: &[&str],
) -> (Option<i32>, String) {
    let endpoint = format!("http://{server}");
    let add = ["source", "add", name, base, "--path-style"];
    let add = [&add[..], &["--s3-endpoint", &endpoint], options].concat();
    let output = cluster.coordinator.cli(&add);
    let error = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), error.into_owned())
}

fn add_with(cluster: &Cluster, name: &str, server: &BucketServer, options: &[&str]) {
    let base = format!("s3://{BUCKET}/top");
    let added = try_add(cluster, name, (&base, server.address), options);
    // Not a word about the check.
    assert_eq!(added, (Some(0), String::new()));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_private_bucket_of_another_server_is_read_whatever_its_keys_are() {
    let cluster = Cluster::start();
    let keys: Vec<String> = KEYS.iter().map(|(key, _)| format!("top/{key}")).collect();
    let mut objects: Vec<(&str, Vec<u8>)> = Vec::new();
    for (seed, key) in keys.iter().enumerate() {
        objects.push((key, content::bytes(seed as u64, 0, 1_000)));
    }
    objects.push(("top/film.mp4", content::bytes(99, 0, FILM)));
    let Some(server) = BucketServer::start(cluster.directory.path(), &objects) else {
        return;
    };
    // It refuses unsigned requests.
    let plain = Call::get("/films/top/plain.mp4").send(server.address);
    assert_eq!(plain.status, 403);
    let (id, secret) = (&server.access_key_id, &server.secret_access_key);
    let file = key_file(&cluster, "films", id, secret);
    add_with(&cluster, "films", &server, &["--access-key-file", &file]);
    let address = cluster.edge().http;
    for (seed, (key, written)) in KEYS.iter().enumerate() {
        for name in *written {
            let got = Call::get(&format!("/films/{name}")).send(address);
            assert_eq!(got.status, 200, "{key} as {name}: {}", got.text());
            assert!(got.body == content::bytes(seed as u64, 0, 1_000), "{name}");
        }
    }
    Call::get("/films/absent.mp4").send(address).expect(404);
    // Ranges, then all of it, whose chunks come in any order.
    let seek = Call::get("/films/film.mp4").range(FILM - 1_000, FILM);
    let seek = seek.send(address).expect(206);
    assert!(seek.body == content::bytes(99, FILM - 1_000, FILM));
    let film = Call::get("/films/film.mp4").send(address).expect(200);
    assert!(film.body == content::bytes(99, 0, FILM));
    assert_eq!(film.header("content-type"), Some("video/mp4"));
    // A wrong secret is refused, and is not shown.
    let file = key_file(&cluster, "wrong", id, "not-the-secret");
    let options = ["--access-key-file", &file, "--no-check"];
    add_with(&cluster, "wrong", &server, &options);
    let refused = Call::get("/wrong/film.mp4").send(address);
    assert_eq!(refused.status, 403, "{}", refused.text());
    let logs = std::fs::read_dir(cluster.directory.path()).unwrap();
    for log in logs.flatten().map(|it| it.path()) {
        if log.extension().is_some_and(|it| it == "log") && !path(&log).ends_with("bucket.log") {
            let text = std::fs::read_to_string(&log).unwrap();
            let shown = [server.secret_access_key.as_str(), "not-the-secret"];
            assert!(!shown.iter().any(|secret| text.contains(secret)), "{log:?}");
        }
    }
}

#[test]
fn rotated_credentials_of_an_edge_are_read_again() {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        ..ClusterOptions::default()
    });
    let file = cluster.directory.path().join("credentials");
    cluster.edge_mut().environment.push((
        "AWS_SHARED_CREDENTIALS_FILE".to_owned(),
        path(&file).to_owned(),
    ));
    let object = [("top/a.mp4", content::bytes(1, 0, 1_000))];
    let Some(server) = BucketServer::start(cluster.directory.path(), &object) else {
        return;
    };
    let write = |secret: &str| {
        let id = &server.access_key_id;
        let text =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        std::fs::write(&file, text).unwrap();
    };
    write("the-old-one");
    cluster.start_prepared();
    add_with(&cluster, "films", &server, &["--no-check"]);
    let call = Call::get("/films/a.mp4");
    assert_eq!(call.send(cluster.edge().http).status, 403);
    write(&server.secret_access_key);
    let got = eventually("the new credentials", Duration::from_secs(20), || {
        let got = call.send(cluster.edge().http);
        (got.status == 200).then_some(got)
    });
    assert_eq!(got.body, content::bytes(1, 0, 1_000));
}

#[test]
fn a_bucket_is_asked_before_its_source_is_stored() {
    let cluster = Cluster::start();
    let object = [("top/a.mp4", content::bytes(1, 0, 1_000))];
    let Some(server) = BucketServer::start(cluster.directory.path(), &object) else {
        return;
    };
    let (id, secret) = (&server.access_key_id, &server.secret_access_key);
    let right = key_file(&cluster, "right", id, secret);
    let wrong = key_file(&cluster, "wrong", id, "not-the-secret");
    let unknown = key_file(&cluster, "unknown", "AKIAIOSFODNN7EXAMPLE", secret);
    let [denied_id, denied_secret] = &server.without_rights;
    let denied = key_file(&cluster, "denied", denied_id, denied_secret);
    let refused = |name: &str, base: &str, file: &str, words: &str| {
        let options = ["--access-key-file", file];
        let (status, said) = try_add(&cluster, name, (base, server.address), &options);
        assert_eq!(status, Some(1), "{name}: {said}");
        let named = format!("{base}: {words}");
        assert!(said.contains(&named), "{name}: {said}");
        assert!(said.contains("nothing was stored"), "{name}: {said}");
        assert!(!said.contains("not-the-secret"), "{name}: {said}");
    };
    refused("bad-a", "s3://films/top", &wrong, "SignatureDoesNotMatch: ");
    refused("bad-b", "s3://films/top", &unknown, "InvalidAccessKeyId: ");
    refused("bad-c", "s3://films/top", &denied, "AccessDenied: ");
    refused("bad-d", "s3://no-films", &right, "NoSuchBucket: ");
    // A bucket of another region answers so, perhaps without a word in the body.
    let region = ("x-amz-bucket-region".to_owned(), "eu-west-1".to_owned());
    let elsewhere = Object::generated(1, 1).fault(Fault::Status(301, vec![region]), Times::Always);
    cluster.put("/far/cache-edge-check", elsewhere);
    let at = ("s3://far", cluster.origin.address());
    let options = ["--access-key-file", &right];
    let (status, said) = try_add(&cluster, "bad-e", at, &options);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("its region is eu-west-1"), "{said}");
    let listed = || cluster.coordinator.json(&["source", "list"]).to_string();
    assert!(!listed().contains("bad-"), "{}", listed());
    // Nor is a source changed, unless it is not to be checked; what does not decide about its
    // requests can be changed at any time.
    add_with(&cluster, "films", &server, &["--access-key-file", &right]);
    let set = |options: &[&str]| {
        let set = [&["source", "set", "films"], options].concat();
        cluster.coordinator.cli(&set).status.code()
    };
    assert_eq!(set(&["--access-key-file", &wrong]), Some(1));
    let call = Call::get("/films/a.mp4");
    call.send(cluster.edge().http).expect(200);
    assert_eq!(set(&["--access-key-file", &wrong, "--no-check"]), Some(0));
    assert_eq!(set(&["--max-connections", "3"]), Some(0));
}

#[test]
fn a_bucket_that_no_edge_can_ask_is_stored_and_said_to_be_unchecked() {
    let cluster = Cluster::with_edges(0);
    let at = ("s3://films", cluster.origin.address());
    let (status, said) = try_add(&cluster, "films", at, &[]);
    assert_eq!(status, Some(0), "{said}");
    let reason = "stored, but the bucket is unchecked: no edge is in session";
    assert!(said.contains(reason), "{said}");
    let set = ["source", "set", "films", "--region", "eu-west-1"];
    let told = cluster.coordinator.json(&set);
    assert!(
        told["unchecked"].as_str().unwrap().contains("no edge"),
        "{told}"
    );
    // An origin that is no bucket is not asked.
    let told = cluster
        .coordinator
        .json(&["source", "add", "plain", "http://127.0.0.1:9"]);
    assert!(told["unchecked"].is_null(), "{told}");
    assert!(cluster.origin.all_hits().is_empty());
}
