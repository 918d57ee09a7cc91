//! Tuning of the players' sockets.

use std::{ops::RangeInclusive, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use crate::system_calls::round_trip;

/// Up to this round trip a small send buffer costs no throughput: 256 KiB a 200 µs are over 1 GB/s.
const SHORT_RTT: Duration = Duration::from_micros(200);

/// What is in flight to all short connections together should stay in the processor's caches: on
/// loopback twice the throughput of the default, which autotuning lets grow to megabytes a
/// connection.
const SHORT_RTT_BYTES: usize = 32 << 20;
/// Less makes many small writes, and more brings nothing. The kernel doubles the value for its own
/// bookkeeping, and may allow less (`net.core.wmem_max`).
const SHORT_RTT_SEND_BUFFER_BYTES: RangeInclusive<usize> = 64 << 10..=256 << 10;

/// Congestion control that sends when it may, by preference. The second one is in every kernel and
/// allowed to everybody.
const UNPACED: [&str; 2] = ["cubic", "reno"];

/// The system's congestion control, which connections that are not short have again.
pub struct UsualCongestion(Option<Vec<u8>>);

/// Lets the connections of a listener begin without pacing.
///
/// Why: BBR spreads what it sends over time, with a timer for each 64 KiB. Over a distance that
/// keeps queues short. At a short round trip there is nothing to keep short, and the timers are
/// half of the processor time of a hit; on a virtual machine each is a way to the host and back. A
/// connection that once was paced stays so, hence before it is there.
pub fn begin_unpaced(listener: &TcpListener) -> UsualCongestion {
    let socket = SockRef::from(listener);
    let usual = socket.tcp_congestion().ok();
    let set = |name: &&str| socket.set_tcp_congestion(name.as_bytes()).is_ok();
    if usual.is_some() && UNPACED.iter().any(set) {
        UsualCongestion(usual)
    } else {
        UsualCongestion(None)
    }
}

/// Prepares a player's connection. Failures are not fatal: each is an optimisation or a courtesy.
/// `open`: how many connections there are.
pub fn tune(stream: &TcpStream, open: usize, usual: &UsualCongestion) {
    // Heads are corked explicitly where a body follows; nothing else should wait.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    // A paused player whose machine vanished must not hold a place for a quarter of an hour.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let _ = socket.set_tcp_keepalive(&keepalive);
    // A set size ends autotuning and limits a connection to about buffer / round trip, so only
    // where that is short.
    if round_trip(stream).is_some_and(|rtt| rtt <= SHORT_RTT) {
        let _ = socket.set_send_buffer_size(send_buffer_bytes(open));
    } else if let Some(usual) = &usual.0 {
        let _ = socket.set_tcp_congestion(usual);
    }
}

fn send_buffer_bytes(open: usize) -> usize {
    let (least, most) = SHORT_RTT_SEND_BUFFER_BYTES.into_inner();
    (SHORT_RTT_BYTES / open.max(1)).clamp(least, most)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(socket: &SockRef<'_>) -> String {
        let name = socket.tcp_congestion().unwrap();
        let end = name.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&name[..end.unwrap_or(name.len())]).into_owned()
    }

    #[tokio::test]
    async fn connections_begin_unpaced_and_those_that_are_not_short_have_the_usual_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let system = name(&SockRef::from(&listener));
        let usual = begin_unpaced(&listener);
        let _player = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(UNPACED.contains(&name(&SockRef::from(&stream)).as_str()));
        let is_short = round_trip(&stream).unwrap() <= SHORT_RTT;
        tune(&stream, 1, &usual);
        let now = name(&SockRef::from(&stream));
        if is_short {
            assert!(UNPACED.contains(&now.as_str()), "{now}");
        } else {
            assert_eq!(now, system);
        }
        SockRef::from(&stream)
            .set_tcp_congestion(usual.0.as_ref().unwrap())
            .unwrap();
        assert_eq!(name(&SockRef::from(&stream)), system);
    }

    #[test]
    fn many_connections_have_small_buffers() {
        assert_eq!(send_buffer_bytes(0), 256 << 10);
        assert_eq!(send_buffer_bytes(64), 256 << 10);
        assert_eq!(send_buffer_bytes(256), 128 << 10);
        assert_eq!(send_buffer_bytes(10_000), 64 << 10);
    }
}
