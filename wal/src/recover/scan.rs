//! Walks the log batch by batch and decides, at the first one that does not hold, what that means.
//!
//! | at the first bad batch `s` | verdict | what follows |
//! |---|---|---|
//! | later bytes prove that `s` was durable | corrupt | a hole: skip it, go on at the next batch that holds |
//! | not proven, and something could not be read, or a file is missing or too short | suspect tail | the log ends before `s`; groups are suspect |
//! | not proven | torn, or never written | the log ends before `s` |
//!
//! Proof that `s` was durable: a batch header anywhere in this log, sound by its checksum, whose `durable_upto`, or whose
//! number less the window of writes in flight, is at least `s`; or the head of a file that cut this one off after `s`.
//! A crash alone never leaves such proof, since writers state only what had completed.

use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, WRITES_IN_FLIGHT_MAX};
use coracle_io::{Disk, DiskError};

use super::chain::Link;
use super::reader::Readers;
use crate::error::WalError;
use crate::format::Position;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHead};
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::page::Begin;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// How far beyond a bad batch others can have been in flight.
const LOOK_AHEAD_BYTES: u64 = (WRITES_IN_FLIGHT_MAX * BATCH_BYTES_MAX) as u64;

/// What takes the batches.
pub(crate) trait Sink {
    /// A sound batch, in order. `Ok(false)`: its records make no sense although every checksum holds.
    fn batch(&mut self, at: Position, head: &BatchHead, payload: &[u8]) -> Result<bool, WalError>;
    /// Batches `first..=last`, which were durable, cannot be read. They lay at `at` and after it.
    fn hole(&mut self, at: Position, first: u64, last: u64);
    /// Nothing more is wanted.
    fn is_done(&self) -> bool {
        false
    }
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    /// After the last sound batch.
    pub(crate) at: Position,
    /// The last sound batch.
    pub(crate) seq: u64,
    pub(crate) chain: u64,
    /// Durable batches may have been lost at the end.
    pub(crate) suspect: bool,
    /// Something of this log lay beyond.
    pub(crate) torn: bool,
    /// The highest batch number seen, cut off or not.
    pub(crate) seq_seen: u64,
}

/// A batch at a place, or what is there instead.
pub(crate) enum Seen {
    Sound(BatchHead),
    /// The header holds, the rest does not.
    Broken(BatchHead),
    Nothing,
    Unreadable,
}

/// Looks at one place.
pub(crate) fn look<D: Disk>(
    readers: &mut Readers<'_, D>,
    link: &Link,
    offset: u64,
) -> Result<Seen, WalError> {
    let seed = link.uuid.seed();
    let header = match readers.get(link.file_no, offset, BLOCK_BYTES) {
        Ok(bytes) => BatchHead::decode(bytes, seed, link.uuid.low()),
        Err(DiskError::Crashed) => return Err(DiskError::Crashed.into()),
        Err(_) => return Ok(Seen::Unreadable),
    };
    let epoch = link.head.map(|head| head.boot_epoch as u32);
    let ours =
        |head: &BatchHead| head.self_off == offset && epoch.is_none_or(|epoch| epoch == head.boot_epoch);
    let Some(head) = header.filter(ours) else { return Ok(Seen::Nothing) };
    let bytes = match readers.get(link.file_no, offset, head.batch_bytes() as usize) {
        Ok(bytes) => bytes,
        Err(DiskError::Crashed) => return Err(DiskError::Crashed.into()),
        Err(_) => return Ok(Seen::Broken(head)),
    };
    let whole = bytes.len() as u64 == head.batch_bytes();
    if whole && head.payload_holds(&bytes[BATCH_HEADER_BYTES..], seed) {
        return Ok(Seen::Sound(head));
    }
    Ok(Seen::Broken(head))
}

/// What lies beyond a bad batch.
#[derive(Debug, Default)]
struct Beyond {
    /// The newest batch that is proven to have been durable.
    proven: u64,
    unreadable: bool,
    seq_seen: u64,
    /// The first sound batch: (link, offset, header).
    resume: Option<(usize, u64, BatchHead)>,
}

/// The walk.
pub(crate) struct Scan<'a, 'd, D: Disk> {
    readers: &'a mut Readers<'d, D>,
    links: &'a [Link],
    link: usize,
    offset: u64,
    seq: u64,
    /// Of the batch before; `None` after a hole: then it is taken from the next batch.
    chain: Option<u64>,
    /// Of the last sound batch.
    last_chain: u64,
    seq_seen: u64,
    /// Every checksum of the next batch holds, and yet its records make no sense.
    nonsense: bool,
}

