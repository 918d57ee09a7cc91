//! Settings as YAML documents: read by the rules of the command line, and written from the
//! registered state.
//!
//! A field of a source is an option of `source add` with the same name and the same values, so that
//! both always have the same settings.

use std::fs;
use std::path::{Path, PathBuf};

use chunkcache_proto::v1::Source;
use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value, json};

use super::failure::CliError;
use super::{precache, read_text, source_options};

/// Limit of the size of all files together.
const MAX_BYTES: u64 = 16 << 20;
/// The only field of a source that is not an option.
const BASE_URL: &str = "base-url";
/// Options that name a file; its path is relative to the document.
const FILES: [&str; 5] = [
    "header-file",
    "origin-ca",
    "client-cert",
    "client-key",
    "access-key-file",
];

/// Why a field is refused whose names differ.
const TWICE: &str = "given in two spellings";

/// Stands for a file's name or a secret: the coordinator's value is kept.
const KEPT: &str = "***";

/// A document and where it was read.
pub(super) struct Document {
    /// `FILE, document N`.
    pub place: String,
    pub content: Content,
}

pub(super) enum Content {
    Source(Box<Source>),
    Pin {
        entry: String,
    },
    /// The same as the arguments of `precache`.
    Precache(Box<precache::Wanted>),
}

impl Content {
    /// The name of the object that it describes.
    pub(super) fn name(&self) -> String {
        match self {
            Content::Source(source) => format!("Source {}", source.name),
            Content::Pin { entry } => format!("Pin {entry}"),
            Content::Precache(wanted) => format!("Precache {}", wanted.target),
        }
    }
}

