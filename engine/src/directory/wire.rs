//! The directory's words: commands, questions, answers, and its state in a snapshot. Pure: bytes in, values out.
//!
//! ```text
//!   name       u8 bytes, UTF-8             argument   u16 bytes, any
//!   seats      u8 count, each: node u64, incarnation u64, by node
//!   group      uid u64, name, argument, u8 (1: founded by all nodes there were), seats (founders), seats (members),
//!              index u64 (of the members)
//!
//!   command    version u8 = 1, then   1 create   name, argument, u8 (1: all nodes there are), seats
//!                                     2 delete   name, u8 (0: whichever it is, 1: this one), uid u64
//!                                     3 members  uid u64, index u64, seats
//!                                     4 skip     u64: how often the directory was cut down to one member by force
//!   question   version u8 = 1, then   1 look up  name
//!                                     2 list     prefix: name (may be empty), after: name (may be empty), u16 groups at most
//!                                     3 nothing: whoever asks wants to know when all that was committed is applied
//!   answer     create                 u8: 1 new, 2 same, 3 taken, each with a group; 4 full, 5 refused
//!              delete                 u8: 1 gone, 2 other, each with a group; 3 not there
//!              look up                u8: 0 none, or 1 and a group
//!              list                   u8: 0 or 1, there are more; u16 count, groups
//!   state      version u8 = 1, the next uid u64, skipped u64, u32 count, groups by uid
//! ```

use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::MEMBERS_MAX;
use coracle_base::{GroupId, Index, NodeId};

use super::{ARGUMENT_BYTES_MAX, Created, Deleted, NAMES_MAX, NamedGroup, PAGE_MAX, Page, Seat, is_drawn};
use crate::machine::Wire;

const VERSION: u8 = 1;

/// What changes the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// `of_all`: whoever wished for it named nobody, and these are all nodes that there were.
    Create {
        name: String,
        argument: Vec<u8>,
        of_all: bool,
        founders: Vec<Seat>,
    },
    Delete {
        name: String,
        id: Option<GroupId>,
    },
    Members {
        id: GroupId,
        index: Index,
        members: Vec<Seat>,
    },
    /// What was drawn may be forgotten: by force this is not the log that it was.
    Skip {
        epoch: u64,
    },
}

/// What is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    LookUp(String),
    List { prefix: String, after: String, count: u16 },
    Nothing,
}

/// It is not what it ought to be.
const WRONG: Truncated = Truncated { missing: 0 };

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Longer ones are refused before they come here.
    let bytes = text.len().min(usize::from(u8::MAX));
    out.put_u8(bytes as u8);
    out.put(&text.as_bytes()[..bytes]);
}

fn text(reader: &mut Reader<'_>) -> Result<String, Truncated> {
    let bytes = usize::from(reader.u8()?);
    String::from_utf8(reader.bytes(bytes)?.to_vec()).map_err(|_| WRONG)
}

fn put_argument(out: &mut Vec<u8>, argument: &[u8]) {
    let argument = &argument[..argument.len().min(ARGUMENT_BYTES_MAX)];
    out.put_u16(argument.len() as u16);
    out.put(argument);
}

