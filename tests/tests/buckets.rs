//! A private bucket on a third-party S3 server.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use chunkcache_tests::bucket_server::{BUCKET, BucketServer};
use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, MIB, content, eventually};

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

fn add(cluster: &Cluster, name: &str, server: &BucketServer, secret: &str) {
    let directory = cluster.directory.path();
    let file = directory.join(format!("{name}.key"));
    std::fs::write(&file, format!("{}\n{secret}\n", server.access_key_id)).unwrap();
    add_with(cluster, name, server, &["--access-key-file", path(&file)]);
}

fn add_with(cluster: &Cluster, name: &str, server: &BucketServer, options: &[&str]) {
    let (base, endpoint) = (
        format!("s3://{BUCKET}/top"),
        format!("http://{}", server.address),
    );
    let add = ["source", "add", name, &base, "--path-style"];
    let add = [&add[..], &["--s3-endpoint", &endpoint], options].concat();
    let output = cluster.coordinator.cli(&add);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
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
    add(&cluster, "films", &server, &server.secret_access_key);
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
    add(&cluster, "wrong", &server, "not-the-secret");
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
    add_with(&cluster, "films", &server, &[]);
    let call = Call::get("/films/a.mp4");
    assert_eq!(call.send(cluster.edge().http).status, 403);
    write(&server.secret_access_key);
    let got = eventually("the new credentials", Duration::from_secs(20), || {
        let got = call.send(cluster.edge().http);
        (got.status == 200).then_some(got)
    });
    assert_eq!(got.body, content::bytes(1, 0, 1_000));
}
