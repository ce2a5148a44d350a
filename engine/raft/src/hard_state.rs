//! What a group must never forget: its term, its vote and who its members are. The storage keeps it as an opaque blob.
//!
//! ```text
//!   offset  size  field             (little-endian)
//!   0       1     version           1: plain voters that the group was made with; 2: anything else
//!   1       1     members           of both configurations together; version 1: at least one
//!   2       2     flags             bit 0 (version 2): there is a previous configuration; bit 1: the one in force was forced
//!                                   and no entry of the log says so yet; an unknown bit is refused
//!   4       4     recovery_epoch    raised by a forced repair only
//!   8       8     term
//!   16      8     vote              0: nobody
//!   24      8     config_index      entry of the configuration in force; 0: the one that the group was made with
//!   32      8     previous_index    entry of the configuration before it; 0 while there is none
//!   40      9*n   members           node id (8), roles (1): low half in the configuration in force, high half in the
//!                                   previous one (1 voter, 2 outgoing, 4 learner, 8 promotable)
//!   ..      8*p   targets           of each promotable member, in order; it has one target in both configurations
//! ```
//!
//! A group whose members never changed is written as version 1, which older programs read.
//!
//! Invariant: an encoded state is at most `STATE_BYTES_MAX` bytes; configurations that would need more are refused
//! before they come into force ([`HardState::holds`]).

use alloc::boxed::Box;

use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::{MEMBERS_MAX, STATE_BYTES_MAX};
use coracle_base::{Index, NodeId, Term};
use smallvec::SmallVec;

use crate::member::{Configured, Member, Members, PROMOTABLE, Previous};
use crate::message::{DecodeError, NUMBER_MAX};

const VERSION: u8 = 2;
const PLAIN_VERSION: u8 = 1;
const HEADER_BYTES: usize = 40;
const MEMBER_BYTES: usize = 9;
const TARGET_BYTES: usize = 8;
const HAS_PREVIOUS: u16 = 1;
const IS_UNSAID: u16 = 2;

const _: () = assert!(HEADER_BYTES + MEMBERS_MAX * MEMBER_BYTES <= STATE_BYTES_MAX);
// Seven members that make room for seven others, each of which waits to be promoted.
const _: () = assert!(HEADER_BYTES + 14 * MEMBER_BYTES + 7 * TARGET_BYTES <= STATE_BYTES_MAX);

/// A term, and who got our vote in it. One vote a term: these two change and become durable together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ballot {
    /// The latest term known.
    pub term: Term,
    /// Who got our vote in that term; [`NodeId::NONE`] if nobody.
    pub vote: NodeId,
}

/// A group's durable consensus state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardState {
    /// The latest term known.
    pub term: Term,
    /// Who got our vote in that term; [`NodeId::NONE`] if nobody.
    pub vote: NodeId,
    /// Raised by a forced repair only, so that members which it left out are refused.
    pub recovery_epoch: u32,
    /// The members in force.
    pub current: Configured,
    /// Those before them, to which we go back if the entry that changed them is cut off; it is the only one in the log
    /// that may not be committed. `None` if those in force are surely committed.
    pub previous: Previous,
    /// No entry of the log says who the members in force are, and not everybody may know: the next leader appends one. They
    /// were forced, or founded the group ([`Config::says_founders`](crate::Config::says_founders)).
    pub is_unsaid: bool,
}

/// A member of either configuration.
#[derive(Clone, Copy)]
struct Row {
    id: NodeId,
    roles: u8,
    target: Index,
}

/// The members of both, by id. A target is the same in both, or only one has it.
fn rows(current: &Members, previous: Option<&Members>) -> SmallVec<[Row; 8]> {
    let mut rows: SmallVec<[Row; 8]> = SmallVec::new();
    let mut add = |member: &Member, shift: u8| match rows.iter_mut().find(|row| row.id == member.id) {
        Some(row) => {
            row.roles |= member.roles << shift;
            row.target = row.target.max(member.target);
        }
        None => rows.push(Row { id: member.id, roles: member.roles << shift, target: member.target }),
    };
    current.iter().for_each(|member| add(member, 0));
    previous.into_iter().flat_map(Members::iter).for_each(|member| add(member, 4));
    rows.sort_unstable_by_key(|row| row.id);
    rows
}

fn promotable(roles: u8) -> bool {
    (roles | roles >> 4) & PROMOTABLE != 0
}

fn bytes_of(rows: &[Row]) -> usize {
    let targets = rows.iter().filter(|row| promotable(row.roles)).count();
    HEADER_BYTES + rows.len() * MEMBER_BYTES + targets * TARGET_BYTES
}

impl HardState {
    /// A new group's: these are its members.
    pub fn new(members: Members) -> Self {
        let current = Configured { index: Index::ZERO, members };
        Self {
            term: Term::ZERO,
            vote: NodeId::NONE,
            recovery_epoch: 0,
            current,
            previous: None,
            is_unsaid: false,
        }
    }

    /// A new group's, as this member is told of it.
    pub(crate) fn founded(config: &crate::config::Config) -> Self {
        let is_unsaid = config.says_founders && !config.voters.is_empty();
        Self { is_unsaid, ..Self::new(Members::of_voters(config.voters.iter().copied())) }
    }

