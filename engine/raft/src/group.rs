//! One member of one Raft group. Everything that can happen is an [`Input`] to [`Group::step`]; once a turn
//! [`Group::drain`] says what has to leave: one write, one acknowledgement, appends within the windows, the commit index.
//!
//! ```text
//!   leader   propose ─┬─> drain: Persist ──────── disk ───────> Persisted ─┐
//!                     └─────────> Append ─> follower: Store                ├─> drain: Commit ─> Append (commit)
//!                                           drain: Persist ─ disk ─> reply ┘
//! ```
//!
//! Two rules keep drivers simple. An output is safe to act on the moment it is returned: votes, terms and
//! acknowledgements wait inside until the disk has answered. And time is handed in: [`Group::deadline_us`] says when the
//! next `Tick` is wanted, which for an idle group is never.
//!
//! Invariants (checked after every step and drain): (1) `snapshot <= commit <= last`; commit and term never fall;
//! (2) `durable <= written <= last`; (3) a leader's ballot is durable, and no member's match exceeds its log.

use alloc::boxed::Box;
use alloc::vec::Vec;

use coracle_base::limits::MEMBERS_MAX;
use coracle_base::{Index, NodeId, Term};
use smallvec::SmallVec;

use crate::election::Owed;
use crate::follow::Received;
use crate::log::Log;
use crate::loss::DataLoss;
use crate::message::Message;
use crate::persist::{PersistRing, PersistSeq};
use crate::progress::Peer;
use crate::quorum::Tally;
use crate::read_index::Reads;
use crate::recall::{Hold, Recall};
use crate::transfer::Transfer;
use crate::{Config, HardState, Members, Restored};

/// What a member is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Everything that can happen to a group, but for `propose`, `read` and what an operator wants of it.
#[derive(Debug)]
pub enum Input {
    /// The time has come that `deadline_us` named.
    Tick,
    /// A member of the group said something.
    Receive {
        /// Which member.
        from: NodeId,
        /// What.
        message: Message,
    },
    /// Every `Persist` up to this one is durable.
    Persisted(PersistSeq),
    /// A session of the link to that node has begun. Every link starts down.
    LinkUp(NodeId),
    /// The session is over: nothing that was on the way arrives any more.
    LinkDown(NodeId),
    /// What was recovered is less than what this member said to be durable: votes of it may be forgotten.
    VotesLost,
    /// Our own snapshot is durable: the log up to it is gone. `index` was applied and durable.
    Released {
        /// Last index that the snapshot covers.
        index: Index,
        /// The term there.
        term: Term,
    },
    /// What `Output::Fetch` asked for is in memory: `count` entries from `first` on, at least one. If they are still
    /// wanted, a `Send` with an `Append` of exactly these follows; otherwise nothing does, and they may be dropped.
    Fetched {
        /// The member that they are for.
        to: NodeId,
        /// The first one.
        first: Index,
        /// How many.
        count: u32,
        /// Bytes of all of them.
        bytes: u32,
    },
    /// What `Output::Fetch` asked for cannot be read (now, or any more). Each `Fetch` is answered exactly once.
    FetchFailed {
        /// The member that it was for.
        to: NodeId,
    },
}

