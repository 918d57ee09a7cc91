//! `docs/configuration.md`, `docs/cli.md` and `docs/api.md` match the options, the commands and the
//! protocol. `CHUNKCACHE_WRITE_REFERENCE=1` writes them.
#![allow(clippy::unwrap_used)]

mod api_page;

use cache_coordinator::{cli, config::ServeOptions};
use clap::Command;
use service_kit::config::reference_page;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
const API: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
const COMMANDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
/// Width of a help text, so that it does not depend on the terminal.
const WIDTH: usize = 110;

#[test]
fn the_configuration_page_is_up_to_date() {
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    let written = reference_page::<ServeOptions>(&page, "cache-coordinator serve");
    hold(PAGE, &written);
}

#[test]
fn the_page_of_commands_is_up_to_date() {
    let mut root = cli::command().term_width(WIDTH);
    root.build();
    let mut page = String::from(
        "# Commands\n\nWritten from the commands in the code (`just reference`); a test compares \
         it with them. `serve` has a page of its own: [configuration](configuration.md).\n",
    );
    describe(&root, "cache-coordinator", &mut page);
    hold(COMMANDS, &page);
}

#[test]
fn the_page_of_the_api_is_up_to_date() {
    hold(API, &api_page::page(chunkcache_proto::FILE_DESCRIPTOR_SET));
}

/// The command, then those under it.
fn describe(command: &Command, name: &str, page: &mut String) {
    let help = command.clone().term_width(WIDTH).render_long_help();
    let lines: Vec<_> = help
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    let text = lines.join("\n");
    page.push_str(&format!("\n## `{name}`\n\n```text\n{}\n```\n", text.trim()));
    for under in command
        .get_subcommands()
        .filter(|under| under.get_name() != "help")
    {
        describe(under, &format!("{name} {}", under.get_name()), page);
    }
}

/// Compares, or writes if requested.
fn hold(path: &str, written: &str) {
    if std::env::var_os("CHUNKCACHE_WRITE_REFERENCE").is_some() {
        std::fs::write(path, written).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == written, "{path} is not up to date: just reference");
}
