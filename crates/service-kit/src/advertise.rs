//! The address others are told to reach a listener at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// As bound; where that is every address of the machine, the one of the route to other machines. No
/// packet is sent for it. An error says what to give instead.
pub fn reachable_address(bound: SocketAddr) -> Result<SocketAddr, String> {
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    let routes: &[(IpAddr, IpAddr)] = &[
        // Documentation addresses (RFC 5737, RFC 3849): any that is not of this machine would do.
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 0, 2, 1).into(),
        ),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    ];
    // A listener on all IPv6 addresses hears IPv4 too.
    let usable = routes
        .iter()
        .filter(|(from, _)| bound.is_ipv6() || from.is_ipv4());
    for (from, to) in usable {
        let local = UdpSocket::bind((*from, 0)).and_then(|socket| {
            socket.connect((*to, 9))?;
            socket.local_addr()
        });
        if let Ok(local) = local
            && !local.ip().is_unspecified()
        {
            return Ok(SocketAddr::new(local.ip(), bound.port()));
        }
    }
    Err(format!(
        "nobody can be told to reach {bound}, and this machine has no route that says which address \
         is meant: give --advertise-url"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_is_never_told() {
        for text in ["0.0.0.0:80", "[::]:80"] {
            let bound: SocketAddr = text.parse().unwrap_or_else(|_| unreachable!());
            match reachable_address(bound) {
                Ok(told) => {
                    assert!(!told.ip().is_unspecified(), "{told}");
                    assert_eq!(told.port(), 80);
                }
                Err(reason) => assert!(reason.contains("--advertise-url"), "{reason}"),
            }
        }
        let one = SocketAddr::from(([127, 0, 0, 1], 80));
        assert_eq!(reachable_address(one), Ok(one));
    }
}
