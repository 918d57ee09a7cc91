//! Joins flags, environment, file and defaults, and collects everything that is wrong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use clap::ArgMatches;

use super::file;
use super::problem::{Origin, Problems};
use super::spec::{Kind, OptionSpec, Table};
use super::value::{FromValue, Value};

/// What holds after all places were read. Secrets do not show in `Debug`.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    values: BTreeMap<&'static str, Vec<Value>>,
    origins: BTreeMap<&'static str, Origin>,
}

/// Raw text from one place, before it is known to win.
struct Candidate {
    origin: Origin,
    /// As the person wrote the name there, for messages.
    written: String,
    is_secret_file: bool,
    texts: Vec<String>,
}

/// By option name: what each place says, strongest place first.
type Candidates = BTreeMap<&'static str, Vec<Candidate>>;

impl Settings {
    /// The value, if the option was given or has a default.
    ///
    /// # Panics
    /// If the table has the option with another kind: a mistake in the program.
    pub fn get<T: FromValue>(&self, name: &str) -> Option<T> {
        self.values
            .get(name)
            .and_then(|values| values.first())
            .map(|value| taken(name, value))
    }

    /// The value of an option that is required or has a default. After [`Table::load`] succeeded
    /// only.
    ///
    /// # Panics
    /// If the option is neither: a mistake in the program.
    pub fn value<T: FromValue>(&self, name: &str) -> T {
        match self.get(name) {
            Some(value) => value,
            None => panic!("option {name} has no value: neither required nor with a default"),
        }
    }

    /// All values of a list option, in the order given.
    pub fn list<T: FromValue>(&self, name: &str) -> Vec<T> {
        let values = self.values.get(name).map(Vec::as_slice).unwrap_or_default();
        values.iter().map(|value| taken(name, value)).collect()
    }

    /// A switch: false unless given.
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name).unwrap_or(false)
    }

    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.get(name)
    }

    /// Where the value came from; [`Origin::Nowhere`] if there is none.
    pub fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).cloned().unwrap_or(Origin::Nowhere)
    }
}

fn taken<T: FromValue>(name: &str, value: &Value) -> T {
    match T::from_value(value) {
        Some(value) => value,
        None => panic!("option {name} is read as another kind than the table says"),
    }
}

impl Table {
    /// Reads everything from the real environment; see [`Table::load_from`].
    pub fn load(
        &self,
        matches: &ArgMatches,
        check: impl FnOnce(&Settings, &mut Problems),
    ) -> Result<Settings, Problems> {
        self.load_from(matches, std::env::vars_os(), check)
    }

    /// Joins all places. `check` sees what could be read (use [`Settings::get`]: required options
    /// may be missing) and adds conflicts between options; it runs also when there are problems
    /// already.
    pub fn load_from(
        &self,
        matches: &ArgMatches,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        check: impl FnOnce(&Settings, &mut Problems),
    ) -> Result<Settings, Problems> {
        let mut problems = Problems::default();
        let mut candidates = Candidates::new();
        let mut config_file = None;
        self.collect_flags(matches, &mut candidates, &mut config_file, &mut problems);
        self.collect_environment(
            environment,
            &mut candidates,
            &mut config_file,
            &mut problems,
        );
        if let Some((path, origin)) = config_file {
            self.collect_file(&path, origin, &mut candidates, &mut problems);
        }
        let mut settings = Settings::default();
        for option in &self.options {
            let said = candidates.remove(option.name).unwrap_or_default();
            resolve(option, said, &mut settings, &mut problems);
        }
        check(&settings, &mut problems);
        problems.into_result(settings)
    }

    fn collect_flags(
        &self,
        matches: &ArgMatches,
        candidates: &mut Candidates,
        config_file: &mut Option<(String, Origin)>,
        problems: &mut Problems,
    ) {
        for given in self.given_flags(matches, problems) {
            let written = format!("--{}", given.name);
            if given.name == "config" {
                if config_file
                    .replace((given.text, Origin::CommandLine))
                    .is_some()
                {
                    problems.push_from(written, Origin::CommandLine, "given more than once");
                }
                continue;
            }
            let Some((_, option, is_secret_file)) =
                self.names().find(|(name, _, _)| *name == given.name)
            else {
                continue;
            };
            let said = candidates.entry(option.name).or_default();
            let same = said.iter_mut().find(|earlier| earlier.written == written);
            match same {
                Some(earlier) if option.list => earlier.texts.push(given.text),
                Some(_) => problems.push_from(written, Origin::CommandLine, "given more than once"),
                None => said.push(Candidate {
                    origin: Origin::CommandLine,
                    written,
                    is_secret_file,
                    texts: vec![given.text],
                }),
            }
        }
    }

