//! Known bugs, to be planted by tests that must notice them. One at a time, a thread.

use std::cell::Cell;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Recovery takes a batch at the tail whose records do not match their checksum.
    TornTailAccepted,
    /// A batch counts as durable as soon as it is submitted.
    AckBeforeDurable,
    /// A file is reused, or removed, before the records that emptied it are durable.
    RecycleBeforeMoved,
    /// A file in which nothing lives is reused, or removed, though no checkpoint has its records: what they truncated comes
    /// back.
    RecycledTruncationRevives,
    /// A placed entry drops what the log holds from its index on.
    PlaceTruncates,
    /// Of two entries for one index the one of the higher term wins a replay, not the later one.
    HigherTermWinsReplay,
    /// Durable batches that cannot be read are taken for a torn tail.
    CorruptTailDropped,
    /// A file is reused, or removed, while somebody reads it, or a plan pins it.
    ReadPlanRacesReuse,
    /// A checkpoint counts though pages of it are missing.
    TornCheckpointAccepted,
}

impl Break {
    /// All of them, by name.
    pub const ALL: [(&'static str, Break); 9] = [
        ("torn-tail-accepted", Break::TornTailAccepted),
        ("ack-before-durable", Break::AckBeforeDurable),
        ("recycle-before-moved", Break::RecycleBeforeMoved),
        ("recycled-truncation-revives", Break::RecycledTruncationRevives),
        ("place-truncates", Break::PlaceTruncates),
        ("higher-term-wins-replay", Break::HigherTermWinsReplay),
        ("corrupt-tail-dropped", Break::CorruptTailDropped),
        ("read-plan-races-reuse", Break::ReadPlanRacesReuse),
        ("torn-checkpoint-accepted", Break::TornCheckpointAccepted),
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Break>> = const { Cell::new(None) };
}

/// Plants a bug on this thread, or none.
pub fn plant(bug: Option<Break>) {
    PLANTED.set(bug);
}

pub(crate) fn is_on(bug: Break) -> bool {
    PLANTED.get() == Some(bug)
}

thread_local! {
    static MISLEADS: Cell<bool> = const { Cell::new(false) };
}

/// From now on the indexes of files that lie in the log say wrong places on this thread: no bug, since every reader must
/// notice it.
pub fn mislead(on: bool) {
    MISLEADS.set(on);
}

pub(crate) fn misleads() -> bool {
    MISLEADS.get()
}
