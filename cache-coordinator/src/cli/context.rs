//! `context`: coordinators by name, with the settings that each connection needs, kept in a file in
//! the user's configuration directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use chunkcache_proto::source_name::check_name;
use clap::{Arg, ArgMatches, Command};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service_kit::text_file;

use super::failure::CliError;
use super::globals;
use super::output::{Printer, Rows, or_dash, yes};
use super::{text, unknown_verb, verb};

/// Path of the file below the user's configuration directory.
const PLACE: &str = "chunkcache/contexts.toml";
/// Enough for a thousand contexts with long paths.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One coordinator, or several of one cluster. Paths are absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    pub endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// The file of contexts.
#[derive(Debug)]
pub(super) struct Contexts {
    path: PathBuf,
    content: Content,
}

impl Contexts {
    /// Reads the file; a missing one counts as empty.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CliError> {
        let path = Self::place(variable)?;
        let content =
            read(&path).map_err(|why| CliError::Usage(format!("{}: {why}", path.display())))?;
        Ok(Self { path, content })
    }

    /// Reads the file to change it: no other command changes it until the lock is dropped.
    fn read_locked(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, fs::File), CliError> {
        let path = Self::place(&variable)?;
        let lock = lock(&path).map_err(|error| unwritable(&path, &error))?;
        Ok((Self::read(variable)?, lock))
    }

    fn place(variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf, CliError> {
        let absolute = |name| {
            variable(name)
                .map(PathBuf::from)
                .filter(|it| it.is_absolute())
        };
        let directory = absolute("XDG_CONFIG_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".config")))
            .ok_or_else(|| {
                CliError::Usage("contexts: neither XDG_CONFIG_HOME nor HOME is set".to_owned())
            })?;
        Ok(directory.join(PLACE))
    }

    /// The context of that name.
    pub(super) fn named(&self, name: &str) -> Result<Context, CliError> {
        let known = self.content.contexts.get(name);
        known.cloned().ok_or_else(|| self.unknown(name))
    }

    /// The context in use, with its name.
    pub(super) fn current(&self) -> Result<Option<(String, Context)>, CliError> {
        let Some(name) = &self.content.current else {
            return Ok(None);
        };
        Ok(Some((name.clone(), self.named(name)?)))
    }

    fn unknown(&self, name: &str) -> CliError {
        let known: Vec<&str> = self.content.contexts.keys().map(String::as_str).collect();
        let known = match known.as_slice() {
            [] => "there is none: `context add` adds one".to_owned(),
            known => format!("there are: {}", known.join(", ")),
        };
        let path = self.path.display();
        CliError::Usage(format!("no context {name:?} in {path}; {known}"))
    }

    fn write(&self) -> Result<(), CliError> {
        self.replace()
            .map_err(|error| unwritable(&self.path, &error))
    }

    /// Writes a new file beside the old one and renames it, so that a reader sees either. A link is
    /// followed.
    fn replace(&self) -> io::Result<()> {
        let text = toml::to_string(&self.content).map_err(io::Error::other)?;
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let beside = path.with_extension(format!("toml.{}", std::process::id()));
        let written = (|| {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&beside)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

/// Locks the directory, because the file itself is replaced.
fn lock(path: &Path) -> io::Result<fs::File> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let directory = fs::File::open(directory)?;
    directory.lock()?;
    Ok(directory)
}

fn unwritable(path: &Path, error: &io::Error) -> CliError {
    CliError::Refused(format!("{} can not be written: {error}", path.display()))
}

fn read(path: &Path) -> Result<Content, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::default()),
        Err(error) => return Err(format!("can not be read: {error}")),
    };
    let text = text_file::read_from(file, MAX_FILE_BYTES);
    let text = text.map_err(|error| format!("can not be read: {error}"))?;
    toml::from_str(&text).map_err(|error| error.to_string().trim_end().to_owned())
}

