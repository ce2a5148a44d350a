//! What a leader knows of one other member: how far its log agrees, what is on the way to it, and what it owes.
//!
//! ```text
//!            link up                    reply                      behind the released log
//!   (down) ----------> Probe --------------------------> Stream -----------------------------> Snapshot
//!                        ^     rejection, link down,       |                                      |
//!                        +---- no answer for retry_us -----+<------- reply past the snapshot -----+
//! ```
//!
//! Invariants: (1) `match_index < next_index` and `match_index <= held`; (2) one unanswered message in `Probe`, a window of them in `Stream`;
//! (3) a read from disk that was asked for is remembered until the driver answers, though its purpose may be gone: bytes
//! read for an earlier leadership must not travel under a later one; (4) what counts was said in the present session.
//!
//! ```text
//!   member   acknowledges 9 ── dies, its disk has 5 ── restarts ───── hears "you held 9": suspect ── fed up to our last
//!   leader   match 9 ────────────────────── link down: match 0, held 9 ──┘       doubt: match 5 ──────── trusted again
//! ```
//!
//! Why (4): a process that was started again may have less than it acknowledged, by a disk that lied or a directory that
//! was restored, and not know it. Were its match of before counted, an entry could be committed whose only copy but ours
//! is gone, with nobody damaged as far as anybody knows. So a session begins with a match of zero and one question that
//! says what we count on (`held`), and the answer, a round trip later, is either that much and durable, or that it is
//! lost. To count no one whose link is down costs nothing: with a majority in reach it acknowledges in a moment what the
//! lost one had; without one, nobody could rely on more. What is left is the time until we notice that the link is
//! gone; a commit in it is one that just as well came before the loss. And a member behind our released log is not
//! asked, but sent a snapshot: all it acknowledged in this term lies below, the snapshot's entry was committed without
//! it, so a candidate that it wrongly votes for needs the vote of somebody who has that entry.

use alloc::collections::VecDeque;

use coracle_base::{Index, NodeId};

use crate::Breaks;

/// How entries are sent to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Where the logs agree is not known: one message at a time.
    Probe { sent: bool },
    /// Entries flow, within the window.
    Stream,
    /// It needs a snapshot first; `sent` is the index of the one that is on the way.
    Snapshot { sent: Option<Index> },
}

/// A read of entries from disk that the driver has not answered yet.
#[derive(Debug, Clone, Copy)]
struct Fetch {
    first: Index,
    wanted: bool,
}

/// What a node is to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// No member: it is not spoken to.
    Stranger,
    /// A member of the configuration in force.
    Member,
    /// It was a member of the previous one: it is sent what removed it, with so many more tries.
    Leaving { tries: u8 },
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) link_up: bool,
    /// What it is to us; a stranger is only known to be there.
    pub(crate) place: Place,
    /// A vote or pre-vote is to be asked of it; or, by a pre-vote, whether we are still a member.
    pub(crate) ask: bool,
    /// What it remembers is to be asked of it, if we have forgotten something.
    pub(crate) ask_recall: bool,
    /// How often it asked what we remember, as it may have forgotten something; sessions count, and rounds within one.
    pub(crate) recalls: u8,

    pub(crate) mode: Mode,
    /// Durable there, agreed with this leader in this term, and said in this session of the link: all that counts.
    pub(crate) match_index: Index,
    /// The most that it acknowledged in this term, in any session: it has no business to hold less.
    pub(crate) held: Index,
    pub(crate) next_index: Index,
    pub(crate) commit_sent: Index,
    pub(crate) commit_acked: Index,
    /// An empty append that wants an answer is due.
    pub(crate) confirm: bool,
    /// It said that it may have lost entries: it counts for nothing until it holds everything up to here.
    pub(crate) doubt: Option<Index>,
    /// The open read round's probe was sent.
    pub(crate) read_asked: bool,
    /// Since when an answer is owed; moves on with every answer.
    pub(crate) waiting_since: Option<u64>,
    fetch: Option<Fetch>,
    inflight: VecDeque<(Index, u32)>,
    inflight_bytes: u64,
}

impl Peer {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            link_up: false,
            place: Place::Stranger,
            ask: false,
            ask_recall: true,
            recalls: 0,
            mode: Mode::Probe { sent: false },
            match_index: Index::ZERO,
            held: Index::ZERO,
            next_index: Index(1),
            commit_sent: Index::ZERO,
            commit_acked: Index::ZERO,
            confirm: false,
            doubt: None,
            read_asked: false,
            waiting_since: None,
            fetch: None,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    /// A new leader starts with this member: nothing is known but that `last` is worth a try.
    pub(crate) fn lead(&mut self, last: Index) {
        (self.match_index, self.held) = (Index::ZERO, Index::ZERO);
        self.commit_sent = Index::ZERO;
        self.commit_acked = Index::ZERO;
        self.doubt = None;
        self.read_asked = false;
        self.forget_inflight(Index::ZERO);
        self.probe_from(last.next());
    }