/// Everything a group can ask for. Safe to act on the moment it is returned, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The entries of the append just received, from `first` on, replace the log's tail at and after `first`.
    Store {
        /// The first entry that is new.
        first: Index,
    },
    /// We lead now: the log goes on with an entry without payload (`EntryKind::Noop`) at `index`.
    AppendNoop {
        /// Its index.
        index: Index,
        /// Its term, the group's.
        term: Term,
    },
    /// The members change: the log goes on with an entry of kind `EntryKind::Config` at `index`, whose payload is
    /// `Members::encode` of these.
    AppendMembers {
        /// Its index.
        index: Index,
        /// Its term, the group's.
        term: Term,
        /// The members from this entry on.
        members: Members,
    },
    /// Leadership is not being handed over any more, and we still lead: commands may be proposed again.
    TransferEnded,
    /// Make these durable in one batch, then answer `Persisted`. The runs' `accepted_term` is `Group::term()`. At most
    /// one a drain. A hard state and the first entries must be in one atomic write: a crash must not separate a change
    /// of members from the entries that it belongs to. Both parts may be `None` after an `Install`, which this write then covers.
    Persist {
        /// Its number.
        seq: PersistSeq,
        /// The hard state, if it changed.
        hard_state: Option<HardState>,
        /// First and last entry, as the log stands now.
        entries: Option<(Index, Index)>,
    },
    /// Say this to that member; lost messages are made up for. To an `Append` the driver adds the entries' bytes.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Entries that are not in memory are needed for a member: read some, from `first` on, and answer `Fetched` or
    /// `FetchFailed`. At most one is open for each member.
    Fetch {
        /// The member that they are for.
        to: NodeId,
        /// The first one.
        first: Index,
        /// The last that is of use; fewer are fine.
        last: Index,
    },
    /// A member is behind the released log: send it the newest snapshot, as `Message::Snapshot` with the group's term.
    SendSnapshot {
        /// To whom.
        to: NodeId,
    },
    /// The snapshot just received is accepted: stage it for the write-ahead log and reset machine and log to it. It is
    /// committed as it is (no `Commit` follows), and covered by the `Persist` of the next drain.
    Install {
        /// Last index that it covers.
        index: Index,
        /// The term there.
        term: Term,
    },
    /// Everything up to here is committed.
    Commit {
        /// Last committed index.
        upto: Index,
    },
    /// The read may be answered once everything up to `index` is applied.
    ReadReady {
        /// As given to `read`.
        token: u64,
        /// What the answer has to include.
        index: Index,
    },
    /// We stopped leading before the read could be confirmed: it was not done.
    ReadFailed {
        /// As given to `read`.
        token: u64,
    },
    /// Role, leader or term changed.
    Role {
        /// What we are.
        role: Role,
        /// Who leads, as far as we know.
        leader: Option<NodeId>,
        /// The term.
        term: Term,
    },
    /// This member was suspect and holds everything that it may have acknowledged again: the storage may forget the
    /// damage.
    CaughtUp,
    /// This member acknowledged everything up to `index` in this term and does not hold it any more, though its recovery
    /// found nothing amiss: it is suspect from now on. The storage has to remember that, and somebody should look at
    /// the disk.
    LostAcknowledged {
        /// The last entry that it acknowledged.
        index: Index,
    },
    /// So few members have a sound log that nobody can say what was committed: the group stands still until an operator shrinks
    /// it. Said once, until that is over ([`Group::data_loss`]).
    DataLost(DataLoss),
    /// A leader's log contradicts an entry that is committed here: two majorities, a damaged disk or a lie. Nothing was
    /// changed; stop the group and raise an alarm.
    Diverged {
        /// The committed entry.
        index: Index,
    },
}

/// Which entries the driver holds in memory.
pub trait Sizes {
    /// The largest prefix of `first..=last` within `max_bytes`, though at least one entry.
    fn fit(&self, first: Index, last: Index, max_bytes: u32) -> Fit;
}

/// The answer of [`Sizes::fit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// In memory.
    Resident {
        /// Last entry of the prefix.
        last: Index,
        /// Bytes of the prefix.
        bytes: u32,
    },
    /// The first entry is not in memory.
    OnDisk,
}

/// Where proposed entries went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposed {
    /// Index of the first one.
    pub first: Index,
    /// Their term. An index names an entry only together with its term.
    pub term: Term,
}

/// Only a leader can do this; nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the leader in term {term}; leader: {leader:?}")]
pub struct NotLeader {
    /// Who leads, as far as we know.
    pub leader: Option<NodeId>,
    /// In which term.
    pub term: Term,
}

/// One member of one Raft group.
#[derive(Debug)]
pub struct Group {
    pub(crate) config: Config,
    pub(crate) state: HardState,
    /// Every other node that is a member, or that has a link to us.
    pub(crate) peers: Vec<Peer>,
    /// The members changed since the hard state was written.
    pub(crate) members_unwritten: bool,
    pub(crate) log: Log,
    pub(crate) ring: PersistRing,
    pub(crate) commit: Index,
    pub(crate) commit_reported: Index,
    /// A snapshot was accepted that no write covers yet.
    pub(crate) installing: bool,
    pub(crate) accepted_term: Term,
    /// There is a `recall`.
    pub(crate) suspect: bool,
    pub(crate) recall: Option<Box<Recall>>,
    pub(crate) recalls: u64,
    /// That data may be lost was said.
    pub(crate) loss_told: bool,
    pub(crate) hold: Option<Hold>,

    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    role_told: (Role, Option<NodeId>, Term),
    random: u64,
    pub(crate) election_at: Option<u64>,

