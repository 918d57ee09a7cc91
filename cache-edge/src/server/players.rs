//! What players say of themselves in their requests (CMCD).

use http::request::Parts;
use http_rules::cmcd::Cmcd;

use super::metrics::Metrics;
use crate::core::consumption::PlayerReport;

/// What a request's player reports; the stalls that it saw are counted.
pub(super) fn report(metrics: &Metrics, request: &Parts) -> PlayerReport {
    let Some(cmcd) = Cmcd::from_request(&request.headers, request.uri.query()) else {
        return PlayerReport::default();
    };
    if cmcd.is_starved {
        metrics.count_player_stall();
    }
    PlayerReport::from(&cmcd)
}
