//! The cluster: its members, the links between them, and the random actions. Time, messages and disks move only here.

mod calm;
mod churn;
mod lost;

use std::collections::{BTreeMap, VecDeque};

use coracle_base::{Index, NodeId};
use coracle_raft::{Breaks, Config, Input, Members, Message, Output};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::model::{Disk, ENTRY_BYTES, Node, Packet};
use crate::oracle::Oracle;

/// Which faults this run has, and how many: a different subset each time, since some bugs hide behind others' faults.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    drop: f64,
    double: f64,
    reorder: bool,
    slow_disk: f64,
    crash: u32,
    cut: u32,
    release: u32,
    lose_tail: bool,
    /// A member comes back with its disk as it was some time ago.
    old_copy: bool,
    on_disk: bool,
    /// Members change, and leadership is handed over.
    change: u32,
    transfer: u32,
    tick: u32,
    propose: u32,
    /// How fast time goes: a slow one lets messages settle, a fast one makes every election a race.
    time_us: u64,
}

impl Faults {
    fn draw(rng: &mut SmallRng) -> Self {
        let mut some = |p: f64, most: f64| if rng.random_bool(p) { rng.random_range(0.0..most) } else { 0.0 };
        let (drop, double, slow_disk) = (some(0.5, 0.3), some(0.5, 0.3), some(0.8, 0.95));
        let mut many = |p: f64, most: u32| if rng.random_bool(p) { rng.random_range(1..=most) } else { 0 };
        let (crash, cut, release) = (many(0.8, 5), many(0.8, 8), many(0.5, 8));
        let (tick, propose) = (many(1.0, 30), many(1.0, 40));
        let (change, transfer) = (many(0.6, 60), many(0.4, 6));
        let lose_tail = change == 0 && rng.random_bool(0.7);
        Self {
            drop,
            double,
            slow_disk,
            crash,
            cut,
            release,
            tick,
            propose,
            time_us: *[50_000, 300_000, 1_000_000].choose(rng).unwrap(),
            reorder: rng.random_bool(0.5),
            // Whoever lost something needs the others whole, and it is not known here who these will be.
            lose_tail,
            change,
            transfer,
            on_disk: rng.random_bool(0.3),
            old_copy: rng.random_bool(0.4),
        }
    }
}

/// How a member sees the session of a link.
#[derive(Clone, Copy, Default)]
struct End {
    session: u64,
}

pub(crate) struct World {
    rng: SmallRng,
    pub(crate) faults: Faults,
    breaks: Breaks,
    now_us: u64,
    nodes: Vec<Option<Node>>,
    disks: Vec<Disk>,
    dirty: Vec<bool>,
    suspects: Vec<bool>,
    lost: Option<lost::Lost>,
    /// Of each disk, as it was some time ago.
    copies: Vec<Option<Disk>>,
    /// The first so many made the group; the others may be made members of it.
    founders: usize,
    /// By unordered pair: the session that exists, 0 if none; and what each end knows of it.
    sessions: BTreeMap<(usize, usize), u64>,
    ends: BTreeMap<(usize, usize), End>,
    session_next: u64,
    net: VecDeque<(u64, Packet)>,
    pub(crate) oracle: Oracle,
    says_next: u64,
    token_next: u64,
    boots: u64,
    pub(crate) trace: VecDeque<String>,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn id(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}

fn at(id: NodeId) -> usize {
    id.0 as usize - 1
}

impl World {
    pub(crate) fn new(seed: u64, breaks: Breaks, strict: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let founders = *[1, 2, 3, 3, 3, 4, 5, 5].choose(&mut rng).unwrap();
        let faults = Faults::draw(&mut rng);
        let size = if faults.change > 0 { rng.random_range(founders..=6) } else { founders };
        let first = Members::of_voters((0..founders).map(id));
        let oracle = Oracle { strict, first, ..Oracle::default() };
        let mut world = Self {
            rng,
            faults,
            breaks,
            now_us: 1_000_000,
            nodes: (0..size).map(|_| None).collect(),
            disks: vec![Disk::default(); size],
            dirty: vec![false; size],
            suspects: vec![false; size],
            lost: None,
            copies: vec![None; size],
            founders,
            sessions: BTreeMap::new(),
            ends: BTreeMap::new(),
            session_next: 0,
            net: VecDeque::new(),
            oracle,
            says_next: 0,
            token_next: 0,
            boots: 0,
            trace: VecDeque::new(),
        };
        for at in 0..size {
            world.start(at);
        }
        for a in 0..size {
            (0..a).for_each(|b| world.connect(a, b));
        }
        world
    }

