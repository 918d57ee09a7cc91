//! How long this process runs on a processor before another may have it.
//!
//! Why: a byte on its way to a viewer passes through several threads of several processes, each of which runs for microseconds. On a
//! machine whose processors are busy each of them waits for a turn of somebody else's to end: milliseconds by default, which adds up to
//! more than all of the work. The kernel's scheduler (EEVDF, Linux 6.12) lets who asks for short turns begin them sooner, at the
//! same share of the processor.
#![allow(unsafe_code)] // two system calls no safe crate offers

use std::{io, time::Duration};

/// Short beside the default of milliseconds, long beside what a switch costs.
const TURN: Duration = Duration::from_micros(400);

/// The kernel's `struct sched_attr`, as of its first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of a policy without deadlines: the length of a turn in nanoseconds.
    runtime: u64,
    deadline: u64,
    period: u64,
}

const SIZE: u32 = size_of::<SchedAttr>() as u32;

/// Asks for short turns for the calling thread and those it starts later. An older kernel takes no notice; where it is refused, or the
/// operator chose another policy, turns stay as they are, which costs time and nothing else.
pub fn shorten() {
    let _ = try_shorten();
}

fn try_shorten() -> io::Result<()> {
    let mut attr = SchedAttr {
        size: SIZE,
        ..SchedAttr::default()
    };
    // SAFETY: the kernel writes at most `SIZE` bytes, which `attr` has.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, SIZE, 0_u32) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if attr.policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attr.size = SIZE;
    attr.runtime = TURN.as_nanos() as u64;
    // SAFETY: the kernel reads `size` bytes, which is what `attr` has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0_u32) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// And what an operator has set with `nice` stays.
    #[test]
    fn threads_that_follow_have_short_turns_too() {
        let nice_before = nice();
        std::thread::spawn(move || {
            try_shorten().unwrap();
            std::thread::spawn(move || {
                assert_eq!(nice(), nice_before);
                try_shorten().unwrap();
            })
            .join()
            .unwrap();
        })
        .join()
        .unwrap();
    }

    fn nice() -> i32 {
        let mut attr = SchedAttr::default();
        // SAFETY: as above.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, SIZE, 0_u32) };
        assert_eq!(result, 0);
        attr.nice
    }
}
