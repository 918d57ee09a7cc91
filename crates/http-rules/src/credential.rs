//! Where a request carries its signature if it is not in the query: in the first segment of the
//! path, which players keep for all relative URLs of a playlist, or in a cookie.

use http::{HeaderMap, header};

/// The prefix of the segment. No source has such a name.
const SEGMENT: &str = "cc~";
/// Replaces the segment where a URL is logged.
const REDACTED: &str = "/cc~-";
/// The cookie that contains the signature's parameters as one base64url word.
pub const COOKIE: &str = "cc-signed";

/// The path without the segment, and the word in the segment.
#[must_use]
pub fn split_path(path: &str) -> (&str, Option<&str>) {
    let Some(rest) = path
        .strip_prefix('/')
        .and_then(|it| it.strip_prefix(SEGMENT))
    else {
        return (path, None);
    };
    match rest.find('/') {
        Some(end) => (&rest[end..], Some(&rest[..end])),
        None => (path, None),
    }
}

/// The path of a URL that contains `word`.
#[must_use]
pub fn join_path(word: &str, path: &str) -> String {
    format!("/{SEGMENT}{word}{path}")
}

/// The path as it may be logged.
#[must_use]
pub fn redact_path(path: &str) -> std::borrow::Cow<'_, str> {
    match split_path(path) {
        (rest, Some(_)) => format!("{REDACTED}{rest}").into(),
        (path, None) => path.into(),
    }
}

/// The word in the request's cookie.
#[must_use]
pub fn cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(header::COOKIE).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment() {
        let path = join_path("abc", "/films/a");
        assert_eq!(split_path(&path), ("/films/a", Some("abc")));
        assert_eq!(redact_path(&path), "/cc~-/films/a");
        for plain in [
            "/films/a",
            "/cc~abc",
            "cc~abc/x",
            "/films/cc~abc/x",
            "",
            "*",
        ] {
            assert_eq!(split_path(plain), (plain, None));
            assert_eq!(redact_path(plain), plain);
        }
    }

    #[test]
    fn one_of_several_cookies() {
        let mut headers = HeaderMap::new();
        assert_eq!(cookie(&headers), None);
        headers.append(header::COOKIE, "a=b; cc-signed2=x".parse().unwrap());
        headers.append(header::COOKIE, "c=d;cc-signed=\"abc\"; e".parse().unwrap());
        assert_eq!(cookie(&headers), Some("abc"));
    }
}
