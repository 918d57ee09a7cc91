//! `cache-edge sign`: makes URLs, cookies and tokens that an edge with `--signed-url-keys-file` or
//! `--signed-url-jwks-file` answers until they expire.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use rustls::pki_types::{
    PrivatePkcs8KeyDer,
    pem::{self, PemObject as _},
};
use service_kit::{
    config::{EXIT_USAGE, parse_duration},
    text_file,
};
use url::Url;

use crate::core::{
    access_token::{self, Claims},
    cat,
    signed_url::{Grant, Signer, TOKEN},
    signed_url_keys,
};
use http_rules::{
    credential,
    path::{self, Target},
};

/// Limit of the size of a file of keys, as at an edge.
const MAX_FILE_BYTES: u64 = 1 << 20;

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
                .required_unless_present("private-key-file")
                .value_parser(value_parser!(PathBuf)),
            option(
                "private-key-file",
                "FILE",
                "Make a JSON Web Token with this key, RSA or P-256, PEM (PKCS #8); its public \
                 half is in the edges' --signed-url-jwks-file",
            )
            .conflicts_with("keys-file")
            .value_parser(value_parser!(PathBuf)),
            option(
                "key",
                "ID",
                "The key to sign with, by its id in the file, or the kid of the private key",
            )
            .required(true),
            Arg::new("token")
                .long("token")
                .action(ArgAction::SetTrue)
                .help("Make a JSON Web Token (HS256) with the key of --keys-file"),
            Arg::new("cat")
                .long("cat")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["token", "client"])
                .help(
                    "Make a Common Access Token (CTA-5007): HS256 with --keys-file, ES256 with \
                     --private-key-file",
                ),
            option(
                "path",
                "PATTERN",
                "Cover all paths that match instead of each URL's own, such as '/films/a/*' for a \
                 ladder",
            ),
            option(
                "place",
                "PLACE",
                "Where the signature is put; a cookie is printed as the \
             value of Set-Cookie",
            )
            .default_value("query")
            .value_parser(["query", "segment", "cookie"]),
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

