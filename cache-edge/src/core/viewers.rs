//! Viewers: where they read each object last, and what they have earned there. It goes with a viewer
//! that goes on, or seeks, on another connection.
//!
//! A viewer is known by what its player calls its session (CMCD `sid`), and by its client: nobody
//! speaks for another client's viewer. Only a hash of the name is kept, for so many objects of one
//! client and of all; those least recently heard of give way.

use std::{collections::HashMap, time::Duration};

use chunkcache_proto::EntryId;

use super::consumption::Consumption;

/// Objects that viewers read, in all and of one client's viewers.
const MAX_PLACES: usize = 8_192;
const PLACES_OF_CLIENT: usize = 64;
/// Older ones give way to other clients' viewers.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// They are looked for no more often.
const SWEEP_AFTER: Duration = Duration::from_secs(1);

/// One player's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    /// Its client, as limits see it.
    pub client: u128,
    /// A hash of its client and of its session's name; never 0.
    pub session: u64,
}

/// Where a viewer read an object last.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The number of its last reader.
    pub reader: u64,
    pub position: u64,
    /// What it has consumed; unset while the reader is open, and counts itself.
    pub consumption: Option<Consumption>,
}

struct Kept {
    session: u64,
    entry: EntryId,
    place: Place,
    at: Duration,
}

/// Times are on any clock.
#[derive(Default)]
pub struct Places {
    by_client: HashMap<u128, Vec<Kept>>,
    count: usize,
    swept_at: Duration,
}

impl Places {
    /// The viewer reads the object elsewhere from now on. Returns where it read it before.
    pub fn replace(
        &mut self,
        viewer: Viewer,
        entry: EntryId,
        place: Place,
        now: Duration,
    ) -> Option<Place> {
        if let Some(kept) = self.find(viewer, entry) {
            kept.at = now;
            return Some(std::mem::replace(&mut kept.place, place));
        }
        let kept = Kept {
            session: viewer.session,
            entry,
            place,
            at: now,
        };
        self.make_space(now);
        let is_full = self.count >= MAX_PLACES;
        match self.by_client.get_mut(&viewer.client) {
            Some(own) if is_full || own.len() >= PLACES_OF_CLIENT => {
                if let Some(oldest) = own.iter_mut().min_by_key(|kept| kept.at) {
                    *oldest = kept;
                }
            }
            None if is_full => {}
            _ => {
                self.by_client.entry(viewer.client).or_default().push(kept);
                self.count += 1;
            }
        }
        None
    }

    /// The viewer's reader was closed there. Nothing if it reads elsewhere by now.
    pub fn leave(&mut self, viewer: Viewer, entry: EntryId, place: Place, now: Duration) {
        if let Some(kept) = self.find(viewer, entry)
            && kept.place.reader == place.reader
        {
            (kept.place, kept.at) = (place, now);
        }
    }

    fn find(&mut self, viewer: Viewer, entry: EntryId) -> Option<&mut Kept> {
        let own = self.by_client.get_mut(&viewer.client)?;
        own.iter_mut()
            .find(|kept| kept.session == viewer.session && kept.entry == entry)
    }

    fn make_space(&mut self, now: Duration) {
        if self.count < MAX_PLACES || now.saturating_sub(self.swept_at) < SWEEP_AFTER {
            return;
        }
        self.swept_at = now;
        for own in self.by_client.values_mut() {
            own.retain(|kept| now.saturating_sub(kept.at) < KEPT_FOR);
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

    fn place(reader: u64) -> Place {
        Place {
            reader,
            position: 0,
            consumption: None,
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn before(places: &mut Places, viewer: Viewer, at: u64) -> Option<u64> {
        let before = places.replace(viewer, FILM, place(9), seconds(at));
        before.map(|place| place.reader)
    }

    #[test]
    fn a_viewer_is_found_again_by_its_own_client_and_in_its_object() {
        let mut places = Places::default();
        assert_eq!(before(&mut places, viewer(1, 1), 0), None);
        assert_eq!(before(&mut places, viewer(2, 1), 0), None, "another client");
        let other = EntryId::from_u128(2);
        let elsewhere = places.replace(viewer(1, 1), other, place(3), seconds(1));
        assert!(elsewhere.is_none());
        assert_eq!(before(&mut places, viewer(1, 1), 2), Some(9));
        let left = Place {
            position: 7,
            ..place(9)
        };
        places.leave(viewer(1, 1), FILM, left, seconds(3));
        places.leave(viewer(1, 1), FILM, place(4), seconds(3));
        let before = places.replace(viewer(1, 1), FILM, place(5), seconds(4));
        assert_eq!(before.map(|it| (it.reader, it.position)), Some((9, 7)));
    }

    #[test]
    fn many_sessions_cost_a_client_no_more_than_its_own() {
        let mut places = Places::default();
        assert_eq!(before(&mut places, viewer(1, 1), 0), None);
        for session in 1..=20_000 {
            let now = seconds(session);
            places.replace(viewer(2, session), FILM, place(1), now);
        }
        assert_eq!(places.count, PLACES_OF_CLIENT + 1);
        let newest = 20_000 - PLACES_OF_CLIENT as u64 + 1;
        for session in newest..=20_000 {
            let kept = places.find(viewer(2, session), FILM);
            assert!(kept.is_some(), "{session}");
        }
        assert!(places.find(viewer(2, newest - 1), FILM).is_none());
        assert_eq!(before(&mut places, viewer(1, 1), 20_001), Some(9));
    }

    #[test]
    fn many_clients_have_so_many_and_who_left_long_ago_gives_way() {
        let mut places = Places::default();
        for client in 0..2 * MAX_PLACES as u128 {
            places.replace(viewer(client, 1), FILM, place(1), seconds(1));
        }
        assert_eq!(places.count, MAX_PLACES);
        assert_eq!(before(&mut places, viewer(0, 1), 2), Some(1));
        let late = viewer(u128::MAX, 1);
        assert_eq!(before(&mut places, late, 3), None);
        assert_eq!(before(&mut places, late, 4), None, "there was no space");
        assert_eq!(before(&mut places, late, 900), None);
        assert_eq!(before(&mut places, late, 901), Some(9), "there is by now");
        assert_eq!(places.count, 1);
    }
}
