//! Detects requests that already came through this edge: a source may lead back to the edge itself,
//! or to a server that asks this edge.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// RFC 8586.
pub const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// Marks that show that a request came through an edge.
#[derive(Clone, Debug)]
pub struct LoopMarks {
    /// The edge's own, in `CDN-Loop`.
    cdn_id: HeaderValue,
    via: HeaderValue,
}

impl LoopMarks {
    /// `store_id` tells edges of equal names in different clusters apart.
    #[must_use]
    pub fn new(store_id: &str, name: &str) -> Option<Self> {
        Some(Self {
            cdn_id: HeaderValue::from_str(&format!("chunkcache-{store_id}")).ok()?,
            via: HeaderValue::from_str(&format!("1.1 {name} (chunkcache)")).ok()?,
        })
    }

    /// Marks a request to an origin, after the marks of others.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        headers.append(CDN_LOOP, self.cdn_id.clone());
        headers.append(header::VIA, self.via.clone());
    }

    /// Marks a request that another edge makes on behalf of this one.
    pub fn add_id_to(&self, headers: &mut HeaderMap) {
        headers.append(CDN_LOOP, self.cdn_id.clone());
    }

    /// Whether a request came through this edge before.
    #[must_use]
    pub fn are_in(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(CDN_LOOP)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|member| member.split(';').next())
            .any(|id| id.trim().as_bytes() == self.cdn_id.as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_knows_its_own_mark_among_others() {
        let (mine, other) = (
            LoopMarks::new("1", "east").unwrap(),
            LoopMarks::new("2", "east").unwrap(),
        );
        let mut headers = HeaderMap::new();
        headers.insert(
            CDN_LOOP,
            HeaderValue::from_static("cdn.example; a=\"1\", x"),
        );
        other.add_to(&mut headers);
        assert!(!mine.are_in(&headers) && other.are_in(&headers));
        mine.add_to(&mut headers);
        assert!(mine.are_in(&headers));
        assert_eq!(headers.get_all(header::VIA).iter().count(), 2);
        let mut joined = HeaderMap::new();
        joined.insert(
            CDN_LOOP,
            HeaderValue::from_static("a , chunkcache-1 ; b=c, d"),
        );
        assert!(mine.are_in(&joined));
    }
}