/// Exit status 0; 1 if something cannot be signed; 2 if the arguments are invalid.
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
    let key = Key::load(arguments)?;
    let pattern = text("path");
    if pattern.is_some_and(|pattern| !pattern.starts_with('/')) {
        let message = "--path begins with a slash, such as '/films/a/*'";
        return Err((EXIT_USAGE, message.to_owned()));
    }
    let lasts = arguments.get_one::<Duration>("expires-in").copied();
    let expires = now + lasts.unwrap_or_default();
    let expires = expires.duration_since(UNIX_EPOCH).unwrap_or_default();
    let grant = Grant {
        key_id: text("key").unwrap_or_default(),
        expires_unix_seconds: expires.as_secs(),
        pattern,
        client: text("client"),
    };
    let mut urls = Vec::new();
    for url in arguments.get_many::<String>("URL").unwrap_or_default() {
        let (base, path, query) =
            split(url).map_err(|why| (EXIT_USAGE, format!("{url}: {why}")))?;
        let parameters = match arguments.get_flag("cat") {
            true => key.cat(&path, &grant)?,
            false => key.sign(&path, &query, &grant)?,
        };
        let word = || URL_SAFE_NO_PAD.encode(&parameters);
        let own = |begin: &str, end: &str| match query.as_str() {
            "" => String::new(),
            query => format!("{begin}{query}{end}"),
        };
        urls.push(match text("place") {
            Some("segment") => {
                let path = credential::join_path(&word(), &path);
                format!("{base}{path}{}", own("?", ""))
            }
            Some("cookie") => {
                let seconds = lasts.unwrap_or_default().as_secs();
                let covered = cookie_path(grant.pattern.unwrap_or(&path));
                let pair = format!("{}={}", credential::COOKIE, word());
                format!(
                    "{pair}; Path={covered}; Max-Age={seconds}; Secure; HttpOnly; SameSite=None"
                )
            }
            _ => format!("{base}{path}?{}{parameters}", own("", "&")),
        });
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

/// The key that signs.
enum Key {
    Shared {
        signer: Signer,
        file: PathBuf,
        as_token: bool,
    },
    /// PKCS #8, DER.
    Private(Vec<u8>),
}

impl Key {
    fn load(arguments: &ArgMatches) -> Result<Self, (u8, String)> {
        if let Some(file) = arguments.get_one::<PathBuf>("private-key-file") {
            let wrong = |error: pem::Error| (1, format!("{}: {error}", file.display()));
            let key = PrivatePkcs8KeyDer::from_pem_file(file).map_err(wrong)?;
            return Ok(Self::Private(key.secret_pkcs8_der().to_vec()));
        }
        let Some(file) = arguments.get_one::<PathBuf>("keys-file") else {
            return Err((EXIT_USAGE, "--keys-file is missing".to_owned()));
        };
        let keys = text_file::read(file, MAX_FILE_BYTES)
            .map_err(|error| (1, format!("{} can not be read: {error}", file.display())))?;
        let signer = signed_url_keys::parse(&keys)
            .map_err(|error| (1, format!("{}: {error}", file.display())))?;
        Ok(Self::Shared {
            signer,
            file: file.clone(),
            as_token: arguments.get_flag("token"),
        })
    }

    /// A Common Access Token in place of the signature's parameters.
    fn cat(&self, path: &str, grant: &Grant<'_>) -> Result<String, (u8, String)> {
        let claims = cat::Claims::of(path, grant).ok_or_else(|| {
            let message = "--path of a Common Access Token has one * at most";
            (EXIT_USAGE, message.to_owned())
        })?;
        let (id, token) = (grant.key_id, |token| format!("{TOKEN}={token}"));
        let wrong = |why: String| move || (1, why);
        match self {
            Self::Private(key) => access_token::sign_cat_with_private_key(key, id, &claims)
                .map(token)
                .ok_or_else(wrong("the private key is not P-256".to_owned())),
            Self::Shared { signer, file, .. } => signer
                .cat(&claims, grant)
                .map(token)
                .ok_or_else(wrong(format!("{} has no key {id:?}", file.display()))),
        }
    }

    /// The signature's parameters.
    fn sign(&self, path: &str, query: &str, grant: &Grant<'_>) -> Result<String, (u8, String)> {
        let token = |token| format!("{TOKEN}={token}");
        match self {
            Self::Private(key) => {
                let claims = Claims::of(path, grant);
                let signed = access_token::sign_with_private_key(key, grant.key_id, &claims);
                let wrong = "the private key is neither RSA nor P-256";
                signed.map(token).ok_or((1, wrong.to_owned()))
            }
            Self::Shared {
                signer,
                file,
                as_token,
            } => {
                let signed = if *as_token {
                    signer.token(path, grant).map(token)
                } else {
                    signer.parameters(path, query, grant)
                };
                signed.ok_or_else(|| {
                    let (id, file) = (grant.key_id, file.display());
                    (1, format!("{file} has no key {id:?}"))
                })
            }
        }
    }
}

/// The path to which a cookie for these objects is limited.
fn cookie_path(pattern: &str) -> &str {
    let fixed = pattern.split('*').next().unwrap_or_default();
    match fixed.rfind('/') {
        Some(end) => &fixed[..=end],
        None => "/",
    }
}

/// Splits a URL into the part before the path, the path as an edge normalises it, and the query.
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
            assert_eq!(
                signer.verify(path, query, None, client, 1_059).unwrap(),
                rest
            );
            assert!(signer.verify(path, query, None, client, 1_060).is_err());
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
    fn a_ladder_in_each_place() {
        let signer = signed_url_keys::parse(KEYS).unwrap();
        let client = IpAddr::from(Ipv4Addr::LOCALHOST);
        let holds = |path: &str, query: &str, word: Option<&str>| {
            signer.verify(path, query, word, client, 1_000).is_ok()
        };
        for token in [&[][..], &["--token"], &["--cat"]] {
            let sign_to = |place: &str| {
                let options = [
                    "https://edge/films/a/master.m3u8?x=1",
                    "--path=/films/a/*",
                    place,
                ];
                sign(&[&options, token].concat()).unwrap()
            };
            let url = sign_to("--place=query");
            let (_, query) = url.split_once('?').unwrap();
            assert!(query.starts_with("x=1&cc-"), "{url}");
            assert!(holds("/films/a/720p/1.m4s", query, None));
            assert!(!holds("/films/b/720p/1.m4s", query, None));
            let url = sign_to("--place=segment");
            let path = url.strip_prefix("https://edge").unwrap();
            let (path, query) = path.split_once('?').unwrap();
            let (path, word) = credential::split_path(path);
            assert_eq!((path, query), ("/films/a/master.m3u8", "x=1"));
            assert!(holds("/films/a/720p/1.m4s", "", word));
            let cookie = sign_to("--place=cookie");
            assert!(
                cookie.contains("; Path=/films/a/; Max-Age=3600; Secure"),
                "{cookie}"
            );
            let word = cookie.split(['=', ';']).nth(1);
            assert!(holds("/films/a/720p/1.m4s", "", word));
        }
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
