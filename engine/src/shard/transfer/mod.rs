//! Snapshots from one member to another: of any size, a chunk at a time, with the entries that live on below them.
//!
//! ```text
//!   has one                                     needs one
//!      │ ── offer (which, how much) ──────────────→ │  opens the part that an earlier try left, or begins one
//!      │ ←───────────── want chunks n .. n+window ─ │
//!      │ ══ chunk n, chunk n+1, … ════════════════→ │  each goes to the part; half a window later more is wanted
//!      │ ←──────────────────── want live entries i ─│  when all chunks are there
//!      │ ══ runs from i on, and what comes next ══→ │  Place records: invisible
//!      │                                            │  part → file, durable → Raft decides → mark: file and entries count
//!   ── on the control connection, ══ on the bulk connection
//! ```
//!
//! The receiver leads: it asks for what it lacks, so an answer that is lost is asked for again, and one that is late or
//! doubled names a chunk that is not the next one. Everything names its snapshot (index, term, bytes, checksum): nothing of
//! two snapshots is ever mixed, whatever connection it comes from, and another member that has the very same one may go on
//! where the first one stopped.
//!
//! Invariants: (1) Raft hears of a snapshot when its file is durable and its live entries are staged before the mark; (2) no
//! own snapshot of the group is staged meanwhile, which would drop them; (3) both sides hold a window of chunks at most a
//! transfer, and a few transfers at a time; (4) a part is removed when the group does not need it any more.

pub(crate) mod receive;
pub(crate) mod send;
pub(crate) mod wire;

use coracle_base::{GroupId, NodeId};
use coracle_io::{Clock, Disk, Net};

use super::Shard;
use super::groups::{Held, Slot};
use crate::transport::envelope::{Builder, EnvelopeError, Kind, Piece};
use wire::{Chunk, Key, Live, Offer, Want};

/// Chunks that may be on their way in one transfer.
const WINDOW_CHUNKS: u64 = 8;
/// What is asked for again when nothing has come of it.
const ASK_AGAIN_US: u64 = 500_000;
/// A transfer that nothing was heard of for so long is put aside.
const PATIENCE_US: u64 = 5_000_000;

impl Slot {
    /// What other members call its newest snapshot.
    fn snapshot_key(&self) -> Option<Key> {
        let held = self.snapshot.as_ref()?;
        let (bytes, crc) = match held {
            Held::Inline(one) => (one.bytes.len() as u64, coracle_base::checksum::crc32c(&one.bytes)),
            Held::File { file, .. } => (file.bytes, file.crc),
        };
        Some(Key { index: held.index(), term: held.term(), bytes, crc })
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A message of a transfer.
    pub(super) fn on_transfer(&mut self, node: NodeId, piece: Piece<'_>) -> Result<(), EnvelopeError> {
        let Piece { kind, group, fields, payload } = piece;
        let slot = self.by_group.get(&group).copied();
        if !payload.is_empty() && matches!(kind, Kind::Offer | Kind::Want) {
            return Err(EnvelopeError::Message("bytes that belong to no message".into()));
        }
        match kind {
            Kind::Offer => {
                let offer = Offer::decode(fields)?;
                if let Some(slot) = slot {
                    self.on_offer(slot, node, offer);
                }
            }
            Kind::Want => {
                let want = Want::decode(fields)?;
                slot.into_iter().for_each(|slot| self.on_want(slot, node, want));
            }
            Kind::Chunk => {
                let chunk = Chunk::decode(fields)?;
                slot.into_iter().for_each(|slot| self.on_chunk(slot, chunk, payload));
            }
            _ => {
                let live = Live::decode(fields)?;
                slot.map_or(Ok(()), |slot| self.on_live(slot, live, payload))?;
            }
        }
        Ok(())
    }
}

fn push_offer(envelope: Option<&mut Builder>, group: GroupId, offer: &Offer) {
    if let Some(envelope) = envelope {
        envelope.push(Kind::Offer, group, false, |out| offer.encode(out), |_| {});
    }
}

fn push_want(envelope: Option<&mut Builder>, group: GroupId, want: &Want) {
    if let Some(envelope) = envelope {
        envelope.push(Kind::Want, group, false, |out| want.encode(out), |_| {});
    }
}

/// A transfer in the log of messages.
#[derive(Debug, Clone, Copy)]
struct With(NodeId, Key);

impl std::fmt::Display for With {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Key { index, bytes, .. } = self.1;
        write!(f, "snapshot of {bytes} bytes up to entry {index}, node {}", self.0)
    }
}
