//! One signature for a whole ladder: in the query, in the path and in a cookie, in our own form and
//! as a JSON Web Token or a Common Access Token, with keys that are replaced while the edge runs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, ClusterOptions, Object, content, eventually};

const FILES: [&str; 3] = ["/a/master.m3u8", "/a/720p/1.m4s", "/a/720p/2.m4s"];

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

/// Base64url, unpadded (RFC 4648, 5).
fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letters = bytes.chunks(3).flat_map(|three| {
        let mut bits = [0; 4];
        bits[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(bits);
        (0..=three.len()).map(move |at| LETTERS[(bits >> (18 - 6 * at) & 63) as usize])
    });
    letters.map(char::from).collect()
}

/// A private key's file, and its public half as a JWK.
fn key(place: &Path, id: &str, algorithm: &[&str]) -> (String, String) {
    let file = place.join(format!("{id}.pem"));
    let file = file.to_str().unwrap();
    openssl(&[&["genpkey", "-out", file], algorithm].concat());
    let jwk = if algorithm.contains(&"RSA") {
        let modulus = openssl(&["rsa", "-in", file, "-noout", "-modulus"]);
        let modulus = String::from_utf8(modulus).unwrap();
        let digits = modulus.trim().strip_prefix("Modulus=").unwrap();
        let bytes: Vec<u8> = (0..digits.len() / 2)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let n = base64url(&bytes);
        format!(r#"{{"kty":"RSA","kid":"{id}","n":"{n}","e":"AQAB"}}"#)
    } else {
        // The public key's DER ends with the uncompressed point.
        let der = openssl(&["pkey", "-in", file, "-pubout", "-outform", "DER"]);
        let point = &der[der.len() - 64..];
        let (x, y) = (base64url(&point[..32]), base64url(&point[32..]));
        format!(r#"{{"kty":"EC","crv":"P-256","kid":"{id}","x":"{x}","y":"{y}"}}"#)
    };
    (file.to_owned(), jwk)
}

/// The output of `cache-edge sign` for the first file.
fn sign(more: &[&str]) -> String {
    let output = Command::new(program("cache-edge"))
        .args(["sign", "--path=/media/a/*", "/media/a/master.m3u8"])
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{more:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn one_signature_plays_a_ladder() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (keys, jwks, log) = (path("keys"), path("jwks"), path("access.log"));
    fs::write(&keys, "k1 0123456789abcdef0123\n").unwrap();
    let rsa = key(place.path(), "r", &["-algorithm", "RSA"]);
    let curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let elliptic = key(place.path(), "e", &curve);
    let write_set = |keys: &[&str]| {
        let set = format!(r#"{{"keys":[{}]}}"#, keys.join(","));
        fs::write(&jwks, set).unwrap();
    };
    write_set(&[&rsa.1]);
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    });
    cluster.edge_mut().arguments.extend([
        format!("--signed-url-keys-file={keys}"),
        format!("--signed-url-jwks-file={jwks}"),
        format!("--access-log=json:{log}"),
    ]);
    cluster.start_prepared();
    for (number, file) in FILES.iter().enumerate() {
        cluster.put(file, Object::generated(number as u64, 100));
    }
    cluster.put("/b/1.m4s", Object::generated(9, 100));
    let address = cluster.edge().http;
    let ask = |prefix: &str, file: &str, query: &str, cookie: &str| {
        let call = Call::get(&format!("{prefix}/media{file}?{query}"));
        let call = match cookie {
            "" => call,
            cookie => call.header("Cookie", cookie),
        };
        call.send(address)
    };
    let plays = |prefix: &str, query: &str, cookie: &str| {
        for (number, file) in FILES.iter().enumerate() {
            let answer = ask(prefix, file, query, cookie).expect(200);
            assert_eq!(answer.body, content::bytes(number as u64, 0, 100));
        }
        assert_eq!(ask(prefix, "/b/1.m4s", query, cookie).status, 403);
    };
    plays_nothing_unsigned(&cluster);

    let by_secret = [format!("--keys-file={keys}"), "--key=k1".to_owned()];
    let by_rsa = [
        format!("--private-key-file={}", rsa.0),
        "--key=r".to_owned(),
    ];
    let mut secrets = Vec::new();
    for (key, form) in [
        (&by_secret, None),
        (&by_secret, Some("--token")),
        (&by_secret, Some("--cat")),
        (&by_rsa, None),
    ] {
        let sign_to = |place: &str| {
            let mut options = vec![key[0].as_str(), &key[1], place];
            options.extend(form);
            sign(&options)
        };
        let url = sign_to("--place=query");
        let (_, query) = url.split_once('?').unwrap();
        plays("", query, "");
        // A player re-encodes the query, and adds its own parameters.
        let anew = query.replace('/', "%2F").replace('*', "%2A");
        plays("", &format!("{anew}&CMCD=bl%3D2000&_q=1"), "");
        let url = sign_to("--place=segment");
        let prefix = url.split("/media").next().unwrap();
        plays(prefix, "", "");
        let cookie = sign_to("--place=cookie");
        let (cookie, _) = cookie.split_once(';').unwrap();
        plays("", "", &format!("theirs=1; {cookie}"));
        secrets.push(prefix.trim_start_matches("/cc~").to_owned());
        secrets.push(query.rsplit('=').next().unwrap().to_owned());
    }
    // The same objects under all these names; the player's own parameters are sent to the origin.
    assert_eq!(
        cluster.origin.hits(FILES[0]).len(),
        2,
        "with and without _q"
    );

    // Keys are replaced while the edge runs, and a broken set leaves the old ones.
    let by_curve = format!("--private-key-file={}", elliptic.0);
    let url = sign(&[&by_curve, "--key=e"]);
    let (_, query) = url.split_once('?').unwrap();
    assert_eq!(ask("", FILES[0], query, "").status, 403);
    write_set(&[&rsa.1, &elliptic.1]);
    eventually("the new key is known", Duration::from_secs(60), || {
        (ask("", FILES[0], query, "").status == 200).then_some(())
    });
    plays("", query, "");
    let url = sign(&[&by_curve, "--key=e", "--cat"]);
    plays("", url.split_once('?').unwrap().1, "");
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.lines().count() > 30, "{log}");
    for secret in secrets {
        assert!(!log.contains(&secret), "{secret} is logged");
    }
}

#[track_caller]
fn plays_nothing_unsigned(cluster: &Cluster) {
    let address = cluster.edge().http;
    for target in [
        "/media/a/master.m3u8",
        "/media/a/master.m3u8?cc-token=a.b.c",
        "/media/a/master.m3u8?cc-path=/*&cc-key=k1&cc-expires=4102444800&cc-signature=AAAA",
        "/cc~/media/a/master.m3u8",
        "/cc~AAAA/media/a/master.m3u8",
    ] {
        let answer = Call::get(target).send(address);
        assert_eq!(answer.status, 403, "{target}");
    }
    assert!(cluster.origin.all_hits().is_empty());
}