/// All documents of a file, or of all `*.yaml`, `*.yml` and `*.json` files of a directory, in
/// order: sources first. `-` is standard input.
pub(super) fn read(path: &Path) -> Result<Vec<Document>, CliError> {
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    let mut bytes = 0;
    for file in files(path)? {
        let text = text_of(&file, &mut bytes)?;
        let parsed: Vec<Value> = serde_saphyr::from_multiple(&text)
            .map_err(|error| CliError::Usage(format!("{}: {error}", file.display())))?;
        for (number, value) in parsed.into_iter().enumerate() {
            if value.is_null() {
                continue;
            }
            let place = format!("{}, document {}", file.display(), number + 1);
            let beside = file.parent().unwrap_or(Path::new(""));
            match content(value, beside) {
                Ok(content) => documents.push(Document { place, content }),
                Err(problem) => errors.push(format!("{place}: {problem}")),
            }
        }
    }
    if !errors.is_empty() {
        return Err(CliError::Usage(errors.join("\n")));
    }
    let mut names: Vec<String> = documents.iter().map(|it| it.content.name()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(CliError::Usage(format!("{} is there twice", twice[0])));
    }
    documents.sort_by_key(|document| !matches!(document.content, Content::Source(_)));
    Ok(documents)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    let refuse = |error: std::io::Error| CliError::Usage(format!("-f {}: {error}", path.display()));
    if path == Path::new("-") || !fs::metadata(path).map_err(refuse)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(refuse)? {
        let file = entry.map_err(refuse)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort_unstable();
    if files.is_empty() {
        let missing = "holds no .yaml, .yml or .json file";
        return Err(CliError::Usage(format!("-f {} {missing}", path.display())));
    }
    Ok(files)
}

fn text_of(file: &Path, bytes: &mut u64) -> Result<String, CliError> {
    let refuse =
        |reason: &dyn std::fmt::Display| CliError::Usage(format!("{}: {reason}", file.display()));
    let text = read_text(file, MAX_BYTES).map_err(|error| refuse(&error))?;
    *bytes += text.len() as u64;
    if *bytes > MAX_BYTES {
        return Err(refuse(&"more than 16 MiB in all"));
    }
    Ok(text)
}

fn content(value: Value, beside: &Path) -> Result<Content, String> {
    let Value::Object(fields) = value else {
        return Err("expected a mapping with a kind".to_owned());
    };
    let written = fields;
    let mut fields = Map::new();
    for (name, value) in written {
        let name = name.replace('_', "-");
        if fields.insert(name.clone(), value).is_some() {
            return Err(format!("{name}: {TWICE}"));
        }
    }
    let kind = take_text(&mut fields, "kind")?;
    match kind.as_str() {
        "Source" => source(fields, beside).map(|it| Content::Source(Box::new(it))),
        "Pin" => {
            let entry = take_text(&mut fields, "entry")?;
            super::names::entry_name(&entry).map_err(|error| in_field("entry", &error))?;
            match fields.keys().next() {
                Some(other) => Err(format!("{other}: a Pin has no such field")),
                None => Ok(Content::Pin { entry }),
            }
        }
        "Precache" => {
            let target = take_text(&mut fields, "entry")?;
            let known = precache::arguments();
            let known = known.into_iter().filter(|it| it.get_id() != "follow");
            let command = Command::new("precache")
                .no_binary_name(true)
                .arg(Arg::new("TARGET").required(true))
                .args(known);
            let matches = parse(command, fields, beside, vec![target])?;
            let wanted = precache::Wanted::read(&matches).map_err(|error| said(&error))?;
            Ok(Content::Precache(Box::new(wanted)))
        }
        other => Err(format!("kind: {other} is none of Source, Pin and Precache")),
    }
}

fn source(mut fields: Map<String, Value>, beside: &Path) -> Result<Source, String> {
    let name = take_text(&mut fields, "name")?;
    chunkcache_proto::source_name::check_source_name(&name)
        .map_err(|error| format!("name: {error}"))?;
    let urls = fields
        .remove(BASE_URL)
        .ok_or_else(|| format!("{BASE_URL}: is missing"))?;
    let urls = texts(BASE_URL, urls)?;
    for url in &urls {
        source_options::base_url(url).map_err(|error| format!("{BASE_URL}: {error}"))?;
    }
    // The short names, as `source add` accepts them.
    for (short, full) in [("ca", "origin-ca"), ("endpoint", "s3-endpoint")] {
        if let Some(value) = fields.remove(short)
            && fields.insert(full.to_owned(), value).is_some()
        {
            return Err(format!("{full}: {TWICE}"));
        }
    }
    let base_url = Arg::new("BASE_URL")
        .num_args(1..)
        .value_parser(source_options::base_url);
    let command = Command::new("source")
        .no_binary_name(true)
        .arg(base_url)
        .args(source_options::arguments());
    let kept: Vec<&str> = FILES
        .into_iter()
        .filter(|name| fields.get(*name) == Some(&json!(KEPT)))
        .collect();
    fields.retain(|name, _| !kept.contains(&name.as_str()));
    let matches = parse(command, fields, beside, urls)?;
    let mut source = Source {
        name,
        ..Source::default()
    };
    source_options::apply(&matches, &mut source).map_err(|error| said(&error))?;
    for name in kept {
        keep(name, &mut source)?;
    }
    Ok(source)
}

/// Marks the content of a file so that the coordinator keeps its present value.
fn keep(name: &str, source: &mut Source) -> Result<(), String> {
    let kept = || KEPT.to_owned();
    let connection = source.connection.get_or_insert_default();
    match name {
        "origin-ca" => connection.ca_pem = kept(),
        "client-cert" => connection.client_cert_pem = kept(),
        "client-key" => connection.client_key_pem = kept(),
        "access-key-file" => {
            let s3 = source.s3.get_or_insert_default();
            (s3.access_key_id, s3.secret_access_key) = (kept(), kept());
        }
        _ => return Err(format!("{name}: {KEPT} is not possible; use header")),
    }
    Ok(())
}

/// Parses fields as the options of the same names.
fn parse(
    command: Command,
    fields: Map<String, Value>,
    beside: &Path,
    mut words: Vec<String>,
) -> Result<clap::ArgMatches, String> {
    for (name, value) in fields {
        let Some(option) = command
            .get_arguments()
            .find(|option| option.get_long() == Some(&name))
        else {
            return Err(format!("{name}: there is no such field"));
        };
        let is_list = matches!(option.get_action(), ArgAction::Append);
        let values = texts(&name, value)?;
        if values.len() != 1 && !is_list {
            return Err(format!("{name}: expected one value"));
        }
        for value in values {
            let value = if FILES.contains(&name.as_str()) && !value.is_empty() {
                beside.join(value).display().to_string()
            } else {
                value
            };
            words.push(format!("--{name}={value}"));
        }
    }
    command.try_get_matches_from(words).map_err(|error| {
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        line.trim_start_matches("error: ").replace("'--", "'")
    })
}

fn take_text(fields: &mut Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.remove(name) {
        None | Some(Value::Null) => Err(format!("{name}: is missing")),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("{name}: expected a text")),
    }
}

