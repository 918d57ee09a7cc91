//! Black-box tests of the whole system: real processes, real PostgreSQL, real clients.
