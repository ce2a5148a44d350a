//! What must hold across the cluster, whatever happens: the invariants of Raft, checked at every output of a group.

use std::collections::BTreeMap;

use coracle_base::{Index, NodeId, Term};
use coracle_raft::{Members, Message, Output, Role};

use crate::model::{Disk, Entry, Node};

/// What must hold across the cluster, whatever happens.
#[derive(Default)]
pub(crate) struct Oracle {
    /// Checks at the place of the crime (what a message claims is on the disk), not only its consequences.
    pub(crate) strict: bool,
    /// The members that the group was made with.
    pub(crate) first: Members,
    pub(crate) leaders: BTreeMap<Term, NodeId>,
    pub(crate) votes: BTreeMap<(NodeId, Term), NodeId>,
    pub(crate) committed: Vec<Entry>,
    /// By node: what it reported committed since it started.
    pub(crate) reported: BTreeMap<NodeId, Index>,
    /// By node and token: what was committed anywhere when the read was asked.
    pub(crate) reads: BTreeMap<(NodeId, u64), Index>,
    pub(crate) reads_answered: u64,
    /// How often the interesting things happened: a run in which one never does proves nothing about it.
    pub(crate) marks: BTreeMap<&'static str, u64>,
}

impl Oracle {
    pub(crate) fn mark(&mut self, node: &Node, output: &Output) {
        let name = match output {
            Output::AppendNoop { .. } => "elected",
            Output::Role { role: Role::Follower, leader: None, .. } => "leaderless",
            Output::Install { .. } if node.group.hard_state().current.index > Index::ZERO => {
                "members in a snapshot"
            }
            Output::Install { .. } => "snapshot installed",
            Output::Fetch { .. } => "read from disk",
            Output::CaughtUp => "suspect caught up",
            Output::LostAcknowledged { .. } => "told of a loss",
            Output::ReadReady { .. } => "read answered",
            Output::ReadFailed { .. } => "read failed",
            Output::Send { message: Message::AppendReply(reply), .. } if reply.rejected.is_some() => {
                "rejected"
            }
            Output::Send { message: Message::LeaderGone { .. }, .. } => "resigned",
            Output::Send { message: Message::PreVoteReply { granted: false, .. }, .. } => "pre-vote refused",
            Output::AppendMembers { members, .. } if members.is_joint() => "joint change",
            Output::AppendMembers { .. } => "change of members",
            Output::TransferEnded => "transfer given up",
            Output::Send { message: Message::TimeoutNow { .. }, .. } => "successor told",
            Output::Send { message: Message::Removed { .. }, .. } => "told that it is out",
            Output::Commit { .. } if node.group.is_leader() && node.group.durable() < node.group.commit() => {
                "committed before the leader's own disk"
            }
            Output::Commit { .. } => "committed",
            _ => return,
        };
        *self.marks.entry(name).or_default() += 1;
    }

    pub(crate) fn leads(&mut self, node: &Node, index: Index, term: Term) {
        let other = self.leaders.insert(term, node.id);
        assert!(other.is_none_or(|other| other == node.id), "two leaders in term {term}");
        assert!(
            index.0 > self.committed.len() as u64,
            "a leader of term {term} without {} entries",
            self.committed.len()
        );
        for (at, committed) in self.committed.iter().enumerate().skip(node.log.base.0 as usize) {
            let held = node.log.get(Index(at as u64 + 1));
            assert_eq!(held.as_ref(), Some(committed), "the leader of term {term} lacks a committed entry");
        }
    }

