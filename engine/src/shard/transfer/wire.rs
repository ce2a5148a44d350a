//! What members say to each other about a snapshot on its way, and its bytes. Pure codec.
//!
//! ```text
//!   key     index u64, term u64, bytes u64, crc u32: which snapshot; nothing is taken that names another one
//!   offer   raft_term u64, key, live u64 (entries that live on below it), flags u8 (1: only the machine's state is wanted;
//!           2: members follow: index u64, then as in a hard state)
//!   want    key, part u8 (0 chunks, 1 live entries), then chunks: next u64, end u64; live entries: next u64
//!   chunk   key, number u64; payload: the chunk's bytes
//!   live    key, from u64, next u64 (0: there are no more); payload: runs of entries, in order
//! ```

use coracle_base::codec::{Reader, Sink};
use coracle_base::{Index, Term};
use coracle_raft::Configured;

use crate::transport::envelope::EnvelopeError;

/// No honest snapshot counts so far: adding to what is below never overflows.
const NUMBER_MAX: u64 = 1 << 62;
const STATE_ONLY: u8 = 1;
const CONFIGURED: u8 = 2;

/// Which snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

/// A snapshot is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The sender's term: a leader's, unless only the state is wanted.
    pub(crate) raft_term: Term,
    pub(crate) key: Key,
    /// Entries that live on below it, and come with it.
    pub(crate) live: u64,
    /// It is for a machine whose own snapshot is damaged: the log is not concerned.
    pub(crate) state_only: bool,
    /// The members that go with it, if they ever changed.
    pub(crate) configured: Option<Box<Configured>>,
}

/// What of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// These chunks.
    Chunks { next: u64, end: u64 },
    /// Some entries that live on, from this index.
    Live { next: Index },
}

/// Something of it, please.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) key: Key,
    pub(crate) part: Part,
}

/// What goes with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: Key,
    pub(crate) number: u64,
}

/// What goes with entries that live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) key: Key,
    /// As they were asked for.
    pub(crate) from: Index,
    /// Where the next ones begin, if there are more.
    pub(crate) next: Option<Index>,
}

fn number(reader: &mut Reader<'_>) -> Result<u64, EnvelopeError> {
    match reader.u64()? {
        number if number <= NUMBER_MAX => Ok(number),
        _ => Err(EnvelopeError::Message("an impossible number".into())),
    }
}

/// Nothing may follow.
fn end<T>(reader: &Reader<'_>, value: T) -> Result<T, EnvelopeError> {
    match reader.is_empty() {
        true => Ok(value),
        false => Err(EnvelopeError::Message("bytes after a message's last field".into())),
    }
}

impl Key {
    fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.index.0, self.term.0, self.bytes] {
            out.put_u64(word);
        }
        out.put_u32(self.crc);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, EnvelopeError> {
        let (index, term) = (Index(number(reader)?), Term(number(reader)?));
        let key = Self { index, term, bytes: number(reader)?, crc: reader.u32()? };
        match index > Index::ZERO && key.bytes > 0 {
            true => Ok(key),
            false => Err(EnvelopeError::Message("a snapshot of nothing".into())),
        }
    }
}

impl Offer {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.raft_term.0);
        self.key.encode(out);
        out.put_u64(self.live);
        let configured = if self.configured.is_some() { CONFIGURED } else { 0 };
        out.put_u8(configured | if self.state_only { STATE_ONLY } else { 0 });
        if let Some(configured) = &self.configured {
            configured.encode(out);
        }
    }

    pub(crate) fn decode(fields: &[u8]) -> Result<Self, EnvelopeError> {
        let mut reader = Reader::new(fields);
        let (raft_term, key) = (Term(number(&mut reader)?), Key::decode(&mut reader)?);
        let (live, flags) = (number(&mut reader)?, reader.u8()?);
        if flags > STATE_ONLY | CONFIGURED || live > key.index.0 {
            return Err(EnvelopeError::Message("an impossible offer".into()));
        }
        let configured = match flags & CONFIGURED {
            0 => None,
            _ => Some(
                Configured::decode(&mut reader).map_err(|error| EnvelopeError::Message(error.to_string()))?,
            ),
        };
        let state_only = flags & STATE_ONLY != 0;
        end(&reader, Self { raft_term, key, live, state_only, configured: configured.map(Box::new) })
    }
}

