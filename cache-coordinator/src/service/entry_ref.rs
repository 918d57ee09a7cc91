//! Parses a client's name for an entry: an id, source and path, or an absolute URL.
//!
//! Pure. Paths are normalised by the same rule as on the edges, [`http_rules::path`].

use chunkcache_proto::{EntryId, v1};
use http_rules::path;
use url::Url;

use super::error::FieldViolation;

/// A valid name of an entry, as a client gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryRef {
    /// Exactly this entry.
    Id(EntryId),
    /// The entry that this key points to now.
    Key(v1::Key),
}

impl std::fmt::Display for EntryRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Key(key) => f.write_str(&display_key(key)),
        }
    }
}

/// `source/path?query`, as people write it.
#[must_use]
pub fn display_key(key: &v1::Key) -> String {
    if key.query.is_empty() {
        format!("{}/{}", key.source, key.path)
    } else {
        format!("{}/{}?{}", key.source, key.path, key.query)
    }
}

/// Parses a name. `sources` are the registered ones as (name, base URL), which are needed only for
/// a URL.
pub fn read_name<'a>(
    name: Option<&v1::EntryName>,
    sources: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<EntryRef, FieldViolation> {
    use v1::entry_name::Name;
    match name.and_then(|n| n.name.as_ref()) {
        None => Err(FieldViolation::new(
            "entry",
            "expected an id, a source and path, or a url",
        )),
        Some(Name::Id(id)) => read_id(id).map(EntryRef::Id),
        Some(Name::SourcePath(source_path)) => {
            read_source_path(&source_path.source, &source_path.path).map(EntryRef::Key)
        }
        Some(Name::Url(url)) => read_url(url, sources).map(EntryRef::Key),
    }
}

fn read_id(id: &str) -> Result<EntryId, FieldViolation> {
    id.parse()
        .map_err(|_| FieldViolation::new("entry.id", "expected a UUID"))
}

fn read_source_path(source: &str, path: &str) -> Result<v1::Key, FieldViolation> {
    chunkcache_proto::source_name::check_source_name(source)
        .map_err(|e| FieldViolation::new("entry.source_path.source", e.to_string()))?;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = path.strip_prefix('/').unwrap_or(path);
    key("entry.source_path.path", source, path, query)
}

fn read_url<'a>(
    url: &str,
    sources: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<v1::Key, FieldViolation> {
    const FIELD: &str = "entry.url";
    let parsed = Url::parse(url)
        .ok()
        .filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host())
        .ok_or_else(|| FieldViolation::new(FIELD, "expected an absolute http or https URL"))?;
    let inside = sources
        .into_iter()
        .filter_map(|(name, base)| {
            let below = path::below_base(&parsed, &Url::parse(base).ok()?)?;
            Some((base.len(), name, below))
        })
        .max_by_key(|(length, ..)| *length);
    let Some((_, source, path)) = inside else {
        return Err(FieldViolation::new(
            FIELD,
            "expected a URL inside a registered source's base URL",
        ));
    };
    key(FIELD, source, path, parsed.query().unwrap_or(""))
}

fn key(
    field: &'static str,
    source: &str,
    path: &str,
    query: &str,
) -> Result<v1::Key, FieldViolation> {
    let (path, query) = path::normalize_name(path, query)
        .map_err(|error| FieldViolation::new(field, error.to_string()))?;
    Ok(v1::Key {
        source: source.to_owned(),
        path,
        query,
        variant: String::new(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use v1::entry_name::Name;

    const SOURCES: [(&str, &str); 3] = [
        ("films", "http://origin:8080/media"),
        ("shorts", "http://origin:8080/media/shorts"),
        ("root", "https://other/"),
    ];

    fn read(name: Name) -> Result<EntryRef, FieldViolation> {
        read_name(Some(&v1::EntryName { name: Some(name) }), SOURCES)
    }

    fn url(url: &str) -> Result<String, String> {
        match read(Name::Url(url.into())) {
            Ok(EntryRef::Key(key)) => Ok(display_key(&key)),
            Ok(EntryRef::Id(id)) => Ok(id.to_string()),
            Err(violation) => Err(violation.field),
        }
    }

    fn path(path: &str) -> Result<String, String> {
        let source_path = v1::SourcePath {
            source: "films".into(),
            path: path.into(),
        };
        read(Name::SourcePath(source_path))
            .map(|r| r.to_string())
            .map_err(|v| v.field)
    }

    #[test]
    fn the_longest_base_url_wins_at_a_segment_border() {
        assert_eq!(
            url("http://origin:8080/media/a.mp4").unwrap(),
            "films/a.mp4"
        );
        assert_eq!(
            url("http://origin:8080/media/shorts/a.mp4?v=1").unwrap(),
            "shorts/a.mp4?v=1"
        );
        assert_eq!(
            url("http://origin:8080/media/shorts2/a").unwrap(),
            "films/shorts2/a"
        );
        assert_eq!(url("https://other:443/x").unwrap(), "root/x");
    }

    #[test]
    fn urls_outside_every_source_are_refused() {
        for bad in [
            "http://origin:8080/mediax/a",
            "http://origin/media/a",
            "https://origin:8080/media/a",
            "ftp://origin:8080/media/a",
            "/media/a",
            "http://origin:8080/media",
            "http://origin:8080/media/",
            "http://origin:8080/media/../etc/a",
            "http://origin:8080/media/..%2f..%2fsecret",
        ] {
            assert_eq!(url(bad).unwrap_err(), "entry.url", "{bad}");
        }
    }

    #[test]
    fn paths_are_normalised() {
        assert_eq!(
            path("/a%7eb/x/../d%c3%a9?q=%41%2f").unwrap(),
            "films/a~b/d%C3%A9?q=A%2F"
        );
        assert_eq!(
            path("my film é.mkv").unwrap(),
            "films/my%20film%20%C3%A9.mkv"
        );
        for bad in [
            "",
            "/",
            "a/../../b",
            "%2E%2e/b",
            "..%2f..%2fsecret",
            "a%2fb",
            "a%0",
            "a%zz",
            "a%00",
        ] {
            assert_eq!(path(bad).unwrap_err(), "entry.source_path.path", "{bad}");
        }
    }

    #[test]
    fn an_empty_name_is_refused() {
        assert_eq!(read_name(None, []).unwrap_err().field, "entry");
        assert_eq!(read(Name::Id(String::new())).unwrap_err().field, "entry.id");
    }
}
