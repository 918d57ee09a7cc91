//! The keys of `--config FILE`.

use toml::Value as Toml;

/// One key of the file: its name as written, and its texts (several for an array).
pub(super) struct FileKey {
    pub key: String,
    pub texts: Result<Vec<String>, String>,
    pub is_array: bool,
}

/// Reads and takes apart a file; the error is a plain sentence.
pub(super) fn read(path: &str) -> Result<Vec<FileKey>, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("can not be read: {error}"))?;
    parse(&text)
}

/// A syntax error names line and column and not the text there, which may be a secret.
fn parse(text: &str) -> Result<Vec<FileKey>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let place = error.span().map_or(String::new(), |span| {
            let before = text.get(..span.start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
            format!(" at line {line}, column {column}")
        });
        format!("is not TOML{place}: {}", error.message().trim_end())
    })?;
    Ok(table
        .into_iter()
        .map(|(key, value)| {
            let is_array = matches!(value, Toml::Array(_));
            let texts = match value {
                Toml::Array(items) => items.into_iter().map(scalar).collect(),
                other => scalar(other).map(|text| vec![text]),
            };
            FileKey {
                key,
                texts,
                is_array,
            }
        })
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
            Err("expected a value, not a table: all keys stand at the top level".to_owned())
        }
    }
}
