//! Opening a shard and taking up groups.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use coracle_base::run::Entries;
use coracle_base::{GroupId, Index, NodeId, Term};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::{Config as RaftConfig, Group, HardState, Input, Restored};
use coracle_wal::{RecoveredGroup, Recovery, Wal};

use super::boots::Boots;
use super::compact::Compaction;
use super::groups::{Held, Slot, Snapshot};
use super::inbox::{Inbox, Start};
use super::names::{Machines, Names};
use super::places::Places;
use super::restore::Try;
use super::snapshots::{Checkpoint, Snapshots};
use super::status::Glance;
use super::{GroupStatus, Settings, Shard, ShardStatus};
use crate::Error;
use crate::identity::Identity;
use crate::lineage::Lineage;
use crate::machine::Machine;
use crate::transport::Transport;

/// The order in which a group's members campaign is the same on all of them, and has nothing to do with their shard.
const ORDER_SEED: u64 = 0x00c0_4ac1_e0de_4000;

/// A group as the disk has it, or empty.
struct Found {
    raft: Group,
    held: Option<Held>,
    last: Index,
    /// Its log begins with a snapshot, sound or not.
    has_base: bool,
    /// The disk has nothing of it.
    is_new: bool,
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A shard over a WAL that is open and links that are being made.
    #[allow(clippy::too_many_arguments)] // the parts that a shard is made of
    pub(crate) fn new(
        settings: Settings,
        identity: Identity,
        disk: D,
        net: N,
        clock: C,
        wal: Wal,
        recovery: Recovery,
        snapshots: Snapshots,
        transport: Transport,
        (lineage, saved): (Lineage, Lineage),
        inbox: Arc<Inbox<N::Socket>>,
        siblings: Vec<Arc<Inbox<N::Socket>>>,
        machines: Option<Machines>,
    ) -> Self {
        let now_us = clock.now_us();
        Self {
            settings,
            disk,
            net,
            clock,
            compaction: Compaction::new(&wal),
            wal,
            transport,
            inbox,
            siblings,
            places: Places::new(identity),
            names: Names::new(machines),
            removed: Default::default(),
            boots: Boots::new(lineage, saved, recovery.end_seq, recovery.report.created),
            slots: Vec::new(),
            by_group: BTreeMap::new(),
            incomplete: recovery.report.is_incomplete(),
            recovered: recovery.groups.into_iter().map(|group| (group.group, group)).collect(),
            dirty: Vec::new(),
            applying: Vec::new(),
            sweeping: Default::default(),
            timers: BTreeSet::new(),
            on_durable: VecDeque::new(),
            reads: BTreeMap::new(),
            readers: BTreeMap::new(),
            snapshots,
            next_token: 0,
            forwards: Default::default(),
            index_reads: Default::default(),
            stall: Default::default(),
            elections: Default::default(),
            completions: Vec::new(),
            arena_bytes: 0,
            cache_hand: 0,
            waiting_bytes: 0,
            unstaged_bytes: 0,
            now_us,
            again: false,
            status: ShardStatus::default(),
            outputs: Vec::new(),
            disk_done: Vec::new(),
            net_events: Vec::new(),
            link_events: Vec::new(),
            reply_scratch: Vec::new(),
        }
    }

    /// Takes up a group: as the disk has it, or empty.
    pub(super) fn start_group(&mut self, start: Start) -> Result<(), Error> {
        let Start { group, machine, founders } = start;
        // A node that is not among the founders waits to be made a member.
        let mut founders = founders.unwrap_or_else(|| self.settings.founders.clone());
        founders.retain(|founder| self.settings.founders.contains(founder));
        if !founders.contains(&self.settings.node) {
            founders.clear();
        }
        self.take_up(group, machine, founders)
    }

