//! What a shard and its groups tell about themselves.

use coracle_base::{GroupId, Index, NodeId, Term};
use coracle_raft::{DataLoss, Members, Role};

use super::groups::Slot;

/// A group as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group's uid.
    pub group: GroupId,
    /// Its current term here.
    pub term: Term,
    /// Who leads it, if this node knows.
    pub leader: Option<NodeId>,
    /// The first entry of the log that is not released.
    pub first: Index,
    /// The last entry of the log.
    pub last: Index,
    /// The last entry known to be committed.
    pub commit: Index,
    /// The last entry that the machine ran.
    pub applied: Index,
    /// A digest over the applied entries (index, term, payload checksum): equal on all members at equal `applied`.
    pub digest: u64,
    /// Why the machine does not apply any more, if it failed; or why this member stands still, if another majority
    /// contradicts what is committed here.
    pub poisoned: Option<String>,
    /// Its members: those of the newest change in this node's log, committed or not.
    pub members: Members,
    /// The entry that made them so; 0 for those that the group was made with.
    pub members_index: Index,
    /// Its machine waits for its state: nothing is applied or answered yet.
    pub restoring: bool,
    /// How often the group was made one member's alone by force, without a majority.
    pub recovery_epoch: u32,
    /// Damage took a part of its log, or its directory is an older copy: it gives no vote and acknowledges nothing until a
    /// leader has brought it up to date, or all other voters have answered what they know.
    pub suspect: bool,
    /// The voters whose answers it still needs for that: if one of them is gone for good, replace this member.
    pub waits_for: Vec<NodeId>,
    /// So few members have a sound log that nobody can say what was committed: the group stands still until it is shrunk to
    /// one of them, or others are there again.
    pub data_loss: Option<DataLoss>,
    /// Why another member's snapshot is needed, if this member's own is damaged: it votes and appends meanwhile, and
    /// applies nothing.
    pub needs_snapshot: Option<String>,
}

/// What of a group changes, at a glance: equal ones mean that nothing else of it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    role: Role,
    term: Term,
    leader: Option<NodeId>,
    log: (Index, Index, Option<Term>),
    durable: Index,
    commit: Index,
    applied: Index,
    members_index: Index,
    writes_in_flight: usize,
    transfer: Option<NodeId>,
    /// Whether the machine failed, applies, has to be given its state.
    machine: (bool, bool, bool),
    data_loss: Option<DataLoss>,
}

impl Glance {
    pub(super) fn of(slot: &Slot) -> Self {
        let raft = &slot.raft;
        Self {
            role: raft.role(),
            term: raft.term(),
            leader: raft.leader(),
            log: (raft.first(), raft.last(), raft.term_at(raft.last())),
            durable: raft.durable(),
            commit: raft.commit(),
            applied: slot.applied,
            members_index: raft.hard_state().current.index,
            writes_in_flight: raft.writes_in_flight(),
            transfer: raft.transferring(),
            data_loss: raft.data_loss(),
            machine: (slot.poisoned.is_some(), slot.is_ready(), slot.is_whole()),
        }
    }
}

