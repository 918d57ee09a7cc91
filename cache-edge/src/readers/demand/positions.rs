//! Positions of viewers, and the readers that they leave when they seek on another connection.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Inner, NEAR, NOT_LEFT, ReaderState};
use crate::core::{
    consumption::Consumption,
    viewers::{Viewer, ViewerPosition},
};

/// A reader whose viewer sought counts as left until it has read this much more: that much may
/// already be on the way to its client, in the buffers of two sockets.
const LEFT_UNREAD: u64 = 32 << 20;

impl Inner {
    /// Records that the viewer now reads the object with this reader. Returns the consumption of
    /// its previous reader, and whether the viewer sought.
    pub(super) fn move_viewer(
        &mut self,
        viewer: Viewer,
        reader: &ReaderState,
        now: Duration,
    ) -> Option<(Consumption, bool)> {
        let last = ViewerPosition {
            reader: reader.id,
            position: reader.position(),
            consumption: None,
        };
        let before = self
            .viewer_positions
            .replace(viewer, reader.file.id(), last, now)?;
        let is_far = |position: u64| position.abs_diff(reader.position()) > NEAR;
        let Some(left) = self.readers.get(&before.reader).cloned() else {
            return Some((before.consumption?, is_far(before.position)));
        };
        let position = left.position();
        let is_seek = is_far(position);
        // A viewer may read a short range to its end in parallel with others.
        if is_seek && left.end.saturating_sub(position) > NEAR {
            left.left_at.store(position, Ordering::Relaxed);
            left.held_ms.store(0, Ordering::Relaxed);
            self.dirty.insert(left.id);
            self.to_report.add(true);
        }
        Some((left.consumption.lock().give(), is_seek))
    }

    pub(super) fn record_viewer(&mut self, reader: &ReaderState, now: Duration) {
        if let Some(viewer) = reader.viewer {
            let last = ViewerPosition {
                reader: reader.id,
                position: reader.position(),
                consumption: Some(*reader.consumption.lock()),
            };
            self.viewer_positions
                .leave(viewer, reader.file.id(), last, now);
        }
    }
}

impl ReaderState {
    /// Whether its viewer sought on another connection, and this reader has not read on since. The
    /// coordinator plans nothing for it. Its viewer may read at both positions, so the edge fetches
    /// the bytes that it waits for on its own, one chunk at a time.
    #[must_use]
    pub fn is_left(&self) -> bool {
        let left_at = self.left_at.load(Ordering::Relaxed);
        left_at != NOT_LEFT && self.position() < left_at.saturating_add(LEFT_UNREAD)
    }

    /// End of the range that is fetched ahead for it.
    #[must_use]
    pub fn reach(&self, ahead: u64) -> u64 {
        let ahead = if self.is_left() { 1 } else { ahead };
        self.position().saturating_add(ahead).min(self.end)
    }
}
