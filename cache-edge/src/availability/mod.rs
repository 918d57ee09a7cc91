//! Claim, wait, wake: which bytes are here, which are coming, and who waits for them.
