//! The run: a span of consecutive entries of one group, and the unit of everything. The bytes that a leader encodes
//! go unchanged into its WAL, over the wire and into the followers' WALs.
//!
//! ```text
//!   run header, 48 bytes (little-endian)
//!   offset  size  field
//!   0       8     group          uid
//!   8       8     accepted_term  term of the leader that sent (or made) this run
//!   16      8     prev_index     the first entry's index is prev_index + 1
//!   24      8     prev_term      term of the entry at prev_index
//!   32      4     count          entries, 1..=RUN_ENTRIES_MAX (0 only on the wire: a probe)
//!   36      4     body_bytes     all entries with their headers
//!   40      4     flags          0; an unknown bit must be understood, so the run is refused
//!   44      4     crc32c         of [0, 44), then of each entry's header in order
//!
//!   entry: header of 32 bytes, then the payload
//!   0       8     term           non-decreasing along a run, at most accepted_term
//!   8       8     tag            the proposer's own word, returned with the reply
//!   16      6     time_ms        the log's time: the leader's clock, never going back; milliseconds since 1970
//!   22      1     kind           EntryKind
//!   23      1     flags          0
//!   24      4     payload_bytes
//!   28      4     payload_crc    crc32c of the payload, made by the proposer and checked at every hop
//! ```
//!
//! Invariants: (1) every byte of a run is under the header's checksum or a payload's; (2) a [`RunRef`] exists only for
//! bytes whose header checksum held and whose entries fill the body exactly.

use crate::checksum::{crc32c, crc32c_from};
use crate::codec::{Reader, Sink, Truncated};
use crate::limits::{ENTRY_BYTES_MAX, RUN_BYTES_MAX, RUN_ENTRIES_MAX};
use crate::{GroupId, Index, Term};

/// Bytes of an encoded run header.
pub const RUN_HEADER_BYTES: usize = 48;
/// Bytes of an encoded entry header.
pub const ENTRY_HEADER_BYTES: usize = 32;
/// The largest time that an entry's header holds.
pub(crate) const TIME_MAX: u64 = (1 << 48) - 1;

/// What an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A command for the machine.
    Command = 0,
    /// A new leader's first entry; the machine does not see it.
    Noop = 1,
    /// A change of members; the machine does not see it.
    Config = 2,
}

impl EntryKind {
    fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Command),
            1 => Some(Self::Noop),
            2 => Some(Self::Config),
            _ => None,
        }
    }
}

/// Why bytes are not a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The bytes end too early.
    #[error("run ends early: {0}")]
    Truncated(#[from] Truncated),
    /// A count or length is beyond its limit.
    #[error("run of {count} entries and {body_bytes} bytes is beyond the limits")]
    TooLarge {
        /// Entries claimed.
        count: u32,
        /// Body bytes claimed.
        body_bytes: u32,
    },
    /// The header's checksum does not hold.
    #[error("run header checksum is {found:#010x}, expected {expected:#010x}")]
    Header {
        /// What the header says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// A payload's checksum does not hold.
    #[error("payload checksum of entry {index} does not hold")]
    Payload {
        /// The entry.
        index: Index,
    },
    /// The checksum holds, and yet a field is impossible: made by a newer version, or a bug.
    #[error("run has an impossible or unknown {field}")]
    Field {
        /// Which one.
        field: &'static str,
    },
}

/// A run's header, without its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunHeader {
    /// The group's uid.
    pub group: GroupId,
    /// Term of the leader that sent or made the run.
    pub accepted_term: Term,
    /// Index before the first entry.
    pub prev_index: Index,
    /// Term at `prev_index`.
    pub prev_term: Term,
    /// Number of entries.
    pub count: u32,
    /// Bytes of all entries with their headers.
    pub body_bytes: u32,
}

impl RunHeader {
    /// Index of the first entry.
    pub fn first(&self) -> Index {
        self.prev_index.next()
    }

    /// Index of the last entry; `prev_index` if there is none.
    pub fn last(&self) -> Index {
        self.prev_index.plus(u64::from(self.count))
    }

    /// Bytes of the whole encoded run.
    pub fn encoded_bytes(&self) -> usize {
        RUN_HEADER_BYTES + self.body_bytes as usize
    }

