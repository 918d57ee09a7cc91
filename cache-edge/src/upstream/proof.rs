//! Bytes of a peer are recorded once its checksum was seen; a peer whose bytes are wrong is told.

use std::{collections::VecDeque, time::Duration};

use chunkcache_proto::{ByteRange, EntryId};
use http::{HeaderValue, Method};
use url::Url;

use super::{
    Client, OriginError,
    peer::{self, PeerKeys},
    run::now_ms,
};
use crate::availability::{EntryFlights, FlightError, flight::FlightClaim};

/// The peer has the last byte when it sends it, and the checksum a moment later.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why chunks of a peer were not recorded.
pub enum Unproved {
    Mismatch,
    /// The peer does not tell the checksums.
    NotTold(OriginError),
    Refused(FlightError),
}

/// Questions to one peer about one entry.
pub struct Asking<'a> {
    pub client: &'a Client,
    pub keys: &'a PeerKeys,
    pub url: &'a Url,
    pub entry: EntryId,
}

impl Asking<'_> {
    /// Asks for the checksums of the chunks that arrived before the peer knew them. Without it they
    /// are fetched again.
    pub async fn prove(
        &self,
        flights: &EntryFlights,
        claims: &VecDeque<FlightClaim>,
    ) -> Result<(), Unproved> {
        let geometry = flights.file().geometry();
        for claim in claims {
            let flight = claim.flight();
            if !flight.is_unproved() {
                continue;
            }
            let checksum = self
                .checksum(geometry.chunk_range(flight.chunk()))
                .await
                .map_err(Unproved::NotTold)?;
            match flight.prove(checksum) {
                Ok(true) => flights.landed(flight.chunk()),
                Ok(false) => {}
                Err(FlightError::Mismatch) => return Err(Unproved::Mismatch),
                Err(error) => return Err(Unproved::Refused(error)),
            }
        }
        Ok(())
    }

    async fn checksum(&self, chunk: ByteRange) -> Result<u64, OriginError> {
        let answer = self.head(chunk, None).await?;
        let known = answer.headers.get(peer::CHECKSUMS);
        known
            .and_then(|value| value.to_str().ok())
            .and_then(|text| peer::parse_checksums(text).next().flatten())
            .ok_or_else(|| {
                OriginError::Protocol("the peer does not tell a chunk's checksum".into())
            })
    }

    /// Some chunk of the range is wrong there, or was on its way. Best effort.
    pub async fn tell_mismatch(&self, range: ByteRange) {
        if let Err(error) = self.head(range, Some(peer::MISMATCH)).await {
            tracing::debug!(%error, "a peer could not be told that its bytes are wrong");
        }
    }

    async fn head(
        &self,
        range: ByteRange,
        flag: Option<http::HeaderName>,
    ) -> Result<super::Response, OriginError> {
        let seconds = u64::try_from(now_ms() / 1000).unwrap_or(0);
        let mut headers = self
            .keys
            .request_headers(&self.entry, range, seconds)
            .ok_or_else(|| OriginError::Protocol("no key to ask peers with is known".into()))?;
        headers.extend(flag.map(|name| (name, HeaderValue::from_static("1"))));
        let client = self.client.clone().with_stall_timeout(PATIENCE);
        client.send(Method::HEAD, self.url, headers).await
    }
}
