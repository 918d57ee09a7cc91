//! The scheduler's settings, with the reason for each default.

use super::api::Millis;

/// Limits and shares. All are plain numbers, so that a run can be repeated from its input alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Minimum lookahead of a reader, in chunks: 20 MiB, some 10 s of a 16 Mbit/s film.
    pub lookahead_min_chunks: u32,
    /// Maximum lookahead of a reader, in bytes (but never less than the minimum of chunks).
    pub lookahead_max_bytes: u64,
    /// The lookahead is what the reader consumes in this many fetch times: one in progress, one
    /// queued, and slack for a fetch that takes twice its average.
    pub lookahead_fetch_times: u64,
    /// Assumed rate of a reader that has no observed one yet: 20 Mbit/s, a good 1080p film.
    pub default_rate_bytes_per_second: u64,
    /// Assumed fetch time of a source or peer from which nothing was fetched yet.
    pub default_chunk_fetch_ms: Millis,
    /// Maximum number of adjacent chunks in one request, by level. A blocked reader gets one chunk,
    /// so that it waits for nothing else; background work makes few, long requests.
    pub max_run_chunks: [u32; 4],
    /// One in this many grants below CRITICAL goes to MEDIUM first, even before HIGH.
    pub medium_share: u64,
    /// One in this many grants goes to LOW before MEDIUM.
    pub low_share: u64,
    /// Maximum number of chunks an edge sends to peers at once; CRITICAL may use twice that.
    pub max_uploads_per_edge: u32,
    /// A CRITICAL fetch without progress for this long, and for [`Self::late_factor`] times its
    /// estimate, is late: an origin fetch gets a hedge, a peer fetch another source.
    pub late_after_ms: Millis,
    /// See [`Self::late_after_ms`].
    pub late_factor: u64,
    /// First back-off after a failure; doubles with each further one.
    pub back_off_min_ms: Millis,
    /// Longest back-off.
    pub back_off_max_ms: Millis,
    /// Failures in a row, over all entries of a source, before the whole source backs off.
    pub source_failures: u32,
    /// Deadline for claims that have none (wants at CRITICAL or HIGH), from the time they are
    /// queued.
    pub want_deadline_ms: Millis,
    /// Deadlines closer to each other than this count as equal, and fair shares decide.
    pub deadline_grain_ms: Millis,
    /// Maximum number of claims examined in one queue before another event is handled.
    pub max_looks: usize,
    /// Maximum number of edges planned for in one event; the others follow with the next.
    pub max_edges_per_event: usize,
    /// The first assignment number. An edge may still finish, or report, an assignment of an
    /// earlier scheduler: the numbers must not collide.
    pub first_assignment: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lookahead_min_chunks: 10,
            lookahead_max_bytes: 256 << 20,
            lookahead_fetch_times: 8,
            default_rate_bytes_per_second: 2_500_000,
            default_chunk_fetch_ms: 200,
            max_run_chunks: [1, 4, 8, 8],
            medium_share: 8,
            low_share: 16,
            max_uploads_per_edge: 16,
            late_after_ms: 1_000,
            late_factor: 3,
            back_off_min_ms: 200,
            back_off_max_ms: 30_000,
            source_failures: 4,
            want_deadline_ms: 30_000,
            deadline_grain_ms: 100,
            max_looks: 32,
            max_edges_per_event: 8,
            first_assignment: 0,
        }
    }
}