/// One value, or several.
fn texts(name: &str, value: Value) -> Result<Vec<String>, String> {
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        // A whole number that a template wrote as 1e+06.
        Value::Number(number) => Ok(match number.as_f64() {
            Some(float) if number.is_f64() => float.to_string(),
            _ => number.to_string(),
        }),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(format!("{name}: expected a text, a number, true or false")),
    };
    match value {
        Value::Array(values) => values.into_iter().map(one).collect(),
        value => one(value).map(|value| vec![value]),
    }
}

fn in_field(name: &str, error: &CliError) -> String {
    format!("{name}: {}", said(error))
}

fn said(error: &CliError) -> String {
    match error {
        CliError::Usage(text) | CliError::Refused(text) => {
            text.strip_prefix("--").unwrap_or(text).to_owned()
        }
        CliError::OutputClosed => String::new(),
    }
}

/// The document of a source, with the settings that differ from the defaults.
pub(super) fn of_source(source: &Source) -> Value {
    let mut document = Map::new();
    let mut put = |name: &str, value: Value| {
        let is_default = match &value {
            Value::Null => true,
            Value::Bool(flag) => !flag,
            Value::Number(number) => number.as_u64() == Some(0),
            Value::String(text) => text.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Object(_) => false,
        };
        if !is_default {
            document.insert(name.to_owned(), value);
        }
    };
    let seconds = |ttl: Option<u32>| ttl.map(|ttl| format!("{ttl}s"));
    let ms = |timeout: Option<u32>| timeout.map(|timeout| format!("{timeout}ms"));
    put("kind", json!("Source"));
    put("name", json!(source.name));
    if source.further_base_urls.is_empty() {
        put(BASE_URL, json!(source.base_url));
    } else {
        let mut urls = vec![source.base_url.clone()];
        urls.extend(source.further_base_urls.iter().cloned());
        put(BASE_URL, json!(urls));
    }
    put("max-connections", json!(source.max_connections));
    put("max-rate", json!(source.max_rate_bytes_per_second));
    put("quota", json!(source.quota_bytes));
    let mode = super::view::mode(source.mode());
    put("mode", json!(if mode == "serve" { "" } else { mode }));
    if let Some(fill) = source.background_fill {
        // `false` differs from an unset value.
        put("background-fill", json!(fill.to_string()));
    }
    let headers = source.headers.iter();
    let headers: Vec<String> = headers
        .map(|it| format!("{}: {}", it.name, it.value))
        .collect();
    put("header", json!(headers));
    put("failover-404", json!(source.failover_on_not_found));
    put("forward-credentials", json!(source.forward_credentials));
    put("forward-header", json!(source.forward_headers));
    put("allow-redirect-to", json!(source.redirect_hosts));
    if let Some(connection) = &source.connection {
        put("connect-timeout", json!(ms(connection.connect_timeout_ms)));
        put(
            "first-byte-timeout",
            json!(ms(connection.first_byte_timeout_ms)),
        );
        put("idle-timeout", json!(ms(connection.idle_timeout_ms)));
        put("max-connection-age", json!(ms(connection.max_age_ms)));
        let mut put_kept = |name: &str, pem: &str| {
            put(name, json!(if pem.is_empty() { "" } else { KEPT }));
        };
        put_kept("origin-ca", &connection.ca_pem);
        put_kept("client-cert", &connection.client_cert_pem);
        put_kept("client-key", &connection.client_key_pem);
        put("host", json!(connection.host));
        put("http-proxy", json!(connection.http_proxy));
    }
    if let Some(s3) = &source.s3 {
        put("region", json!(s3.region));
        put("s3-endpoint", json!(s3.endpoint));
        put("path-style", json!(s3.path_style));
        let has_keys = !s3.access_key_id.is_empty();
        put("access-key-file", json!(if has_keys { KEPT } else { "" }));
    }
    if let Some(keys) = &source.key_rules {
        put("ignore-query", json!(keys.ignore_query));
        put("only-query", json!(keys.only_query));
        put("keep-query", json!(keys.keep_query));
        put("sort-query", json!(keys.sort_query));
        put(
            "presigned",
            json!(if keys.trust_cache { "trust-cache" } else { "" }),
        );
        put("fold-path-case", json!(keys.fold_path_case));
    }
    if let Some(freshness) = &source.freshness {
        put("default-ttl", json!(seconds(freshness.default_ttl_seconds)));
        put(
            "override-ttl",
            json!(seconds(freshness.override_ttl_seconds)),
        );
        put(
            "stale-if-error",
            json!(seconds(freshness.stale_if_error_seconds)),
        );
        put(
            "negative-ttl",
            json!(seconds(freshness.negative_ttl_seconds)),
        );
    }
    let ttls = source.ttl_rules.iter();
    let ttls: Vec<String> = ttls
        .map(|rule| format!("{}={}s", rule.pattern, rule.seconds))
        .collect();
    put("ttl", json!(ttls));
    Value::Object(document)
}