    fn size(&self) -> usize {
        self.nodes.len()
    }

    fn start(&mut self, at: usize) {
        self.boots += 1;
        let founders = if at < self.founders { self.founders } else { 0 };
        let mut config = Config::new(id(at), (0..founders).map(id));
        config.seed = self.boots * 1000 + at as u64;
        config.breaks = self.breaks;
        if self.rng.random_bool(0.5) {
            config.append_entries_max = 2;
            config.window_messages = 2;
            config.window_bytes = 3 * ENTRY_BYTES;
        }
        self.note(|| format!("start {}", id(at)));
        let disk = self.disks[at].clone();
        self.oracle.reported.insert(id(at), disk.log.base);
        let memory = self.memory(at);
        let node = Node::new(config, disk, memory, self.now_us);
        self.nodes[at] = Some(node);
        self.dirty[at] = true;
    }

    /// The process dies: some of the writes in flight, in order, made it to the disk.
    fn crash(&mut self, at: usize) {
        let Some(mut node) = self.nodes[at].take() else { return };
        let kept = self.rng.random_range(0..=node.writes.len());
        for write in node.writes.iter().take(kept) {
            node.disk.write(write);
        }
        self.note(|| format!("crash {} keeps {kept} writes", id(at)));
        self.suspects[at] = node.group.suspect();
        if self.copies[at].is_none() || self.rng.random_bool(0.2) {
            self.copies[at] = Some(node.disk.clone());
        }
        self.disks[at] = node.disk;
        self.watch_disk(at);
        self.maybe_lose(at);
        for other in 0..self.size() {
            if other != at {
                self.sessions.insert(pair(at, other), 0);
                self.ends.insert((at, other), End::default());
            }
        }
        self.lose_dead_packets();
        self.oracle.reads.retain(|&(node, _), _| node != id(at));
        self.meet_again(at);
    }

    fn session(&self, a: usize, b: usize) -> u64 {
        self.sessions.get(&pair(a, b)).copied().unwrap_or(0)
    }

    fn lose_dead_packets(&mut self) {
        let sessions = &self.sessions;
        self.net.retain(|(session, packet)| {
            sessions.get(&pair(at(packet.from), at(packet.to))).copied().unwrap_or(0) == *session
        });
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.note(|| format!("cut {}-{}", id(a), id(b)));
        self.sessions.insert(pair(a, b), 0);
        self.lose_dead_packets();
    }

    fn connect(&mut self, a: usize, b: usize) {
        let both = self.nodes[a].is_some() && self.nodes[b].is_some();
        if self.session(a, b) == 0 && both && self.may_meet(a, b) {
            self.session_next += 1;
            self.note(|| format!("connect {}-{}", id(a), id(b)));
            self.sessions.insert(pair(a, b), self.session_next);
        }
    }

    /// Node `a` learns how its link to `b` is.
    fn notice(&mut self, a: usize, b: usize) {
        let session = self.session(a, b);
        let known = self.ends.entry((a, b)).or_default().session;
        if known == session || self.nodes[a].is_none() {
            return;
        }
        self.ends.insert((a, b), End { session });
        if known != 0 {
            self.input(a, Input::LinkDown(id(b)));
        }
        if session != 0 {
            self.input(a, Input::LinkUp(id(b)));
        }
    }

    fn input(&mut self, at: usize, input: Input) {
        self.note(|| format!("{}: {input:?}", id(at)));
        *self.oracle.marks.entry("inputs").or_default() += 1;
        let now_us = self.now_us;
        let Some(node) = &mut self.nodes[at] else { return };
        let before = node.group.hard_state().clone();
        let pre_vote = matches!(&input, Input::Receive { message: Message::PreVote { .. }, .. });
        let out = node.step(now_us, input);
        assert!(!pre_vote || *node.group.hard_state() == before, "a pre-vote changes nothing");
        self.after(at, out);
    }

    fn after(&mut self, at: usize, out: Vec<Output>) {
        self.dirty[at] = true;
        self.check(at, &out);
        self.ship(at);
    }

    fn drain(&mut self, at: usize) {
        let now_us = self.now_us;
        let Some(node) = &mut self.nodes[at] else { return };
        let out = node.drain(now_us);
        self.dirty[at] = false;
        self.check(at, &out);
        self.ship(at);
        let again = self.nodes[at].as_mut().unwrap().drain(now_us);
        assert_eq!(again, [], "a second drain has nothing to add");
    }

