//! Edge sessions: wire to events, effects to wire, reconciliation.
