//! The directory: which groups the cluster has by name, and what each of them is. A replicated group like any other, of uid
//! 0, which the engine itself runs on every node that is started with machines for named groups; here are its words and its
//! machine, both pure. What nodes do about it is in `shard/names/`.
//!
//! ```text
//!   uids   0                  the directory itself
//!          1 .. 2^48          whoever starts the group says which (`Node::start_group`)
//!          2^48 .. 2^53       drawn by the directory, one after the other, each once in the life of the cluster
//! ```
//!
//! So what became of a drawn uid needs no list: it is in the directory, or it was drawn and is deleted, or nobody drew it yet.
//!
//! Invariants: (1) a name is one group's at a time, a drawn uid one group's ever; (2) the same commands give the same state on
//! every node, and everything in it is bounded; (3) who founds a group is fixed when it is made, by node *and* data directory:
//! an empty directory in the place of a lost one founds nothing.

mod machine;
#[cfg(test)]
mod tests;
mod wire;

use coracle_base::limits::MEMBERS_MAX;
use coracle_base::{GroupId, Index, NodeId};

pub(crate) use machine::{Event, NameMachine};
pub(crate) use wire::{Ask, Command};

/// The directory's own group.
pub(crate) const DIRECTORY: GroupId = GroupId(0);
/// The first uid that the directory draws.
pub(crate) const FIRST_DRAWN: GroupId = GroupId(1 << 48);
/// It draws none from here on: numbers that every JSON reader keeps exactly.
const END_DRAWN: GroupId = GroupId(1 << 53);

/// The longest name of a group, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// The longest argument of a group's machine, in bytes.
pub(crate) const ARGUMENT_BYTES_MAX: usize = 4096;
/// Named groups of a cluster: each costs every node some hundred bytes, running or not.
const NAMES_MAX: usize = 1 << 17;
/// And all that is known of them: a snapshot of the directory is read back at once.
const BYTES_MAX: usize = 64 << 20;
/// Groups in one page of a list.
pub(crate) const PAGE_MAX: usize = 256;
/// Bytes of a page: one reply between nodes holds it.
const PAGE_BYTES: usize = 512 * 1024;

/// A node with the data directory that it had then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
}

/// A group that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedGroup {
    name: String,
    id: GroupId,
    argument: Vec<u8>,
    /// Whoever wished for it named nobody: all nodes that there were founded it.
    of_all: bool,
    founders: Vec<Seat>,
    members: Vec<Seat>,
    /// The entry of its own log that made these the members; 0: they founded it.
    members_index: Index,
}

impl NamedGroup {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its uid, which no other group of the cluster ever has.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Which one of all named groups that the cluster ever made it is, from 1 (some are left out where the directory was cut
    /// down to one member by force): a name that is deleted and used again comes with a higher one.
    pub fn generation(&self) -> u64 {
        self.id.0 - FIRST_DRAWN.0 + 1
    }

    /// What its machine was made with.
    pub fn argument(&self) -> &[u8] {
        &self.argument
    }

    /// Its members, as the directory has heard of them: those that founded it, and some time after a change that is
    /// committed, those that it has since. The group's own log is the truth ([`Group::members`](crate::Group::members)).
    pub fn members(&self) -> Vec<NodeId> {
        self.members.iter().map(|seat| seat.node).collect()
    }

    pub(crate) fn members_index(&self) -> Index {
        self.members_index
    }

    pub(crate) fn seats(&self) -> &[Seat] {
        &self.members
    }

    pub(crate) fn founders(&self) -> &[Seat] {
        &self.founders
    }

    /// What it takes in a snapshot, about.
    fn bytes(&self) -> usize {
        self.name.len() + self.argument.len() + 16 * (self.founders.len() + self.members.len()) + 64
    }
}

/// What became of the wish for a group of some name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is made. Its members take it up in a moment.
    New(NamedGroup),
    /// It was there, with the same founders and the same argument: made by an earlier try whose end was unknown, or by
    /// somebody else who wants the very same.
    Same(NamedGroup),
    /// The name is another group's: with other founders, or another argument.
    Taken(NamedGroup),
    /// The directory holds as much as it may.
    Full,
    /// The name, the argument or the members are none: see [`Directory::create`](crate::Directory::create).
    Refused,
}

/// What became of the wish that a group be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone. Its members stop it in a moment, those that are away when they are back.
    Gone(NamedGroup),
    /// There is none of that name: perhaps an earlier try, whose end was unknown, has done it.
    NotThere,
    /// The name is this group's, and not that of the uid that was asked for: that one is gone.
    Other(NamedGroup),
}

/// A part of the list of named groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// By name.
    pub groups: Vec<NamedGroup>,
    /// There are more, after this name.
    pub next: Option<String>,
}

/// Whether this may be a name: UTF-8 of 1 to 255 bytes, without control characters.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

/// Whether a group can be made of these: some, no node twice.
fn are_founders(seats: &[Seat]) -> bool {
    let is_twice = |pair: &[Seat]| pair[0].node >= pair[1].node;
    (1..=MEMBERS_MAX).contains(&seats.len()) && !seats.windows(2).any(is_twice)
}

/// Whether the directory draws this uid, or did.
pub(crate) fn is_drawn(group: GroupId) -> bool {
    group >= FIRST_DRAWN
}
