//! Entries read back by whoever asks: from memory, from files, below a snapshot, by a plan on another thread.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::collections::BTreeMap;
use std::time::Duration;

use coracle::sim::SimNode;
use coracle::{
    Config, Effects, Entry, Error, GroupId, Index, IndexRange, LogEntry, Machine, NoEntry, Node, NodeId,
    Outcome, Peer, ReadEntry, ReadPlan, RestoreError,
};
use coracle_io::fake::{Completing, Damage, FakeClock, FakeDisk, FakeNet, FakeNetwork};

const GROUP: GroupId = GroupId(1);

/// Keeps every tenth command's body in the log for ever; `release` lets the rest go.
#[derive(Default)]
struct Tenth(u64);

impl Machine for Tenth {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        self.0 = entry.index.0;
        if entry.command == b"release" {
            effects.release();
        }
    }
    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend(self.0.to_le_bytes());
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.0 = u64::from_le_bytes(snapshot.try_into().map_err(|_| RestoreError("not a number".into()))?);
        Ok(())
    }
    fn live_indexes(&self) -> Vec<IndexRange> {
        (1..=self.0 / 10).map(|ten| IndexRange { first: Index(10 * ten), count: 1 }).collect()
    }
}

type Sim = SimNode<FakeDisk, FakeNet, FakeClock>;

/// A node alone, and what its group's log has.
struct World {
    disk: FakeDisk,
    clock: FakeClock,
    network: FakeNetwork,
    sim: Sim,
    log: BTreeMap<u64, Vec<u8>>,
    boots: u64,
}

impl World {
    fn new() -> Self {
        let (disk, clock, network) = (FakeDisk::new(7), FakeClock::new(), FakeNetwork::new(7));
        let sim = open(&disk, &clock, &network, 1);
        let mut world = Self { disk, clock, network, sim, log: BTreeMap::new(), boots: 1 };
        world.lead();
        world
    }

    fn lead(&mut self) {
        self.turn_until(|world| {
            let status = world.sim.group_status(GROUP);
            status.is_some_and(|one| one.leader.is_some() && one.applied == one.last)
        });
    }

    /// Nothing is in memory afterwards.
    fn restart(&mut self) {
        self.sim.stop();
        while self.sim.turn().is_ok() {}
        self.network.stop_node(1, coracle_io::fake::NodeStop::Killed);
        self.boots += 1;
        self.sim = open(&self.disk, &self.clock, &self.network, self.boots);
        self.lead();
    }

    fn turn(&mut self) {
        self.clock.advance(500);
        self.disk.advance(self.clock.true_us());
        self.network.advance(self.clock.true_us());
        self.sim.turn().unwrap();
    }

    fn turn_until(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("it does not come to that");
    }

    fn propose(&mut self, command: &[u8]) -> u64 {
        let answer = self.sim.propose(GROUP, command);
        self.turn_until(|_| answer.get().is_some());
        let Some(Outcome::Done(done)) = answer.get() else { panic!("{:?}", answer.get()) };
        self.log.insert(done.index.0, command.to_vec());
        done.index.0
    }

    fn fill(&mut self, count: u64) {
        (0..count).for_each(|at| {
            self.propose(format!("{at} {}", ".".repeat(at as usize * 37 % 900)).as_bytes());
        });
    }

    fn read(&mut self, indexes: &[u64], max_bytes: usize) -> Result<Vec<ReadEntry>, Error> {
        let mut pending = self.sim.read_entries(GROUP, indexes.iter().map(|at| Index(*at)), max_bytes);
        self.taken(|| pending.take())
    }

    fn plan(&mut self, indexes: &[u64], max_bytes: usize) -> Result<ReadPlan, Error> {
        let mut pending = self.sim.read_plan(GROUP, indexes.iter().map(|at| Index(*at)), max_bytes);
        self.taken(|| pending.take())
    }

    fn taken<T>(&mut self, mut take: impl FnMut() -> Option<T>) -> T {
        for _ in 0..20_000 {
            if let Some(taken) = take() {
                return taken;
            }
            self.turn();
        }
        panic!("no answer comes");
    }

    /// What should be read of an entry that is there.
    fn is_right(&self, entry: &LogEntry) -> bool {
        match self.log.get(&entry.index.0) {
            Some(payload) => entry.is_command && entry.payload == *payload && entry.term.0 > 0,
            None => !entry.is_command && entry.payload.is_empty(),
        }
    }

