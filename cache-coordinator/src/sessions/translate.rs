//! Converts session messages to scheduler events, and scheduler effects to messages.
//!
//! Pure. A message about something unknown (such as an entry that was just closed) converts to
//! nothing: other messages inform the edge, and it repeats what still matters.

use std::ops::Range;

use chunkcache_proto::{ByteRange, ChunkIndex, Geometry, Level, v1};
use http_rules::presigned;
use v1::session_response::Message;

use super::directory::Directory;
use scheduler::{
    LEASE_MS,
    api::{
        Assignment, Demand, EdgeId, Effect, Event, Fault, FetchId, FetchSource as FetchFrom, Lease,
        QuotaUse, ReaderId, Reason, SourceSpace,
    },
};

/// Sanity cap of sources in one report: more than a cluster has.
const MAX_QUOTA_USES: usize = 4_096;

/// One reader's demand; `None` if its entry is not open.
#[must_use]
pub fn demand(directory: &Directory, edge: EdgeId, reader: &v1::ReaderDemand) -> Option<Event> {
    let number = directory.entry_number(reader.entry_id.parse().ok()?)?;
    let geometry = directory.entry(number)?.geometry;
    let hints = reader
        .hints
        .iter()
        .map(|hint| geometry.chunks_covering(ByteRange::from(*hint)))
        .filter(|chunks| !chunks.is_empty())
        .collect();
    Some(Event::DemandSet(Demand {
        reader: ReaderId {
            edge,
            number: reader.reader_id,
        },
        entry: number,
        position: reader.position.min(geometry.size()),
        end: reader.end.min(geometry.size()),
        waiting: reader.waiting,
        rate_bytes_per_second: reader.rate_bytes_per_second,
        buffered_bytes: reader.buffered_bytes,
        lookahead_bytes: reader.lookahead_bytes,
        earned_bytes: reader.earned_bytes,
        player_buffer_ms: reader.player_buffer_ms,
        viewer: reader.viewer,
        is_expected: reader.expected,
        paused: reader.paused,
        hints,
    }))
}

/// A fetch's report.
#[must_use]
pub fn fetch_report(edge: EdgeId, report: &v1::FetchReport) -> Option<Event> {
    use v1::fetch_report::State;
    let assignment = FetchId::from(report.assignment_id);
    Some(match report.state() {
        State::Unspecified => return None,
        State::Started | State::Progress => Event::FetchProgressed {
            edge,
            assignment,
            bytes_done: report.bytes_done,
        },
        State::Finished => Event::FetchFinished { edge, assignment },
        State::Cancelled => Event::FetchCancelled { edge, assignment },
        State::Failed => {
            let failure = report.failure.clone().unwrap_or_default();
            Event::FetchFailed {
                edge,
                assignment,
                fault: fault(&failure),
                retry_after: (failure.retry_after_ms > 0)
                    .then_some(u64::from(failure.retry_after_ms)),
            }
        }
    })
}

/// A local fetch of an edge. `None`: of an entry that is not open, or not what it claims to be.
#[must_use]
pub fn local_fetch(directory: &Directory, edge: EdgeId, fetch: &v1::LocalFetch) -> Option<Event> {
    let assignment = FetchId::from(fetch.assignment_id);
    let entry = directory.entry_number(fetch.entry_id.parse().ok()?)?;
    let count = directory.entry(entry)?.geometry.chunk_count();
    let end = fetch
        .first_chunk
        .saturating_add(fetch.chunk_count)
        .min(count);
    if fetch.first_chunk >= end || !assignment.is_local() {
        return None;
    }
    Some(Event::LocalFetchStarted {
        edge,
        assignment,
        entry,
        chunks: fetch.first_chunk..end,
        level: Level::try_from(fetch.priority()).unwrap_or(Level::Critical),
    })
}

/// Whether partly cached entries of a source are completed. By default not if only clients can sign
/// requests, because an edge has their signatures only for a while.
#[must_use]
pub fn background_fill(source: &v1::Source) -> Option<bool> {
    let rules = source.key_rules.clone().unwrap_or_default();
    let has_credentials = source.base_url.starts_with("s3://");
    let is_signed_for = has_credentials || !presigned::is_checked(&rules);
    source.background_fill.or((!is_signed_for).then_some(false))
}

fn fault(failure: &v1::FetchFailure) -> Fault {
    use v1::fetch_failure::Fault as Wire;
    match failure.fault() {
        Wire::Unspecified | Wire::Origin if failure.http_status == 429 => Fault::Busy,
        Wire::Unspecified | Wire::Origin => Fault::Origin,
        Wire::Peer => Fault::Peer,
        Wire::Edge => Fault::Edge,
        Wire::Changed => Fault::Changed,
        Wire::Quota => Fault::Quota,
        Wire::Unsigned => Fault::Unsigned,
    }
}

