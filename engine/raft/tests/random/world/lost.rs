//! A member loses a part of its log with a crash. Either its storage knows (rot), or nobody does: its disk had lied.
//!
//! Nobody's rule saves a cluster from a member that votes on a log shorter than it acknowledged, before anybody who knows
//! better had a chance to say so. So the world is as kind as RELIABILITY's P0 supposes: whoever lost something in silence
//! meets none but the leader until that one has said what it acknowledged. From then on it has to know, and meets all;
//! or the leader knew of nothing, and by the time that it has fed the member all of what was lost, nothing is lost.

use coracle_base::{Index, NodeId, Term};
use coracle_raft::{Members, Membership, Message, Role};
use rand::Rng;

use super::{World, at, id};
use crate::model::Memory;

/// What a member lost, until it has it back.
pub(super) struct Lost {
    at: usize,
    /// Its last entry, and the term of that.
    upto: (Index, Term),
    /// No leader had a greater term than this.
    term: Term,
    /// Sessions up to this one began before the loss.
    session: u64,
    /// It knows, or a leader has told it all that there is to know.
    told: bool,
    /// Its storage knows, and remembers.
    is_rot: bool,
    /// All of its disk is an older copy: the others know at once, and it remembers.
    is_old: bool,
}

impl Lost {
    pub(super) fn is_of(&self, node: usize) -> bool {
        self.at == node
    }
}

/// Those of the set that decides in the end.
pub(super) fn voters(members: &Members) -> usize {
    members
        .iter()
        .filter(|member| !matches!(member.membership(), Membership::Leaving) && members.is_voter(member.id))
        .count()
}

impl World {
    /// After a crash: one member at a time, as the others must heal it.
    pub(super) fn maybe_lose(&mut self, node: usize) {
        if let Some(lost) = self.lost.as_mut().filter(|lost| lost.at == node) {
            // The next checkpoint would have remembered for good that it was told.
            self.suspects[node] &= lost.is_rot || lost.is_old || self.rng.random_bool(0.5);
            lost.told = self.suspects[node];
            return;
        }
        if self.go_back(node) {
            return;
        }
        let may = self.faults.lose_tail && self.size() >= 2 && self.lost.is_none();
        // Of two, nobody leads without the other: there would be no leader to tell it of a silent loss.
        let is_pair = self.size() < 3;
        let log = &mut self.disks[node].log;
        if !may || log.held.is_empty() {
            return;
        }
        let is_rot = is_pair || self.rng.random_bool(0.3);
        let upto = (log.last(), log.term_at(log.last()).expect("its last entry"));
        log.held.truncate(self.rng.random_range(0..log.held.len()));
        // Of those that are there; whoever led what is lost may not be.
        let term = self.newest_term().max(upto.1);
        self.lost = Some(Lost {
            at: node,
            upto,
            term,
            session: self.session_next,
            told: is_rot,
            is_rot,
            is_old: false,
        });
        self.suspects[node] = is_rot;
        *self.oracle.marks.entry(if is_rot { "lost by rot" } else { "lost in silence" }).or_default() += 1;
        self.note(|| format!("node {} lost its tail, rot: {is_rot}", id(node)));
    }

    /// Its disk is as it was some time ago: entries, votes, terms, members. Whoever may have decided alone is not spared by
    /// anybody.
    fn go_back(&mut self, node: usize) -> bool {
        let is_large =
            self.founders >= 2 && self.nodes.iter().flatten().all(|one| voters(one.group.members()) >= 2);
        let may = self.faults.old_copy && is_large && self.lost.is_none() && self.rng.random_bool(0.5);
        let Some(copy) = self.copies[node].take().filter(|_| may) else { return false };
        let log = &self.disks[node].log;
        let upto = (log.last(), log.term_at(log.last()).unwrap_or_default());
        self.disks[node] = copy;
        let (term, session) = (self.newest_term(), self.session_next);
        self.lost = Some(Lost { at: node, upto, term, session, told: true, is_rot: false, is_old: true });
        self.suspects[node] = true;
        *self.oracle.marks.entry("an old copy").or_default() += 1;
        self.note(|| format!("node {} goes back", id(node)));
        true
    }

