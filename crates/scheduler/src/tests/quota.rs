//! Leases: connections of a source that edges open on their own, and its bytes a second.

use super::*;

const EDGES: u32 = 3;
const RATE: u64 = 8_000_000;

struct Cluster {
    scheduler: Scheduler,
    now: Millis,
}

fn leases(effects: &[Effect], of: u32) -> Vec<Lease> {
    let leases = effects.iter().filter_map(|effect| match effect {
        Effect::Quota { edge, leases, .. } if *edge == EdgeId(of) => Some(leases.clone()),
        _ => None,
    });
    leases.flatten().collect()
}

fn join(edge: u32) -> Event {
    Event::EdgeJoined {
        edge: EdgeId(edge),
        max_downloads: 4,
        background_fill: false,
    }
}

impl Cluster {
    fn empty(max_connections: u32, max_rate_bytes_per_second: u64) -> Self {
        let scheduler = Scheduler::new(Config::default());
        let mut cluster = Self { scheduler, now: 0 };
        cluster.apply(Event::SourceSet {
            source: SourceId(0),
            max_connections,
            max_rate_bytes_per_second,
            background_fill: None,
        });
        cluster
    }

    fn new(max_connections: u32, max_rate: u64) -> Self {
        let mut cluster = Self::empty(max_connections, max_rate);
        for edge in 0..EDGES {
            cluster.apply(join(edge));
        }
        for edge in 0..EDGES {
            cluster.say(edge, 0, 0);
        }
        cluster
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.scheduler.apply(event, self.now, &mut effects);
        while self.scheduler.has_more() {
            self.scheduler.apply(Event::Tick, self.now, &mut effects);
        }
        effects
    }

    fn after(&mut self, ms: Millis) -> Vec<Effect> {
        self.now += ms;
        self.apply(Event::Tick)
    }

    /// Lets time pass while these edges send heartbeats.
    fn beat(&mut self, ms: Millis, edges: &[u32]) {
        let end = self.now + ms;
        while self.now < end {
            self.now = (self.now + 1_000).min(end);
            for &edge in edges {
                self.apply(Event::QuotaReported {
                    edge: EdgeId(edge),
                    number: 1,
                    uses: Vec::new(),
                });
            }
            self.apply(Event::Tick);
        }
    }

    fn lost(&mut self, edge: u32) {
        self.apply(Event::EdgeLost { edge: EdgeId(edge) });
    }

    fn quota(&self, edge: u32) -> crate::quota::EdgeQuota {
        self.scheduler.sources[&SourceId(0)].quotas[&EdgeId(edge)]
    }

    fn granted(&self, edge: u32) -> u32 {
        self.quota(edge).granted.connections
    }

    fn rate(&self, edge: u32) -> u64 {
        self.quota(edge).granted.bytes_per_second
    }

    /// Reports: the edge knows the last lease, and obeys it.
    fn say(&mut self, edge: u32, held: u32, wanted: u32) -> Vec<Effect> {
        let sequence = self.quota(edge).sequence;
        self.say_of(edge, sequence, (held, wanted, 0))
    }

    fn say_of(&mut self, edge: u32, sequence: u64, of: (u32, u32, u32)) -> Vec<Effect> {
        let uses = vec![QuotaUse {
            source: SourceId(0),
            sequence,
            held: of.0,
            wanted: of.1,
            urgent: of.2,
        }];
        self.apply(Event::QuotaReported {
            edge: EdgeId(edge),
            number: 1,
            uses,
        })
    }

    fn open_entry(&mut self, entry: u32) {
        let geometry = Geometry::new(64 * CHUNK, CHUNK as u32).unwrap();
        self.apply(Event::EntryOpened {
            entry: EntryNo(entry),
            source: SourceId(0),
            geometry,
        });
    }

    fn read(&mut self, edge: u32, entry: u32) -> Vec<Effect> {
        let reader = ReaderId {
            edge: EdgeId(edge),
            number: entry.into(),
        };
        self.apply(Event::DemandSet(Demand {
            reader,
            entry: EntryNo(entry),
            position: 0,
            end: CHUNK,
            waiting: true,
            rate_bytes_per_second: 0,
            buffered_bytes: 0,
            lookahead_bytes: 0,
            earned_bytes: 0,
            player_buffer_ms: None,
            viewer: 0,
            is_expected: false,
            paused: false,
            hints: Vec::new(),
        }))
    }
}

