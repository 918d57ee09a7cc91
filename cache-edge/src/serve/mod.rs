//! Joins the ports: from a request to an object and a reader over its bytes.

pub mod ports;
