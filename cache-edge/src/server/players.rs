//! What players say of themselves in their requests (CMCD).

use http::request::Parts;
use http_rules::cmcd::Cmcd;

use super::metrics::Metrics;

/// What a request's player reports; the stalls that it saw are counted.
pub(super) fn read(metrics: &Metrics, request: &Parts) -> Option<Cmcd> {
    let cmcd = Cmcd::from_request(&request.headers, request.uri.query())?;
    if cmcd.is_starved {
        metrics.count_player_stall();
    }
    Some(cmcd)
}
