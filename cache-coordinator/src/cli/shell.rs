//! `completions` and `man`: what packages install beside the binary.

use std::io::Write;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::failure::CliError;

const BINARY: &str = "cache-coordinator";

pub(super) fn completions_command() -> Command {
    Command::new("completions")
        .about("Print completions for a shell")
        .arg(
            Arg::new("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("The shell"),
        )
}

pub(super) fn man_command() -> Command {
    Command::new("man").about("Print the manual page (roff), with all commands")
}

pub(super) fn completions(
    whole: &Command,
    arguments: &ArgMatches,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let Some(shell) = arguments.get_one::<Shell>("SHELL").copied() else {
        return Err(CliError::Usage("SHELL is missing".to_owned()));
    };
    // clap panics when writing fails: into memory first.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut whole.clone(), BINARY, &mut text);
    Ok(out.write_all(&text)?)
}

/// One page for the binary, then one for each command, as `man` reads them in one file.
pub(super) fn man(whole: &Command, out: &mut dyn Write) -> Result<(), CliError> {
    let mut root = whole.clone();
    root.build();
    let mut text = Vec::new();
    clap_mangen::Man::new(root.clone()).render(&mut text)?;
    for noun in root
        .get_subcommands()
        .filter(|noun| noun.get_name() != "help")
    {
        let command = noun.clone().name(format!("{BINARY}-{}", noun.get_name()));
        clap_mangen::Man::new(command).render(&mut text)?;
    }
    Ok(out.write_all(&text)?)
}
