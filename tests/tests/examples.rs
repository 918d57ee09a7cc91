//! The examples run, and print what they promise.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};

use chunkcache_tests::{Cluster, MIB, Object, content};

/// The exit status of `examples/python/run` when its packages are not available.
const EXIT_SKIP: i32 = 77;

fn example(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).join(path)
}

#[track_caller]
fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{:?}: {out}{error}", output.status);
    out
}

#[test]
fn python_with_a_generated_client() {
    let cluster = Cluster::start();
    cluster.put("/a.mp4", Object::generated(161, 5 * MIB));
    let endpoint = cluster.coordinator.grpc.to_string();
    let output = Command::new(example("python/run"))
        .args([&endpoint, "media/a.mp4"])
        .output()
        .unwrap();
    if output.status.code() == Some(EXIT_SKIP) {
        println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let text = text(&output);
    assert!(text.contains("health SERVING"), "{text}");
    assert!(text.contains("chunkcache.v1.CacheService"), "{text}");
    assert!(text.contains("present True 5242880 bytes"), "{text}");
    assert!(text.contains("refused INVALID_ARGUMENT entry"), "{text}");
}

#[test]
fn curl_as_a_player() {
    let cluster = Cluster::start();
    let target = cluster.put("/a.mp4", Object::generated(162, 5 * MIB));
    let url = format!("{}{target}", cluster.edge().url());
    let output = Command::new(example("curl/play"))
        .arg(url)
        .output()
        .unwrap();
    let text = text(&output);
    assert!(text.contains("status 206, 1048576 bytes"), "{text}");
    assert!(text.contains(&content::sha256(162, 5 * MIB)), "{text}");
}

#[test]
fn rust_as_another_service() {
    let cluster = Cluster::start();
    cluster.put("/a.mp4", Object::generated(163, 9 * MIB));
    let endpoint = format!("http://{}", cluster.coordinator.grpc);
    // Built with everything else (`--all-targets`) if the binaries were; otherwise built now.
    let built = std::env::var_os("CHUNKCACHE_BIN_DIR")
        .map(|directory| PathBuf::from(directory).join("examples/open_and_wait"))
        .filter(|path| path.exists());
    let mut command = if let Some(path) = built {
        Command::new(path)
    } else {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["run", "--quiet", "-p", "chunkcache-tests"]);
        cargo.args(["--example", "open_and_wait", "--"]);
        cargo
    };
    let output = command
        .args([&endpoint, "media/a.mp4"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = text(&output);
    assert!(text.contains("4194304 bytes are on edge-a"), "{text}");
    assert!(text.contains("/media/a.mp4"), "{text}");
}