impl<'a, 'd, D: Disk> Scan<'a, 'd, D> {
    /// `None` if the place is in none of the links.
    pub(crate) fn new(readers: &'a mut Readers<'d, D>, links: &'a [Link], from: Begin) -> Option<Self> {
        let link = links.iter().position(|link| link.file_no == from.at.file_no)?;
        Some(Self {
            readers,
            links,
            link,
            offset: from.at.offset,
            seq: from.seq,
            chain: Some(from.chain),
            last_chain: from.chain,
            seq_seen: from.seq.saturating_sub(1),
            nonsense: false,
        })
    }

    /// From the oldest batch that holds; `None` if there is none.
    pub(crate) fn from_oldest(
        readers: &'a mut Readers<'d, D>,
        links: &'a [Link],
    ) -> Result<Option<Self>, WalError> {
        for link in links {
            let end = link.cut.map_or(link.bytes, |cut| cut.end).min(link.bytes);
            let mut offset = HEAD_AREA_BYTES;
            while offset < end.min(LOOK_AHEAD_BYTES) {
                if let Seen::Sound(head) = look(readers, link, offset)? {
                    let at = Position { file_no: link.file_no, offset };
                    let from = Begin { at, seq: head.seq, chain: head.prev_chain };
                    return Ok(Self::new(readers, links, from));
                }
                offset += BLOCK;
            }
        }
        Ok(None)
    }

    /// The batch that it begins with.
    pub(crate) fn first_seq(&self) -> u64 {
        self.seq
    }

    /// Walks to the end of the log.
    ///
    /// # Errors
    /// A record that must be understood and is not known; or the disk is gone.
    pub(crate) fn run(mut self, sink: &mut impl Sink) -> Result<Tail, WalError> {
        loop {
            if sink.is_done() {
                return Ok(self.tail(false, false));
            }
            if self.cut().is_some_and(|cut| self.offset >= cut.end) {
                self.pass_cut(sink);
                continue;
            }
            if self.take(sink, self.link, self.offset)? || self.begin_next_file(sink)? {
                continue;
            }
            if let Some(tail) = self.judge(sink)? {
                return Ok(tail);
            }
        }
    }

    fn at(&self) -> Position {
        Position { file_no: self.links[self.link].file_no, offset: self.offset }
    }

    fn cut(&self) -> Option<crate::format::head::Cut> {
        self.links[self.link].cut
    }

    /// Goes over to the file that cut this one off.
    fn pass_cut(&mut self, sink: &mut impl Sink) {
        let Some(cut) = self.cut() else { return };
        if self.seq <= cut.end_seq {
            sink.hole(self.at(), self.seq, cut.end_seq);
        }
        if cut.suspect {
            sink.hole(self.at(), cut.end_seq + 1, cut.end_seq + WRITES_IN_FLIGHT_MAX as u64);
        }
        self.link += 1;
        self.offset = HEAD_AREA_BYTES;
        self.seq = self.links[self.link].head.map_or(cut.end_seq + 1, |head| head.first_seq);
        self.chain = self.links[self.link].head.map(|_| cut.end_chain);
        self.last_chain = cut.end_chain;
    }

    /// Takes the batch at a place if it is the next one.
    fn take(&mut self, sink: &mut impl Sink, link: usize, offset: u64) -> Result<bool, WalError> {
        let head = match look(self.readers, &self.links[link], offset)? {
            Seen::Sound(head) => head,
            #[cfg(feature = "breaks")]
            Seen::Broken(head) if crate::breaks::is_on(crate::breaks::Break::TornTailAccepted) => head,
            _ => return Ok(false),
        };
        if head.seq != self.seq || self.chain.is_some_and(|chain| chain != head.prev_chain) {
            return Ok(false);
        }
        let file_no = self.links[link].file_no;
        let at = Position { file_no, offset };
        let payload_bytes = head.payload_bytes as usize;
        let Ok(payload) = self.readers.get(file_no, offset + BATCH_HEADER_BYTES as u64, payload_bytes) else {
            return Ok(false);
        };
        if !sink.batch(at, &head, payload)? {
            self.nonsense = true;
            return Ok(false);
        }
        (self.link, self.offset) = (link, offset + head.batch_bytes());
        self.seq = head.seq + 1;
        self.seq_seen = self.seq_seen.max(head.seq);
        self.chain = Some(head.chain);
        self.last_chain = head.chain;
        Ok(true)
    }

