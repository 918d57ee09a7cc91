//! The rules for a valid source. Pure; reports all violations at once.

use chunkcache_proto::{source_name::check_source_name, v1};
use service_kit::tls;
use url::Url;

use super::error::FieldViolation;

/// Limit of origins of one source.
const MAX_ORIGINS: usize = 8;
/// Limit of rules of one kind in a source, and of their length.
const MAX_RULES: usize = 64;
const MAX_RULE_BYTES: usize = 256;
/// Longest time-out for an origin.
const MAX_TIMEOUT_MS: u32 = 3_600_000;
/// PEM texts: a chain of certificates is a few KiB.
const MAX_PEM_BYTES: usize = 256 << 10;
/// Limit of headers that are sent to an origin, and of those that are passed on to it.
const MAX_HEADERS: usize = 32;

/// Headers that the edge sets itself. A source that sets them would break framing or the cache.
const RESERVED_HEADERS: [&str; 14] = [
    "host",
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "accept-encoding",
];

/// The source as it is stored: checked, its base URL without a trailing slash, its mode filled in.
pub fn check(mut source: v1::Source) -> Result<v1::Source, Vec<FieldViolation>> {
    let mut violations = Vec::new();
    if let Err(error) = check_source_name(&source.name) {
        violations.push(FieldViolation::new("source.name", error.to_string()));
    }
    check_base_urls(&mut source, &mut violations);
    check_headers(&source, &mut violations);
    let connection = source.connection.get_or_insert_default();
    check_connection(connection, &mut violations);
    if *connection == v1::OriginConnection::default() {
        source.connection = None;
    }
    // What says nothing is not there: it is compared with what is stored.
    let freshness = source.freshness.take();
    source.freshness = freshness.filter(|it| *it != v1::FreshnessPolicy::default());
    let key_rules = source.key_rules.take();
    source.key_rules = key_rules.filter(|it| *it != v1::KeyRules::default());
    check_s3(&mut source, &mut violations);
    check_rules(&source, &mut violations);
    match v1::SourceMode::try_from(source.mode) {
        Ok(v1::SourceMode::Unspecified) => source.mode = v1::SourceMode::Serve.into(),
        Ok(_) => {}
        Err(_) => violations.push(FieldViolation::new(
            "source.mode",
            "expected SOURCE_MODE_SERVE, SOURCE_MODE_PASSTHROUGH or SOURCE_MODE_RECORD",
        )),
    }
    if violations.is_empty() {
        Ok(source)
    } else {
        Err(violations)
    }
}

fn check_base_urls(source: &mut v1::Source, violations: &mut Vec<FieldViolation>) {
    match read_base_url(&source.base_url) {
        Ok(base_url) => source.base_url = base_url,
        Err(description) => violations.push(FieldViolation::new("source.base_url", description)),
    }
    if source.further_base_urls.len() >= MAX_ORIGINS {
        violations.push(FieldViolation::new(
            "source.further_base_urls",
            format!("expected at most {MAX_ORIGINS} base URLs in all"),
        ));
    }
    let is_bucket = |url: &str| url.starts_with("s3://");
    let mut known = vec![source.base_url.clone()];
    for (index, url) in source.further_base_urls.iter_mut().enumerate() {
        let read = read_base_url(url).and_then(|url| {
            if is_bucket(&url) != is_bucket(&source.base_url) {
                return Err("expected all base URLs to be buckets, or none");
            }
            if known.contains(&url) {
                return Err("expected another URL than those before it");
            }
            Ok(url)
        });
        match read {
            Ok(read) => {
                known.push(read.clone());
                *url = read;
            }
            Err(description) => violations.push(FieldViolation::new(
                format!("source.further_base_urls[{index}]"),
                description,
            )),
        }
    }
}

