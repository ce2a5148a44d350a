//! What operators want of a group: other members, another leader. A wish travels as an entry of kind `Config` and so finds
//! its leader, waits and is answered as commands do; the leader puts the members that come of it in its place.
//!
//! ```text
//!   payload of a wish, little-endian: version u8 = 1, then
//!     1 change     force u8, count u8, each: kind u8 (0 voter, 1 learner, 2 promotable, 3 remove), node u64
//!     2 transfer   node u64 (0: the best)
//! ```

use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::MEMBERS_MAX;
use coracle_base::run::Entries;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunRef, Term};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::{BadChange, Change, ChangeError, Changes, Members, Output, Role, TransferError};

use super::groups::Successor;
use super::inbox::Origin;
use super::room::Need;
use super::waiting::Waiting;
use super::{Answers, Shard};
use crate::Error;
use crate::outcome::{Done, Outcome, Reason};
use crate::transport::envelope::EnvelopeError;

const VERSION: u8 = 1;
/// Who may wait for one transfer.
const TRANSFERS_MAX: usize = 64;

/// What became of a node's groups when it was asked to give up leading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Groups that are on their way to another leader.
    pub handing_over: usize,
    /// Groups that stay: a member runs a version that does not know of this, or no other voter can be reached and trusted.
    pub kept: usize,
}

/// A wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Change { force: bool, changes: Vec<Change> },
    Transfer { to: Option<NodeId> },
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::Change { force, changes } => {
                out.put_u8(1);
                out.put_u8((*force).into());
                out.put_u8(changes.len() as u8);
                for change in changes {
                    out.put_u8(match change {
                        Change::Voter(_) => 0,
                        Change::Learner(_) => 1,
                        Change::Promotable(_) => 2,
                        Change::Remove(_) => 3,
                    });
                    out.put_u64(change.node().0);
                }
            }
            Self::Transfer { to } => {
                out.put_u8(2);
                out.put_u64(to.unwrap_or(NodeId::NONE).0);
            }
        }
        out
    }

    /// `None`: not one that this version knows.
    fn decode(bytes: &[u8]) -> Result<Option<Self>, Truncated> {
        let mut reader = Reader::new(bytes);
        let (version, kind) = (reader.u8()?, reader.u8()?);
        let request = match (version, kind) {
            (VERSION, 1) => {
                let (force, count) = (reader.u8()? != 0, reader.u8()?);
                let mut changes = Vec::new();
                for _ in 0..count {
                    let (kind, node) = (reader.u8()?, NodeId(reader.u64()?));
                    changes.push(match kind {
                        0 => Change::Voter(node),
                        1 => Change::Learner(node),
                        2 => Change::Promotable(node),
                        3 => Change::Remove(node),
                        _ => return Ok(None),
                    });
                }
                Self::Change { force, changes }
            }
            (VERSION, 2) => {
                Self::Transfer { to: Some(NodeId(reader.u64()?)).filter(|to| *to != NodeId::NONE) }
            }
            _ => return Ok(None),
        };
        Ok(reader.is_empty().then_some(request))
    }

    /// As a batch of one entry.
    pub(crate) fn into_batch(self) -> EntryBatch {
        let mut batch = EntryBatch::new();
        batch.push(0, EntryKind::Config, &self.encode()).expect("a wish is small");
        batch
    }

    /// More than a group may have is never asked.
    pub(crate) fn is_small(&self) -> bool {
        !matches!(self, Self::Change { changes, .. } if changes.len() > 2 * MEMBERS_MAX)
    }
}

fn is_config(entry: &coracle_base::EntryRef<'_>) -> bool {
    entry.header.kind == EntryKind::Config
}

/// Whether a batch is a wish: it is alone in its batch.
pub(super) fn is_request(entries: &EntryBatch) -> bool {
    Entries::new(Index(1), entries.bytes()).next().is_some_and(|entry| is_config(&entry))
}

/// Another node forwards commands, or one wish.
pub(super) fn check_forwarded(entries: &EntryBatch) -> Result<(), EnvelopeError> {
    let mixed = entries.count() > 1 && Entries::new(Index(1), entries.bytes()).any(|entry| is_config(&entry));
    if mixed { Err(EnvelopeError::Message("a change of members among commands".into())) } else { Ok(()) }
}

