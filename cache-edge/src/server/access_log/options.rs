//! The value of `--access-log`.

use std::{fmt, path::PathBuf, str::FromStr};

use url::{Host, Url};

/// The port of syslog over UDP, which receivers use for TCP as well.
const SYSLOG_PORT: u16 = 514;
/// Where the machine's own syslog listens.
const LOCAL_SYSLOG: &str = "/dev/log";

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object per line, with all fields.
    Json,
    /// The Combined Log Format of Apache and nginx.
    Combined,
    /// W3C Extended Log File Format.
    W3c,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File(PathBuf),
    Syslog(SyslogAddress),
    /// The OpenTelemetry collector that traces go to.
    Otlp,
}

/// Where a syslog receiver listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAddress {
    /// A datagram socket of this machine.
    Unix(PathBuf),
    Udp(String, u16),
    Tcp(String, u16),
}

/// `FORMAT[:TARGET]`; the target is standard output by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogOptions {
    pub format: Format,
    pub destination: Destination,
}

impl FromStr for AccessLogOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, target) = text.split_once(':').unwrap_or((text, "-"));
        let format = match format {
            "json" => Format::Json,
            "combined" => Format::Combined,
            "w3c" => Format::W3c,
            _ => return Err("expected json, combined or w3c, and perhaps :TARGET".to_owned()),
        };
        let destination = match target {
            "" => return Err("expected a file, syslog, otlp, or -, after the colon".to_owned()),
            "-" => Destination::Stdout,
            "otlp" => Destination::Otlp,
            "syslog" => Destination::Syslog(SyslogAddress::Unix(LOCAL_SYSLOG.into())),
            file => match file.strip_prefix("syslog:") {
                Some(url) => Destination::Syslog(url.parse()?),
                None => Destination::File(file.into()),
            },
        };
        Ok(Self {
            format,
            destination,
        })
    }
}

impl FromStr for SyslogAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected syslog:udp://HOST[:PORT], syslog:tcp://HOST[:PORT] or \
             syslog:unix:///PATH"
                .to_owned()
        };
        let url = Url::parse(text).map_err(|_| expected())?;
        let has_more =
            url.query().is_some() || url.fragment().is_some() || !url.username().is_empty();
        if has_more {
            return Err(expected());
        }
        if url.scheme() == "unix" {
            let is_local = url.host().is_none() && url.path().len() > 1;
            return is_local
                .then(|| Self::Unix(url.path().into()))
                .ok_or_else(expected);
        }
        let host = match url.host() {
            // Sockets take an IPv6 address without its brackets.
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) if matches!(url.path(), "" | "/") => host.to_string(),
            _ => return Err(expected()),
        };
        let port = url.port().unwrap_or(SYSLOG_PORT);
        match url.scheme() {
            "udp" => Ok(Self::Udp(host, port)),
            "tcp" => Ok(Self::Tcp(host, port)),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
            Self::Udp(host, port) => write!(formatter, "udp://{host}:{port}"),
            Self::Tcp(host, port) => write!(formatter, "tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AccessLogOptions, String> {
        text.parse()
    }

    #[test]
    fn formats_and_targets() {
        let destination = |text| parse(text).unwrap().destination;
        assert_eq!(destination("json"), Destination::Stdout);
        assert_eq!(parse("w3c:-").unwrap().format, Format::W3c);
        assert_eq!(
            destination("combined:/var/log/edge.log"),
            Destination::File("/var/log/edge.log".into())
        );
        assert_eq!(destination("json:otlp"), Destination::Otlp);
        // A file of that name has a path.
        assert_eq!(
            destination("json:./otlp"),
            Destination::File("./otlp".into())
        );
        for wrong in ["", "xml", "json:", ":/x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn syslog_addresses() {
        let udp = |host: &str, port| SyslogAddress::Udp(host.to_owned(), port);
        for (text, address) in [
            ("syslog", SyslogAddress::Unix("/dev/log".into())),
            (
                "syslog:unix:///run/log",
                SyslogAddress::Unix("/run/log".into()),
            ),
            ("syslog:udp://127.0.0.1", udp("127.0.0.1", 514)),
            ("syslog:udp://[::1]:1514", udp("::1", 1514)),
            (
                "syslog:tcp://logs.internal:601/",
                SyslogAddress::Tcp("logs.internal".to_owned(), 601),
            ),
        ] {
            let parsed = parse(&format!("json:{text}")).unwrap().destination;
            assert_eq!(parsed, Destination::Syslog(address), "{text}");
        }
        for wrong in [
            "",
            "127.0.0.1:514",
            "udp://",
            "udp://a/b",
            "udp://a?b",
            "udp://me@a",
            "udp://a:99999",
            "unix://host/path",
            "unix:///",
            "tls://a",
        ] {
            let error = parse(&format!("json:syslog:{wrong}")).unwrap_err();
            assert!(error.contains("syslog:udp://"), "{wrong}: {error}");
        }
    }
}
