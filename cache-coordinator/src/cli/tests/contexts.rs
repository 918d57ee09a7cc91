//! Contexts: which one a command uses, and how they are stored.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::globals::Output;
use super::*;

struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Home(tempfile::tempdir().unwrap());
        for name in ["token", "other-token", "ca.pem"] {
            fs::write(home.file(name), name).unwrap();
        }
        home
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn contexts(&self) -> PathBuf {
        self.file(".config/chunkcache/contexts.toml")
    }

    /// A variable of an environment with this home and one more variable.
    fn variable<'a>(
        &'a self,
        (name, value): (&'a str, &'a str),
    ) -> impl Fn(&str) -> Option<String> + 'a {
        move |asked| match asked {
            "HOME" => Some(self.0.path().to_str().unwrap().to_owned()),
            _ => (asked == name).then(|| value.to_owned()),
        }
    }

    fn context(&self, arguments: &[&str]) -> Result<String, CliError> {
        let line = [&["cache-coordinator", "context"], arguments].concat();
        let matches = command().try_get_matches_from(line).unwrap();
        let mut out = Vec::new();
        let mut printer = Printer::new(Output::Table, &mut out);
        let (_, arguments) = matches.subcommand().unwrap();
        context::run(arguments, self.variable(("", "")), &mut printer)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn globals(&self, arguments: &[&str], variable: (&str, &str)) -> Result<Globals, CliError> {
        let line = [&["cache-coordinator"], arguments, &["status"]].concat();
        let matches = command().try_get_matches_from(line).unwrap();
        Globals::read(&matches, self.variable(variable))
    }

    /// The endpoint, the token and the CA that a command would use.
    fn used(&self, arguments: &[&str], variable: (&str, &str)) -> (String, String, String) {
        let globals = self.globals(arguments, variable).unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        (
            globals.endpoints.join(","),
            globals
                .token
                .map_or(String::new(), |it| it.expose().to_owned()),
            globals.ca.as_deref().map_or(String::new(), name),
        )
    }

    fn with_two() -> Self {
        let home = Home::new();
        let (token, ca) = (home.file("token"), home.file("ca.pem"));
        let add = ["add", "prod", "--endpoint=https://a:1,https://b:1"];
        let files = [
            format!("--token-file={}", token.display()),
            format!("--ca={}", ca.display()),
        ];
        home.context(&[&add[..], &[&files[0], &files[1]]].concat())
            .unwrap();
        home.context(&["add", "lab", "--endpoint=http://lab:1"])
            .unwrap();
        home
    }
}

const NONE: (&str, &str) = ("", "");

fn used(endpoint: &str, token: &str, ca: &str) -> (String, String, String) {
    (endpoint.to_owned(), token.to_owned(), ca.to_owned())
}

#[test]
fn what_is_given_goes_before_the_context() {
    let home = Home::with_two();
    let prod = used("https://a:1,https://b:1", "token", "ca.pem");
    let default = used("http://127.0.0.1:7400", "", "");
    assert_eq!(home.used(&[], NONE), default, "none is in use");
    assert_eq!(home.used(&["--context=prod"], NONE), prod);
    home.context(&["use", "prod"]).unwrap();
    assert_eq!(home.used(&[], NONE), prod);
    let lab = used("http://lab:1", "", "");
    let by_environment = ("CACHE_COORDINATOR_CONTEXT", "lab");
    assert_eq!(home.used(&[], by_environment), lab);
    assert_eq!(home.used(&["--context=prod"], by_environment), prod);
    let token = format!("--token-file={}", home.file("other-token").display());
    let with_token = used("https://a:1,https://b:1", "other-token", "ca.pem");
    assert_eq!(home.used(&[&token], NONE), with_token);

    // The token of the context in use is not sent to another endpoint.
    let other = used("http://x:1", "", "");
    assert_eq!(home.used(&["--endpoint=http://x:1"], NONE), other);
    let by_environment = ("CACHE_COORDINATOR_ENDPOINT", "http://x:1");
    assert_eq!(home.used(&[], by_environment), other);
    // A command for a named context does not go there either, nor is the environment's token sent
    // to the context.
    assert_eq!(home.used(&["--context=prod"], by_environment), prod);
    let token = home.file("other-token").display().to_string();
    let by_environment = ("CACHE_COORDINATOR_TOKEN_FILE", token.as_str());
    assert_eq!(home.used(&["--context=prod"], by_environment), prod);
    assert_eq!(home.used(&["--context=lab"], by_environment), lab);
    // Unless both are requested.
    let both = used("http://x:1", "token", "ca.pem");
    assert_eq!(
        home.used(&["--context=prod", "--endpoint=http://x:1"], NONE),
        both
    );
}

