//! Parses the connection string like libpq. Pure: environment and files are arguments.
//!
//! `postgres://…` and `key=value …` have the same parameters (PostgreSQL manual, 34.1.2). Missing
//! parameters are taken from a service (`service`, `PGSERVICE`), then from the environment, then
//! from defaults. A parameter that is unknown or unsupported is an error.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Parameters by their libpq keyword.
pub type Parameters = BTreeMap<String, String>;

/// The source of parameters that are not in the string.
pub trait Surroundings {
    fn variable(&self, name: &str) -> Option<String>;
    /// A file's text; `None` if it does not exist.
    fn file(&self, path: &Path) -> Option<String>;
}

/// Each keyword, and the variable that replaces it.
const KEYWORDS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    // These have no effect here.
    ("fallback_application_name", ""),
    ("gssencmode", "PGGSSENCMODE"),
    ("gsslib", ""),
    ("krbsrvname", ""),
    ("sslcompression", ""),
    ("sslsni", ""),
    ("client_encoding", ""),
];

/// Keywords of libpq that we do not support, and that would be unsafe to ignore.
const UNSUPPORTED: &[&str] = &[
    "sslcrl",
    "sslcrldir",
    "sslpassword",
    "sslcertmode",
    "requirepeer",
    "require_auth",
    "replication",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "gssdelegation",
];

/// All parameters of a connection string.
pub fn read(text: &str, around: &dyn Surroundings) -> Result<Parameters, String> {
    let trimmed = text.trim();
    let is_url = ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| trimmed.starts_with(scheme));
    let mut parameters = if is_url {
        read_url(trimmed)?
    } else {
        read_pairs(trimmed)?
    };
    for keyword in parameters.keys() {
        check_keyword(keyword)?;
    }
    let of_environment = |keyword: &str| {
        KEYWORDS
            .iter()
            .find(|(name, variable)| *name == keyword && !variable.is_empty())
            .and_then(|(_, variable)| around.variable(variable))
            .filter(|value| !value.is_empty())
    };
    let service = parameters.get("service").cloned();
    if let Some(service) = service.or_else(|| of_environment("service")) {
        let file = parameters.get("servicefile").cloned();
        let file = file.or_else(|| of_environment("servicefile"));
        for (keyword, value) in read_service(&service, file, around)? {
            check_keyword(&keyword)?;
            parameters.entry(keyword).or_insert(value);
        }
    }
    for (keyword, _) in KEYWORDS {
        if let Some(value) = of_environment(keyword) {
            parameters.entry((*keyword).to_owned()).or_insert(value);
        }
    }
    if parameters.get("password").is_none_or(String::is_empty)
        && let Some(password) = find_password(&parameters, around)
    {
        parameters.insert("password".to_owned(), password);
    }
    parameters.retain(|_, value| !value.is_empty());
    Ok(parameters)
}

fn check_keyword(keyword: &str) -> Result<(), String> {
    if KEYWORDS.iter().any(|(known, _)| *known == keyword) {
        return Ok(());
    }
    if UNSUPPORTED.contains(&keyword) {
        return Err(format!("{keyword} is not supported: leave it out"));
    }
    Err(format!("{keyword} is not a connection parameter of libpq"))
}

/// `postgresql://[user[:password]@][host[:port],…][/database][?keyword=value&…]`
fn read_url(text: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::new();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (before, after) = rest.split_at(end);
    // A password that is cut off looks like a port. Messages do not repeat it.
    let is_cut_off = |(_, port): (&str, &str)| {
        port.starts_with(|first: char| !first.is_ascii_digit() && first != ':')
    };
    let has_user = before.contains('@') || !after.contains('@');
    if !has_user && before.split_once(':').is_some_and(is_cut_off) {
        return Err("a / or ? in a password is percent-encoded in a URL: %2F, %3F".to_owned());
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut put = |keyword: &str, value: &str| -> Result<(), String> {
        if !value.is_empty() {
            parameters.insert(keyword.to_owned(), decode(value)?);
        }
        Ok(())
    };
    put("user", user)?;
    put("password", password)?;
    put("dbname", database)?;
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',').filter(|_| !hosts.is_empty()) {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (name, after) = rest
                    .split_once(']')
                    .ok_or("an IPv6 address needs a closing ]")?;
                (name, after.strip_prefix(':').unwrap_or(""))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(name);
        ports.push(port);
    }
    put("host", &names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        put("port", &ports.join(","))?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (keyword, value) = pair
            .split_once('=')
            .ok_or("what follows ? is keyword=value; in a password, ? is percent-encoded: %3F")?;
        // As in JDBC.
        let (keyword, value) = match (keyword, value) {
            ("ssl", "true") => ("sslmode", "require"),
            pair => pair,
        };
        parameters.insert(decode(keyword)?, decode(value)?);
    }
    Ok(parameters)
}

