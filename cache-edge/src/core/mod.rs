//! Pure functions and state machines over plain values. Imports std and data crates only.
