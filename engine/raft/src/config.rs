//! What a group is made from: its settings, and what the storage recovered of it.

use coracle_base::limits::{PEER_WINDOW_BYTES, PEER_WINDOW_MESSAGES, RUN_ENTRIES_MAX};
use coracle_base::{Index, NodeId, Term};
use smallvec::SmallVec;

use crate::{Breaks, HardState};

/// The voters of a group.
pub type Voters = SmallVec<[NodeId; 5]>;

/// A group's settings. Start from [`Config::new`].
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// The voters that the group was made with; a restored hard state knows better. Nobody: this node waits to be made
    /// a member, and learns from the leader who the others are.
    pub voters: Voters,
    /// An election that comes to nothing is followed by the next one after this long, at least; the first ones after a leader
    /// was lost come sooner, one member after the other.
    pub election_us_min: u64,
    /// And at most; each wait is drawn anew, so that two nodes rarely collide.
    pub election_us_max: u64,
    /// Seeds those draws; give every node of a group a different one.
    pub seed: u64,
    /// Seeds the order in which the members campaign when a leader is lost; the same on all nodes of a group, and different
    /// from group to group, so that the groups of a node that died spread over those that are left.
    pub order: u64,
    /// No further append goes to a member while this many bytes are unacknowledged (the last one may exceed it).
    pub window_bytes: u32,
    /// No further append goes to a member while this many are unacknowledged.
    pub window_messages: u32,
    /// Entries' bytes in one append, unless a single entry is larger.
    pub append_bytes_max: u32,
    /// Entries in one append.
    pub append_entries_max: u32,
    /// A member whose link is up and that owes an answer is asked again after this long.
    pub retry_us: u64,
    /// Not every member has to know who founded the group: its first leader says so in an entry, and until then only those who
    /// know can lead.
    pub says_founders: bool,
    /// Planted bugs; none without the feature `breaks`.
    pub breaks: Breaks,
}

impl Config {
    /// The default settings for member `id` of a group of `voters`.
    pub fn new(id: NodeId, voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            id,
            voters: voters.into_iter().collect(),
            election_us_min: 300_000,
            election_us_max: 600_000,
            seed: id.0,
            order: 0,
            window_bytes: PEER_WINDOW_BYTES,
            window_messages: PEER_WINDOW_MESSAGES,
            append_bytes_max: 256 * 1024,
            append_entries_max: RUN_ENTRIES_MAX,
            retry_us: 500_000,
            says_founders: false,
            breaks: Breaks::default(),
        }
    }
}

/// What the storage recovered of a group; [`Restored::default`] for a new one.
#[derive(Debug, Clone, Default)]
pub struct Restored<'a> {
    /// The newest durable hard state.
    pub hard_state: Option<HardState>,
    /// The newest durable snapshot: last index that it covers, and the term there.
    pub snapshot: Option<(Index, Term)>,
    /// The last entry; the snapshot's index if there is none above it.
    pub last: Index,
    /// The log above the snapshot: first index of each term, ascending.
    pub terms: &'a [(Index, Term)],
    /// `accepted_term` of the newest run.
    pub accepted_term: Term,
    /// The log may have lost acknowledged entries: the member neither campaigns nor votes, and what it acknowledges
    /// counts for nothing, until a leader has brought it up to everything it can have acknowledged.
    pub suspect: bool,
    /// Votes may be forgotten, too, as by an older copy of the directory: until all other voters have answered it gives none.
    pub votes_lost: bool,
    /// The others may know that this is an older copy: for so long it neither votes nor campaigns nor acknowledges, unless
    /// the links to all other voters were up before.
    pub hold_us: u64,
}