/// The JSON Schema of the documents, for editors.
pub(super) fn schema() -> Value {
    let source = properties(source_options::arguments());
    let precache = properties(precache::arguments());
    let of_kind = |kind: &str, required: &[&str], more: &[&str], mut known: Map<String, Value>| {
        known.insert("kind".to_owned(), json!({ "const": kind }));
        for name in more {
            known.insert((*name).to_owned(), json!({ "type": "string" }));
        }
        if kind == "Source" {
            known.insert(
                BASE_URL.to_owned(),
                one_or_many(&json!({ "type": "string" })),
            );
        }
        json!({
            "type": "object",
            "required": required,
            "properties": known,
            "additionalProperties": false,
        })
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of a chunk cache",
        "oneOf": [
            of_kind("Source", &["kind", "name", BASE_URL], &["name", "ca", "endpoint"], source),
            of_kind("Pin", &["kind", "entry"], &["entry"], Map::new()),
            of_kind("Precache", &["kind", "entry"], &["entry"], precache),
        ],
    })
}

fn properties(options: Vec<clap::Arg>) -> Map<String, Value> {
    let named = options.iter().filter_map(|option| {
        let name = option.get_long()?;
        let scalar = json!({ "type": ["string", "number", "boolean"] });
        let mut property = if matches!(option.get_action(), ArgAction::Append) {
            one_or_many(&scalar)
        } else {
            scalar
        };
        let help = option.get_help().map(ToString::to_string);
        property["description"] = json!(help.unwrap_or_default());
        (!matches!(name, "follow" | "file")).then(|| (name.to_owned(), property))
    });
    named.collect()
}

