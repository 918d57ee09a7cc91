#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::*;

#[derive(Default)]
struct Around {
    variables: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static str>,
}

impl Surroundings for Around {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(ToString::to_string)
    }

    fn file(&self, path: &Path) -> Option<String> {
        self.files.get(path.to_str()?).map(ToString::to_string)
    }
}

fn shown(text: &str, around: &Around) -> String {
    match read(text, around) {
        Ok(parameters) => parameters
            .iter()
            .map(|(keyword, value)| format!("{keyword}={value}"))
            .collect::<Vec<_>>()
            .join(" "),
        Err(reason) => format!("error: {reason}"),
    }
}

#[test]
fn both_forms_say_the_same() {
    for (text, expected) in [
        ("postgres://", ""),
        ("postgresql://h", "host=h"),
        (
            "postgres://u:p%40s@h:5433/db",
            "dbname=db host=h password=p@s port=5433 user=u",
        ),
        (
            "host=h port=5433 dbname=db user=u password=p@s",
            "dbname=db host=h password=p@s port=5433 user=u",
        ),
        ("host = h  dbname = 'my db'", "dbname=my db host=h"),
        (r"password='it\'s \\ it'", r"password=it's \ it"),
        (
            "postgres://a:1,b:2/db?target_session_attrs=any",
            "dbname=db host=a,b port=1,2 target_session_attrs=any",
        ),
        ("postgres://a,b:2/db", "dbname=db host=a,b port=,2"),
        ("postgres://[::1]:5433/db", "dbname=db host=::1 port=5433"),
        (
            "postgres:///db?host=/run/postgresql",
            "dbname=db host=/run/postgresql",
        ),
        (
            "postgres://%2Frun%2Fpostgresql/db",
            "dbname=db host=/run/postgresql",
        ),
        (
            "postgres://h/db?sslmode=verify-full&sslrootcert=/ca.pem",
            "dbname=db host=h sslmode=verify-full sslrootcert=/ca.pem",
        ),
        (
            "host=h sslmode=verify-ca sslrootcert=/ca.pem",
            "host=h sslmode=verify-ca sslrootcert=/ca.pem",
        ),
        (
            "postgres://h/db?options=-c%20work_mem%3D1MB+x",
            "dbname=db host=h options=-c work_mem=1MB+x",
        ),
        (
            "postgres://h/db?ssl=true",
            "dbname=db host=h sslmode=require",
        ),
        (
            "postgres://h/db?sslmodus=require",
            "error: sslmodus is not a connection parameter of libpq",
        ),
        (
            "host=h sslcrl=/x",
            "error: sslcrl is not supported: leave it out",
        ),
        (
            "host",
            "error: expected keyword=value pairs, or postgres://user@host/database",
        ),
        ("host='h", "error: a quoted value has no closing quote"),
        (
            "postgres://u:pass/word@h/db",
            "error: a / or ? in a password is percent-encoded in a URL: %2F, %3F",
        ),
        (
            "postgres://u:pass?word@h/db",
            "error: a / or ? in a password is percent-encoded in a URL: %2F, %3F",
        ),
        (
            "postgres://u:p@ss?word@h/db",
            "error: what follows ? is keyword=value; in a password, ? is percent-encoded: %3F",
        ),
        (
            "postgres://a:1,b:2/db?user=u@x",
            "dbname=db host=a,b port=1,2 user=u@x",
        ),
        (
            "postgres://[::1/db",
            "error: an IPv6 address needs a closing ]",
        ),
    ] {
        assert_eq!(shown(text, &Around::default()), expected, "{text}");
    }
}

#[test]
fn the_string_wins_over_the_service_and_that_over_the_environment() {
    let around = Around {
        variables: HashMap::from([
            ("HOME", "/home/me"),
            ("PGSERVICE", "films"),
            ("PGHOST", "of-environment"),
            ("PGUSER", "of-environment"),
            ("PGPASSWORD", "secret"),
        ]),
        files: HashMap::from([(
            "/home/me/.pg_service.conf",
            "# services\n[other]\nhost=no\n\n[films]\nhost=of-service\nport=5433\n\
             user=of-service\n[last]\nport=1\n",
        )]),
    };
    assert_eq!(
        shown("user=of-string", &around),
        "host=of-service password=secret port=5433 service=films user=of-string"
    );
    assert_eq!(
        shown("service=none", &around),
        "error: no definition of service \"none\" is found"
    );
}

#[test]
fn a_password_is_found_in_its_file() {
    let files = HashMap::from([(
        "/home/me/.pgpass",
        "# comment\nother:*:*:*:no\nh:5433:db:u:by\\:line\n*:5432:*:u:any\nlocalhost:*:*:*:local\n",
    )]);
    let around = Around {
        variables: HashMap::from([("HOME", "/home/me")]),
        files,
    };
    for (text, password) in [
        ("host=h port=5433 dbname=db user=u", "by:line"),
        ("host=elsewhere dbname=db user=u", "any"),
        ("host=/run user=x", "local"),
        ("host=h user=u password=given", "given"),
    ] {
        let parameters = read(text, &around).unwrap();
        assert_eq!(parameters["password"], password, "{text}");
    }
    let none = read("host=h port=1 user=u", &around).unwrap();
    assert!(!none.contains_key("password"));
    let elsewhere = Around {
        variables: HashMap::from([("PGPASSFILE", "/secrets/pgpass")]),
        files: HashMap::from([("/secrets/pgpass", "*:*:*:*:p")]),
    };
    assert_eq!(read("host=h", &elsewhere).unwrap()["password"], "p");
}
