//! One shard: many groups, one WAL, one set of links, one thread. A state machine over its disk, network and clock:
//! [`Shard::turn`] is all that happens, in production and in the simulator alike.
//!
//! Invariants: (1) nothing leaves the shard before what it depends on is durable (the Raft core holds it back until the
//! WAL has proved it); (2) every command is answered exactly once, however the shard ends (a panic of its thread may lose the one
//! that it met); (3) every buffer is bounded, and refuses early.

mod apply;
mod boots;
mod cache;
mod compact;
mod elections;
mod forward;
mod give_up;
pub(crate) mod groups;
pub(crate) mod inbox;
mod lost;
pub(crate) mod members;
pub(crate) mod names;
mod parked;
pub(crate) mod places;
pub(crate) mod queries;
mod read_index;
mod readings;
mod reads;
mod receive;
mod remove;
pub(crate) mod replies;
mod restore;
mod room;
mod shrink;
pub(crate) mod snapshots;
mod stall;
mod start;
pub(crate) mod status;
mod step;
mod stop;
mod sweep;
pub(crate) mod transfer;
mod turn;
mod versions;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use coracle_base::{GroupId, Index, NodeId, Term};
use coracle_io::{Clock, Disk, DiskDone, DiskError, Net, NetError, NetEvent};
use coracle_raft::{Output, PersistSeq};
use coracle_wal::{BatchSeq, RecoveredGroup, Wal, WalError};

use crate::transport::{LinkEvent, Transport};
use boots::Boots;
use compact::Compaction;
use elections::Elections;
use forward::Forwards;
use groups::Slot;
use inbox::{Inbox, Origin};
use names::Names;
use places::Places;
use read_index::IndexReads;
use reads::Reader;
use remove::Removed;
use replies::{ClientQueue, Completions};
use snapshots::Snapshots;
use stall::Stall;
use sweep::Sweeping;

pub use status::{GroupStatus, ShardStatus};
pub use turn::Turn;

#[cfg(feature = "fuzz")]
pub(crate) use forward::check_replies;
#[cfg(feature = "fuzz")]
pub(crate) use read_index::check_indexes;
#[cfg(feature = "fuzz")]
pub(crate) use receive::check_payload;

/// Why a shard stopped.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ShardError {
    /// Its log cannot be written any more.
    #[error("write-ahead log: {0}")]
    Wal(#[from] WalError),
    /// Its disk driver failed.
    #[error("disk: {0}")]
    Disk(#[from] DiskError),
    /// Its network driver failed.
    #[error("network: {0}")]
    Net(#[from] NetError),
    /// It was asked to.
    #[error("stopped")]
    Stopped,
}

/// What a shard needs to know of its node.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) node: NodeId,
    /// The nodes that were there when the cluster was formed, and still are: the first members of a group that names none,
    /// and of one that does, those of them that are here.
    pub(crate) founders: Vec<NodeId>,
    pub(crate) election_us: u64,
    pub(crate) disk_stall_us: u64,
    pub(crate) command_timeout_us: u64,
    pub(crate) entry_cache_bytes: usize,
    /// The data directory, for readers with handles of their own.
    pub(crate) root: Arc<Path>,
    pub(crate) min_snapshot_interval: u64,
    pub(crate) min_checkpoint_interval: u64,
    pub(crate) max_checkpoints: usize,
    pub(crate) min_recovery_checkpoint_interval: u64,
    pub(crate) seed: u64,
    #[cfg(feature = "breaks")]
    pub(crate) breaks: crate::breaks::Breaks,
}

/// What a durable batch makes true.
#[derive(Debug, Clone, Copy)]
enum OnDurable {
    Persisted { slot: u32, seq: PersistSeq },
    Released { slot: u32, index: Index, term: Term },
}

/// What an entry read from the WAL's files is for.
#[derive(Debug, Clone, Copy)]
enum ReadFor {
    Apply { slot: u32 },
    Follower { slot: u32, to: NodeId },
}

/// One thread's worth of Coracle.
pub(crate) struct Shard<D: Disk, N: Net, C: Clock> {
    settings: Settings,
    disk: D,
    net: N,
    clock: C,
    wal: Wal,
    compaction: Compaction,
    transport: Transport,
    inbox: Arc<Inbox<N::Socket>>,
    /// Other shards' inboxes, for connections that are theirs.
    siblings: Vec<Arc<Inbox<N::Socket>>>,
    places: Places,
    names: Names,
    removed: Removed,
    boots: Boots,
    slots: Vec<Slot>,
    by_group: BTreeMap<GroupId, u32>,
    /// Found on disk, and not started yet.
    recovered: BTreeMap<GroupId, RecoveredGroup>,
    /// Recovery found that records are missing, of groups that it cannot name.
    incomplete: bool,
    /// Groups with inputs since their last drain.
    dirty: Vec<u32>,
    /// Groups with committed entries that are not applied.
    applying: Vec<u32>,
    sweeping: Sweeping,
    timers: BTreeSet<(u64, u32)>,
    on_durable: VecDeque<(BatchSeq, OnDurable)>,
    reads: BTreeMap<u64, ReadFor>,
    readers: BTreeMap<u64, Reader>,
    snapshots: Snapshots,
    next_token: u64,
    forwards: Forwards,
    index_reads: IndexReads,
    stall: Stall,
    elections: Elections,
    completions: Vec<(Arc<ClientQueue>, Completions)>,
    /// Bytes of entries in memory, and of commands that wait.
    arena_bytes: usize,
    /// The group that gave up its cached entries last.
    cache_hand: u32,
    waiting_bytes: usize,
    /// Bytes of entries taken in this turn, not in the WAL's open batch yet.
    unstaged_bytes: usize,
    now_us: u64,
    again: bool,
    status: ShardStatus,
    // Scratch, kept for its memory.
    outputs: Vec<Output>,
    disk_done: Vec<DiskDone>,
    net_events: Vec<NetEvent>,
    link_events: Vec<LinkEvent>,
    reply_scratch: Vec<u8>,
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Notes that a group has inputs, so that the next step drains it.
    fn touch(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        if !one.dirty {
            one.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Sets a group's timer to what it wants now.
    fn set_timer(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        let wanted = one.deadline_us();
        if one.timer_us != wanted {
            if let Some(old) = one.timer_us {
                self.timers.remove(&(old, slot));
            }
            if let Some(at) = wanted {
                self.timers.insert((at, slot));
            }
            one.timer_us = wanted;
        }
    }
}

/// What answering needs, apart from the groups: so that a group can be borrowed while its commands are answered.
struct Answers<'a> {
    completions: &'a mut Vec<(Arc<ClientQueue>, Completions)>,
    transport: &'a mut Transport,
}

impl Answers<'_> {
    fn give(&mut self, origin: &Origin, tag: u64, outcome: &crate::Outcome<&[u8]>) {
        match origin {
            Origin::Client(queue) => {
                let known = self.completions.iter().rposition(|(one, _)| Arc::ptr_eq(one, queue));
                let at = known.unwrap_or_else(|| {
                    self.completions.push((queue.clone(), queue.gather()));
                    self.completions.len() - 1
                });
                self.completions[at].1.push(tag, outcome);
            }
            Origin::Slot(slot) => slot.fill(outcome.to_owned()),
            Origin::Peer { node, session, request } => {
                let current = self.transport.link(*node).and_then(|link| link.session()).map(|one| one.id);
                if current == Some(*session)
                    && let Some(envelope) = self.transport.envelope(*node)
                {
                    forward::push_reply(envelope, *request, tag, outcome);
                }
            }
        }
    }
}