pub(super) fn command() -> Command {
    let name = || {
        Arg::new("NAME")
            .required(true)
            .value_parser(|name: &str| match check_name(name) {
                Ok(()) => Ok(name.to_owned()),
                Err(error) => Err(error.to_string()),
            })
            .help("The context's name")
    };
    Command::new("context")
        .about(
            "Coordinators by name; what is given with a command or in its environment goes \
         before",
        )
        .subcommand_required(true)
        .subcommands([
            Command::new("add")
                .about(
                    "Add or replace a context: its --endpoint, --token-file, --ca, --cert and \
                 --key",
                )
                .arg(name()),
            Command::new("list").about("All contexts"),
            Command::new("use")
                .about("Use a context from now on where neither --context nor an endpoint is given")
                .arg(name()),
            Command::new("remove")
                .about("Remove a context; the files it names stay")
                .arg(name()),
        ])
}

pub(super) fn run(
    matches: &ArgMatches,
    variable: impl Fn(&str) -> Option<String>,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let (verb, arguments) = verb(matches)?;
    let (mut contexts, _lock) = match verb {
        "list" => (Contexts::read(variable)?, None),
        _ => Contexts::read_locked(variable).map(|(contexts, lock)| (contexts, Some(lock)))?,
    };
    match verb {
        "add" => {
            let name = text(arguments, "NAME")?;
            let context = from_options(arguments)?;
            let json = json(name, &context, contexts.is_current(name));
            contexts.content.contexts.insert(name.to_owned(), context);
            contexts.write()?;
            printer.result(&json, || {
                format!("context {name} added; `context use {name}` makes it the default\n")
            })
        }
        "list" => {
            let all = contexts.content.contexts.iter();
            let json: Value = all
                .map(|(name, it)| json(name, it, contexts.is_current(name)))
                .collect();
            printer.result(&json, || table(&contexts))
        }
        "use" => {
            let name = text(arguments, "NAME")?;
            let context = contexts.named(name)?;
            contexts.content.current = Some(name.to_owned());
            contexts.write()?;
            let json = json(name, &context, true);
            printer.result(&json, || format!("context {name} is used from now on\n"))
        }
        "remove" => {
            let name = text(arguments, "NAME")?;
            contexts.named(name)?;
            if contexts.is_current(name) {
                contexts.content.current = None;
            }
            contexts.content.contexts.remove(name);
            contexts.write()?;
            let json = json!({"name": name, "removed": true});
            printer.result(&json, || format!("context {name} removed\n"))
        }
        other => Err(unknown_verb(other)),
    }
}

impl Contexts {
    fn is_current(&self, name: &str) -> bool {
        self.content.current.as_deref() == Some(name)
    }
}

/// Reports mistakes now, so that later commands need not.
fn from_options(matches: &ArgMatches) -> Result<Context, CliError> {
    let endpoint = matches.get_one::<String>("endpoint").ok_or_else(|| {
        CliError::Usage("--endpoint is missing: the context's coordinator".to_owned())
    })?;
    globals::endpoints(endpoint, "--endpoint")?;
    let file = |name: &str| {
        let given = matches.get_one::<String>(name);
        let absolute = given.map(|path| {
            fs::canonicalize(path).map_err(|error| {
                CliError::Usage(format!("--{name} {path} can not be read: {error}"))
            })
        });
        absolute.transpose()
    };
    let context = Context {
        endpoint: endpoint.clone(),
        token_file: file("token-file")?,
        ca: file("ca")?,
        cert: file("cert")?,
        key: file("key")?,
    };
    if context.cert.is_some() != context.key.is_some() {
        return Err(CliError::Usage("--cert and --key go together".to_owned()));
    }
    Ok(context)
}

fn json(name: &str, context: &Context, is_current: bool) -> Value {
    json!({
        "name": name,
        "current": is_current,
        "endpoint": context.endpoint,
        "token_file": context.token_file,
        "ca": context.ca,
        "cert": context.cert,
        "key": context.key,
    })
}

fn table(contexts: &Contexts) -> String {
    let mut rows = Rows::new(&["name", "current", "endpoint", "token file", "ca"]);
    let path = |path: &Option<PathBuf>| {
        or_dash(
            &path
                .as_ref()
                .map_or(String::new(), |it| it.display().to_string()),
        )
    };
    for (name, context) in &contexts.content.contexts {
        rows.push([
            name.clone(),
            yes(contexts.is_current(name)),
            context.endpoint.clone(),
            path(&context.token_file),
            path(&context.ca),
        ]);
    }
    rows.render()
}
