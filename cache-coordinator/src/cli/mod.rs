//! The commands for people: gRPC clients of a running coordinator.
