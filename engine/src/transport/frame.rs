//! Frames between nodes: layout and codec. Pure: bytes in, frames out.
//!
//! ```text
//!   offset  size  field         (little-endian)
//!   0       4     magic         "CRL1": the layout of this header, which stays for ever
//!   4       4     body_bytes    what follows the header; at most FRAME_BYTES_MAX
//!   8       4     head_bytes    the part of the body that is under this header's checksum
//!   12      1     kind          1 hello, 2 welcome, 3 refuse, 4 envelope
//!   13      3     reserved      0; anything else must be understood, so it is refused
//!   16      8     seq           envelopes of a session count from 1; 0 in a handshake
//!   24      4     crc32c        of [0, 24), then of the head
//!   28      ..    head          handshake fields, or an envelope's messages
//!   ..      ..    tail          payloads of the messages, each under its own checksum (a run's, or the message's)
//! ```
//!
//! Invariants: (1) lengths are checked before anything is allocated for them; (2) a frame is handed on only if its
//! checksum held; (3) an envelope out of sequence ends the session: what a stream lost, doubled or swapped is noticed.

use coracle_base::checksum::{crc32c, crc32c_from};
use coracle_base::codec::Reader;
use coracle_base::limits::FRAME_BYTES_MAX;

/// Bytes of a frame's header.
pub(crate) const FRAME_HEADER_BYTES: usize = 28;
const MAGIC: u32 = u32::from_le_bytes(*b"CRL1");

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameKind {
    /// The dialler's first frame.
    Hello = 1,
    /// The listener's answer, if it agrees.
    Welcome = 2,
    /// The listener's answer, if it does not; then it closes.
    Refuse = 3,
    /// Messages, or none: a beat.
    Envelope = 4,
}

/// Why bytes are not a frame. The connection that brought them is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("not a Coracle frame (magic {0:#010x})")]
    Magic(u32),
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLarge(u32),
    #[error("a frame's head of {head} bytes is longer than its body of {body}")]
    Lengths { head: u32, body: u32 },
    #[error("frame checksum is {found:#010x}, expected {expected:#010x}")]
    Checksum { found: u32, expected: u32 },
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("unknown bits in a frame header")]
    Reserved,
}

/// A frame in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: FrameKind,
    pub(crate) seq: u64,
    pub(crate) head: &'a [u8],
    pub(crate) tail: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes` and its whole length; `None` while more bytes are needed.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(total) = Self::needed(bytes)? else { return Ok(None) };
        if bytes.len() < total {
            return Ok(None);
        }
        let (header, body) = bytes[..total].split_at(FRAME_HEADER_BYTES);
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (head, tail) = body.split_at(word(8) as usize);
        let expected = crc32c_from(crc32c(&header[..24]), head);
        let found = word(24);
        if found != expected {
            return Err(FrameError::Checksum { found, expected });
        }
        let kind = match header[12] {
            1 => FrameKind::Hello,
            2 => FrameKind::Welcome,
            3 => FrameKind::Refuse,
            4 => FrameKind::Envelope,
            other => return Err(FrameError::Kind(other)),
        };
        if header[13..16] != [0; 3] {
            return Err(FrameError::Reserved);
        }
        let seq = u64::from(word(16)) | u64::from(word(20)) << 32;
        Ok(Some((Self { kind, seq, head, tail }, total)))
    }

    /// How long the frame at the start of `bytes` is in all, as soon as its lengths are there.
    pub(crate) fn needed(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let mut reader = Reader::new(bytes);
        let Ok(magic) = reader.u32() else { return Ok(None) };
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let (Ok(body), Ok(head)) = (reader.u32(), reader.u32()) else { return Ok(None) };
        if body as usize > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge(body));
        }
        if head > body {
            return Err(FrameError::Lengths { head, body });
        }
        Ok(Some(FRAME_HEADER_BYTES + body as usize))
    }
}

/// Appends a frame to `out`. The caller keeps head and tail within [`FRAME_BYTES_MAX`].
pub(crate) fn encode(kind: FrameKind, seq: u64, head: &[u8], tail: &[u8], out: &mut Vec<u8>) {
    assert!(head.len() + tail.len() <= FRAME_BYTES_MAX, "a frame is larger than any peer accepts");
    let mut header = [0; FRAME_HEADER_BYTES];
    header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..8].copy_from_slice(&((head.len() + tail.len()) as u32).to_le_bytes());
    header[8..12].copy_from_slice(&(head.len() as u32).to_le_bytes());
    header[12] = kind as u8;
    header[16..24].copy_from_slice(&seq.to_le_bytes());
    let crc = crc32c_from(crc32c(&header[..24]), head);
    header[24..28].copy_from_slice(&crc.to_le_bytes());
    out.reserve(FRAME_HEADER_BYTES + head.len() + tail.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        encode(FrameKind::Envelope, 7, b"head", b"tail!", &mut out);
        out
    }

    #[test]
    fn golden_bytes() {
        let hex: String = sample().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("../../testdata/frame-v1.hex").trim());
    }

    #[test]
    fn round_trip_and_every_prefix_waits_for_more() {
        let bytes = sample();
        let (frame, len) = Frame::parse(&bytes).unwrap().unwrap();
        assert_eq!(
            (frame.kind, frame.seq, frame.head, frame.tail, len),
            (FrameKind::Envelope, 7, &b"head"[..], &b"tail!"[..], bytes.len())
        );
        for cut in 0..bytes.len() {
            assert_eq!(Frame::parse(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn every_flip_in_header_and_head_is_noticed() {
        let bytes = sample();
        for at in 0..FRAME_HEADER_BYTES + 4 {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(!matches!(Frame::parse(&bad), Ok(Some(_))), "flip of bit {bit} at {at} passed");
            }
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_from_its_first_bytes() {
        let mut bytes = sample();
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Frame::needed(&bytes[..12]), Err(FrameError::TooLarge(u32::MAX)));
    }
}