/// The changes of members among a leader's entries.
pub(super) fn changes_in(run: RunRef<'_>) -> Result<Changes, EnvelopeError> {
    let of = |entry: coracle_base::EntryRef<'_>| {
        let mut reader = Reader::new(entry.payload);
        let members =
            Members::decode(&mut reader).map_err(|error| EnvelopeError::Message(error.to_string()))?;
        match reader.is_empty() {
            true => Ok((entry.index, members)),
            false => Err(EnvelopeError::Message("bytes after a group's members".into())),
        }
    };
    run.entries().filter(is_config).map(of).collect()
}

fn reason_of(error: ChangeError) -> Reason {
    match error {
        ChangeError::NotLeader(_) => Reason::NoLeader,
        ChangeError::NotReady | ChangeError::InFlight { .. } | ChangeError::HandingOver => {
            Reason::ChangeUnderWay
        }
        ChangeError::NoLiveQuorum => Reason::NoLiveQuorum,
        ChangeError::Bad(BadChange::Nothing) => Reason::NothingToChange,
        ChangeError::Bad(BadChange::NotAMember(_) | BadChange::Twice(_)) => Reason::NotAMember,
        ChangeError::Bad(BadChange::NoVoter) => Reason::LastVoter,
        ChangeError::Bad(BadChange::TooMany) => Reason::TooManyMembers,
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A wish reached its leader.
    pub(super) fn on_request(&mut self, slot: u32, entries: &EntryBatch, origin: Origin) {
        let entry = Entries::new(Index(1), entries.bytes()).next();
        let tag = entry.as_ref().map_or(0, |entry| entry.header.tag);
        let refused = match entry.map(|entry| Request::decode(entry.payload)) {
            Some(Ok(Some(Request::Change { force, changes }))) => {
                self.change(slot, force, &changes, tag, &origin)
            }
            Some(Ok(Some(Request::Transfer { to }))) => self.transfer(slot, to, tag, &origin),
            _ => Err(Reason::NotAMember),
        };
        if let Err(reason) = refused {
            self.refuse(entries, &origin, reason, Some(self.settings.node));
        }
    }

    pub(super) fn change(
        &mut self,
        slot: u32,
        force: bool,
        changes: &[Change],
        tag: u64,
        origin: &Origin,
    ) -> Result<(), Reason> {
        let added = changes.iter().copied().filter(|change| !matches!(change, Change::Remove(_)));
        // Without a link it may be another directory by the same name that is meant, of which nothing is known here yet.
        let is_there = |node: NodeId| node == self.settings.node || force || self.transport.is_up(node);
        if let Some(node) = added.map(Change::node).find(|node| !(self.has_place(*node) && is_there(*node))) {
            let is_peer = self.transport.link(node).is_some();
            return Err(if is_peer { Reason::NotJoined(node) } else { Reason::NotAMember });
        }
        self.require_members(slot, changes.iter().map(|change| change.node()))?;
        // Not before the reserve that is for elections: a full disk may need another member.
        if !self.may_write(Need::Urgent, 1024) {
            return Err(Reason::DiskFull);
        }
        let mut outputs = Vec::new();
        let one = &mut self.slots[slot as usize];
        let proposed = one.raft.change(self.now_us, changes, force, &mut outputs).map_err(reason_of)?;
        let deadline_us = self.now_us + self.settings.command_timeout_us;
        let (first, term) = (proposed.first, proposed.term);
        let waiting = Waiting {
            first,
            last: first,
            term,
            bytes: 0,
            deadline_us,
            tags: vec![tag],
            origin: origin.clone(),
        };
        one.waiting.push(waiting);
        tracing::info!(group = %one.id, ?changes, force, index = %first, "members change");
        for output in outputs {
            if let Output::AppendMembers { index, term, members } = output {
                self.append_members(slot, index, term, &members, tag);
            }
        }
        self.touch(slot);
        Ok(())
    }

    pub(super) fn append_members(
        &mut self,
        slot: u32,
        index: Index,
        term: Term,
        members: &Members,
        tag: u64,
    ) {
        let mut payload = Vec::new();
        members.encode(&mut payload);
        self.append_own(slot, index, term, EntryKind::Config, tag, &payload);
        self.note_members(slot);
        self.sweeping.on_unrest(self.now_us);
    }

    fn transfer(&mut self, slot: u32, to: Option<NodeId>, tag: u64, origin: &Origin) -> Result<(), Reason> {
        self.require_members(slot, None)?;
        let one = &mut self.slots[slot as usize];
        if one.transfer_for.len() >= TRANSFERS_MAX {
            return Err(Reason::Busy);
        }
        match one.raft.transfer(self.now_us, to) {
            Ok(to) => {
                tracing::info!(group = %one.id, %to, "leadership is being handed over");
                let deadline_us = self.now_us + self.settings.command_timeout_us;
                one.transfer_for.push(Successor { origin: origin.clone(), tag, deadline_us });
            }
            Err(TransferError::Leads(_)) => {
                let (index, leader) = (one.raft.commit(), self.settings.node);
                let mut answers =
                    Answers { completions: &mut self.completions, transport: &mut self.transport };
                answers.give(origin, tag, &Outcome::Done(Done { reply: &[], index, leader }));
            }
            Err(TransferError::NotAVoter(_)) => return Err(Reason::NotAMember),
            Err(TransferError::Unreachable) => return Err(Reason::NoLiveQuorum),
            Err(TransferError::UnderWay(_)) => return Err(Reason::ChangeUnderWay),
            Err(TransferError::NotLeader(_)) => return Err(Reason::NoLeader),
        }
        self.touch(slot);
        Ok(())
    }

    /// Another one leads, or nobody yet: who asked for a transfer hears when it is known who.
    pub(super) fn settle_transfer(&mut self, slot: u32, role: Role, leader: Option<NodeId>) {
        let one = &mut self.slots[slot as usize];
        let Some(leader) = leader.filter(|_| !one.transfer_for.is_empty()) else { return };
        let outcome = match role {
            Role::Leader => Outcome::not_done(Reason::NotHandedOver, Some(leader)),
            _ => Outcome::Done(Done { reply: &[][..], index: one.raft.commit(), leader }),
        };
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        one.transfer_for.drain(..).for_each(|one| answers.give(&one.origin, one.tag, &outcome));
        self.again = true;
    }

    /// The successor had its time: this node leads on, and takes up what waited.
    pub(super) fn on_transfer_ended(&mut self, slot: u32) {
        let group = self.slots[slot as usize].id;
        tracing::info!(%group, "no successor took over: this node leads on");
        self.settle_transfer(slot, Role::Leader, Some(self.settings.node));
        self.release_parked(slot);
    }

    pub(super) fn trigger_election(&mut self, group: GroupId) -> Result<bool, Error> {
        let slot = self.by_group.get(&group).copied().ok_or(Error::NoGroup(group))?;
        if let Err(reason) = self.require_members(slot, None) {
            tracing::warn!(%group, %reason, "no election is triggered");
            return Ok(false);
        }
        let begins = self.slots[slot as usize].raft.trigger_election(self.now_us);
        self.touch(slot);
        Ok(begins)
    }

    /// Begins to hand over every group that is led here and has somebody else to lead it.
    pub(super) fn drain_groups(&mut self) -> Drained {
        let mut drained = Drained::default();
        for slot in 0..self.slots.len() as u32 {
            let raft = &self.slots[slot as usize].raft;
            let is_alone = raft.members().is_alone(self.settings.node);
            if raft.role() != Role::Leader || is_alone {
                continue;
            }
            match self.begin_transfer(slot) {
                true => drained.handing_over += 1,
                false => drained.kept += 1,
            }
        }
        drained
    }

    /// Begins to hand over a group that is led here, to whoever is best; whether it is on its way.
    pub(super) fn begin_transfer(&mut self, slot: u32) -> bool {
        let can = self.require_members(slot, None).is_ok();
        let begun = can && self.slots[slot as usize].raft.transfer(self.now_us, None).is_ok();
        if begun {
            self.touch(slot);
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_come_back() {
        let (a, b) = (NodeId(3), NodeId(u64::MAX));
        let changes = vec![Change::Voter(a), Change::Learner(b), Change::Promotable(a), Change::Remove(b)];
        for request in [
            Request::Change { force: true, changes },
            Request::Change { force: false, changes: Vec::new() },
            Request::Transfer { to: Some(a) },
            Request::Transfer { to: None },
        ] {
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes), Ok(Some(request)));
            for cut in 0..bytes.len() {
                assert!(Request::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Request::decode(&longer), Ok(None));
        }
        assert_eq!(Request::decode(&[1, 3]), Ok(None));
    }
}
