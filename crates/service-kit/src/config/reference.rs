//! The configuration reference, generated from the options: `docs/configuration.md` is its output
//! and a test in each service compares the two.

use std::fmt::Write as _;

use clap::Arg;

use super::{CONFIG, Options, command, is_secret, secret_file, variable};

const HEAD: &str = "# Configuration\n\n\
    Written from the options in the code (`just reference`); tests compare it with them.\n\n\
    Every option is a flag, an environment variable and a TOML key (with `-` or `_`) in `--config \
    FILE`. Flags win over the environment, the environment over the file, the file over the \
    default. An empty variable counts as not set. All unknown keys and bad values are reported \
    together, with exit status 2, before any port is bound.\n\n\
    Values: `BYTES` are plain (`4096`) or have a unit (`10GiB`, `64MB`); a `RATE` is bytes a \
    second (`10MiB`); a `DURATION` has a unit (`250ms`, `30s`, `1m30s`); an `ADDRESS:PORT` is \
    `127.0.0.1:7500` or `[::1]:7500`; a `BOOL` is `true` or `false`, and a flag alone means \
    `true`. Options that take several values are repeated, separated by commas, or a TOML list.\n";

/// Returns the page with this binary's section updated. The services do not know each other, so
/// each updates only its own section; an empty page is begun.
pub fn reference_page<O: Options>(page: &str, binary: &str) -> String {
    let heading = format!("\n## `{binary}`\n");
    let section = format!("{heading}\n{}", table::<O>());
    let sections = page.find("\n## ").map_or("", |start| &page[start..]);
    let page = format!("{HEAD}{sections}");
    let Some(start) = page.find(&heading) else {
        return format!("{page}{section}");
    };
    let after = start + heading.len();
    let end = page[after..]
        .find("\n## ")
        .map_or(page.len(), |next| after + next);
    format!("{}{section}{}", &page[..start], &page[end..])
}

/// A Markdown table: one row per option.
fn table<O: Options>() -> String {
    let mut text = String::from(
        "| flag and TOML key | environment | value | default | meaning |\n|---|---|---|---|---|\n",
    );
    let command = command::<O>("serve");
    let secrets: Vec<String> = command
        .get_arguments()
        .filter(|arg| is_secret(arg))
        .filter_map(|arg| arg.get_long().map(secret_file))
        .collect();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_long() else { continue };
        if name == CONFIG || secrets.iter().any(|secret| secret == name) {
            continue;
        }
        let _ = writeln!(text, "{}", row(O::PREFIX, name, arg));
    }
    text
}

fn row(prefix: &str, name: &str, arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    // A default that is not constant is part of the help, in clap's notation.
    let (meaning, noted) = match help.rsplit_once(" [default: ") {
        Some((meaning, note)) => (
            meaning.to_owned(),
            Some(note.trim_end_matches(']').to_owned()),
        ),
        None => (help, None),
    };
    let values: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let default = match (noted, values.is_empty()) {
        (Some(note), _) => note,
        (None, false) => values.join(", "),
        (None, true) if arg.is_required_set() => "none, required".to_owned(),
        (None, true) => "none".to_owned(),
    };
    let words: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let mut value = match (words.is_empty(), arg.get_value_names()) {
        (false, _) => words.join(", "),
        (true, Some([name, ..])) => format!("`{name}`"),
        (true, _) => "text".to_owned(),
    };
    if matches!(arg.get_action(), clap::ArgAction::Append) {
        value.push_str("; several");
    }
    let mut meaning = meaning;
    if is_secret(arg) {
        let file = secret_file(name);
        let variable = variable(prefix, &file);
        let _ = write!(
            meaning,
            ". Secret; also from a file: `--{file}`, `{variable}`"
        );
    }
    let cells = [
        format!("`--{name}`"),
        format!("`{}`", variable(prefix, name)),
        value,
        default,
        meaning,
    ];
    let cells = cells.map(|cell| cell.replace('|', "\\|"));
    format!("| {} |", cells.join(" | "))
}
