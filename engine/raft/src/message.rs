//! What the members of a group say to each other, and its bytes.
//!
//! ```text
//!   version (u8) = 1, kind (u8), then the fields in the order of the variant. Numbers are LEB128 (7 bits a byte, low
//!   ones first, shortest form only); a bool or set of flags is one byte.
//!     1 PreVote        term last_index last_term          2 PreVoteReply   asked granted term
//!     3 Vote           term last_index last_term          4 VoteReply      term vote
//!     5 Append         term prev_index prev_term commit bytes flags(answer 1, trusted 2,
//!                      held 4) n, n x (term count)
//!     6 AppendReply    term durable matched commit flags(suspect 1, rejected 2) [prev_index hint_index hint_term]
//!     7 Snapshot       term index snap_term
//!     8 ReadProbe      term round                         9 ReadAck        term round
//!    10 LeaderGone     term
//!    11 Snapshot       term index snap_term config_index members(`member.rs`)   if these are not the group's first
//!    12 PreVote, 13 Vote   as 1 and 3, if forced
//!    14 TimeoutNow     term                              15 Removed        index commit term
//!    16 Recall         round
//!    17 RecallReply    round term last_index last_term flags(suspect 1, pending 2, committed 4), with flag 4
//!                      the members that are committed, with flag 2 those that are not yet: index members(`member.rs`)
//! ```
//!
//! Entries and snapshots travel beside their message: the driver adds their bytes, and finds the configurations among
//! the entries that it received.
//!
//! Invariants: (1) what a variant claims to be durable has type [`Durable`], which only the persist ring makes;
//! (2) terms, indexes and rounds stay at or below [`NUMBER_MAX`], so that adding to them never overflows; (3) the terms
//! of an append's entries never fall, begin at or above `prev_term` and end at or below `term`.

use alloc::boxed::Box;

use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::RUN_ENTRIES_MAX;
use coracle_base::{Index, NodeId, Term};

use crate::hard_state::{Ballot, HardState};
use crate::log::{SPANS_MAX, Spans};
use crate::member::{Configured, Members};
use crate::membership::Changes;
use crate::persist::Durable;

const VERSION: u8 = 1;

