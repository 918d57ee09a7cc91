//! Where an answer redirects to, and whether to follow it.

use http::{HeaderMap, StatusCode, header};
use url::Url;

use super::{OriginError, origin::Origin};

/// The target of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// A place on the same origin.
    Own(Url),
    /// A host that the source names; it gets none of the source's credentials.
    Named(Url),
    /// Anywhere else, or no place that is named: not followed.
    Refused,
}

/// Reads the head of an answer; `None` if it is no redirect. `named`: hosts that the source allows,
/// with or without a port.
pub fn read(
    status: StatusCode,
    headers: &HeaderMap,
    from: &Url,
    origin: &Origin,
    named: &[String],
) -> Result<Option<Redirect>, OriginError> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    // A bucket of another region names it in the body only.
    let Some(location) = headers.get(header::LOCATION) else {
        return Ok(Some(Redirect::Refused));
    };
    // Servers send raw UTF-8 there; the URL has it escaped.
    let target = std::str::from_utf8(location.as_bytes())
        .ok()
        .and_then(|location| from.join(location).ok())
        .ok_or_else(|| OriginError::Protocol("it redirects to no URL".into()))?;
    if let Some(own) = origin.own(&target) {
        return Ok(Some(Redirect::Own(own)));
    }
    let is_named = matches!(target.scheme(), "http" | "https")
        && target.username().is_empty()
        && target.password().is_none()
        && named.iter().any(|host| names(host, &target));
    Ok(Some(if is_named {
        Redirect::Named(target)
    } else {
        Redirect::Refused
    }))
}

/// `cdn.example` names the host at the scheme's default port, `cdn.example:8443` only that port.
fn names(host: &str, target: &Url) -> bool {
    let named = Url::parse(&format!("{}://{host}/", target.scheme()));
    named.is_ok_and(|named| {
        named.host() == target.host()
            && named.port_or_known_default() == target.port_or_known_default()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use chunkcache_proto::v1;
    use http::HeaderValue;

    use super::*;

    fn read_location(location: &[u8], named: &[&str]) -> Option<Redirect> {
        let origin = Origin::new("http://origin:81/films", &v1::Source::default()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_bytes(location).unwrap());
        let named: Vec<String> = named.iter().map(|&host| host.to_owned()).collect();
        let from = Url::parse("http://origin:81/films/a/b").unwrap();
        read(StatusCode::FOUND, &headers, &from, &origin, &named).unwrap()
    }

    #[test]
    fn its_own_places_are_followed() {
        let own = |url: &str| Some(Redirect::Own(Url::parse(url).unwrap()));
        assert_eq!(read_location(b"c", &[]), own("http://origin:81/films/a/c"));
        assert_eq!(
            read_location("/films/é".as_bytes(), &[]),
            own("http://origin:81/films/%C3%A9")
        );
        assert_eq!(
            read_location(b"https://origin/films/a", &[]),
            own("https://origin/films/a")
        );
    }

    #[test]
    fn others_are_followed_where_they_are_named() {
        let named = |url: &str| Some(Redirect::Named(Url::parse(url).unwrap()));
        let hosts = ["cdn.example", "127.0.0.1:9000"];
        for url in ["https://cdn.example/x?sig=1", "http://127.0.0.1:9000/x"] {
            assert_eq!(read_location(url.as_bytes(), &hosts), named(url));
            assert_eq!(read_location(url.as_bytes(), &[]), Some(Redirect::Refused));
        }
        for url in [
            "https://cdn.example:8443/x",
            "https://user@cdn.example/x",
            "https://cdn.example.evil/x",
            "http://127.0.0.1/x",
            "http://[::ffff:127.0.0.1]:9000/x",
            "http://169.254.169.254/latest",
            "ftp://cdn.example/x",
            "../../outside",
            "http://origin:82/films/a",
        ] {
            assert_eq!(
                read_location(url.as_bytes(), &hosts),
                Some(Redirect::Refused),
                "{url}"
            );
        }
    }
}
