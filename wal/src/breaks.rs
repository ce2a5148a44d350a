//! Known bugs, to be planted by tests that must notice them. One at a time, a thread.

use std::cell::Cell;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Recovery takes a batch at the tail whose records do not match their checksum.
    TornTailAccepted,
    /// A batch counts as durable as soon as it is submitted.
    AckBeforeDurable,
}

impl Break {
    /// All of them, by name.
    pub const ALL: [(&'static str, Break); 2] =
        [("torn-tail-accepted", Break::TornTailAccepted), ("ack-before-durable", Break::AckBeforeDurable)];
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
