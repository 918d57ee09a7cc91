//! An edge of the chunk cache.
