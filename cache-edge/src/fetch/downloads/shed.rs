//! Stops fetches when a lease shrinks or expires: the limits of origins apply to the whole cluster.

use chunkcache_proto::{FetchId, Level};

use super::{Downloads, StopMode, stop};
use crate::{core::fetch_queue::TaskStanding, upstream::quota::Excess};

impl Downloads {
    /// Stops fetches from a source beyond its quota, the least urgent first. Written bytes are
    /// kept. In a session it stops only local lookahead: a fetch that a viewer waits for ends with
    /// its chunk, and the coordinator decides which assigned ones to stop.
    pub fn shed(&self, source: &str, excess: Excess) {
        let mut state = self.0.state.lock();
        let tasks = state.queue.of_origin(source);
        let fetches: Vec<_> = tasks
            .iter()
            .map(|&(id, standing)| {
                let task = state.queue.get(id);
                (id, standing, task.map_or(Level::Low, |task| task.level))
            })
            .collect();
        let shed = choose(&fetches, excess);
        for &id in &shed.running {
            let _ = state.queue.cancel(id);
            stop(&state, id, StopMode::Now);
        }
        if excess.is_expired {
            let stopping = tasks.iter().filter(|(_, it)| *it == TaskStanding::Stopping);
            for &(id, _) in stopping {
                stop(&state, id, StopMode::Now);
            }
        }
        drop(state);
        for id in shed.unbegun {
            self.cancel(id, false);
        }
        self.tick();
    }
}

/// The fetches to end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shed {
    running: Vec<FetchId>,
    /// Assigned fetches without a slot: the coordinator plans them again.
    unbegun: Vec<FetchId>,
}

/// `fetches`: the most urgent first.
fn choose(fetches: &[(FetchId, TaskStanding, Level)], excess: Excess) -> Shed {
    let may_end = |&&(id, _, level): &&(FetchId, TaskStanding, Level)| {
        excess.is_expired || (id.is_local() && level > Level::Critical)
    };
    let running = fetches
        .iter()
        .rev()
        .filter(|(_, it, _)| *it == TaskStanding::Running)
        .filter(may_end)
        .map(|&(id, ..)| id);
    let unbegun = fetches
        .iter()
        .filter(|&&(id, it, _)| excess.is_expired && it == TaskStanding::Waiting && !id.is_local());
    Shed {
        running: running.take(excess.connections as usize).collect(),
        unbegun: unbegun.map(|&(id, ..)| id).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FetchId::{Coordinated, Local};
    use Level::{Critical, High, Low};
    use TaskStanding::{Running, Stopping, Waiting};

    fn excess(connections: u32, is_expired: bool) -> Excess {
        Excess {
            connections,
            is_expired,
        }
    }

    #[test]
    fn in_session_only_what_this_edge_looks_ahead_for_is_stopped() {
        let fetches = [
            (Local(1), Running, Critical),
            (Coordinated(1), Running, High),
            (Local(2), Running, High),
            (Local(3), Running, Low),
            (Coordinated(2), Waiting, Low),
        ];
        assert_eq!(choose(&fetches, excess(1, false)).running, [Local(3)]);
        let all = choose(&fetches, excess(9, false));
        assert_eq!(all.running, [Local(3), Local(2)]);
        assert!(all.unbegun.is_empty());
    }

    #[test]
    fn once_expired_the_least_urgent_end_whoever_ordered_them() {
        let fetches = [
            (Coordinated(1), Running, Critical),
            (Local(1), Running, Critical),
            (Coordinated(2), Running, High),
            (Coordinated(3), Waiting, Low),
            (Local(2), Waiting, Low),
            (Coordinated(4), Stopping, Low),
        ];
        let shed = choose(&fetches, excess(2, true));
        assert_eq!(shed.running, [Coordinated(2), Local(1)]);
        assert_eq!(shed.unbegun, [Coordinated(3)]);
        assert!(choose(&fetches, excess(0, true)).running.is_empty());
    }
}
