//! Limits per client: concurrent connections, and requests a second.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Maximum number of clients in the rate limiter. Beyond it, clients with a full allowance are
/// forgotten, or all if there are none: a flood of addresses must not cost memory.
const MAX_RATED_CLIENTS: usize = 64 << 10;

/// How many connections and requests are served.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections in all.
    pub connections: usize,
    /// Open connections of one client. Generous: offices and mobile networks share addresses.
    pub connections_per_client: u32,
    /// Request rate of one client; none: not limited.
    pub request_rate: Option<RequestRate>,
    /// Bytes a second of one connection; none: not limited.
    pub client_rate: Option<u64>,
    /// Bytes of a request's head.
    pub request_head_bytes: usize,
    /// Streams of one HTTP/2 connection.
    pub http2_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_client: 512,
            request_rate: None,
            client_rate: None,
            request_head_bytes: 64 << 10,
            http2_streams: 128,
        }
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub struct RequestRate {
    pub per_second: f64,
    /// How many may come at once.
    pub burst: f64,
}

/// A client as limits see it: an IPv4 address, or an IPv6 network of /64, which one subscriber
/// gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Client(u128);

impl Client {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u128::from(address.to_bits())),
            IpAddr::V6(address) => Self(address.to_bits() >> 64 << 64),
        }
    }
}

/// Connections by client. Locked once when a connection opens and once when it closes.
#[derive(Default)]
pub struct Connections(Mutex<HashMap<Client, u32>>);

impl Connections {
    /// Admits one more connection until the result is dropped; `None`: the client has its share.
    pub fn admit(self: &Arc<Self>, address: IpAddr, max_per_client: u32) -> Option<Admission> {
        let client = Client::of(address);
        let mut counts = self.0.lock();
        let count = counts.entry(client).or_insert(0);
        if *count >= max_per_client {
            return None;
        }
        *count += 1;
        Some(Admission {
            connections: Arc::clone(self),
            client,
        })
    }
}

/// An admitted connection.
pub struct Admission {
    connections: Arc<Connections>,
    client: Client,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.connections.0.lock();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// Token buckets by client.
pub struct RateLimiter {
    rate: RequestRate,
    buckets: Mutex<HashMap<Client, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl RateLimiter {
    #[must_use]
    pub fn new(rate: RequestRate) -> Self {
        Self {
            rate,
            buckets: Mutex::default(),
        }
    }

    /// Takes a token; otherwise returns how long until there is one.
    pub fn take(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_RATED_CLIENTS {
            buckets.retain(|_, bucket| bucket.level(rate, now) < rate.burst);
            if buckets.len() >= MAX_RATED_CLIENTS {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(Client::of(address)).or_insert(Bucket {
            tokens: rate.burst,
            at: now,
        });
        let level = bucket.level(rate, now);
        if level < 1.0 {
            return Err(Duration::try_from_secs_f64((1.0 - level) / rate.per_second)
                .unwrap_or(Duration::MAX));
        }
        *bucket = Bucket {
            tokens: level - 1.0,
            at: now,
        };
        Ok(())
    }
}

impl Bucket {
    fn level(self, rate: RequestRate, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        (self.tokens + gained).min(rate.burst)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_has_its_share_and_gets_it_back() {
        let connections = Arc::new(Connections::default());
        let first = connections.admit(ip("192.0.2.1"), 1);
        assert!(first.is_some());
        assert!(
            connections.admit(ip("::ffff:192.0.2.1"), 1).is_none(),
            "the same client in other clothes"
        );
        assert!(connections.admit(ip("192.0.2.2"), 1).is_some());
        drop(first);
        assert!(connections.admit(ip("192.0.2.1"), 1).is_some());
        let one = connections.admit(ip("2001:db8::1"), 1);
        assert!(
            connections.admit(ip("2001:db8::2"), 1).is_none(),
            "one /64 is one client"
        );
        drop(one);
        assert!(connections.0.lock().is_empty());
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let limiter = RateLimiter::new(RequestRate {
            per_second: 2.0,
            burst: 3.0,
        });
        let start = Instant::now();
        for _ in 0..3 {
            assert!(limiter.take(ip("192.0.2.1"), start).is_ok());
        }
        assert_eq!(
            limiter.take(ip("192.0.2.1"), start),
            Err(Duration::from_millis(500))
        );
        assert!(limiter.take(ip("192.0.2.2"), start).is_ok());
        assert!(
            limiter
                .take(ip("192.0.2.1"), start + Duration::from_millis(500))
                .is_ok()
        );
        assert!(
            limiter
                .take(ip("192.0.2.1"), start + Duration::from_millis(500))
                .is_err()
        );
    }
}
