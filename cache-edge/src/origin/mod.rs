//! HTTP to origins and peers.
