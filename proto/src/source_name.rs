//! Names of sources and edges: one grammar, checked in one place.

/// An invalid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: expected 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or \
     digit"
)]
pub struct BadName(pub String);

/// `[a-z0-9][a-z0-9._-]{0,62}`: safe as a path segment, a label, and a file name. `v1` and names
/// that begin with `_` or `.` are reserved for the edge's own paths; sources additionally refuse
/// `v1`.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let bytes = name.as_bytes();
    let first_ok = bytes
        .first()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest_ok = bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
    if first_ok && rest_ok && bytes.len() <= 63 {
        Ok(())
    } else {
        Err(BadName(name.to_owned()))
    }
}

/// As [`check_name`]; `v1` is used by `/v1/entries/{id}`, the others by steering.
pub fn check_source_name(name: &str) -> Result<(), BadName> {
    check_name(name)?;
    if matches!(name, "v1" | "steer" | "steer.json") {
        Err(BadName(name.to_owned()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "films", "0-9", "a.b_c-d"] {
            assert!(check_source_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "", "-a", ".", "..", "_peer", "A", "a/b", "a b", "v1", "é", &long,
        ] {
            assert!(check_source_name(bad).is_err(), "{bad}");
        }
    }
}
