//! How the C library's allocator is set up.
//!
//! Why: it gives each thread an arena of its own and keeps what is freed in the arena it came from. A connection's memory is
//! asked for by several threads, so that each of their arenas grows to what all connections once needed.
#![allow(unsafe_code)] // a C function no safe crate offers

/// What is small and used again at once each thread keeps for itself in any case, so they do not contend for it.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 1;

/// To be called before any other thread is started; where there is no such setting it does nothing.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt(3) takes two integers and keeps no pointer. No other thread runs yet.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }
}
