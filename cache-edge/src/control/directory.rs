//! Questions to the coordinator beside the session's stream: a key's entry, an entry's key, the
//! best edge for a player. `None`: no answer in time.

use chunkcache_proto::{EntryId, v1};
use service_kit::telemetry;
use tokio::sync::Semaphore;
use tracing::Span;

use super::Link;
use crate::{
    clock::now_ms,
    resolve::directory::{Answer, Directory},
};
use http_rules::{
    freshness,
    steering::{Candidate, SteeredObject},
};

/// Number of players' questions at a time; further players are steered to this edge.
static STEERS: Semaphore = Semaphore::const_new(64);

impl Directory for Link {
    fn resolve(
        &self,
        key: v1::Key,
        passed_over: String,
    ) -> Answer<'_, v1::resolve_key_response::Outcome> {
        Box::pin(async move {
            let (mut client, epoch, patience) = self.client()?;
            let mut request = tonic::Request::new(v1::ResolveKeyRequest {
                edge: self.edge.clone(),
                epoch,
                key: Some(key),
                passed_over,
            });
            request.set_timeout(patience);
            telemetry::inject_metadata(&Span::current(), request.metadata_mut());
            let answer = tokio::time::timeout(patience, client.resolve_key(request))
                .await
                .ok()?;
            match answer {
                Ok(answer) => answer.into_inner().outcome.map(|it| self.on_own_clock(it)),
                Err(status) => {
                    tracing::debug!(%status, "the coordinator did not resolve a key");
                    None
                }
            }
        })
    }

    fn lookup(&self, id: EntryId) -> Answer<'_, v1::KeyBinding> {
        Box::pin(async move {
            let (mut client, _, patience) = self.client()?;
            let mut request = tonic::Request::new(v1::LookupEntryRequest { id: id.to_string() });
            request.set_timeout(patience);
            telemetry::inject_metadata(&Span::current(), request.metadata_mut());
            let answer = tokio::time::timeout(patience, client.lookup_entry(request))
                .await
                .ok()?;
            answer
                .ok()?
                .into_inner()
                .binding
                .map(|it| self.received(it))
        })
    }

    fn steer(&self, object: Option<SteeredObject>) -> Answer<'_, Vec<Candidate>> {
        Box::pin(async move {
            let _permit = STEERS.try_acquire().ok()?;
            let (mut client, _, patience) = self.client()?;
            let key = object.map(|object| v1::Key {
                source: object.source,
                path: object.path,
                query: object.query,
                variant: String::new(),
            });
            let mut request = tonic::Request::new(v1::SteerRequest { key });
            request.set_timeout(patience);
            telemetry::inject_metadata(&Span::current(), request.metadata_mut());
            let answer = tokio::time::timeout(patience, client.steer(request)).await;
            let edges = answer.ok()?.ok()?.into_inner().edges.into_iter();
            let candidates = edges.map(|edge| Candidate {
                name: edge.name,
                url: edge.url,
            });
            Some(candidates.collect())
        })
    }
}

impl Link {
    /// Converts the coordinator's binding of a key to this edge's clock.
    #[must_use]
    pub fn received(&self, binding: v1::KeyBinding) -> v1::KeyBinding {
        let ahead_ms = self.clock_ahead_ms();
        let freshness = binding.freshness;
        v1::KeyBinding {
            freshness: freshness.map(|it| freshness::receive(it, now_ms(), ahead_ms)),
            ..binding
        }
    }

    fn on_own_clock(
        &self,
        outcome: v1::resolve_key_response::Outcome,
    ) -> v1::resolve_key_response::Outcome {
        use v1::resolve_key_response::Outcome;
        match outcome {
            Outcome::Known(binding) => Outcome::Known(self.received(binding)),
            other => other,
        }
    }
}