    /// Packets leave, with the session that the sender believes in.
    fn ship(&mut self, from: usize) {
        let Some(node) = &mut self.nodes[from] else { return };
        for packet in std::mem::take(&mut node.sent) {
            let end = self.ends.get(&(from, at(packet.to))).copied().unwrap_or_default();
            if end.session == 0 || end.session != self.session(from, at(packet.to)) {
                continue;
            }
            if self.rng.random_bool(self.faults.drop) {
                continue;
            }
            if self.rng.random_bool(self.faults.double) {
                self.net.push_back((end.session, packet.clone()));
            }
            self.net.push_back((end.session, packet));
        }
    }

    fn deliver(&mut self, chosen: usize) {
        let Some((_, packet)) = self.net.remove(chosen) else { return };
        let to = at(packet.to);
        self.notice(to, at(packet.from));
        self.note(|| format!("{} <- {}: {:?}", packet.to, packet.from, packet.message));
        let now_us = self.now_us;
        let Some(node) = &mut self.nodes[to] else { return };
        let (last, message) = (node.group.last(), packet.message.clone());
        let out = node.receive(now_us, packet);
        if out.iter().any(|output| matches!(output, Output::Store { first } if *first <= last)) {
            *self.oracle.marks.entry("tail cut").or_default() += 1;
        }
        self.watch_claim(to, &message);
        self.after(to, out);
    }

    /// The invariants of RELIABILITY, at every output.
    fn check(&mut self, at: usize, out: &[Output]) {
        let node = self.nodes[at].as_ref().expect("it just spoke");
        for output in out {
            self.trace.push_back(format!("    {} {output:?}", id(at)));
            self.oracle.mark(node, output);
            match output {
                Output::AppendNoop { index, term } => {
                    self.oracle.leads(node, *index, *term);
                }
                Output::Commit { upto } => {
                    let in_error = self.counted_in_error(node.id);
                    let disks = (0..self.nodes.len()).map(|other| {
                        let disk = self.nodes[other].as_ref().map_or(&self.disks[other], |node| &node.disk);
                        (id(other), (in_error != Some(id(other))).then_some(disk))
                    });
                    self.oracle.commits(node, *upto, disks);
                }
                Output::Install { index, term } => {
                    let covered = self.oracle.committed.get(index.0 as usize - 1).map(|entry| entry.term);
                    assert_eq!(covered, Some(*term), "a snapshot covers what is committed");
                    self.oracle.reported.insert(node.id, *index);
                }
                Output::Send { message, .. } => self.oracle.says(node, message),
                Output::ReadReady { token, index } => {
                    let floor =
                        self.oracle.reads.remove(&(node.id, *token)).expect("a read is answered once");
                    assert!(
                        *index >= floor,
                        "a stale read: at {index}, but {floor} was acknowledged before it began"
                    );
                    self.oracle.reads_answered += 1;
                }
                Output::ReadFailed { token } => {
                    self.oracle.reads.remove(&(node.id, *token)).expect("a read is answered once");
                }
                Output::CaughtUp => {
                    self.suspects[at] = false;
                    // Another one may have lost something since.
                    self.lost.take_if(|lost| lost.is_of(at));
                }
                Output::AppendMembers { index, .. } => self.oracle.changes(node, *index),
                Output::Diverged { index } => panic!("diverged at {index}"),
                _ => {}
            }
        }
        self.oracle.knows_members(node);
    }

    pub(crate) fn act(&mut self) {
        let faults = self.faults.clone();
        let weights = [
            200,         // deliver
            faults.tick, // tick
            60,          // a write completes
            faults.propose,
            3,            // read
            faults.crash, // crash
            faults.cut,   // cut or connect
            20,           // notice a link
            faults.release,
            60, // drain
            20, // a read from disk is answered
            30, // a dead node starts
            10, // time passes
            faults.change,
            faults.transfer,
        ];
        let mut pick = self.rng.random_range(0..weights.iter().sum());
        let action = weights.iter().position(|&weight| {
            let hit = pick < weight;
            pick = pick.wrapping_sub(weight);
            hit
        });
        let a = self.rng.random_range(0..self.size());
        let b = self.rng.random_range(0..self.size());
        match action.expect("a pick is within the sum") {
            0 => self.act_deliver(),
            1 => self.act_tick(a),
            2 => self.act_write(a),
            3 => self.act_propose(a),
            4 => self.act_read(a),
            5 => self.crash(a),
            6 if a == b => {}
            6 if self.session(a, b) == 0 => self.connect(a, b),
            6 => self.cut(a, b),
            7 => self.act_notice(a, b),
            8 => self.act_release(a),
            9 => self.act_drain(a),
            10 => self.act_fetch(a),
            11 if self.nodes[a].is_none() => self.start(a),
            11 => {}
            13 => self.act_change(a),
            14 => self.act_transfer(a),
            _ => self.now_us += self.rng.random_range(1..self.faults.time_us),
        }
        if self.dirty[a] && self.rng.random_bool(0.5) {
            self.drain(a);
        }
    }

