//! The priority scheduler: a pure, deterministic state machine.

pub mod api;
