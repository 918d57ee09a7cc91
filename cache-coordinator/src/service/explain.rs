//! Explains the present scheduling decision on one chunk.

use chunkcache_proto::{EntryId, v1};

use super::{Cluster, entries, error::ServiceError};
use crate::sessions::{plan::Plan, translate};
use scheduler::{Decision, api::FetchSource};

pub async fn explain(
    cluster: &Cluster,
    request: v1::ExplainChunkRequest,
) -> Result<v1::ExplainChunkResponse, ServiceError> {
    cluster.require_leader()?;
    let entry = entries::find(cluster, request.entry.as_ref()).await?.entry;
    let count = entry.geometry.chunk_count();
    let chunk = request.chunk;
    if chunk >= count {
        let description = format!("expected less than {count}, the entry's number of chunks");
        return Err(ServiceError::invalid("chunk", description));
    }
    let range = entry.geometry.chunk_range(chunk);
    let holdings = cluster.database.holdings(entry.id).await?;
    let present_on: Vec<String> = holdings
        .iter()
        .filter(|holding| holding.ranges.iter().any(|held| held.contains(range.start)))
        .map(|holding| holding.edge.clone())
        .collect();
    let id = entry.id;
    let decisions = cluster
        .plan
        .ask(move |plan| decisions(plan, id, chunk))
        .await?;
    let mut summary = summary(&present_on, &decisions);
    if present_on.is_empty() {
        for job in cluster.jobs.waiting_for_window(id, chunk) {
            let why = cluster.jobs.waits_for(cluster, job);
            if !why.is_empty() {
                summary = format!("{summary}; job {job} waits: {why}");
            }
        }
    }
    Ok(v1::ExplainChunkResponse {
        entry_id: id.to_string(),
        chunk,
        range: Some(range.into()),
        summary,
        present_on,
        decisions,
    })
}

fn decisions(plan: &Plan, id: EntryId, chunk: u32) -> Vec<v1::ChunkDecision> {
    let Some(number) = plan.directory().entry_number(id) else {
        return Vec::new();
    };
    let now = plan.now();
    plan.scheduler()
        .explain(number, chunk, now)
        .into_iter()
        .map(|decision| describe(plan, &decision, now))
        .collect()
}

fn describe(plan: &Plan, decision: &Decision, now: u64) -> v1::ChunkDecision {
    let name = |edge| {
        plan.directory()
            .edge(edge)
            .map(|e| e.name.clone())
            .unwrap_or_default()
    };
    let mut reason = reason(decision, now);
    if let Some(blocked_by) = decision.blocked_by {
        reason = format!("{reason}; {blocked_by}");
    }
    let deadline_ms = decision
        .deadline
        .map_or(0, |deadline| deadline.saturating_sub(now));
    v1::ChunkDecision {
        edge: name(decision.edge),
        priority: v1::Priority::from(decision.level).into(),
        state: decision.state.name().to_owned(),
        from: match decision.from {
            FetchSource::Origin => "origin".to_owned(),
            FetchSource::Peer(peer) => name(peer),
        },
        reason,
        readers: decision.readers,
        deadline_ms: i64::try_from(deadline_ms).unwrap_or(i64::MAX),
    }
}

/// Why the chunk is wanted, and by whom.
fn reason(decision: &Decision, now: u64) -> String {
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1_000.0);
    if let Some(due) = decision.due {
        let viewer = match decision.viewer {
            0 => "a viewer".to_owned(),
            viewer => format!("viewer {viewer:x}"),
        };
        let due = seconds(due.saturating_sub(now));
        return format!("next segment of {viewer}, due in {due}");
    }
    let mut reason = translate::reason(decision.reason);
    if decision.viewer > 0 {
        reason = format!("{reason}, viewer {:x}", decision.viewer);
    }
    if let Some(ms) = decision.player_buffer_ms {
        reason = format!("{reason}; player's buffer {}", seconds(ms.into()));
    }
    reason
}

fn summary(present_on: &[String], decisions: &[v1::ChunkDecision]) -> String {
    let held = match present_on {
        [] => "no edge holds it".to_owned(),
        edges => format!("held by {}", edges.join(", ")),
    };
    let wanted: Vec<String> = decisions
        .iter()
        .map(|d| {
            format!(
                "{} on {} at {} from {}",
                d.state,
                d.edge,
                d.priority().as_str_name(),
                d.from
            )
        })
        .collect();
    if wanted.is_empty() {
        format!("{held}; nobody wants it now")
    } else {
        format!("{held}; {}", wanted.join("; "))
    }
}