    /// Which of the entries are there, each of them right.
    fn there(&self, read: &[ReadEntry]) -> Vec<u64> {
        let there = read.iter().filter_map(|(index, entry)| {
            let Ok(entry) = entry else { return None };
            assert_eq!(entry.index, *index);
            assert!(self.is_right(entry), "{entry:?}");
            Some(index.0)
        });
        there.collect()
    }
}

fn open(disk: &FakeDisk, clock: &FakeClock, network: &FakeNetwork, seed: u64) -> Sim {
    let peer = Peer { id: NodeId(1), address: FakeNetwork::address(1, 7101) };
    let mut config = Config::new(1, vec![peer], "/unused");
    (config.shards, config.wal_max_size_bytes, config.pin_us) = (1, 64 * 1024, 2_000_000);
    let sim = SimNode::open(&config, disk.clone(), network.driver(1), clock.clone(), seed).unwrap();
    sim.start_group(GROUP, Box::new(Tenth::default()));
    sim
}

#[test]
fn entries_come_from_memory_and_from_files_in_the_order_asked_for() {
    let mut world = World::new();
    world.fill(300);
    for is_restarted in [false, true] {
        if is_restarted {
            world.restart();
            world.fill(20);
        }
        let last = world.sim.group_status(GROUP).unwrap().applied.0;
        for indexes in [vec![last, 1, 150, 150, 7], (1..=last).collect(), (100..=last).rev().collect()] {
            let read = world.read(&indexes, 1 << 20).unwrap();
            assert_eq!(world.there(&read), indexes);
            let plan = world.plan(&indexes, 1 << 20).unwrap();
            assert_eq!(plan.execute_on(&mut world.disk.files()), read, "a plan gives the same");
        }
        let read = world.read(&[last + 1, 3, last + 1000, 0], 1 << 20).unwrap();
        let not_yet = Err(NoEntry::NotYet);
        assert_eq!((&read[0].1, &read[2].1, &read[3].1), (&not_yet, &not_yet, &Err(NoEntry::Released)));
        assert_eq!(world.there(&read), [3]);
    }
    let stranger = world.sim.read_entries(GroupId(9), [Index(1)], 10).take();
    assert!(stranger.is_none());
    let mut stranger = world.sim.read_plan(GroupId(9), [Index(1)], 10);
    assert!(matches!(world.taken(|| stranger.take()), Err(Error::NoGroup(GroupId(9)))));
}

#[test]
fn an_answer_has_as_many_bytes_and_entries_as_it_may() {
    let mut world = World::new();
    world.fill(200);
    for is_restarted in [false, true] {
        if is_restarted {
            world.restart();
        }
        let mut left: Vec<u64> = (1..=200).collect();
        while !left.is_empty() {
            let read = world.read(&left, 5000).unwrap();
            assert!(!read.is_empty() && read.len() < 50, "{}", read.len());
            assert_eq!(world.there(&read), left[..read.len()]);
            left.drain(..read.len());
        }
        assert_eq!(world.read(&[5, 6, 7], 0).unwrap().len(), 1, "one comes in any case");
        assert_eq!(world.read(&[], 1000).unwrap(), []);
    }
    let many: Vec<u64> = (0..5000).map(|at| at % 200 + 1).collect();
    assert!(world.read(&many, usize::MAX).unwrap().len() <= 1024);
}

#[test]
fn what_lives_below_a_snapshot_is_read_and_the_rest_is_released() {
    let mut world = World::new();
    world.fill(150);
    let released = world.propose(b"release");
    world.fill(20);
    world.restart();
    let all: Vec<u64> = (1..=released).collect();
    let read = world.read(&all, 1 << 20).unwrap();
    assert_eq!(world.there(&read), (10..=released).step_by(10).collect::<Vec<_>>());
    assert!(read.iter().all(|(_, entry)| entry.is_ok() || *entry == Err(NoEntry::Released)));
}

#[test]
fn a_plan_outlives_the_release_of_its_entries_and_not_its_time() {
    let mut world = World::new();
    world.fill(60);
    world.restart();
    let indexes = [1, 12, 33, 44];
    let (early, late) = (world.plan(&indexes, 1 << 20).unwrap(), world.plan(&indexes, 1 << 20).unwrap());
    for _ in 0..4 {
        world.fill(100);
        world.propose(b"release");
    }
    assert_eq!(world.read(&indexes, 1 << 20).unwrap().len(), 4);
    assert_eq!(world.there(&early.execute_on(&mut world.disk.files())), indexes);
    world.clock.advance(3_000_000);
    for _ in 0..6 {
        world.fill(100);
        world.propose(b"release");
    }
    let gone: Vec<ReadEntry> = indexes.iter().map(|index| (Index(*index), Err(NoEntry::Released))).collect();
    assert_eq!(late.execute_on(&mut world.disk.files()), gone);
    assert_eq!(world.read(&indexes, 1 << 20).unwrap(), gone);
}

