//! How long this process runs on a processor before another may have it.
//!
//! Why: a byte on its way to a viewer passes through several threads of several processes, each of
//! which runs for microseconds. On a machine whose processors are busy each of them waits for a
//! turn of somebody else's to end: milliseconds by default, which adds up to more than all of the
//! work. The kernel's scheduler (EEVDF, Linux 6.12) lets who asks for short turns begin them
//! sooner, at the same share of the processor.
#![allow(unsafe_code)] // two system calls no safe crate offers

use std::{io, time::Duration};

/// Short beside the default of milliseconds, long beside what a switch costs.
const TURN: Duration = Duration::from_micros(400);

/// The kernel's `struct sched_attr`, as of its first version.
#[repr(C)]
#[derive(Clone, Copy, Default)]
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

/// Asks for short turns for the calling thread and those it starts later. An older kernel takes no
/// notice; where it is refused, or the operator chose another policy, turns stay as they are, which
/// costs time and nothing else.
pub fn shorten() {
    let _ = try_shorten();
}

fn try_shorten() -> io::Result<()> {
    let attr = get()?;
    if attr.policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    set(&SchedAttr {
        runtime: TURN.as_nanos() as u64,
        ..attr
    })
}

/// Of the calling thread.
fn get() -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most `SIZE` bytes, which `attr` has.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, SIZE, 0_u32) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(SchedAttr { size: SIZE, ..attr })
}

fn set(attr: &SchedAttr) -> io::Result<()> {
    // SAFETY: the kernel reads `size` bytes, which is what `attr` has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attr, 0_u32) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use super::*;

    /// And what an operator has set with `nice` stays.
    #[test]
    fn threads_that_follow_have_short_turns_too() {
        let (before, after) = thread::spawn(|| {
            let before = get().unwrap();
            set(&SchedAttr { nice: 7, ..before }).unwrap();
            try_shorten().unwrap();
            (before, thread::spawn(|| get().unwrap()).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(after.nice, 7);
        // A kernel without turns of one's own tells none.
        if before.runtime > 0 {
            assert_eq!(u128::from(after.runtime), TURN.as_nanos());
        }
    }
}
