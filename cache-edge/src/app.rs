//! Composition: the only owner of tasks and shutdown.
