//! From the table to clap, and from clap's matches back to raw text.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::problem::{Origin, Problems};
use super::spec::{Kind, OptionSpec, Table};

/// Where clap puts the first argument it does not know and all that follow it, so that an unknown
/// flag is reported with everything else and not alone.
const UNRECOGNISED: &str = "unrecognised";

/// One `--name value` as given.
pub(super) struct Given {
    pub name: String,
    pub text: String,
}

impl Table {
    /// Adds all options, and `--config`, to a command. Values are judged by [`Table::load`] only.
    pub fn add_to(&self, command: Command) -> Command {
        let mut command = command.arg(
            Arg::new("config").long("config").value_name("FILE").action(ArgAction::Append).help(
                format!(
                    "TOML file with any of these options as keys; flags and environment win over it \
                     [env: {}]",
                    self.variable("config")
                ),
            ),
        );
        for option in &self.options {
            command = command.arg(self.argument(option));
            if let Some(name) = option.file_name() {
                let help = format!(
                    "File whose content, without its last line break, is --{} [env: {}]",
                    option.name,
                    self.variable(&name)
                );
                command = command.arg(
                    Arg::new(name.clone())
                        .long(name)
                        .value_name("FILE")
                        .action(ArgAction::Append)
                        .help(help),
                );
            }
        }
        command.arg(
            Arg::new(UNRECOGNISED)
                .num_args(0..)
                .allow_hyphen_values(true)
                .hide(true),
        )
    }

    fn argument(&self, option: &OptionSpec) -> Arg {
        let mut help = option.help.to_owned();
        if let Kind::Choice(words) = option.kind {
            help.push_str(&format!(" [one of: {}]", words.join(", ")));
        }
        if option.list {
            help.push_str(" [several: repeat, or separate by commas]");
        }
        match (option.default, option.default_note) {
            (_, Some(note)) => help.push_str(&format!(" [default: {note}]")),
            (Some(text), None) => help.push_str(&format!(" [default: {text}]")),
            (None, None) if option.required => help.push_str(" [required]"),
            (None, None) if matches!(option.kind, Kind::Bool) => {
                help.push_str(" [default: false]");
            }
            (None, None) => {}
        }
        help.push_str(&format!(" [env: {}]", self.variable(option.name)));
        let argument = Arg::new(option.name)
            .long(option.name)
            .value_name(option.value_name)
            .action(ArgAction::Append)
            .help(help);
        match option.kind {
            Kind::Bool => argument
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            // `--x -5` is a bad value of x, to be reported as such, not an unknown flag.
            _ => argument.allow_hyphen_values(false),
        }
    }

    /// All flags given, in order of the table; what is no flag of this table is a problem.
    pub(super) fn given_flags(&self, matches: &ArgMatches, problems: &mut Problems) -> Vec<Given> {
        let mut given = Vec::new();
        let names = self
            .names()
            .map(|(name, _, _)| name)
            .chain(["config".to_owned()]);
        for name in names {
            let Ok(Some(texts)) = matches.try_get_many::<String>(&name) else {
                continue;
            };
            given.extend(texts.map(|text| Given {
                name: name.clone(),
                text: text.clone(),
            }));
        }
        let tail: Vec<String> = match matches.try_get_many::<String>(UNRECOGNISED) {
            Ok(Some(tail)) => tail.cloned().collect(),
            _ => Vec::new(),
        };
        self.read_tail(&tail, &mut given, problems);
        given
    }

    /// Clap stops reading flags at the first argument it does not know; the rest is read here.
    fn read_tail(&self, tail: &[String], given: &mut Vec<Given>, problems: &mut Problems) {
        let is_flag = |text: &String| text.starts_with('-') && text.len() > 1;
        let mut rest = tail.iter().peekable();
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix("--") else {
                let message = if is_flag(argument) {
                    "unknown flag"
                } else {
                    "unexpected argument"
                };
                problems.push_from(argument, Origin::CommandLine, message);
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, text)) => (name, Some(text.to_owned())),
                None => (flag, None),
            };
            let known = self.names().find(|(known, _, _)| known == name);
            let is_switch = known
                .as_ref()
                .is_some_and(|(_, option, _)| matches!(option.kind, Kind::Bool));
            let text = match inline {
                Some(text) => Some(text),
                None if is_switch => Some("true".to_owned()),
                None => rest.next_if(|next| !is_flag(next)).cloned(),
            };
            match (known.is_some() || name == "config", text) {
                (true, Some(text)) => given.push(Given {
                    name: name.to_owned(),
                    text,
                }),
                (true, None) => {
                    problems.push_from(format!("--{name}"), Origin::CommandLine, "needs a value");
                }
                (false, _) => problems.push_from(
                    format!("--{name}"),
                    Origin::CommandLine,
                    self.unknown("flag", name),
                ),
            }
        }
    }

    /// "unknown key", with the nearest known name where one is near.
    pub(super) fn unknown(&self, what: &str, name: &str) -> String {
        let nearest = self
            .names()
            .map(|(known, _, _)| (distance(&known, name), known))
            .min()
            .filter(|(distance, _)| *distance <= 2);
        match nearest {
            Some((_, known)) => format!("unknown {what}; did you mean {known}?"),
            None => format!("unknown {what}; --help lists what there is"),
        }
    }
}

/// Levenshtein distance, by bytes: names are ASCII.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
