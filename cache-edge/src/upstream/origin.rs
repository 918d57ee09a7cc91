//! One of the servers behind a source.

use std::time::Duration;

use chunkcache_proto::v1;
use parking_lot::Mutex;
use service_kit::tls;
use url::{Host, Url};

use super::{
    health::Health,
    hedging::RequestKind,
    link::OriginLink,
    transport::{Dialing, Proxy, Transport},
};
use crate::core::hedging::AnswerTimes;

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);

/// A server that holds a source's objects.
#[derive(Debug)]
pub struct Origin {
    /// As configured, without a trailing slash.
    base_url: String,
    base: Url,
    /// The URL that requests name: the base URL, or that of the bucket, with the configured host.
    target: Url,
    /// `None`: the shared transport of the edge, for sources without settings.
    transport: Option<Transport>,
    pub health: Health,
    pub link: OriginLink,
    times: Mutex<[AnswerTimes; 3]>,
}

impl Origin {
    /// Parses a base URL under the settings of its source.
    pub fn new(base_url: &str, source: &v1::Source) -> Result<Self, String> {
        let base = Url::parse(base_url).map_err(|error| error.to_string())?;
        if !matches!(base.scheme(), "http" | "https" | "s3") || base.host_str().is_none() {
            return Err("expected http://, https:// or s3:// and a host".to_owned());
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err("no query and no fragment are allowed".to_owned());
        }
        let mut target = match base.scheme() {
            "s3" => bucket_url(&base, &source.s3.clone().unwrap_or_default())?,
            _ => base.clone(),
        };
        let connection = source.connection.clone().unwrap_or_default();
        let mut dialing = dialing(source);
        if !connection.host.is_empty() {
            let host = format!("{}://{}", target.scheme(), connection.host);
            let named = Url::parse(&host).map_err(|error| error.to_string())?;
            let port = target.port_or_known_default().unwrap_or(80);
            let address = format!("{}:{port}", target.host_str().unwrap_or_default());
            dialing.address = Some(address.parse().map_err(|_| "no address to dial")?);
            let set =
                target.set_host(named.host_str()).is_ok() && target.set_port(named.port()).is_ok();
            if !set {
                return Err("its host can not be set".to_owned());
            }
        }
        let transport = if is_ordinary(source) {
            None
        } else {
            Some(Transport::new(tls_of(&connection)?, dialing))
        };
        Ok(Self {
            base_url: base_url.trim_end_matches('/').to_owned(),
            base,
            target,
            transport,
            health: Health::default(),
            link: OriginLink::default(),
            times: Mutex::default(),
        })
    }

    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The base URL in the form in which the URLs below it begin.
    pub(super) fn logical_base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Host and port as its requests contain them.
    #[must_use]
    pub fn authority(&self) -> &str {
        let authority = self.target.authority();
        authority.rsplit_once('@').map_or(authority, |(_, it)| it)
    }

    /// Whether its base URL contains a user name.
    #[must_use]
    pub(super) fn has_credentials(&self) -> bool {
        !self.target.username().is_empty()
    }

    #[must_use]
    pub(super) fn transport(&self) -> Option<&Transport> {
        self.transport.as_ref()
    }

    /// Translates a URL below the base URL `logical_base` to this origin.
    #[must_use]
    pub fn target_of(&self, logical_base: &str, url: &Url) -> Option<Url> {
        let rest = url.as_str().strip_prefix(logical_base)?;
        let base = self.target.as_str().trim_end_matches('/');
        let target = Url::parse(&format!("{base}{rest}")).ok()?;
        lies_below(&self.target, &target).then_some(target)
    }

    /// Records how long an answer took to begin.
    pub fn record_time(&self, kind: RequestKind, took: Duration) {
        self.times.lock()[kind as usize].record(took);
    }

    /// The time after which an answer is late; `None`: not known yet.
    #[must_use]
    pub fn late_after(&self, kind: RequestKind) -> Option<Duration> {
        self.times.lock()[kind as usize].late_after()
    }

    /// The median time that its recent answers took to begin: of chunks, or else of objects.
    #[must_use]
    pub fn usual_time(&self) -> Option<Duration> {
        let times = self.times.lock();
        let of = |kind: RequestKind| times[kind as usize].median();
        of(RequestKind::Chunks).or_else(|| of(RequestKind::Object))
    }

