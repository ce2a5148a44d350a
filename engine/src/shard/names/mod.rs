//! Named groups on this node: what the directory says is done. The first shard runs the directory's group and tells every
//! shard what became of names; each shard starts and removes its own groups.
//!
//! ```text
//!   directory's machine ── events, in order ──→ first shard ── words ──→ shard of the uid ──→ start, remove
//!        ↑                                        │
//!        └── create, delete, members ── commands ─┘   (forwarded to the directory's leader, as all commands are)
//! ```
//!
//! After a start this node's directory may be older than what it knew before, and a group that is in it may be deleted since. So
//! until a quorum has confirmed that all that was committed is applied here (a read index), only groups are started that this
//! node's disk has: they go on from what they promised. One that it had removed would begin anew, without its promises.
//!
//! Invariants: (1) a named group begins here at most once, and only if the directory names this node *and* its data directory
//! as a member; (2) it founds the group only if it founds it by the directory, and all who found it with it are who they were
//! then; otherwise it waits for the group's leader; (3) what the directory has drawn and does not have is removed, and never
//! begun again; nothing but the directory makes a group begin; (4) none begins here that has a member whose place is another
//! directory's here, or is about to be: its name would mean the new one here and the old one elsewhere; (5) nothing waits for
//! a shard whose inbox is full: it is told all there is when it has room.

mod members;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coracle_base::{EntryBatch, EntryKind, GroupId, NodeId, ShardId};
use coracle_io::{Clock, Disk, Net};

use super::Shard;
use super::inbox::{Command, Origin, Start};
use super::queries::Question;
use super::replies::Slot as Answer;
use crate::api::query::Consistency;
use crate::directory::{self, Ask, DIRECTORY, Event, FIRST_DRAWN, NameMachine, NamedGroup, Seat};
use crate::machine::{Machine, Wire};
use crate::outcome::{Outcome, Reason};
use crate::panics::caught;

pub use watch::NameChange;
pub(crate) use watch::WatchQueue;

/// Makes a named group's machine from its name and argument; `None`: this program knows no such machine.
pub(crate) type Machines = Arc<dyn Fn(&str, &[u8]) -> Option<Box<dyn Machine>> + Send + Sync>;

/// Named groups that are started in one turn.
const STARTS_PER_TURN: usize = 256;
/// The quorum is asked again after so long.
const CONFIRM_AGAIN_US: u64 = 200_000;

/// What the first shard tells the others.
pub(crate) enum Word {
    /// A group is made, or has other members.
    Exists(Arc<NamedGroup>),
    Deleted(Arc<NamedGroup>),
    /// All groups there are, of those whose uids are below `next`.
    All {
        groups: Arc<[Arc<NamedGroup>]>,
        next: GroupId,
        is_confirmed: bool,
    },
}

/// What clients ask of the first shard.
pub(crate) enum Wish {
    /// A group of this name; nobody: of all nodes.
    Create {
        name: String,
        argument: Vec<u8>,
        members: Vec<NodeId>,
    },
    Delete {
        name: String,
        id: Option<GroupId>,
    },
}

/// One shard's part.
#[derive(Default)]
pub(super) struct Names {
    machines: Option<Machines>,
    /// This shard's groups as the directory has them, whoever their members are.
    known: BTreeMap<GroupId, Arc<NamedGroup>>,
    /// Uids below this one were drawn, as far as it is known here.
    next: GroupId,
    /// The directory here has applied all that was committed when this node was started.
    is_confirmed: bool,
    /// Uids from this one on were drawn since then.
    new_from: Option<GroupId>,
    /// To be looked at: they may have to be started.
    pending: BTreeSet<GroupId>,
    /// Led here, and perhaps with other members than the directory has.
    reporting: BTreeSet<GroupId>,
    again_us: u64,
    /// The first shard's: its question to the quorum.
    confirming: Option<Arc<Answer>>,
    /// Shards whose inbox had no room for a word: each is told all there is when it has.
    behind: BTreeSet<ShardId>,
    watchers: Vec<Arc<WatchQueue>>,
}

