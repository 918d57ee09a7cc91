//! Secrets of sources: hidden in answers, and kept when an answer is written back.

use chunkcache_proto::v1;
use url::Url;

use super::error::FieldViolation;

/// Shown instead of a secret.
pub const REDACTED: &str = "***";

/// The source without its secrets.
#[must_use]
pub fn redacted(mut source: v1::Source) -> v1::Source {
    for header in &mut source.headers {
        REDACTED.clone_into(&mut header.value);
    }
    let hide = |secret: &mut String| {
        if !secret.is_empty() {
            REDACTED.clone_into(secret);
        }
    };
    if let Some(connection) = &mut source.connection {
        hide(&mut connection.client_key_pem);
        if let Ok(mut proxy) = Url::parse(&connection.http_proxy)
            && proxy.password().is_some()
            && proxy.set_password(Some(REDACTED)).is_ok()
        {
            connection.http_proxy = proxy.as_str().trim_end_matches('/').to_owned();
        }
    }
    if let Some(s3) = &mut source.s3 {
        hide(&mut s3.secret_access_key);
        hide(&mut s3.session_token);
    }
    source
}

/// Replaces `"***"` in a change by the previous value, so that an answer can be written back.
pub fn restore(source: &mut v1::Source, before: Option<&v1::Source>) {
    let Some(before) = before else { return };
    let mut unused: Vec<&v1::Header> = before.headers.iter().collect();
    for header in &mut source.headers {
        // Of several with one name, each has its own value, in their order.
        let is_same = |kept: &&v1::Header| kept.name.eq_ignore_ascii_case(&header.name);
        let Some(at) = unused.iter().position(is_same) else {
            continue;
        };
        let kept = unused.remove(at);
        if header.value == REDACTED {
            header.value.clone_from(&kept.value);
        }
    }
    let keep = |content: &mut String, kept: &str| {
        if content == REDACTED {
            kept.clone_into(content);
        }
    };
    if let (Some(now), Some(kept)) = (&mut source.connection, &before.connection) {
        keep(&mut now.ca_pem, &kept.ca_pem);
        keep(&mut now.client_cert_pem, &kept.client_cert_pem);
    }
    if let (Some(now), Some(kept)) = (&mut source.s3, &before.s3)
        && now.access_key_id == REDACTED
    {
        keep(&mut now.access_key_id, &kept.access_key_id);
        // Keys belong together, whichever of them are set.
        now.session_token.clone_from(&kept.session_token);
    }
    let shown = redacted(before.clone());
    let put_back = |secret: &mut String, shown: &str, kept: &str| {
        if secret.contains(REDACTED) && secret == shown {
            kept.clone_into(secret);
        }
    };
    if let (Some(now), Some(shown), Some(kept)) = (
        &mut source.connection,
        &shown.connection,
        &before.connection,
    ) {
        put_back(
            &mut now.client_key_pem,
            &shown.client_key_pem,
            &kept.client_key_pem,
        );
        put_back(&mut now.http_proxy, &shown.http_proxy, &kept.http_proxy);
    }
    if let (Some(now), Some(shown), Some(kept)) = (&mut source.s3, &shown.s3, &before.s3) {
        put_back(
            &mut now.secret_access_key,
            &shown.secret_access_key,
            &kept.secret_access_key,
        );
        put_back(
            &mut now.session_token,
            &shown.session_token,
            &kept.session_token,
        );
    }
}

