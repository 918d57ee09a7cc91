//! Tuning of accepted sockets.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::syscalls::round_trip;

/// Up to this round trip a small send buffer costs no throughput: 256 KiB a 200 µs are over 1 GB/s.
const SHORT_RTT: Duration = Duration::from_micros(200);

/// Keeps what is in flight inside the processor's cache: on loopback twice the throughput of the default,
/// which autotuning lets grow to megabytes. The kernel doubles the value for its own bookkeeping.
const SHORT_RTT_SEND_BUFFER_BYTES: usize = 128 << 10;

/// Prepares a player's connection. Failures are not fatal: each is an optimisation or a courtesy.
pub fn tune(stream: &TcpStream) {
    // Heads are corked explicitly where a body follows; nothing else should wait.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    // A paused player whose machine vanished must not hold a place for a quarter of an hour.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let _ = socket.set_tcp_keepalive(&keepalive);
    // A set size ends autotuning and limits a connection to about buffer / round trip, so only where that is short.
    if round_trip(stream).is_some_and(|rtt| rtt <= SHORT_RTT) {
        let _ = socket.set_send_buffer_size(SHORT_RTT_SEND_BUFFER_BYTES);
    }
}
