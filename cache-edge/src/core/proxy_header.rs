//! The PROXY protocol (versions 1 and 2): how many bytes of a connection form its header, and which
//! client it names.

use std::net::IpAddr;

use proxy_header::{ParseConfig, ProxyHeader};

const V1_GREETING: &[u8] = b"PROXY ";
/// Including its line end; longer lines are refused by the specification.
const MAX_V1_BYTES: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version, family and length.
const V2_FIXED_BYTES: usize = 16;
/// Addresses take at most 216 bytes; the rest are TLVs, the longest of which are names of
/// certificates.
const MAX_V2_BYTES: usize = 4096;

/// The connection does not begin with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header")]
pub struct NoHeader;

/// How many more bytes certainly belong to the header of which `read` was read; 0: it is complete.
/// Never counts a byte after the header, which may belong to the client's TLS handshake.
pub fn missing_bytes(read: &[u8]) -> Result<usize, NoHeader> {
    let begins = |prefix: &[u8]| read.iter().zip(prefix).all(|(a, b)| a == b);
    if begins(V1_GREETING) {
        // Nothing shorter than the greeting has a line end.
        return match read.ends_with(b"\r\n") {
            true => Ok(0),
            false if read.len() < V1_GREETING.len() => Ok(V1_GREETING.len() - read.len()),
            false if read.len() >= MAX_V1_BYTES => Err(NoHeader),
            false => Ok(1),
        };
    }
    if !begins(V2_SIGNATURE) {
        return Err(NoHeader);
    }
    let Some(length) = read.get(V2_FIXED_BYTES - 2..V2_FIXED_BYTES) else {
        return Ok(V2_FIXED_BYTES - read.len());
    };
    let total = V2_FIXED_BYTES + usize::from(length[0]) * 256 + usize::from(length[1]);
    if total > MAX_V2_BYTES {
        return Err(NoHeader);
    }
    Ok(total.saturating_sub(read.len()))
}

/// The client that a complete header names; `None`: the proxy speaks for itself (a health check),
/// or does not know.
pub fn client(header: &[u8]) -> Result<Option<IpAddr>, NoHeader> {
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| NoHeader)?;
    if length != header.len() {
        return Err(NoHeader);
    }
    let address = parsed.proxied_address();
    Ok(address.map(|address| address.source.ip().to_canonical()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a header as from a connection: asks for missing bytes until there are none.
    fn read_from(stream: &[u8]) -> Result<(Option<IpAddr>, &[u8]), NoHeader> {
        let mut end = 0;
        loop {
            match missing_bytes(&stream[..end])? {
                0 => return Ok((client(&stream[..end])?, &stream[end..])),
                // A real connection would wait for more.
                more if end + more > stream.len() => return Err(NoHeader),
                more => end += more,
            }
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, rest].concat()
    }

    #[test]
    fn both_versions_leave_what_follows() {
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let v4 = [
            192, 0, 2, 9, 127, 0, 0, 1, 0x1f, 0x90, 0, 80, 0x04, 0, 2, 0, 0,
        ];
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(
            &"2001:db8::9"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
        );
        let cases: [(Vec<u8>, Option<IpAddr>); 8] = [
            (
                b"PROXY TCP4 192.0.2.9 127.0.0.1 5000 80\r\n".into(),
                ip("192.0.2.9"),
            ),
            (
                b"PROXY TCP6 2001:db8::9 ::1 5000 80\r\n".into(),
                ip("2001:db8::9"),
            ),
            (
                b"PROXY TCP6 ::ffff:192.0.2.9 ::1 5000 80\r\n".into(),
                ip("192.0.2.9"),
            ),
            (b"PROXY UNKNOWN\r\n".into(), None),
            (v2(0x21, 0x11, &v4), ip("192.0.2.9")),
            (v2(0x21, 0x21, &v6), ip("2001:db8::9")),
            (v2(0x20, 0x00, b""), None),
            // Some balancers check with the addresses of nobody.
            (v2(0x20, 0x11, &v4), None),
        ];
        for (header, address) in cases {
            let stream = [&header[..], b"GET / HTTP/1.1\r\n\r\n"].concat();
            let (found, rest) = read_from(&stream).unwrap();
            assert_eq!(found, address, "{header:?}");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n\r\n");
        }
    }

    #[test]
    fn others_are_refused_at_the_first_wrong_byte() {
        assert_eq!(missing_bytes(b""), Ok(6));
        assert_eq!(missing_bytes(b"G"), Err(NoHeader));
        assert_eq!(missing_bytes(b"PROXIES"), Err(NoHeader));
        assert_eq!(missing_bytes(b"\r\n\r\nGET"), Err(NoHeader));
        for bad in [
            &b"PROXY TCP4 192.0.2.999 127.0.0.1 1 2\r\n"[..],
            b"PROXY TCP4 192.0.2.9\r\n",
            b"PROXY \r\n",
            b"PROXY UDP4 192.0.2.9 127.0.0.1 1 2\r\n",
            &v2(0x31, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x11, &[0; MAX_V2_BYTES]),
            &[b"PROXY ", &[b'x'; 200][..]].concat(),
        ] {
            assert_eq!(read_from(bad), Err(NoHeader), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), v2: bool) {
            let prefix = if v2 { V2_SIGNATURE } else { V1_GREETING };
            for stream in [&bytes[..], &[prefix, &bytes].concat()] {
                let _ = read_from(stream);
                let _ = client(stream);
            }
        }
    }
}