    /// The shortest of these times. The others may have waited in a queue, behind what this edge
    /// fetches itself.
    #[must_use]
    pub fn least_time(&self) -> Option<Duration> {
        let times = self.times.lock();
        let of = |kind: RequestKind| times[kind as usize].least();
        of(RequestKind::Chunks).or_else(|| of(RequestKind::Object))
    }

    /// Whether the URL lies below the configured base URL.
    #[must_use]
    pub fn holds(&self, url: &Url) -> bool {
        lies_below(&self.base, url)
    }

    /// The URL to ask when a redirect leads to a place on the same origin.
    #[must_use]
    pub fn own(&self, url: &Url) -> Option<Url> {
        if lies_below(&self.target, url) {
            return Some(url.clone());
        }
        if lies_below(&self.base, url) {
            return self.target_of(self.logical_base(), url);
        }
        // The same place, with TLS.
        let is_upgrade = url.scheme() == "https"
            && self.target.scheme() == "http"
            && url.host() == self.target.host()
            && is_below_path(&self.target, url);
        is_upgrade.then(|| url.clone())
    }
}

/// Whether the source has no settings that require connections of its own. A limit on connections
/// requires them, because it counts connections and HTTP/2 would evade it.
fn is_ordinary(source: &v1::Source) -> bool {
    let connection = source.connection.clone().unwrap_or_default();
    let timeouts = v1::OriginConnection {
        first_byte_timeout_ms: connection.first_byte_timeout_ms,
        idle_timeout_ms: connection.idle_timeout_ms,
        ..v1::OriginConnection::default()
    };
    source.max_connections == 0 && connection == timeouts
}

/// How connections of a source are made.
pub(super) fn dialing(source: &v1::Source) -> Dialing {
    let connection = source.connection.clone().unwrap_or_default();
    let ms = |timeout: Option<u32>, default| {
        timeout.map_or(default, |ms| Duration::from_millis(ms.into()))
    };
    Dialing {
        connect_timeout: ms(connection.connect_timeout_ms, CONNECT_TIMEOUT),
        max_age: ms(connection.max_age_ms, MAX_CONNECTION_AGE),
        address: None,
        proxy: if connection.http_proxy.is_empty() {
            Proxy::Environment
        } else {
            Proxy::fixed(&connection.http_proxy)
        },
        http2: source.max_connections == 0,
    }
}

fn tls_of(connection: &v1::OriginConnection) -> Result<rustls::ClientConfig, String> {
    let (cert, key) = (&connection.client_cert_pem, &connection.client_key_pem);
    let made = || {
        let roots = if connection.ca_pem.is_empty() {
            tls::system_roots()?
        } else {
            tls::roots_from_pem(&connection.ca_pem)?
        };
        let identity = match cert.is_empty() {
            true => None,
            false => Some(tls::identity_from_pem(cert, key)?),
        };
        tls::client_of(roots, identity)
    };
    made().map_err(|error: tls::TlsError| error.to_string())
}

/// The URL of a bucket's objects.
fn bucket_url(base: &Url, s3: &v1::S3Settings) -> Result<Url, String> {
    let bucket = base.host_str().unwrap_or_default();
    let region = if s3.region.is_empty() {
        super::s3::DEFAULT_REGION
    } else {
        &s3.region
    };
    let endpoint = if s3.endpoint.is_empty() {
        format!("https://s3.{region}.amazonaws.com")
    } else {
        s3.endpoint.clone()
    };
    let mut url = Url::parse(&endpoint).map_err(|error| format!("endpoint: {error}"))?;
    let prefix = base.path().trim_end_matches('/');
    let root = url.path().trim_end_matches('/').to_owned();
    match url.host() {
        // No wildcard certificate matches a bucket name with dots.
        Some(Host::Domain(domain)) if !s3.path_style && !bucket.contains('.') => {
            let host = format!("{bucket}.{domain}");
            url.set_host(Some(&host))
                .map_err(|error| error.to_string())?;
            url.set_path(&format!("{root}{prefix}"));
        }
        Some(_) => url.set_path(&format!("{root}/{bucket}{prefix}")),
        None => return Err("endpoint: expected a host".to_owned()),
    }
    Ok(url)
}

