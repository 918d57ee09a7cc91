//! What an option is.

use super::value::{
    Secret, Value, parse_bool, parse_bytes, parse_bytes_or_percent, parse_duration, parse_rate,
    parse_socket_address, parse_url,
};

/// What an option's text must look like, and what it becomes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `--flag`, `--flag=false`.
    Bool,
    /// Any text.
    Text,
    /// `10GiB`, `64MB`, plain bytes.
    Bytes,
    /// As [`Kind::Bytes`], or `5%`.
    BytesOrPercent,
    /// `30s`, `250ms`, `1m30s`.
    Duration,
    /// Bytes per second: `10MiB`, `10MiB/s`.
    Rate,
    /// A whole number in these bounds, both inclusive.
    Integer { min: u64, max: u64 },
    /// A number from 0 to 1, both inclusive.
    Ratio,
    /// An absolute `http` or `https` URL.
    Url,
    /// `127.0.0.1:7400`, `[::1]:7400`, `localhost:7400`.
    SocketAddress,
    /// A path, not checked here.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text that this function accepts; its error says what would be right.
    Checked(fn(&str) -> Result<(), String>),
}

impl Kind {
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        match *self {
            Kind::Bool => parse_bool(text).map(Value::Bool),
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Bytes => parse_bytes(text).map(Value::Integer),
            Kind::BytesOrPercent => parse_bytes_or_percent(text).map(Value::Share),
            Kind::Duration => parse_duration(text).map(Value::Duration),
            Kind::Rate => parse_rate(text).map(Value::Integer),
            Kind::Integer { min, max } => match text.parse::<u64>() {
                Ok(number) if (min..=max).contains(&number) => Ok(Value::Integer(number)),
                _ => Err(format!("expected a whole number from {min} to {max}")),
            },
            Kind::Ratio => match text.parse::<f64>() {
                Ok(number) if (0.0..=1.0).contains(&number) => Ok(Value::Ratio(number)),
                _ => Err("expected a number from 0 to 1".to_owned()),
            },
            Kind::Url => parse_url(text).map(Value::Url),
            Kind::SocketAddress => parse_socket_address(text).map(Value::SocketAddress),
            Kind::Path if text.is_empty() => Err("expected a path".to_owned()),
            Kind::Path => Ok(Value::Path(text.into())),
            Kind::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::Choice(words) => Err(format!("expected one of {}", words.join(", "))),
            Kind::Checked(check) => check(text).map(|()| Value::Text(text.to_owned())),
        }
    }

    /// What a value looks like, for the reference.
    pub(super) fn describe(&self) -> String {
        match *self {
            Kind::Bool => "`true` or `false`".to_owned(),
            Kind::Text | Kind::Checked(_) => "text".to_owned(),
            Kind::Bytes => "bytes (`10GiB`, `64MB`, `4096`)".to_owned(),
            Kind::BytesOrPercent => "bytes (`10GiB`) or percent (`5%`)".to_owned(),
            Kind::Duration => "duration (`250ms`, `30s`, `5m`)".to_owned(),
            Kind::Rate => "bytes per second (`10MiB`)".to_owned(),
            Kind::Integer {
                min: 0,
                max: u64::MAX,
            } => "whole number".to_owned(),
            Kind::Integer { min, max } => format!("whole number, {min} to {max}"),
            Kind::Ratio => "number, 0 to 1".to_owned(),
            Kind::Url => "URL".to_owned(),
            Kind::SocketAddress => "`ADDRESS:PORT`".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::Choice(words) => words
                .iter()
                .map(|word| format!("`{word}`"))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

/// One option. Built in `const` tables:
/// `OptionSpec::new("max-size", "BYTES", Kind::Bytes, "Bytes of chunks kept").default("10GiB")`.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Kebab-case: the flag without its dashes, the TOML key, and (upper-snake) the end of the
    /// variable.
    pub name: &'static str,
    pub value_name: &'static str,
    pub kind: Kind,
    /// The text that stands when nobody gives one; parsed like any other.
    pub default: Option<&'static str>,
    /// Said in help where the default is not a constant: "from --listen".
    pub default_note: Option<&'static str>,
    /// One or two sentences, with units.
    pub help: &'static str,
    pub required: bool,
    /// Given several times, comma separated, or as a TOML array.
    pub list: bool,
    /// Never printed; `--NAME-file` takes it from a file.
    pub secret: bool,
}

impl OptionSpec {
    pub const fn new(
        name: &'static str,
        value_name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> Self {
        OptionSpec {
            name,
            value_name,
            kind,
            default: None,
            default_note: None,
            help,
            required: false,
            list: false,
            secret: false,
        }
    }

    #[must_use]
    pub const fn default(mut self, text: &'static str) -> Self {
        self.default = Some(text);
        self
    }

    #[must_use]
    pub const fn default_note(mut self, note: &'static str) -> Self {
        self.default_note = Some(note);
        self
    }

    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    #[must_use]
    pub const fn list(mut self) -> Self {
        self.list = true;
        self
    }

    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Parses one text, wrapping secrets so that they can not be printed.
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        let value = self.kind.parse(text)?;
        Ok(if self.secret {
            Value::Secret(Secret::new(text))
        } else {
            value
        })
    }

    pub(super) fn file_name(&self) -> Option<String> {
        self.secret.then(|| format!("{}-file", self.name))
    }
}

/// All options of one binary's `serve`.
#[derive(Clone, Debug)]
pub struct Table {
    /// `CACHE_EDGE`: variables are `CACHE_EDGE_MAX_SIZE`.
    pub prefix: &'static str,
    pub options: Vec<OptionSpec>,
    /// Variables under the prefix that belong to other commands of the same binary.
    pub foreign_variables: &'static [&'static str],
}

impl Table {
    /// Joins a binary's own options with the shared ones.
    pub fn new(prefix: &'static str, groups: &[&[OptionSpec]]) -> Self {
        let options: Vec<OptionSpec> = groups
            .iter()
            .flat_map(|group| group.iter().copied())
            .collect();
        for (index, option) in options.iter().enumerate() {
            assert!(
                options[..index]
                    .iter()
                    .all(|earlier| earlier.name != option.name),
                "option {} stands twice in the table",
                option.name
            );
            assert!(
                option
                    .default
                    .is_none_or(|text| option.kind.parse(text).is_ok()),
                "the default of option {} does not parse",
                option.name
            );
        }
        Table {
            prefix,
            options,
            foreign_variables: &[],
        }
    }

    #[must_use]
    pub fn foreign_variables(mut self, names: &'static [&'static str]) -> Self {
        self.foreign_variables = names;
        self
    }

    /// `max-size` → `CACHE_EDGE_MAX_SIZE`.
    pub fn variable(&self, name: &str) -> String {
        format!("{}_{}", self.prefix, name.replace('-', "_").to_uppercase())
    }

    /// Every name with the option it gives a value to; `true` where it is the `-file` form of a
    /// secret.
    pub(super) fn names(&self) -> impl Iterator<Item = (String, &OptionSpec, bool)> {
        self.options.iter().flat_map(|option| {
            let plain = (option.name.to_owned(), option, false);
            let from_file = option.file_name().map(|name| (name, option, true));
            std::iter::once(plain).chain(from_file)
        })
    }
}