    /// Term and vote together.
    pub fn ballot(&self) -> Ballot {
        Ballot { term: self.term, vote: self.vote }
    }

    /// Whether a state with `next` after `current` can be written.
    pub(crate) fn holds(current: &Members, next: &Members) -> bool {
        bytes_of(&rows(next, Some(current))) <= STATE_BYTES_MAX
    }

    fn is_plain(&self) -> bool {
        let is_first = self.current.index == Index::ZERO && self.previous.is_none() && !self.is_unsaid;
        is_first && self.current.members.is_plain()
    }

    /// The bytes for the storage.
    ///
    /// # Panics
    /// If the members need more than `STATE_BYTES_MAX`: the caller's mistake.
    pub fn encode(&self) -> SmallVec<[u8; STATE_BYTES_MAX]> {
        let rows = rows(&self.current.members, self.previous.as_ref().map(|previous| &previous.members));
        assert!(bytes_of(&rows) <= STATE_BYTES_MAX, "a group of {} members", rows.len());
        let mut out = Blob(SmallVec::new());
        out.put_u8(if self.is_plain() { PLAIN_VERSION } else { VERSION });
        out.put_u8(rows.len() as u8);
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        out.put_u16(flag(self.previous.is_some(), HAS_PREVIOUS) | flag(self.is_unsaid, IS_UNSAID));
        out.put_u32(self.recovery_epoch);
        out.put_u64(self.term.0);
        out.put_u64(self.vote.0);
        out.put_u64(self.current.index.0);
        out.put_u64(self.previous.as_ref().map_or(0, |previous| previous.index.0));
        for row in &rows {
            out.put_u64(row.id.0);
            out.put_u8(row.roles);
        }
        rows.iter().filter(|row| promotable(row.roles)).for_each(|row| out.put_u64(row.target.0));
        out.0
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no state, or one of a newer version: the group must not run on a guess.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > STATE_BYTES_MAX {
            return Err(DecodeError::Trailing { bytes: bytes.len() - STATE_BYTES_MAX });
        }
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version != VERSION && version != PLAIN_VERSION {
            return Err(DecodeError::Version { found: version, known: VERSION });
        }
        let count = usize::from(reader.u8()?);
        let flags = reader.u16()?;
        if flags & !(HAS_PREVIOUS | IS_UNSAID) != 0 {
            return Err(DecodeError::Field { field: "flags" });
        }
        let recovery_epoch = reader.u32()?;
        let (term, vote) = (Term(reader.u64()?), NodeId(reader.u64()?));
        if term.0 > NUMBER_MAX {
            return Err(DecodeError::Field { field: "term" });
        }
        let (index, previous_index) = (Index(reader.u64()?), Index(reader.u64()?));
        if index.0 > NUMBER_MAX || previous_index > index {
            return Err(DecodeError::Field { field: "configuration index" });
        }
        let (current, previous) = decode_members(&mut reader, count)?;
        if !reader.is_empty() {
            return Err(DecodeError::Trailing { bytes: reader.rest().len() });
        }
        let has_previous = flags & HAS_PREVIOUS != 0;
        if !has_previous && (!previous.is_empty() || previous_index > Index::ZERO) {
            return Err(DecodeError::Field { field: "previous configuration" });
        }
        let previous =
            has_previous.then(|| Box::new(Configured { index: previous_index, members: previous }));
        let current = Configured { index, members: current };
        let is_unsaid = flags & IS_UNSAID != 0;
        let state = Self { term, vote, recovery_epoch, current, previous, is_unsaid };
        // One spelling each: what version 1 can say is said in it.
        if state.is_plain() != (version == PLAIN_VERSION) {
            return Err(DecodeError::Field { field: "number of members" });
        }
        Ok(state)
    }
}

/// Both configurations' members.
fn decode_members(reader: &mut Reader<'_>, count: usize) -> Result<(Members, Members), DecodeError> {
    let mut rows: SmallVec<[Row; 8]> = SmallVec::new();
    for _ in 0..count {
        let (id, roles) = (NodeId(reader.u64()?), reader.u8()?);
        if roles == 0 || id <= rows.last().map_or(NodeId::NONE, |last| last.id) {
            return Err(DecodeError::Field { field: "member" });
        }
        rows.push(Row { id, roles, target: Index::ZERO });
    }
    let (mut current, mut previous) = (Members::default(), Members::default());
    for row in &rows {
        let target = if promotable(row.roles) { Index(reader.u64()?) } else { Index::ZERO };
        for (members, roles) in [(&mut current, row.roles & 15), (&mut previous, row.roles >> 4)] {
            if roles != 0 {
                let target = if roles & PROMOTABLE != 0 { target } else { Index::ZERO };
                members.push(Member { id: row.id, roles, target })?;
            }
        }
    }
    match current.is_sound() && previous.is_sound() {
        true => Ok((current, previous)),
        false => Err(DecodeError::Field { field: "voters" }),
    }
}

struct Blob(SmallVec<[u8; STATE_BYTES_MAX]>);

impl Sink for Blob {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}
