//! What becomes of fetches when the coordinator is silent: the limits of origins hold in the whole
//! cluster, and nobody plans for it now.

use super::{Downloads, Stop, stop};
use crate::{core::fetch_queue::Standing, upstream::downloads::LOCAL_BIT};

/// How soon what is above this edge's part of a source's connections is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeDown {
    /// With the chunk under way.
    Soon,
    /// Now: others are about to open theirs. What is written is kept.
    Now,
}

impl Downloads {
    /// Keeps of the fetches from a source as many as its part of the connections bears, the most
    /// urgent ones. `part`: connections it may have; `own`: of those it has, which the coordinator
    /// did not assign. What was handed out and has not begun is dropped: it is planned anew.
    pub fn come_down(&self, source: &str, part: u32, own: u32, how: ComeDown) {
        let mut state = self.0.state.lock();
        let tasks = state.queue.of_origin(source);
        let course = course(&tasks, part, own);
        for &id in &course.above {
            let _ = state.queue.cancel(id);
            stop(&state, id, Stop::AtChunkEnd);
        }
        if how == ComeDown::Now {
            let stopping = tasks.iter().filter(|(_, it)| *it == Standing::Stopping);
            for id in stopping.map(|&(id, _)| id).chain(course.above) {
                stop(&state, id, Stop::Now);
            }
        }
        drop(state);
        for id in course.unbegun {
            self.cancel(id, false);
        }
        self.tick();
    }
}

/// What is to end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Course {
    /// Runs that are more than the part of this edge bears.
    above: Vec<u64>,
    /// Was handed out, and has no slot.
    unbegun: Vec<u64>,
}

/// `tasks`: the most urgent first.
fn course(tasks: &[(u64, Standing)], part: u32, own: u32) -> Course {
    let is_local = |id: u64| id & LOCAL_BIT != 0;
    let of = |standing: Standing| {
        let of_it = tasks.iter().filter(move |(_, it)| *it == standing);
        of_it.map(|&(id, _)| id)
    };
    // Its own fetches are among what it opened; the rest are questions, and bodies that are handed
    // through: those are not cut.
    let local = of(Standing::Running).filter(|&id| is_local(id)).count();
    let others = usize::try_from(own).unwrap_or(usize::MAX);
    let others = others.saturating_sub(local);
    let kept = usize::try_from(part).unwrap_or(usize::MAX);
    Course {
        above: of(Standing::Running)
            .skip(kept.saturating_sub(others))
            .collect(),
        unbegun: of(Standing::Waiting).filter(|&id| !is_local(id)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Running, Stopping, Waiting};

    const OWN: u64 = LOCAL_BIT;

    #[test]
    fn the_most_urgent_are_kept_as_far_as_the_part_bears_them() {
        let tasks = [(1, Running), (2, Running), (3, Running)];
        assert_eq!(course(&tasks, 2, 0).above, [3]);
        assert_eq!(course(&tasks, 3, 0), Course::default());
        // A question and a body that is handed through are open as well.
        assert_eq!(course(&tasks, 3, 2).above, [2, 3]);
        assert_eq!(course(&tasks, 1, 4).above, [1, 2, 3]);
    }

    #[test]
    fn a_fetch_of_its_own_is_counted_once() {
        let tasks = [(1, Running), (OWN | 1, Running), (2, Running)];
        assert_eq!(course(&tasks, 2, 1).above, [2]);
        assert_eq!(course(&tasks, 2, 2).above, [OWN | 1, 2]);
    }

    #[test]
    fn what_has_not_begun_is_left_to_be_planned_anew() {
        let tasks = [
            (1, Waiting),
            (2, Running),
            (OWN | 1, Waiting),
            (3, Stopping),
        ];
        let expected = Course {
            above: vec![],
            unbegun: vec![1],
        };
        assert_eq!(course(&tasks, 1, 0), expected);
    }
}
