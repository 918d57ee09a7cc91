//! How much of an allowed space is kept free: an edge starts to evict there, and the coordinator
//! ends a background fill well before.

const DISK_DIVISOR: u64 = 50;
const DISK_MAX: u64 = 1 << 30;
/// A quota may be small while its disk is fast, so chunks that arrive while an eviction is under
/// way need space.
const QUOTA_DIVISOR: u64 = 8;
const QUOTA_MAX: u64 = 256 << 20;

/// An edge evicts when less than this much of its allowed space is free.
#[must_use]
pub fn disk_headroom(allowed: u64) -> u64 {
    (allowed / DISK_DIVISOR).min(DISK_MAX)
}

/// The same for a source's quota.
#[must_use]
pub fn quota_headroom(quota: u64) -> u64 {
    (quota / QUOTA_DIVISOR).min(QUOTA_MAX)
}