    #[inline]
    fn bytes_with(&self, crc: u32) -> [u8; RUN_HEADER_BYTES] {
        let count_and_bytes = u64::from(self.count) | u64::from(self.body_bytes) << 32;
        let (index, flags_and_crc) = (self.prev_index.0, u64::from(crc) << 32);
        let mut out = [0; RUN_HEADER_BYTES];
        let words =
            [self.group.0, self.accepted_term.0, index, self.prev_term.0, count_and_bytes, flags_and_crc];
        put_words(&mut out, words);
        out
    }

    /// The 48 bytes of this header before `body`, given as the pieces that it lies in. Each piece holds whole entries.
    ///
    /// # Panics
    /// If the pieces do not hold exactly `count` well-formed entries in `body_bytes` bytes: the caller's mistake.
    #[inline]
    pub fn encode(&self, body: &[&[u8]]) -> [u8; RUN_HEADER_BYTES] {
        // Made of the fields, not of what was summed: see `put_words`.
        self.bytes_with(self.sum(body))
    }

    /// The header's checksum before this body.
    fn sum(&self, body: &[&[u8]]) -> u32 {
        let mut crc = crc32c(&self.bytes_with(0)[..44]);
        let (mut count, mut bytes) = (0, 0);
        for piece in body {
            let mut rest = *piece;
            while let Some((header, after)) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>() {
                crc = crc32c_from(crc, header);
                rest = &after[payload_bytes(header)..];
                count += 1;
            }
            assert!(rest.is_empty(), "a piece of a run ends inside an entry");
            bytes += piece.len();
        }
        assert_eq!(
            (count, bytes),
            (self.count, self.body_bytes as usize),
            "a run's header disagrees with its body"
        );
        crc
    }

    /// Appends header and body to `out`.
    ///
    /// # Panics
    /// As [`encode`](Self::encode).
    pub fn encode_run(&self, body: &[&[u8]], out: &mut impl Sink) {
        out.put(&self.encode(body));
        for piece in body {
            out.put(piece);
        }
    }
}

/// Headers are written in whole words, of which no part is changed afterwards: a CPU that reads back what it has just
/// written in smaller pieces waits until that has reached the cache.
#[inline]
fn put_words<const WORDS: usize>(out: &mut [u8], words: [u64; WORDS]) {
    for (out, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *out = word.to_le_bytes();
    }
}

#[inline]
pub(crate) fn payload_bytes(header: &[u8; ENTRY_HEADER_BYTES]) -> usize {
    u32::from_le_bytes([header[24], header[25], header[26], header[27]]) as usize
}

/// Writes term and time into an entry's header.
#[inline]
pub(crate) fn stamp(header: &mut [u8; ENTRY_HEADER_BYTES], term: Term, time_ms: u64) {
    let (words, _) = header.as_chunks_mut::<8>();
    words[0] = term.0.to_le_bytes();
    words[2] = (u64::from_le_bytes(words[2]) & !TIME_MAX | time_ms & TIME_MAX).to_le_bytes();
}

/// Whether each of these encoded entries is there to its end and its payload's checksum holds, whatever the headers else
/// say.
fn payloads_hold(mut entries: &[u8]) -> bool {
    while let Some((header, after)) = entries.split_first_chunk::<ENTRY_HEADER_BYTES>() {
        let Some((payload, rest)) = after.split_at_checked(payload_bytes(header)) else { return false };
        if crc32c(payload).to_le_bytes() != header[28..] {
            return false;
        }
        entries = rest;
    }
    entries.is_empty()
}

/// The term of the first of these encoded entries.
pub fn first_term(entries: &[u8]) -> Option<Term> {
    entries.first_chunk().map(|term| Term(u64::from_le_bytes(*term)))
}

/// One entry's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// Term of the leader that made it.
    pub term: Term,
    /// The proposer's own word.
    pub tag: u64,
    /// The log's time, milliseconds since 1970.
    pub time_ms: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// The payload's CRC32C.
    pub payload_crc: u32,
}

impl EntryHeader {
    #[inline]
    pub(crate) fn encode(&self) -> [u8; ENTRY_HEADER_BYTES] {
        let time_and_kind = self.time_ms & TIME_MAX | u64::from(self.kind as u8) << 48;
        let bytes_and_crc = u64::from(self.payload_bytes) | u64::from(self.payload_crc) << 32;
        let mut out = [0; ENTRY_HEADER_BYTES];
        put_words(&mut out, [self.term.0, self.tag, time_and_kind, bytes_and_crc]);
        out
    }

