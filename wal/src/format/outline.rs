//! What the checksum of a batch goes over: all records, but of a run (and of placed entries) only its header. The header's
//! own checksum vouches for the entries' headers, and they for the payloads: every byte is under a checksum, and the
//! payloads, which are most of a batch, are summed once, by who proposed them.
//!
//! ```text
//!   record header, run header │ entry header, payload, entry header, payload, ...   a run: only what is left of the line
//!   record header, body                                                             any other record
//! ```
//!
//! Invariant: batches of version 1 are summed over every byte of their records, those of version 2 in this way.

use coracle_base::RunRef;
use coracle_base::checksum::crc32c_from;
use coracle_base::codec::Reader;
use coracle_base::run::RUN_HEADER_BYTES;

use super::record::{RECORD_HEADER_BYTES, RecordKind};

/// Pieces are gathered to so much before they are summed: a call for each would cost more than its bytes.
const GATHER_BYTES: usize = 3 * 1024;

/// The checksum of a batch, as it grows.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    crc: u32,
    gathered: Vec<u8>,
}

impl Outline {
    /// Begins another batch, of the file with this seed.
    pub(crate) fn begin(&mut self, seed: u32) {
        self.crc = seed;
        self.gathered.clear();
    }

    /// Goes on with `bytes`.
    #[inline]
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        if self.gathered.len() + bytes.len() > GATHER_BYTES {
            self.sum();
        }
        if bytes.len() > GATHER_BYTES {
            self.crc = crc32c_from(self.crc, bytes);
        } else {
            self.gathered.extend_from_slice(bytes);
        }
    }

    fn sum(&mut self) {
        self.crc = crc32c_from(self.crc, &self.gathered);
        self.gathered.clear();
    }

    /// The checksum over all that was added.
    pub(crate) fn finish(&mut self) -> u32 {
        self.sum();
        self.crc
    }
}

/// The checksum of these records, if the runs among them hold to the last byte.
pub(crate) fn sum_of(records: &[u8], seed: u32) -> Option<u32> {
    let mut outline = Outline::default();
    outline.begin(seed);
    let mut rest = Reader::new(records);
    while !rest.is_empty() {
        let record = rest.rest();
        let kind = rest.u8().ok()?;
        rest.bytes(3).ok()?;
        let bytes = rest.u32().ok()? as usize;
        let body = rest.bytes(bytes).ok()?;
        let is_run = kind == RecordKind::Run as u8 || kind == RecordKind::Place as u8;
        // What a run means is not asked here: one of a newer version is not torn.
        if is_run && RunRef::intact(body) != Some(bytes) {
            return None;
        }
        outline.add(&record[..RECORD_HEADER_BYTES + if is_run { RUN_HEADER_BYTES } else { bytes }]);
    }
    Some(outline.finish())
}
