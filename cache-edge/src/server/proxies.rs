//! Proxies in front of the edge: determines the client of a connection and of a request.

use std::{io, net::IpAddr, time::Duration};

use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::core::{
    proxy_header::{self, NoHeader},
    trusted_proxies::TrustedProxies,
};

/// The operator's settings.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Connections begin with a PROXY header: those from trusted proxies, or all if none is listed.
    pub send_header: bool,
    pub trusted: TrustedProxies,
}

impl Proxies {
    /// Whether a connection from this address has to begin with a PROXY header.
    #[must_use]
    pub fn expect_header(&self, peer: IpAddr) -> bool {
        self.send_header && (self.trusted.is_empty() || self.trusted.contains(peer))
    }

    /// Whether the connection carries requests of many clients, so that one client's share does not
    /// limit it.
    #[must_use]
    pub fn are_shared(&self, peer: IpAddr) -> bool {
        self.expect_header(peer) || self.trusted.contains(peer)
    }
}

/// The client that a connection's PROXY header names; `None`: the proxy speaks for itself. Leaves
/// everything after the header in the socket.
pub async fn read_header(stream: &mut TcpStream, limit: Duration) -> io::Result<Option<IpAddr>> {
    let malformed = |error: NoHeader| io::Error::new(io::ErrorKind::InvalidData, error);
    let read = async {
        let mut header = Vec::with_capacity(128);
        loop {
            let missing = proxy_header::missing_bytes(&header).map_err(malformed)?;
            if missing == 0 {
                return proxy_header::client(&header).map_err(malformed);
            }
            let begin = header.len();
            header.resize(begin + missing, 0);
            // A single read, which may return less than is missing: a wrong byte is refused as soon
            // as it arrives.
            let count = stream.read(&mut header[begin..]).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            header.truncate(begin + count);
        }
    };
    tokio::time::timeout(limit, read).await?
}
