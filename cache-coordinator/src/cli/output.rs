//! Results on standard output: a table for people, JSON or YAML for programs.

use std::io::Write;

use serde_json::Value;

use super::failure::CliError;
use super::globals::Output;

pub(super) struct Printer<'a> {
    output: Output,
    out: &'a mut dyn Write,
}

/// The rows of a table: plain text, columns two spaces apart, no escape codes.
pub(super) struct Rows {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Rows {
    pub(super) fn new(header: &[&'static str]) -> Self {
        Rows {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn push<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// A table of two columns: name and value.
    pub(super) fn of_fields<const N: usize>(fields: [(&'static str, String); N]) -> Self {
        let mut rows = Rows::new(&[]);
        for (name, value) in fields {
            rows.push([name.to_owned(), value]);
        }
        rows
    }

    /// Adds one named row to a table of [`Rows::of_fields`].
    pub(super) fn field(&mut self, name: &str, value: String) {
        self.push([name.to_owned(), value]);
    }

    pub(super) fn render(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if !self.header.is_empty() {
            table.set_header(self.header.iter().map(|cell| cell.to_uppercase()));
        }
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| printable(cell)));
        }
        let text = table.to_string();
        let mut plain = String::with_capacity(text.len());
        for line in text.lines() {
            // The style pads each cell by one space; the first column needs none.
            plain.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
            plain.push('\n');
        }
        plain
    }
}

impl<'a> Printer<'a> {
    pub(super) fn new(output: Output, out: &'a mut dyn Write) -> Self {
        Printer { output, out }
    }

    /// Prints the result of a command, in the requested form.
    pub(super) fn result(
        &mut self,
        json: &Value,
        table: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        let text = match self.output {
            Output::Json => format!("{json:#}\n"),
            Output::Yaml => yaml(json)?,
            Output::Table => table(),
        };
        self.write(&text)
    }

    /// Prints one JSON object on one line, or a YAML document, immediately.
    pub(super) fn line(&mut self, json: &Value) -> Result<(), CliError> {
        let text = match self.output {
            Output::Yaml => yaml_documents(std::slice::from_ref(json))?,
            Output::Json | Output::Table => format!("{json}\n"),
        };
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> Result<(), CliError> {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }
}

fn yaml(value: &Value) -> Result<String, CliError> {
    serde_saphyr::to_string(value)
        .map_err(|error| CliError::Refused(format!("output can not be written: {error}")))
}

/// YAML documents, each after a line of dashes.
pub(super) fn yaml_documents(values: &[Value]) -> Result<String, CliError> {
    let mut text = String::new();
    for value in values {
        text.push_str("---\n");
        text.push_str(&yaml(value)?);
    }
    Ok(text)
}

/// Replaces control characters, which must not reach a terminal: names come from origins and may
/// contain anything.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// `yes` or `no`.
pub(super) fn yes(flag: bool) -> String {
    if flag {
        "yes".to_owned()
    } else {
        "no".to_owned()
    }
}

/// The text, or a dash if it is empty.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

/// Warns on standard error that the change is done, but not on every edge yet.
pub(super) fn warn_unconfirmed(edges: &[String]) {
    if !edges.is_empty() {
        eprintln!(
            "warning: not yet confirmed by {}; they learn it when they are connected again",
            edges.join(", ")
        );
    }
}