    fn act_deliver(&mut self) {
        if !self.net.is_empty() {
            let chosen = if self.faults.reorder { self.rng.random_range(0..self.net.len()) } else { 0 };
            self.deliver(chosen);
        }
    }

    fn act_tick(&mut self, at: usize) {
        let Some(deadline) = self.nodes[at].as_ref().and_then(|node| node.group.deadline_us()) else {
            return;
        };
        if deadline <= self.now_us || self.rng.random_bool(0.02) {
            self.now_us = self.now_us.max(deadline);
            self.input(at, Input::Tick);
        }
    }

    fn act_write(&mut self, at: usize) {
        if self.rng.random_bool(self.faults.slow_disk) {
            return;
        }
        let now_us = self.now_us;
        let Some(node) = &mut self.nodes[at] else { return };
        // Several may be retired by one answer.
        while node.writes.len() > 1 && self.rng.random_bool(0.3) {
            let write = node.writes.pop_front().unwrap();
            node.disk.write(&write);
        }
        let out = node.complete_write(now_us);
        self.note(|| format!("{} wrote", id(at)));
        self.watch_disk(at);
        self.after(at, out);
    }

    fn act_propose(&mut self, at: usize) {
        let Some(node) = &mut self.nodes[at] else { return };
        let count = self.rng.random_range(1..=4);
        let says: Vec<u64> = (1..=count).map(|n| self.says_next + n).collect();
        if node.propose(&says).is_ok() {
            assert_eq!(node.group.transferring(), None, "a leader that hands over takes nothing up");
            self.says_next += count;
            self.dirty[at] = true;
            self.note(|| format!("{} proposes {count}", id(at)));
        }
    }

    fn act_read(&mut self, at: usize) {
        self.token_next += 1;
        let token = self.token_next;
        let Some(node) = &mut self.nodes[at] else { return };
        if node.group.read(token).is_ok() {
            let floor = Index(self.oracle.committed.len() as u64);
            self.oracle.reads.insert((id(at), token), floor);
            self.dirty[at] = true;
            self.note(|| format!("{} reads {token} at {floor}", id(at)));
        }
    }

    fn act_notice(&mut self, a: usize, b: usize) {
        if a != b {
            if self.session(a, b) == 0 && self.rng.random_bool(0.3) {
                self.connect(a, b);
            }
            self.notice(a, b);
        }
    }

    fn act_release(&mut self, at: usize) {
        let now_us = self.now_us;
        let Some(node) = &mut self.nodes[at] else { return };
        let upto = node.group.commit().min(node.group.durable()).min(self.oracle.reported[&node.id]);
        if upto > node.log.base && node.writes.is_empty() {
            let index = Index(self.rng.random_range(node.log.base.0 + 1..=upto.0));
            let out = node.release(now_us, index);
            self.note(|| format!("{} releases {index}", id(at)));
            self.after(at, out);
        }
    }

    fn act_drain(&mut self, at: usize) {
        if self.dirty[at] {
            self.drain(at);
        }
    }

    fn act_fetch(&mut self, at: usize) {
        let (now_us, on_disk) = (self.now_us, self.faults.on_disk);
        let Some(node) = &mut self.nodes[at] else { return };
        if on_disk {
            let span = node.log.last().0 - node.log.base.0;
            node.resident_from = Index(node.log.base.0 + self.rng.random_range(0..=span + 1));
        }
        if !node.fetches.is_empty() {
            let count_max = self.rng.random_range(1..=3);
            let out = node.complete_fetch(now_us, count_max);
            self.note(|| format!("{} fetched", id(at)));
            self.after(at, out);
        }
    }

    pub(crate) fn check_log_matching(&self) {
        let logs: Vec<_> = self.nodes.iter().flatten().map(|node| &node.log).collect();
        for (n, a) in logs.iter().enumerate() {
            for b in &logs[..n] {
                let (from, to) = (a.base.max(b.base).0 + 1, a.last().min(b.last()).0);
                let agree = (from..=to).rev().find(|&i| a.term_at(Index(i)) == b.term_at(Index(i)));
                for i in from..=agree.unwrap_or(0) {
                    assert_eq!(a.get(Index(i)), b.get(Index(i)), "logs that agree at a term agree before it");
                }
            }
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.trace.len() > 400 {
            self.trace.drain(..100);
        }
        let text = format!("{:>9} {}", self.now_us / 1000, text());
        self.trace.push_back(text);
    }
}
