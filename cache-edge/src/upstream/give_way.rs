//! Connections that clients keep without taking anything.

use std::time::Duration;

use tokio::sync::mpsc;

use super::Response;

/// How long a connection that others wait for is kept for a client that takes nothing, if the rest
/// can be asked for later.
pub const MAY_REST: Duration = Duration::from_secs(1);

/// Waits until the client's channel takes another piece, which is read only then: an unread answer
/// holds little memory. Closes the answer's connection if none is taken for `may_rest` while others
/// wait for one. `None`: the client left.
pub async fn reserve<'a, T>(
    sender: &'a mpsc::Sender<T>,
    answer: &mut Option<Response>,
    may_rest: Duration,
) -> Option<mpsc::Permit<'a, T>> {
    let mut reserving = std::pin::pin!(sender.reserve());
    loop {
        tokio::select! {
            biased;
            reserved = &mut reserving => return reserved.ok(),
            () = tokio::time::sleep(may_rest) => {
                answer.take_if(|answer| answer.is_in_the_way());
            }
        }
    }
}
