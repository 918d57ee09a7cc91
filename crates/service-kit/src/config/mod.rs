//! Options: one struct with clap's derive per binary, and everything an operator expects of it.
//!
//! A field is a flag, an environment variable and a TOML key, with its help, default and row in
//! `docs/configuration.md`:
//!
//! ```ignore
//! /// How long running bodies may finish after SIGTERM.
//! #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
//! pub drain_grace: Duration,
//! ```
//!
//! Clap parses flags, environment and values. This module adds what clap lacks: the keys of
//! `--config FILE` (they become clap's defaults, so flags and environment win), `--flag=false`, a
//! `--NAME-file` for each [`Secret`], and a report of all wrong values at once, because an operator
//! who rolls out a file to many machines wants all of them.

mod file;
mod load;
mod problems;
mod reference;
mod value;

use std::any::TypeId;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, Command, value_parser};

pub use load::{load, matches, parse_from};
pub use problems::{ConfigError, Problems};
pub use reference::reference_page;
pub use value::{
    BytesOrPercent, Secret, human_bytes, human_duration, parse_base_url, parse_bytes,
    parse_bytes_or_percent, parse_duration, parse_rate, parse_ratio, parse_socket_address,
    parse_time_of_day, parse_url,
};

/// The exit status for a command line or configuration that cannot be used.
pub const EXIT_USAGE: u8 = 2;

/// Limit of the size of a file of options or of a secret.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The id of `--config`. A command that has it takes the binary's options.
const CONFIG: &str = "config";

/// The options of one binary.
pub trait Options: clap::Args {
    /// For example `CACHE_EDGE`: variables are then named like `CACHE_EDGE_MAX_SIZE`.
    const PREFIX: &'static str;

    /// Variables with the prefix that belong to other commands of the same binary.
    const FOREIGN_VARIABLES: &'static [&'static str] = &[];

    /// Reports conflicts between options, and values that only their use can check.
    fn check(&self, problems: &mut Problems);
}

/// A command that takes the options, with `--config`.
pub fn command<O: Options>(name: &'static str) -> Command {
    let config = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("TOML file with any of these options as keys; flags and environment win over it");
    let command = O::augment_args(Command::new(name).arg(config));
    let secret_files: Vec<Arg> = command
        .get_arguments()
        .filter(|arg| is_secret(arg))
        .filter_map(|arg| arg.get_long())
        .map(|name| {
            Arg::new(secret_file(name))
                .long(secret_file(name))
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help(format!(
                    "File whose content, without its last line break, is --{name}"
                ))
        })
        .collect();
    command
        .args(secret_files)
        .mut_args(|arg| complete(O::PREFIX, arg))
}

/// Adds the environment variable, and `--flag=false` for a switch.
fn complete(prefix: &str, arg: Arg) -> Arg {
    let Some(name) = arg.get_long().map(str::to_owned) else {
        return arg;
    };
    let arg = match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .value_name("BOOL")
            .value_parser(value_parser!(bool))
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        // `--x -5` is an invalid value of x, and must not be reported as an unknown flag.
        _ => arg.allow_negative_numbers(true),
    };
    let arg = match (
        arg.get_value_parser().type_id() == TypeId::of::<bool>(),
        arg.get_default_values(),
    ) {
        (true, []) => arg.default_value("false"),
        _ => arg,
    };
    let variable = variable(prefix, &name);
    // Scripts often leave a variable empty to mean "not set".
    if std::env::var_os(&variable).is_some_and(|value| value.is_empty()) {
        return arg;
    }
    arg.env(variable).hide_env_values(true)
}

/// `max-size` → `CACHE_EDGE_MAX_SIZE`.
fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}_{}", name.replace('-', "_").to_uppercase())
}

fn secret_file(name: &str) -> String {
    format!("{name}-file")
}

fn is_secret(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<Secret>()
}

/// The argument, with a parser that accepts anything: it is checked elsewhere, or not at all.
pub(crate) fn unjudged(arg: Arg) -> Arg {
    arg.required(false).value_parser(ValueParser::os_string())
}

#[cfg(test)]
mod tests;