#[test]
fn an_edge_is_granted_what_it_asks_for_and_others_what_it_has_given_back() {
    let mut cluster = Cluster::new(4, 0);
    let first = cluster.say(0, 0, 9);
    assert_eq!(leases(&first, 0).last().unwrap().floor.connections, 1);
    assert_eq!(cluster.granted(0), 4);
    let before = cluster.quota(0).sequence;
    cluster.say(1, 0, 1);
    assert_eq!(cluster.granted(0), 3, "one is taken back");
    assert_eq!(cluster.granted(1), 0, "and not free yet");
    cluster.say_of(0, before, (4, 9, 0));
    assert_eq!(
        cluster.granted(1),
        0,
        "that was said before it was taken back"
    );
    cluster.say(0, 4, 9);
    assert_eq!(cluster.granted(1), 0, "it is open still");
    cluster.say(0, 3, 9);
    assert_eq!(cluster.granted(1), 1);
}

#[test]
fn each_report_is_answered_and_renews_all_leases() {
    let mut cluster = Cluster::new(4, 0);
    let effects = cluster.apply(Event::QuotaReported {
        edge: EdgeId(1),
        number: 7,
        uses: Vec::new(),
    });
    let answer = Effect::Quota {
        edge: EdgeId(1),
        answers: 7,
        leases: Vec::new(),
    };
    assert_eq!(effects, [answer]);
}

#[test]
fn a_lease_is_counted_until_it_expires_and_its_floor_from_then_on() {
    let mut cluster = Cluster::new(4, 0);
    cluster.say(0, 0, 9);
    cluster.say(1, 0, 9);
    cluster.lost(0);
    assert_eq!(cluster.granted(1), 0, "it may be using all four");
    cluster.beat(2_499, &[1, 2]);
    assert_eq!(cluster.granted(1), 0);
    cluster.beat(2, &[1, 2]);
    assert_eq!(cluster.granted(1), 3, "its floor stays with it");
    cluster.beat(57_000, &[1, 2]);
    assert_eq!(cluster.granted(1), 3);
    cluster.beat(600, &[1, 2]);
    assert_eq!(cluster.granted(1), 4, "it is not counted on any more");
}

#[test]
fn of_the_last_connection_nothing_is_kept_for_a_floor() {
    let mut cluster = Cluster::new(1, 0);
    cluster.say(0, 0, 1);
    cluster.lost(0);
    cluster.say(1, 0, 1);
    cluster.beat(2_499, &[1, 2]);
    assert_eq!(cluster.granted(1), 0, "it is used until the lease expires");
    cluster.beat(2, &[1, 2]);
    assert_eq!(cluster.granted(1), 1);
}

#[test]
fn an_edge_that_comes_back_is_counted_as_it_says() {
    let mut cluster = Cluster::new(4, 0);
    cluster.say(0, 0, 3);
    cluster.say(1, 0, 9);
    cluster.lost(0);
    cluster.apply(join(0));
    // It still has one of them.
    cluster.say(0, 1, 1);
    assert_eq!(cluster.granted(1), 3);
}

#[test]
fn an_edge_that_hangs_is_counted_with_its_floor() {
    let mut cluster = Cluster::new(6, 0);
    for _ in 0..2 {
        for edge in 0..2 {
            let held = cluster.granted(edge);
            cluster.say(edge, held, 9);
        }
    }
    assert_eq!((cluster.granted(0), cluster.granted(1)), (3, 3));
    for _ in 0..6 {
        cluster.now += 500;
        cluster.say(0, 3, 9);
        cluster.say(1, 3, 9);
    }
    // The third has a session, and has not reported.
    cluster.after(0);
    let held = cluster.granted(0);
    cluster.say(0, held, 9);
    cluster.after(0);
    let most = cluster.granted(0) + cluster.granted(1);
    assert!(most <= 4, "its floor of two is left to it: {most}");
}

#[test]
fn in_a_new_term_an_expected_edge_may_have_all_until_its_leases_have_expired() {
    let mut cluster = Cluster::empty(4, 0);
    let edges = (0..4).map(EdgeId).collect();
    cluster.apply(Event::EdgesExpected { edges });
    cluster.apply(join(0));
    cluster.say(0, 0, 9);
    assert_eq!(cluster.granted(0), 0);
    cluster.after(2_501);
    cluster.say(0, 0, 9);
    assert_eq!(cluster.granted(0), 1, "three floors are left to the others");
    cluster.beat(60_000, &[0]);
    assert_eq!(cluster.granted(0), 4, "nobody came back");
}

#[test]
fn of_one_connection_each_edge_has_its_turn() {
    let mut cluster = Cluster::new(1, 0);
    let mut had = [0; EDGES as usize];
    let mut holds: Option<u32> = None;
    for _ in 0..120 {
        cluster.now += 100;
        for edge in 0..EDGES {
            cluster.say(edge, u32::from(holds == Some(edge)), 5);
        }
        cluster.apply(Event::Tick);
        for edge in 0..EDGES {
            let granted = cluster.granted(edge);
            if granted == 0 && holds == Some(edge) {
                holds = None;
            } else if granted == 1 && holds != Some(edge) {
                assert_eq!(holds, None, "granted twice");
                holds = Some(edge);
                had[edge as usize] += 1;
            }
        }
    }
    assert!(had.iter().all(|&times| times >= 2), "{had:?}");
}

