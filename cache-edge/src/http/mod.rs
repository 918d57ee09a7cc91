//! The HTTP server that players see.