/// Same scheme, host, port and credentials, and below the base path.
fn lies_below(base: &Url, url: &Url) -> bool {
    url.scheme() == base.scheme()
        && url.host() == base.host()
        && url.port_or_known_default() == base.port_or_known_default()
        && url.username() == base.username()
        && url.password() == base.password()
        && is_below_path(base, url)
}

fn is_below_path(base: &Url, url: &Url) -> bool {
    let base_path = base.path().trim_end_matches('/');
    url.path()
        .strip_prefix(base_path)
        .is_some_and(|rest| rest.starts_with('/') && !climbs_when_decoded(rest))
}

/// Whether a server that decodes `%2F`, or removes parameters (`..;x`), before it resolves dot
/// segments would leave the base path.
fn climbs_when_decoded(path: &str) -> bool {
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    decoded
        .split(|byte| matches!(byte, b'/' | b'\\'))
        .any(|segment| segment == b".." || segment.starts_with(b"..;"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn origin(base_url: &str, adjust: impl FnOnce(&mut v1::Source)) -> Origin {
        let mut source = v1::Source::default();
        adjust(&mut source);
        Origin::new(base_url, &source).unwrap()
    }

    fn target(origin: &Origin, path: &str) -> String {
        let url = Url::parse(&format!("{}/{path}", origin.base_url())).unwrap();
        origin
            .target_of(origin.logical_base(), &url)
            .unwrap()
            .into()
    }

    #[test]
    fn buckets_are_in_the_host_or_in_the_path() {
        let bucket = |path_style, endpoint: &str, base: &str| {
            let origin = origin(base, |source| {
                source.s3 = Some(v1::S3Settings {
                    region: "eu-central-1".into(),
                    endpoint: endpoint.into(),
                    path_style,
                    ..Default::default()
                });
            });
            target(&origin, "a%20b/%2B.mp4")
        };
        assert_eq!(
            bucket(false, "", "s3://films/top/"),
            "https://films.s3.eu-central-1.amazonaws.com/top/a%20b/%2B.mp4"
        );
        assert_eq!(
            bucket(true, "", "s3://films"),
            "https://s3.eu-central-1.amazonaws.com/films/a%20b/%2B.mp4"
        );
        assert_eq!(
            bucket(false, "http://127.0.0.1:9000", "s3://films"),
            "http://127.0.0.1:9000/films/a%20b/%2B.mp4"
        );
        assert_eq!(
            bucket(false, "https://s3.example", "s3://my.films"),
            "https://s3.example/my.films/a%20b/%2B.mp4"
        );
    }

    #[test]
    fn a_host_is_named_and_the_base_urls_is_dialled() {
        let mirror = origin("https://10.0.0.5:8443/films", |source| {
            source.connection = Some(v1::OriginConnection {
                host: "films.example".into(),
                ..Default::default()
            });
        });
        assert_eq!(mirror.authority(), "films.example");
        assert_eq!(target(&mirror, "a"), "https://films.example/films/a");
        let own = |url: &str| mirror.own(&Url::parse(url).unwrap()).map(String::from);
        let at_host = Some("https://films.example/films/b".to_owned());
        assert_eq!(own("https://films.example/films/b"), at_host);
        assert_eq!(own("https://10.0.0.5:8443/films/b"), at_host);
        assert_eq!(own("https://10.0.0.5/films/b"), None);
    }

    #[test]
    fn the_same_place_with_tls_is_its_own() {
        let plain = origin("http://origin:81/films", |_| {});
        let own = |url: &str| plain.own(&Url::parse(url).unwrap()).is_some();
        assert!(own("https://origin/films/a") && own("https://origin:444/films/a"));
        assert!(!own("https://origin/other/a") && !own("https://other/films/a"));
        assert!(!own("http://origin:82/films/a"));
        let with_tls = origin("https://origin/films", |_| {});
        assert!(
            with_tls
                .own(&Url::parse("http://origin/films/a").unwrap())
                .is_none()
        );
    }
}
