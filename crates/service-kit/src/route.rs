//! The address at which others reach this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses for documentation (RFC 5737, RFC 3849), which are reached by the default route.
const ANYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        9,
    ),
];

/// The address at which others reach a listener. `0.0.0.0` and `[::]` name no machine: they are
/// replaced by the local address of the route toward the first of `peers` that has one, or of the
/// default route.
///
/// # Errors
///
/// There is no such route.
pub fn reachable(bound: SocketAddr, peers: &[SocketAddr]) -> io::Result<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    peers
        .iter()
        .chain(&ANYWHERE)
        // `[::]` accepts IPv4 too; `0.0.0.0` does not accept IPv6.
        .filter(|peer| bound.is_ipv6() || peer.is_ipv4())
        .find_map(|peer| local_address(*peer).ok())
        .map(|ip| SocketAddr::new(ip, bound.port()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, "no route to others"))
}

/// Connecting a datagram socket chooses a route and sends nothing.
fn local_address(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_at_that_of_the_route() {
        let peers = [address("127.0.0.1:7400")];
        for any in ["0.0.0.0:7500", "[::]:7500"] {
            let found = reachable(address(any), &peers).unwrap();
            assert_eq!(found, address("127.0.0.1:7500"), "{any}");
        }
    }

    #[test]
    fn one_address_stays_as_it_is() {
        let bound = address("192.0.2.7:7500");
        assert_eq!(reachable(bound, &[]).unwrap(), bound);
    }

    #[test]
    fn all_addresses_are_never_told() {
        // A machine without any route refuses instead.
        if let Ok(found) = reachable(address("0.0.0.0:1"), &[address("[::1]:1")]) {
            assert!(found.is_ipv4() && !found.ip().is_unspecified(), "{found}");
        }
    }
}