    // Any role: answers that wait for the ballot to be durable.
    pub(crate) owed: SmallVec<[Owed; 4]>,
    /// We led this term and do not any more; the members do not know yet.
    pub(crate) resigned: Option<Term>,

    // Follower.
    /// The leader spoke in this session of its link, which is still up: it vouches for the leader.
    pub(crate) leader_live: bool,
    /// What the leader said to be committed when it first spoke in this session.
    pub(crate) told_commit: Option<Index>,
    /// The leader of this term has resigned.
    pub(crate) leader_gone: bool,
    /// Agrees with the leader of this term up to here.
    pub(crate) matched: Index,
    pub(crate) acked: Index,
    pub(crate) answer_due: bool,
    pub(crate) rejected: Option<(Index, Term)>,

    // Candidate.
    pub(crate) votes: Tally,
    /// The leader or an operator wants this election.
    pub(crate) forced: bool,

    // Leader.
    /// Our no-op: the first entry of our term.
    pub(crate) term_start: Index,
    pub(crate) tally_due: bool,
    pub(crate) reads: Reads,
    /// We step down then, unless a majority's links are back.
    pub(crate) quorum_at: Option<u64>,
    pub(crate) retry_at: Option<u64>,
    /// What follows from a committed change of members is to be done then.
    pub(crate) change_at: Option<u64>,
    pub(crate) transfer: Option<Transfer>,
    /// The last member that leadership was handed to in vain, in this term of ours.
    pub(crate) passed_over: Option<NodeId>,
}

impl Group {
    /// A member as it was restored. Links are down, nobody leads, and only what a snapshot covers is known committed.
    ///
    /// # Panics
    /// If there are more than `MEMBERS_MAX` voters, or `restored.terms` does not describe a log: the caller's mistakes.
    pub fn new(config: Config, restored: Restored<'_>, now_us: u64) -> Self {
        let snapshot = restored.snapshot.unwrap_or_default();
        let log = Log::new(snapshot, restored.last, restored.terms);
        let mut state = restored.hard_state.unwrap_or_else(|| HardState::founded(&config));
        assert!(state.current.members.len() <= MEMBERS_MAX, "a group has at most {MEMBERS_MAX} members");
        if state.current.index > log.last()
            && let Some(previous) = state.previous.take()
        {
            // The hard state is written with the first entries of a write; the one that changed the members was not
            // among them.
            state.current = *previous;
        }
        let durable_ballot = state.ballot();
        let floor = restored.accepted_term.max(log.last_term());
        if state.term < floor {
            // A run proves a term whose hard state was lost, and a vote in it may be lost too. Having voted for
            // ourselves is the safe guess: it gives our vote of that term to nobody else.
            (state.term, state.vote) = (floor, config.id);
        }
        let mut group = Self {
            peers: Vec::new(),
            members_unwritten: false,
            ring: PersistRing::new(log.last(), durable_ballot, config.breaks),
            commit: snapshot.0,
            commit_reported: snapshot.0,
            installing: false,
            accepted_term: restored.accepted_term,
            suspect: false,
            recall: None,
            recalls: 0,
            loss_told: false,
            hold: None,
            role: Role::Follower,
            leader: None,
            role_told: (Role::Follower, None, state.term),
            random: config.seed,
            election_at: None,
            owed: SmallVec::new(),
            resigned: None,
            told_commit: None,
            leader_live: false,
            leader_gone: false,
            matched: Index::ZERO,
            acked: Index::ZERO,
            answer_due: false,
            rejected: None,
            votes: Tally::default(),
            forced: false,
            term_start: Index::ZERO,
            tally_due: false,
            reads: Reads::default(),
            quorum_at: None,
            retry_at: None,
            change_at: None,
            transfer: None,
            passed_over: None,
            log,
            state,
            config,
        };
        group.place_peers();
        // Who decides alone has nobody who could know better.
        let votes_lost = restored.votes_lost && !group.members().is_alone(group.config.id);
        if restored.suspect || votes_lost {
            group.begin_recall(now_us, votes_lost, restored.suspect);
        }
        group.begin_hold(now_us, restored.hold_us);
        group.arm_election(now_us);
        group.assert_invariants();
        group
    }