impl Names {
    pub(super) fn new(machines: Option<Machines>) -> Self {
        Self { machines, next: FIRST_DRAWN, again_us: u64::MAX, ..Self::default() }
    }

    /// Shards wait to be told, or groups to be started.
    pub(super) fn has_work(&self) -> bool {
        !self.behind.is_empty() || !self.pending.is_empty()
    }

    /// When there is something to do though nothing happens.
    pub(super) fn deadline_us(&self) -> u64 {
        self.again_us
    }

    /// Why there is no such group here.
    pub(super) fn why_none(&self, group: GroupId) -> Reason {
        let is_deleted = directory::is_drawn(group) && group < self.next && !self.known.contains_key(&group);
        if is_deleted { Reason::Deleted } else { Reason::NoGroup }
    }

    /// Whether the group cannot have been here before this start: whatever was forgotten is older than its uid.
    pub(super) fn is_new(&self, group: GroupId) -> bool {
        directory::is_drawn(group) && self.new_from.is_some_and(|first| group >= first)
    }

    fn note(&mut self, group: &Arc<NamedGroup>) {
        self.next = self.next.max(GroupId(group.id().0 + 1));
        self.known.insert(group.id(), group.clone());
        self.pending.insert(group.id());
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Begins to run the directory, on the first shard of a node that is to have named groups.
    pub(crate) fn begin_directory(&mut self) {
        if self.names.machines.is_none() || self.transport.shard() != ShardId(0) {
            return;
        }
        let start = Start { group: DIRECTORY, machine: Box::new(NameMachine::default()), founders: None };
        match self.start_group(start) {
            Ok(()) => self.names.again_us = self.now_us,
            Err(error) => {
                tracing::error!(%error, "the directory of named groups cannot run on this node: nor can named groups");
            }
        }
    }

    /// Once a turn, after machines have applied.
    pub(super) fn step_names(&mut self) {
        if self.names.machines.is_none() {
            return;
        }
        self.tell_behind();
        self.take_directory_events();
        self.confirm_directory();
        self.start_pending();
        if self.now_us >= self.names.again_us {
            self.names.again_us = u64::MAX;
            self.ask_quorum();
            self.report_members();
            self.invite_nodes();
        }
    }

    fn try_names_at(&mut self, at_us: u64) {
        self.names.again_us = self.names.again_us.min(at_us);
    }

    // ---- the first shard --------------------------------------------------------------------------------------------

    /// The directory's machine, if it runs here and has its state.
    fn directory(&mut self) -> Option<&mut NameMachine> {
        let one = &mut self.slots[*self.by_group.get(&DIRECTORY)? as usize];
        let is_ready = one.is_ready();
        let machine: &mut dyn std::any::Any = one.machine.as_mut();
        machine.downcast_mut::<NameMachine>().filter(|_| is_ready)
    }

    fn take_directory_events(&mut self) {
        let Some(machine) = self.directory() else { return };
        let mut events = machine.take_events();
        if events.contains(&Event::All) {
            // What is told then is all of it as it is now.
            events = vec![Event::All];
        }
        for event in events {
            self.tell_watchers(&event);
            match event {
                Event::Created(group) | Event::Changed(group) => {
                    self.tell_names(self.shard_of(group.id()), Word::Exists(group));
                }
                Event::Deleted(group) => {
                    self.tell_names(self.shard_of(group.id()), Word::Deleted(group));
                }
                Event::All => self.tell_all_names(),
            }
        }
    }

    fn tell_all_names(&mut self) {
        self.names.behind.clear();
        self.tell_all_to((0..self.siblings.len().max(1) as u16).map(ShardId));
    }

    fn tell_all_to(&mut self, shards: impl Iterator<Item = ShardId>) {
        let is_confirmed = self.names.is_confirmed;
        // Without its state the machine says so itself when it has it.
        let Some(machine) = self.directory() else { return };
        let (groups, next): (Arc<[_]>, _) = (machine.groups().cloned().collect(), machine.next());
        for shard in shards {
            self.tell_names(shard, Word::All { groups: groups.clone(), next, is_confirmed });
        }
    }

    /// Shards that missed a word are told how everything is now, once they have room.
    fn tell_behind(&mut self) {
        let siblings = &self.siblings;
        let has_room = |shard: &ShardId| siblings.get(usize::from(shard.0)).is_none_or(|one| one.has_room());
        let ready: Vec<ShardId> = self.names.behind.extract_if(.., has_room).collect();
        if !ready.is_empty() {
            self.tell_all_to(ready.into_iter());
        }
    }

    fn shard_of(&self, group: GroupId) -> ShardId {
        group.shard(self.siblings.len() as u16)
    }

    /// Words reach a shard in order. One that misses a word hears nothing until it is told everything.
    fn tell_names(&mut self, shard: ShardId, word: Word) {
        if shard == self.transport.shard() {
            return self.on_name_word(word);
        }
        let Some(sibling) = self.siblings.get(usize::from(shard.0)) else { return };
        let is_told = !self.names.behind.contains(&shard) && sibling.push(Command::Names(word)).is_ok();
        if !is_told && !sibling.is_closed() {
            self.names.behind.insert(shard);
        }
    }

    /// Asks whether all that was committed is applied here; the answer is looked at in `confirm_directory`.
    fn ask_quorum(&mut self) {
        let is_here = self.by_group.contains_key(&DIRECTORY);
        if self.names.is_confirmed || self.names.confirming.is_some() || !is_here {
            return;
        }
        let mut query = Vec::new();
        Ask::Nothing.encode(&mut query);
        let answer = Arc::new(Answer::default());
        self.names.confirming = Some(answer.clone());
        let deadline_us = self.now_us + self.settings.command_timeout_us;
        let (consistency, origin) = (Consistency::LinearizableHere, Origin::Slot(answer));
        self.on_query(DIRECTORY, Question { consistency, query, tag: 0, origin, deadline_us });
    }

    fn confirm_directory(&mut self) {
        let Some(outcome) = self.names.confirming.as_ref().and_then(|answer| answer.get()) else { return };
        self.names.confirming = None;
        match outcome {
            Outcome::Done(_) => {
                self.names.is_confirmed = true;
                self.tell_all_names();
            }
            _ => self.try_names_at(self.now_us + CONFIRM_AGAIN_US),
        }
    }

    /// A client's wish: as a command of the directory it finds its leader.
    pub(super) fn on_name_wish(&mut self, wish: Wish, origin: Origin) {
        let command = match wish {
            Wish::Delete { name, id } => Ok(directory::Command::Delete { name, id }),
            Wish::Create { name, argument, members } => {
                let of_all = members.is_empty();
                let founders = self.seats_for(members);
                founders.map(|founders| directory::Command::Create { name, argument, of_all, founders })
            }
        };
        match command {
            Ok(command) => self.propose_name(&command, origin),
            Err(reason) => self.refuse_wish(&origin, reason),
        }
    }

    pub(super) fn refuse_wish(&mut self, origin: &Origin, reason: Reason) {
        let mut answers =
            super::Answers { completions: &mut self.completions, transport: &mut self.transport };
        answers.give(origin, 0, &Outcome::not_done(reason, None));
    }

    fn propose_name(&mut self, command: &directory::Command, origin: Origin) {
        let (mut bytes, mut entries) = (Vec::new(), EntryBatch::new());
        command.encode(&mut bytes);
        match entries.push(0, EntryKind::Command, &bytes) {
            Ok(()) => self.on_propose(DIRECTORY, entries, origin, true),
            Err(_) => self.refuse_wish(&origin, Reason::TooLarge),
        }
    }

    // ---- every shard ------------------------------------------------------------------------------------------------

    pub(super) fn on_name_word(&mut self, word: Word) {
        match word {
            Word::Exists(group) => self.note_named(&group),
            Word::Deleted(group) => {
                self.names.next = self.names.next.max(GroupId(group.id().0 + 1));
                self.names.known.remove(&group.id());
                self.end_named(group.id());
            }
            Word::All { groups, next, is_confirmed } => {
                self.names.is_confirmed |= is_confirmed;
                self.names.next = self.names.next.max(next);
                if is_confirmed {
                    self.names.new_from.get_or_insert(next);
                }
                self.names.known.clear();
                self.names.pending.clear();
                let (own, shards) = (self.transport.shard(), self.siblings.len() as u16);
                for group in groups.iter().filter(|group| group.id().shard(shards) == own) {
                    self.note_named(group);
                }
                let here = self.by_group.keys().chain(self.recovered.keys()).copied();
                let is_gone = |id: &GroupId| self.names.why_none(*id) == Reason::Deleted;
                let gone: Vec<GroupId> = here.chain(self.snapshots.found_of()).filter(is_gone).collect();
                gone.into_iter().for_each(|group| self.end_named(group));
            }
        }
    }

    fn note_named(&mut self, group: &Arc<NamedGroup>) {
        self.names.note(group);
    }

    fn end_named(&mut self, group: GroupId) {
        self.names.reporting.remove(&group);
        if self.remove_group(group) {
            tracing::info!(%group, "deleted");
        }
    }

    /// Places are others' now, or stay as they are: groups that waited for that may begin.
    pub(super) fn look_at_names(&mut self) {
        self.names.pending.extend(self.names.known.keys());
    }

    fn start_pending(&mut self) {
        for _ in 0..STARTS_PER_TURN {
            let Some(id) = self.names.pending.pop_first() else { break };
            if let Some(group) = self.names.known.get(&id).cloned()
                && !self.by_group.contains_key(&id)
            {
                self.start_named(&group);
            }
        }
    }

    /// Takes up a group that the directory has, if it is one of this node's.
    fn start_named(&mut self, group: &NamedGroup) {
        let is_on_disk = self.recovered.get(&group.id()).is_some_and(|found| !found.state.is_empty());
        let own = self.own_seat();
        let is_sure = self.names.is_confirmed || is_careless(self);
        let is_member = is_sure && group.seats().contains(&own);
        if !is_on_disk
            && (!is_member || group.seats().iter().any(|seat| self.is_anothers(seat.node, seat.incarnation)))
        {
            return;
        }
        let Some(machines) = self.names.machines.clone() else { return };
        let made = caught(|| machines(group.name(), group.argument()));
        let Ok(Some(machine)) = made else {
            let why = made.err().unwrap_or_else(|| "this program makes none for it".to_owned());
            tracing::error!(name = group.name(), group = %group.id(), why, "a named group has no machine: it does not run here");
            return;
        };
        let is_as_then = |seat: &Seat| self.cluster().incarnation(seat.node) == Some(seat.incarnation);
        let founds = group.founders().contains(&own) && group.founders().iter().all(is_as_then);
        let founders = group.founders().iter().filter(|_| founds).map(|seat| seat.node).collect();
        match self.take_up(group.id(), machine, founders) {
            Ok(()) => tracing::debug!(name = group.name(), group = %group.id(), founds, "a named group runs"),
            Err(error) => tracing::error!(name = group.name(), %error, "a named group cannot run here"),
        }
    }
}

#[cfg(feature = "breaks")]
fn is_careless<D: Disk, N: Net, C: Clock>(shard: &Shard<D, N, C>) -> bool {
    shard.settings.breaks.deleted_group_revives
}

#[cfg(not(feature = "breaks"))]
fn is_careless<D: Disk, N: Net, C: Clock>(_: &Shard<D, N, C>) -> bool {
    false
}
