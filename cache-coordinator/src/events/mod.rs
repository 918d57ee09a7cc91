//! The change log, delivered to watchers.
