//! The directory's machine: names to groups. Deterministic; what it tells its own node besides (`take_events`) is no state.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use coracle_base::GroupId;

use super::wire::{self, Ask, Command};
use super::{
    BYTES_MAX, Created, Deleted, END_DRAWN, FIRST_DRAWN, NAMES_MAX, NamedGroup, PAGE_BYTES, PAGE_MAX, Page,
    Seat, are_founders, is_name,
};
use crate::machine::{Class, Effects, Entry, Machine, RestoreError, SnapshotSource, Wire};

/// So many bytes of commands at least, and as many as the state has, come between two snapshots.
const RELEASE_BYTES: usize = 32 * 1024;
/// What a command costs the log besides its own bytes.
const COMMAND_BYTES: usize = 64;
/// More uids than a log that is lost can have drawn since the one that is left.
const SKIPPED: u64 = 1 << 32;

/// What happened, for the node that runs this machine; in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Created(Arc<NamedGroup>),
    /// Other members.
    Changed(Arc<NamedGroup>),
    Deleted(Arc<NamedGroup>),
    /// Everything may be otherwise: a snapshot took the place of the state.
    All,
}

/// All named groups.
#[derive(Debug)]
pub(crate) struct NameMachine {
    groups: BTreeMap<GroupId, Arc<NamedGroup>>,
    names: BTreeMap<String, GroupId>,
    /// The uid that is drawn next.
    next: GroupId,
    /// How often uids were passed over because by force the log is not the one that they were drawn in.
    skipped: u64,
    bytes: usize,
    /// Of commands since the last wish for a snapshot.
    since_bytes: usize,
    events: Vec<Event>,
}

impl Default for NameMachine {
    fn default() -> Self {
        Self {
            groups: BTreeMap::new(),
            names: BTreeMap::new(),
            next: FIRST_DRAWN,
            skipped: 0,
            bytes: 0,
            since_bytes: 0,
            events: Vec::new(),
        }
    }
}

impl NameMachine {
    /// What happened since the last time.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// All groups, by uid.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Arc<NamedGroup>> {
        self.groups.values()
    }

    /// Uids below this one were drawn.
    pub(crate) fn next(&self) -> GroupId {
        self.next
    }

    fn find(&self, name: &str) -> Option<&Arc<NamedGroup>> {
        self.groups.get(self.names.get(name)?)
    }

    fn create(&mut self, name: String, argument: Vec<u8>, of_all: bool, founders: Vec<Seat>) -> Created {
        if !is_name(&name) || !are_founders(&founders) {
            return Created::Refused;
        }
        if let Some(group) = self.find(&name) {
            let nodes = |seats: &[Seat]| seats.iter().map(|seat| seat.node).collect::<Vec<_>>();
            // All nodes there are may be others the next time that the same is wished for.
            let are_same = of_all || nodes(&group.founders) == nodes(&founders);
            let is_same = group.argument == argument && group.of_all == of_all && are_same;
            let group = NamedGroup::clone(group);
            return if is_same { Created::Same(group) } else { Created::Taken(group) };
        }
        let id = self.drawn();
        let (members, members_index) = (founders.clone(), coracle_base::Index::ZERO);
        let group = NamedGroup { name, id, argument, of_all, founders, members, members_index };
        let is_full = self.groups.len() >= NAMES_MAX || self.bytes + group.bytes() > BYTES_MAX;
        if is_full || id >= END_DRAWN {
            return Created::Full;
        }
        self.next = self.next.max(GroupId(id.0 + 1));
        let group = Arc::new(group);
        self.insert(group.clone());
        self.events.push(Event::Created(group.clone()));
        Created::New(NamedGroup::clone(&group))
    }

    #[cfg(not(feature = "breaks"))]
    fn drawn(&self) -> GroupId {
        self.next
    }

    #[cfg(feature = "breaks")]
    fn drawn(&self) -> GroupId {
        let next = self.groups.keys().next_back().map_or(FIRST_DRAWN, |last| GroupId(last.0 + 1));
        if crate::breaks::draws_uids_again() { next } else { self.next }
    }

    fn insert(&mut self, group: Arc<NamedGroup>) {
        self.bytes += group.bytes();
        self.names.insert(group.name.clone(), group.id);
        if let Some(before) = self.groups.insert(group.id, group) {
            self.bytes -= before.bytes();
        }
    }

    fn delete(&mut self, name: &str, id: Option<GroupId>) -> Deleted {
        let Some(group) = self.find(name).cloned() else { return Deleted::NotThere };
        if id.is_some_and(|id| id != group.id) {
            return Deleted::Other(NamedGroup::clone(&group));
        }
        self.names.remove(name);
        self.groups.remove(&group.id);
        self.bytes -= group.bytes();
        self.events.push(Event::Deleted(group.clone()));
        Deleted::Gone(NamedGroup::clone(&group))
    }

    /// What a group's leader says of its members. Of two such words the one about the later entry counts.
    fn change(&mut self, id: GroupId, index: coracle_base::Index, members: Vec<Seat>) {
        let Some(group) = self.groups.get(&id).filter(|group| group.members_index < index) else { return };
        if !are_founders(&members) {
            return;
        }
        let group = Arc::new(NamedGroup { members, members_index: index, ..NamedGroup::clone(group) });
        self.insert(group.clone());
        self.events.push(Event::Changed(group));
    }

    /// Uids may have been drawn that this log has forgotten: none of them is drawn again.
    pub(super) fn skip(&mut self, epoch: u64) {
        if epoch > self.skipped {
            self.next = GroupId((self.next.0 + SKIPPED).min(END_DRAWN.0));
            self.skipped = epoch;
            self.events.push(Event::All);
        }
    }

    fn list(&self, prefix: &str, after: &str, count: u16) -> Page {
        let count = usize::from(count).clamp(1, PAGE_MAX);
        let from = prefix.max(after);
        let names =
            self.names.range::<str, _>((Included(from), Unbounded)).filter(|(name, _)| name.as_str() > after);
        let mut of_prefix = names.take_while(|(name, _)| name.starts_with(prefix));
        let (mut groups, mut bytes) = (Vec::new(), 0);
        let mut has_more = false;
        for group in of_prefix.by_ref().filter_map(|(_, id)| self.groups.get(id)) {
            bytes += group.bytes();
            has_more = groups.len() == count || bytes > PAGE_BYTES && !groups.is_empty();
            if has_more {
                break;
            }
            groups.push(NamedGroup::clone(group));
        }
        let last = groups.last().map(|group: &NamedGroup| group.name.clone());
        Page { groups, next: last.filter(|_| has_more) }
    }
}

