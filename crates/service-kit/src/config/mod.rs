//! One table of options a binary, and everything that follows from it: flags with help, environment
//! variables, keys of a TOML file, and the written reference.
//!
//! Why a table: an operator meets the same option in four places, and four hand-written lists drift
//! apart. Why not clap's own validation: it stops at the first mistake, and an operator who rolls
//! out a file to many machines wants all of them at once. So clap only collects raw text here and
//! [`Table::load`] judges it.
//!
//! Precedence: flag, then environment, then `--config FILE`, then the default. Knows nothing of
//! what any option means to a service.

mod arguments;
mod file;
mod load;
mod problem;
mod reference;
mod spec;
mod value;

pub use problem::{Origin, Problem, Problems};
pub use reference::reference_page;
pub use spec::{Kind, OptionSpec, Table};
pub use value::{
    BytesOrPercent, FromValue, Secret, Value, human_bytes, human_duration, parse_bool, parse_bytes,
    parse_bytes_or_percent, parse_duration, parse_rate, parse_socket_address, parse_url,
};

pub use load::Settings;

/// The exit status for a command line or configuration that can not be used.
pub const EXIT_USAGE: u8 = 2;