/// The fields in which `"***"` is left: there is no value that it stands for.
#[must_use]
pub fn unknown(source: &v1::Source) -> Vec<FieldViolation> {
    let connection = source.connection.clone().unwrap_or_default();
    let s3 = source.s3.clone().unwrap_or_default();
    let proxy = Url::parse(&connection.http_proxy).ok();
    let password = proxy.as_ref().and_then(Url::password).unwrap_or_default();
    let mut fields: Vec<(String, &str)> = [
        ("connection.ca_pem", &*connection.ca_pem),
        ("connection.client_cert_pem", &*connection.client_cert_pem),
        ("connection.client_key_pem", &*connection.client_key_pem),
        ("connection.http_proxy", password),
        ("s3.access_key_id", &*s3.access_key_id),
        ("s3.secret_access_key", &*s3.secret_access_key),
        ("s3.session_token", &*s3.session_token),
    ]
    .map(|(field, value)| (field.to_owned(), value))
    .into();
    let headers = source.headers.iter().enumerate();
    fields.extend(headers.map(|(index, it)| (format!("headers[{index}].value"), &*it.value)));
    let unknown = fields.into_iter().filter(|(_, value)| *value == REDACTED);
    unknown
        .map(|(field, _)| {
            let description = "*** stands for a value that is kept, and there is none: write it";
            FieldViolation::new(format!("source.{field}"), description)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_can_be_written_back() {
        let mut before = v1::Source {
            name: "films".into(),
            base_url: "s3://bucket".into(),
            ..Default::default()
        };
        before.headers.push(v1::Header {
            name: "X-Key".into(),
            value: "secret".into(),
        });
        before.connection = Some(v1::OriginConnection {
            client_key_pem: "secret".into(),
            http_proxy: "http://user:secret@proxy:3128".into(),
            ..Default::default()
        });
        before.s3 = Some(v1::S3Settings {
            access_key_id: "id".into(),
            secret_access_key: "secret".into(),
            session_token: "secret".into(),
            ..Default::default()
        });
        let connection = before.connection.as_mut().unwrap();
        connection.ca_pem = "a certificate".into();
        connection.client_cert_pem = "another".into();
        let mut again = redacted(before.clone());
        assert!(!format!("{again:?}").contains("secret\""), "{again:?}");
        assert_eq!(again.headers[0].value, REDACTED);
        restore(&mut again, Some(&before));
        assert_eq!(again, before);

        // As `apply` writes an exported document back.
        let mut exported = redacted(before.clone());
        let connection = exported.connection.as_mut().unwrap();
        connection.ca_pem = REDACTED.into();
        connection.client_cert_pem = REDACTED.into();
        let s3 = exported.s3.as_mut().unwrap();
        s3.access_key_id = REDACTED.into();
        s3.session_token.clear();
        restore(&mut exported, Some(&before));
        assert_eq!(exported, before);
        assert!(unknown(&exported).is_empty());
    }

    #[test]
    fn headers_of_one_name_keep_their_own_values() {
        let header = |name: &str, value: &str| v1::Header {
            name: name.into(),
            value: value.into(),
        };
        let before = v1::Source {
            headers: vec![header("X-Key", "a"), header("X", "b"), header("x-key", "c")],
            ..Default::default()
        };
        let mut again = redacted(before.clone());
        restore(&mut again, Some(&before));
        assert_eq!(again, before);
        // The first is written anew, and the second is kept.
        again = redacted(before.clone());
        again.headers[0].value = "new".into();
        restore(&mut again, Some(&before));
        assert_eq!(again.headers[0].value, "new");
        assert_eq!(again.headers[2].value, "c");
    }

    #[test]
    fn a_value_that_is_kept_nowhere_is_refused() {
        let mut before = v1::Source::default();
        before.headers.push(v1::Header {
            name: "X-Key".into(),
            value: "secret".into(),
        });
        before.connection = Some(v1::OriginConnection {
            ca_pem: "a certificate".into(),
            client_key_pem: "secret".into(),
            http_proxy: "http://user:secret@proxy:3128".into(),
            ..Default::default()
        });
        before.s3 = Some(v1::S3Settings {
            secret_access_key: "secret".into(),
            ..Default::default()
        });
        let mut elsewhere = redacted(before.clone());
        elsewhere.connection.as_mut().unwrap().ca_pem = REDACTED.into();
        let fields = |source: &v1::Source| -> Vec<String> {
            let unknown = unknown(source).into_iter();
            unknown.map(|it| it.field).collect()
        };
        let all = [
            "source.connection.ca_pem",
            "source.connection.client_key_pem",
            "source.connection.http_proxy",
            "source.s3.secret_access_key",
            "source.headers[0].value",
        ];
        restore(&mut elsewhere, None);
        assert_eq!(fields(&elsewhere), all);
        restore(&mut elsewhere, Some(&v1::Source::default()));
        assert_eq!(fields(&elsewhere), all);
        restore(&mut elsewhere, Some(&before));
        assert_eq!(fields(&elsewhere), [""; 0]);
    }
}
