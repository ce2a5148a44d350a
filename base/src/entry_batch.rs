//! Entries on their way into a log: a proposer gathers them and makes their payloads' checksums, a leader stamps them with
//! its term and time.
//!
//! Invariant: the bytes are whole entries within a run's limits, as `run.rs` lays them out.

use crate::checksum::crc32c;
use crate::limits::{ENTRY_BYTES_MAX, RUN_BYTES_MAX, RUN_ENTRIES_MAX};
use crate::run::{self, ENTRY_HEADER_BYTES, Entries, EntryHeader, EntryKind, RunError};
use crate::{Index, Term};

/// Entries that are not in a log yet: a proposer gathers them, a leader stamps them with its term and time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryBatch {
    bytes: Vec<u8>,
    count: u32,
}

impl EntryBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch that can take `bytes` of encoded entries without growing.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), count: 0 }
    }

    /// Empties it, and keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// Adds one entry and makes its payload's checksum.
    ///
    /// # Errors
    /// [`RunError::TooLarge`] if the payload is over [`ENTRY_BYTES_MAX`] or the batch would be over a run's limits;
    /// nothing was added.
    pub fn push(&mut self, tag: u64, kind: EntryKind, payload: &[u8]) -> Result<(), RunError> {
        let bytes = self.bytes.len() + ENTRY_HEADER_BYTES + payload.len();
        if payload.len() > ENTRY_BYTES_MAX || bytes > RUN_BYTES_MAX || self.count == RUN_ENTRIES_MAX {
            return Err(RunError::TooLarge {
                count: self.count + 1,
                body_bytes: bytes.min(u32::MAX as usize) as u32,
            });
        }
        let header = EntryHeader {
            term: Term::ZERO,
            tag,
            time_ms: 0,
            kind,
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c(payload),
        };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(payload);
        self.count += 1;
        Ok(())
    }

    /// Takes encoded entries off the wire. Checks that they are whole and their payloads sound.
    ///
    /// # Errors
    /// [`RunError`]: `bytes` are not exactly `count` sound entries.
    pub fn decode(count: u32, bytes: Vec<u8>) -> Result<Self, RunError> {
        if count > RUN_ENTRIES_MAX || bytes.len() > RUN_BYTES_MAX {
            return Err(RunError::TooLarge { count, body_bytes: bytes.len().min(u32::MAX as usize) as u32 });
        }
        let mut entries = Entries::new(Index(1), &bytes);
        let mut found = 0;
        for entry in entries.by_ref() {
            if crc32c(entry.payload) != entry.header.payload_crc {
                return Err(RunError::Payload { index: entry.index });
            }
            found += 1;
        }
        if found != count || !entries.rest().is_empty() {
            return Err(RunError::Field { field: "entry count" });
        }
        Ok(Self { bytes, count })
    }

    /// Writes the leader's term and the log's time into every entry.
    pub fn stamp(&mut self, term: Term, time_ms: u64) {
        let mut rest = self.bytes.as_mut_slice();
        while let Some((header, after)) = rest.split_first_chunk_mut() {
            run::stamp(header, term, time_ms);
            rest = &mut after[run::payload_bytes(header)..];
        }
    }

    /// The entries' tags, in order.
    pub fn tags(&self) -> Vec<u64> {
        let mut tags = Vec::with_capacity(self.count as usize);
        tags.extend(Entries::new(Index(1), &self.bytes).map(|entry| entry.header.tag));
        tags
    }

    /// Entries held.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded entries.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The encoded entries, as a buffer of their own.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cleared_batch_is_as_new() {
        let mut batch = EntryBatch::new();
        batch.push(1, EntryKind::Command, b"before").unwrap();
        batch.clear();
        batch.push(2, EntryKind::Command, b"after").unwrap();
        let mut fresh = EntryBatch::new();
        fresh.push(2, EntryKind::Command, b"after").unwrap();
        assert_eq!(batch, fresh);
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_and_nothing_added() {
        let mut batch = EntryBatch::new();
        assert!(batch.push(0, EntryKind::Command, &vec![0; ENTRY_BYTES_MAX + 1]).is_err());
        assert!(batch.is_empty());
        batch.push(9, EntryKind::Command, &vec![0; ENTRY_BYTES_MAX]).unwrap();
        batch.push(3, EntryKind::Command, b"").unwrap();
        assert_eq!(batch.tags(), [9, 3]);
    }
}
