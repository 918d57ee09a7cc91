//! Tuning of the players' sockets.

use std::{ops::RangeInclusive, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
};

use crate::system_calls::round_trip;

/// Up to this round trip a small send buffer costs no throughput: 256 KiB per 200 µs are over 1
/// GB/s.
const SHORT_RTT: Duration = Duration::from_micros(200);

/// Limit for all send buffers of short connections together, which should stay in the processor's
/// caches: on loopback that gives twice the throughput of the default, which autotuning lets grow
/// to megabytes per connection.
const SHORT_RTT_BYTES: usize = 32 << 20;
/// Smaller buffers make many small writes, and larger ones have no benefit. The kernel doubles the
/// value for its own bookkeeping, and may allow less (`net.core.wmem_max`).
const SHORT_RTT_SEND_BUFFER_BYTES: RangeInclusive<usize> = 64 << 10..=256 << 10;

/// How long a refused client has to read why.
const LINGER: Duration = Duration::from_millis(500);
/// Number of refused clients that get this time; further ones may see a reset instead of the
/// refusal.
static LINGERING: Semaphore = Semaphore::const_new(64);

/// Closes a connection whose request was not read. Closing at once would reset it, and the client
/// would lose the refusal that was sent before.
pub async fn close_refused(mut stream: TcpStream) {
    let Ok(_permit) = LINGERING.try_acquire() else {
        return;
    };
    let _ = stream.shutdown().await;
    let mut rest = [0; 4 << 10];
    let drained = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(LINGER, drained).await;
}

/// Tunes a player's connection. Failures are not fatal: each setting is an optimisation or a
/// courtesy. `open`: the number of connections.
pub fn tune(stream: &TcpStream, open: usize) {
    // Heads are corked explicitly if a body follows; nothing else should wait.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    // A paused player whose machine vanished must not hold a connection for a quarter of an hour.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let _ = socket.set_tcp_keepalive(&keepalive);
    // A fixed size ends autotuning and limits a connection to about buffer / round trip, so it is
    // set only if the round trip is short.
    if round_trip(stream).is_some_and(|rtt| rtt <= SHORT_RTT) {
        let _ = socket.set_send_buffer_size(send_buffer_bytes(open));
    }
}

fn send_buffer_bytes(open: usize) -> usize {
    let (least, most) = SHORT_RTT_SEND_BUFFER_BYTES.into_inner();
    (SHORT_RTT_BYTES / open.max(1)).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_have_small_buffers() {
        assert_eq!(send_buffer_bytes(0), 256 << 10);
        assert_eq!(send_buffer_bytes(64), 256 << 10);
        assert_eq!(send_buffer_bytes(256), 128 << 10);
        assert_eq!(send_buffer_bytes(10_000), 64 << 10);
    }
}
