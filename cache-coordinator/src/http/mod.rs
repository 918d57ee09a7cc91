//! livez, readyz, metrics and the dashboard.