/// Terms, indexes and rounds beyond this are refused: no honest cluster counts so far.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// Why bytes are not a message or state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error(transparent)]
    Truncated(#[from] Truncated),
    /// Written by a newer (or no) version.
    #[error("version {found} is not known, only {known}")]
    Version {
        /// What the bytes say.
        found: u8,
        /// What this program knows.
        known: u8,
    },
    /// An unknown kind of message.
    #[error("unknown kind of message {found}")]
    Kind {
        /// What the bytes say.
        found: u8,
    },
    /// A field has an impossible value.
    #[error("impossible {field}")]
    Field {
        /// Which one.
        field: &'static str,
    },
    /// Bytes are left over.
    #[error("{bytes} bytes too many")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// From one member of a group to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Would you vote for me in `term`? Changes nothing at the receiver.
    PreVote {
        /// The term that the sender would campaign in.
        term: Term,
        /// Its last entry.
        last_index: Index,
        /// And that entry's term.
        last_term: Term,
        /// Its leader or an operator wants this election: a live leader is no reason to refuse.
        forced: bool,
    },
    /// The answer to a `PreVote`; or, refused, to a `TimeoutNow` that comes at a bad time.
    PreVoteReply {
        /// The term that was asked about.
        asked: Term,
        /// Whether a vote would be given.
        granted: bool,
        /// The sender's own term.
        term: Durable<Term>,
    },
    /// Vote for me in `term`; my own vote for me is durable.
    Vote {
        /// The term that the sender campaigns in.
        term: Durable<Term>,
        /// Its last entry.
        last_index: Index,
        /// And that entry's term.
        last_term: Term,
        /// As in `PreVote`.
        forced: bool,
    },
    /// The sender's ballot: a vote for the receiver if it names it.
    VoteReply {
        /// Term and vote as they are on the sender's disk.
        ballot: Durable<Ballot>,
    },
    /// Entries after `prev_index`, or none: then it probes, or tells the commit index.
    Append {
        /// The leader's term.
        term: Term,
        /// Index before the first entry.
        prev_index: Index,
        /// Term at `prev_index`.
        prev_term: Term,
        /// Terms of the entries, in order.
        spans: Spans,
        /// Bytes of the entries.
        bytes: u32,
        /// The leader's commit index; it may be far beyond these entries.
        commit: Index,
        /// An answer is wanted even if nothing here is new.
        answer: bool,
        /// The receiver was suspect, and holds everything that it may have acknowledged again.
        trusted: bool,
        /// The receiver acknowledged everything up to `prev_index` to this leader in this term. Said at the start of a
        /// session, as the receiver may have lost it since without noticing.
        held: bool,
        /// Those of the entries that change the members. Not in the message's bytes: the receiving driver finds them
        /// among the entries (`EntryKind::Config`) and puts them here before it steps the group.
        changes: Changes,
    },
    /// How far the sender's log agrees with the leader's.
    AppendReply(AppendReply),
    /// A snapshot of everything up to `index`; its bytes follow. For a member behind the leader's released log.
    Snapshot {
        /// The leader's term.
        term: Term,
        /// Last index that the snapshot covers.
        index: Index,
        /// Term of the entry there.
        snap_term: Term,
        /// The newest members that the leader knows to be committed, if they ever changed.
        configured: Option<Box<Configured>>,
    },
    /// Do you still follow me? Asked for linearizable reads.
    ReadProbe {
        /// The leader's term.
        term: Term,
        /// The leader's count of such questions in this term.
        round: u64,
    },
    /// Yes, if `term` is the asking leader's.
    ReadAck {
        /// The sender's term.
        term: Durable<Term>,
        /// The round of the probe.
        round: u64,
    },
    /// The sender does not lead `term` any more, and nobody else does.
    LeaderGone {
        /// The term that it led.
        term: Term,
    },
    /// The leader hands over to the receiver, which holds all of its log: campaign at once.
    TimeoutNow {
        /// The leader's term.
        term: Term,
    },
    /// What do you remember? From a member that may have forgotten what it promised.
    Recall {
        /// Names the question.
        round: u64,
    },
    /// This.
    RecallReply(Box<RecallReply>),
    /// The receiver campaigned and is no member any more.
    Removed {
        /// A configuration without it.
        index: Index,
        /// It is committed, and up to here no other one followed.
        commit: Index,
        /// The term at `commit`.
        term: Term,
    },
}

/// How far a follower's log agrees with the leader's of `term`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendReply {
    /// The sender's term.
    pub term: Durable<Term>,
    /// Agrees and is durable up to here: all that counts for commit.
    pub durable: Durable<Index>,
    /// Agrees up to here, though perhaps not durable yet: where the leader goes on sending.
    pub matched: Index,
    /// The sender's commit index.
    pub commit: Index,
    /// The sender may have lost entries that it acknowledged once: `durable` is a hint only and counts for nothing.
    pub suspect: bool,
    /// An append could not be joined to the sender's log.
    pub rejected: Option<Rejected>,
}

/// What a member remembers, for one that does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecallReply {
    /// That of the question.
    pub round: u64,
    /// The sender's term.
    pub term: Durable<Term>,
    /// The sender's last durable entry.
    pub last_index: Durable<Index>,
    /// The term there.
    pub last_term: Term,
    /// The sender may have forgotten something itself: only what it says of the members is of use.
    pub suspect: bool,
    /// The newest members that the sender knows to be committed; `None` if it knows of nobody.
    pub committed: Option<Configured>,
    /// Newer ones in its log.
    pub pending: Option<Configured>,
}