#[test]
fn what_is_damaged_is_named_with_its_file() {
    let mut world = World::new();
    world.fill(30);
    world.restart();
    let path = "shard-0/00000001.wal";
    let bytes = world.disk.read_file(path).unwrap();
    let (index, payload) = world.log.iter().nth(5).unwrap();
    let (index, bytes_of) = (*index, payload.len());
    let at = bytes.windows(bytes_of).position(|window| window == payload).unwrap();
    world.disk.corrupt(path, at as u64, Damage::FlipBit { bit: 0 });
    let indexes = [index, index + 1];
    let by_plan = world.plan(&indexes, 1 << 20).unwrap().execute_on(&mut world.disk.files());
    for read in [world.read(&indexes, 1 << 20).unwrap(), by_plan] {
        let is_named = matches!(&read[0].1, Err(NoEntry::Damaged { file, .. }) if file.ends_with(path));
        assert!(is_named, "{read:?}");
        assert_eq!(world.there(&read), [index + 1]);
    }
}

#[test]
fn readers_that_wait_for_files_are_bounded_and_answered_when_the_node_stops() {
    let mut world = World::new();
    world.fill(60);
    world.restart();
    world.disk.set_completing(Completing::Manual);
    let mut waiting: Vec<_> =
        (0..100).map(|at| world.sim.read_entries(GROUP, [Index(at % 50 + 1)], 1000)).collect();
    (0..5).for_each(|_| assert!(world.sim.turn().is_ok()));
    let answers: Vec<_> = waiting.iter_mut().map(|one| one.take()).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 64, "{answers:?}");
    assert!(answers.iter().flatten().all(|answer| matches!(answer, Err(Error::Busy))));
    world.disk.set_completing(Completing::AtOnce);
    for (one, _) in waiting.iter_mut().zip(&answers).filter(|(_, answer)| answer.is_none()) {
        let read = world.taken(|| one.take()).unwrap();
        assert_eq!(world.there(&read).len(), 1);
    }
    world.disk.set_completing(Completing::Manual);
    let mut caught = world.sim.read_plan(GROUP, [Index(1)], 1000);
    world.sim.turn().unwrap();
    world.sim.stop();
    let mut behind = world.sim.read_entries(GROUP, [Index(1)], 1000);
    while world.sim.turn().is_ok() {}
    assert!(matches!(behind.take(), Some(Err(Error::Stopped(None)))));
    assert!(matches!(caught.take(), Some(Ok(_) | Err(Error::Stopped(None)))));
}

/// A real node: the plan is executed by a thread that knows nothing of it.
#[test]
fn another_thread_executes_a_plan_on_a_real_disk() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = Config::new(1, vec![Peer { id: NodeId(1), address }], dir.path());
    (config.shards, config.wal_max_size_bytes) = (1, 1 << 20);
    let open = || {
        let node = Node::start(config.clone()).unwrap();
        let group = node.start_group(GROUP, Tenth::default()).unwrap();
        (node, group)
    };
    let (node, group) = open();
    let mut log = BTreeMap::new();
    for at in 0..40 {
        let payload = vec![at; 100 + usize::from(at)];
        let Outcome::Done(done) = group.propose(&payload).wait() else { panic!() };
        log.insert(done.index, payload);
    }
    node.stop().unwrap();
    drop((node, group));
    // Nothing of it is in memory any more.
    let (node, group) = open();
    let Outcome::Done(_) = group.query(b"").wait() else { panic!() };
    let plan = group.read_plan(log.keys().copied(), 1 << 20).wait().unwrap();
    let (plan, read) = std::thread::spawn(move || {
        let read = plan.execute();
        (plan, read)
    })
    .join()
    .unwrap();
    let payloads = |read: Vec<ReadEntry>| -> BTreeMap<Index, Vec<u8>> {
        read.into_iter().map(|(index, entry)| (index, entry.unwrap().payload)).collect()
    };
    assert_eq!(payloads(read), log);
    let mut pending = group.read_entries(log.keys().copied(), 1 << 20);
    let read = pending.wait_timeout(Duration::from_secs(30)).expect("an answer comes").unwrap();
    assert_eq!(payloads(read), log);
    node.stop().unwrap();
    assert!(
        plan.execute().iter().all(|(_, entry)| *entry == Err(NoEntry::Released)),
        "nobody keeps the files"
    );
}