    /// What its storage knows, and what the others say before anything else.
    pub(super) fn memory(&self, node: usize) -> Memory {
        let lost = self.lost.as_ref().filter(|lost| lost.at == node);
        let is_rot = lost.is_some_and(|lost| lost.is_rot);
        let (suspect, hold_us) = (self.suspects[node], 0);
        Memory { suspect: suspect && is_rot, votes_lost: suspect && !is_rot, hold_us }
    }

    /// Whoever lost something in silence is often back before its leader is gone: that is what P0 is about.
    pub(super) fn meet_again(&mut self, node: usize) {
        let is_silent = self.lost.as_ref().is_some_and(|lost| lost.at == node && !lost.told);
        if is_silent && self.rng.random_bool(0.9) {
            self.start(node);
            (0..self.size()).filter(|&other| other != node).for_each(|other| self.connect(node, other));
        }
    }

    fn newest_term(&self) -> Term {
        self.nodes.iter().flatten().map(|node| node.group.term()).max().unwrap_or_default()
    }

    /// Whether a link may be made between these two.
    pub(super) fn may_meet(&self, a: usize, b: usize) -> bool {
        let Some(lost) = self.lost.as_ref().filter(|lost| !lost.told) else { return true };
        let other = if lost.at == a { b } else { a };
        let leads =
            |group: &coracle_raft::Group| group.role() == Role::Leader && group.term() == self.newest_term();
        (lost.at != a && lost.at != b) || self.nodes[other].as_ref().is_some_and(|node| leads(&node.group))
    }

    /// Somebody waits to hear from a leader what it lost, or to have it back.
    pub(super) fn keeps_apart(&self) -> bool {
        self.lost.as_ref().is_some_and(|lost| !lost.told)
    }

    /// A message was delivered: perhaps the one that says it all.
    pub(super) fn watch_claim(&mut self, to: usize, message: &Message) {
        let &Message::Append { term, prev_index, held: true, .. } = message else { return };
        let Some(group) = self.nodes[to].as_ref().map(|node| &node.group) else { return };
        let heard = group.term() == term;
        let suspect = group.suspect();
        let Some(lost) = self.lost.as_mut().filter(|lost| lost.at == to && heard && !lost.told) else {
            return;
        };
        if suspect {
            lost.told = true;
        } else if prev_index >= lost.upto.0 {
            let knows = self.has_it_back();
            assert!(knows || !self.oracle.strict, "{} was told of {prev_index} and trusts itself", id(to));
            if let Some(lost) = &mut self.lost {
                lost.told = true;
            }
        }
    }

    /// Something was written: perhaps it is whole again.
    pub(super) fn watch_disk(&mut self, node: usize) {
        let is_silent = self.lost.as_ref().is_some_and(|lost| lost.at == node && !lost.told);
        if is_silent && self.has_it_back() {
            self.lost = None;
        }
    }

    /// Whether the disk holds what was lost, or what a later leader put in its place: all that can be committed of the
    /// rest is below that.
    fn has_it_back(&self) -> bool {
        let Some(lost) = &self.lost else { return true };
        let disk = self.nodes[lost.at].as_ref().map_or(&self.disks[lost.at], |node| &node.disk);
        let (log, (upto, upto_term)) = (&disk.log, lost.upto);
        let last_term = log.term_at(log.last()).unwrap_or_default();
        log.base >= upto || log.term_at(upto) >= Some(upto_term) || last_term > lost.term
    }

    /// Whom a leader may still count for what it had, as the end of their session is news to the leader.
    pub(super) fn counted_in_error(&self, leader: NodeId) -> Option<NodeId> {
        let lost = self.lost.as_ref()?;
        let known = self.ends.get(&(at(leader), lost.at)).map_or(0, |end| end.session);
        (known != 0 && known <= lost.session).then(|| id(lost.at))
    }
}
