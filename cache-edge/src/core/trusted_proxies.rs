//! Determines the client if there are proxies in front of the edge: `Forwarded` (RFC 7239) and
//! `X-Forwarded-For`, trusted from known proxies only.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Number of proxies in a row that are examined, from this edge outwards.
const MAX_HOPS: usize = 32;

/// Addresses whose fields are trusted.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client of a request that came from `peer`: the rightmost address that is not a trusted
    /// proxy's.
    ///
    /// A proxy appends to one of the two fields, and may pass the other on as the client wrote it.
    /// If both are present and disagree, neither is trusted.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.contains(peer) {
            return peer;
        }
        let [forwarded, x_forwarded_for] = [
            (header::FORWARDED, forwarded_for as fn(&str) -> Hop),
            (X_FORWARDED_FOR, address_of as fn(&str) -> Hop),
        ]
        .map(|(name, hop)| {
            let mut values = headers.get_all(name).iter().rev().peekable();
            values.peek()?;
            let elements = values.flat_map(|value| match value.to_str() {
                Ok(text) => split_from_the_right(text),
                // The rest of it cannot be trusted.
                Err(_) => vec![""],
            });
            Some(self.rightmost_untrusted(peer, elements.take(MAX_HOPS).map(hop)))
        });
        match (forwarded, x_forwarded_for) {
            (Some(a), Some(b)) if a != b => peer,
            (Some(address), _) | (None, Some(address)) => address,
            (None, None) => peer,
        }
    }

    fn rightmost_untrusted(&self, peer: IpAddr, hops: impl Iterator<Item = Hop>) -> IpAddr {
        let mut last = peer;
        for hop in hops {
            // Hidden or unreadable: only the proxy that wrote it is known.
            let Some(address) = hop else { return last };
            last = address.to_canonical();
            if !self.contains(last) {
                return last;
            }
        }
        last
    }
}

type Hop = Option<IpAddr>;

/// Elements of a list field, the last one first. A comma in a quoted string does not separate.
fn split_from_the_right(text: &str) -> Vec<&str> {
    let mut is_quoted = false;
    let mut elements: Vec<&str> = text
        .split(|c: char| {
            is_quoted ^= c == '"';
            c == ',' && !is_quoted
        })
        .map(str::trim)
        .collect();
    elements.reverse();
    elements
}

/// The `for` parameter of an element of `Forwarded`.
fn forwarded_for(element: &str) -> Hop {
    let node = element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    })?;
    let node = node.trim();
    let unquoted = node.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    address_of(unquoted.unwrap_or(node))
}

/// An address, in brackets or with a port as some proxies write it.
fn address_of(text: &str) -> Hop {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>().ok();
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client_of(fields: &[(&'static str, &str)]) -> String {
        let networks = ["127.0.0.1/32", "10.0.0.0/8", "2001:db8:1::/48"];
        let proxies = TrustedProxies::new(networks.map(|it| it.parse().unwrap()).into());
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let client = proxies.client("::ffff:127.0.0.1".parse().unwrap(), &headers);
        client.to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxys() {
        const XFF: &str = "x-forwarded-for";
        assert_eq!(client_of(&[(XFF, "203.0.113.7")]), "203.0.113.7");
        assert_eq!(client_of(&[(XFF, "6.6.6.6, 203.0.113.7")]), "203.0.113.7");
        let through_two = "6.6.6.6, 203.0.113.7 ,10.1.2.3";
        assert_eq!(client_of(&[(XFF, through_two)]), "203.0.113.7");
        let in_two_lines = [(XFF, "6.6.6.6, 203.0.113.7"), (XFF, "10.1.2.3")];
        assert_eq!(client_of(&in_two_lines), "203.0.113.7");
        assert_eq!(client_of(&[(XFF, "10.9.9.9, 10.1.2.3")]), "10.9.9.9");
        assert_eq!(client_of(&[(XFF, "203.0.113.7:4711")]), "203.0.113.7");
        assert_eq!(client_of(&[(XFF, "[2001:db8::7]:4711")]), "2001:db8::7");
        assert_eq!(client_of(&[(XFF, "2001:db8::7")]), "2001:db8::7");
        assert_eq!(
            client_of(&[(XFF, "6.6.6.6, nonsense, 10.1.2.3")]),
            "10.1.2.3"
        );
    }

    #[test]
    fn forwarded_as_the_rfc_writes_it() {
        const F: &str = "forwarded";
        assert_eq!(client_of(&[(F, "for=192.0.2.43")]), "192.0.2.43");
        let element = "for=6.6.6.6, For=\"[2001:db8:cafe::17]:4711\";proto=http;by=203.0.113.43";
        assert_eq!(client_of(&[(F, element)]), "2001:db8:cafe::17");
        assert_eq!(
            client_of(&[(F, "for=192.0.2.43;host=\"a,b\"")]),
            "192.0.2.43"
        );
        assert_eq!(
            client_of(&[(F, "for=6.6.6.6, for=_hidden")]),
            "::ffff:127.0.0.1"
        );
        assert_eq!(
            client_of(&[(F, "for=6.6.6.6, for=unknown, for=10.0.0.2")]),
            "10.0.0.2"
        );
        assert_eq!(client_of(&[(F, "proto=https")]), "::ffff:127.0.0.1");
    }

    #[test]
    fn what_a_client_wrote_itself_is_not_believed() {
        let both =
            |forwarded, other| client_of(&[("forwarded", forwarded), ("x-forwarded-for", other)]);
        assert_eq!(both("for=203.0.113.7", "203.0.113.7"), "203.0.113.7");
        assert_eq!(both("for=6.6.6.6", "203.0.113.7"), "::ffff:127.0.0.1");
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
        let stranger = "203.0.113.9".parse().unwrap();
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(proxies.client(stranger, &headers), stranger);
        assert_eq!(
            TrustedProxies::default().client(stranger, &headers),
            stranger
        );
    }

    #[test]
    fn hops_are_bounded() {
        let many = "10.0.0.1, ".repeat(1000) + "10.0.0.1";
        let with_client = format!("6.6.6.6, {many}");
        assert_eq!(client_of(&[("x-forwarded-for", &with_client)]), "10.0.0.1");
    }

    proptest! {
        #[test]
        fn no_field_panics(a in "[ -~]{0,80}", b in "[ -~]{0,80}") {
            client_of(&[("forwarded", &a), ("x-forwarded-for", &b)]);
        }
    }
}