    /// Takes up a group that these found, if it is new; nobody: this node waits to be made a member.
    pub(super) fn take_up(
        &mut self,
        group: GroupId,
        machine: Box<dyn Machine>,
        founders: Vec<NodeId>,
    ) -> Result<(), Error> {
        if self.by_group.contains_key(&group) {
            return Err(Error::GroupRuns(group));
        }
        // It stays among the recovered ones until it runs: a second try must not find it empty.
        let Found { raft, held, last, has_base, is_new } = self.raft_of(group, founders)?;
        let is_suspect = raft.suspect();
        let mut slot = Slot::new(group, raft, machine, last);
        let (first, raft) = (slot.raft.first(), &slot.raft);
        let is_good =
            |index, term| index >= first && index <= raft.durable() && raft.term_at(index) == Some(term);
        let checkpoints = self.snapshots.checkpoints_of(&mut self.disk, group, is_good);
        let tries = match &held {
            // As small as it is, it need not wait.
            Some(Held::Inline(snapshot)) if checkpoints.is_empty() => {
                slot.restore(snapshot)
                    .map_err(|error| Error::Machine { group, reason: error.to_string() })?;
                None
            }
            held => tries(held.as_ref(), has_base, &checkpoints),
        };
        (slot.snapshot, slot.checkpoints) = (held, checkpoints);
        slot.part = self.snapshots.part_of(group);
        // What is found says itself, or the file does, what it has lost.
        slot.unsure = is_new && is_suspect && !self.boots.doubt();
        self.recovered.remove(&group);
        let at = self.place_slot(slot);
        self.by_group.insert(group, at);
        self.status.groups += 1;
        self.status.groups_damaged += u64::from(is_suspect);
        match tries {
            Some(tries) => self.restore_from(at, tries, false),
            None => self.look_for_lost(at),
        }
        self.tell_links(at);
        self.drop_part(at);
        self.touch(at);
        self.on_whole();
        self.sweeping.on_unrest(self.now_us);
        Ok(())
    }

    /// The consensus of a group, as the disk has it, and what else there is of it.
    fn raft_of(&self, group: GroupId, founders: Vec<NodeId>) -> Result<Found, Error> {
        let found = self.recovered.get(&group);
        let hard_state = found.map_or(Ok(None), hard_state_of)?;
        let held = found.and_then(held);
        let last = found.map_or(Index::ZERO, |one| one.last);
        // What lies before the log: the snapshot's, whether it is sound or not.
        let base = found
            .filter(|one| one.first > Index(1))
            .map(|one| (one.first.prev(), one.terms.first().map_or(Term::ZERO, |(_, term)| *term)));
        let config = self.raft_config(group, founders);
        let others = match &hard_state {
            Some(state) => state.current.members.iter().any(|member| member.id != config.id),
            None => config.voters.iter().any(|voter| *voter != config.id),
        };
        // Its vote may be in a damaged part of the log, or everything that it ever wrote here.
        let is_new = found.is_none() && self.names.is_new(group);
        let is_in_damage = found.map_or(self.incomplete && !is_new, |one| one.state_lost);
        let refused = |reason: &str| Err(Error::Machine { group, reason: reason.into() });
        if is_in_damage && !others && config.voters.contains(&config.id) {
            return refused(
                "its vote may be lost with a damaged part of the log, and nobody else could know of it: restore the directory",
            );
        }
        if base.is_some() && held.is_none() && !others {
            return refused(
                "its snapshot in the log is damaged, and what it covers is released: restore the directory, or replace this \
                 member",
            );
        }
        let terms =
            found.map_or(Vec::new(), |one| terms_above(base.map(|(index, _)| index), last, &one.terms));
        let is_forgotten = found.map_or(self.boots.is_unnamed() && !is_new, |_| self.boots.votes_are_lost());
        // In the first start of all nothing can be forgotten: a new cluster does not wait.
        let holds = found.is_some() || self.boots.has_past() && !is_new;
        let restored = Restored {
            hard_state,
            snapshot: base,
            last,
            terms: &terms,
            accepted_term: found.map_or(Default::default(), |one| one.accepted_term),
            suspect: found.is_some_and(|one| one.suspect),
            votes_lost: is_in_damage || is_forgotten,
            hold_us: if holds { self.settings.election_us } else { 0 },
        };
        let raft = Group::new(config, restored, self.now_us);
        Ok(Found { raft, held, last, has_base: base.is_some(), is_new: found.is_none() })
    }

    /// A group hears which links are up.
    pub(super) fn tell_links(&mut self, at: u32) {
        let up = self.transport.links().iter().filter(|link| link.session().is_some());
        let up: Vec<_> = up.map(|link| link.node).collect();
        up.into_iter().for_each(|node| self.input(at, Input::LinkUp(node)));
    }