    fn decode(bytes: &[u8; ENTRY_HEADER_BYTES]) -> Result<Self, RunError> {
        let mut reader = Reader::new(bytes);
        let term = Term(reader.u64()?);
        let tag = reader.u64()?;
        let time = reader.u64()?;
        if time >> 56 != 0 {
            return Err(RunError::Field { field: "entry flag" });
        }
        let kind = EntryKind::from_u8((time >> 48) as u8).ok_or(RunError::Field { field: "entry kind" })?;
        let (payload_bytes, payload_crc) = (reader.u32()?, reader.u32()?);
        if payload_bytes as usize > ENTRY_BYTES_MAX {
            return Err(RunError::Field { field: "payload length" });
        }
        Ok(Self { term, tag, time_ms: time & TIME_MAX, kind, payload_bytes, payload_crc })
    }
}

/// One entry of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Its place in the log.
    pub index: Index,
    /// Its header.
    pub header: EntryHeader,
    /// What was proposed.
    pub payload: &'a [u8],
}

/// A run in place: bytes whose header checksum held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunRef<'a> {
    /// The header.
    pub header: RunHeader,
    /// The entries, encoded.
    pub body: &'a [u8],
}

impl<'a> RunRef<'a> {
    /// The run at the start of `bytes`. Checks the header and every entry's header, not the payloads.
    ///
    /// # Errors
    /// [`RunError`]: the bytes are not a whole, sound run. Nothing is allocated.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RunError> {
        let (run, flags) = Self::whole(bytes)?;
        if flags != 0 {
            return Err(RunError::Field { field: "run flag" });
        }
        run.check_entries()?;
        Ok(run)
    }

    /// Bytes of the run at the start of `bytes`, if each of them is as it was written; whatever it means: also if a newer
    /// program wrote it and [`parse`](Self::parse) does not understand it.
    pub fn intact(bytes: &[u8]) -> Option<usize> {
        let (run, _) = RunRef::whole(bytes).ok()?;
        payloads_hold(run.body).then(|| run.header.encoded_bytes())
    }

    /// The run and its flags, if all of it is there and its headers' checksum holds.
    fn whole(bytes: &'a [u8]) -> Result<(Self, u32), RunError> {
        let mut reader = Reader::new(bytes);
        let fields: &[u8; 44] = reader.bytes(44)?.try_into().expect("44 bytes were asked for");
        let found = reader.u32()?;
        let mut field = Reader::new(fields);
        let header = RunHeader {
            group: GroupId(field.u64()?),
            accepted_term: Term(field.u64()?),
            prev_index: Index(field.u64()?),
            prev_term: Term(field.u64()?),
            count: field.u32()?,
            body_bytes: field.u32()?,
        };
        let flags = field.u32()?;
        let RunHeader { count, body_bytes, .. } = header;
        if count > RUN_ENTRIES_MAX || body_bytes as usize > RUN_BYTES_MAX {
            return Err(RunError::TooLarge { count, body_bytes });
        }
        let body = reader.bytes(body_bytes as usize)?;
        let mut expected = crc32c(fields);
        let mut rest = body;
        for _ in 0..count {
            let (entry, after) = rest
                .split_first_chunk::<ENTRY_HEADER_BYTES>()
                .ok_or_else(|| Truncated { missing: ENTRY_HEADER_BYTES - rest.len() })?;
            expected = crc32c_from(expected, entry);
            let bytes = payload_bytes(entry);
            rest = after.get(bytes..).ok_or_else(|| Truncated { missing: bytes - after.len() })?;
        }
        if expected != found {
            return Err(RunError::Header { found, expected });
        }
        if !rest.is_empty() {
            return Err(RunError::Field { field: "body length" });
        }
        Ok((Self { header, body }, flags))
    }

    /// Every entry's header has only possible values, and terms never fall.
    fn check_entries(&self) -> Result<(), RunError> {
        // Far from where sums with an index could overflow.
        if self.header.prev_index.0 > u64::MAX >> 2 {
            return Err(RunError::Field { field: "index" });
        }
        let (mut rest, mut term) = (self.body, self.header.prev_term);
        while let Some((header, after)) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>() {
            let header = EntryHeader::decode(header)?;
            if header.term < term || header.term > self.header.accepted_term {
                return Err(RunError::Field { field: "entry term" });
            }
            term = header.term;
            rest = &after[header.payload_bytes as usize..];
        }
        Ok(())
    }

    /// A run of bytes that this process encoded or has parsed before: the header is taken as it is.
    pub fn trusted(header: RunHeader, body: &'a [u8]) -> Self {
        Self { header, body }
    }

    /// Checks every payload against its checksum.
    ///
    /// # Errors
    /// [`RunError::Payload`] names the first entry that does not hold.
    pub fn check_payloads(&self) -> Result<(), RunError> {
        for entry in self.entries() {
            if crc32c(entry.payload) != entry.header.payload_crc {
                return Err(RunError::Payload { index: entry.index });
            }
        }
        Ok(())
    }

    /// The entries in order.
    pub fn entries(&self) -> Entries<'a> {
        Entries { next: self.header.first(), rest: self.body }
    }

    /// The spans of equal terms, in order: (term, entries).
    pub fn term_spans(&self) -> impl Iterator<Item = (Term, u32)> + 'a {
        let mut entries = self.entries().peekable();
        core::iter::from_fn(move || {
            let term = entries.next()?.header.term;
            let mut count = 1;
            while entries.next_if(|entry| entry.header.term == term).is_some() {
                count += 1;
            }
            Some((term, count))
        })
    }
}