    fn collect_environment(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        candidates: &mut Candidates,
        config_file: &mut Option<(String, Origin)>,
        problems: &mut Problems,
    ) {
        let prefix = format!("{}_", self.prefix);
        let mut variables: Vec<(String, OsString)> = environment
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(&prefix))
            .collect();
        variables.sort();
        for (variable, value) in variables {
            let rest = variable.trim_start_matches(&prefix);
            if self.foreign_variables.contains(&variable.as_str()) || is_service_link(rest) {
                continue;
            }
            let name = rest.to_lowercase().replace('_', "-");
            let origin = Origin::Environment(variable.clone());
            let known = self.names().find(|(known, _, _)| *known == name);
            if known.is_none() && name != "config" {
                problems.push_from(&variable, origin, self.unknown("variable", &name));
                continue;
            }
            let Ok(text) = value.into_string() else {
                problems.push_from(format!("--{name}"), origin, "is not UTF-8");
                continue;
            };
            // An empty variable is what scripts leave where they mean "not set".
            if text.is_empty() {
                continue;
            }
            match known {
                None if config_file.is_none() => *config_file = Some((text, origin)),
                None => {}
                Some((_, option, is_secret_file)) => {
                    candidates.entry(option.name).or_default().push(Candidate {
                        origin,
                        written: format!("--{name}"),
                        is_secret_file,
                        texts: vec![text],
                    });
                }
            }
        }
    }

    fn collect_file(
        &self,
        path: &str,
        named_by: Origin,
        candidates: &mut Candidates,
        problems: &mut Problems,
    ) {
        let keys = match file::read(path) {
            Ok(keys) => keys,
            Err(message) => {
                return problems.push_from("--config", named_by, format!("{path} {message}"));
            }
        };
        for file::FileKey {
            key,
            texts,
            is_array,
        } in keys
        {
            let origin = Origin::File(path.to_owned());
            let name = key.replace('_', "-");
            let Some((_, option, is_secret_file)) =
                self.names().find(|(known, _, _)| *known == name)
            else {
                problems.push_from(&key, origin, self.unknown("key", &name));
                continue;
            };
            let texts = match texts {
                Ok(_) if is_array && !option.list => Err("expected one value, not a list".into()),
                other => other,
            };
            match texts {
                Err(message) => problems.push_from(format!("--{name}"), origin, message),
                Ok(texts) => {
                    let said = candidates.entry(option.name).or_default();
                    let written = format!("--{name}");
                    if said
                        .iter()
                        .any(|other| other.origin == origin && other.written == written)
                    {
                        problems.push_from(written, origin, "given in both spellings of the key");
                    } else {
                        said.push(Candidate {
                            origin,
                            written,
                            is_secret_file,
                            texts,
                        });
                    }
                }
            }
        }
    }
}

/// Kubernetes sets `NAME_SERVICE_HOST`, `NAME_PORT_7400_TCP_ADDR` and the like for every service of
/// a namespace, and a service named `cache-edge` hits our prefix. Those are nobody's mistake.
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

/// Judges every place's text, also of places that lose: a bad value that is hidden today bites
/// later.
fn resolve(
    option: &OptionSpec,
    said: Vec<Candidate>,
    settings: &mut Settings,
    problems: &mut Problems,
) {
    let was_given = !said.is_empty();
    let mut winner: Option<(Origin, Vec<Value>)> = None;
    let mut earlier: Option<(Origin, bool)> = None;
    for candidate in said {
        let Candidate {
            origin,
            written,
            is_secret_file,
            texts,
        } = candidate;
        // Only in one place is it a contradiction; across places precedence decides.
        let place = std::mem::discriminant(&origin);
        if let Some((other, other_is_file)) = &earlier
            && std::mem::discriminant(other) == place
            && *other_is_file != is_secret_file
        {
            let message = format!("conflicts with --{}-file: give one of them", option.name);
            problems.push_from(format!("--{}", option.name), origin.clone(), message);
            continue;
        }
        earlier = Some((origin.clone(), is_secret_file));
        let read = if is_secret_file {
            secret_from_files(&texts)
        } else {
            Ok(texts)
        };
        let parsed = read.and_then(|texts| parse_all(option, &texts));
        match parsed {
            Ok(values) if winner.is_none() => winner = Some((origin, values)),
            Ok(_) => {}
            Err(message) => problems.push_from(written, origin, message),
        }
    }
    if winner.is_none() && !was_given {
        match option
            .default
            .map(|text| parse_all(option, &[text.to_owned()]))
        {
            Some(Ok(values)) => winner = Some((Origin::Default, values)),
            Some(Err(message)) => {
                problems.push_from(format!("--{}", option.name), Origin::Default, message);
            }
            None if option.required => problems.push(
                option.name,
                match option.file_name() {
                    Some(name) => format!("required; give it or --{name}: {}", option.help),
                    None => format!("required: {}", option.help),
                },
            ),
            None => {}
        }
    }
    if let Some((origin, values)) = winner {
        settings.values.insert(option.name, values);
        settings.origins.insert(option.name, origin);
    }
}

fn secret_from_files(paths: &[String]) -> Result<Vec<String>, String> {
    let read = |path: &String| {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{path} can not be read: {error}"))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(format!("{path} is empty")),
            text => Ok(text.to_owned()),
        }
    };
    paths.iter().map(read).collect()
}

fn parse_all(option: &OptionSpec, texts: &[String]) -> Result<Vec<Value>, String> {
    let parse = |text: &str| {
        option.parse(text).map_err(|expected| match option.secret {
            true => format!("is not right: {expected}"),
            false => format!("{text:?} is not right: {expected}"),
        })
    };
    let splits = option.list && !matches!(option.kind, Kind::Checked(_));
    let mut values = Vec::with_capacity(texts.len());
    for text in texts {
        if splits {
            for part in text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
            {
                values.push(parse(part)?);
            }
        } else {
            values.push(parse(text)?);
        }
    }
    if values.is_empty() {
        Err("expected at least one value".to_owned())
    } else {
        Ok(values)
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