impl Want {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.key.encode(out);
        match self.part {
            Part::Chunks { next, end } => {
                out.put_u8(0);
                out.put_u64(next);
                out.put_u64(end);
            }
            Part::Live { next } => {
                out.put_u8(1);
                out.put_u64(next.0);
            }
        }
    }

    pub(crate) fn decode(fields: &[u8]) -> Result<Self, EnvelopeError> {
        let mut reader = Reader::new(fields);
        let key = Key::decode(&mut reader)?;
        let part = match reader.u8()? {
            0 => Part::Chunks { next: number(&mut reader)?, end: number(&mut reader)? },
            1 => Part::Live { next: Index(number(&mut reader)?) },
            part => return Err(EnvelopeError::Message(format!("unknown part {part} of a snapshot"))),
        };
        end(&reader, Self { key, part })
    }
}

impl Chunk {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.key.encode(out);
        out.put_u64(self.number);
    }

    pub(crate) fn decode(fields: &[u8]) -> Result<Self, EnvelopeError> {
        let mut reader = Reader::new(fields);
        let chunk = Self { key: Key::decode(&mut reader)?, number: number(&mut reader)? };
        end(&reader, chunk)
    }
}

impl Live {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.key.encode(out);
        out.put_u64(self.from.0);
        out.put_u64(self.next.unwrap_or(Index::ZERO).0);
    }

    pub(crate) fn decode(fields: &[u8]) -> Result<Self, EnvelopeError> {
        let mut reader = Reader::new(fields);
        let key = Key::decode(&mut reader)?;
        let (from, next) = (Index(number(&mut reader)?), Index(number(&mut reader)?));
        let next = Some(next).filter(|next| *next > Index::ZERO);
        if next.is_some_and(|next| next <= from || next > key.index) {
            return Err(EnvelopeError::Message("live entries that go nowhere".into()));
        }
        end(&reader, Self { key, from, next })
    }
}

#[cfg(test)]
mod tests {
    use coracle_base::NodeId;
    use coracle_raft::Members;

    use super::*;

    const KEY: Key = Key { index: Index(900), term: Term(7), bytes: 1 << 40, crc: 0xDEAD_BEEF };

    /// Comes back whole, and neither shorter nor longer.
    fn check<T: PartialEq + std::fmt::Debug>(
        value: T,
        encode: impl Fn(&T, &mut Vec<u8>),
        decode: impl Fn(&[u8]) -> Result<T, EnvelopeError>,
    ) {
        let mut bytes = Vec::new();
        encode(&value, &mut bytes);
        assert_eq!(decode(&bytes), Ok(value));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        bytes.push(0);
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn round_trips_and_truncations() {
        let members = Members::of_voters([NodeId(1), NodeId(3), NodeId(8)]);
        for (state_only, index) in [(false, None), (false, Some(Index(880))), (true, None)] {
            let configured = index.map(|index| Box::new(Configured { index, members: members.clone() }));
            let offer = Offer { raft_term: Term(9), key: KEY, live: 12, state_only, configured };
            check(offer, Offer::encode, Offer::decode);
        }
        for part in [Part::Chunks { next: 3, end: 11 }, Part::Live { next: Index(5) }] {
            check(Want { key: KEY, part }, Want::encode, Want::decode);
        }
        check(Chunk { key: KEY, number: 4 }, Chunk::encode, Chunk::decode);
        for next in [None, Some(Index(800))] {
            check(Live { key: KEY, from: Index(5), next }, Live::encode, Live::decode);
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        let offer = |key, live| {
            let mut bytes = Vec::new();
            let configured = None;
            Offer { raft_term: Term(1), key, live, state_only: false, configured }.encode(&mut bytes);
            Offer::decode(&bytes)
        };
        assert!(offer(KEY, 900).is_ok());
        assert!(offer(KEY, 901).is_err(), "more entries than it covers");
        assert!(offer(Key { index: Index(0), ..KEY }, 0).is_err());
        assert!(offer(Key { bytes: 0, ..KEY }, 0).is_err());
        assert!(offer(Key { bytes: u64::MAX, ..KEY }, 0).is_err());
        for (from, next) in [(5, 5), (5, 4), (5, 901)] {
            let mut bytes = Vec::new();
            Live { key: KEY, from: Index(from), next: Some(Index(next)) }.encode(&mut bytes);
            assert!(Live::decode(&bytes).is_err(), "{from} {next}");
        }
    }
}
