//! Players' reports about themselves in their requests (CMCD).

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::LazyLock,
};

use http::request::Parts;
use http_rules::cmcd::Cmcd;

use super::{limits, metrics::Metrics};
use crate::core::{consumption::PlayerReport, viewers::Viewer};

/// Randomised, so that clients cannot choose the hashes of session names.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Lower bound of a requested rate: a slower body would occupy its share of the limits forever.
const LEAST_RATE: u64 = 16 << 10;

/// Reads the report of a request's player, and counts the stall that it reports.
pub(super) fn read(metrics: &Metrics, request: &Parts) -> Option<Cmcd> {
    let cmcd = Cmcd::from_request(&request.headers, request.uri.query())?;
    if cmcd.is_starved {
        metrics.count_player_stall();
    }
    Some(cmcd)
}

/// The report for the lookahead.
pub(super) fn report_of(cmcd: &Cmcd, client: IpAddr) -> PlayerReport {
    PlayerReport {
        viewer: viewer_of(cmcd, client),
        ..PlayerReport::from(cmcd)
    }
}

/// The viewer of a request. `None`: its player names no session.
pub(super) fn viewer_of(cmcd: &Cmcd, client: IpAddr) -> Option<Viewer> {
    let client = limits::client_number(client);
    let name = cmcd.session_id.as_ref()?;
    Some(Viewer {
        client,
        session: HASHER.hash_one((client, name)).max(1),
    })
}

/// The rate in bytes per second that the player requests for the body (`rtp`), at least its
/// reported bit rate. `None`: no limit.
pub(super) fn rate_of(cmcd: &Cmcd) -> Option<u64> {
    let bytes = |kbps: u64| kbps.saturating_mul(125);
    let plays = cmcd.encoded_kbps.map_or(0, bytes);
    let wanted = cmcd.requested_max_kbps.map(bytes)?;
    Some(wanted.max(plays).max(LEAST_RATE))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn a_viewer_is_its_clients_own() {
        let viewer = |text: &str, client: &str| {
            let query = format!("CMCD={text}");
            let cmcd = Cmcd::from_request(&HeaderMap::new(), Some(&query)).unwrap();
            viewer_of(&cmcd, client.parse().unwrap())
        };
        let one = viewer("sid%3D%22a%22", "192.0.2.1");
        assert!(one.is_some());
        assert_eq!(viewer("su%2Csid%3D%22a%22", "192.0.2.1"), one);
        assert_ne!(viewer("sid%3D%22b%22", "192.0.2.1"), one);
        assert_ne!(viewer("sid%3D%22a%22", "192.0.2.2"), one);
        let network = viewer("sid%3D%22a%22", "2001:db8::1");
        assert_eq!(viewer("sid%3D%22a%22", "2001:db8::2"), network);
        assert_eq!(viewer("su", "192.0.2.1"), None);
    }

    #[test]
    fn a_player_is_sent_no_less_than_it_plays() {
        let rate = |text: &str| {
            let query = format!("CMCD={text}");
            let cmcd = Cmcd::from_request(&HeaderMap::new(), Some(&query));
            cmcd.as_ref().and_then(rate_of)
        };
        assert_eq!(rate("rtp%3D8000"), Some(1_000_000));
        assert_eq!(rate("rtp%3D8000%2Cbr%3D2000"), Some(1_000_000));
        assert_eq!(rate("rtp%3D800%2Cbr%3D8000"), Some(1_000_000));
        assert_eq!(rate("rtp%3D1"), Some(LEAST_RATE));
        assert_eq!(rate("rtp%3D0"), None);
        assert_eq!(rate("br%3D8000"), None);
    }
}
