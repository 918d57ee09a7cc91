//! Certificates and keys that are renewed while an edge runs: they are checked every 30 s, and no
//! connection is lost.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chunkcache_tests::authority::{Authority, Identity, curl_trusting};
use chunkcache_tests::http::Call;
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, ClusterOptions, KIB, Object, content, eventually};

/// Two checks of the files, on a busy machine.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(90);

fn one_edge(cluster: &mut Cluster, arguments: Vec<String>) {
    cluster.edges[0].arguments.extend(arguments);
    cluster.start_prepared();
}

fn prepare() -> (Cluster, PathBuf) {
    let cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    });
    let place = cluster.directory.path().to_owned();
    (cluster, place)
}

fn curl(ca: &Path, url: &str) -> Option<Vec<u8>> {
    curl_trusting(ca, url).ok()
}

#[test]
fn a_renewed_certificate_is_taken_up_while_running() {
    let (mut cluster, place) = prepare();
    let folder = |name: &str| {
        let folder = place.join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let (old, new) = (
        Authority::new(&folder("old")),
        Authority::new(&folder("new")),
    );
    let Identity { cert, key } = old.issue("edge", "IP:127.0.0.1");
    let options = vec![
        format!("--tls-cert={}", cert.display()),
        format!("--tls-key={}", key.display()),
    ];
    one_edge(&mut cluster, options);
    let body = content::bytes(1, 0, 10 * KIB);
    let target = cluster.put("/x", Object::generated(1, 10 * KIB));
    let url = format!("https://{}{target}", cluster.edge().http);
    assert_eq!(curl(&old.pem(), &url).as_ref(), Some(&body));
    assert_eq!(curl(&new.pem(), &url), None);
    // An invalid file changes nothing.
    std::fs::write(&cert, "half of a file").unwrap();
    assert_eq!(curl(&old.pem(), &url).as_ref(), Some(&body));
    let renewed = new.issue("edge", "IP:127.0.0.1");
    std::fs::copy(&renewed.key, &key).unwrap();
    std::fs::copy(&renewed.cert, &cert).unwrap();
    eventually("the new certificate is shown", TAKEN_UP_WITHIN, || {
        curl(&new.pem(), &url).filter(|came| *came == body)
    });
    assert_eq!(curl(&old.pem(), &url), None, "the old one is shown as well");
}

#[test]
fn keys_of_signed_urls_rotate_while_running() {
    let (mut cluster, place) = prepare();
    let file = place.join("keys");
    let line = |id: &str| format!("{id} secret-of-{id}-0123456789\n");
    std::fs::write(&file, line("k1")).unwrap();
    let option = format!("--signed-url-keys-file={}", file.display());
    one_edge(&mut cluster, vec![option]);
    let target = cluster.put("/x", Object::generated(1, 10 * KIB));
    // Signed with the signer's own file: it has the new key before the edge does.
    let both = place.join("both");
    std::fs::write(&both, line("k1") + &line("k2")).unwrap();
    let sign = |key: &str| {
        let output = Command::new(program("cache-edge"))
            .args(["sign", &target, "--key", key, "--keys-file"])
            .arg(&both)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (first, second) = (sign("k1"), sign("k2"));
    let address = cluster.edge().http;
    let status = |url: &str| Call::get(url).send(address).status;
    assert_eq!((status(&first), status(&second)), (200, 403));
    std::fs::write(&file, line("k1") + &line("k2")).unwrap();
    eventually("both keys count", TAKEN_UP_WITHIN, || {
        (status(&second) == 200).then_some(())
    });
    assert_eq!(status(&first), 200, "the old key holds beside the new one");
    std::fs::write(&file, line("k2")).unwrap();
    eventually("the old key is over", TAKEN_UP_WITHIN, || {
        (status(&first) == 403).then_some(())
    });
    assert_eq!(status(&second), 200);
    assert_eq!(
        cluster.origin.hits("/x").len(),
        1,
        "one object, however signed"
    );
}
