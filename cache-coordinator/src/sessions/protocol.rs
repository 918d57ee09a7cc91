//! The order of a session's messages, as a pure state machine.
//!
//! The order of storage messages (inventory, stored, removed, observed) carries meaning; the others
//! may come at any time after `Hello`. A message out of order is the edge's fault and ends the
//! session: it reconnects and starts from a known state.

use chunkcache_proto::v1::session_request::Message;

/// The progress of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No message yet.
    AwaitHello,
    /// Digests arrive, until `InventoryComplete`.
    Digests,
    /// Requested entries arrive in full, page after page. The storage lane knows whether one was
    /// requested.
    Pages,
}

/// Where a message is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// The opening of the session.
    Hello,
    /// In the order received, with the database.
    Storage,
    /// At once.
    Control,
}

/// A message that is not allowed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} is out of order in phase {phase:?}")]
pub struct OutOfOrder {
    pub message: &'static str,
    pub phase: Phase,
}

/// The phase of a session, which each message may advance.
#[derive(Debug)]
pub struct Protocol {
    phase: Phase,
}

impl Default for Protocol {
    fn default() -> Self {
        Self {
            phase: Phase::AwaitHello,
        }
    }
}

impl Protocol {
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Checks one message and advances the phase.
    pub fn accept(&mut self, message: &Message) -> Result<Handler, OutOfOrder> {
        use Phase::{AwaitHello, Digests, Pages};
        let (next, lane) = match (self.phase, message) {
            (AwaitHello, Message::Hello(_)) => (Digests, Handler::Hello),
            (Digests | Pages, Message::Hello(_)) | (AwaitHello, _) => {
                return Err(self.out_of_order(message));
            }
            (Digests, Message::InventoryDigests(_)) => (Digests, Handler::Storage),
            (Digests, Message::InventoryComplete(_)) => (Pages, Handler::Storage),
            (Pages, Message::InventoryEntry(_) | Message::InventoryComplete(_)) => {
                (Pages, Handler::Storage)
            }
            (Digests, Message::InventoryEntry(_)) | (Pages, Message::InventoryDigests(_)) => {
                return Err(self.out_of_order(message));
            }
            (
                phase @ (Digests | Pages),
                Message::ChunksStored(_)
                | Message::ChunksRemoved(_)
                | Message::EntriesRemoved(_)
                | Message::EntryObserved(_)
                // In order with the observations before it.
                | Message::InvalidateAck(_),
            ) => (phase, Handler::Storage),
            (
                phase @ (Digests | Pages),
                Message::Demand(_)
                | Message::KeyNegative(_)
                | Message::WholeAnswer(_)
                | Message::FetchReport(_)
                | Message::ProbeReport(_)
                | Message::TitleReport(_)
                | Message::SourceCheckReport(_)
                | Message::Status(_)
                | Message::SourceAck(_)
                | Message::Drain(_)
                | Message::LocalFetch(_)
                | Message::QuotaReport(_),
            ) => (phase, Handler::Control),
        };
        self.phase = next;
        Ok(lane)
    }

    fn out_of_order(&self, message: &Message) -> OutOfOrder {
        OutOfOrder {
            message: name(message),
            phase: self.phase,
        }
    }
}

/// The name of a message, for logs and errors.
#[must_use]
pub fn name(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "Hello",
        Message::InventoryDigests(_) => "InventoryDigests",
        Message::InventoryEntry(_) => "InventoryEntry",
        Message::InventoryComplete(_) => "InventoryComplete",
        Message::Demand(_) => "DemandBatch",
        Message::ChunksStored(_) => "ChunksStored",
        Message::ChunksRemoved(_) => "ChunksRemoved",
        Message::EntriesRemoved(_) => "EntriesRemoved",
        Message::EntryObserved(_) => "EntryObserved",
        Message::KeyNegative(_) => "KeyNegative",
        Message::WholeAnswer(_) => "WholeAnswer",
        Message::FetchReport(_) => "FetchReport",
        Message::ProbeReport(_) => "ProbeReport",
        Message::TitleReport(_) => "TitleReport",
        Message::SourceCheckReport(_) => "SourceCheckReport",
        Message::Status(_) => "EdgeStatus",
        Message::InvalidateAck(_) => "InvalidateAck",
        Message::SourceAck(_) => "SourceAck",
        Message::Drain(_) => "DrainRequest",
        Message::LocalFetch(_) => "LocalFetch",
        Message::QuotaReport(_) => "QuotaReport",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use chunkcache_proto::v1;

    fn hello() -> Message {
        Message::Hello(v1::Hello::default())
    }
    fn complete() -> Message {
        Message::InventoryComplete(v1::InventoryComplete {})
    }
    fn stored() -> Message {
        Message::ChunksStored(v1::ChunksStored::default())
    }

    #[test]
    fn the_opening_in_order() {
        let mut protocol = Protocol::default();
        assert_eq!(protocol.accept(&hello()), Ok(Handler::Hello));
        let digests = Message::InventoryDigests(v1::InventoryDigests::default());
        assert_eq!(protocol.accept(&digests), Ok(Handler::Storage));
        assert_eq!(protocol.accept(&complete()), Ok(Handler::Storage));
        let entry = Message::InventoryEntry(v1::InventoryEntry::default());
        assert_eq!(protocol.accept(&entry), Ok(Handler::Storage));
        assert_eq!(protocol.accept(&complete()), Ok(Handler::Storage));
        assert_eq!(protocol.phase(), Phase::Pages);
        assert_eq!(protocol.accept(&stored()), Ok(Handler::Storage));
        assert!(protocol.accept(&digests).is_err());
    }

    #[test]
    fn nothing_comes_before_hello_and_hello_comes_once() {
        let mut protocol = Protocol::default();
        assert!(protocol.accept(&stored()).is_err());
        protocol.accept(&hello()).unwrap();
        assert!(protocol.accept(&hello()).is_err());
    }

    #[test]
    fn demand_flows_from_welcome_on() {
        let mut protocol = Protocol::default();
        protocol.accept(&hello()).unwrap();
        let demand = Message::Demand(v1::DemandBatch::default());
        assert_eq!(protocol.accept(&demand), Ok(Handler::Control));
        assert_eq!(protocol.phase(), Phase::Digests);
    }
}
