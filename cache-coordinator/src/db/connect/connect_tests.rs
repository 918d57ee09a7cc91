#![allow(clippy::unwrap_used)]

use super::*;

struct Nothing;

impl Surroundings for Nothing {
    fn variable(&self, name: &str) -> Option<String> {
        (name == "USER").then(|| "me".to_owned())
    }

    fn file(&self, _path: &Path) -> Option<String> {
        None
    }
}

fn encryption(text: &str) -> Result<(Encryption, Trust), String> {
    encryption_of(&string::read(text, &Nothing).unwrap(), &Nothing)
}

#[test]
fn sslmode_is_libpqs_table() {
    let file = || Roots::File("/ca.pem".into());
    for (text, expected) in [
        ("", (Encryption::Prefer, Trust::Anyone)),
        ("sslmode=disable", (Encryption::Disable, Trust::Anyone)),
        ("sslmode=allow", (Encryption::Allow, Trust::Anyone)),
        ("sslmode=prefer", (Encryption::Prefer, Trust::Anyone)),
        ("sslmode=require", (Encryption::Require, Trust::Anyone)),
        (
            "sslmode=require sslrootcert=/ca.pem",
            (Encryption::Require, Trust::Authority(file())),
        ),
        (
            "sslmode=verify-ca sslrootcert=/ca.pem",
            (Encryption::Require, Trust::Authority(file())),
        ),
        (
            "sslmode=verify-full sslrootcert=/ca.pem",
            (Encryption::Require, Trust::Host(file())),
        ),
        (
            "sslrootcert=system",
            (Encryption::Require, Trust::Host(Roots::System)),
        ),
        (
            "postgres://a,b/db?sslmode=verify-full&sslrootcert=system",
            (Encryption::Require, Trust::Host(Roots::System)),
        ),
    ] {
        assert_eq!(encryption(text).unwrap(), expected, "{text}");
    }
    for (text, expected) in [
        (
            "sslmode=verify-full",
            "give sslrootcert=FILE, or sslrootcert=system",
        ),
        (
            "sslmode=require sslrootcert=system",
            "give sslmode=verify-full",
        ),
        ("sslmode=maybe", "none of disable"),
        ("sslnegotiation=direct", "give sslmode=require"),
    ] {
        let reason = encryption(text).unwrap_err();
        assert!(reason.contains(expected), "{text}: {reason}");
    }
}

#[test]
fn parameters_reach_the_driver() {
    let config = |text: &str| {
        let parameters = string::read(text, &Nothing).unwrap();
        config_of(&parameters, &Nothing)
    };
    let two = config("postgres://a:1,b:2/db?connect_timeout=1").unwrap();
    assert_eq!(two.get_hosts().len(), 2);
    assert_eq!(two.get_ports(), [1, 2]);
    assert_eq!(two.get_user(), Some("me"));
    assert_eq!(two.get_connect_timeout(), Some(&Duration::from_secs(2)));
    assert_eq!(
        two.get_target_session_attrs(),
        TargetSessionAttrs::ReadWrite
    );
    let one = config("host=a options='-c work_mem=1MB'").unwrap();
    assert_eq!(one.get_target_session_attrs(), TargetSessionAttrs::Any);
    assert_eq!(one.get_dbname(), Some("me"));
    assert_eq!(one.get_options(), Some("-c work_mem=1MB"));
    for (text, expected) in [
        ("host=a,b,c port=1,2", "2 ports do not match 3 hosts"),
        ("host=a port=x", "is not a port"),
        (
            "host=a target_session_attrs=standby",
            "needs a server that takes writes",
        ),
        ("host=a gssencmode=require", "is not supported"),
    ] {
        let reason = config(text).unwrap_err();
        assert!(reason.contains(expected), "{text}: {reason}");
    }
}
