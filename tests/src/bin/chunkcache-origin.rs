//! A small origin: serves the files below a directory over HTTP/1.1, with ranges and validators,
//! slowed down on demand.
//!
//! For `deploy/quickstart` and for trying things by hand. `GET /.requests` lists the requests,
//! which shows what the cache did.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chunkcache_tests::{Object, Origin};

const USAGE: &str = "usage: chunkcache-origin --root DIRECTORY --listen 127.0.0.1:PORT \
 [--latency-ms N] [--bytes-per-second N] [--max-age SECONDS]
    [--folder NAME:LATENCY_MS:BYTES_PER_SECOND]…
    [--generate NAME:SEED:BYTES]… [--link-bytes-per-second N [--link-queue-ms N]]

Serves the files below DIRECTORY. --latency-ms is the time before each answer (default 0);
--bytes-per-second is the pace of each body (default: no limit). --max-age is sent as
Cache-Control (default: none is). --folder says otherwise for what is below DIRECTORY/NAME
(0: no limit). --generate adds an object that is no file. --link-bytes-per-second is what all
bodies share; --link-queue-ms puts a queue before it, first in first out. GET /.requests lists
the requests.";

struct Options {
    root: PathBuf,
    listen: SocketAddr,
    latency: Duration,
    bytes_per_second: Option<u64>,
    max_age: Option<u64>,
    folders: Vec<(String, Object)>,
    generated: Vec<(String, u64, u64)>,
    link_bytes_per_second: Option<u64>,
    link_queue: Duration,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let origin = match Origin::start_at(options.listen) {
        Ok(origin) => origin,
        Err(error) => {
            eprintln!("cannot listen on {}: {error}", options.listen);
            return ExitCode::FAILURE;
        }
    };
    let mut template = Object::generated(0, 0).latency(options.latency);
    if let Some(rate) = options.bytes_per_second {
        template = template.paced(rate);
    }
    if let Some(seconds) = options.max_age {
        template = template.header("Cache-Control", &format!("max-age={seconds}"));
    }
    for (name, seed, size) in &options.generated {
        let object = Object::generated(*seed, *size).like(&template);
        origin.put(&format!("/{name}"), object);
    }
    origin.set_link_with_queue(options.link_bytes_per_second, options.link_queue);
    if let Err(error) = origin.serve_directory(&options.root, template, options.folders) {
        eprintln!("cannot serve {}: {error}", options.root.display());
        return ExitCode::FAILURE;
    }
    println!("serving {} at {}", options.root.display(), origin.url());
    // Signals keep their default action: the process has nothing to save.
    loop {
        std::thread::park();
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let (mut root, mut listen) = (None, None);
    let (mut latency, mut bytes_per_second) = (Duration::ZERO, None);
    let (mut max_age, mut folders, mut generated) = (None, Vec::new(), Vec::new());
    let (mut link_bytes_per_second, mut link_queue) = (None, Duration::ZERO);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|error| format!("{name} {value}: {error}"))
        };
        match name.as_str() {
            "--root" => root = Some(PathBuf::from(&value)),
            "--listen" => {
                let address = value
                    .parse()
                    .map_err(|error| format!("{name} {value}: {error}"))?;
                listen = Some(address);
            }
            "--latency-ms" => latency = Duration::from_millis(number()?),
            "--bytes-per-second" => bytes_per_second = Some(number()?),
            "--max-age" => max_age = Some(number()?),
            "--folder" => folders.push(folder(&value)?),
            "--generate" => generated.push(generate(&value)?),
            "--link-bytes-per-second" => link_bytes_per_second = Some(number()?),
            "--link-queue-ms" => link_queue = Duration::from_millis(number()?),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(Options {
        root: root.ok_or("--root is missing")?,
        listen: listen.ok_or("--listen is missing")?,
        latency,
        bytes_per_second,
        max_age,
        folders,
        generated,
        link_bytes_per_second,
        link_queue,
    })
}

fn generate(text: &str) -> Result<(String, u64, u64), String> {
    let wrong = || format!("--generate {text}: expected NAME:SEED:BYTES");
    let mut parts = text.split(':');
    let name = parts.next().filter(|name| !name.is_empty());
    let numbers: Vec<u64> = parts.map_while(|part| part.parse().ok()).collect();
    let (Some(name), [seed, size]) = (name, numbers.as_slice()) else {
        return Err(wrong());
    };
    Ok((name.to_owned(), *seed, *size))
}

fn folder(text: &str) -> Result<(String, Object), String> {
    let wrong = || format!("--folder {text}: expected NAME:LATENCY_MS:BYTES_PER_SECOND");
    let mut parts = text.split(':');
    let name = parts.next().filter(|name| !name.is_empty());
    let numbers: Vec<u64> = parts.map_while(|part| part.parse().ok()).collect();
    let (Some(name), [latency_ms, rate]) = (name, numbers.as_slice()) else {
        return Err(wrong());
    };
    let mut object = Object::generated(0, 0).latency(Duration::from_millis(*latency_ms));
    if *rate > 0 {
        object = object.paced(*rate);
    }
    Ok((name.to_owned(), object))
}
