//! Decides which keys can be recorded.

use crate::v1;

/// Maximum size of path, query and variant together. A longer key is passed through and never
/// recorded, because clients choose keys, and each recorded key is a row.
pub const MAX_KEY_BYTES: usize = 2048;

/// Whether a key may become a row: it is short enough and has no zero byte.
#[must_use]
pub fn is_key_recordable(key: &v1::Key) -> bool {
    let fields = [&key.path, &key.query, &key.variant];
    let bytes: usize = fields.iter().map(|field| field.len()).sum();
    bytes <= MAX_KEY_BYTES && fields.iter().all(|field| !field.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_bounded_as_a_whole() {
        let key = |path: usize, query: usize| v1::Key {
            source: "films".into(),
            path: "p".repeat(path),
            query: "q".repeat(query),
            variant: String::new(),
        };
        assert!(is_key_recordable(&key(2000, 48)));
        assert!(!is_key_recordable(&key(2000, 49)));
        let zero = v1::Key {
            path: "a\0b".into(),
            ..Default::default()
        };
        assert!(!is_key_recordable(&zero));
    }
}