/// The message that carries an effect, and its edge. `WantDone` concerns no edge.
#[must_use]
pub fn effect(directory: &Directory, effect: &Effect) -> Option<(EdgeId, Message)> {
    match effect {
        Effect::Assign(assignment) => {
            assign(directory, assignment).map(|m| (assignment.edge, Message::Assign(m)))
        }
        Effect::Reprioritise {
            edge,
            assignment,
            level,
            deadline_ms,
        } => Some((
            *edge,
            Message::Reprioritise(v1::Reprioritise {
                assignment_id: (*assignment).into(),
                priority: v1::Priority::from(*level).into(),
                deadline_ms: *deadline_ms,
            }),
        )),
        Effect::Cancel { edge, assignment } => Some((
            *edge,
            Message::Cancel(v1::Cancel {
                assignment_id: (*assignment).into(),
            }),
        )),
        Effect::Quota {
            edge,
            answers,
            leases,
        } => {
            let lease = |lease: &Lease| {
                let source = directory.source_name(lease.source)?.to_owned();
                Some(v1::QuotaLease {
                    source,
                    sequence: lease.sequence,
                    connections: lease.granted.connections,
                    bytes_per_second: lease.granted.bytes_per_second,
                    floor_connections: lease.floor.connections,
                    floor_bytes_per_second: lease.floor.bytes_per_second,
                })
            };
            let message = v1::QuotaLeases {
                answers: *answers,
                expires_ms: u32::try_from(LEASE_MS).unwrap_or(u32::MAX),
                leases: leases.iter().filter_map(lease).collect(),
            };
            Some((*edge, Message::QuotaLeases(message)))
        }
        Effect::WantDone { .. } => None,
    }
}

/// An edge's use of the sources that are known here.
#[must_use]
pub fn quota_uses(directory: &Directory, report: &v1::QuotaReport) -> Vec<QuotaUse> {
    let uses = report.uses.iter().take(MAX_QUOTA_USES);
    let known = uses.filter_map(|said| {
        Some(QuotaUse {
            source: directory.known_source(&said.source)?,
            sequence: said.sequence,
            held: said.held,
            wanted: said.wanted,
            urgent: said.urgent,
        })
    });
    known.collect()
}

/// The quotas on an edge's disk, for sources that are known here.
#[must_use]
pub fn source_spaces(directory: &Directory, sources: &[v1::SourceStatus]) -> Vec<SourceSpace> {
    let limited = sources.iter().filter(|it| it.quota_bytes > 0);
    let known = limited.take(MAX_QUOTA_USES).filter_map(|it| {
        Some(SourceSpace {
            source: directory.known_source(&it.source)?,
            bytes_used: it.bytes_used,
            quota_bytes: it.quota_bytes,
        })
    });
    known.collect()
}

fn assign(directory: &Directory, assignment: &Assignment) -> Option<v1::Assign> {
    let record = directory.entry(assignment.entry)?;
    let peer = match assignment.from {
        FetchFrom::Origin => None,
        FetchFrom::Peer(peer) => {
            let peer = directory.edge(peer)?;
            Some(v1::PeerSource {
                edge: peer.name.clone(),
                url: peer.url.clone(),
            })
        }
    };
    Some(v1::Assign {
        assignment_id: assignment.id.into(),
        entry: Some(record.entry.as_ref().clone()),
        first_chunk: assignment.first_chunk,
        chunk_count: assignment.chunk_count,
        priority: v1::Priority::from(assignment.level).into(),
        deadline_ms: assignment.deadline_ms,
        start_at: assignment.start_at,
        peer,
        reason: reason(assignment.reason),
        reader_id: match assignment.reason {
            Reason::ReaderWaits(reader) | Reason::Lookahead(reader) | Reason::Hint(reader) => {
                reader.number
            }
            _ => 0,
        },
    })
}

/// A reason in words.
#[must_use]
pub fn reason(reason: Reason) -> String {
    match reason {
        Reason::ReaderWaits(reader) => format!("reader {} waits for it", reader.number),
        Reason::Lookahead(reader) => format!("lookahead of reader {}", reader.number),
        Reason::Hint(reader) => format!("container index for reader {}", reader.number),
        Reason::Want(want) => format!("asked for by request {}", want.0),
        Reason::BackgroundFill => "completes the entry on this edge".to_owned(),
        Reason::Own => "begun by the edge itself, for a request".to_owned(),
        Reason::InFlight => "assigned before this session began".to_owned(),
        Reason::Hedge(other) => format!("second fetch beside the late {other}"),
    }
}

