//! Common Media Server Data for players in responses, with `--cmsd`.

use std::time::Instant;

use http::{HeaderMap, HeaderValue, header};
use http_rules::cmsd::{self, Delivery};

use super::{connection::Client, response::CACHE_STATUS, server::Settings};

/// Adds CMSD to a response about an object, just before its body begins.
pub(super) fn decorate(
    settings: &Settings,
    client: &Client,
    received: Instant,
    response: &mut HeaderMap,
) {
    if !response.contains_key(CACHE_STATUS) {
        return;
    }
    let delay = received.elapsed().as_millis();
    let transport = client.transport.unwrap_or_default();
    let max_rate = settings.limits.client_rate;
    let delivery = Delivery {
        throughput_kbps: transport.delivery_kbps.map(u64::from),
        max_kbps: max_rate.map(|rate| rate.saturating_mul(8) / 1_000),
        response_delay_ms: u64::try_from(delay).unwrap_or(u64::MAX),
        round_trip_ms: transport
            .round_trip_us
            .map(|us| u64::from(us).div_ceil(1_000)),
    };
    // After the members of servers nearer to the origin. It is ASCII without control characters.
    if let Ok(value) = HeaderValue::try_from(delivery.render(&settings.edge_name)) {
        response.append(cmsd::DYNAMIC, value);
    }
    // The origin's own description takes precedence.
    if response.contains_key(cmsd::STATIC) {
        return;
    }
    let content_type = response.get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    if let Some(properties) = content_type.and_then(cmsd::of_type) {
        response.insert(cmsd::STATIC, HeaderValue::from_static(properties));
    }
}
