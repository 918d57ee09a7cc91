//! The `Cache-Status` response header (RFC 9211): one member that names this edge.

use std::fmt::Write;

/// Why a request was forwarded, in the terms of RFC 9211.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Nothing of the object was stored.
    Miss,
    /// The binding of the key had to be confirmed.
    Stale,
    /// Part of the object was stored.
    Partial,
    /// The request is not cacheable.
    Bypass,
    /// It was neither forwarded nor a hit: it was refused here.
    Not,
}

/// The reasons why bytes are missing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// They were evicted recently.
    pub evicted: bool,
    /// The key's object is another version than it was.
    pub replaced: bool,
    /// Other bytes of the object are here.
    pub partly_here: bool,
}

/// Why a request was not a hit, as the `detail` of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissClass {
    /// Nothing of the object was here, as far as is remembered.
    NeverHere,
    /// The bytes were dropped for space.
    Evicted,
    /// The bytes are here, but their freshness had expired.
    Expired,
    /// Other bytes of the object are here.
    NotYetFilled,
    /// The object is another version than the one that was here.
    OtherVersion,
}

impl MissClass {
    /// Classifies a request that did not find all its bytes here, or whose binding was not fresh.
    #[must_use]
    pub fn of(is_expired: bool, missing: Missing) -> Self {
        match missing {
            Missing { evicted: true, .. } => Self::Evicted,
            // Once the new version was requested, some of its bytes are here, and this reason no
            // longer applies.
            Missing {
                replaced: true,
                partly_here,
                ..
            } if is_expired || !partly_here => Self::OtherVersion,
            _ if is_expired => Self::Expired,
            Missing {
                partly_here: true, ..
            } => Self::NotYetFilled,
            _ => Self::NeverHere,
        }
    }

    /// The word in the header field.
    #[must_use]
    pub fn token(self) -> &'static str {
        match self {
            Self::NeverHere => "never-here",
            Self::Evicted => "evicted",
            Self::Expired => "expired",
            Self::NotYetFilled => "not-yet-filled",
            Self::OtherVersion => "other-version",
        }
    }
}

/// How a request was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// `None`: a hit.
    pub forward: Option<Forward>,
    /// The status of the origin's answer.
    pub forward_status: Option<u16>,
    /// The answer is stored.
    pub stored: bool,
    /// The request waited for another one's answer.
    pub collapsed: bool,
    /// Free text for people.
    pub detail: Option<String>,
}

impl CacheStatus {
    /// The field value, e.g. `edge-1; fwd=miss; stored`.
    #[must_use]
    pub fn render(&self, edge_name: &str) -> String {
        let mut value = String::with_capacity(48);
        write_name(&mut value, edge_name);
        match self.forward {
            None => value.push_str("; hit"),
            Some(Forward::Not) => {}
            Some(Forward::Miss) => value.push_str("; fwd=miss"),
            Some(Forward::Stale) => value.push_str("; fwd=stale"),
            Some(Forward::Partial) => value.push_str("; fwd=partial"),
            Some(Forward::Bypass) => value.push_str("; fwd=bypass"),
        }
        if let Some(status) = self.forward_status {
            // Writing to a String cannot fail.
            let _ = write!(value, "; fwd-status={status}");
        }
        if self.stored {
            value.push_str("; stored");
        }
        if self.collapsed {
            value.push_str("; collapsed");
        }
        if let Some(detail) = &self.detail {
            value.push_str("; detail=");
            write_string(&mut value, detail);
        }
        value
    }
}

/// Writes the name as a Token if it is one (RFC 9651, 3.3.4), otherwise as a String.
fn write_name(out: &mut String, name: &str) {
    let token = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if token {
        out.push_str(name)
    } else {
        write_string(out, name)
    }
}

/// Writes a String (RFC 9651, 3.3.3); characters that it cannot contain become `?`.
pub(crate) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_and_misses() {
        assert_eq!(CacheStatus::default().render("edge-1"), "edge-1; hit");
        let miss = CacheStatus {
            forward: Some(Forward::Miss),
            forward_status: Some(206),
            stored: true,
            collapsed: true,
            detail: None,
        };
        assert_eq!(
            miss.render("e"),
            "e; fwd=miss; fwd-status=206; stored; collapsed"
        );
    }

    #[test]
    fn a_miss_has_one_class() {
        let of = |expired, evicted, replaced, partly_here| {
            let missing = Missing {
                evicted,
                replaced,
                partly_here,
            };
            MissClass::of(expired, missing).token()
        };
        assert_eq!(of(false, false, false, false), "never-here");
        assert_eq!(of(false, false, false, true), "not-yet-filled");
        assert_eq!(of(false, true, false, true), "evicted");
        assert_eq!(of(false, false, true, false), "other-version");
        assert_eq!(of(false, false, true, true), "not-yet-filled");
        assert_eq!(of(true, false, false, true), "expired");
        assert_eq!(of(true, false, true, true), "other-version");
    }

    #[test]
    fn names_and_details_are_structured_fields() {
        let status = CacheStatus {
            detail: Some("a \"b\" \\ \u{e9}\r\n".to_owned()),
            ..CacheStatus::default()
        };
        assert_eq!(
            status.render("0edge"),
            r#""0edge"; hit; detail="a \"b\" \\ ???""#
        );
    }
}
