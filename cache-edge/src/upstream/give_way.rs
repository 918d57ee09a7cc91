//! Connections that clients keep without taking anything.

use std::time::Duration;

use tokio::sync::mpsc;

use super::Response;

/// How long a connection that others wait for is kept for a client that takes nothing, if the rest
/// can be asked for later.
pub const MAY_REST: Duration = Duration::from_secs(1);

/// Sends a piece of an answer toward its client, and closes the answer's connection if nothing is
/// taken for `may_rest` while others wait for one. False: the client left.
pub async fn send<T>(
    sender: &mpsc::Sender<T>,
    piece: T,
    answer: &mut Option<Response>,
    may_rest: Duration,
) -> bool {
    let mut sending = std::pin::pin!(sender.send(piece));
    loop {
        tokio::select! {
            biased;
            sent = &mut sending => return sent.is_ok(),
            () = tokio::time::sleep(may_rest) => {
                answer.take_if(|answer| answer.is_in_the_way());
            }
        }
    }
}