/// Why an append could not be joined, and where the logs may meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// `prev_index` of the append.
    pub prev_index: Index,
    /// The sender's greatest index at most `prev_index` whose term is at most `prev_term`: nothing above can agree.
    pub hint_index: Index,
    /// The term there. The leader skips its own entries of greater terms, so each term costs at most one round.
    pub hint_term: Term,
}

const ANSWER: u8 = 1;
const TRUSTED: u8 = 2;
const HELD: u8 = 4;
const SUSPECT: u8 = 1;
const PENDING: u8 = 2;
const COMMITTED: u8 = 4;
const REJECTED: u8 = 2;

impl Message {
    /// The entries whose bytes go with this message: first and last index of a non-empty `Append`.
    pub fn entries(&self) -> Option<(Index, Index)> {
        let Message::Append { prev_index, spans, .. } = self else { return None };
        let count: u64 = spans.iter().map(|&(_, count)| u64::from(count)).sum();
        (count > 0).then(|| (prev_index.next(), prev_index.plus(count)))
    }

    /// Appends the message's bytes to `out`.
    pub fn encode(&self, out: &mut impl Sink) {
        out.put_u8(VERSION);
        match self {
            Self::PreVote { term, last_index, last_term, forced } => {
                put(out, if *forced { 12 } else { 1 }, &[term.0, last_index.0, last_term.0]);
            }
            Self::PreVoteReply { asked, granted, term } => {
                put(out, 2, &[asked.0]);
                out.put_u8(u8::from(*granted));
                put_number(out, term.get().0);
            }
            Self::Vote { term, last_index, last_term, forced } => {
                put(out, if *forced { 13 } else { 3 }, &[term.get().0, last_index.0, last_term.0]);
            }
            Self::VoteReply { ballot } => put(out, 4, &[ballot.get().term.0, ballot.get().vote.0]),
            Self::Append {
                term,
                prev_index,
                prev_term,
                spans,
                bytes,
                commit,
                answer,
                trusted,
                held,
                changes: _,
            } => {
                put(out, 5, &[term.0, prev_index.0, prev_term.0, commit.0, u64::from(*bytes)]);
                out.put_u8(flag(ANSWER, *answer) | flag(TRUSTED, *trusted) | flag(HELD, *held));
                put_number(out, spans.len() as u64);
                for (term, count) in spans {
                    put_number(out, term.0);
                    put_number(out, u64::from(*count));
                }
            }
            Self::AppendReply(reply) => reply.encode(out),
            Self::Snapshot { term, index, snap_term, configured: None } => {
                put(out, 7, &[term.0, index.0, snap_term.0]);
            }
            Self::Snapshot { term, index, snap_term, configured: Some(configured) } => {
                put(out, 11, &[term.0, index.0, snap_term.0]);
                configured.encode(out);
            }
            Self::ReadProbe { term, round } => put(out, 8, &[term.0, *round]),
            Self::ReadAck { term, round } => put(out, 9, &[term.get().0, *round]),
            Self::LeaderGone { term } => put(out, 10, &[term.0]),
            Self::TimeoutNow { term } => put(out, 14, &[term.0]),
            Self::Removed { index, commit, term } => put(out, 15, &[index.0, commit.0, term.0]),
            Self::Recall { round } => put(out, 16, &[*round]),
            Self::RecallReply(reply) => reply.encode(out),
        }
    }

