//! Known bugs that the simulator plants to prove that it would notice them (feature `breaks`; never in a shipped
//! program).

/// Which bugs are planted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Breaks {
    /// Those of the Raft core.
    pub raft: coracle_raft::Breaks,
    /// A group hears that its writes are durable when they are staged.
    pub ack_before_durable: bool,
    /// A member that does not lead answers linearizable questions as it is, without asking the leader.
    pub read_here_at_once: bool,
    /// One of the log's.
    pub wal: Option<coracle_wal::breaks::Break>,
}

impl Breaks {
    /// The log's bugs are planted a thread: the one that a node is opened in.
    pub(crate) fn plant_in_wal(&self) {
        coracle_wal::breaks::plant(self.wal);
    }

    /// The bug of this name, as `sim --break` spells it.
    pub fn named(name: &str) -> Option<Self> {
        // Of the same name in the log; here it is that of the group.
        if name == "ack-before-durable" {
            return Some(Self { ack_before_durable: true, ..Self::default() });
        }
        if name == "read-here-at-once" {
            return Some(Self { read_here_at_once: true, ..Self::default() });
        }
        match coracle_wal::breaks::Break::ALL.into_iter().find(|(known, _)| *known == name) {
            Some((_, bug)) => Some(Self { wal: Some(bug), ..Self::default() }),
            None => coracle_raft::Breaks::named(name).map(|raft| Self { raft, ..Self::default() }),
        }
    }
}
