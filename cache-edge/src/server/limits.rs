//! Limits per client: simultaneous connections, requests and readers, and requests per second.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use service_kit::token_bucket::{Rate, TokenBucket};

/// Maximum number of clients in the rate limiter. Beyond it, clients with a full allowance are
/// forgotten, or all if there are none, so that a flood of addresses does not cost memory.
const MAX_RATED_CLIENTS: usize = 64 << 10;

/// How many connections and requests are served.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections in all.
    pub connections: usize,
    /// Open connections of one client. Generous: offices and mobile networks share addresses.
    pub connections_per_client: u32,
    /// Request rate of one client; `None`: no limit.
    pub request_rate: Option<Rate>,
    /// Bytes per second of one connection; `None`: no limit.
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

/// A client for the limits: an IPv4 address, or an IPv6 network of /64, which one subscriber gets.
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

/// The number of the client with this address.
pub(super) fn client_number(address: IpAddr) -> u128 {
    Client::of(address).0
}

/// A number of units that clients share. A client has at most `of_client`, and at most half of what
/// the others leave, so that it never takes the last one; it may always have `least`.
pub struct Shares {
    all: u32,
    of_client: u32,
    least: u32,
    counts: Mutex<ShareCounts>,
}

#[derive(Default)]
struct ShareCounts {
    by_client: HashMap<Client, u32>,
    count: u32,
}

impl Shares {
    #[must_use]
    pub fn new(all: u32, of_client: u32, least: u32) -> Arc<Self> {
        Arc::new(Self {
            all,
            of_client,
            least,
            counts: Mutex::default(),
        })
    }

    /// Takes one unit until the result is dropped; `None`: the client has its share.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        self.take_if(address, |own, left| {
            own < self.of_client.min(left / 2).max(self.least)
        })
    }

    /// The same for a proxy, which may have the shares of many clients.
    pub fn take_for_many(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        self.take_if(address, |own, left| own < left)
    }

    /// `may` is called with the client's number of units and the number that the others leave.
    fn take_if(
        self: &Arc<Self>,
        address: IpAddr,
        may: impl FnOnce(u32, u32) -> bool,
    ) -> Option<Share> {
        let client = Client::of(address);
        let mut counts = self.counts.lock();
        let own = counts.by_client.get(&client).copied().unwrap_or(0);
        if !may(own, self.all.saturating_sub(counts.count - own)) {
            return None;
        }
        counts.by_client.insert(client, own + 1);
        counts.count += 1;
        Some(Share {
            shares: Arc::clone(self),
            client,
            nth: own + 1,
        })
    }
}

/// One unit that a client has taken.
pub struct Share {
    shares: Arc<Shares>,
    client: Client,
    nth: u32,
}

impl Share {
    /// The number of units that the client has, including this one, when it took this one.
    #[must_use]
    pub fn nth(&self) -> u32 {
        self.nth
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.counts.lock();
        counts.count -= 1;
        if let Some(own) = counts.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                counts.by_client.remove(&self.client);
            }
        }
    }
}

/// Token buckets by client.
pub struct RateLimiter {
    rate: Rate,
    buckets: Mutex<HashMap<Client, TokenBucket>>,
}

impl RateLimiter {
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            buckets: Mutex::default(),
        }
    }

    /// Takes a token, or returns how long it takes until there is one.
    pub fn take(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_RATED_CLIENTS {
            buckets.retain(|_, bucket| bucket.level(rate, now) < rate.burst);
            if buckets.len() >= MAX_RATED_CLIENTS {
                buckets.clear();
            }
        }
        let full = TokenBucket::new(rate.burst, now);
        let bucket = buckets.entry(Client::of(address)).or_insert(full);
        bucket.take(1.0, rate, now)
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
        let connections = Shares::new(u32::MAX, 1, 0);
        let first = connections.take(ip("192.0.2.1"));
        assert!(first.is_some());
        assert!(
            connections.take(ip("::ffff:192.0.2.1")).is_none(),
            "the same client in other clothes"
        );
        assert!(connections.take(ip("192.0.2.2")).is_some());
        drop(first);
        assert!(connections.take(ip("192.0.2.1")).is_some());
        let one = connections.take(ip("2001:db8::1"));
        assert!(
            connections.take(ip("2001:db8::2")).is_none(),
            "one /64 is one client"
        );
        drop(one);
        assert!(connections.counts.lock().by_client.is_empty());
    }

    #[test]
    fn no_client_takes_the_last_place() {
        let shares = Shares::new(100, 40, 2);
        let take_all = |client: &str| {
            let places: Vec<Share> = std::iter::from_fn(|| shares.take(ip(client))).collect();
            (places.len(), places)
        };
        let (first, _held) = take_all("192.0.2.1");
        let (second, _held_too) = take_all("192.0.2.2");
        assert_eq!((first, second), (40, 30), "half of 60 is less than 40");
        let (many, held) = (3..100)
            .map(|client| take_all(&format!("192.0.2.{client}")))
            .unzip::<_, _, Vec<usize>, Vec<_>>();
        assert!(many.iter().all(|&count| count >= 2), "{many:?}");
        drop(held);
        assert_eq!(take_all("192.0.2.3").0, 15);
    }

    #[test]
    fn each_client_has_its_bucket() {
        let limiter = RateLimiter::new(Rate {
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
