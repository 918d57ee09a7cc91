//! The commands for people: gRPC clients of a running coordinator.
//!
//! They are in this binary so that operators of a coordinator have them at hand in the right
//! version. They use only the public `CacheService`, like any other caller, and must not know the
//! database, the scheduler or anything else of this crate. One file per noun; `view` is the JSON
//! that people script against. Results go to standard output, everything else to standard error.

mod apply;
mod batch;
mod connection;
mod context;
mod documents;
mod drain;
mod edge;
mod entry;
mod failure;
mod globals;
mod lead;
mod names;
mod output;
mod precache;
mod progress;
mod purge;
pub mod shared_names;
mod source;
mod source_options;
mod source_use;
mod status;
mod title;
mod view;
mod watch;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use service_kit::{shell, text_file};

use connection::Client;
use failure::CliError;
use globals::Globals;
use output::Printer;

pub use globals::VARIABLES;

/// The command line without `serve`, which `main` adds.
pub fn command() -> Command {
    let command = Command::new("cache-coordinator")
        .about("The coordinator of the chunk cache, and the commands to work with a running one")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            source::command(),
            entry::command(),
            precache::command(),
            purge::command(),
            edge::command(),
            watch::command(),
            status::command(),
            status::explain_command(),
            lead::command(),
            context::command(),
        ])
        .subcommands(apply::commands())
        .subcommands(shell::commands());
    globals::add_to(with_negative_values(command))
}

/// `--x -5` is an invalid value of x, and must not be reported as an unknown flag.
fn with_negative_values(command: Command) -> Command {
    command
        .mut_args(|arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
        .mut_subcommands(with_negative_values)
}

/// Runs the command in `matches`. 0: done, 1: refused, 2: usage. `whole` is the binary's whole
/// command line, with `serve`, for completions and the manual page.
pub fn run(whole: &Command, matches: &ArgMatches) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return CliError::Refused(format!("can not start: {error}")).report();
        }
    };
    match runtime.block_on(execute(whole, matches, &mut std::io::stdout())) {
        // A reader that stops early (`| head`) is not a failure.
        Ok(()) | Err(CliError::OutputClosed) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

async fn execute(
    whole: &Command,
    matches: &ArgMatches,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let Some((noun, arguments)) = matches.subcommand() else {
        return Err(CliError::Usage("no command; --help lists them".to_owned()));
    };
    match noun {
        "completions" | "man" => {
            return Ok(out.write_all(&shell::text(whole, noun, arguments)?)?);
        }
        "context" => {
            let mut printer = Printer::new(globals::output(matches), out);
            return context::run(arguments, globals::environment, &mut printer);
        }
        _ => {}
    }
    let globals = Globals::read(matches, globals::environment)?;
    let mut printer = Printer::new(globals.output, out);
    let client = &mut Client::new(globals);
    match noun {
        "source" => source::run(arguments, client, &mut printer).await,
        "entry" => entry::run(arguments, client, &mut printer).await,
        "precache" => precache::run(arguments, client, &mut printer).await,
        "apply" | "diff" | "export" | "schema" => {
            apply::run(noun, arguments, client, &mut printer).await
        }
        "purge" => purge::run(arguments, client, &mut printer).await,
        "edge" => edge::run(arguments, client, &mut printer).await,
        "watch" => watch::run(arguments, client, &mut printer).await,
        "status" => status::run(client, &mut printer).await,
        "step-down" => lead::run(client, &mut printer).await,
        "explain" => status::explain(arguments, client, &mut printer).await,
        other => Err(CliError::Usage(format!("unknown command {other}"))),
    }
}

/// The verb of a noun; clap guarantees that there is one.
fn verb(matches: &ArgMatches) -> Result<(&str, &ArgMatches), CliError> {
    matches
        .subcommand()
        .ok_or_else(|| CliError::Usage("no verb; --help lists them".to_owned()))
}

/// A required argument; clap guarantees that it is present.
fn text<'a>(matches: &'a ArgMatches, name: &str) -> Result<&'a str, CliError> {
    matches
        .get_one::<String>(name)
        .map(String::as_str)
        .ok_or_else(|| CliError::Usage(format!("{name} is missing")))
}

/// The text of a file, or of standard input (`-`).
fn read_text(file: &Path, limit: u64) -> std::io::Result<String> {
    if file == Path::new("-") {
        text_file::read_from(std::io::stdin().lock(), limit)
    } else {
        text_file::read(file, limit)
    }
}

fn unknown_verb(verb: &str) -> CliError {
    CliError::Usage(format!("unknown verb {verb}"))
}

/// A switch that accepts `--flag` and `--flag=false`.
fn switch(name: &'static str, help: &'static str) -> clap::Arg {
    clap::Arg::new(name)
        .long(name)
        .help(help)
        .value_name("BOOL")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(clap::value_parser!(bool))
}

fn is_set(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or(false)
}

#[cfg(test)]
mod tests;
