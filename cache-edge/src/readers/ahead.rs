//! Demand without a response body, for a reader that is expected.

use std::sync::Arc;

use chunkcache_proto::ByteRange;

use super::{
    demand::{DemandRegistry, ReaderState},
    reader::ReaderFactory,
};
use crate::core::consumption::PlayerReport;

/// Closed when dropped. It never waits, so its demand is never CRITICAL.
struct ExpectedReader {
    demand: Arc<DemandRegistry>,
    state: Arc<ReaderState>,
}

impl Drop for ExpectedReader {
    fn drop(&mut self) {
        self.demand.close(self.state.id);
    }
}

/// See [`crate::resolve::ports::OpenReader::fetch_ahead`].
pub(super) async fn fetch(factory: &ReaderFactory, range: ByteRange, player: PlayerReport) -> bool {
    let file = &factory.file;
    let geometry = file.geometry();
    let range = range.intersect(ByteRange::new(0, geometry.size()));
    let incoming = factory.incoming.of(file);
    let _expected = ExpectedReader {
        demand: Arc::clone(&factory.demand),
        state: factory.demand.expect(file, range, player),
    };
    for chunk in geometry.chunks_covering(range) {
        while let Some(incoming_chunk) = incoming.incoming_chunk(chunk) {
            let mut changed = std::pin::pin!(incoming_chunk.changed());
            changed.as_mut().enable();
            if file.is_present(chunk) {
                break;
            }
            if incoming.is_changed() {
                return false;
            }
            changed.await;
            // Refused or abandoned: a viewer that needs it will request it again.
            if incoming_chunk.is_over() && !file.is_present(chunk) {
                return false;
            }
        }
    }
    true
}
