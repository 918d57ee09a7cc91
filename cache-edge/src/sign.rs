//! `cache-edge sign`: makes a URL that an edge with `--signed-url-keys-file` answers until it
//! expires.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Arg, ArgMatches, Command, value_parser};
use service_kit::config::{EXIT_USAGE, parse_duration};
use url::Url;

use crate::core::{signed_url::Grant, signed_url_keys};
use http_rules::path::{self, Target};

/// The command beside `serve`.
#[must_use]
pub fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("sign")
        .about("Sign URLs for players: each may be read until it expires")
        .args([
            Arg::new("URL")
                .required(true)
                .num_args(1..)
                .help("https://EDGE/SOURCE/PATH?QUERY, or /SOURCE/PATH?QUERY"),
            option("keys-file", "FILE", "The edges' --signed-url-keys-file")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
            option("key", "ID", "The key to sign with, by its id in the file").required(true),
            option(
                "expires-in",
                "DURATION",
                "How long the URL holds, such as 4h",
            )
            .default_value("1h")
            .value_parser(parse_duration),
            option(
                "client",
                "ADDRESS|PREFIX",
                "Only for clients of this address or network, such as 192.0.2.0/24",
            ),
            option("output", "FORMAT", "A URL a line, or a JSON array")
                .default_value("table")
                .value_parser(["table", "json"]),
        ])
}

/// Exit status 0; 1 if something can not be signed; 2 if the arguments make no sense.
pub fn run(arguments: &ArgMatches) -> ExitCode {
    match signed(arguments, SystemTime::now()) {
        Ok(text) => match writeln!(std::io::stdout(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err((status, message)) => {
            eprintln!("error: {message}");
            ExitCode::from(status)
        }
    }
}

fn signed(arguments: &ArgMatches, now: SystemTime) -> Result<String, (u8, String)> {
    let text = |name: &str| arguments.get_one::<String>(name).map(String::as_str);
    let Some(file) = arguments.get_one::<PathBuf>("keys-file") else {
        return Err((EXIT_USAGE, "--keys-file is missing".to_owned()));
    };
    let keys = std::fs::read_to_string(file)
        .map_err(|error| (1, format!("{} can not be read: {error}", file.display())))?;
    let signer = signed_url_keys::parse(&keys)
        .map_err(|error| (1, format!("{}: {error}", file.display())))?;
    let lasts = arguments.get_one::<Duration>("expires-in").copied();
    let expires = now + lasts.unwrap_or_default();
    let expires = expires.duration_since(UNIX_EPOCH).unwrap_or_default();
    let grant = Grant {
        key_id: text("key").unwrap_or_default(),
        expires_unix_seconds: expires.as_secs(),
        client: text("client"),
    };
    let mut urls = Vec::new();
    for url in arguments.get_many::<String>("URL").unwrap_or_default() {
        let (base, path, query) =
            split(url).map_err(|why| (EXIT_USAGE, format!("{url}: {why}")))?;
        let signed = signer.sign(&path, &query, &grant).ok_or_else(|| {
            let (id, file) = (grant.key_id, file.display());
            (1, format!("{file} has no key {id:?}"))
        })?;
        urls.push(format!("{base}{path}?{signed}"));
    }
    if text("output") == Some("json") {
        let all: Vec<_> = urls
            .iter()
            .map(|url| serde_json::json!({ "url": url, "expires": expires.as_secs() }))
            .collect();
        return Ok(serde_json::Value::from(all).to_string());
    }
    Ok(urls.join("\n"))
}

/// The part before the path, the path as an edge normalises it, and the query.
fn split(url: &str) -> Result<(String, String, String), String> {
    let (base, target) = if url.starts_with('/') {
        (String::new(), url.to_owned())
    } else {
        let parsed = Url::parse(url).map_err(|_| "expected an absolute URL or /SOURCE/PATH")?;
        let base = parsed.origin().ascii_serialization();
        let query = parsed.query().map(|query| format!("?{query}"));
        (
            base,
            format!("{}{}", parsed.path(), query.unwrap_or_default()),
        )
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target.as_str(), None),
    };
    match path::parse(path, query).map_err(|error| error.to_string())? {
        Target::Key {
            source,
            path,
            query,
        } => Ok((base, format!("/{source}/{path}"), query)),
        Target::Entry { id, query } => Ok((base, format!("/v1/entries/{id}"), query)),
        Target::Peer => Err("paths of other edges are not for players".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const KEYS: &str = "old 0123456789abcdef\nnew fedcba9876543210\n";

    fn sign(more: &[&str]) -> Result<String, (u8, String)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KEYS).unwrap();
        let keys = format!("--keys-file={}", file.path().display());
        let all = [&["sign", &keys, "--key=new"], more].concat();
        let matches = command().try_get_matches_from(all).unwrap();
        signed(&matches, UNIX_EPOCH + Duration::from_secs(1_000))
    }

    #[test]
    fn what_is_signed_verifies_until_it_expires() {
        let signer = signed_url_keys::parse(KEYS).unwrap();
        let client = IpAddr::from(Ipv4Addr::LOCALHOST);
        for (url, path, rest) in [
            ("/films/a%2Db.mp4?x=1", "/films/a-b.mp4", "x=1"),
            (
                "https://edge.example:7500/films/c/../b.mp4",
                "/films/b.mp4",
                "",
            ),
        ] {
            let signed = sign(&[url, "--expires-in=1m"]).unwrap();
            let (before, query) = signed.split_once('?').unwrap();
            assert!(before.ends_with(path), "{signed}");
            assert_eq!(
                url.starts_with("https"),
                before.starts_with("https://edge.example:7500/")
            );
            assert_eq!(signer.verify(path, query, client, 1_059).unwrap(), rest);
            assert!(signer.verify(path, query, client, 1_060).is_err());
        }
    }

    #[test]
    fn for_one_network_and_as_json() {
        let text = sign(&["/a/b", "/a/c", "--client=192.0.2.0/24", "--output=json"]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json[1]["expires"], 4_600);
        assert!(
            json[1]["url"]
                .as_str()
                .unwrap()
                .contains("cc-client=192.0.2.0/24")
        );
    }

    #[test]
    fn what_can_not_be_signed_is_said() {
        for url in ["films/a.mp4", "/", "/_peer/v1/x", "/films/../x"] {
            assert_eq!(sign(&[url]).unwrap_err().0, EXIT_USAGE, "{url}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KEYS).unwrap();
        let keys = format!("--keys-file={}", file.path().display());
        let matches = command().get_matches_from(["sign", &keys, "--key=gone", "/a/b"]);
        let (status, message) = signed(&matches, UNIX_EPOCH).unwrap_err();
        assert!(
            status == 1 && message.contains("has no key \"gone\""),
            "{message}"
        );
        assert!(!message.contains("0123456789"), "{message}");
    }
}
