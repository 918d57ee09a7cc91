//! Popular clients against an edge. Each is skipped, with a printed reason, if it is not installed.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use chunkcache_tests::authority::Authority;
use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, ClusterOptions, MIB, Object, content, eventually};

fn is_installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|it| it.join(program).is_file()));
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a client with a time limit.
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

/// A video of about 75 MB whose index is at its end (MP4) or that has Cues there (Matroska), made
/// once per test.
fn video(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    let file = path.to_str().unwrap();
    #[rustfmt::skip]
    succeed("ffmpeg", &[
        "-v", "error", "-nostdin", "-y",
        "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25,noise=alls=40:allf=t",
        "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000",
        "-t", "40", "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-b:v", "15M",
        "-minrate", "15M",
        "-maxrate", "15M", "-bufsize", "15M", "-c:a", "aac", "-shortest", file,
    ]);
    path
}

/// Hash of the decoded frame at this second: the right frame means the right bytes.
fn frame_hash(url: &str, seconds: &str) -> String {
    #[rustfmt::skip]
    let output = succeed("ffmpeg", &[
        "-v", "error", "-nostdin", "-ss", seconds, "-i", url, "-frames:v", "1", "-map", "0:v", "-f",
        "md5", "-",
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
        // At this pace the whole file takes many seconds: a seek that waited for it would show.
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

/// The same title as HLS, with segments in files of their own and in one, and as DASH.
fn ladders(directory: &Path) -> [&'static str; 3] {
    let at = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    #[rustfmt::skip]
    succeed("ffmpeg", &[
        "-v", "error", "-nostdin", "-y",
        "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25",
        "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000",
        "-t", "16", "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-c:a", "aac",
        &at("film.mp4"),
    ]);
    let ladders = ["hls/i.m3u8", "ranges/i.m3u8", "dash/i.mpd"];
    let hls = ["-f", "hls", "-hls_time", "2", "-hls_playlist_type", "vod"];
    let fmp4 = [&hls[..], &["-hls_segment_type", "fmp4"]].concat();
    let ranges = [&hls[..], &["-hls_flags", "single_file"]].concat();
    let dash = vec!["-f", "dash", "-seg_duration", "2"];
    for (name, options) in ladders.iter().zip([fmp4, ranges, dash]) {
        fs::create_dir(Path::new(&at(name)).parent().unwrap()).unwrap();
        let (film, made) = (at("film.mp4"), at(name));
        let input = ["-v", "error", "-nostdin", "-i", &film, "-c", "copy"];
        succeed("ffmpeg", &[&input[..], &options, &[&made]].concat());
    }
    ladders
}

#[test]
fn ffmpeg_plays_ladders_and_what_comes_next_is_fetched_ahead() {
    if !is_installed("ffmpeg") {
        return;
    }
    let cluster = Cluster::start();
    let root = cluster.directory.path().join("ladders");
    fs::create_dir(&root).unwrap();
    let frames = |url: &str| {
        let options = [
            "-v", "error", "-nostdin", "-i", url, "-map", "0:v:0", "-f", "md5", "-",
        ];
        String::from_utf8_lossy(&succeed("ffmpeg", &options).stdout).into_owned()
    };
    let fetched = || {
        let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
        let name = "cache_edge_next_objects_total{result=\"fetched\"} ";
        let mut lines = metrics.lines();
        let line = lines.find_map(|line| line.strip_prefix(name));
        line.unwrap().parse::<u64>().unwrap()
    };
    let ladders = ladders(&root);
    let template = Object::generated(0, 0).latency(Duration::from_millis(50));
    cluster
        .origin
        .serve_directory(&root, template, Vec::new())
        .unwrap();
    let wanted = frames(root.join("film.mp4").to_str().unwrap());
    for ladder in ladders {
        let before = fetched();
        let url = format!("{}/media/{ladder}", cluster.edge().url());
        assert_eq!(frames(&url), wanted, "{ladder}");
        // Segments in one object are its own lookahead's.
        if ladder.starts_with("hls") || ladder.starts_with("dash") {
            let ahead = fetched() - before;
            assert!(
                ahead >= 4,
                "{ladder}: {ahead} of 7 segments and their audio"
            );
        }
    }
    let mut asked: Vec<String> = cluster
        .origin
        .all_hits()
        .into_iter()
        .map(|it| it.target)
        .collect();
    asked.sort();
    let all = asked.len();
    asked.dedup();
    assert_eq!(all, asked.len(), "each object is asked for once");
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
        // Again on the complete file: wget asks past the end, gets 416, and succeeds.
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
    succeed("aria2c", &["-q", "-x8", "-s8", "-k1M", "--no-conf", "--file-allocation=none", "-d",
        directory, "-o", "out", &url]);
    let got = fs::read(cluster.directory.path().join("out")).unwrap();
    assert_eq!(content::sha256_of(&got), content::sha256(122, size));
    // When a reader leaves, its fetch is stopped unless others wait for it. Bytes that its origin
    // has sent by then are lost: at most a socket buffer of a MiB for each reader.
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

/// A video at an edge, paced so that no client reaches the end by accident.
fn film(cluster: &Cluster, name: &str) -> (String, u64) {
    let path = video(cluster.directory.path(), name);
    let file = File::open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    let object = Object::file(file).unwrap().etag(Some("\"film\""));
    let target = cluster.put(&format!("/{name}"), object.paced(16 * MIB));
    (format!("{}{target}", cluster.edge().url()), size)
}

/// curl 7.88 (Debian 12) then offers `http/1.0` alone by ALPN.
#[test]
fn curl_speaks_http_1_0_over_tls() {
    if !is_installed("curl") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new(place.path());
    let identity = authority.issue("edge", "IP:127.0.0.1");
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        ..ClusterOptions::default()
    });
    cluster.edge_mut().arguments.extend([
        format!("--tls-cert={}", identity.cert.display()),
        format!("--tls-key={}", identity.key.display()),
    ]);
    cluster.start_prepared();
    let target = cluster.put("/a.bin", Object::generated(1, 1_000));
    let url = format!("https://{}{target}", cluster.edge().http);
    let trusted = authority.pem();
    let trusted = trusted.to_str().unwrap();
    let answer = succeed(
        "curl",
        &["-sS", "--fail", "--http1.0", "--cacert", trusted, &url],
    );
    assert_eq!(answer.stdout, content::bytes(1, 0, 1_000));
}

#[test]
fn curl_asks_for_parts_in_parallel() {
    if !is_installed("curl") {
        return;
    }
    let cluster = Cluster::start();
    let size = 12 * MIB + 5;
    let target = cluster.put("/parallel.bin", Object::generated(125, size));
    let url = format!("{}{target}", cluster.edge().url());
    let part = size / 4;
    let mut arguments = vec!["-sS".to_owned(), "--fail".into(), "--parallel".into()];
    let file = |index: u64| cluster.directory.path().join(format!("part-{index}"));
    for index in 0..4 {
        let (start, end) = (index * part, ((index + 1) * part).min(size));
        let end = if index == 3 { size } else { end };
        if index > 0 {
            arguments.push("--next".into());
            arguments.extend(["-sS".into(), "--fail".into()]);
        }
        arguments.extend(["-r".into(), format!("{start}-{}", end - 1)]);
        arguments.extend(["-o".into(), file(index).display().to_string(), url.clone()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    succeed("curl", &arguments);
    let whole: Vec<u8> = (0..4)
        .flat_map(|index| fs::read(file(index)).unwrap())
        .collect();
    assert_eq!(content::sha256_of(&whole), content::sha256(125, size));
    // HTTP/2 without TLS, by prior knowledge.
    let over_http2 = cluster.directory.path().join("h2");
    let path = over_http2.to_str().unwrap();
    let version = succeed(
        "curl",
        &[
            "-sS",
            "--fail",
            "--http2-prior-knowledge",
            "-w",
            "%{http_version}",
            "-o",
            path,
            &url,
        ],
    );
    assert_eq!(version.stdout, b"2");
    assert_eq!(
        content::sha256_of(&fs::read(&over_http2).unwrap()),
        content::sha256(125, size)
    );
}

#[test]
fn mpv_plays_and_seeks() {
    if !is_installed("ffmpeg") || !is_installed("mpv") {
        return;
    }
    let cluster = Cluster::start();
    let (url, _) = film(&cluster, "mpv.mkv");
    let script = cluster.directory.path().join("seek.lua");
    fs::write(
        &script,
        "local places = { 30, 5, 35, 12 }
         local at = 0
         mp.register_event('playback-restart', function()
           local now = mp.get_property_number('time-pos')
           if at > 0 then print(string.format('AT %d', now + 0.5)) end
           at = at + 1
           if places[at] then mp.commandv('seek', places[at], 'absolute+exact')
           else mp.commandv('quit', 0) end
         end)",
    )
    .unwrap();
    let script = format!("--script={}", script.display());
    #[rustfmt::skip]
    let output = succeed("mpv",
        &["--no-config", "--vo=null", "--ao=null", "--cache=no", &script, &url]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    for place in ["AT 30", "AT 5", "AT 35", "AT 12"] {
        assert!(told.contains(place), "no {place} in {told}");
    }
}

#[test]
fn gstreamer_discovers_and_seeks() {
    if !is_installed("ffmpeg")
        || !is_installed("gst-discoverer-1.0")
        || !is_installed("gst-play-1.0")
    {
        return;
    }
    let cluster = Cluster::start();
    let (url, size) = film(&cluster, "gst.mp4");
    let output = succeed("gst-discoverer-1.0", &["-v", &url]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        told.contains("Seekable: yes") && told.contains("Duration: 0:00:40"),
        "{told}"
    );
    let before = cluster.origin.hits("/gst.mp4").len();
    #[rustfmt::skip]
    succeed("gst-play-1.0",
        &["--no-interactive", "--videosink=fakesink", "--audiosink=fakesink",
            "--start-position=30", &url]);
    let hits = cluster.origin.hits("/gst.mp4");
    assert!(
        hits[before..]
            .iter()
            .any(|hit| starts_at_least(hit, size / 2)),
        "{hits:?}"
    );
}

#[test]
fn vlc_plays_from_the_middle() {
    if !is_installed("ffmpeg") || !is_installed("cvlc") {
        return;
    }
    let cluster = Cluster::start();
    let (url, size) = film(&cluster, "vlc.mkv");
    #[rustfmt::skip]
    let arguments = ["-I", "dummy", "--vout=dummy", "--aout=dummy", "--no-video-title-show",
        "--start-time=28", "--run-time=2", "--play-and-exit", &url];
    // VLC refuses to run as root.
    if rustix::process::geteuid().is_root() {
        #[rustfmt::skip]
        let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/tmp",
            "cvlc"];
        succeed("setpriv", &[&as_nobody[..], &arguments].concat());
    } else {
        succeed("cvlc", &arguments);
    }
    let hits = cluster.origin.hits("/vlc.mkv");
    assert!(
        hits.iter().any(|hit| starts_at_least(hit, size / 2)),
        "{hits:?}"
    );
}

fn starts_at_least(hit: &chunkcache_tests::origin::Hit, offset: u64) -> bool {
    let start = hit
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="))
        .and_then(|range| range.split('-').next()?.parse::<u64>().ok());
    start.is_some_and(|start| start >= offset)
}

/// A page of another origin plays, seeks, reads pixels (which only CORS allows) and headers of a
/// range, and reports the result to its own server.
#[test]
fn chromium_plays_and_seeks_cross_origin() {
    if !is_installed("ffmpeg") || !is_installed("chromium") {
        return;
    }
    let cluster = Cluster::start();
    let (url, _) = film(&cluster, "browser.mp4");
    let page = cluster.directory.path().join("page.html");
    let text = PAGE.replace("FILM", &url);
    fs::write(&page, text).unwrap();
    let pages = chunkcache_tests::Origin::start();
    let object = Object::file(File::open(&page).unwrap()).unwrap();
    pages.put("/page.html", object.content_type("text/html"));
    let profile = cluster.directory.path().join("profile");
    let mut command = Command::new("chromium");
    #[rustfmt::skip]
    command.args([
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run",
        "--mute-audio", "--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0",
    ]);
    command.arg(format!("--user-data-dir={}", profile.display()));
    command.arg(format!("{}/page.html", pages.url()));
    let log = cluster.directory.path().join("chromium.log");
    let mut browser = chunkcache_tests::process::Process::spawn("chromium", &command, &log);
    let told = eventually(
        "the page tells how it went",
        Duration::from_secs(90),
        || {
            assert!(browser.is_running(), "{}", browser.output());
            let hits = pages.all_hits();
            hits.into_iter()
                .find(|hit| hit.target.starts_with("/result"))
        },
    );
    assert_eq!(told.target, "/result?ok", "{}", browser.output());
    browser.terminate();
}

const PAGE: &str = r#"<!doctype html>
<video id=v crossorigin=anonymous muted preload=auto src="FILM"></video><script>
const v = document.getElementById('v');
const tell = text => fetch('/result?' + encodeURIComponent(text));
const event = name => new Promise((done, failed) => {
  v.addEventListener(name, done, { once: true });
  v.addEventListener('error', () => failed(new Error('video: ' + v.error.message)), { once: true });
});
async function seek(to) {
  const seeked = event('seeked');
  v.currentTime = to;
  await seeked;
  if (Math.abs(v.currentTime - to) > 0.5)
    throw new Error('at ' + v.currentTime + ' and not at ' + to);
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 64;
  const context = canvas.getContext('2d');
  context.drawImage(v, 0, 0, 64, 64);
  // Throws on a video that was loaded without CORS.
  if (context.getImageData(0, 0, 64, 64).data.every(byte => byte === 0))
    throw new Error('no picture at ' + to);
}
(async () => {
  if (v.readyState < 1) await event('loadedmetadata');
  if (Math.abs(v.duration - 40) > 1) throw new Error('duration ' + v.duration);
  for (const place of [28, 5, 35, 15]) await seek(place);
  await v.play();
  const from = v.currentTime;
  while (v.currentTime < from + 0.5) await event('timeupdate');
  const headers = { Range: 'bytes=10-19', 'Cache-Control': 'no-cache' };
  const part = await fetch('FILM', { headers });
  const read = name => part.headers.get(name) || '';
  if (part.status !== 206 || (await part.arrayBuffer()).byteLength !== 10)
    throw new Error('range: ' + part.status);
  if (!read('content-range').startsWith('bytes 10-19/') || !read('etag')
    || !read('cache-status').includes('edge-a'))
    throw new Error('headers can not be read');
})().then(() => fetch('/result?ok'), error => tell(String(error)));
</script>"#;

/// Aborted playback is normal: no fetch is left running and the next reader is served.
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