    /// Appends `count` entries to a leader's log. The caller stores their bytes; the next drain has
    /// them persisted and sent.
    ///
    /// # Errors
    /// [`NotLeader`]: nothing was done; the caller goes to the leader, or waits for one. So it is while we hand
    /// leadership over ([`transferring`](Self::transferring)): then the caller waits for a `Role` or `TransferEnded`.
    pub fn propose(&mut self, count: u32) -> Result<Proposed, NotLeader> {
        self.require_leader()?;
        if self.takes_nothing_up() {
            return Err(NotLeader { leader: None, term: self.state.term });
        }
        let first = self.log.last().next();
        self.log.append(self.state.term, count);
        Ok(Proposed { first, term: self.state.term })
    }

    /// Something happened.
    pub fn step(&mut self, now_us: u64, input: Input, out: &mut Vec<Output>) {
        let before = (self.state.term, self.commit);
        match input {
            Input::Tick => self.on_tick(now_us, out),
            Input::Receive { from, message } => self.on_message(now_us, from, message, out),
            Input::Persisted(seq) => self.on_persisted(now_us, seq, out),
            Input::LinkUp(node) => self.on_link_up(now_us, node, out),
            Input::LinkDown(node) => self.on_link_down(now_us, node),
            Input::VotesLost => self.on_votes_lost(now_us, out),
            Input::Released { index, term } => self.on_released(index, term),
            Input::Fetched { to, first, count, bytes } => self.on_fetched(to, first, count, bytes, out),
            Input::FetchFailed { to } => self.on_fetch_failed(now_us, to),
        }
        self.tell_role(out);
        assert!(before.0 <= self.state.term && before.1 <= self.commit, "term and commit never fall");
        self.assert_invariants();
    }

    /// The end of a turn: everything that has to leave. Calling it again without an input in between adds nothing.
    pub fn drain(&mut self, now_us: u64, sizes: &impl Sizes, out: &mut Vec<Output>) {
        if self.role == Role::Leader {
            self.advance_commit();
            self.turn_reads(out);
            self.follow_up_change(now_us);
        }
        if self.commit > self.commit_reported {
            self.commit_reported = self.commit;
            out.push(Output::Commit { upto: self.commit });
        }
        self.persist(out);
        self.ask_to_recall(now_us, out);
        self.speak(out);
        if self.role == Role::Leader {
            self.replicate(now_us, sizes, out);
            self.hand_over(out);
        }
        self.assert_invariants();
    }

