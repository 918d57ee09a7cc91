//! The beginning of a fetch that a viewer waits for: on the viewer's own thread, if that has the
//! time.
//!
//! Why: on a fetching thread the first byte waits for two switches of threads, and for the entry's
//! file to be made. To ask, and to take the first bytes of the answer, blocks nowhere; they go to
//! the viewer from memory, and the rest of the fetch, which writes, goes to a thread that may
//! block.

use chunkcache_proto::ByteRange;

use super::{
    answer::Part,
    control::Control,
    gap::{Next, next_gap},
    run::{Begun, Fetcher, Opened, Order},
};
use crate::{
    availability::{EntryFlights, flight::Loan},
    lanes,
};

impl Fetcher {
    /// Asks, where there is no answer yet, and lends its first bytes. What it did not come to is
    /// left to [`run`](Self::run), and so is what is to be done about errors.
    pub async fn begin(&self, order: &Order, control: &Control, opened: Option<Opened>) -> Begun {
        let flights = self.flights.of(&order.file);
        let Next::Gap(gap) = next_gap(order, &flights) else {
            return opened.into();
        };
        control.set_position(gap.range.start);
        let _staying = lanes::stay();
        let answered = match opened {
            Some(opened) => Ok(opened),
            None => tokio::select! {
                _ = control.stopped_now() => return Begun::default(),
                answered = self.open(&order.file, &flights, gap.range, order.turn()) => answered,
            },
        };
        let mut begun = Begun {
            opened: Some(answered),
            gap: Some(gap),
            loan: None,
        };
        if let Some(Ok(opened)) = &mut begun.opened {
            begun.loan = tokio::select! {
                _ = control.stopped_now() => None,
                lent = lend(&flights, opened) => lent,
            };
        }
        begun
    }
}

async fn lend(flights: &EntryFlights, opened: &mut Opened) -> Option<Loan> {
    let geometry = flights.file().geometry();
    let range = match opened.part {
        Part::Range(range) => range,
        Part::Whole => ByteRange::new(0, geometry.size()),
    };
    let bytes = opened.response.peek().await?;
    // What is beyond what it announced is nobody's.
    let announced = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let bytes = bytes.slice(..bytes.len().min(announced));
    let flight = flights.flight(geometry.chunk_of(range.start))?;
    flight.lend(range.start, &bytes)
}
