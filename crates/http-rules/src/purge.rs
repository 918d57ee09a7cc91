//! Which objects a purge selects.

use chunkcache_proto::v1::{Key, PurgeSelector, purge_selector::Objects};
use http::HeaderMap;

use crate::{pattern, tags};

/// Whether the selector selects the object with this key, whose last answer had these fields.
#[must_use]
pub fn selects(selector: &PurgeSelector, key: &Key, fields: &HeaderMap) -> bool {
    if !selector.source.is_empty() && selector.source != key.source {
        return false;
    }
    match &selector.objects {
        None => false,
        Some(Objects::All(all)) => *all,
        Some(Objects::Tag(tag)) => tags::has(fields, tag),
        Some(Objects::Key(name)) => {
            let (path, query) = name.split_once('?').unwrap_or((name, ""));
            key.path == path && key.query == query
        }
        Some(Objects::Prefix(prefix)) => match prefix.split_once('?') {
            None => key.path.starts_with(prefix.as_str()),
            Some((path, query)) => key.path == path && key.query.starts_with(query),
        },
        Some(Objects::Glob(glob)) if key.query.is_empty() => pattern::matches(glob, &key.path),
        Some(Objects::Glob(glob)) => pattern::matches(glob, &format!("{}?{}", key.path, key.query)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn selects_path(objects: Objects, path: &str, query: &str) -> bool {
        let selector = PurgeSelector {
            source: "films".into(),
            objects: Some(objects),
        };
        let key = Key {
            source: "films".into(),
            path: path.into(),
            query: query.into(),
            variant: String::new(),
        };
        let mut fields = HeaderMap::new();
        fields.insert("surrogate-key", "show-7 all".parse().unwrap());
        let other = Key {
            source: "shorts".into(),
            ..key.clone()
        };
        assert!(!selects(&selector, &other, &fields));
        selects(&selector, &key, &fields)
    }

    #[test]
    fn a_selector_names_what_it_says() {
        let key = |name: &str| Objects::Key(name.into());
        let prefix = |prefix: &str| Objects::Prefix(prefix.into());
        let glob = |glob: &str| Objects::Glob(glob.into());
        assert!(selects_path(key("a/b.mp4"), "a/b.mp4", ""));
        assert!(!selects_path(key("a/b.mp4"), "a/b.mp4", "v=1"));
        assert!(selects_path(key("a/b.mp4?v=1"), "a/b.mp4", "v=1"));
        assert!(!selects_path(key("a/b"), "a/b.mp4", ""));
        assert!(selects_path(prefix("a/"), "a/b.mp4", "v=1"));
        assert!(selects_path(prefix("a/b.mp4?v"), "a/b.mp4", "v=1"));
        assert!(!selects_path(prefix("a/b.mp4?w"), "a/b.mp4", "v=1"));
        assert!(!selects_path(prefix("b"), "a/b.mp4", ""));
        assert!(selects_path(glob("*.mp4"), "a/b.mp4", ""));
        assert!(!selects_path(glob("*.mp4"), "a/b.mp4", "v=1"));
        assert!(selects_path(glob("*.mp4?*"), "a/b.mp4", "v=1"));
        assert!(selects_path(Objects::Tag("show-7".into()), "x", ""));
        assert!(!selects_path(Objects::Tag("show".into()), "x", ""));
        assert!(selects_path(Objects::All(true), "x", ""));
        assert!(!selects_path(Objects::All(false), "x", ""));
    }

    #[test]
    fn a_tag_may_be_of_all_sources() {
        let selector = PurgeSelector {
            source: String::new(),
            objects: Some(Objects::Tag("all".into())),
        };
        let mut fields = HeaderMap::new();
        fields.insert("cache-tag", "all".parse().unwrap());
        assert!(selects(&selector, &Key::default(), &fields));
    }
}