    /// Reads one message off the front of `reader`; what goes with it follows.
    ///
    /// # Errors
    /// [`DecodeError`]: the sender is broken or newer, so its connection has to be closed.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version { found: version, known: VERSION });
        }
        Ok(match reader.u8()? {
            kind @ (1 | 12) => Self::PreVote {
                term: term(reader)?,
                last_index: index(reader)?,
                last_term: term(reader)?,
                forced: kind == 12,
            },
            2 => Self::PreVoteReply {
                asked: term(reader)?,
                granted: flags(reader, 1)? == 1,
                term: Durable::heard(term(reader)?),
            },
            kind @ (3 | 13) => Self::Vote {
                term: Durable::heard(term(reader)?),
                last_index: index(reader)?,
                last_term: term(reader)?,
                forced: kind == 13,
            },
            4 => {
                let ballot = Ballot { term: term(reader)?, vote: NodeId(number(reader)?) };
                Self::VoteReply { ballot: Durable::heard(ballot) }
            }
            5 => decode_append(reader)?,
            6 => Self::AppendReply(AppendReply::decode(reader)?),
            kind @ (7 | 11) => {
                let (term, index, snap_term) = (term(reader)?, index(reader)?, term(reader)?);
                let configured = if kind == 11 { Some(Box::new(Configured::decode(reader)?)) } else { None };
                Self::Snapshot { term, index, snap_term, configured }
            }
            8 => Self::ReadProbe { term: term(reader)?, round: bounded(reader, "round")? },
            9 => Self::ReadAck { term: Durable::heard(term(reader)?), round: bounded(reader, "round")? },
            10 => Self::LeaderGone { term: term(reader)? },
            14 => Self::TimeoutNow { term: term(reader)? },
            15 => Self::Removed { index: index(reader)?, commit: index(reader)?, term: term(reader)? },
            16 => Self::Recall { round: bounded(reader, "round")? },
            17 => Self::RecallReply(Box::new(RecallReply::decode(reader)?)),
            found => return Err(DecodeError::Kind { found }),
        })
    }
}