    fn raft_config(&self, group: GroupId, founders: Vec<NodeId>) -> RaftConfig {
        let settings = &self.settings;
        let seed = coracle_base::checksum::mix64(
            settings.seed,
            coracle_base::checksum::mix64(group.0, settings.node.0),
        );
        let mut config = RaftConfig::new(settings.node, founders);
        config.seed = seed;
        // A named group may be taken up by a founder that does not know all the others yet, and so waits for a leader.
        config.says_founders = crate::directory::is_drawn(group);
        config.order = coracle_base::checksum::mix64(ORDER_SEED, group.0);
        config.election_us_min = settings.election_us;
        config.election_us_max = 2 * settings.election_us;
        #[cfg(feature = "breaks")]
        {
            config.breaks = settings.breaks.raft;
        }
        config
    }

    /// (index, term, payload checksum) of the entries in memory.
    pub(crate) fn entries_in_memory(&self, group: GroupId) -> Vec<(u64, u64, u32)> {
        let Some(slot) = self.by_group.get(&group) else { return Vec::new() };
        let one = &self.slots[*slot as usize];
        let (first, last) = (one.log.first(), one.raft.last());
        if first > last {
            return Vec::new();
        }
        let pieces = one.log.pieces(first, last);
        pieces
            .flat_map(|(at, _, bytes)| Entries::new(at, bytes))
            .map(|entry| (entry.index.0, entry.header.term.0, entry.header.payload_crc))
            .collect()
    }

    /// The last durable entry and its term, as the group believes.
    pub(crate) fn durable(&self, group: GroupId) -> Option<(Index, Term)> {
        let raft = &self.slots[*self.by_group.get(&group)? as usize].raft;
        Some((raft.durable(), raft.term_at(raft.durable())?))
    }

    /// What the group's consensus says of itself.
    pub(crate) fn overview(&self, group: GroupId) -> Option<coracle_raft::Overview> {
        Some(self.slots[*self.by_group.get(&group)? as usize].raft.overview())
    }

    /// Whether the group waits to be brought up after damage.
    pub(crate) fn is_suspect(&self, group: GroupId) -> bool {
        self.by_group.get(&group).is_some_and(|slot| self.slots[*slot as usize].raft.suspect())
    }

    /// Whether another node remembers more than the directory.
    pub(crate) fn is_old_copy(&self) -> bool {
        self.status.directory_old
    }

    /// Whether nothing waits to be written, not even the mark that proves the last batch.
    pub(crate) fn log_is_at_rest(&self) -> bool {
        self.wal.backlog_bytes() == 0 && self.wal.deadline_us().is_none()
    }

    /// The log's counters.
    pub(crate) fn wal_stats(&self) -> coracle_wal::Stats {
        self.wal.stats()
    }

    /// The term of an entry, if the log has it.
    pub(crate) fn term_at(&self, group: GroupId, index: Index) -> Option<Term> {
        self.slots[*self.by_group.get(&group)? as usize].raft.term_at(index)
    }

    /// What of the group changes.
    pub(crate) fn glance(&self, group: GroupId) -> Option<Glance> {
        Some(Glance::of(&self.slots[*self.by_group.get(&group)? as usize]))
    }

    pub(crate) fn group_status(&self, group: GroupId) -> Option<GroupStatus> {
        let one = &self.slots[*self.by_group.get(&group)? as usize];
        Some(GroupStatus {
            group,
            term: one.raft.term(),
            leader: one.raft.leader(),
            first: one.raft.first(),
            last: one.raft.last(),
            commit: one.raft.commit(),
            applied: one.applied,
            digest: one.digest,
            poisoned: one.poisoned.clone(),
            members: one.raft.members().clone(),
            members_index: one.raft.hard_state().current.index,
            restoring: !one.is_ready() && one.is_whole(),
            recovery_epoch: one.raft.hard_state().recovery_epoch,
            suspect: one.raft.suspect(),
            waits_for: one.raft.waits_for().into_vec(),
            data_loss: one.raft.data_loss(),
            needs_snapshot: one.needs_snapshot().map(str::to_owned),
        })
    }

    /// The next groups here in the order of their uids.
    #[cfg(feature = "admin")]
    pub(super) fn groups_after(&self, after: GroupId, count: usize) -> Vec<GroupStatus> {
        let next = {
            use std::ops::Bound::{Excluded, Unbounded};
            self.by_group.range((Excluded(after), Unbounded)).take(count)
        };
        next.filter_map(|(group, _)| self.group_status(*group)).collect()
    }

