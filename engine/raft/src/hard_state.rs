//! What a group must never forget: its term, its vote and who its voters are. The storage keeps it as an opaque blob.
//!
//! ```text
//!   offset  size  field             (little-endian)
//!   0       1     version           1
//!   1       1     members           1..=MEMBERS_MAX
//!   2       2     flags             0; an unknown bit must be understood, so the blob is refused
//!   4       4     recovery_epoch    raised by a forced repair only
//!   8       8     term
//!   16      8     vote              0: nobody
//!   24      8     config_index      entry of the configuration in force; 0: the one that the group was made with
//!   32      8     previous_index    entry of the configuration before it; 0 while there is none
//!   40      9*n   members           node id (8), roles (1): bit 0 voter. Bits 1-3 are kept for learners and for the
//!                                   roles in the previous configuration, so that two configurations share one list
//! ```
//!
//! Invariant: an encoded state is at most `STATE_BYTES_MAX` bytes, with any number of members.

use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::{MEMBERS_MAX, STATE_BYTES_MAX};
use coracle_base::{NodeId, Term};
use smallvec::SmallVec;

use crate::config::Voters;
use crate::message::{DecodeError, NUMBER_MAX};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 40;
const MEMBER_BYTES: usize = 9;
const ROLE_VOTER: u8 = 1;

const _: () = assert!(HEADER_BYTES + MEMBERS_MAX * MEMBER_BYTES <= STATE_BYTES_MAX);

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
    /// The voters, ascending.
    pub voters: Voters,
}

impl HardState {
    /// Term and vote together.
    pub fn ballot(&self) -> Ballot {
        Ballot { term: self.term, vote: self.vote }
    }

    /// The bytes for the storage.
    ///
    /// # Panics
    /// If there are more than `MEMBERS_MAX` voters: the caller's mistake.
    pub fn encode(&self) -> SmallVec<[u8; STATE_BYTES_MAX]> {
        assert!(self.voters.len() <= MEMBERS_MAX, "a group has at most {MEMBERS_MAX} voters");
        let mut out = Blob(SmallVec::new());
        out.put_u8(VERSION);
        out.put_u8(self.voters.len() as u8);
        out.put_u16(0);
        out.put_u32(self.recovery_epoch);
        out.put_u64(self.term.0);
        out.put_u64(self.vote.0);
        out.put_u64(0);
        out.put_u64(0);
        for voter in &self.voters {
            out.put_u64(voter.0);
            out.put_u8(ROLE_VOTER);
        }
        out.0
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no state, or one of a newer version: the group must not run on a guess.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version { found: version, known: VERSION });
        }
        let members = usize::from(reader.u8()?);
        if members == 0 || members > MEMBERS_MAX {
            return Err(DecodeError::Field { field: "number of members" });
        }
        if reader.u16()? != 0 {
            return Err(DecodeError::Field { field: "flags" });
        }
        let recovery_epoch = reader.u32()?;
        let (term, vote) = (Term(reader.u64()?), NodeId(reader.u64()?));
        if term.0 > NUMBER_MAX {
            return Err(DecodeError::Field { field: "term" });
        }
        if reader.u64()? != 0 || reader.u64()? != 0 {
            return Err(DecodeError::Field { field: "configuration index" });
        }
        let mut voters = Voters::new();
        for _ in 0..members {
            let voter = NodeId(reader.u64()?);
            if reader.u8()? != ROLE_VOTER {
                return Err(DecodeError::Field { field: "member's role" });
            }
            if voter == NodeId::NONE || voters.last().is_some_and(|&last| last >= voter) {
                return Err(DecodeError::Field { field: "member" });
            }
            voters.push(voter);
        }
        if !reader.is_empty() {
            return Err(DecodeError::Trailing { bytes: reader.rest().len() });
        }
        Ok(Self { term, vote, recovery_epoch, voters })
    }
}

struct Blob(SmallVec<[u8; STATE_BYTES_MAX]>);

impl Sink for Blob {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}
