//! What an envelope carries: messages with their payloads, in order. Pure codec.
//!
//! ```text
//!   head:  0   8  echo            newest envelope of the other side that had arrived here
//!          8   4  messages
//!          12  .. messages, each:
//!                 1  kind         1 raft, 2 forward, 3 query, 4 replies, 5 snapshot wanted;
//!                                 since version 2: 6 offer, 7 want, 8 chunk, 9 live (`shard/transfer/wire.rs`);
//!                                 since version 3: 10 read indexes wanted, 11 read indexes;
//!                                 since version 4: 12 durable
//!                 8  group
//!                 4  payload_bytes, in the tail, in order
//!                 4  payload_crc  crc32c of the payload; 0 for a raft append: a run has checksums of its own
//!                 2  field_bytes
//!                 .. fields       by kind (raft: `coracle_raft::message`)
//!   forward fields: request u64, count u32; payload: the encoded entries
//!   query fields:   request u64, consistency u8 (0 leader, 1 linearizable), tag u64; payload: the question
//!   replies payload: records {request u64, tag u64, status u8, index u64, leader u64, bytes u32, reply}
//!                   status 0 done, 1..=99 not done by reason, 100.. unknown
//!   read indexes wanted payload: records {request u64, group u64}
//!   read indexes payload: records {request u64, status u8, index u64}
//!                   status 0: what was committed up to index is all that was acknowledged before; 1..=99 as above
//!   durable fields: seq u64, the last batch that what the sender says may rest on; group 0
//!   snapshot wanted fields: base u64, the last entry that the sender's own, damaged one covered
//! ```

use coracle_base::GroupId;
use coracle_base::checksum::crc32c;
use coracle_base::codec::{Reader, Sink, Truncated};

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Between the members of a group.
    Raft = 1,
    /// Entries on their way to the leader.
    Forward = 2,
    /// A question on its way to the leader.
    Query = 3,
    /// Answers to forwarded entries and questions.
    Replies = 4,
    /// A member's own snapshot is damaged: it asks the leader for one.
    WantSnapshot = 5,
    /// A snapshot is to be had.
    Offer = 6,
    /// What of it is wanted.
    Want = 7,
    /// A piece of it; on the bulk connection.
    Chunk = 8,
    /// Entries that live on below it; on the bulk connection.
    Live = 9,
    /// How far must a member have come whose machine is to answer questions? Of many groups.
    WantIndexes = 10,
    /// So far.
    Indexes = 11,
    /// How far the sender is durable.
    Durable = 12,
}

impl Kind {
    /// The first version of the protocol that knows it.
    pub(crate) fn since(self) -> u16 {
        match self {
            Self::Raft | Self::Forward | Self::Query | Self::Replies | Self::WantSnapshot => 1,
            Self::Offer | Self::Want | Self::Chunk | Self::Live => 2,
            Self::WantIndexes | Self::Indexes => 3,
            Self::Durable => 4,
        }
    }
}

/// Why an envelope is not understood: the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvelopeError {
    #[error("envelope ends early: {0}")]
    Truncated(#[from] Truncated),
    #[error("unknown message kind {0}")]
    Kind(u8),
    #[error("a payload's checksum does not hold")]
    Payload,
    #[error("{0}")]
    Message(String),
}

/// One message in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) kind: Kind,
    pub(crate) group: GroupId,
    pub(crate) fields: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// An envelope being filled: reused, so that filling it does not allocate.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    head: Vec<u8>,
    tail: Vec<u8>,
    messages: u32,
    /// Answers gather here and leave as one message; so do the two of read indexes.
    replies: Vec<u8>,
    want_indexes: Vec<u8>,
    indexes: Vec<u8>,
}

impl Builder {
    /// Adds a message. `fields` and `payload` append their bytes. A run is `checked` by itself.
    pub(crate) fn push(
        &mut self,
        kind: Kind,
        group: GroupId,
        checked: bool,
        fields: impl FnOnce(&mut Vec<u8>),
        payload: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.messages == 0 {
            self.head.clear();
            self.tail.clear();
            self.head.extend_from_slice(&[0; 12]);
        }
        self.head.put_u8(kind as u8);
        self.head.put_u64(group.0);
        let at = self.head.len();
        self.head.extend_from_slice(&[0; 10]);
        fields(&mut self.head);
        let field_bytes = self.head.len() - at - 10;
        assert!(field_bytes <= usize::from(u16::MAX), "a message's fields are small");
        let start = self.tail.len();
        payload(&mut self.tail);
        let bytes = &self.tail[start..];
        let crc = if checked { 0 } else { crc32c(bytes) };
        self.head[at..at + 4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.head[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        self.head[at + 8..at + 10].copy_from_slice(&(field_bytes as u16).to_le_bytes());
        self.messages += 1;
    }

    /// Where answers to forwarded commands are appended.
    pub(crate) fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.replies
    }

    /// Where wishes for read indexes are appended.
    pub(crate) fn want_indexes(&mut self) -> &mut Vec<u8> {
        &mut self.want_indexes
    }

    /// Where read indexes are appended.
    pub(crate) fn indexes(&mut self) -> &mut Vec<u8> {
        &mut self.indexes
    }

    /// Whether it carries nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0 && self.gathered_bytes() == 0
    }

    fn gathered_bytes(&self) -> usize {
        self.replies.len() + self.want_indexes.len() + self.indexes.len()
    }

    /// Bytes in it.
    pub(crate) fn bytes(&self) -> usize {
        let messages = if self.messages == 0 { 0 } else { self.head.len() + self.tail.len() };
        messages + self.gathered_bytes()
    }

