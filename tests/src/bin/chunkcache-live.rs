//! A live ladder for `tests/bench/run --cases live`: its origin, or its viewers.
//!
//! ```text
//! chunkcache-live --listen=127.0.0.1:PORT
//! chunkcache-live --addresses=127.0.0.1:PORT,… --origin=127.0.0.1:PORT --kind=ll|plain
//!     [--prefix=/SOURCE] [--viewers=1000] [--seconds=20]
//! ```
//!
//! The origin serves until it is stopped; the viewers print one JSON object.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, bail};
use chunkcache_tests::live::{Audience, Kind, serve, watch};
use chunkcache_tests::load::Arguments;
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut given = Arguments::new(std::env::args().skip(1))?;
    let listen = given.text("listen", Some(""))?;
    if !listen.is_empty() {
        given.end()?;
        let address: SocketAddr = listen.parse()?;
        if !address.ip().is_loopback() {
            bail!("--listen={listen}: only loopback addresses are served");
        }
        return Ok(serve(TcpListener::bind(address).await?).await?);
    }
    let audience = Audience {
        kind: match given.text("kind", None)?.as_str() {
            "ll" => Kind::LowLatency,
            "plain" => Kind::Plain,
            other => bail!("--kind={other}: expected ll or plain"),
        },
        addresses: given.list("addresses")?,
        prefix: given.text("prefix", Some(""))?,
        viewers: given.value("viewers", Some("1000"))?,
        duration: Duration::from_secs(given.value("seconds", Some("20"))?),
        origin: given.value("origin", None)?,
    };
    given.end()?;
    if audience.addresses.is_empty() || !audience.addresses.iter().all(|it| it.ip().is_loopback()) {
        bail!("--addresses=: expected loopback addresses");
    }
    println!("{}", watch(audience).await?);
    Ok(())
}
