//! Every command is answered, however its node ends. On the simulated disk and network, so that each end comes at a
//! known place among the commands.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use coracle::sim::{Answer, SimNode};
use coracle::{Config, Error, GroupId, NodeId, Outcome, Peer, Reason};
use coracle_io::fake::{FakeClock, FakeDisk, FakeNet, FakeNetwork, OpKind};

use crate::cluster::Nothing;

const GROUP: GroupId = GroupId(1);
/// More than a shard takes from its inbox in several turns.
const FLOOD: usize = 5000;

type Sim = SimNode<FakeDisk, FakeNet, FakeClock>;

struct World {
    disk: FakeDisk,
    clock: FakeClock,
    network: FakeNetwork,
}

impl World {
    fn new() -> Self {
        Self { disk: FakeDisk::new(7), clock: FakeClock::new(), network: FakeNetwork::new(7) }
    }

    /// Node 1 of `nodes`; the others are never there.
    fn open(&self, nodes: u64) -> Sim {
        let address = |id| FakeNetwork::address(id, 7101);
        let peers = (1..=nodes).map(|id| Peer { id: NodeId(id), address: address(id) }).collect();
        let mut config = Config::new(1, peers, "/unused");
        config.shards = 1;
        config.wal_max_size_bytes = 1 << 20;
        let sim =
            SimNode::open(&config, self.disk.clone(), self.network.driver(1), self.clock.clone(), 1).unwrap();
        sim.start_group(GROUP, Box::new(Nothing));
        sim
    }

    fn turn(&self, sim: &mut Sim) -> Result<(), Error> {
        self.clock.advance(500);
        self.disk.advance(self.clock.true_us());
        self.network.advance(self.clock.true_us());
        sim.turn().map(|_| ())
    }

    fn leads(&self, sim: &mut Sim) {
        for _ in 0..20_000 {
            if sim.group_status(GROUP).is_some_and(|status| status.leader.is_some()) {
                return;
            }
            self.turn(sim).unwrap();
        }
        panic!("no leader");
    }

    /// Turns until the node ends: why it did.
    fn end(&self, sim: &mut Sim) -> Error {
        (0..2000).find_map(|_| self.turn(sim).err()).expect("the node ends")
    }
}

/// Commands and, now and then, a question.
fn flood(sim: &Sim) -> Vec<Answer> {
    (0..FLOOD)
        .map(|at| if at % 10 == 9 { sim.query(GROUP, b"?") } else { sim.propose(GROUP, b"x") })
        .collect()
}

/// How many of the answers are that the command was certainly not done, since the node stops. All are there.
fn stopping(answers: &[Answer]) -> usize {
    let ends = answers.iter().map(|answer| answer.get().expect("every command is answered"));
    ends.filter(|end| matches!(end, Outcome::NotDone(why) if why.reason == Reason::Stopping)).count()
}

#[test]
fn what_is_queued_behind_a_stop_is_answered() {
    let world = World::new();
    let mut sim = world.open(1);
    world.leads(&mut sim);
    let before = sim.propose(GROUP, b"x");
    sim.stop();
    let behind = flood(&sim);
    assert!(matches!(world.end(&mut sim), Error::Stopped(None)));
    assert!(matches!(before.get(), Some(Outcome::Unknown(_))), "the shard had taken it");
    assert_eq!(stopping(&behind), FLOOD);
    assert_eq!(stopping(&flood(&sim)), FLOOD, "and whoever comes later");
}

#[test]
fn what_a_shard_has_not_taken_when_its_log_fails_is_answered() {
    let world = World::new();
    let mut sim = world.open(1);
    world.leads(&mut sim);
    world.disk.fail_next(OpKind::Write, None, 5);
    let answers = flood(&sim);
    assert!(matches!(world.end(&mut sim), Error::Wal(_)));
    let refused = stopping(&answers);
    assert!(refused > 0 && refused < FLOOD, "{refused} of {FLOOD} were never taken");
}

#[test]
fn a_node_that_waits_for_its_cluster_answers_when_it_stops() {
    let world = World::new();
    let mut sim = world.open(3);
    for _ in 0..10 {
        world.turn(&mut sim).unwrap();
    }
    sim.stop();
    let behind = flood(&sim);
    assert!(matches!(world.end(&mut sim), Error::Stopped(None)));
    assert_eq!(stopping(&behind), FLOOD);
}