/// The state at one moment. Groups are shared with the machine, which replaces what it changes: so this takes a pointer for each,
/// and their bytes are made piece by piece.
struct Cut {
    /// Made, and taken up to `at`.
    made: Vec<u8>,
    at: usize,
    rest: std::vec::IntoIter<Arc<NamedGroup>>,
}

impl SnapshotSource for Cut {
    fn next_chunk(&mut self, out: &mut Vec<u8>, max: usize) -> bool {
        let end = out.len().saturating_add(max);
        loop {
            let taken = (end - out.len()).min(self.made.len() - self.at);
            out.extend_from_slice(&self.made[self.at..self.at + taken]);
            self.at += taken;
            if self.at < self.made.len() {
                return true;
            }
            let Some(group) = self.rest.next() else { return false };
            self.made.clear();
            self.at = 0;
            wire::put_group(&mut self.made, &group);
        }
    }
}

impl Machine for NameMachine {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        // What is no command changes nothing, on every node, and its answer is empty.
        match Command::decode(entry.command) {
            Some(Command::Create { name, argument, of_all, founders }) => {
                self.create(name, argument, of_all, founders).encode(effects.reply());
            }
            Some(Command::Delete { name, id }) => self.delete(&name, id).encode(effects.reply()),
            Some(Command::Members { id, index, members }) => self.change(id, index, members),
            Some(Command::Skip { epoch }) => self.skip(epoch),
            None => {}
        }
        self.since_bytes += entry.command.len() + COMMAND_BYTES;
        if self.since_bytes >= RELEASE_BYTES.max(self.bytes) {
            self.since_bytes = 0;
            effects.release();
        }
    }

    fn class(&self, command: &[u8]) -> Class {
        match Command::decode(command) {
            // Whole groups go with it.
            Some(Command::Delete { .. }) => Class::Freeing,
            _ => Class::Ordinary,
        }
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        match Ask::decode(query) {
            Some(Ask::LookUp(name)) => self.find(&name).map(|group| NamedGroup::clone(group)).encode(reply),
            Some(Ask::List { prefix, after, count }) => self.list(&prefix, &after, count).encode(reply),
            Some(Ask::Nothing) | None => {}
        }
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        self.snapshot_source().next_chunk(out, usize::MAX);
    }

    fn snapshot_source(&self) -> Box<dyn SnapshotSource> {
        let mut made = Vec::new();
        wire::put_head(&mut made, self.next, self.skipped, self.groups.len());
        let groups: Vec<_> = self.groups().cloned().collect();
        Box::new(Cut { made, at: 0, rest: groups.into_iter() })
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let (next, skipped, groups) = wire::state(snapshot)
            .ok_or_else(|| RestoreError(format!("{} bytes that are no directory", snapshot.len())))?;
        let events = std::mem::take(&mut self.events);
        *self = Self { next, skipped, events, ..Self::default() };
        groups.into_iter().for_each(|group| self.insert(Arc::new(group)));
        if self.names.len() != self.groups.len() {
            return Err(RestoreError("a directory with a name of two groups".into()));
        }
        self.events.push(Event::All);
        Ok(())
    }
}
