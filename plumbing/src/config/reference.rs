//! The configuration reference, written from the tables: `docs/configuration.md` is its output and a
//! test in each service compares the two.

use std::fmt::Write as _;

use super::spec::{Kind, Table};

impl Table {
    /// A Markdown table: one row an option, with variable, value, default and meaning.
    pub fn reference(&self) -> String {
        let mut text = String::from(
            "| flag and TOML key | environment | value | default | meaning |\n|---|---|---|---|---|\n",
        );
        for option in &self.options {
            let default = match (option.default, option.default_note) {
                (_, Some(note)) => note.to_owned(),
                (Some(text), None) => format!("`{text}`"),
                (None, None) if option.required => "none, required".to_owned(),
                (None, None) if matches!(option.kind, Kind::Bool) => "`false`".to_owned(),
                (None, None) => "none".to_owned(),
            };
            let mut value = option.kind.describe();
            if option.list {
                value.push_str("; several");
            }
            let mut meaning = option.help.to_owned();
            if let Some(name) = option.file_name() {
                let variable = self.variable(&name);
                let _ = write!(
                    meaning,
                    ". Secret; also from a file: `--{name}`, `{variable}`"
                );
            }
            let cells = [
                format!("`--{}`", option.name),
                format!("`{}`", self.variable(option.name)),
                value,
                default,
                meaning,
            ];
            let _ = writeln!(
                text,
                "| {} |",
                cells.map(|cell| cell.replace('|', "\\|")).join(" | ")
            );
        }
        text
    }
}

/// The whole page: a heading and a table for each binary, in the order given.
pub fn reference_page(binaries: &[(&str, &Table)]) -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Written from the option tables in the code; a test compares it with them.\n\n\
         Every option is a flag, an environment variable and a TOML key (with `-` or `_`) in `--config FILE`. \
         Flags win over the environment, the environment over the file, the file over the default. An empty \
         variable counts as not set. All mistakes are reported together, with exit status 2, before any port is bound.\n",
    );
    for (name, table) in binaries {
        let _ = write!(page, "\n## `{name}`\n\n{}", table.reference());
    }
    page
}