    /// The log may go on in the next file of the same start: then that file's first batch is the next one.
    fn begin_next_file(&mut self, sink: &mut impl Sink) -> Result<bool, WalError> {
        let next = self.link + 1;
        if self.cut().is_some() || next == self.links.len() {
            return Ok(false);
        }
        self.take(sink, next, HEAD_AREA_BYTES)
    }

    /// The batch here does not hold: corruption, or the end? `None`: go on, the scan stands at the next sound batch.
    fn judge(&mut self, sink: &mut impl Sink) -> Result<Option<Tail>, WalError> {
        let mut beyond = self.look_beyond(LOOK_AHEAD_BYTES)?;
        let cut = self.cut();
        let whole = if std::mem::take(&mut self.nonsense) { self.seq } else { 0 };
        let proven = beyond.proven.max(cut.map_or(0, |cut| cut.end_seq)).max(whole);
        self.seq_seen = self.seq_seen.max(beyond.seq_seen).max(proven);
        #[cfg(feature = "breaks")]
        if crate::breaks::is_on(crate::breaks::Break::CorruptTailDropped) {
            return Ok(Some(self.tail(false, true)));
        }
        if self.seq > proven {
            let torn = beyond.seq_seen >= self.seq;
            return Ok(Some(self.tail(beyond.unreadable || self.is_mutilated(), torn)));
        }
        if beyond.resume.is_none() {
            beyond = self.look_beyond(u64::MAX)?;
            self.seq_seen = self.seq_seen.max(beyond.seq_seen);
        }
        if let Some((link, offset, head)) = beyond.resume {
            sink.hole(self.at(), self.seq, head.seq - 1);
            (self.link, self.offset, self.seq, self.chain) = (link, offset, head.seq, None);
            return Ok(None);
        }
        match cut {
            // Nothing holds up to the cut: go on behind it.
            Some(cut) => {
                self.offset = cut.end;
                Ok(None)
            }
            None => {
                sink.hole(self.at(), self.seq, proven);
                Ok(Some(self.tail(true, true)))
            }
        }
    }

    /// Whether a file from here on is missing, has no sound head, or is shorter than it was made: no crash does that.
    fn is_mutilated(&self) -> bool {
        let mut rest = self.links[self.link..].iter();
        rest.any(|link| link.head.is_none_or(|head| link.bytes < head.file_bytes))
    }

    fn tail(&self, suspect: bool, torn: bool) -> Tail {
        let (at, seq) = (self.at(), self.seq.saturating_sub(1));
        Tail { at, seq, chain: self.last_chain, suspect, torn, seq_seen: self.seq_seen }
    }

    /// Looks at every block after this one, up to `limit` bytes in each file, to the end of the log or the next cut.
    fn look_beyond(&mut self, limit: u64) -> Result<Beyond, WalError> {
        let mut beyond = Beyond::default();
        let mut offset = self.offset;
        for index in self.link..self.links.len() {
            let link = self.links[index];
            let window = link.head.map_or(WRITES_IN_FLIGHT_MAX as u32, |head| head.window);
            let end = link.cut.map_or(link.bytes, |cut| cut.end).min(link.bytes);
            let end = end.min(offset.saturating_add(limit));
            while offset < end {
                let here = (index, offset) == (self.link, self.offset);
                offset += match look(self.readers, &link, offset)? {
                    Seen::Sound(head) => {
                        beyond.note(&head, window);
                        if !here && head.seq > self.seq && beyond.resume.is_none() {
                            beyond.resume = Some((index, offset, head));
                        }
                        if here { BLOCK } else { head.batch_bytes() }
                    }
                    Seen::Broken(head) => {
                        beyond.note(&head, window);
                        BLOCK
                    }
                    Seen::Nothing => BLOCK,
                    Seen::Unreadable => {
                        beyond.unreadable = true;
                        BLOCK
                    }
                };
            }
            if link.cut.is_some() {
                break;
            }
            offset = HEAD_AREA_BYTES;
        }
        Ok(beyond)
    }
}

impl Beyond {
    fn note(&mut self, head: &BatchHead, window: u32) {
        self.proven = self.proven.max(head.proves_durable(window));
        self.seq_seen = self.seq_seen.max(head.seq);
    }
}
