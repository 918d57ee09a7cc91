//! The one edge that has a session while no other has, and so need not ask who else has a byte.
//!
//! It is told so once its rows and disk agree. Before another edge is welcomed the word is taken
//! back, and what the first one began under it has been told by then. See RFC 0004.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::v1;
use parking_lot::Mutex;
use v1::session_response::Message;

use super::registry::{Live, Registry};
use scheduler::api::EdgeId;

/// Who does not confirm in this time may be asking an origin for what the new edge is about to ask
/// for: bytes that come twice, no more.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Sole {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    holder: Option<Arc<Live>>,
    /// Edges between the withdrawal and their registration.
    joining: usize,
}

/// An edge that is about to join: while it is held nobody is told to be alone.
pub struct Joining<'a>(&'a Registry);

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        self.0.sole.state.lock().joining -= 1;
        self.0.tell_sole();
    }
}

impl Registry {
    /// After a session was reconciled or ended: if one edge is left, it is told.
    pub fn tell_sole(&self) {
        let mut state = self.sole.state.lock();
        let sessions = self.all();
        if let Some(holder) = &state.holder
            && !sessions.iter().any(|live| Arc::ptr_eq(live, holder))
        {
            state.holder = None;
        }
        let [only] = sessions.as_slice() else { return };
        if state.joining > 0 || state.holder.is_some() || only.reconciled.borrow().is_none() {
            return;
        }
        // Under the lock: the word and its withdrawal go out in this order.
        only.outbox.post(Message::Sole(v1::Sole {
            sequence: self.next_sequence(),
            sole: true,
        }));
        state.holder = Some(Arc::clone(only));
    }

    /// Takes the word back from another edge before this one joins. What it began is known when
    /// this returns, or half a second has passed.
    pub async fn joining(&self, edge: EdgeId) -> Joining<'_> {
        let (joining, withdrawn) = {
            let mut state = self.sole.state.lock();
            state.joining += 1;
            // An edge that comes back has forgotten what its last session was told.
            let other = state.holder.take().filter(|holder| holder.edge != edge);
            let withdrawn = other.map(|holder| {
                let sequence = self.next_sequence();
                holder.outbox.post(Message::Sole(v1::Sole {
                    sequence,
                    sole: false,
                }));
                (holder, sequence)
            });
            (Joining(self), withdrawn)
        };
        if let Some((holder, sequence)) = withdrawn {
            let mut confirmed = holder.sole_confirmed.subscribe();
            let confirmed = async {
                tokio::select! {
                    _ = confirmed.wait_for(|confirmed| *confirmed >= sequence) => {}
                    () = holder.outbox.ended() => {}
                }
            };
            if tokio::time::timeout(CONFIRMED_WITHIN, confirmed)
                .await
                .is_err()
            {
                tracing::warn!(edge = %holder.name, "an edge did not confirm that it is no longer alone");
            }
        }
        joining
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::registry::tests::live, *};
    use crate::session::registry::Reconciliation;

    fn word(inbox: &mut super::super::registry::tests::Inbox) -> Option<(bool, u64)> {
        match inbox.try_recv().ok()?.unwrap().message.unwrap() {
            Message::Sole(word) => Some((word.sole, word.sequence)),
            other => panic!("{other:?}"),
        }
    }

    fn reconciled(live: &Live) {
        live.reconciled
            .send_replace(Some(Reconciliation::default()));
    }

    #[tokio::test]
    async fn one_edge_is_told_once_it_is_reconciled() {
        let registry = Registry::default();
        let (first, mut inbox) = live(1, 1);
        drop(registry.joining(first.edge).await);
        registry.join(Arc::clone(&first));
        registry.tell_sole();
        assert_eq!(word(&mut inbox), None, "its rows may be wrong");
        reconciled(&first);
        registry.tell_sole();
        assert!(word(&mut inbox).unwrap().0);
        registry.tell_sole();
        assert_eq!(word(&mut inbox), None, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn another_one_waits_until_it_is_taken_back() {
        let registry = Arc::new(Registry::default());
        let (first, mut inbox) = live(1, 1);
        registry.join(Arc::clone(&first));
        reconciled(&first);
        registry.tell_sole();
        word(&mut inbox).unwrap();
        let (second, mut other) = live(2, 1);
        let joining = tokio::spawn({
            let (registry, edge) = (Arc::clone(&registry), second.edge);
            async move { drop(registry.joining(edge).await) }
        });
        tokio::task::yield_now().await;
        let (sole, sequence) = word(&mut inbox).unwrap();
        assert!(!sole);
        tokio::time::advance(CONFIRMED_WITHIN / 2).await;
        assert!(!joining.is_finished());
        first.sole_confirmed.send_replace(sequence);
        tokio::task::yield_now().await;
        joining.await.unwrap();
        // It went away again before it was registered.
        assert!(word(&mut inbox).unwrap().0);
        let joining = registry.joining(second.edge);
        let (joining, ()) = tokio::join!(joining, tokio::time::advance(CONFIRMED_WITHIN * 2));
        word(&mut inbox).unwrap();
        registry.join(Arc::clone(&second));
        drop(joining);
        reconciled(&second);
        registry.tell_sole();
        assert_eq!((word(&mut inbox), word(&mut other)), (None, None));
        registry.leave(first.edge, first.epoch);
        registry.tell_sole();
        assert!(word(&mut other).unwrap().0, "the one that is left");
    }

    #[tokio::test]
    async fn an_edge_that_comes_back_waits_for_nobody() {
        let registry = Registry::default();
        let (first, mut inbox) = live(1, 1);
        registry.join(Arc::clone(&first));
        reconciled(&first);
        registry.tell_sole();
        word(&mut inbox).unwrap();
        let (again, mut new) = live(1, 2);
        let joining = registry.joining(again.edge).await;
        registry.join(Arc::clone(&again));
        drop(joining);
        assert_eq!(word(&mut inbox), None);
        reconciled(&again);
        registry.tell_sole();
        assert!(word(&mut new).unwrap().0);
    }
}