fn one_or_many(one: &Value) -> Value {
    json!({ "anyOf": [one, { "type": "array", "items": one }] })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<Vec<Document>, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("all.yaml");
        fs::write(&file, text).unwrap();
        read(&file).map_err(|error| said(&error))
    }

    fn source_of(text: &str) -> Source {
        match written(text).unwrap().remove(0).content {
            Content::Source(source) => *source,
            _ => panic!("no source"),
        }
    }

    #[test]
    fn a_source_is_what_source_add_makes_and_is_written_as_it_was_read() {
        let source = source_of(
            "kind: Source\nname: films\nbase_url: [http://o/films, http://p/films]\n\
             max-connections: 4\n\
             quota: 10GiB\nheader:\n- 'X-A: b'\nignore_query: [utm_*, sid]\nttl: '*.m3u8=2s'\n\
             max-rate: 1.048576e+06\n\
             first-byte-timeout: 90s\nbackground-fill: false\nmode: record\n",
        );
        assert_eq!((source.max_connections, source.quota_bytes), (4, 10 << 30));
        assert_eq!(source.max_rate_bytes_per_second, 1 << 20);
        assert_eq!(source.further_base_urls, ["http://p/films"]);
        assert_eq!(source.background_fill, Some(false));
        let text = serde_saphyr::to_string(&of_source(&source)).unwrap();
        assert_eq!(source_of(&text), source, "{text}");
    }

    #[test]
    fn the_content_of_files_is_exported_as_what_the_coordinator_keeps() {
        let mut source = source_of("kind: Source\nname: films\nbase-url: https://o/films\n");
        source.connection = Some(chunkcache_proto::v1::OriginConnection {
            ca_pem: "a certificate".into(),
            client_cert_pem: "another".into(),
            client_key_pem: KEPT.into(),
            ..Default::default()
        });
        let text = serde_saphyr::to_string(&of_source(&source)).unwrap();
        let connection = source_of(&text).connection.unwrap();
        for pem in [
            &connection.ca_pem,
            &connection.client_cert_pem,
            &connection.client_key_pem,
        ] {
            assert_eq!(pem, KEPT, "{text}");
        }
        let bucket = "kind: Source\nname: films\nbase-url: s3://b/films\nregion: r\n";
        let mut source = source_of(bucket);
        let s3 = source.s3.as_mut().unwrap();
        (s3.access_key_id, s3.secret_access_key) = ("id".into(), KEPT.into());
        let text = serde_saphyr::to_string(&of_source(&source)).unwrap();
        let s3 = source_of(&text).s3.unwrap();
        assert_eq!((&*s3.access_key_id, &*s3.secret_access_key), (KEPT, KEPT));
        assert!(written(&format!("{bucket}header-file: '***'\n")).is_err());
    }

    #[test]
    fn errors_name_the_file_the_document_and_the_field() {
        for (text, expected) in [
            (
                "kind: Source\nname: films\n",
                "document 1: base-url: is missing",
            ),
            (
                "kind: Pin\nentry: a/b\n---\nkind: Source\nname: films\nbase-url: http://o\n\
                 max-conections: 4\n",
                "document 2: max-conections: there is no such field",
            ),
            (
                "kind: Source\nname: films\nbase-url: http://o\nmax-connections: many\n",
                "max-connections",
            ),
            (
                "kind: Source\nname: films\nbase-url: http://o\nquota: [1, 2]\n",
                "quota: expected one value",
            ),
            (
                "kind: Source\nname: films\nbase-url: http://o\nnegative-ttl: 500ms\n",
                "negative-ttl",
            ),
            (
                "kind: Source\nname: films\nbase-url: http://o\nttl: '*.m3u8=500ms'\n",
                "ttl: expected whole seconds",
            ),
            ("kind: Sauce\n", "kind: Sauce is none of"),
            (
                "kind: Source\nname: films\nbase-url: http://o\nmax_rate: 1\nmax-rate: 2\n",
                "max-rate: given in two spellings",
            ),
            (
                "kind: Source\nname: films\nbase-url: http://o\nca: a\norigin_ca: b\n",
                "origin-ca: given in two spellings",
            ),
            ("- a\n", "expected a mapping"),
            (
                "kind: Pin\nentry: a/b\nmore: 1\n",
                "more: a Pin has no such field",
            ),
            ("kind: Precache\nentry: a/b\nrange: x\n", "range"),
        ] {
            let Err(error) = written(text) else {
                panic!("{text} was read");
            };
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.contains("all.yaml, document"), "{error}");
        }
        assert!(written("kind: Pin\nentry: a/b\n---\nkind: Pin\nentry: a/b\n").is_err());
        assert!(written("kind: [").is_err());
    }

    #[test]
    fn sources_come_first_and_the_schema_knows_every_field() {
        let all = written(
            "kind: Precache\nentry: films/a\nrange: 0-99\n---\nkind: Source\nname: films\n\
             base-url: http://o\n",
        );
        let names: Vec<String> = all.unwrap().iter().map(|it| it.content.name()).collect();
        assert_eq!(names, ["Source films", "Precache films/a"]);
        let schema = schema();
        for option in source_options::arguments() {
            let name = option.get_long().unwrap();
            assert!(schema["oneOf"][0]["properties"][name].is_object(), "{name}");
        }
    }
}
