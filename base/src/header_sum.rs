//! The checksum of a run's header: CRC32C of its fields, then of each entry's header. They are gathered first: a call for
//! each of so few bytes would cost as much as the checksum. And the payloads' checksums, without a look at what the
//! headers else say.

use crate::checksum::{crc32c, crc32c_from};
use crate::run::{ENTRY_HEADER_BYTES, payload_bytes};

/// Goes on with each piece that is added.
pub(crate) struct HeaderSum {
    crc: u32,
    gathered: Gathered,
    len: usize,
}

/// Of a few entries: most runs have no more, and what is not used was zeroed in vain.
const ROOM: usize = 44 + 4 * ENTRY_HEADER_BYTES;

/// Whole words for the checksum: bytes before the first and after the last one cost as much as a word each.
#[repr(align(8))]
struct Gathered([u8; ROOM]);

impl HeaderSum {
    pub(crate) fn new(fields: &[u8; 44]) -> Self {
        let mut gathered = Gathered([0; ROOM]);
        gathered.0[..44].copy_from_slice(fields);
        Self { crc: 0, gathered, len: 44 }
    }

    pub(crate) fn add(&mut self, entry: &[u8; ENTRY_HEADER_BYTES]) {
        if self.len + ENTRY_HEADER_BYTES > ROOM {
            self.crc = crc32c_from(self.crc, &self.gathered.0[..self.len]);
            self.len = 0;
        }
        self.gathered.0[self.len..self.len + ENTRY_HEADER_BYTES].copy_from_slice(entry);
        self.len += ENTRY_HEADER_BYTES;
    }

    pub(crate) fn finish(self) -> u32 {
        crc32c_from(self.crc, &self.gathered.0[..self.len])
    }
}

/// Whether each of these encoded entries is there to its end and its payload's checksum holds.
pub(crate) fn payloads_hold(mut entries: &[u8]) -> bool {
    while let Some((header, after)) = entries.split_first_chunk::<ENTRY_HEADER_BYTES>() {
        let Some((payload, rest)) = after.split_at_checked(payload_bytes(header)) else { return false };
        if crc32c(payload).to_le_bytes() != header[28..] {
            return false;
        }
        entries = rest;
    }
    entries.is_empty()
}