/// Walks the entries of a run or of any encoded entries.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    next: Index,
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// The entries in `body`, the first of which is at `first`. Ends at the first byte that is not a whole entry.
    pub fn new(first: Index, body: &'a [u8]) -> Self {
        Self { next: first, rest: body }
    }

    /// The bytes not walked yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = EntryRef<'a>;

    fn next(&mut self) -> Option<EntryRef<'a>> {
        let (header, after) = self.rest.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
        let header = EntryHeader::decode(header).ok()?;
        let (payload, rest) = after.split_at_checked(header.payload_bytes as usize)?;
        let index = self.next;
        self.next = index.next();
        self.rest = rest;
        Some(EntryRef { index, header, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntryBatch;
    use proptest::prelude::*;

    fn encoded(payloads: &[Vec<u8>]) -> (RunHeader, Vec<u8>) {
        let mut batch = EntryBatch::new();
        for (i, payload) in payloads.iter().enumerate() {
            batch.push(i as u64, EntryKind::Command, payload).unwrap();
        }
        batch.stamp(Term(3), 1_700_000_000_123);
        let header = RunHeader {
            group: GroupId(7),
            accepted_term: Term(4),
            prev_index: Index(10),
            prev_term: Term(2),
            count: batch.count(),
            body_bytes: batch.bytes().len() as u32,
        };
        let mut out = Vec::new();
        header.encode_run(&[batch.bytes()], &mut out);
        (header, out)
    }

    #[test]
    fn golden_bytes() {
        let (_, bytes) = encoded(&[b"hi".to_vec()]);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("../testdata/run-v1.hex").trim());
    }

    proptest! {
        #[test]
        fn round_trip(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20)) {
            let (header, bytes) = encoded(&payloads);
            let run = RunRef::parse(&bytes).unwrap();
            prop_assert_eq!(run.header, header);
            run.check_payloads().unwrap();
            let got: Vec<Vec<u8>> = run.entries().map(|e| e.payload.to_vec()).collect();
            prop_assert_eq!(got, payloads);
            prop_assert_eq!(run.term_spans().collect::<Vec<_>>(), vec![(Term(3), header.count)]);
        }

        #[test]
        fn every_flip_and_every_truncation_is_noticed(at in 0usize..200, bit in 0u8..8, cut in 0usize..200) {
            let (_, mut bytes) = encoded(&[b"first".to_vec(), vec![], b"third entry".to_vec()]);
            let (at, cut) = (at % bytes.len(), cut % bytes.len());
            prop_assert!(RunRef::parse(&bytes[..cut]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(RunRef::parse(&bytes).and_then(|run| run.check_payloads()).is_err());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 0u32..9) {
            let _ = RunRef::parse(&bytes).map(|run| (run.check_payloads(), run.term_spans().count()));
            let _ = EntryBatch::decode(count, bytes);
        }
    }
}
