//! Combines flags, environment and file, and collects all errors.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::problems::{ConfigError, Problems};
use super::{CONFIG, MAX_FILE_BYTES, Options, file, is_secret, secret_file, unjudged, variable};
use crate::text_file;

/// Jaro similarity from which a name counts as a misspelling of another.
const SIMILAR: f64 = 0.8;

/// Parses a whole command line, with the environment and the file if its verb takes them.
pub fn matches<O: Options>(
    whole: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<ArgMatches, ConfigError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let as_given = |command: Command| command.try_get_matches_from(&arguments);
    // The first pass checks no values: it only finds the verb, the file, and the source of each
    // option.
    let Ok(first) = as_given(unjudged_options(whole.clone())) else {
        return Ok(as_given(whole.clone())?);
    };
    let found = first.subcommand();
    let Some((verb, given)) = found.filter(|(_, given)| given.try_contains_id(CONFIG).is_ok())
    else {
        return Ok(as_given(whole.clone())?);
    };
    let mut parse = Parse {
        command: whole.clone(),
        verb,
        given,
        path: None,
        in_file: BTreeMap::new(),
        problems: Problems::default(),
    };
    parse.refuse_unknown_variables::<O>(std::env::vars_os());
    if let Some(path) = given.get_one::<OsString>(CONFIG) {
        parse.read_file(Path::new(path));
    }
    parse.read_secret_files();
    loop {
        match as_given(parse.command.clone()) {
            Ok(matches) => return parse.problems.into_result(matches),
            Err(error) if parse.set_aside::<O>(&error) => {}
            Err(error) if parse.problems.is_empty() => return Err(error.into()),
            Err(error) => {
                parse.problems.add(sentence(&error));
                return Err(ConfigError::Problems(parse.problems));
            }
        }
    }
}

/// The options of a verb that [`matches()`] found.
pub fn load<O: Options>(arguments: &ArgMatches) -> Result<O, ConfigError> {
    let options = O::from_arg_matches(arguments)?;
    let mut problems = Problems::default();
    options.check(&mut problems);
    problems.into_result(options)
}

/// Parses options from these flags, for tests.
pub fn parse_from<O: Options>(flags: &[&str]) -> Result<O, ConfigError> {
    let whole = Command::new("test")
        .subcommand_required(true)
        .subcommand(super::command::<O>("serve"));
    let arguments = ["test", "serve"].iter().chain(flags).map(OsString::from);
    let matches = matches::<O>(&whole, arguments)?;
    match matches.subcommand() {
        Some((_, arguments)) => load(arguments),
        None => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand).into()),
    }
}

/// The command with unchecked values, if a verb takes the options.
fn unjudged_options(whole: Command) -> Command {
    let verbs: Vec<String> = whole
        .get_subcommands()
        .filter(|verb| verb.get_arguments().any(|arg| arg.get_id() == CONFIG))
        .map(|verb| verb.get_name().to_owned())
        .collect();
    verbs.into_iter().fold(whole, |whole, verb| {
        whole.mut_subcommand(verb, |verb| verb.mut_args(unjudged))
    })
}

/// One parse of a command line.
struct Parse<'a> {
    command: Command,
    verb: &'a str,
    /// The result of the first pass: texts and their sources.
    given: &'a ArgMatches,
    path: Option<String>,
    /// The file's texts by name.
    in_file: BTreeMap<String, Vec<String>>,
    problems: Problems,
}

