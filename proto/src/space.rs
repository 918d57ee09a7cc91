//! How much of an allowed space is kept free: an edge evicts from there on, and the coordinator
//! ends a background fill well before.

const DISK_DIVISOR: u64 = 50;
const DISK_MAX: u64 = 1 << 30;
/// A quota may be small, and the disk around it fast: chunks that arrive during an eviction's round
/// trip need space.
const QUOTA_DIVISOR: u64 = 8;
const QUOTA_MAX: u64 = 256 << 20;

/// An edge evicts when less than this is free of the space it is allowed.
#[must_use]
pub fn disk_headroom(allowed: u64) -> u64 {
    (allowed / DISK_DIVISOR).min(DISK_MAX)
}

/// The same of a source's quota.
#[must_use]
pub fn quota_headroom(quota: u64) -> u64 {
    (quota / QUOTA_DIVISOR).min(QUOTA_MAX)
}
