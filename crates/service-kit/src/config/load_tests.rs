#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{BytesOrPercent, Secret};
use clap::Command;
use std::io::Write as _;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("name", "NAME", Kind::Text, "The edge's name").required(),
    OptionSpec::new("max-size", "BYTES", Kind::Bytes, "Bytes kept"),
    OptionSpec::new("min-free", "SHARE", Kind::BytesOrPercent, "Free space").default("5%"),
    OptionSpec::new("grace", "DURATION", Kind::Duration, "Time to drain").default("30s"),
    OptionSpec::new("fill", "BOOL", Kind::Bool, "Fill in the background").default("true"),
    OptionSpec::new("coordinator", "URL", Kind::Url, "Coordinators").list(),
    OptionSpec::new("token", "TOKEN", Kind::Text, "Bearer token").secret(),
    OptionSpec::new("mode", "MODE", Kind::Choice(&["a", "b"]), "Mode"),
];

fn table() -> Table {
    Table::new("CACHE_EDGE", &[OPTIONS]).foreign_variables(&["CACHE_EDGE_OTHER"])
}

fn load(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, Problems> {
    let command = table().add_to(Command::new("serve").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).unwrap();
    let environment = environment
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    table().load_from(&matches, environment, |_, _| {})
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn defaults_hold_when_nothing_is_given() {
    let settings = load(&["--name", "a"], &[]).unwrap();
    assert_eq!(settings.value::<String>("name"), "a");
    assert_eq!(settings.get::<u64>("max-size"), None);
    assert_eq!(
        settings.value::<BytesOrPercent>("min-free"),
        BytesOrPercent::Percent(5.0)
    );
    assert!(settings.is_set("fill"));
    assert_eq!(settings.origin("fill"), Origin::Default);
    assert!(settings.list::<url::Url>("coordinator").is_empty());
}

#[test]
fn flag_wins_over_environment_over_file() {
    let config = file("max_size = 1\ngrace = \"1s\"\nname = \"file\"");
    let path = config.path().to_str().unwrap();
    let environment = [("CACHE_EDGE_MAX_SIZE", "2"), ("CACHE_EDGE_GRACE", "2s")];
    let settings = load(&["--config", path, "--max-size", "3"], &environment).unwrap();
    assert_eq!(settings.value::<u64>("max-size"), 3);
    assert_eq!(settings.duration("grace"), Some(Duration::from_secs(2)));
    assert_eq!(settings.value::<String>("name"), "file");
    assert_eq!(settings.origin("name"), Origin::File(path.to_owned()));
}

#[test]
fn the_config_file_can_come_from_the_environment() {
    let config = file("name = \"x\"\ncoordinator = [\"http://a:1\", \"http://b:1\"]");
    let settings = load(
        &[],
        &[("CACHE_EDGE_CONFIG", config.path().to_str().unwrap())],
    )
    .unwrap();
    assert_eq!(settings.list::<url::Url>("coordinator").len(), 2);
}

#[test]
fn switches_and_lists() {
    let arguments = [
        "--name=a",
        "--fill=false",
        "--coordinator",
        "http://a:1,http://b:1",
        "--coordinator=http://c:1",
    ];
    let settings = load(&arguments, &[]).unwrap();
    assert!(!settings.is_set("fill"));
    assert_eq!(settings.list::<url::Url>("coordinator").len(), 3);
    assert!(
        load(&["--name", "a", "--fill"], &[("CACHE_EDGE_FILL", "false")])
            .unwrap()
            .is_set("fill")
    );
}

#[test]
fn everything_wrong_is_told_at_once() {
    let config = file("max-sise = 5\nmin-free = \"200%\"\n[nested]\nx = 1");
    let path = config.path().to_str().unwrap();
    let problems = load(
        &[
            "--mode=c",
            "--config",
            path,
            "--max-sizes",
            "7",
            "--grace",
            "soon",
            "--fill=maybe",
            "-x",
            "stray",
        ],
        &[
            ("CACHE_EDGE_MAX_SIZE", "ten"),
            ("CACHE_EDGE_COLOUR", "red"),
            ("CACHE_EDGE_OTHER", "1"),
        ],
    )
    .unwrap_err();
    let text = problems.to_string();
    for expected in [
        "--max-sizes (command line): unknown flag; did you mean max-size?",
        "-x (command line): unknown flag",
        "stray (command line): unexpected argument",
        "--mode (command line): \"c\" is not right: expected one of a, b",
        "--grace (command line): \"soon\" is not right: expected a duration",
        "--fill (command line): \"maybe\" is not right: expected true or false",
        "--max-size (environment variable CACHE_EDGE_MAX_SIZE): \"ten\" is not right",
        "CACHE_EDGE_COLOUR (environment variable CACHE_EDGE_COLOUR): unknown variable",
        "unknown key; did you mean max-size?",
        "--min-free (file ",
        "nested (file ",
        "--name: required",
    ] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    assert_eq!(problems.iter().count(), 12, "{text}");
}

#[test]
fn checks_across_options_are_told_with_the_rest() {
    let matches = table()
        .add_to(Command::new("serve").no_binary_name(true))
        .try_get_matches_from(["--max-size", "1"])
        .unwrap();
    let problems = table()
        .load_from(&matches, [], |settings, problems| {
            if settings.get::<u64>("max-size") == Some(1) && settings.is_set("fill") {
                problems.push("max-size", "conflicts with --fill");
            }
        })
        .unwrap_err();
    assert_eq!(problems.iter().count(), 2);
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let secret = file("hunter2\n");
    let path = secret.path().to_str().unwrap();
    let settings = load(&["--name", "a", "--token-file", path], &[]).unwrap();
    assert_eq!(settings.value::<Secret>("token").expose(), "hunter2");
    assert!(!format!("{settings:?}").contains("hunter2"));
    let both = load(
        &["--name", "a", "--token-file", path, "--token", "hunter2"],
        &[],
    )
    .unwrap_err();
    assert!(
        both.to_string().contains("conflicts with --token-file"),
        "{both}"
    );
    assert!(!both.to_string().contains("hunter2"), "{both}");
    // A flag beats the file form from a weaker place.
    let flag = load(
        &["--name", "a", "--token", "x"],
        &[("CACHE_EDGE_TOKEN_FILE", path)],
    )
    .unwrap();
    assert_eq!(flag.value::<Secret>("token").expose(), "x");
    let missing = load(&["--name", "a", "--token-file", "/nowhere/at/all"], &[]).unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("/nowhere/at/all can not be read"),
        "{missing}"
    );
}

#[test]
fn a_syntax_error_shows_its_place_and_not_its_text() {
    let config = file("name = \"a\"\ntoken = \"hunter2\n");
    let problems = load(&["--config", config.path().to_str().unwrap()], &[]).unwrap_err();
    let text = problems.to_string();
    assert!(text.contains("line 2"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn kubernetes_service_links_are_no_mistake() {
    let environment = [
        ("CACHE_EDGE_SERVICE_HOST", "10.0.0.1"),
        ("CACHE_EDGE_SERVICE_PORT_HTTP", "80"),
        ("CACHE_EDGE_PORT", "tcp://10.0.0.1:80"),
        ("CACHE_EDGE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("CACHE_EDGE_MAX_SIZE", ""),
    ];
    assert!(load(&["--name", "a"], &environment).is_ok());
}

#[test]
fn given_twice_is_a_mistake() {
    assert!(load(&["--name", "a", "--name", "b"], &[]).is_err());
    let config = file("name = \"a\"\nmax-size = 1\nmax_size = 2");
    let problems = load(&["--config", config.path().to_str().unwrap()], &[]).unwrap_err();
    assert!(
        problems.to_string().contains("both spellings"),
        "{problems}"
    );
}

#[test]
fn help_and_reference_name_units_defaults_and_variables() {
    let help = table()
        .add_to(Command::new("serve"))
        .render_long_help()
        .to_string();
    for expected in [
        "--min-free <SHARE>",
        "[default: 5%]",
        "[env: CACHE_EDGE_MIN_FREE]",
        "--token-file",
    ] {
        assert!(help.contains(expected), "{expected} is missing in:\n{help}");
    }
    assert!(!help.contains("unrecognised"), "{help}");
    let reference = table().reference();
    assert!(
        reference.contains("| `--grace` | `CACHE_EDGE_GRACE` | duration"),
        "{reference}"
    );
    assert!(reference.contains("| none, required |"), "{reference}");
}