    /// Its link is gone, or new: what was on the way is lost. What is durable there should not be, and yet counts for
    /// nothing until it says so again.
    pub(crate) fn restart_link(&mut self, last: Index, breaks: Breaks) {
        let doubted = self.doubt.take().is_some();
        if doubted || !breaks.match_outlives_session() {
            self.match_index = Index::ZERO;
        }
        self.commit_acked = Index::ZERO;
        self.read_asked = false;
        self.probe_from(if self.held > Index::ZERO { self.held.next() } else { last.next() });
    }

    /// It says that this much is durable there and agrees with our log.
    pub(crate) fn acknowledged(&mut self, durable: Index) {
        self.match_index = self.match_index.max(durable);
        self.held = self.held.max(durable);
    }

    /// What it is to be told that it acknowledged: nothing, once it has confirmed that in this session, or owned up.
    pub(crate) fn claim(&self) -> Option<Index> {
        // By the name of one that was removed another directory may come back, which never acknowledged anything.
        let is_due = self.place == Place::Member && self.match_index < self.held && self.doubt.is_none();
        is_due.then_some(self.held)
    }

    /// Entries up to here need hardly be sent to it again.
    pub(crate) fn surely_holds(&self) -> Index {
        self.claim().unwrap_or(self.match_index)
    }

    /// Back to one message at a time, the next one starting at `next`. What is on the way may have arrived all the same:
    /// it stays in the window until a reply tells.
    pub(crate) fn probe_from(&mut self, next: Index) {
        self.mode = Mode::Probe { sent: false };
        self.next_index = next;
        self.confirm = false;
        self.waiting_since = None;
        if let Some(fetch) = &mut self.fetch {
            fetch.wanted = false;
        }
    }

    /// The logs agree up to `matched`, so entries may flow from there; what was sent beyond has been lost.
    pub(crate) fn stream_from(&mut self, matched: Index) {
        let matched = matched.max(self.match_index);
        self.mode = Mode::Stream;
        self.next_index = matched.next();
        self.forget_inflight(matched);
    }

    fn forget_inflight(&mut self, after: Index) {
        while let Some((_, bytes)) = self.inflight.pop_back_if(|(last, _)| *last > after) {
            self.inflight_bytes -= u64::from(bytes);
        }
    }

    /// Whether another append may be on the way. The last one may exceed the window: an entry of any size must pass.
    pub(crate) fn window_open(&self, window_bytes: u32, window_messages: u32) -> bool {
        self.inflight_bytes < u64::from(window_bytes) && (self.inflight.len() as u32) < window_messages
    }

    pub(crate) fn sent(&mut self, last: Index, bytes: u32) {
        self.inflight.push_back((last, bytes));
        self.inflight_bytes += u64::from(bytes);
        self.next_index = last.next();
    }

    /// Entries up to `durable` are off the window.
    pub(crate) fn arrived(&mut self, durable: Index) {
        while let Some((_, bytes)) = self.inflight.pop_front_if(|(last, _)| *last <= durable) {
            self.inflight_bytes -= u64::from(bytes);
        }
    }

    pub(crate) fn fetching(&self) -> bool {
        self.fetch.is_some()
    }

    pub(crate) fn fetch(&mut self, first: Index) {
        self.fetch = Some(Fetch { first, wanted: true });
    }

    /// The driver has answered: whether the entries from `first` are still what this member needs next.
    pub(crate) fn fetched(&mut self, first: Index) -> bool {
        self.fetch.take().is_some_and(|fetch| fetch.wanted && fetch.first == first)
            && self.mode == Mode::Stream
            && self.next_index == first
    }

    /// What it said to hold is verified again: it may be counted and may vote.
    pub(crate) fn trusted(&self) -> bool {
        self.doubt.is_some_and(|goal| self.match_index >= goal)
    }

    /// Whether entries are sent to it while its link is up.
    pub(crate) fn is_fed(&self) -> bool {
        self.place != Place::Stranger
    }

    /// It owes an answer for too long. Whoever leaves and does not answer is not waited for: it finds out when it asks.
    pub(crate) fn tire(&mut self) {
        if let Place::Leaving { tries } = &mut self.place {
            *tries = tries.saturating_sub(1);
            if *tries == 0 {
                self.place = Place::Stranger;
            }
        }
    }

    /// Whether something was said to it that an answer is missing to.
    pub(crate) fn owes_answer(&self) -> bool {
        self.link_up
            && self.is_fed()
            && (!matches!(self.mode, Mode::Stream)
                || !self.inflight.is_empty()
                || self.commit_acked < self.commit_sent
                || self.doubt.is_some()
                || self.read_asked)
    }

    pub(crate) fn inflight(&self) -> (u32, u64) {
        (self.inflight.len() as u32, self.inflight_bytes)
    }
}
