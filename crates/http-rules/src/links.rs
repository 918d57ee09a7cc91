//! An origin's links to the next objects: `Link` (RFC 8288) with the relation `next` or `prefetch`.
//!
//! Origins are untrusted, so reading is bounded.

use http::{HeaderMap, header};

/// Limit of returned links. Further ones are ignored.
pub const MAX_LINKS: usize = 8;
/// Limit of links of any relation that are read.
const MAX_READ: usize = 64;
/// Longer fields and longer references are ignored.
const MAX_FIELD_BYTES: usize = 8 << 10;
const MAX_REFERENCE_BYTES: usize = 2 << 10;

/// References to the objects that a reader of this object is expected to request next, as the
/// origin wrote them.
#[must_use]
pub fn next(headers: &HeaderMap) -> Vec<&str> {
    let fields = headers.get_all(header::LINK).iter();
    let fields = fields.filter_map(|value| std::str::from_utf8(value.as_bytes()).ok());
    let links = fields
        .filter(|text| text.len() <= MAX_FIELD_BYTES)
        .flat_map(Links);
    links
        .take(MAX_READ)
        .filter(|link| !link.reference.is_empty() && link.reference.len() <= MAX_REFERENCE_BYTES)
        .filter(|link| leads_on(link.parameters))
        .map(|link| link.reference)
        .take(MAX_LINKS)
        .collect()
}

struct Link<'a> {
    reference: &'a str,
    parameters: &'a str,
}

/// The links of a field, up to the first malformed one.
struct Links<'a>(&'a str);

impl<'a> Iterator for Links<'a> {
    type Item = Link<'a>;

    fn next(&mut self) -> Option<Link<'a>> {
        let text = self.0.trim_start_matches([' ', '\t', ',']);
        self.0 = "";
        let (reference, rest) = text.strip_prefix('<')?.split_once('>')?;
        let end = end_of(rest, b',');
        self.0 = rest.get(end + 1..).unwrap_or_default();
        Some(Link {
            reference: reference.trim(),
            parameters: &rest[..end],
        })
    }
}

/// Whether the first `rel` contains `next` or `prefetch`, and no `anchor` assigns the link to
/// another object (RFC 8288, 3.2 and 3.3).
fn leads_on(mut parameters: &str) -> bool {
    let mut relations = None;
    while !parameters.is_empty() {
        let end = end_of(parameters, b';');
        let (name, value) = parameters[..end].split_once('=').unwrap_or_default();
        parameters = parameters.get(end + 1..).unwrap_or_default();
        let name = name.trim();
        if name.eq_ignore_ascii_case("anchor") {
            return false;
        }
        if name.eq_ignore_ascii_case("rel") && relations.is_none() {
            relations = Some(value.trim().trim_matches('"'));
        }
    }
    let mut relations = relations.unwrap_or_default().split_ascii_whitespace();
    relations.any(|it| it.eq_ignore_ascii_case("next") || it.eq_ignore_ascii_case("prefetch"))
}

/// The position of the first `separator` outside of quotes. It is ASCII, so the position is a
/// character boundary.
fn end_of(text: &str, separator: u8) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    let end = text.bytes().position(|byte| {
        let ends = byte == separator && !quoted;
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        ends
    });
    end.unwrap_or(text.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn next_of(fields: &[&str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(header::LINK, HeaderValue::from_str(field).unwrap());
        }
        next(&headers).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn the_relations_that_lead_on() {
        for (field, expected) in [
            ("<b.ts>; rel=next", vec!["b.ts"]),
            ("<b.ts>;rel=\"prefetch\"", vec!["b.ts"]),
            (
                "< b.ts >; REL = \"up Next\" ; title=\"a, b; c\"",
                vec!["b.ts"],
            ),
            (
                "<a>; rel=prev, <b>; rel=next, ,<c?x=1,2>; as=fetch; rel=prefetch",
                vec!["b", "c?x=1,2"],
            ),
            ("<b>; title=\"x\\\", <c>; rel=next\"; rel=next", vec!["b"]),
            ("<b>; rel=prev; rel=next", vec![]),
            ("<b>; rel=next; anchor=\"/other\"", vec![]),
            ("<b>; rel=\"nextish\"", vec![]),
            ("<b>", vec![]),
            ("<>; rel=next", vec![]),
            ("b.ts; rel=next, <c>; rel=next", vec![]),
            ("<b; rel=next", vec![]),
            ("<b>; rel=next, junk, <c>; rel=next", vec!["b"]),
        ] {
            assert_eq!(next_of(&[field]), expected, "{field}");
        }
        let two = next_of(&["<a>; rel=next", "<b>; rel=preload, <c>; rel=next"]);
        assert_eq!(two, ["a", "c"]);
    }

    #[test]
    fn they_are_bounded() {
        let many: Vec<String> = (0..100).map(|n| format!("<{n}>; rel=next")).collect();
        assert_eq!(next_of(&[&many.join(", ")]).len(), MAX_LINKS);
        let late = format!("{}<z>; rel=next", "<a>; rel=prev, ".repeat(MAX_READ));
        assert!(next_of(&[&late]).is_empty());
        let long = format!("<{}>; rel=next", "x".repeat(MAX_REFERENCE_BYTES + 1));
        assert!(next_of(&[&long]).is_empty());
        let padded = format!("<a>; rel=next; x=\"{}\"", "x".repeat(MAX_FIELD_BYTES));
        assert!(next_of(&[&padded]).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[<>a-z;=,\"\\\\ é]{0,60}|(<a>(; ?rel=\"?next\"?)?,?){0,5}") {
            let mut headers = HeaderMap::new();
            headers.insert(header::LINK, HeaderValue::from_bytes(text.as_bytes()).unwrap());
            prop_assert!(next(&headers).len() <= MAX_LINKS);
        }
    }
}
