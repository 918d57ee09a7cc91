//! Where viewers read, and the readers that they leave when they seek on another connection.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Inner, NEAR, NOT_LEFT, ReaderState};
use crate::core::{
    consumption::Consumption,
    viewers::{Place, Viewer},
};

/// A reader whose viewer sought is left by it, as far as its client may have been sent bytes that it
/// never reads.
const LEFT_UNREAD: u64 = 8 << 20;

impl Inner {
    /// The viewer reads the object with this reader from now on. Returns what it had earned with the
    /// one before, and whether it sought.
    pub(super) fn take_place(
        &mut self,
        viewer: Viewer,
        reader: &ReaderState,
        now: Duration,
    ) -> Option<(Consumption, bool)> {
        let place = Place {
            reader: reader.id,
            position: reader.position(),
            consumption: None,
        };
        let before = self.places.replace(viewer, reader.file.id(), place, now)?;
        let is_far = |position: u64| position.abs_diff(reader.position()) > NEAR;
        let Some(left) = self.readers.get(&before.reader).cloned() else {
            return Some((before.consumption?, is_far(before.position)));
        };
        let position = left.position();
        let is_seek = is_far(position);
        // A short range is read to its end, perhaps beside others.
        if is_seek && left.end.saturating_sub(position) > NEAR {
            left.left_at.store(position, Ordering::Relaxed);
            self.dirty.insert(left.id);
            self.urgent = true;
        }
        Some((left.consumption.lock().give(), is_seek))
    }

    pub(super) fn leave_place(&mut self, reader: &ReaderState, now: Duration) {
        if let Some(viewer) = reader.viewer {
            let place = Place {
                reader: reader.id,
                position: reader.position(),
                consumption: Some(*reader.consumption.lock()),
            };
            self.places.leave(viewer, reader.file.id(), place, now);
        }
    }
}

impl ReaderState {
    /// Its viewer sought, on another connection, and it has not read on since. It is served what it
    /// waits for: its viewer may read at both places.
    #[must_use]
    pub fn is_left(&self) -> bool {
        let left_at = self.left_at.load(Ordering::Relaxed);
        left_at != NOT_LEFT && self.position() < left_at.saturating_add(LEFT_UNREAD)
    }

    /// Where it may be soon: what is fetched up to here is for it.
    #[must_use]
    pub fn reach(&self, ahead: u64) -> u64 {
        let ahead = if self.is_left() { 1 } else { ahead };
        self.position().saturating_add(ahead).min(self.end)
    }
}