#[test]
fn contexts_are_listed_and_removed() {
    let home = Home::with_two();
    home.context(&["use", "lab"]).unwrap();
    let listed = home.context(&["list"]).unwrap();
    assert!(listed.contains("lab   yes      http://lab:1"), "{listed}");
    assert!(
        listed.contains("prod  no       https://a:1,https://b:1"),
        "{listed}"
    );
    home.context(&["remove", "lab"]).unwrap();
    assert!(!home.context(&["list"]).unwrap().contains("lab"));
    assert_eq!(home.used(&[], NONE).0, "http://127.0.0.1:7400");
}

#[test]
fn of_two_that_write_at_once_neither_is_lost() {
    let home = Home::new();
    let add = |from: u32| {
        for number in from..from + 20 {
            let name = format!("c{number}");
            home.context(&["add", &name, "--endpoint=http://x:1"])
                .unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| add(0));
        scope.spawn(|| add(20));
    });
    let listed = home.context(&["list"]).unwrap();
    assert_eq!(listed.matches("http://x:1").count(), 40, "{listed}");
}

#[test]
fn the_file_is_the_users_own_and_a_link_to_it_stays() {
    let home = Home::with_two();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.contexts()), 0o600);
    assert_eq!(mode(home.contexts().parent().unwrap()), 0o700);
    let elsewhere = home.file("elsewhere.toml");
    fs::rename(home.contexts(), &elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o644)).unwrap();
    symlink(&elsewhere, home.contexts()).unwrap();
    home.context(&["remove", "lab"]).unwrap();
    assert!(fs::symlink_metadata(home.contexts()).unwrap().is_symlink());
    assert_eq!(mode(&elsewhere), 0o600);
    assert!(!fs::read_to_string(&elsewhere).unwrap().contains("lab"));
    let beside = fs::read_dir(elsewhere.parent().unwrap()).unwrap();
    let left: Vec<_> = beside
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".toml."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn errors_name_what_is_wrong_and_which_contexts_there_are() {
    let home = Home::with_two();
    let refused = |result: Result<String, CliError>| message(result.unwrap_err());
    let of = |arguments: &[&str]| message(home.globals(arguments, NONE).unwrap_err());
    let (status, text) = of(&["--context=staging"]);
    assert_eq!(status, 2);
    assert!(
        text.contains("\"staging\"") && text.contains("there are: lab, prod"),
        "{text}"
    );
    assert!(refused(home.context(&["use", "x"])).1.contains("there are"));
    let (_, text) = refused(Home::new().context(&["use", "x"]));
    assert!(text.contains("there is none"), "{text}");
    let (_, text) = refused(home.context(&["add", "x"]));
    assert!(text.contains("--endpoint is missing"), "{text}");
    for wrong in ["--endpoint=lab:1", "--ca=/absent", "--cert=/absent"] {
        let line = ["add", "x", "--endpoint=http://x:1", wrong];
        let line = if wrong.starts_with("--endpoint") {
            &line[..2]
        } else {
            &line[..3]
        };
        let (status, text) = refused(home.context(&[line, &[wrong]].concat()));
        let option = wrong.split('=').next().unwrap();
        assert!(status == 2 && text.contains(option), "{wrong}: {text}");
    }
    fs::write(home.contexts(), "current = 7\n").unwrap();
    let (status, text) = of(&[]);
    assert_eq!(status, 2);
    assert!(
        text.contains("contexts.toml") && text.contains("line 1"),
        "{text}"
    );
    // The file is not read if the endpoint is given.
    assert!(home.globals(&["--endpoint=http://x:1"], NONE).is_ok());
}
