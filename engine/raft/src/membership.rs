//! How the members of a group change: an entry that says who they are, in force from the moment it is in the log.
//!
//! ```text
//!   change ─> entry appended: in force ─> committed ─┬─ simple: done
//!                    │                               └─ joint: the leader of that time appends the entry that leaves it
//!                    └─ cut off: what was in force before is again
//! ```
//!
//! Whoever is removed is sent what removed it; if it was away, it hears so from the first member that it asks for a vote
//! (`Removed`), and is quiet from then on: a configuration without anybody, durable like any other. All voters that it knows
//! may be out, too, or gone: so it asks every node with a link, once its first round came to nothing, or if it has no majority or
//! no vote at all; then once in each session of a link.
//!
//! Invariants: (1) members change only after an entry of the leader's own term is committed, or two leaders could each
//! make one step away from the same configuration, whose majorities do not meet (raft-dev, "bug in single-server
//! membership changes"); (2) at most the newest change in a log is not committed, so two configurations are all that
//! has to be remembered; (3) what is taken from a snapshot, or told by `Removed`, is committed, and is never undone.

use alloc::boxed::Box;
use alloc::vec::Vec;

use coracle_base::{Index, NodeId, Term};

use crate::HardState;
use crate::election::Answer;
use crate::group::{Group, NotLeader, Output, Proposed, Role};
use crate::member::{BadChange, Change, Configured, Members, Membership};
use crate::message::Message;
use crate::progress::{Peer, Place};

/// Configurations among received entries: the index of each, and its members.
pub type Changes = Vec<(Index, Members)>;

/// So often is a member that was removed asked whether it knows.
pub(crate) const LEAVING_TRIES: u8 = 10;

/// Why the members were not changed. Nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Only a leader can do this.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// This leader has not committed an entry of its own term yet: try again soon.
    #[error("the leader is new and has not committed anything yet")]
    NotReady,
    /// An earlier change is not committed yet, or a joint phase not over: try again soon.
    #[error("the change at entry {index} is still under way")]
    InFlight {
        /// The entry of that change.
        index: Index,
    },
    /// Leadership is being handed over: try again with the next leader.
    #[error("leadership is being handed over")]
    HandingOver,
    /// With the members that can be reached now, nothing could be committed any more.
    #[error("no majority of the new members can be reached")]
    NoLiveQuorum,
    /// The changes make no configuration.
    #[error(transparent)]
    Bad(#[from] BadChange),
}

impl Group {
    /// Changes the members: in one step if at most one voter changes, else through a joint phase, which ends by itself.
    /// The entry is in the log when this returns; `Output::AppendMembers` says what it holds. `force` also accepts
    /// members of whom no majority can be reached.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing was done.
    pub fn change(
        &mut self,
        now_us: u64,
        changes: &[Change],
        force: bool,
        out: &mut Vec<Output>,
    ) -> Result<Proposed, ChangeError> {
        self.require_leader()?;
        if self.transfer.is_some() {
            return Err(ChangeError::HandingOver);
        }
        if self.commit < self.term_start && !self.config.breaks.change_before_noop() {
            return Err(ChangeError::NotReady);
        }
        let settled = self.members_are_settled() || self.config.breaks.two_changes_in_flight();
        if self.members().is_joint() || !settled {
            return Err(ChangeError::InFlight { index: self.state.current.index });
        }
        let next = self.members().changed(changes, self.log.last())?;
        if !HardState::holds(self.members(), &next) {
            return Err(BadChange::TooMany.into());
        }
        if !force && !self.reaches(&next) {
            return Err(ChangeError::NoLiveQuorum);
        }
        Ok(self.append_members(now_us, next, out))
    }

    /// The message that goes with our snapshot at `index`: it tells the members, too.
    pub fn snapshot_message(&self, index: Index, snap_term: Term) -> Message {
        Message::Snapshot { term: self.term(), index, snap_term, configured: self.members_to_send() }
    }

    /// The members that go with a snapshot for another one: what is committed, if they ever changed.
    pub fn members_to_send(&self) -> Option<Box<Configured>> {
        let configured = self.committed_members();
        (configured.index > Index::ZERO).then(|| Box::new(configured.clone()))
    }

    fn append_members(&mut self, now_us: u64, members: Members, out: &mut Vec<Output>) -> Proposed {
        let (index, term) = (self.log.last().next(), self.state.term);
        self.log.append(term, 1);
        out.push(Output::AppendMembers { index, term, members: members.clone() });
        self.configure(index, members);
        self.after_change(now_us);
        Proposed { first: index, term }
    }

    /// These are the members from the entry at `index` on.
    fn configure(&mut self, index: Index, members: Members) {
        self.state.is_unsaid = false;
        let before = core::mem::replace(&mut self.state.current, Configured { index, members });
        self.state.previous = Some(Box::new(before));
        self.members_unwritten = true;
        self.place_peers();
    }