fn argument(reader: &mut Reader<'_>) -> Result<Vec<u8>, Truncated> {
    let bytes = usize::from(reader.u16()?);
    match bytes <= ARGUMENT_BYTES_MAX {
        true => Ok(reader.bytes(bytes)?.to_vec()),
        false => Err(WRONG),
    }
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, Truncated> {
    match reader.u8()? {
        flag @ (0 | 1) => Ok(flag == 1),
        _ => Err(WRONG),
    }
}

fn put_seats(out: &mut Vec<u8>, seats: &[Seat]) {
    out.put_u8(seats.len() as u8);
    for seat in seats {
        out.put_u64(seat.node.0);
        out.put_u64(seat.incarnation);
    }
}

fn seats(reader: &mut Reader<'_>) -> Result<Vec<Seat>, Truncated> {
    let count = usize::from(reader.u8()?);
    if count > MEMBERS_MAX {
        return Err(WRONG);
    }
    let mut seats = Vec::with_capacity(count);
    for _ in 0..count {
        seats.push(Seat { node: NodeId(reader.u64()?), incarnation: reader.u64()? });
    }
    Ok(seats)
}

pub(super) fn put_group(out: &mut Vec<u8>, group: &NamedGroup) {
    out.put_u64(group.id.0);
    put_text(out, &group.name);
    put_argument(out, &group.argument);
    out.put_u8(group.of_all.into());
    put_seats(out, &group.founders);
    put_seats(out, &group.members);
    out.put_u64(group.members_index.0);
}

fn group(reader: &mut Reader<'_>) -> Result<NamedGroup, Truncated> {
    let group = NamedGroup {
        id: GroupId(reader.u64()?),
        name: text(reader)?,
        argument: argument(reader)?,
        of_all: flag(reader)?,
        founders: seats(reader)?,
        members: seats(reader)?,
        members_index: Index(reader.u64()?),
    };
    if is_drawn(group.id) { Ok(group) } else { Err(WRONG) }
}

/// What `read` makes of all of the bytes.
fn whole<T>(bytes: &[u8], read: impl FnOnce(&mut Reader<'_>) -> Result<T, Truncated>) -> Option<T> {
    let mut reader = Reader::new(bytes);
    let value = read(&mut reader).ok()?;
    reader.is_empty().then_some(value)
}

impl Wire for Command {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(VERSION);
        match self {
            Self::Create { name, argument, of_all, founders } => {
                out.put_u8(1);
                put_text(out, name);
                put_argument(out, argument);
                out.put_u8((*of_all).into());
                put_seats(out, founders);
            }
            Self::Delete { name, id } => {
                out.put_u8(2);
                put_text(out, name);
                out.put_u8(id.is_some().into());
                out.put_u64(id.map_or(0, |id| id.0));
            }
            Self::Members { id, index, members } => {
                out.put_u8(3);
                out.put_u64(id.0);
                out.put_u64(index.0);
                put_seats(out, members);
            }
            Self::Skip { epoch } => {
                out.put_u8(4);
                out.put_u64(*epoch);
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| match (reader.u8()?, reader.u8()?) {
            (VERSION, 1) => Ok(Self::Create {
                name: text(reader)?,
                argument: argument(reader)?,
                of_all: flag(reader)?,
                founders: seats(reader)?,
            }),
            (VERSION, 2) => {
                let (name, is_exact, id) = (text(reader)?, flag(reader)?, GroupId(reader.u64()?));
                Ok(Self::Delete { name, id: is_exact.then_some(id) })
            }
            (VERSION, 3) => Ok(Self::Members {
                id: GroupId(reader.u64()?),
                index: Index(reader.u64()?),
                members: seats(reader)?,
            }),
            (VERSION, 4) => Ok(Self::Skip { epoch: reader.u64()? }),
            _ => Err(WRONG),
        })
    }
}

impl Wire for Ask {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(VERSION);
        match self {
            Self::LookUp(name) => {
                out.put_u8(1);
                put_text(out, name);
            }
            Self::List { prefix, after, count } => {
                out.put_u8(2);
                put_text(out, prefix);
                put_text(out, after);
                out.put_u16(*count);
            }
            Self::Nothing => out.put_u8(3),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| match (reader.u8()?, reader.u8()?) {
            (VERSION, 1) => Ok(Self::LookUp(text(reader)?)),
            (VERSION, 2) => {
                Ok(Self::List { prefix: text(reader)?, after: text(reader)?, count: reader.u16()? })
            }
            (VERSION, 3) => Ok(Self::Nothing),
            _ => Err(WRONG),
        })
    }
}

impl Wire for Created {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, group) = match self {
            Self::New(group) => (1, Some(group)),
            Self::Same(group) => (2, Some(group)),
            Self::Taken(group) => (3, Some(group)),
            Self::Full => (4, None),
            Self::Refused => (5, None),
        };
        out.put_u8(kind);
        group.into_iter().for_each(|group| put_group(out, group));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| match reader.u8()? {
            1 => group(reader).map(Self::New),
            2 => group(reader).map(Self::Same),
            3 => group(reader).map(Self::Taken),
            4 => Ok(Self::Full),
            5 => Ok(Self::Refused),
            _ => Err(WRONG),
        })
    }
}

impl Wire for Deleted {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, group) = match self {
            Self::Gone(group) => (1, Some(group)),
            Self::Other(group) => (2, Some(group)),
            Self::NotThere => (3, None),
        };
        out.put_u8(kind);
        group.into_iter().for_each(|group| put_group(out, group));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| match reader.u8()? {
            1 => group(reader).map(Self::Gone),
            2 => group(reader).map(Self::Other),
            3 => Ok(Self::NotThere),
            _ => Err(WRONG),
        })
    }
}

impl Wire for Option<NamedGroup> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.is_some().into());
        self.iter().for_each(|group| put_group(out, group));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| match reader.u8()? {
            0 => Ok(None),
            1 => group(reader).map(Some),
            _ => Err(WRONG),
        })
    }
}

impl Wire for Page {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.next.is_some().into());
        out.put_u16(self.groups.len() as u16);
        self.groups.iter().for_each(|group| put_group(out, group));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| {
            let (has_more, count) = (reader.u8()? != 0, usize::from(reader.u16()?));
            if count > PAGE_MAX {
                return Err(WRONG);
            }
            let mut groups = Vec::with_capacity(count);
            for _ in 0..count {
                groups.push(group(reader)?);
            }
            let last = groups.last().map(|group| group.name.clone());
            Ok(Self { groups, next: last.filter(|_| has_more) })
        })
    }
}

/// Appends what the state begins with; so many groups follow, by uid, each as [`put_group`] writes it.
pub(super) fn put_head(out: &mut Vec<u8>, next: GroupId, skipped: u64, count: usize) {
    out.put_u8(VERSION);
    out.put_u64(next.0);
    out.put_u64(skipped);
    out.put_u32(count as u32);
}

/// Reads a state as [`put_head`] begins it: the next uid, how far uids were skipped, and the groups.
pub(super) fn state(bytes: &[u8]) -> Option<(GroupId, u64, Vec<NamedGroup>)> {
    whole(bytes, |reader| {
        let (version, next, skipped) = (reader.u8()?, GroupId(reader.u64()?), reader.u64()?);
        let count = reader.u32()? as usize;
        if version != VERSION || !is_drawn(next) || count > NAMES_MAX {
            return Err(WRONG);
        }
        let mut groups: Vec<NamedGroup> = Vec::new();
        for _ in 0..count {
            let group = group(reader)?;
            if group.id >= next || groups.last().is_some_and(|last| last.id >= group.id) {
                return Err(WRONG);
            }
            groups.push(group);
        }
        Ok((next, skipped, groups))
    })
}