    /// When a `Tick` is wanted; `None` if there is nothing to wait for.
    pub fn deadline_us(&self) -> Option<u64> {
        let transfer_at = self.transfer.as_ref().map(|transfer| transfer.until_us);
        let (hold_until, recall_at) = (self.hold_until(), self.recall_at());
        // Nobody campaigns while it holds back.
        let election_at = self.election_at.filter(|_| hold_until.is_none());
        [election_at, hold_until, self.quorum_at, self.retry_at, self.change_at, transfer_at, recall_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_tick(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let passed = |at: Option<u64>| at.is_some_and(|at| at <= now_us);
        if passed(self.quorum_at) {
            self.become_follower(now_us, self.state.term, out);
        }
        if passed(self.retry_at) {
            self.retry(now_us);
        }
        if passed(self.change_at) {
            self.on_change_due(now_us, out);
        }
        if passed(self.transfer.as_ref().map(|transfer| transfer.until_us)) {
            self.end_transfer(now_us, out);
        }
        if passed(self.hold_until()) {
            self.end_hold(now_us, out);
        }
        if passed(self.recall_at()) {
            self.ask_again(out);
        }
        if passed(self.election_at) && self.hold.is_none() {
            self.campaign(now_us, false);
        }
    }

    pub(crate) fn on_message(&mut self, now_us: u64, from: NodeId, message: Message, out: &mut Vec<Output>) {
        let Some(at) = self.peer_at(from) else { return };
        self.note_sound(at, &message);
        let Some(message) = self.put_off(from, message) else { return };
        match message {
            Message::PreVote { term, last_index, last_term, forced } => {
                self.on_pre_vote(now_us, at, term, (last_term, last_index), forced);
            }
            Message::PreVoteReply { asked, granted, term } => {
                self.on_pre_vote_reply(now_us, at, asked, granted, term.get(), out);
            }
            Message::Vote { term, last_index, last_term, forced } => {
                self.on_vote(now_us, at, term.get(), (last_term, last_index), forced, out);
            }
            Message::VoteReply { ballot } => self.on_vote_reply(now_us, at, ballot.get(), out),
            Message::Append {
                term,
                prev_index,
                prev_term,
                spans,
                commit,
                answer,
                trusted,
                held,
                changes,
                ..
            } => {
                if self.accept_leader(now_us, from, term, out) {
                    let append =
                        Received { prev_index, prev_term, spans, commit, answer, trusted, held, changes };
                    self.on_append(now_us, append, out);
                }
            }
            Message::AppendReply(reply) => self.on_append_reply(now_us, at, reply, out),
            Message::Snapshot { term, index, snap_term, configured } => {
                if self.accept_leader(now_us, from, term, out) {
                    self.on_snapshot(now_us, (index, snap_term), configured, out);
                }
            }
            Message::ReadProbe { term, round } => {
                if self.accept_leader(now_us, from, term, out) {
                    self.on_read_probe(from, round);
                }
            }
            Message::ReadAck { term, round } => self.on_read_ack(now_us, at, term.get(), round, out),
            Message::LeaderGone { term } => self.on_leader_gone(now_us, from, term),
            Message::TimeoutNow { term } => self.on_timeout_now(now_us, from, term),
            Message::Removed { index, commit, term } => self.on_removed(now_us, index, (commit, term)),
            Message::Recall { round } => self.on_recall(now_us, from, round, out),
            Message::RecallReply(reply) => self.on_recall_reply(now_us, from, *reply, out),
        }
    }

    /// Our disk has answered: only now do we vote (in the drain), acknowledge, or count ourselves.
    fn on_persisted(&mut self, now_us: u64, seq: PersistSeq, out: &mut Vec<Output>) {
        self.ring.complete(seq);
        self.tally_due = true;
        self.trust_if_enough(now_us, out);
        if self.role == Role::Candidate && self.ring.ballot(self.ballot()).is_some() {
            self.count_vote(now_us, self.config.id, out);
        }
    }

    fn on_released(&mut self, index: Index, term: Term) {
        if index <= self.log.snapshot().0 {
            return;
        }
        let durable = self.ring.durable().get();
        assert!(
            index <= self.commit && index <= durable,
            "a snapshot covers only what is committed and durable"
        );
        self.log.release(index, term);
    }

    fn persist(&mut self, out: &mut Vec<Output>) {
        let forced = self.installing || self.members_unwritten;
        let Some(write) = self.ring.begin(self.log.last(), self.state.ballot(), forced) else {
            return;
        };
        let with_state = write.with_ballot || self.members_unwritten;
        (self.installing, self.members_unwritten) = (false, false);
        if write.entries.is_some() {
            self.accepted_term = self.state.term;
        }
        let hard_state = with_state.then(|| self.state.clone());
        out.push(Output::Persist { seq: write.seq, hard_state, entries: write.entries });
    }

    pub(crate) fn tell_role(&mut self, out: &mut Vec<Output>) {
        let now = (self.role, self.leader, self.state.term);
        if now != self.role_told {
            self.role_told = now;
            out.push(Output::Role { role: now.0, leader: now.1, term: now.2 });
        }
    }

    pub(crate) fn require_leader(&self) -> Result<(), NotLeader> {
        if self.role == Role::Leader {
            return Ok(());
        }
        Err(NotLeader { leader: self.leader, term: self.state.term })
    }

    /// A number in `0..bound`, from the seed (splitmix64).
    pub(crate) fn random_below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}