    /// These are the members, and surely committed.
    pub(crate) fn settle(&mut self, configured: Configured) {
        (self.state.current, self.state.previous, self.state.is_unsaid) = (configured, None, false);
        self.members_unwritten = true;
        self.place_peers();
    }

    /// Who is spoken to now.
    pub(crate) fn place_peers(&mut self) {
        let previous = self.state.previous.as_ref().map(|previous| &previous.members);
        let both = self.state.current.members.iter().chain(previous.into_iter().flat_map(Members::iter));
        let ids: smallvec::SmallVec<[NodeId; 8]> =
            both.map(|member| member.id).filter(|id| *id != self.config.id).collect();
        ids.iter().for_each(|id| _ = self.peer_or_new(*id));
        let last = self.log.last();
        let was = |id| self.state.previous.as_ref().is_some_and(|previous| previous.members.contains(id));
        for peer in &mut self.peers {
            let before = peer.place;
            peer.place = match before {
                _ if self.state.current.members.contains(peer.id) => Place::Member,
                Place::Leaving { .. } => before,
                _ if was(peer.id) => Place::Leaving { tries: LEAVING_TRIES },
                _ => Place::Stranger,
            };
            if before != Place::Member && peer.place == Place::Member && self.role == Role::Leader {
                // What it held as a member of old counts for nothing (etcd 21178).
                peer.lead(last);
            }
        }
    }