#[test]
fn a_viewer_who_waits_goes_before_what_only_looks_ahead() {
    let mut cluster = Cluster::new(2, 0);
    cluster.say(0, 0, 1);
    cluster.say(1, 0, 1);
    cluster.say(2, 0, 0);
    let sequence = cluster.quota(2).sequence;
    cluster.say_of(2, sequence, (0, 1, 1));
    assert_eq!(cluster.granted(0) + cluster.granted(1), 1, "one gives way");
    let edge = u32::from(cluster.granted(0) > 0);
    cluster.say(edge, 0, 1);
    assert_eq!(cluster.granted(2), 1);
}

#[test]
fn background_work_gives_way_to_what_an_edge_asks() {
    let mut cluster = Cluster::new(4, 0);
    cluster.open_entry(0);
    let given = assigned(&cluster.apply(Event::WantSet {
        want: WantId(1),
        edge: EdgeId(1),
        entry: EntryNo(0),
        chunks: vec![0..64],
        level: Level::Medium,
    }));
    assert!(given.len() >= 3, "{given:?}");
    let effects = cluster.say(0, 0, 3);
    assert_eq!(cluster.granted(0), 4 - given.len() as u32);
    let stopped = cancelled(&effects);
    assert_eq!(stopped.len(), given.len() - 1, "so many as are asked for");
    for assignment in stopped {
        let effects = cluster.apply(Event::FetchCancelled {
            edge: EdgeId(1),
            assignment,
        });
        assert_eq!(assigned(&effects), [], "what comes free is granted");
    }
    assert_eq!(cluster.granted(0), 3);
}

#[test]
fn for_a_lost_edges_connections_nothing_gives_way() {
    let mut cluster = Cluster::new(6, 0);
    cluster.open_entry(0);
    let mut given = Vec::new();
    for (edge, chunks) in [(0, 0..8), (1, 32..64)] {
        given.extend(assigned(&cluster.apply(Event::WantSet {
            want: WantId(u64::from(edge)),
            edge: EdgeId(edge),
            entry: EntryNo(0),
            chunks: vec![chunks],
            level: Level::Medium,
        })));
    }
    assert!(given.iter().any(|a| a.edge == EdgeId(0)) && given.len() > 3);
    cluster.say(0, 0, 1);
    let effects = cluster.apply(Event::EdgeLost { edge: EdgeId(1) });
    assert_eq!(cancelled(&effects), [], "its own are over");
}

#[test]
fn readers_that_wait_keep_half() {
    let mut cluster = Cluster::new(4, 0);
    cluster.say(0, 0, 9);
    let mut critical = 0;
    for entry in 0..3 {
        cluster.open_entry(entry);
        cluster.read(1, entry);
        let granted = cluster.granted(0);
        assert!(granted >= 2);
        // It obeys at once.
        critical += assigned(&cluster.say(0, granted, 9)).len();
    }
    assert_eq!(critical, 2);
}

#[test]
fn a_fetch_of_its_own_runs_on_its_own_connection() {
    let mut cluster = Cluster::new(2, 0);
    cluster.open_entry(0);
    cluster.say(0, 0, 1);
    cluster.apply(Event::LocalFetchStarted {
        edge: EdgeId(0),
        assignment: FetchId::Local(0),
        entry: EntryNo(0),
        chunks: 0..4,
        level: Level::Critical,
    });
    assert_eq!(cluster.scheduler.sources[&SourceId(0)].connections(1), 1);
}

#[test]
fn a_rate_goes_to_the_edges_that_read_and_first_to_readers_that_wait() {
    let mut cluster = Cluster::new(0, RATE);
    let sum = |cluster: &Cluster| (0..EDGES).map(|edge| cluster.rate(edge)).sum::<u64>();
    assert!(sum(&cluster) <= RATE && sum(&cluster) > RATE * 8 / 10);
    let settle = |cluster: &mut Cluster| {
        for _ in 0..4 {
            for edge in 0..EDGES {
                cluster.say(edge, 0, 0);
                assert!(sum(cluster) <= RATE);
            }
            cluster.after(100);
        }
    };
    cluster.open_entry(0);
    cluster.apply(Event::WantSet {
        want: WantId(1),
        edge: EdgeId(1),
        entry: EntryNo(0),
        chunks: vec![0..64],
        level: Level::Medium,
    });
    settle(&mut cluster);
    assert!(cluster.rate(1) > RATE * 8 / 10, "nobody else reads");
    cluster.open_entry(1);
    cluster.read(2, 1);
    settle(&mut cluster);
    assert!(cluster.rate(2) > RATE * 3 / 4, "{}", cluster.rate(2));
    assert!(cluster.rate(1) > RATE / 16, "{}", cluster.rate(1));
    assert!(cluster.rate(0) > 0, "a first byte waits for no answer");
}
