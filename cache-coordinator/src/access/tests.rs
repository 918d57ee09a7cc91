#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Duration};

use http::HeaderValue;
use rustls::pki_types::pem::PemObject as _;
use tokio_util::sync::CancellationToken;

use super::{policy::Need, *};

const TOKENS: &str = "# whose is what\n\
    viewer wall viewer-0123456789\n\
    service player-api service-0123456789\r\n\
    \toperator  alice  sha256:0F31EA8FB02A1D2E4F39B2C6D02D1CAA0A7A1E0B1D2C3B4A5968778695A4B3C2\n\
    edge edge-a edge-0123456789abc\n";

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn access(text: &str) -> Access {
    Access::load(Some(file(text).path().to_owned())).unwrap()
}

fn identify(access: &Access, header: &str) -> Result<Caller, Denied> {
    access.identify(Some(&HeaderValue::from_str(header).unwrap()), None)
}

fn certificate() -> Arc<CertificateDer<'static>> {
    // Valid for localhost and 127.0.0.1.
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/service-kit/tests/tls/server-a.pem");
    Arc::new(CertificateDer::from_pem_file(path).unwrap())
}

#[test]
fn a_token_has_its_role_and_name() {
    let access = access(TOKENS);
    for (token, expected, whose) in [
        ("viewer-0123456789", Role::Viewer, "wall"),
        ("service-0123456789", Role::Service, "player-api"),
        ("edge-0123456789abc", Role::Edge, "edge-a"),
    ] {
        for scheme in ["Bearer", "bearer"] {
            match identify(&access, &format!("{scheme} {token}")).unwrap() {
                Caller::Token { role, name } => {
                    assert_eq!((role, name.as_ref()), (expected, whose));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_digest_stands_for_its_token() {
    // printf operator-0123456789 | sha256sum
    let digest = Sha256Text::of("operator-0123456789");
    let access = access(&format!("operator alice sha256:{digest}\n"));
    let caller = identify(&access, "Bearer operator-0123456789").unwrap();
    assert!(caller.require(Need::Operate, "it").is_ok());
    // The line in the file is not a token.
    assert!(identify(&access, &format!("Bearer sha256:{digest}")).is_err());
}

struct Sha256Text;
impl Sha256Text {
    fn of(text: &str) -> String {
        use sha2::{Digest as _, Sha256};
        let sum = Sha256::digest(text.as_bytes());
        sum.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[test]
fn what_is_wrong_with_a_header_is_said_and_the_token_is_not() {
    let access = access(TOKENS);
    for (header, reason) in [
        ("Bearer viewer-01234567890", "TOKEN_UNKNOWN"),
        ("Bearer viewer-012345678", "TOKEN_UNKNOWN"),
        ("Basic viewer-0123456789", "TOKEN_MALFORMED"),
        ("Bearer", "TOKEN_MALFORMED"),
        ("Bearer ", "TOKEN_MALFORMED"),
    ] {
        let denied = identify(&access, header).unwrap_err();
        assert_eq!(denied.reason, reason, "{header}");
        assert_eq!(denied.refusal, Refusal::Unauthenticated);
        assert!(!denied.message.contains("0123"), "{denied}");
    }
    let nobody = access.identify(None, None).unwrap();
    let denied = nobody.require(Need::See, "GetStatus").unwrap_err();
    assert_eq!(denied.refusal, Refusal::Unauthenticated);
    assert!(
        denied.message.contains("GetStatus")
            && denied.message.contains("viewer, service or operator")
    );
}

#[test]
fn roles_nest_and_edges_stand_apart() {
    let may =
        |role: Role| [Need::See, Need::Use, Need::Operate, Need::BeEdge].map(|need| role.may(need));
    assert_eq!(may(Role::Viewer), [true, false, false, false]);
    assert_eq!(may(Role::Service), [true, true, false, false]);
    assert_eq!(may(Role::Operator), [true, true, true, false]);
    assert_eq!(may(Role::Edge), [false, false, false, true]);
    let viewer = Caller::Token {
        role: Role::Viewer,
        name: "wall".into(),
    };
    let denied = viewer.require(Need::Operate, "DrainEdge").unwrap_err();
    assert_eq!(denied.refusal, Refusal::Forbidden);
    assert_eq!(
        denied.message,
        "token \"wall\" has the role viewer, and DrainEdge needs operator"
    );
}

/// Each method of the public services is listed, so none requires an operator only because it was
/// forgotten.
#[test]
fn every_method_is_listed() {
    use prost::Message as _;
    let set =
        prost_types::FileDescriptorSet::decode(chunkcache_proto::FILE_DESCRIPTOR_SET).unwrap();
    let operators: Vec<String> = set
        .file
        .iter()
        .flat_map(|file| {
            file.service
                .iter()
                .map(move |service| (file.package(), service))
        })
        .flat_map(|(package, service)| {
            let path = move |method: &str| format!("/{package}.{}/{method}", service.name());
            service.method.iter().map(move |method| path(method.name()))
        })
        .filter(|path| Need::of_method(path) == Need::Operate)
        .collect();
    let expected = [
        "PutSource",
        "RemoveSource",
        "DrainEdge",
        "ForgetEdge",
        "VerifyEdge",
        "StepDown",
    ];
    let expected = expected.map(|method| format!("/chunkcache.v1.CacheService/{method}"));
    assert_eq!(operators, expected);
    assert_eq!(
        Need::of_method("/chunkcache.v1.EdgeService/Session"),
        Need::BeEdge
    );
    for odd in ["", "/", "GetStatus", "/x.Y/Unheard"] {
        assert_eq!(Need::of_method(odd), Need::Operate, "{odd}");
    }
}

#[test]
fn an_edge_speaks_for_itself_alone() {
    let edge = Caller::Token {
        role: Role::Edge,
        name: "edge-a".into(),
    };
    assert!(edge.speaks_for("edge-a", "http://anywhere:1").is_ok());
    let denied = edge.speaks_for("edge-b", "http://edge-a:1").unwrap_err();
    assert_eq!(
        (denied.refusal, denied.reason),
        (Refusal::Forbidden, "NOT_THIS_EDGE")
    );
    let operator = Caller::Token {
        role: Role::Operator,
        name: "edge-a".into(),
    };
    assert_eq!(
        operator.speaks_for("edge-a", "").unwrap_err().reason,
        "ROLE_MISSING"
    );
    assert_eq!(
        Caller::Nobody.speaks_for("edge-a", "").unwrap_err().reason,
        "TOKEN_MISSING"
    );
    assert!(
        Caller::Anyone { certificate: None }
            .speaks_for("edge-a", "")
            .is_ok()
    );
}

#[test]
fn a_certificate_names_its_edge_and_gives_no_role() {
    let with_tokens = access(TOKENS).identify(None, Some(certificate())).unwrap();
    let without = Access::default()
        .identify(None, Some(certificate()))
        .unwrap();
    for caller in [&with_tokens, &without] {
        assert!(
            caller
                .speaks_for("localhost", "https://elsewhere:1")
                .is_ok()
        );
        for (name, url) in [
            ("edge-b", "https://localhost:1"),
            ("local", "https://localhost:1"),
            ("edge-b", "https://edge-b.localhost:1"),
            ("edge-b", "not a URL"),
        ] {
            let denied = caller.speaks_for(name, url).unwrap_err();
            assert_eq!(denied.reason, "NOT_THIS_EDGE", "{name} {url}");
        }
    }
    assert!(with_tokens.require(Need::BeEdge, "it").is_ok());
    assert_eq!(
        with_tokens.require(Need::See, "it").unwrap_err().reason,
        "TOKEN_MISSING"
    );
    assert!(without.require(Need::Operate, "it").is_ok());
}

#[test]
fn files_that_can_not_be_used_say_where() {
    for (text, problem) in [
        ("", "has no token in it"),
        ("# nothing\n\n", "has no token in it"),
        ("viewer wall", "line 1: expected a role, a name and a token"),
        (
            "\nboss x 0123456789abcdef",
            "line 2: expected the role viewer",
        ),
        ("edge Edge 0123456789abcdef", "line 1: a name is"),
        ("viewer wall secret-short", "at least 16"),
        ("viewer wall 0123456789abc,def", "a token is letters"),
        ("viewer wall sha256:12", "expected 64 hexadecimal digits"),
        (
            "viewer a 0123456789abcdef\nedge b 0123456789abcdef",
            "line 2: the same token",
        ),
    ] {
        let error = Access::load(Some(file(text).path().to_owned()))
            .err()
            .unwrap();
        let message = error.to_string();
        assert!(message.contains(problem), "{text:?}: {message}");
        assert!(
            !message.contains("0123") && !message.contains("secret"),
            "{message}"
        );
    }
    let absent = Access::load(Some("/nowhere/tokens".into())).err().unwrap();
    assert!(absent.to_string().contains("/nowhere/tokens"));
}

#[tokio::test]
async fn a_token_is_given_out_and_taken_back_without_a_restart() {
    let file = file("viewer a old-0123456789abc\n");
    let tokens = Tokens::load(file.path().to_owned()).unwrap();
    let stop = CancellationToken::new();
    let watching = tokio::spawn(tokens.clone().watch(Duration::from_millis(1), stop.clone()));
    assert!(tokens.find("old-0123456789abc").is_some());
    std::fs::write(file.path(), "viewer a new-0123456789abc\n").unwrap();
    while tokens.find("new-0123456789abc").is_none() {
        tokio::task::yield_now().await;
    }
    assert!(tokens.find("old-0123456789abc").is_none());
    // An invalid file leaves the old tokens in place.
    drop(file);
    stop.cancel();
    watching.await.unwrap();
    assert!(tokens.find("new-0123456789abc").is_some());
}