fn read_base_url(text: &str) -> Result<String, &'static str> {
    let url = Url::parse(text).map_err(|_| "expected an absolute http, https or s3 URL")?;
    if !matches!(url.scheme(), "http" | "https" | "s3") {
        return Err("expected an absolute http, https or s3 URL");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("expected a host");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("expected no query and no fragment");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected no credentials; set a header instead");
    }
    if url.scheme() == "s3" && url.port().is_some() {
        return Err("expected a bucket's name without a port; see --endpoint");
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn check_connection(connection: &v1::OriginConnection, violations: &mut Vec<FieldViolation>) {
    let mut refuse = |field: &str, description: String| {
        let field = format!("source.connection.{field}");
        violations.push(FieldViolation::new(field, description));
    };
    for (field, timeout) in [
        ("connect_timeout_ms", connection.connect_timeout_ms),
        ("first_byte_timeout_ms", connection.first_byte_timeout_ms),
        ("idle_timeout_ms", connection.idle_timeout_ms),
        ("max_age_ms", connection.max_age_ms),
    ] {
        if timeout.is_some_and(|ms| ms == 0 || ms > MAX_TIMEOUT_MS) {
            refuse(field, "expected more than 0 and at most an hour".to_owned());
        }
    }
    if !connection.host.is_empty() && !is_authority(&connection.host) {
        refuse("host", "expected a host, with or without a port".to_owned());
    }
    for (field, pem) in [
        ("ca_pem", &connection.ca_pem),
        ("client_cert_pem", &connection.client_cert_pem),
        ("client_key_pem", &connection.client_key_pem),
    ] {
        if pem.len() > MAX_PEM_BYTES {
            refuse(field, format!("expected at most {MAX_PEM_BYTES} bytes"));
        }
    }
    if !connection.ca_pem.is_empty()
        && let Err(error) = tls::roots_from_pem(&connection.ca_pem)
    {
        refuse("ca_pem", error.to_string());
    }
    let (cert, key) = (&connection.client_cert_pem, &connection.client_key_pem);
    match (cert.is_empty(), key.is_empty()) {
        (true, true) => {}
        (false, true) => refuse(
            "client_key_pem",
            "expected the certificate's key".to_owned(),
        ),
        (true, false) => refuse(
            "client_cert_pem",
            "expected the key's certificate".to_owned(),
        ),
        (false, false) => {
            if let Err(error) = tls::identity_from_pem(cert, key) {
                refuse("client_cert_pem", error.to_string());
            }
        }
    }
    if !connection.http_proxy.is_empty() {
        let is_proxy = Url::parse(&connection.http_proxy).is_ok_and(|url| {
            url.scheme() == "http"
                && url.host_str().is_some_and(|host| !host.is_empty())
                && matches!(url.path(), "" | "/")
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !is_proxy {
            refuse(
                "http_proxy",
                "expected http://[USER:PASSWORD@]HOST:PORT".to_owned(),
            );
        }
    }
}

/// `host` or `host:port`, of a name, an IPv4 or a bracketed IPv6 address.
fn is_authority(text: &str) -> bool {
    text.parse::<http::uri::Authority>()
        .is_ok_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
        && Url::parse(&format!("http://{text}/")).is_ok()
}

fn check_s3(source: &mut v1::Source, violations: &mut Vec<FieldViolation>) {
    let is_bucket = source.base_url.starts_with("s3://");
    let mut refuse = |field: &str, description: &str| {
        violations.push(FieldViolation::new(
            format!("source.s3{field}"),
            description,
        ));
    };
    if !is_bucket {
        if source
            .s3
            .take()
            .is_some_and(|s3| s3 != v1::S3Settings::default())
        {
            refuse("", "expected a base URL s3://BUCKET/PREFIX");
        }
        return;
    }
    let s3 = source.s3.get_or_insert_default();
    let is_region = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !s3.region.chars().all(is_region) || s3.region.len() > 64 {
        refuse(".region", "expected the name of a region");
    }
    if !s3.endpoint.is_empty() {
        let is_server = Url::parse(&s3.endpoint).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some_and(|host| !host.is_empty())
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !is_server {
            refuse(".endpoint", "expected an absolute http or https URL");
        }
    }
    match (s3.access_key_id.is_empty(), s3.secret_access_key.is_empty()) {
        (false, true) => refuse(".secret_access_key", "expected the key id's secret"),
        (true, false) => refuse(".access_key_id", "expected the secret's key id"),
        (true, true) if !s3.session_token.is_empty() => {
            refuse(".session_token", "expected a key id and a secret beside it");
        }
        _ => {}
    }
    for (field, value) in [
        (".access_key_id", &s3.access_key_id),
        (".secret_access_key", &s3.secret_access_key),
        (".session_token", &s3.session_token),
    ] {
        if http::HeaderValue::from_str(value).is_err() {
            refuse(field, "expected visible characters only");
        }
    }
}

fn check_rules(source: &v1::Source, violations: &mut Vec<FieldViolation>) {
    let keys = source.key_rules.clone().unwrap_or_default();
    let patterns: Vec<String> = source
        .ttl_rules
        .iter()
        .map(|rule| rule.pattern.clone())
        .collect();
    for (field, rules) in [
        ("key_rules.ignore_query", &keys.ignore_query),
        ("key_rules.only_query", &keys.only_query),
        ("key_rules.keep_query", &keys.keep_query),
        ("redirect_hosts", &source.redirect_hosts),
        ("ttl_rules", &patterns),
    ] {
        let field = format!("source.{field}");
        if rules.len() > MAX_RULES {
            let description = format!("expected at most {MAX_RULES}");
            violations.push(FieldViolation::new(field, description));
            continue;
        }
        for (index, rule) in rules.iter().enumerate() {
            let description = if rule.is_empty() || rule.len() > MAX_RULE_BYTES {
                format!("expected 1 to {MAX_RULE_BYTES} bytes")
            } else if field.ends_with("redirect_hosts") && !is_authority(rule) {
                "expected a host, with or without a port".to_owned()
            } else if field.contains("query") && rule.contains(['&', '=', '#']) {
                "expected the name of a query parameter, which may hold `*`".to_owned()
            } else {
                continue;
            };
            violations.push(FieldViolation::new(
                format!("{field}[{index}]"),
                description,
            ));
        }
    }
    if !keys.ignore_query.is_empty() && !keys.only_query.is_empty() {
        violations.push(FieldViolation::new(
            "source.key_rules.ignore_query",
            "expected no only_query beside it: that leaves out all others",
        ));
    }
}

fn check_headers(source: &v1::Source, violations: &mut Vec<FieldViolation>) {
    if source.headers.len() > MAX_HEADERS || source.forward_headers.len() > MAX_HEADERS {
        violations.push(FieldViolation::new(
            "source.headers",
            format!("expected at most {MAX_HEADERS} headers"),
        ));
    }
    for (index, header) in source.headers.iter().enumerate() {
        let field = format!("source.headers[{index}]");
        if let Err(description) = check_header_name(&header.name) {
            violations.push(FieldViolation::new(format!("{field}.name"), description));
        }
        if http::HeaderValue::from_str(&header.value).is_err() {
            violations.push(FieldViolation::new(
                format!("{field}.value"),
                "expected visible characters only",
            ));
        }
    }
    for (index, name) in source.forward_headers.iter().enumerate() {
        if let Err(description) = check_header_name(name) {
            let field = format!("source.forward_headers[{index}]");
            violations.push(FieldViolation::new(field, description));
        }
    }
}

fn check_header_name(name: &str) -> Result<(), &'static str> {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err("expected a header name");
    }
    if RESERVED_HEADERS
        .iter()
        .any(|reserved| reserved.eq_ignore_ascii_case(name))
    {
        return Err("expected a header the edge does not make itself");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(name: &str, base_url: &str) -> v1::Source {
        v1::Source {
            name: name.into(),
            base_url: base_url.into(),
            ..Default::default()
        }
    }

    fn fields(source: v1::Source) -> Vec<String> {
        match check(source) {
            Ok(_) => Vec::new(),
            Err(violations) => violations.into_iter().map(|v| v.field).collect(),
        }
    }

    #[test]
    fn a_good_source_is_kept_without_its_trailing_slash() {
        let kept = check(source("films", "HTTP://Origin:80/a/")).unwrap();
        assert_eq!(kept.base_url, "http://origin/a");
        assert_eq!(kept.mode(), v1::SourceMode::Serve);
    }

    #[test]
    fn settings_that_say_nothing_are_none() {
        let plain = check(source("films", "http://origin")).unwrap();
        let empty = v1::Source {
            connection: Some(v1::OriginConnection::default()),
            key_rules: Some(v1::KeyRules::default()),
            freshness: Some(v1::FreshnessPolicy::default()),
            s3: Some(v1::S3Settings::default()),
            ..plain.clone()
        };
        assert_eq!(check(empty).unwrap(), plain);
    }

    #[test]
    fn every_violation_is_named_at_once() {
        let mut bad = source("v1", "http://u:p@h/");
        bad.headers.push(v1::Header {
            name: "Range".into(),
            value: "a\nb".into(),
        });
        assert_eq!(
            fields(bad),
            [
                "source.name",
                "source.base_url",
                "source.headers[0].name",
                "source.headers[0].value"
            ]
        );
    }

    #[test]
    fn bad_base_urls() {
        for bad in [
            "",
            "x",
            "ftp://h/",
            "http://",
            "http://h/?q",
            "http://h/#f",
            "file:///etc",
        ] {
            assert_eq!(fields(source("films", bad)), ["source.base_url"], "{bad}");
        }
    }

    #[test]
    fn each_bad_setting_is_named() {
        let bad = v1::Source {
            further_base_urls: vec![
                "http://mirror".into(),
                "s3://bucket".into(),
                "http://MIRROR/".into(),
            ],
            connection: Some(v1::OriginConnection {
                first_byte_timeout_ms: Some(0),
                host: "a b".into(),
                ca_pem: "no certificate".into(),
                client_cert_pem: "lonely".into(),
                http_proxy: "ftp://proxy".into(),
                ..Default::default()
            }),
            s3: Some(v1::S3Settings {
                path_style: true,
                ..Default::default()
            }),
            key_rules: Some(v1::KeyRules {
                ignore_query: vec!["a=b".into()],
                only_query: vec!["id".into()],
                ..Default::default()
            }),
            redirect_hosts: vec!["https://cdn.example".into()],
            ttl_rules: vec![v1::TtlRule::default()],
            ..source("films", "http://origin")
        };
        assert_eq!(
            fields(bad),
            [
                "source.further_base_urls[1]",
                "source.further_base_urls[2]",
                "source.connection.first_byte_timeout_ms",
                "source.connection.host",
                "source.connection.ca_pem",
                "source.connection.client_key_pem",
                "source.connection.http_proxy",
                "source.s3",
                "source.key_rules.ignore_query[0]",
                "source.redirect_hosts[0]",
                "source.ttl_rules[0]",
                "source.key_rules.ignore_query",
            ]
        );
        let bucket = v1::Source {
            s3: Some(v1::S3Settings {
                endpoint: "minio:9000".into(),
                region: "eu central".into(),
                access_key_id: "id".into(),
                ..Default::default()
            }),
            ..source("films", "s3://bucket/prefix/")
        };
        assert_eq!(
            fields(bucket),
            [
                "source.s3.region",
                "source.s3.endpoint",
                "source.s3.secret_access_key"
            ]
        );
    }
}
