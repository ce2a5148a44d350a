//! Known bugs that the simulator plants to prove that it would notice them (feature `breaks`; never in a shipped
//! program).

/// Which bugs are planted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Breaks {
    /// Those of the Raft core.
    pub raft: coracle_raft::Breaks,
    /// A group hears that its writes are durable when they are staged.
    pub ack_before_durable: bool,
    /// Recovery takes a torn batch at the tail for a whole one.
    pub torn_tail_accepted: bool,
}

impl Breaks {
    /// The log's bugs are planted a thread: the one that a node is opened in.
    pub(crate) fn plant_in_wal(&self) {
        let bug = self.torn_tail_accepted.then_some(coracle_wal::breaks::Break::TornTailAccepted);
        coracle_wal::breaks::plant(bug);
    }

    /// The bug of this name, as `sim --break` spells it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "ack-before-durable" => Some(Self { ack_before_durable: true, ..Self::default() }),
            "torn-tail-accepted" => Some(Self { torn_tail_accepted: true, ..Self::default() }),
            _ => coracle_raft::Breaks::named(name).map(|raft| Self { raft, ..Self::default() }),
        }
    }
}
