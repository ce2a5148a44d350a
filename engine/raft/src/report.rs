//! What a group says of itself: plain questions for the driver, and an overview for metrics. Nothing changes here.

use alloc::vec::Vec;

use coracle_base::{Index, NodeId, Term};

use crate::group::{Group, Role};
use crate::progress::{Mode, Peer};
use crate::{Ballot, HardState, Members};

/// How a leader sends to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerMode {
    /// Its link is down.
    Down,
    /// Where its log agrees is being found out.
    Probe,
    /// Entries flow.
    Stream,
    /// Entries flow, from disk at the moment.
    Fetching,
    /// It needs a snapshot first.
    Snapshot,
}

/// A leader's view of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerOverview {
    /// Which.
    pub id: NodeId,
    /// How it is fed.
    pub mode: PeerMode,
    /// Durable there and agreed, as it said since its link is up: what counts for commit.
    pub match_index: Index,
    /// The most that it acknowledged in this term, over all sessions of its link.
    pub held: Index,
    /// Sent to it next.
    pub next_index: Index,
    /// Appends without an acknowledgement.
    pub inflight_messages: u32,
    /// Their bytes.
    pub inflight_bytes: u64,
    /// It may have lost entries and counts for nothing at the moment.
    pub suspect: bool,
}

/// A group at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// What we are.
    pub role: Role,
    /// Who leads, as far as we know.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: Term,
    /// The vote in it.
    pub vote: NodeId,
    /// First entry held.
    pub first: Index,
    /// Last entry.
    pub last: Index,
    /// Last durable entry.
    pub durable: Index,
    /// Last committed entry.
    pub commit: Index,
    /// Writes asked for and not answered.
    pub writes_in_flight: usize,
    /// Reads that wait to be confirmed.
    pub reads_pending: usize,
    /// The members in force.
    pub members: Members,
    /// Whom leadership is being handed to.
    pub transfer: Option<NodeId>,
    /// The other members; what is said of their logs is up to date on a leader only.
    pub peers: Vec<PeerOverview>,
}

impl Group {
    /// This node.
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// What we are at the moment.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether this member has all that was committed when its leader first spoke in the present session of their link: in a
    /// later term than this leader's nothing is, and what is of its term has all before it (leader completeness).
    pub fn knows_what_its_leader_said(&self) -> bool {
        let is_of_its_term = self.log.term_at(self.commit) == Some(self.state.term);
        let is_told = self.told_commit.is_some_and(|told| self.commit >= told);
        self.role == Role::Follower && self.leader_live && is_of_its_term && is_told
    }

    /// Whether we lead.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// The current term; also the `accepted_term` of runs that a `Persist` names.
    pub fn term(&self) -> Term {
        self.state.term
    }

    /// Who leads, as far as we know.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// Last committed entry.
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// First entry that is not released; one past `last` if none is held.
    pub fn first(&self) -> Index {
        self.log.first()
    }

    /// Last entry.
    pub fn last(&self) -> Index {
        self.log.last()
    }

    /// The term of an entry; `None` if it is released or not there yet. The last released one is still known.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// Last entry that is durable here. It may fall when a conflicting tail is cut.
    pub fn durable(&self) -> Index {
        self.ring.durable().get()
    }

    /// Writes asked for and not answered.
    pub fn writes_in_flight(&self) -> usize {
        self.ring.in_flight()
    }

    /// The hard state in force; it may not be durable yet.
    pub fn hard_state(&self) -> &HardState {
        &self.state
    }

    /// The members in force: those of the newest configuration in the log, committed or not.
    pub fn members(&self) -> &Members {
        &self.state.current.members
    }

    /// Whether the members in force are so for good: the entry that made them so is committed.
    pub fn members_are_settled(&self) -> bool {
        self.state.current.index <= self.commit
    }

    /// Term of the leader that the newest written entries came from.
    pub fn accepted_term(&self) -> Term {
        self.accepted_term
    }

    /// Whether the log may have lost acknowledged entries.
    pub fn suspect(&self) -> bool {
        self.suspect
    }

    /// The entries after this index are still to be sent to some member whose link is up, so the driver does well to keep
    /// them in memory. Not a leader: everything was sent that ever will be.
    pub fn acknowledged_by_reachable(&self) -> Index {
        let reachable = self.peers.iter().filter(|peer| peer.link_up && peer.is_fed() && self.is_leader());
        reachable.map(Peer::surely_holds).min().unwrap_or(self.last())
    }

    /// Everything at a glance, for metrics and people. It allocates.
    pub fn overview(&self) -> Overview {
        let Ballot { term, vote } = self.ballot();
        Overview {
            role: self.role,
            leader: self.leader,
            term,
            vote,
            first: self.first(),
            last: self.last(),
            durable: self.durable(),
            commit: self.commit,
            writes_in_flight: self.ring.in_flight(),
            reads_pending: self.reads.pending(),
            members: self.members().clone(),
            transfer: self.transferring(),
            peers: self.peers.iter().filter(|peer| peer.is_fed()).map(Self::peer_overview).collect(),
        }
    }

    fn peer_overview(peer: &Peer) -> PeerOverview {
        let (inflight_messages, inflight_bytes) = peer.inflight();
        let mode = match peer.mode {
            _ if !peer.link_up => PeerMode::Down,
            Mode::Probe { .. } => PeerMode::Probe,
            Mode::Stream if peer.fetching() => PeerMode::Fetching,
            Mode::Stream => PeerMode::Stream,
            Mode::Snapshot { .. } => PeerMode::Snapshot,
        };
        PeerOverview {
            id: peer.id,
            mode,
            match_index: peer.match_index,
            held: peer.held,
            next_index: peer.next_index,
            inflight_messages,
            inflight_bytes,
            suspect: peer.doubt.is_some(),
        }
    }
}
