//! Words that come back with completions: which of them are the log's, and what they were for.

const OURS: u64 = 0x57 << 56;
const KIND_SHIFT: u32 = 48;
const VALUE_MASK: u64 = (1 << KIND_SHIFT) - 1;

/// A step of preparing a file.
pub(crate) const PREPARE: u64 = OURS | 2 << KIND_SHIFT;
const READ: u64 = OURS | 3 << KIND_SHIFT;
/// Nobody waits for it.
pub(crate) const IGNORED: u64 = OURS | 4 << KIND_SHIFT;
/// A step of removing a file.
pub(crate) const REMOVE: u64 = OURS | 5 << KIND_SHIFT;
const SWEEP: u64 = OURS | 6 << KIND_SHIFT;
const WRITE: u64 = OURS | 1 << KIND_SHIFT;

/// What a completion is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The batch with these low bits of its number.
    Write(u64),
    Prepare,
    /// The reader's operation with this number.
    Read(u64),
    Remove,
    /// The sweep's operation with these low bits of its number.
    Sweep(u64),
    Ignored,
}

/// The write of batch `seq`.
pub(crate) fn write(seq: u64) -> u64 {
    WRITE | low_bits(seq)
}

/// The reader's operation with this number.
pub(crate) fn read(number: u64) -> u64 {
    READ | low_bits(number)
}

/// The sweep's operation with this number.
pub(crate) fn sweep(number: u64) -> u64 {
    SWEEP | low_bits(number)
}

/// What of a batch number a token holds: far more than there can be in flight.
pub(crate) fn low_bits(seq: u64) -> u64 {
    seq & VALUE_MASK
}

/// Whether a completion is the log's, and what for.
pub(crate) fn decode(token: u64) -> Option<Token> {
    match token & !VALUE_MASK {
        WRITE => Some(Token::Write(token & VALUE_MASK)),
        PREPARE => Some(Token::Prepare),
        READ => Some(Token::Read(token & VALUE_MASK)),
        REMOVE => Some(Token::Remove),
        SWEEP => Some(Token::Sweep(token & VALUE_MASK)),
        IGNORED => Some(Token::Ignored),
        _ => None,
    }
}
