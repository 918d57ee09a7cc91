//! The clients people use, against an edge. Each is skipped, with a printed reason, where it is not installed.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use chunkcache_tests::{Cluster, MIB, Object, content, eventually};

fn is_installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|it| it.join(program).is_file()));
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a client with a bound on its time.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .arg("120")
        .arg(program)
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn succeed(program: &str, arguments: &[&str]) -> Output {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {:?}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A video of about 75 MB whose index is at its end (MP4) or that has Cues there (Matroska), made once a test.
fn video(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    let file = path.to_str().unwrap();
    #[rustfmt::skip]
    succeed("ffmpeg", &[
        "-v", "error", "-nostdin", "-y",
        "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25,noise=alls=40:allf=t",
        "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000",
        "-t", "40", "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-b:v", "15M", "-minrate", "15M",
        "-maxrate", "15M", "-bufsize", "15M", "-c:a", "aac", "-shortest", file,
    ]);
    path
}

/// A frame at this second, decoded: the right frame of the right bytes.
fn frame_hash(url: &str, seconds: &str) -> String {
    #[rustfmt::skip]
    let output = succeed("ffmpeg", &[
        "-v", "error", "-nostdin", "-ss", seconds, "-i", url, "-frames:v", "1", "-map", "0:v", "-f", "md5", "-",
    ]);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn ffmpeg_seeks_on_a_cold_file_and_only_the_needed_part_comes() {
    if !is_installed("ffmpeg") {
        return;
    }
    for name in ["film.mp4", "film.mkv"] {
        let cluster = Cluster::start();
        let path = video(cluster.directory.path(), name);
        let size = fs::metadata(&path).unwrap().len();
        let object = Object::file(File::open(&path).unwrap())
            .unwrap()
            .etag(Some("\"film\""));
        // At this pace the whole file takes many seconds: a seek that waited for it would be seen.
        let target = cluster.put(&format!("/{name}"), object.paced(8 * MIB));
        let url = format!("{}{target}", cluster.edge().url());
        let local = path.to_str().unwrap();

        let probe = [
            "-v",
            "error",
            "-show_entries",
            "format=duration",
            "-of",
            "csv=p=0",
        ];
        let wanted = succeed("ffprobe", &[&probe[..], &[local]].concat()).stdout;
        let got = succeed("ffprobe", &[&probe[..], &[&url]].concat()).stdout;
        assert_eq!(got, wanted);
        assert_eq!(
            frame_hash(&url, "28"),
            frame_hash(local, "28"),
            "{name} at 70 %"
        );
        let sent = cluster.origin.body_bytes(&format!("/{name}"));
        assert!(
            sent < size * 9 / 10,
            "{name}: {sent} of {size} bytes fetched for one seek"
        );
        let end = size - 1;
        let tail = cluster.origin.hits(&format!("/{name}"));
        assert!(
            tail.len() > 1 || size < 8 * MIB,
            "one request up to {end} fetched it all: {tail:?}"
        );
    }
}

#[test]
fn curl_and_wget_resume_in_the_middle() {
    let cluster = Cluster::start();
    let size = 9 * MIB + 321;
    let target = cluster.put("/resume.bin", Object::generated(121, size));
    let url = format!("{}{target}", cluster.edge().url());
    let expected = content::sha256(121, size);
    for (client, arguments) in [
        ("curl", vec!["-sS", "--fail", "-C", "-", "-o"]),
        ("wget", vec!["-q", "-c", "-O"]),
    ] {
        if !is_installed(client) {
            continue;
        }
        let file = cluster.directory.path().join(client);
        fs::write(&file, content::bytes(121, 0, 3 * MIB + 5)).unwrap();
        let arguments = [&arguments[..], &[file.to_str().unwrap(), &url]].concat();
        succeed(client, &arguments);
        assert_eq!(
            content::sha256_of(&fs::read(&file).unwrap()),
            expected,
            "{client}"
        );
        // Again on the complete file: wget asks past the end, is told 416, and is content.
        let again = run(client, &arguments);
        assert!(client == "curl" || again.status.success(), "{again:?}");
        assert_eq!(fs::metadata(&file).unwrap().len(), size);
    }
}

#[test]
fn aria2_fetches_eight_parts_at_once() {
    if !is_installed("aria2c") {
        return;
    }
    let cluster = Cluster::start();
    let size = 48 * MIB + 1;
    let target = cluster.put("/parts.bin", Object::generated(122, size));
    let url = format!("{}{target}", cluster.edge().url());
    let directory = cluster.directory.path().to_str().unwrap();
    #[rustfmt::skip]
    succeed("aria2c", &["-q", "-x8", "-s8", "-k1M", "--no-conf", "--file-allocation=none", "-d", directory, "-o", "out", &url]);
    let got = fs::read(cluster.directory.path().join("out")).unwrap();
    assert_eq!(content::sha256_of(&got), content::sha256(122, size));
    // Eight readers at eight places pre-empt each other's fetches; what was on its way then may come twice.
    let sent = cluster.origin.body_bytes("/parts.bin");
    assert!(sent >= size && sent < size + 8 * MIB, "{sent} of {size}");
}

#[test]
fn rclone_copies_by_url() {
    if !is_installed("rclone") {
        return;
    }
    let cluster = Cluster::start();
    let size = 5 * MIB + 7;
    let target = cluster.put("/copy.bin", Object::generated(123, size));
    let url = format!("{}{target}", cluster.edge().url());
    let file = cluster.directory.path().join("copied");
    succeed(
        "rclone",
        &[
            "--config",
            "/dev/null",
            "copyurl",
            &url,
            file.to_str().unwrap(),
        ],
    );
    assert_eq!(
        content::sha256_of(&fs::read(&file).unwrap()),
        content::sha256(123, size)
    );
}

#[test]
fn players_play() {
    if !is_installed("ffmpeg") {
        return;
    }
    let cluster = Cluster::start();
    let path = video(cluster.directory.path(), "played.mp4");
    let object = Object::file(File::open(&path).unwrap())
        .unwrap()
        .etag(Some("\"played\""));
    let target = cluster.put("/played.mp4", object);
    let url = format!("{}{target}", cluster.edge().url());
    if is_installed("mpv") {
        succeed(
            "mpv",
            &[
                "--no-config",
                "--vo=null",
                "--ao=null",
                "--start=70%",
                "--length=1",
                "--untimed",
                &url,
            ],
        );
    }
    if is_installed("cvlc") {
        #[rustfmt::skip]
        succeed("cvlc", &["-I", "dummy", "--vout=dummy", "--aout=dummy", "--start-time=28", "--run-time=1", "--play-and-exit", &url]);
    }
    if is_installed("gst-launch-1.0") {
        let uri = format!("uri={url}");
        #[rustfmt::skip]
        succeed("gst-launch-1.0", &["-q", "uridecodebin", &uri, "!", "video/x-raw", "!", "fakesink", "num-buffers=50"]);
    }
    #[rustfmt::skip]
    succeed("ffmpeg", &["-v", "error", "-nostdin", "-i", &url, "-t", "5", "-f", "null", "-"]);
}

/// An aborted playback is normal life: nothing is left running and the next reader is served.
#[test]
fn an_aborted_client_leaves_nothing_behind() {
    let cluster = Cluster::start();
    let size = 64 * MIB;
    let target = cluster.put("/aborted.bin", Object::generated(124, size).paced(4 * MIB));
    for place in 0..20 {
        let range = format!("bytes={}-", place * 3 * MIB);
        let mut reply = chunkcache_tests::http::Call::get(&target)
            .header("Range", &range)
            .open(cluster.edge().http)
            .unwrap();
        assert_eq!(
            reply.take(1000).unwrap(),
            content::bytes(124, place * 3 * MIB, place * 3 * MIB + 1000)
        );
    }
    eventually(
        "the edge's readers are gone",
        Duration::from_secs(20),
        || {
            let edges = cluster.coordinator.json(&["edge", "list"]);
            (edges[0]["readers"] == 0).then_some(())
        },
    );
}