impl AppendReply {
    fn encode(&self, out: &mut impl Sink) {
        put(out, 6, &[self.term.get().0, self.durable.get().0, self.matched.0, self.commit.0]);
        out.put_u8(flag(SUSPECT, self.suspect) | flag(REJECTED, self.rejected.is_some()));
        if let Some(rejected) = self.rejected {
            for number in [rejected.prev_index.0, rejected.hint_index.0, rejected.hint_term.0] {
                put_number(out, number);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (term_now, durable) = (Durable::heard(term(reader)?), Durable::heard(index(reader)?));
        let (matched, commit) = (index(reader)?, index(reader)?);
        let flags = flags(reader, SUSPECT | REJECTED)?;
        let rejected = match flags & REJECTED {
            0 => None,
            _ => Some(Rejected {
                prev_index: index(reader)?,
                hint_index: index(reader)?,
                hint_term: term(reader)?,
            }),
        };
        if durable.get() > matched {
            return Err(DecodeError::Field { field: "durable index" });
        }
        Ok(Self { term: term_now, durable, matched, commit, suspect: flags & SUSPECT != 0, rejected })
    }
}

impl RecallReply {
    fn encode(&self, out: &mut impl Sink) {
        let (term, last_index) = (self.term.get().0, self.last_index.get().0);
        put(out, 17, &[self.round, term, last_index, self.last_term.0]);
        let known = flag(PENDING, self.pending.is_some()) | flag(COMMITTED, self.committed.is_some());
        out.put_u8(flag(SUSPECT, self.suspect) | known);
        self.committed.iter().chain(&self.pending).for_each(|one| one.encode(out));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let round = bounded(reader, "round")?;
        let (term_now, last_index) = (Durable::heard(term(reader)?), Durable::heard(index(reader)?));
        let last_term = term(reader)?;
        let flags = flags(reader, SUSPECT | PENDING | COMMITTED)?;
        if last_term > term_now.get() {
            return Err(DecodeError::Field { field: "term of an entry" });
        }
        let suspect = flags & SUSPECT != 0;
        let committed = if flags & COMMITTED != 0 { Some(Configured::decode_any(reader)?) } else { None };
        let pending = if flags & PENDING != 0 { Some(Configured::decode_any(reader)?) } else { None };
        Ok(Self { round, term: term_now, last_index, last_term, suspect, committed, pending })
    }
}

impl Configured {
    /// Also the one that a group was made with.
    fn decode_any(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (index, members) = (index(reader)?, Members::decode(reader)?);
        match HardState::holds(&Members::default(), &members) {
            true => Ok(Self { index, members }),
            false => Err(DecodeError::Field { field: "configuration" }),
        }
    }

    /// Appends it, as it goes with a snapshot.
    pub fn encode(&self, out: &mut impl Sink) {
        put_number(out, self.index.0);
        self.members.encode(out);
    }

    /// What [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// It is none that an entry has made.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (index, members) = (index(reader)?, Members::decode(reader)?);
        let fits = HardState::holds(&Members::default(), &members);
        if index == Index::ZERO || members.is_empty() || !fits {
            return Err(DecodeError::Field { field: "configuration" });
        }
        Ok(Self { index, members })
    }
}

fn decode_append(reader: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let (term_now, prev_index, prev_term, commit) =
        (term(reader)?, index(reader)?, term(reader)?, index(reader)?);
    let bytes = u32::try_from(number(reader)?).map_err(|_| DecodeError::Field { field: "bytes" })?;
    let flags = flags(reader, ANSWER | TRUSTED | HELD)?;
    let spans_count = number(reader)?;
    if spans_count > SPANS_MAX as u64 {
        return Err(DecodeError::Field { field: "number of terms" });
    }
    let mut spans = Spans::new();
    let (mut newest, mut entries) = (prev_term, 0);
    for _ in 0..spans_count {
        let (span_term, count) = (term(reader)?, number(reader)?);
        entries += count.min(u64::from(u32::MAX));
        if count == 0 || entries > u64::from(RUN_ENTRIES_MAX) {
            return Err(DecodeError::Field { field: "number of entries" });
        }
        if span_term < newest || spans.last().is_some_and(|&(last, _)| last == span_term) {
            return Err(DecodeError::Field { field: "term of an entry" });
        }
        newest = span_term;
        spans.push((span_term, count as u32));
    }
    if newest > term_now {
        return Err(DecodeError::Field { field: "term of an entry" });
    }
    let [answer, trusted, held] = [ANSWER, TRUSTED, HELD].map(|flag| flags & flag != 0);
    let changes = Changes::new();
    Ok(Message::Append {
        term: term_now,
        prev_index,
        prev_term,
        spans,
        bytes,
        commit,
        answer,
        trusted,
        held,
        changes,
    })
}

fn flag(bit: u8, set: bool) -> u8 {
    if set { bit } else { 0 }
}

fn put(out: &mut impl Sink, kind: u8, numbers: &[u64]) {
    out.put_u8(kind);
    for &number in numbers {
        put_number(out, number);
    }
}

fn put_number(out: &mut impl Sink, mut number: u64) {
    let mut bytes = [0; 10];
    let mut len = 0;
    while number >= 0x80 {
        bytes[len] = number as u8 | 0x80;
        number >>= 7;
        len += 1;
    }
    bytes[len] = number as u8;
    out.put(&bytes[..=len]);
}

fn number(reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = reader.u8()?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit; a last byte of zero is a longer spelling of a shorter number.
        if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
            break;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(DecodeError::Field { field: "number" })
}

fn bounded(reader: &mut Reader<'_>, field: &'static str) -> Result<u64, DecodeError> {
    let number = number(reader)?;
    if number > NUMBER_MAX { Err(DecodeError::Field { field }) } else { Ok(number) }
}

fn term(reader: &mut Reader<'_>) -> Result<Term, DecodeError> {
    bounded(reader, "term").map(Term)
}

fn index(reader: &mut Reader<'_>) -> Result<Index, DecodeError> {
    bounded(reader, "index").map(Index)
}

fn flags(reader: &mut Reader<'_>, known: u8) -> Result<u8, DecodeError> {
    let flags = reader.u8()?;
    if flags & !known != 0 { Err(DecodeError::Field { field: "flags" }) } else { Ok(flags) }
}
