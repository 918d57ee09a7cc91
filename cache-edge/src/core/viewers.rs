//! The last position of each viewer in each object, and the lookahead that it has earned there. A
//! viewer that continues, or seeks, on another connection takes both along.
//!
//! The client and the name of the player's session (CMCD `sid`) identify a viewer, so no client can
//! act for another client's viewer. Only a hash of the name is stored. The number of objects is
//! bounded per client and in total; the least recently reported are replaced.

use std::{collections::HashMap, time::Duration};

use chunkcache_proto::EntryId;

use super::consumption::Consumption;

/// Limits of stored positions, in total and per client.
const MAX_POSITIONS: usize = 8_192;
const POSITIONS_PER_CLIENT: usize = 64;
/// Older positions are removed in favour of other clients' viewers.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Interval of the search for older positions.
const SWEEP_AFTER: Duration = Duration::from_secs(1);

/// One player's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    /// Its client, as in the limits per client.
    pub client: u128,
    /// Hash of its client and of its session's name; never 0.
    pub session: u64,
}

/// The last position of a viewer in an object.
#[derive(Clone, Copy, Debug)]
pub struct ViewerPosition {
    /// Id of its last reader.
    pub reader: u64,
    pub position: u64,
    /// Its consumption. Unset while the reader is open, which counts it itself.
    pub consumption: Option<Consumption>,
}

struct StoredPosition {
    session: u64,
    entry: EntryId,
    last: ViewerPosition,
    at: Duration,
}

/// Times may be on any clock.
#[derive(Default)]
pub struct ViewerPositions {
    by_client: HashMap<u128, Vec<StoredPosition>>,
    count: usize,
    swept_at: Duration,
}

impl ViewerPositions {
    /// Records the viewer's new position, and returns the previous one.
    pub fn replace(
        &mut self,
        viewer: Viewer,
        entry: EntryId,
        last: ViewerPosition,
        now: Duration,
    ) -> Option<ViewerPosition> {
        if let Some(stored) = self.find(viewer, entry) {
            stored.at = now;
            return Some(std::mem::replace(&mut stored.last, last));
        }
        let stored = StoredPosition {
            session: viewer.session,
            entry,
            last,
            at: now,
        };
        self.make_space(now);
        let is_full = self.count >= MAX_POSITIONS;
        match self.by_client.get_mut(&viewer.client) {
            Some(own) if is_full || own.len() >= POSITIONS_PER_CLIENT => {
                if let Some(oldest) = own.iter_mut().min_by_key(|stored| stored.at) {
                    *oldest = stored;
                }
            }
            None if is_full => {}
            _ => {
                self.by_client
                    .entry(viewer.client)
                    .or_default()
                    .push(stored);
                self.count += 1;
            }
        }
        None
    }

    /// Records the last position of a closed reader, unless the viewer has another reader by now.
    pub fn leave(&mut self, viewer: Viewer, entry: EntryId, last: ViewerPosition, now: Duration) {
        if let Some(stored) = self.find(viewer, entry)
            && stored.last.reader == last.reader
        {
            (stored.last, stored.at) = (last, now);
        }
    }

    fn find(&mut self, viewer: Viewer, entry: EntryId) -> Option<&mut StoredPosition> {
        let own = self.by_client.get_mut(&viewer.client)?;
        own.iter_mut()
            .find(|stored| stored.session == viewer.session && stored.entry == entry)
    }

    fn make_space(&mut self, now: Duration) {
        if self.count < MAX_POSITIONS || now.saturating_sub(self.swept_at) < SWEEP_AFTER {
            return;
        }
        self.swept_at = now;
        for own in self.by_client.values_mut() {
            own.retain(|stored| now.saturating_sub(stored.at) < KEPT_FOR);
        }
        self.by_client.retain(|_, own| !own.is_empty());
        self.count = self.by_client.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILM: EntryId = EntryId::from_u128(1);

    fn viewer(client: u128, session: u64) -> Viewer {
        Viewer { client, session }
    }

    fn last(reader: u64) -> ViewerPosition {
        ViewerPosition {
            reader,
            position: 0,
            consumption: None,
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn before(positions: &mut ViewerPositions, viewer: Viewer, at: u64) -> Option<u64> {
        let before = positions.replace(viewer, FILM, last(9), seconds(at));
        before.map(|last| last.reader)
    }

    #[test]
    fn a_viewer_is_found_again_by_its_own_client_and_in_its_object() {
        let mut positions = ViewerPositions::default();
        assert_eq!(before(&mut positions, viewer(1, 1), 0), None);
        assert_eq!(
            before(&mut positions, viewer(2, 1), 0),
            None,
            "another client"
        );
        let other = EntryId::from_u128(2);
        let elsewhere = positions.replace(viewer(1, 1), other, last(3), seconds(1));
        assert!(elsewhere.is_none());
        assert_eq!(before(&mut positions, viewer(1, 1), 2), Some(9));
        let left = ViewerPosition {
            position: 7,
            ..last(9)
        };
        positions.leave(viewer(1, 1), FILM, left, seconds(3));
        positions.leave(viewer(1, 1), FILM, last(4), seconds(3));
        let before = positions.replace(viewer(1, 1), FILM, last(5), seconds(4));
        assert_eq!(before.map(|it| (it.reader, it.position)), Some((9, 7)));
    }

    #[test]
    fn many_sessions_cost_a_client_no_more_than_its_own() {
        let mut positions = ViewerPositions::default();
        assert_eq!(before(&mut positions, viewer(1, 1), 0), None);
        for session in 1..=20_000 {
            let now = seconds(session);
            positions.replace(viewer(2, session), FILM, last(1), now);
        }
        assert_eq!(positions.count, POSITIONS_PER_CLIENT + 1);
        let newest = 20_000 - POSITIONS_PER_CLIENT as u64 + 1;
        for session in newest..=20_000 {
            let stored = positions.find(viewer(2, session), FILM);
            assert!(stored.is_some(), "{session}");
        }
        assert!(positions.find(viewer(2, newest - 1), FILM).is_none());
        assert_eq!(before(&mut positions, viewer(1, 1), 20_001), Some(9));
    }

    #[test]
    fn many_clients_have_so_many_and_who_left_long_ago_gives_way() {
        let mut positions = ViewerPositions::default();
        for client in 0..2 * MAX_POSITIONS as u128 {
            positions.replace(viewer(client, 1), FILM, last(1), seconds(1));
        }
        assert_eq!(positions.count, MAX_POSITIONS);
        assert_eq!(before(&mut positions, viewer(0, 1), 2), Some(1));
        let late = viewer(u128::MAX, 1);
        assert_eq!(before(&mut positions, late, 3), None);
        assert_eq!(before(&mut positions, late, 4), None, "there was no space");
        assert_eq!(before(&mut positions, late, 900), None);
        assert_eq!(
            before(&mut positions, late, 901),
            Some(9),
            "there is by now"
        );
        assert_eq!(positions.count, 1);
    }
}