/// Counters of one shard since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// The node waits for its cluster to form: it has no groups, and there is nothing else to tell.
    pub forming: bool,
    /// Turns of its loop.
    pub turns: u64,
    /// System calls of its loop: entering the ring. Waking clients is not counted.
    pub syscalls: u64,
    /// Commands proposed by clients of this node or forwarded to it.
    pub proposed: u64,
    /// Commands applied.
    pub applied: u64,
    /// WAL batches written.
    pub batches: u64,
    /// Bytes of these.
    pub batch_bytes: u64,
    /// Of them, those that fill blocks up.
    pub padding_bytes: u64,
    /// Those that say whom the batch before was about.
    pub roster_bytes: u64,
    /// Those of checkpoints.
    pub checkpoint_bytes: u64,
    /// Zeros written besides, to make new files of the log.
    pub prefill_bytes: u64,
    /// Encoded bytes of the runs that were appended to the WAL: what each of its entries costs at least, once.
    pub run_bytes: u64,
    /// Frames sent to other nodes that carried a message.
    pub frames: u64,
    /// Beats sent: frames without one.
    pub beats: u64,
    /// Wishes for read indexes sent to leaders: one a group and round, of however many questions.
    pub read_index_wishes: u64,
    /// Links to other nodes that are up.
    pub links_up: u64,
    /// Sessions of links that have ended.
    pub links_lost: u64,
    /// Elections that groups of this shard won.
    pub elections_won: u64,
    /// Groups whose time to campaign has come, and that wait because many others do so.
    pub elections_waiting: u64,
    /// Whether the disk stalls now: it has not finished a write for longer than it may take.
    pub disk_stalled: bool,
    /// How often it began to.
    pub disk_stalls: u64,
    /// Groups that were begun to be handed over because of it.
    pub stall_transfers: u64,
    /// Groups that this node stopped leading because of it.
    pub stall_resignations: u64,
    /// Groups.
    pub groups: u64,
    /// Groups of whose logs the recovery found a part damaged or lost, or a leader did.
    pub groups_damaged: u64,
    /// Named groups that were deleted, and removed here.
    pub groups_deleted: u64,
    /// Those of them that a leader had to tell: the recovery found nothing amiss, so the disk cannot be trusted.
    pub groups_lost_acknowledged: u64,
    /// And those of them that are whole again, by what a leader sent them, or all others said.
    pub groups_mended: u64,
    /// Groups that stand still, as so few members have a sound log that nobody can say what was committed.
    pub groups_data_loss: u64,
    /// Another node has heard of more than is in this directory: it is an older copy, or its disk lied.
    pub directory_old: bool,
    /// Its votes in groups that begin here may be forgotten, as the directory was an older copy, or damaged, once: each waits
    /// for the answers of all of its other voters.
    pub new_groups_doubted: bool,
    /// Groups whose machines wait for their state.
    pub groups_restoring: u64,
    /// Machines that got their state back from a file.
    pub groups_restored: u64,
    /// Groups whose next entries to apply lie in files only, as after a start.
    pub groups_behind: u64,
    /// Bytes of the files that the present pass over the log reads for them, or the last one did.
    pub sweep_bytes: u64,
    /// What of them it is done with.
    pub sweep_bytes_done: u64,
    /// Snapshots and checkpoints written to files.
    pub snapshot_files: u64,
    /// Bytes of snapshots, and of the entries that live on below them, sent to other members.
    pub transfer_bytes_sent: u64,
    /// And received.
    pub transfer_bytes_received: u64,
    /// Snapshots received that took effect.
    pub transfers_installed: u64,
    /// Transfers that went on where an earlier try had stopped.
    pub transfers_resumed: u64,
    /// Transfers that were given up for another snapshot.
    pub transfers_restarted: u64,
    /// What was received of a snapshot, and removed because the group had come further without it.
    pub transfers_abandoned: u64,
    /// Snapshots offered whose entries the log held, and more.
    pub transfers_needless: u64,
    /// How often a transfer lacked something that did not come, and asked for it again.
    pub transfers_asked_again: u64,
    /// Entries received that live on below a snapshot.
    pub live_entries_received: u64,
    /// Entries that should live on below a snapshot, and that damage has taken: other members have them.
    pub live_entries_lost: u64,
    /// Bytes of entries in memory.
    pub arena_bytes: u64,
    /// Bytes of segments written by compaction.
    pub segment_bytes: u64,
    /// Files that compaction emptied.
    pub compacted_files: u64,
    /// Microseconds of the shard's time that compaction took.
    pub compaction_us: u64,
    /// Bytes of sealed files and segments that hold something, when it was last looked.
    pub sealed_bytes: u64,
    /// What lives in them: the quotient is the space amplification.
    pub sealed_live_bytes: u64,
    /// Whether the disk is full: commands that take space are refused until there is room.
    pub disk_full: bool,
}