    pub(crate) fn commits<'a>(
        &mut self,
        node: &Node,
        upto: Index,
        disks: impl Iterator<Item = (NodeId, Option<&'a Disk>)>,
    ) {
        let reported = self.reported.insert(node.id, upto).expect("started");
        assert!(reported < upto, "the commit index never falls");
        for index in (reported.0 + 1..=upto.0).map(Index) {
            let entry = node.log.get(index).expect("what is committed is held");
            match self.committed.get(index.0 as usize - 1) {
                Some(committed) => assert_eq!(*committed, entry, "two entries are committed at {index}"),
                None => self.committed.push(entry),
            }
        }
        if self.strict && node.group.role() == Role::Leader {
            let entry = node.log.term_at(upto);
            assert_eq!(entry, Some(node.group.term()), "commit moves by an entry of the leader's term only");
            let holders: Vec<NodeId> = disks
                .filter(|(_, disk)| disk.is_none_or(|d| d.log.base >= upto || d.log.term_at(upto) == entry))
                .map(|(id, _)| id)
                .collect();
            let members = self.in_force(node);
            assert!(
                members.quorum(|id| holders.contains(&id)),
                "{upto} is committed with copies at {holders:?} of {members:?}"
            );
        }
    }

    /// The members of the newest change in a node's log; of what it has released, the newest that was committed.
    pub(crate) fn in_force(&self, node: &Node) -> Members {
        if let Some((_, members)) = node.log.newest_change() {
            return Members::clone(&members);
        }
        // What a snapshot or a refusal told may be newer than the log.
        let told = node.group.hard_state().current.index.max(node.log.base);
        let committed =
            self.committed.iter().take(told.0 as usize).rev().find_map(|entry| entry.members.clone());
        committed.map_or(self.first.clone(), |members| Members::clone(&members))
    }

    /// What a group takes for its members is what its log says, or something newer that is committed.
    pub(crate) fn knows_members(&self, node: &Node) {
        let current = &node.group.hard_state().current;
        let was = self.committed.get((current.index.0 as usize).wrapping_sub(1));
        let was = was.and_then(|entry| entry.members.as_deref());
        // It was told that it is out, and what its log says beyond that never was.
        let is_out = was.is_some_and(|members| !members.contains(node.id));
        if is_out && node.group.hard_state().previous.is_none() && Some(&current.members) == was {
            return;
        }
        if current.members.is_empty() {
            assert!(is_out || current.index == Index::ZERO, "it is out for no reason");
        } else if current.index > node.log.last() {
            assert_eq!(was, Some(&current.members), "what a snapshot tells is committed");
        } else {
            assert_eq!(current.members, self.in_force(node), "members of entry {}", current.index);
        }
    }

    /// A change is appended by a leader that has committed in its own term, and after the last change is committed.
    pub(crate) fn changes(&self, node: &Node, index: Index) {
        if self.strict {
            let (commit, term) = (node.group.commit(), node.group.term());
            assert_eq!(
                node.log.term_at(commit),
                Some(term),
                "a change before the leader's no-op is committed"
            );
            let mut before = node.log.clone();
            before.held.truncate((index.0 - before.base.0 - 1) as usize);
            let last = before.newest_change().map_or(Index::ZERO, |(index, _)| index);
            assert!(last <= commit, "two changes under way");
        }
    }

    /// What a message claims was on the disk before it left.
    pub(crate) fn says(&mut self, node: &Node, message: &Message) {
        let on_disk = node.disk.hard_state.as_ref().map(|state| state.ballot()).unwrap_or_default();
        match message {
            Message::VoteReply { ballot } => {
                let ballot = ballot.get();
                assert!(!self.strict || ballot == on_disk, "a vote leaves that is not durable");
                if ballot.vote != NodeId::NONE {
                    let earlier = self.votes.insert((node.id, ballot.term), ballot.vote);
                    assert!(
                        earlier.is_none_or(|vote| vote == ballot.vote),
                        "two votes in term {}",
                        ballot.term
                    );
                }
            }
            Message::Vote { term, .. } => {
                assert!(!self.strict || (on_disk.term == term.get() && on_disk.vote == node.id));
            }
            Message::AppendReply(reply) if self.strict => {
                assert!(reply.term.get() <= on_disk.term, "a term leaves that is not durable");
                for index in (1..=reply.durable.get().0).map(Index) {
                    let same = index <= node.disk.log.base || node.disk.log.get(index) == node.log.get(index);
                    assert!(same || index <= node.log.base, "{index} is acknowledged and not durable");
                }
            }
            Message::ReadAck { term, .. } => assert!(!self.strict || term.get() <= on_disk.term),
            _ => {}
        }
    }
}
