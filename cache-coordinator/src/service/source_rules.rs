//! What a source may look like. Pure; all violations are found at once.

use chunkcache_proto::{source_name::check_source_name, v1};
use url::Url;

use super::error::FieldViolation;

/// Headers sent to, and passed on to, one origin.
const MAX_HEADERS: usize = 32;
/// What is shown of a header's value.
pub const REDACTED: &str = "***";

/// Headers the edge makes itself: to let a source set them would break framing or the cache.
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

/// The source as it will be kept: checked, base URL without its trailing slash, mode filled in.
pub fn check(source: Option<v1::Source>) -> Result<v1::Source, Vec<FieldViolation>> {
    let Some(mut source) = source else {
        return Err(vec![FieldViolation::new("source", "expected a source")]);
    };
    let mut violations = Vec::new();
    if let Err(error) = check_source_name(&source.name) {
        violations.push(FieldViolation::new("source.name", error.to_string()));
    }
    match read_base_url(&source.base_url) {
        Ok(base_url) => source.base_url = base_url,
        Err(description) => violations.push(FieldViolation::new("source.base_url", description)),
    }
    check_headers(&source, &mut violations);
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

/// Without what is secret in it.
#[must_use]
pub fn redacted(mut source: v1::Source) -> v1::Source {
    for header in &mut source.headers {
        REDACTED.clone_into(&mut header.value);
    }
    source
}

/// `"***"` in a change means "as it was": so that what was read can be written back.
pub fn restore_secrets(source: &mut v1::Source, before: Option<&v1::Source>) {
    for header in source.headers.iter_mut().filter(|h| h.value == REDACTED) {
        let kept = before.and_then(|b| {
            b.headers
                .iter()
                .find(|h| h.name.eq_ignore_ascii_case(&header.name))
        });
        if let Some(kept) = kept {
            header.value.clone_from(&kept.value);
        }
    }
}

fn read_base_url(text: &str) -> Result<String, &'static str> {
    let url = Url::parse(text).map_err(|_| "expected an absolute http or https URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("expected an absolute http or https URL");
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
    Ok(url.as_str().trim_end_matches('/').to_owned())
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
        match check(Some(source)) {
            Ok(_) => Vec::new(),
            Err(violations) => violations.into_iter().map(|v| v.field).collect(),
        }
    }

    #[test]
    fn a_good_source_is_kept_without_its_trailing_slash() {
        let kept = check(Some(source("films", "HTTP://Origin:80/a/"))).unwrap();
        assert_eq!(kept.base_url, "http://origin/a");
        assert_eq!(kept.mode(), v1::SourceMode::Serve);
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
    fn what_was_read_can_be_written_back() {
        let mut before = source("films", "http://h");
        before.headers.push(v1::Header {
            name: "X-Key".into(),
            value: "secret".into(),
        });
        let mut again = redacted(before.clone());
        assert_eq!(again.headers[0].value, REDACTED);
        restore_secrets(&mut again, Some(&before));
        assert_eq!(again, before);
    }
}