    pub(crate) fn status(&self) -> ShardStatus {
        let wal = self.wal.stats();
        let mut status = ShardStatus {
            syscalls: self.disk.syscalls(),
            new_groups_doubted: self.incomplete || self.boots.is_unnamed(),
            batches: wal.batches,
            batch_bytes: wal.batch_bytes,
            padding_bytes: wal.padding_bytes,
            roster_bytes: wal.roster_bytes,
            checkpoint_bytes: wal.checkpoint_bytes,
            prefill_bytes: wal.prefill_bytes,
            frames: self.transport.links().iter().map(|link| link.frames).sum(),
            beats: self.transport.links().iter().map(|link| link.beats).sum(),
            links_up: self.transport.links().iter().filter(|link| link.session().is_some()).count() as u64,
            arena_bytes: self.arena_bytes as u64,
            ..self.status
        };
        self.tell_compaction(&mut status);
        self.sweeping.tell(&mut status);
        status
    }
}

/// What a group voted, if it has begun, and may go on from there.
///
/// # Errors
/// Its state is of no known form.
fn hard_state_of(found: &RecoveredGroup) -> Result<Option<HardState>, Error> {
    let refused = |reason: String| Error::Machine { group: found.group, reason };
    if found.state.is_empty() {
        return Ok(None);
    }
    HardState::decode(&found.state).map(Some).map_err(|error| refused(format!("hard state: {error}")))
}

/// What a machine may be restored from, the best first; `None` if it begins empty and nothing has to be read. `has_base`: its
/// log begins with a snapshot, sound or not.
fn tries(held: Option<&Held>, has_base: bool, checkpoints: &[Checkpoint]) -> Option<Vec<Try>> {
    let mut tries = match held {
        Some(Held::Inline(snapshot)) => vec![Try::Inline(snapshot.clone())],
        Some(Held::File { index, term, file }) => {
            vec![Try::Marked { index: *index, term: *term, file: *file }]
        }
        None if has_base => Vec::new(),
        None if checkpoints.is_empty() => return None,
        None => vec![Try::Empty],
    };
    tries.extend(checkpoints.iter().map(|one| Try::Checkpoint { index: one.index, name: one.name }));
    Some(tries)
}

/// The snapshot that recovery found, if it is readable or a file.
fn held(found: &RecoveredGroup) -> Option<Held> {
    let term = found.terms.first().map_or(Term::ZERO, |(_, term)| *term);
    let file = found.snapshot_file.map(|file| Held::File { index: found.first.prev(), term, file });
    let inline = found
        .snapshot
        .as_ref()
        .map(|one| Held::Inline(Snapshot { index: one.index, term: one.term, bytes: one.bytes.clone() }));
    inline.or(file)
}

/// The term spans of the log above a snapshot, of those that begin with the snapshot's own.
fn terms_above(snapshot: Option<Index>, last: Index, spans: &[(Index, Term)]) -> Vec<(Index, Term)> {
    let first = snapshot.unwrap_or(Index::ZERO).next();
    let mut above: Vec<(Index, Term)> = Vec::with_capacity(spans.len());
    for (from, term) in spans {
        let from = (*from).max(first);
        if above.last().is_some_and(|(at, _)| *at == from) {
            above.pop();
        }
        if from <= last {
            above.push((from, *term));
        }
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_at_the_snapshot() {
        let spans = [(Index(5), Term(1)), (Index(6), Term(2)), (Index(9), Term(4))];
        let cut = |snapshot, last| terms_above(snapshot, Index(last), &spans);
        assert_eq!(cut(Some(Index(5)), 9), vec![(Index(6), Term(2)), (Index(9), Term(4))]);
        assert_eq!(cut(Some(Index(7)), 9), vec![(Index(8), Term(2)), (Index(9), Term(4))]);
        assert_eq!(cut(Some(Index(9)), 9), vec![]);
        assert_eq!(terms_above(None, Index(3), &[(Index(1), Term(1))]), vec![(Index(1), Term(1))]);
        assert_eq!(terms_above(None, Index(0), &[]), vec![]);
    }
}
