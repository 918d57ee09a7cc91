//! The verbs `completions` and `man` of both binaries: packages install their output.

use std::io;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

/// Both verbs.
pub fn commands() -> [Command; 2] {
    [
        Command::new("completions")
            .about("Print completions for a shell")
            .arg(
                Arg::new("SHELL")
                    .required(true)
                    .value_parser(value_parser!(Shell))
                    .help("The shell"),
            ),
        Command::new("man").about("Print the manual page (roff), with all commands"),
    ]
}

/// The output of the verb. `whole` is the binary's whole command line. Written into memory first,
/// because clap panics if writing fails.
pub fn text(whole: &Command, verb: &str, arguments: &ArgMatches) -> io::Result<Vec<u8>> {
    let mut root = whole.clone();
    let mut text = Vec::new();
    let name = root.get_name().to_owned();
    if verb == "completions" {
        if let Some(shell) = arguments.get_one::<Shell>("SHELL").copied() {
            clap_complete::generate(shell, &mut root, name, &mut text);
        }
        return Ok(text);
    }
    // One page for the binary, then one for each command: `man` reads them from one file.
    root.build();
    clap_mangen::Man::new(root.clone()).render(&mut text)?;
    for noun in root
        .get_subcommands()
        .filter(|noun| noun.get_name() != "help")
    {
        let command = noun.clone().name(format!("{name}-{}", noun.get_name()));
        clap_mangen::Man::new(command).render(&mut text)?;
    }
    Ok(text)
}

/// Prints the output.
pub fn run(whole: &Command, verb: &str, arguments: &ArgMatches) -> ExitCode {
    let printed = text(whole, verb, arguments)
        .and_then(|text| io::Write::write_all(&mut io::stdout(), &text));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that stops early (`| head`) is not a failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: output can not be written: {error}");
            ExitCode::FAILURE
        }
    }
}
