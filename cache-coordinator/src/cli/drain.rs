//! `edge drain --follow`: waits until the edge's last request has ended, and its readers' next
//! chunks are handed over to other edges.

use std::time::Duration;

use chunkcache_proto::v1::Edge;
use service_kit::config::human_duration;
use tokio::time::Instant;

use super::connection::Client;
use super::edge::list;
use super::failure::CliError;
use super::progress::Progress;

/// Edges report their number of requests once a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Returns the edge once no request is running there. Players that know its address may still send
/// new requests; the bar then goes back, which is correct.
pub(super) async fn follow(edge: Edge, client: &mut Client) -> Result<Edge, CliError> {
    let mut progress = Progress::new();
    let result = look(edge, client, &mut progress).await;
    progress.end();
    result
}

async fn look(
    mut edge: Edge,
    client: &mut Client,
    progress: &mut Progress,
) -> Result<Edge, CliError> {
    let begun = Instant::now();
    // A report from before the drain may be up to a second old.
    let mut most = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let name = edge.name;
        let found = list(client).await?.into_iter().find(|it| it.name == name);
        edge = found.ok_or_else(|| {
            CliError::Refused(format!("edge {name} is not one of the cluster any more"))
        })?;
        let left = u64::from(edge.requests_active);
        most = most.max(left);
        let to_hand_over = edge.chunks_to_hand_over;
        progress.show_part(most - left, most, || {
            let text = amounts(most - left, most, begun.elapsed());
            match to_hand_over {
                0 => text,
                1 => format!("{text}, 1 chunk to hand over"),
                chunks => format!("{text}, {chunks} chunks to hand over"),
            }
        });
        if left == 0 && to_hand_over == 0 {
            return Ok(edge);
        }
    }
}

/// "3 of 12 requests ended, 1.5 a minute, 6m00s left".
fn amounts(ended: u64, most: u64, after: Duration) -> String {
    if most == 0 {
        return "no request runs there".to_owned();
    }
    let text = format!("{ended} of {most} requests ended");
    let seconds = after.as_secs_f64();
    if ended == 0 || seconds <= 0.0 {
        return text;
    }
    let a_second = ended as f64 / seconds;
    let eta = ((most - ended) as f64 / a_second).round() as u64;
    format!(
        "{text}, {:.1} a minute, {} left",
        a_second * 60.0,
        human_duration(eta)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_read_well() {
        let after = Duration::from_secs(120);
        assert_eq!(
            amounts(3, 12, after),
            "3 of 12 requests ended, 1.5 a minute, 6m00s left"
        );
        assert_eq!(amounts(0, 12, after), "0 of 12 requests ended");
        assert_eq!(amounts(0, 0, after), "no request runs there");
    }
}