impl Parse<'_> {
    fn options(&self) -> impl Iterator<Item = &Arg> {
        self.command
            .find_subcommand(self.verb)
            .into_iter()
            .flat_map(Command::get_arguments)
    }

    fn option(&self, name: &str) -> Option<&Arg> {
        self.options().find(|arg| arg.get_long() == Some(name))
    }

    fn change(&mut self, name: &str, change: impl FnOnce(Arg) -> Arg) {
        let Some(id) = self.option(name).map(|arg| arg.get_id().clone()) else {
            return;
        };
        let command = std::mem::take(&mut self.command);
        self.command = command.mut_subcommand(self.verb, |verb| verb.mut_arg(id, change));
    }

    fn refuse_unknown_variables<O: Options>(
        &mut self,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) {
        let prefix = format!("{}_", O::PREFIX);
        let mut names: Vec<String> = environment
            .filter_map(|(name, _)| name.into_string().ok())
            .filter(|name| name.starts_with(&prefix))
            .collect();
        names.sort();
        for name in names {
            let rest = name.trim_start_matches(&prefix);
            let option = rest.to_lowercase().replace('_', "-");
            let is_known = self.option(&option).is_some()
                || O::FOREIGN_VARIABLES.contains(&name.as_str())
                || is_service_link(rest);
            if !is_known {
                let unknown = self.unknown("variable", &option);
                self.problems
                    .add(format!("environment variable {name}: {unknown}"));
            }
        }
    }

    /// The file's values become defaults, so that flags and environment override them.
    fn read_file(&mut self, path: &Path) {
        let shown = path.display().to_string();
        let keys = match file::read(path) {
            Ok(keys) => keys,
            Err(message) => return self.problems.push(CONFIG, format!("{shown} {message}")),
        };
        for (key, value) in keys {
            let name = key.replace('_', "-");
            let wrong = match (self.option(&name), value) {
                (None, _) => self.unknown("key", &name),
                (Some(_), _) if name == CONFIG => "not in a file".to_owned(),
                (Some(_), _) if self.in_file.contains_key(&name) => {
                    "given in both spellings of the key".to_owned()
                }
                (Some(_), Err(message)) => message,
                (Some(arg), Ok(file::Texts::List(_)))
                    if !matches!(arg.get_action(), ArgAction::Append) =>
                {
                    "expected one value, not a list".to_owned()
                }
                (Some(_), Ok(texts)) => {
                    let texts = texts.into_vec();
                    self.in_file.insert(name.clone(), texts.clone());
                    self.change(&name, |arg| arg.required(false).default_values(texts));
                    continue;
                }
            };
            self.problems.add(format!("{key} (file {shown}): {wrong}"));
        }
        self.path = Some(shown);
    }

    /// Reads `--NAME-file` into `--NAME`, if it comes from a stronger source.
    fn read_secret_files(&mut self) {
        let secrets: Vec<String> = self
            .options()
            .filter(|arg| is_secret(arg))
            .filter_map(|arg| arg.get_long().map(str::to_owned))
            .collect();
        for name in secrets {
            let file = secret_file(&name);
            let (own, other) = (self.strength(&name), self.strength(&file));
            if other == 0 || other < own {
                continue;
            }
            if other == own {
                let message = format!("conflicts with --{file}: give one of them");
                self.problems.push(&name, message);
                continue;
            }
            let path = match self.given.get_one::<OsString>(&file) {
                Some(path) => path.clone(),
                None => OsString::from(self.in_file[&file].concat()),
            };
            match secret_of(Path::new(&path)) {
                Ok(secret) => self.change(&name, |arg| {
                    let arg = arg.required(false).default_value(secret);
                    arg.env(clap::builder::Resettable::Reset)
                }),
                Err(message) => {
                    self.change(&name, unjudged);
                    self.problems.push(&file, message);
                }
            }
        }
    }

    /// The precedence of the source of an option; 0: not given.
    fn strength(&self, name: &str) -> u8 {
        let Some(id) = self.option(name).map(|arg| arg.get_id().as_str()) else {
            return 0;
        };
        match self.given.value_source(id) {
            Some(ValueSource::CommandLine) => 3,
            Some(ValueSource::EnvVariable) => 2,
            _ => u8::from(self.in_file.contains_key(name)),
        }
    }

    /// Records the invalid options, and accepts any value for them from now on. False: there are
    /// none.
    fn set_aside<O: Options>(&mut self, error: &clap::Error) -> bool {
        let names = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(text)) => vec![long_name(text)],
            Some(ContextValue::Strings(texts)) => texts.iter().map(|t| long_name(t)).collect(),
            _ => return false,
        };
        // An option that was recorded before is invalid in another way: by its number, not its
        // value.
        let is_judged = |name: &&str| {
            self.option(name)
                .is_some_and(|arg| arg.get_value_parser().type_id() != unjudged_type())
        };
        if names.is_empty() || !names.iter().all(|name| is_judged(&name.as_str())) {
            return false;
        }
        let place = match names.as_slice() {
            [name] => match self.strength(name) {
                2 => format!(" (environment variable {})", variable(O::PREFIX, name)),
                1 => self
                    .path
                    .as_deref()
                    .map_or(String::new(), |path| format!(" (file {path})")),
                _ => String::new(),
            },
            _ => String::new(),
        };
        self.problems.add(sentence(error) + &place);
        for name in names {
            self.change(&name, unjudged);
        }
        true
    }

    /// "unknown key", with the most similar known name if there is one.
    fn unknown(&self, what: &str, name: &str) -> String {
        let likeness = |known: &str| strsim::jaro(known, name);
        let names = self.options().filter_map(|arg| arg.get_long());
        let nearest = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match nearest.filter(|known| likeness(known) >= SIMILAR) {
            Some(known) => format!("unknown {what}; did you mean {known}?"),
            None => format!("unknown {what}; --help lists what there is"),
        }
    }
}

fn unjudged_type() -> std::any::TypeId {
    std::any::TypeId::of::<OsString>()
}

/// `--max-size <BYTES>` → `max-size`.
fn long_name(text: &str) -> String {
    text.trim_start_matches('-')
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect()
}

/// Clap's first paragraph, on one line.
fn sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = first.lines().map(str::trim).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

fn secret_of(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let text = text_file::read(path, MAX_FILE_BYTES)
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("{shown} is empty")),
        text => Ok(text.to_owned()),
    }
}

/// Whether the variable is set by Kubernetes, which sets `NAME_SERVICE_HOST`,
/// `NAME_PORT_7400_TCP_ADDR` and the like for every service of a namespace: a service named
/// `cache-edge` has our prefix. Those are nobody's mistake.
fn is_service_link(rest: &str) -> bool {
    rest == "SERVICE_HOST"
        || rest.starts_with("SERVICE_PORT")
        || rest == "PORT"
        || (rest.starts_with("PORT_") && rest.contains("_TCP"))
        || rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.contains("_PORT_")
        || rest.ends_with("_PORT")
}
