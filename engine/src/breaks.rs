//! Known bugs that the simulator plants to prove that it would notice them (feature `breaks`; never in a shipped
//! program).

use std::cell::Cell;

/// Which bugs are planted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Breaks {
    /// Those of the Raft core.
    pub raft: coracle_raft::Breaks,
    /// A group hears that its writes are durable when they are staged.
    pub ack_before_durable: bool,
    /// A member that does not lead answers linearizable questions as it is, without asking the leader.
    pub read_here_at_once: bool,
    /// Any empty node draws a cluster's id, not only the lowest.
    pub double_bootstrap: bool,
    /// A node that comes with another data directory than the cluster knows is taken for the member that it was.
    pub old_incarnation_accepted: bool,
    /// A node that is told that its directory is an older copy does not care.
    pub watermark_ignored: bool,
    /// A node begins groups as its directory has them after a start, though some of them may be deleted since.
    pub deleted_group_revives: bool,
    /// The directory draws the uid after the highest that it has, used before or not.
    pub uid_drawn_again: bool,
    /// One of the log's.
    pub wal: Option<coracle_wal::breaks::Break>,
}

thread_local! {
    static OLD_INCARNATION_ACCEPTED: Cell<bool> = const { Cell::new(false) };
    static UID_DRAWN_AGAIN: Cell<bool> = const { Cell::new(false) };
}

/// Whether any data directory of a member will do, for nodes of this thread.
pub(crate) fn accepts_old_incarnation() -> bool {
    OLD_INCARNATION_ACCEPTED.get()
}

/// Whether directories of this thread draw uids that were drawn before.
pub(crate) fn draws_uids_again() -> bool {
    UID_DRAWN_AGAIN.get()
}

impl Breaks {
    /// Bugs of the log, of the handshake and of the directory's machine are planted a thread: the one that a node is opened in.
    pub(crate) fn plant(&self) {
        coracle_wal::breaks::plant(self.wal);
        OLD_INCARNATION_ACCEPTED.set(self.old_incarnation_accepted);
        UID_DRAWN_AGAIN.set(self.uid_drawn_again);
    }

    /// The bug of this name, as `sim --break` spells it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            // Of the same name in the log; here it is that of the group.
            "ack-before-durable" => return Some(Self { ack_before_durable: true, ..Self::default() }),
            "read-here-at-once" => return Some(Self { read_here_at_once: true, ..Self::default() }),
            "watermark-ignored" => return Some(Self { watermark_ignored: true, ..Self::default() }),
            "deleted-group-revives" => {
                return Some(Self { deleted_group_revives: true, ..Self::default() });
            }
            "uid-drawn-again" => return Some(Self { uid_drawn_again: true, ..Self::default() }),
            "double-bootstrap" => return Some(Self { double_bootstrap: true, ..Self::default() }),
            "old-incarnation-accepted" => {
                return Some(Self { old_incarnation_accepted: true, ..Self::default() });
            }
            _ => {}
        }
        match coracle_wal::breaks::Break::ALL.into_iter().find(|(known, _)| *known == name) {
            Some((_, bug)) => Some(Self { wal: Some(bug), ..Self::default() }),
            None => coracle_raft::Breaks::named(name).map(|raft| Self { raft, ..Self::default() }),
        }
    }
}