/// Decodes `%XX`; a plus sign is literal.
fn decode(text: &str) -> Result<String, String> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(String::from)
        .map_err(|_| "a percent-encoded value is not UTF-8".to_owned())
}

/// `keyword = value …`; values in single quotes, with `\'` and `\\`.
fn read_pairs(text: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (keyword, after) = rest
            .split_once('=')
            .ok_or("expected keyword=value pairs, or postgres://user@host/database")?;
        let (value, after) = read_value(after.trim_start())?;
        parameters.insert(keyword.trim().to_owned(), value);
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// A value and the text after it.
fn read_value(text: &str) -> Result<(String, &str), String> {
    let (is_quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if is_quoted => return Ok((value, &body[at + 1..])),
            character if !is_quoted && character.is_whitespace() => {
                return Ok((value, &body[at..]));
            }
            character => value.push(character),
        }
    }
    if is_quoted {
        return Err("a quoted value has no closing quote".to_owned());
    }
    Ok((value, ""))
}

fn home(around: &dyn Surroundings) -> PathBuf {
    PathBuf::from(around.variable("HOME").unwrap_or_default())
}

/// A section of the service file.
fn read_service(
    name: &str,
    file: Option<String>,
    around: &dyn Surroundings,
) -> Result<Parameters, String> {
    let system = around.variable("PGSYSCONFDIR");
    let mut paths = vec![file.map_or_else(|| home(around).join(".pg_service.conf"), PathBuf::from)];
    paths.extend(system.map(|folder| Path::new(&folder).join("pg_service.conf")));
    for path in &paths {
        let Some(text) = around.file(path) else {
            continue;
        };
        let mut parameters = None;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(section) = line.strip_prefix('[') {
                if parameters.is_some() {
                    break;
                }
                if section.trim_end_matches(']') == name {
                    parameters = Some(Parameters::new());
                }
            } else if let Some(parameters) = &mut parameters {
                let (keyword, value) = line
                    .split_once('=')
                    .ok_or_else(|| format!("service {name:?}: expected keyword=value: {line}"))?;
                parameters.insert(keyword.trim().to_owned(), value.trim().to_owned());
            }
        }
        if let Some(parameters) = parameters {
            return Ok(parameters);
        }
    }
    Err(format!("no definition of service {name:?} is found"))
}

/// Searches the password file: `host:port:database:user:password` lines, where `*` matches
/// anything.
fn find_password(parameters: &Parameters, around: &dyn Surroundings) -> Option<String> {
    let path = parameters
        .get("passfile")
        .map_or_else(|| home(around).join(".pgpass"), PathBuf::from);
    let text = around.file(&path)?;
    let get = |keyword: &str, or: &str| -> String {
        parameters
            .get(keyword)
            .cloned()
            .unwrap_or_else(|| or.to_owned())
    };
    let user = get("user", &around.variable("USER").unwrap_or_default());
    let database = get("dbname", &user);
    let hosts = get("host", "localhost");
    let ports = get("port", "5432");
    let mut ports = ports.split(',').cycle();
    // With several hosts, use the first that has a password, because the driver uses one for all.
    hosts.split(',').find_map(|host| {
        // A socket's directory is looked up as localhost.
        let host = if host.starts_with('/') || host.is_empty() {
            "localhost"
        } else {
            host
        };
        let port = ports
            .next()
            .filter(|port| !port.is_empty())
            .unwrap_or("5432");
        let wanted = [host, port, &database, &user];
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .find_map(|line| password_of(line, &wanted))
    })
}

fn password_of(line: &str, wanted: &[&str; 4]) -> Option<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => fields.last_mut()?.extend(characters.next()),
            // The password is the rest of the line.
            ':' if fields.len() < 5 => fields.push(String::new()),
            character => fields.last_mut()?.push(character),
        }
    }
    let [host, port, database, user, password] = <[String; 5]>::try_from(fields).ok()?;
    let is_it = [host, port, database, user]
        .iter()
        .zip(wanted)
        .all(|(field, wanted)| field == "*" || field == wanted);
    is_it.then_some(password)
}

#[cfg(test)]
#[path = "string_tests.rs"]
mod tests;
