//! The keys of `--config FILE`.

use std::path::Path;

use toml::Value as Toml;

use super::MAX_FILE_BYTES;
use crate::text_file;

/// The value of a key, as it would be written for a flag.
pub(super) enum Texts {
    One(String),
    List(Vec<String>),
}

impl Texts {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::List(texts) => texts,
        }
    }
}

/// Each key as written, with its value or its error.
type Keys = Vec<(String, Result<Texts, String>)>;

/// Reads and parses a file; the error is a plain sentence.
pub(super) fn read(path: &Path) -> Result<Keys, String> {
    let text = text_file::read(path, MAX_FILE_BYTES);
    let text = text.map_err(|error| format!("cannot be read: {error}"))?;
    parse(&text)
}

/// Parses a file. A syntax error names line and column but not the text, which may be a secret.
fn parse(text: &str) -> Result<Keys, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let place = error.span().map_or(String::new(), |span| {
            let before = text.get(..span.start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
            format!(" at line {line}, column {column}")
        });
        format!("is not TOML{place}: {}", error.message().trim_end())
    })?;
    let texts = |value| match value {
        Toml::Array(items) => {
            let items: Result<_, _> = items.into_iter().map(scalar).collect();
            items.map(Texts::List)
        }
        other => scalar(other).map(Texts::One),
    };
    Ok(table
        .into_iter()
        .map(|(key, value)| (key, texts(value)))
        .collect())
}

fn scalar(value: Toml) -> Result<String, String> {
    match value {
        Toml::String(text) => Ok(text),
        Toml::Integer(number) => Ok(number.to_string()),
        Toml::Float(number) => Ok(number.to_string()),
        Toml::Boolean(flag) => Ok(flag.to_string()),
        Toml::Datetime(_) => Err("expected text, a number or a boolean, not a date".to_owned()),
        Toml::Array(_) => Err("expected a flat list".to_owned()),
        Toml::Table(_) => {
            Err("expected a value, not a table: all keys are at the top level".to_owned())
        }
    }
}
