#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::time::Duration;

use clap::ValueEnum;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    A,
    B,
}

#[derive(Debug, clap::Args)]
struct Sample {
    /// The edge's name
    #[arg(long)]
    name: String,
    /// Bytes kept [default: as many as there are]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_size: Option<u64>,
    /// Free space
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = parse_bytes_or_percent)]
    min_free: BytesOrPercent,
    /// Time to drain
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    grace: Duration,
    /// Fill in the background
    #[arg(long, default_value = "true")]
    fill: bool,
    /// Not at all
    #[arg(long)]
    never: bool,
    /// Coordinators
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = parse_url)]
    coordinator: Vec<url::Url>,
    /// Bearer token
    #[arg(long, value_parser = Secret::parse)]
    token: Secret,
    /// Mode
    #[arg(long, value_enum, default_value = "a")]
    mode: Mode,
}

impl Options for Sample {
    const PREFIX: &'static str = "SAMPLE_OF_TESTS";

    fn check(&self, problems: &mut Problems) {
        if self.never && self.fill {
            problems.push("never", "conflicts with --fill");
        }
    }
}

fn load(flags: &[&str]) -> Result<Sample, ConfigError> {
    parse_from(flags)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn in_file(text: &str, flags: &[&str]) -> Result<Sample, ConfigError> {
    let file = file(text);
    let config = format!("--config={}", file.path().display());
    load(&[&[config.as_str()], flags].concat())
}

fn refusal(result: Result<Sample, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn defaults_hold_when_nothing_is_given() {
    let options = load(&["--name", "a", "--token=t"]).unwrap();
    assert_eq!((options.name.as_str(), options.max_size), ("a", None));
    assert_eq!(options.min_free, BytesOrPercent::Percent(5.0));
    assert!(options.fill && !options.never && options.coordinator.is_empty());
    assert_eq!(options.mode, Mode::A);
}

#[test]
fn a_flag_wins_over_the_file() {
    let text = "max_size = 1\ngrace = \"1s\"\nname = \"file\"\ntoken = \"t\"\nfill = false\n\
                coordinator = [\"http://a:1\", \"http://b:1\"]";
    let options = in_file(text, &["--max-size", "3"]).unwrap();
    assert_eq!((options.name.as_str(), options.max_size), ("file", Some(3)));
    assert_eq!(options.grace, Duration::from_secs(1));
    assert!(!options.fill);
    assert_eq!(options.coordinator.len(), 2);
}

#[test]
fn switches_and_lists() {
    let flags = [
        "--name=a",
        "--token=t",
        "--fill=false",
        "--never",
        "--coordinator",
        "http://a:1,http://b:1",
        "--coordinator=http://c:1",
    ];
    let options = load(&flags).unwrap();
    assert!(!options.fill && options.never);
    assert_eq!(options.coordinator.len(), 3);
    assert!(load(&["--name=a", "--token=t", "--fill"]).unwrap().fill);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let text = "max-sise = 5\nmin-free = \"200%\"\nmax-size = [1]\n[nested]\nx = 1";
    let refused = refusal(in_file(
        text,
        &[
            "--mode=c",
            "--grace",
            "soon",
            "--fill=maybe",
            "--coordinator=-1",
        ],
    ));
    for expected in [
        "max-sise (file ",
        "unknown key; did you mean max-size?",
        "nested (file ",
        "max-size (file ",
        "expected one value, not a list",
        "'200%' for '--min-free <SHARE>': expected",
        "invalid value 'c' for '--mode <MODE>'",
        "'soon' for '--grace <DURATION>': expected a duration",
        "'maybe' for '--fill",
        "'-1' for '--coordinator <URL>'",
        "--name <NAME>",
        "--token <TOKEN>",
    ] {
        assert!(
            refused.contains(expected),
            "{expected} is missing in:\n{refused}"
        );
    }
}

#[test]
fn an_unknown_flag_is_a_matter_of_usage() {
    let error = load(&["--max-sizes=7", "--name=a"]).unwrap_err();
    assert!(matches!(error, ConfigError::Usage(_)), "{error}");
    assert!(error.to_string().contains("--max-sizes"), "{error}");
    assert!(load(&["--name=a", "--token=t", "--name=b"]).is_err());
}

#[test]
fn conflicts_are_told() {
    assert!(refusal(load(&["--name=a", "--token=t", "--never"])).contains("--never: conflicts"));
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let secret = file("hunter2\n");
    let path = format!("--token-file={}", secret.path().display());
    let options = load(&["--name=a", &path]).unwrap();
    assert_eq!(options.token.expose(), "hunter2");
    assert!(!format!("{options:?}").contains("hunter2"));
    let both = refusal(load(&["--name=a", &path, "--token=hunter2"]));
    assert!(both.contains("conflicts with --token-file"), "{both}");
    assert!(!both.contains("hunter2"), "{both}");
    // A stronger source wins, in either form.
    let flag = in_file("token = \"weak\"", &["--name=a", &path]).unwrap();
    assert_eq!(flag.token.expose(), "hunter2");
    let text = format!("token-file = {:?}", secret.path());
    assert_eq!(
        in_file(&text, &["--name=a"]).unwrap().token.expose(),
        "hunter2"
    );
    let strong = in_file(&text, &["--name=a", "--token=strong"]).unwrap();
    assert_eq!(strong.token.expose(), "strong");
    let missing = refusal(load(&["--name=a", "--token-file", "/nowhere/at/all"]));
    assert!(
        missing.contains("/nowhere/at/all cannot be read"),
        "{missing}"
    );
}

#[test]
fn a_syntax_error_shows_its_place_and_not_its_text() {
    let refused = refusal(in_file("name = \"a\"\ntoken = \"hunter2\n", &[]));
    assert!(refused.contains("line 2"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
}

#[test]
fn both_spellings_of_a_key_are_a_mistake() {
    let refused = refusal(in_file(
        "max-size = 1\nmax_size = 2",
        &["--name=a", "--token=t"],
    ));
    assert!(refused.contains("both spellings"), "{refused}");
}

#[test]
fn help_and_reference_name_units_defaults_and_variables() {
    let help = command::<Sample>("serve").render_long_help().to_string();
    for expected in [
        "--min-free <SHARE>",
        "[default: 5%]",
        "[default: false]",
        "[env: SAMPLE_OF_TESTS_MIN_FREE]",
        "--token-file",
    ] {
        assert!(help.contains(expected), "{expected} is missing in:\n{help}");
    }
    let page = reference_page::<Sample>("", "one serve");
    for row in [
        "| `--grace` | `SAMPLE_OF_TESTS_GRACE` | `DURATION` | `30s` | Time to drain |",
        "| `BYTES` | as many as there are | Bytes kept |",
        "| none, required |",
        "| `a`, `b` | `a` | Mode |",
        "also from a file: `--token-file`",
    ] {
        assert!(page.contains(row), "{row} is missing in:\n{page}");
    }
}

#[test]
fn each_binary_replaces_its_own_section() {
    let one = reference_page::<Sample>("", "one serve");
    let both = reference_page::<Sample>(&one, "two serve");
    assert_eq!(both.matches("\n## ").count(), 2);
    assert_eq!(reference_page::<Sample>(&both, "one serve"), both);
    let changed = both.replacen("--grace", "--patience", 1);
    assert_eq!(reference_page::<Sample>(&changed, "one serve"), both);
}
