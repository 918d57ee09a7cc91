//! One file a use case, on ports.