    pub(crate) fn peer_at(&self, node: NodeId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.id == node)
    }

    pub(crate) fn peer_or_new(&mut self, node: NodeId) -> usize {
        self.peer_at(node).unwrap_or_else(|| {
            self.peers.push(Peer::new(node));
            self.peers.len() - 1
        })
    }

    /// Other majorities decide now.
    fn after_change(&mut self, now_us: u64) {
        if self.role == Role::Leader {
            self.tally_due = true;
            let lost_us = self.quorum_at.unwrap_or(now_us + self.config.election_us_min);
            self.quorum_at = (!self.reaches_majority()).then_some(lost_us);
        } else if !self.leader_live {
            self.arm_election(now_us);
        }
    }

    /// Whether links to a majority of the voters are up, ourselves included.
    pub(crate) fn reaches_majority(&self) -> bool {
        self.reaches(self.members())
    }

    /// Whether links to a majority of these are up, ourselves included if we are among them.
    pub(crate) fn reaches(&self, members: &Members) -> bool {
        let up = |node| self.peers.iter().any(|peer| peer.id == node && peer.link_up);
        members.quorum(|node| node == self.config.id || up(node))
    }

    /// Whether our votes for ourselves may come to something. Who is being removed must still be able to lead until that
    /// is committed: it may be the only one that has the entry (Raft thesis 4.2.2).
    pub(crate) fn may_campaign(&self) -> bool {
        let was_voter =
            || self.state.previous.as_ref().is_some_and(|before| before.members.is_voter(self.config.id));
        self.members().is_voter(self.config.id) || !self.members_are_settled() && was_voter()
    }

    /// The newest members that are known to be committed.
    pub(crate) fn committed_members(&self) -> &Configured {
        match &self.state.previous {
            Some(previous) if !self.members_are_settled() => previous,
            _ => &self.state.current,
        }
    }

    // ---- follower -------------------------------------------------------------------------------------------------

    /// Whether the configurations in an append can be written down. An honest leader saw to it.
    pub(crate) fn can_hold(&self, changes: &Changes) -> bool {
        // Once the members in force are committed, those before them are not written down with the next.
        let previous = self.state.previous.as_ref().filter(|_| !self.members_are_settled());
        let previous = previous.map(|previous| &previous.members);
        let mut before: smallvec::SmallVec<[&Members; 2]> =
            core::iter::once(self.members()).chain(previous).collect();
        for (_, members) in changes {
            if !before.iter().all(|before| HardState::holds(before, members)) {
                return false;
            }
            before.clear();
            before.push(members);
        }
        true
    }

    /// The log's entries from `first` on are cut off.
    pub(crate) fn undo_change(&mut self, first: Index) {
        if self.state.current.index < first || self.config.breaks.config_not_reverted() {
            return;
        }
        if let Some(previous) = self.state.previous.take() {
            self.settle(*previous);
        }
    }

    /// Entries from `first` on are new: these of them change the members.
    pub(crate) fn take_changes(&mut self, now_us: u64, first: Index, changes: Changes) {
        for (index, members) in changes {
            // A snapshot may have told of later ones.
            let current = &self.state.current;
            if index == current.index && current.members.is_empty() {
                // We only knew that it removed us.
                self.settle(Configured { index, members });
            } else if index >= first && index > current.index {
                self.configure(index, members);
            }
        }
        if self.members_unwritten {
            self.after_change(now_us);
        }
    }

    /// A snapshot took the log's place. `None`: the members are those that the group was made with.
    pub(crate) fn install_members(&mut self, now_us: u64, configured: Option<Box<Configured>>) {
        let (newest, is_bare) = (self.state.current.index, self.state.current.members.is_empty());
        let is_newer = |index| index > newest || index == newest && is_bare;
        let previous = self.state.previous.take();
        match (configured, previous) {
            (Some(configured), previous) if previous.is_some() || is_newer(configured.index) => {
                self.settle(*configured);
            }
            // What our log said of them has gone with it.
            (None, Some(previous)) => self.settle(*previous),
            (_, previous) => self.state.previous = previous,
        }
        self.after_change(now_us);
    }

    /// Tells a candidate that it is no member, if that is certain.
    pub(crate) fn tell_removed(&mut self, node: NodeId) {
        let committed = self.committed_members();
        let is_out = !committed.members.is_empty() && !committed.members.contains(node);
        if is_out && !self.members().contains(node) {
            let (index, commit) = (committed.index, self.commit);
            if let Some(commit_term) = self.log.term_at(commit).filter(|_| index <= commit) {
                self.owe(node, Answer::Removed { index, commit, commit_term });
            }
        }
    }

    /// `index` removed us, and is the newest change up to `commit`. Unless we hold a newer one: later than what is
    /// committed there, and of a leader that knew that.
    pub(crate) fn on_removed(&mut self, now_us: u64, index: Index, (commit, term): (Index, Term)) {
        let current = &self.state.current;
        let is_newer =
            current.index > commit && self.log.term_at(current.index).is_none_or(|held| held >= term);
        let is_known = current.index == index && self.state.previous.is_none();
        if self.role == Role::Leader || is_newer || is_known {
            return;
        }
        self.role = Role::Follower;
        let known = self.state.previous.take().map(|previous| *previous);
        let known = known.into_iter().chain([self.state.current.clone()]);
        // If it is not among what we know, its members come with its entry.
        let is_it = |one: &Configured| one.index == index && !one.members.contains(self.config.id);
        let members = known.filter(is_it).map(|one| one.members).next().unwrap_or_default();
        self.settle(Configured { index, members });
        self.arm_election(now_us);
    }

    // ---- leader ---------------------------------------------------------------------------------------------------

    /// Wants to be ticked if a committed change leaves something to do.
    pub(crate) fn follow_up_change(&mut self, now_us: u64) {
        if self.change_at.is_none() && self.is_follow_up_due() {
            self.change_at = Some(now_us);
        }
    }

    fn is_follow_up_due(&self) -> bool {
        let passing = self.is_out() || self.members().is_passing() || self.state.is_unsaid;
        passing
            && self.transfer.is_none()
            && self.commit >= self.term_start
            && self.members_are_settled()
            && (self.is_out()
                || self.members().is_joint()
                || self.state.is_unsaid
                || self.promoted().is_some())
    }

    /// Whether we are no voter any more.
    pub(crate) fn is_out(&self) -> bool {
        !self.members().is_voter(self.config.id)
    }

    pub(crate) fn on_change_due(&mut self, now_us: u64, out: &mut Vec<Output>) {
        self.change_at = None;
        if self.role != Role::Leader || !self.is_follow_up_due() {
            return;
        }
        if self.members().is_joint() {
            let next = self.members().left();
            self.append_members(now_us, next, out);
        } else if self.state.is_unsaid {
            self.append_members(now_us, self.members().clone(), out);
        } else if self.is_out() {
            // The change is committed without us: whoever holds most goes on, or they find out by themselves.
            if self.transfer(now_us, None).is_err() {
                self.become_follower(now_us, self.state.term, out);
            }
        } else if let Some(next) = self.promoted() {
            self.append_members(now_us, next, out);
        }
    }

    /// The members with every learner made a voter that holds its target, if there is one and they can decide then.
    fn promoted(&self) -> Option<Members> {
        let is_due = |node: NodeId, target: Index| {
            let peer = self.peers.iter().find(|peer| peer.id == node);
            peer.is_some_and(|peer| peer.link_up && peer.doubt.is_none() && peer.match_index >= target)
        };
        let changes: smallvec::SmallVec<[Change; 4]> = (self.members().iter())
            .filter_map(|member| match member.membership() {
                Membership::Promotable { target } if is_due(member.id, target) => {
                    Some(Change::Voter(member.id))
                }
                _ => None,
            })
            .collect();
        let next = self.members().changed(&changes, Index::ZERO).ok()?;
        (HardState::holds(self.members(), &next) && self.reaches(&next)).then_some(next)
    }
}
