//! Stops fetches when a lease shrinks or expires: the limits of origins apply to the whole cluster.

use chunkcache_proto::Level;

use super::{Downloads, LOCAL_BIT, StopMode, stop};
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
    running: Vec<u64>,
    /// Assigned fetches without a slot: the coordinator plans them again.
    unbegun: Vec<u64>,
}

/// `fetches`: the most urgent first.
fn choose(fetches: &[(u64, TaskStanding, Level)], excess: Excess) -> Shed {
    let is_local = |id: u64| id & LOCAL_BIT != 0;
    let may_end = |&&(id, _, level): &&(u64, TaskStanding, Level)| {
        excess.is_expired || (is_local(id) && level > Level::Critical)
    };
    let running = fetches
        .iter()
        .rev()
        .filter(|(_, it, _)| *it == TaskStanding::Running)
        .filter(may_end)
        .map(|&(id, ..)| id);
    let unbegun = fetches
        .iter()
        .filter(|&&(id, it, _)| excess.is_expired && it == TaskStanding::Waiting && !is_local(id));
    Shed {
        running: running.take(excess.connections as usize).collect(),
        unbegun: unbegun.map(|&(id, ..)| id).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Level::{Critical, High, Low};
    use TaskStanding::{Running, Stopping, Waiting};

    const OWN: u64 = LOCAL_BIT;

    fn excess(connections: u32, is_expired: bool) -> Excess {
        Excess {
            connections,
            is_expired,
        }
    }

    #[test]
    fn in_session_only_what_this_edge_looks_ahead_for_is_stopped() {
        let fetches = [
            (OWN | 1, Running, Critical),
            (1, Running, High),
            (OWN | 2, Running, High),
            (OWN | 3, Running, Low),
            (2, Waiting, Low),
        ];
        assert_eq!(choose(&fetches, excess(1, false)).running, [OWN | 3]);
        let all = choose(&fetches, excess(9, false));
        assert_eq!(all.running, [OWN | 3, OWN | 2]);
        assert!(all.unbegun.is_empty());
    }

    #[test]
    fn once_expired_the_least_urgent_end_whoever_ordered_them() {
        let fetches = [
            (1, Running, Critical),
            (OWN | 1, Running, Critical),
            (2, Running, High),
            (3, Waiting, Low),
            (OWN | 2, Waiting, Low),
            (4, Stopping, Low),
        ];
        let shed = choose(&fetches, excess(2, true));
        assert_eq!(shed.running, [2, OWN | 1]);
        assert_eq!(shed.unbegun, [3]);
        assert!(choose(&fetches, excess(0, true)).running.is_empty());
    }
}