/// Ascending, with adjacent ones joined and those past the object dropped.
#[must_use]
pub fn coalesce(mut indexes: Vec<ChunkIndex>, geometry: Geometry) -> Vec<Range<ChunkIndex>> {
    indexes.sort_unstable();
    let mut ranges: Vec<Range<ChunkIndex>> = Vec::new();
    for index in indexes.into_iter().filter(|i| *i < geometry.chunk_count()) {
        match ranges.last_mut() {
            Some(last) if last.end == index => last.end = index + 1,
            Some(last) if last.end > index => {}
            _ => ranges.push(index..index + 1),
        }
    }
    ranges
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sessions::directory::{EdgeRecord, EntryRecord};
    use chunkcache_proto::EntryId;
    use scheduler::api::EntryNo;
    use std::sync::Arc;

    const EDGE: EdgeId = EdgeId(1);
    const MIB: u64 = 1 << 20;

    fn directory() -> (Directory, EntryNo, String) {
        let mut directory = Directory::default();
        let id = EntryId::from_u128(7);
        let entry = Arc::new(v1::Entry {
            id: id.to_string(),
            size: 9 * MIB,
            chunk_size: 2 << 20,
            ..Default::default()
        });
        let geometry = Geometry::new(9 * MIB, 2 << 20).unwrap();
        let number = directory.open_entry(EntryRecord {
            entry,
            id,
            geometry,
        });
        directory.set_edge(
            EdgeId(2),
            EdgeRecord {
                name: "b".into(),
                url: "http://b".into(),
            },
        );
        (directory, number, id.to_string())
    }

    #[test]
    fn demand_is_cut_to_the_object() {
        let (directory, number, id) = directory();
        let reader = v1::ReaderDemand {
            reader_id: 3,
            entry_id: id,
            position: 4 * MIB,
            end: u64::MAX,
            waiting: true,
            hints: vec![v1::ByteRange {
                start: 8 * MIB,
                end: 99 * MIB,
            }],
            ..Default::default()
        };
        let Some(Event::DemandSet(demand)) = demand(&directory, EDGE, &reader) else {
            panic!("expected demand");
        };
        assert_eq!((demand.entry, demand.end), (number, 9 * MIB));
        assert_eq!(demand.hints, vec![4..5]);
    }

    #[test]
    fn demand_on_an_unknown_entry_is_nothing() {
        let (directory, ..) = directory();
        let reader = v1::ReaderDemand {
            entry_id: EntryId::from_u128(8).to_string(),
            ..Default::default()
        };
        assert_eq!(demand(&directory, EDGE, &reader), None);
    }

    #[test]
    fn an_assignment_names_its_peer() {
        let (directory, number, id) = directory();
        let assignment = Assignment {
            id: FetchId::Coordinated(5),
            edge: EDGE,
            entry: number,
            first_chunk: 1,
            chunk_count: 2,
            level: Level::High,
            deadline_ms: 20,
            start_at: 3 * MIB,
            from: FetchFrom::Peer(EdgeId(2)),
            reason: Reason::BackgroundFill,
        };
        let (to, message) = effect(&directory, &Effect::Assign(assignment)).unwrap();
        let Message::Assign(assign) = message else {
            panic!("expected an assignment");
        };
        assert_eq!((to, assign.entry.unwrap().id), (EDGE, id));
        assert_eq!(assign.peer.unwrap().url, "http://b");
        assert_eq!(assign.priority, i32::from(v1::Priority::High));
    }

    #[test]
    fn a_failure_says_whose_fault_and_when_to_ask_again() {
        let report = v1::FetchReport {
            assignment_id: 5,
            state: v1::fetch_report::State::Failed.into(),
            failure: Some(v1::FetchFailure {
                fault: v1::fetch_failure::Fault::Peer.into(),
                retry_after_ms: 1500,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            fetch_report(EDGE, &report),
            Some(Event::FetchFailed {
                edge: EDGE,
                assignment: FetchId::Coordinated(5),
                fault: Fault::Peer,
                retry_after: Some(1500),
            })
        );
    }

    #[test]
    fn too_many_requests_are_of_the_source_and_503_of_an_object() {
        let of = |http_status| {
            fault(&v1::FetchFailure {
                http_status,
                ..Default::default()
            })
        };
        assert_eq!(of(429), Fault::Busy);
        assert_eq!(of(503), Fault::Origin);
    }

    #[test]
    fn what_only_clients_can_sign_for_is_not_filled_by_default() {
        let fill = |base_url: &str, ignored: &str, set| {
            background_fill(&v1::Source {
                base_url: base_url.into(),
                background_fill: set,
                key_rules: Some(v1::KeyRules {
                    ignore_query: vec![ignored.into()],
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        assert_eq!(fill("http://a", "presigned", None), Some(false));
        assert_eq!(fill("http://a", "presigned", Some(true)), Some(true));
        assert_eq!(fill("s3://a", "presigned", None), None);
        assert_eq!(fill("http://a", "utm_*", None), None);
    }

    #[test]
    fn indexes_coalesce() {
        let geometry = Geometry::new(9 * MIB, 2 << 20).unwrap();
        assert_eq!(coalesce(vec![3, 1, 2, 2, 0, 99], geometry), vec![0..4]);
        assert_eq!(coalesce(vec![4, 0, 2], geometry), vec![0..1, 2..3, 4..5]);
    }
}