    /// What was gathered becomes one message; its memory is kept.
    fn push_gathered(&mut self, kind: Kind, gathered: fn(&mut Self) -> &mut Vec<u8>) {
        if gathered(self).is_empty() {
            return;
        }
        let mut bytes = std::mem::take(gathered(self));
        self.push(kind, GroupId(0), false, |_| {}, |payload| payload.put(&bytes));
        bytes.clear();
        *gathered(self) = bytes;
    }

    /// Closes the envelope: hands head and tail to `seal`, and is empty again.
    pub(crate) fn take(&mut self, echo: u64, seal: impl FnOnce(&[u8], &[u8])) {
        self.push_gathered(Kind::Replies, Self::replies);
        self.push_gathered(Kind::WantIndexes, Self::want_indexes);
        self.push_gathered(Kind::Indexes, Self::indexes);
        if self.messages == 0 {
            self.head.clear();
            self.tail.clear();
            self.head.extend_from_slice(&[0; 12]);
        }
        self.head[..8].copy_from_slice(&echo.to_le_bytes());
        self.head[8..12].copy_from_slice(&self.messages.to_le_bytes());
        seal(&self.head, &self.tail);
        self.messages = 0;
        // One huge envelope must not pin its memory for ever.
        self.tail.shrink_to(1024 * 1024);
    }
}

/// The echo of an envelope's head.
pub(crate) fn echo(head: &[u8]) -> Result<u64, Truncated> {
    Reader::new(head).u64()
}

/// Walks the messages of an envelope, checking each payload that has no checksums of its own.
pub(crate) struct Pieces<'a> {
    head: Reader<'a>,
    tail: Reader<'a>,
    left: u32,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(head: &'a [u8], tail: &'a [u8]) -> Result<Self, EnvelopeError> {
        let mut head = Reader::new(head);
        let _echo = head.u64()?;
        let left = head.u32()?;
        Ok(Self { head, tail: Reader::new(tail), left })
    }

    /// The next message; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Piece<'a>>, EnvelopeError> {
        if self.left == 0 {
            let done = self.head.is_empty() && self.tail.is_empty();
            return if done {
                Ok(None)
            } else {
                Err(EnvelopeError::Message("bytes after the last message".into()))
            };
        }
        self.left -= 1;
        let kind = match self.head.u8()? {
            1 => Kind::Raft,
            2 => Kind::Forward,
            3 => Kind::Query,
            4 => Kind::Replies,
            5 => Kind::WantSnapshot,
            6 => Kind::Offer,
            7 => Kind::Want,
            8 => Kind::Chunk,
            9 => Kind::Live,
            10 => Kind::WantIndexes,
            11 => Kind::Indexes,
            12 => Kind::Durable,
            other => return Err(EnvelopeError::Kind(other)),
        };
        let group = GroupId(self.head.u64()?);
        let payload_bytes = self.head.u32()? as usize;
        let payload_crc = self.head.u32()?;
        let field_bytes = usize::from(self.head.u16()?);
        let fields = self.head.bytes(field_bytes)?;
        let payload = self.tail.bytes(payload_bytes)?;
        if payload_crc != 0 && crc32c(payload) != payload_crc {
            return Err(EnvelopeError::Payload);
        }
        if payload_crc == 0 && kind != Kind::Raft && !payload.is_empty() {
            return Err(EnvelopeError::Payload);
        }
        Ok(Some(Piece { kind, group, fields, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<u8>, Vec<u8>) {
        let mut builder = Builder::default();
        builder.push(Kind::Raft, GroupId(5), true, |f| f.put(b"append"), |p| p.put(b"run"));
        builder.push(Kind::Query, GroupId(6), false, |f| f.put_u64(9), |p| p.put(b"what?"));
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        builder.take(3, |h, t| {
            head = h.to_vec();
            tail = t.to_vec();
        });
        (head, tail)
    }

    #[test]
    fn round_trip() {
        let (head, tail) = sample();
        let mut pieces = Pieces::new(&head, &tail).unwrap();
        let first = pieces.next().unwrap().unwrap();
        assert_eq!(
            (first.kind, first.group, first.fields, first.payload),
            (Kind::Raft, GroupId(5), &b"append"[..], &b"run"[..])
        );
        let second = pieces.next().unwrap().unwrap();
        assert_eq!((second.kind, second.payload), (Kind::Query, &b"what?"[..]));
        assert_eq!(pieces.next(), Ok(None));
        assert_eq!(echo(&head), Ok(3));
    }

    #[test]
    fn truncations_and_flips_of_checked_payloads_are_noticed() {
        let (head, tail) = sample();
        let walk = |head: &[u8], tail: &[u8]| -> Result<usize, EnvelopeError> {
            let mut pieces = Pieces::new(head, tail)?;
            let mut count = 0;
            while pieces.next()?.is_some() {
                count += 1;
            }
            Ok(count)
        };
        assert_eq!(walk(&head, &tail), Ok(2));
        for cut in 0..head.len() {
            assert!(walk(&head[..cut], &tail).is_err(), "head cut at {cut}");
        }
        for cut in 0..tail.len() {
            assert!(walk(&head, &tail[..cut]).is_err(), "tail cut at {cut}");
        }
        let mut bad = tail.clone();
        bad[4] ^= 1;
        assert_eq!(walk(&head, &bad), Err(EnvelopeError::Payload));
    }

    #[test]
    fn an_empty_envelope_is_a_beat() {
        let mut builder = Builder::default();
        builder.take(8, |head, tail| {
            assert_eq!((head.len(), tail.len(), echo(head)), (12, 0, Ok(8)));
        });
    }
}
