//! The configuration reference, written from the tables: `docs/configuration.md` is its output and
//! a test in each service compares the two.

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

const HEAD: &str = "# Configuration\n\n\
    Written from the option tables in the code (`just reference`); tests compare it with them.\n\n\
    Every option is a flag, an environment variable and a TOML key (with `-` or `_`) in `--config FILE`. \
    Flags win over the environment, the environment over the file, the file over the default. An empty \
    variable counts as not set. All mistakes are reported together, with exit status 2, before any port is bound.\n";

/// A page with this binary's section brought up to date. The services do not know each other, so
/// each keeps the section of its own; an empty page is begun.
pub fn reference_page(page: &str, binary: &str, table: &Table) -> String {
    let heading = format!("\n## `{binary}`\n");
    let section = format!("{heading}\n{}", table.reference());
    let page = if page.is_empty() { HEAD } else { page };
    let Some(start) = page.find(&heading) else {
        return format!("{page}{section}");
    };
    let after = start + heading.len();
    let end = page[after..]
        .find("\n## ")
        .map_or(page.len(), |next| after + next);
    format!("{}{section}{}", &page[..start], &page[end..])
}

#[cfg(test)]
mod tests {
    use super::super::spec::{Kind, OptionSpec};
    use super::*;

    #[test]
    fn each_binary_replaces_its_own_section() {
        const OLD: &[OptionSpec] = &[OptionSpec::new("old", "X", Kind::Text, "Old")];
        const NEW: &[OptionSpec] = &[OptionSpec::new("new", "X", Kind::Text, "New")];
        let (old, new) = (Table::new("A", &[OLD]), Table::new("A", &[NEW]));
        let page = reference_page(&reference_page("", "one serve", &old), "two serve", &old);
        let changed = reference_page(&page, "one serve", &new);
        assert!(changed.starts_with("# Configuration"));
        assert!(changed.contains("`--new`"));
        assert_eq!(changed.matches("`--old`").count(), 1, "{changed}");
        assert_eq!(reference_page(&changed, "one serve", &old), page);
        let both = reference_page(&changed, "two serve", &new);
        assert!(!both.contains("`--old`"), "{both}");
    }
}
