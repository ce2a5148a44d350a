//! After the faults: everything heals, and then the group has to work, to agree, and to fall silent.

use coracle_raft::{Input, Membership};

use super::{World, id};

impl World {
    /// No more faults: everybody is back, every link has a new session.
    fn heal(&mut self) {
        self.note(|| "heal".into());
        (self.faults.drop, self.faults.double, self.faults.slow_disk, self.faults.reorder) =
            (0.0, 0.0, 0.0, false);
        for at in 0..self.size() {
            if self.nodes[at].is_none() {
                self.start(at);
            }
        }
        for (a, b) in self.pairs() {
            self.cut(a, b);
            self.notice(a, b);
            self.notice(b, a);
        }
        self.reconnect();
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        (0..self.size()).flat_map(|a| (0..a).map(move |b| (a, b))).collect()
    }

    /// Everybody whom nothing keeps apart is linked.
    fn reconnect(&mut self) {
        for (a, b) in self.pairs() {
            self.connect(a, b);
            self.notice(a, b);
            self.notice(b, a);
        }
    }

    /// Lets everything happen that is under way, in order; then time jumps to the next deadline, unless it is beyond.
    fn settle(&mut self, until_us: u64) {
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 100_000, "the cluster never settles");
            let mut busy = false;
            for at in 0..self.size() {
                if self.dirty[at] {
                    self.drain(at);
                    busy = true;
                }
                while !self.nodes[at].as_ref().unwrap().writes.is_empty() {
                    self.act_write(at);
                    busy = true;
                }
                while !self.nodes[at].as_ref().unwrap().fetches.is_empty() {
                    self.act_fetch(at);
                    busy = true;
                }
            }
            if !self.net.is_empty() {
                self.deliver(0);
                busy = true;
            }
            if busy {
                continue;
            }
            let next = (0..self.size())
                .filter_map(|at| self.nodes[at].as_ref().unwrap().group.deadline_us().map(|due| (due, at)))
                .min();
            match next {
                Some((due, at)) if due <= until_us => {
                    self.now_us = self.now_us.max(due);
                    self.input(at, Input::Tick);
                }
                _ => return,
            }
        }
    }

    /// Liveness: within a few election timeouts somebody leads, commits and reads, all agree, and then nothing stirs.
    pub(crate) fn check_liveness(&mut self) {
        self.heal();
        self.settle(self.now_us + 6_000_000);
        if self.keeps_apart() {
            // The others have a leader now: it tells whoever lost something, or feeds it.
            self.reconnect();
            self.settle(self.now_us + 3_000_000);
            assert!(!self.keeps_apart(), "what was lost is not told, and not made good");
        }
        self.reconnect();
        self.settle(self.now_us + 6_000_000);
        let leaders: Vec<usize> =
            (0..self.size()).filter(|&at| self.nodes[at].as_ref().unwrap().group.is_leader()).collect();
        let &[leader] = &leaders[..] else {
            let waits: Vec<_> = self
                .nodes
                .iter()
                .flatten()
                .map(|one| (one.id, one.group.waits_for(), one.group.suspect(), one.group.members().clone()))
                .collect();
            panic!("after healing, {leaders:?} lead; {waits:?}")
        };
        self.act_propose(leader);
        self.act_read(leader);
        let answered = self.oracle.reads_answered;
        self.settle(self.now_us + 3_000_000);
        assert!(self.oracle.reads_answered > answered && self.oracle.reads.is_empty(), "reads are answered");
        let members = self.nodes[leader].as_ref().unwrap().group.members().clone();
        let waits =
            |member: &coracle_raft::Member| matches!(member.membership(), Membership::Promotable { .. });
        assert!(!members.is_joint() && !members.iter().any(waits), "changes come to their end: {members:?}");
        for node in self.nodes.iter().flatten() {
            assert_eq!(node.group.deadline_us(), None, "node {} is idle, and yet it waits", node.id);
        }
        let ends: Vec<_> = (self.nodes.iter().flatten())
            .filter(|node| members.contains(node.id))
            .map(|node| {
                let group = &node.group;
                assert_eq!(*group.members(), members);
                (group.term(), group.leader(), group.last(), group.commit(), group.durable(), group.suspect())
            })
            .collect();
        let last = self.nodes[leader].as_ref().unwrap().group.last();
        let leader = Some(id(leader));
        assert!(
            ends.iter().all(|end| *end == (ends[0].0, leader, last, last, last, false)),
            "all agree: {ends:?}"
        );
        assert_eq!(last.0, self.oracle.committed.len() as u64);
    }
}
