//! The session with the coordinator: inventory, outbox, assignments.
