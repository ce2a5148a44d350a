//! The faults that strike a cluster, by name.
//!
//! Invariant: a fault's place in the list of names is that of its declaration.

/// Something that goes wrong once, at a chosen time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// One node loses power.
    PowerLoss,
    /// One node's process is killed.
    Kill,
    /// The leader of some group loses power.
    LeaderPowerLoss,
    /// All nodes lose power at once.
    Blackout,
    /// Power goes between two operations of a node's disk, while it is at work.
    Fuse,
    /// The nodes fall into two halves.
    Partition,
    /// One node is cut off.
    Isolate,
    /// The leader of some group is cut off.
    IsolateLeader,
    /// One node cannot reach another one, but hears it.
    OneWay,
    /// The connections between two nodes are reset.
    Reset,
    /// A process stands still, and goes on as if nothing had happened.
    Pause,
    /// The next write of a node fails.
    WriteError,
    /// A node's disk is slow for a while.
    SlowDisk,
    /// The disk of some group's leader becomes very slow, then the leader is cut off; back again, it loses power, most of
    /// what it wrote still under way.
    FailingLeader,
    /// A node's clock runs fast or slow for a while.
    Drift,
    /// A node's wall clock jumps.
    WallJump,
    /// The next read of a node fails.
    ReadError,
    /// The next sync of a file or directory of a node fails.
    SyncError,
    /// A node's disk is full for a while, or has room for little.
    DiskFull,
    /// A page of a node's log or snapshots rots, or cannot be read any more, and its process ends.
    Damage,
    /// A write of a node's disk is confirmed and never lands, or lands elsewhere; when later ones prove it, its process ends.
    LostWrite,
    /// A node loses its data directory for good.
    DirectoryLost,
    /// A node comes back with its data directory as it was some time ago.
    OldDirectory,
}

impl Fault {
    /// All there are, in the order of their declaration.
    pub(crate) const ALL: [(Self, &'static str); 23] = [
        (Self::PowerLoss, "power_loss"),
        (Self::Kill, "kill"),
        (Self::LeaderPowerLoss, "leader_power_loss"),
        (Self::Blackout, "blackout"),
        (Self::Fuse, "power_loss_at_disk_step"),
        (Self::Partition, "partition"),
        (Self::Isolate, "isolation"),
        (Self::IsolateLeader, "leader_isolation"),
        (Self::OneWay, "one_way_partition"),
        (Self::Reset, "link_reset"),
        (Self::Pause, "pause"),
        (Self::WriteError, "write_error"),
        (Self::SlowDisk, "slow_disk"),
        (Self::FailingLeader, "failing_leader"),
        (Self::Drift, "clock_drift"),
        (Self::WallJump, "wall_clock_jump"),
        (Self::ReadError, "read_error"),
        (Self::SyncError, "sync_error"),
        (Self::DiskFull, "disk_full"),
        (Self::Damage, "damaged_page"),
        (Self::LostWrite, "lost_write"),
        (Self::DirectoryLost, "directory_lost"),
        (Self::OldDirectory, "old_directory"),
    ];
    /// Of these, so many that any node may meet in any seed.
    pub(crate) const COMMON: usize = 16;

    /// As reports name it.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Whether it happens only to disks that the plan lets be harmed.
    pub(crate) fn is_harm(self) -> bool {
        matches!(self, Self::Damage | Self::LostWrite | Self::DirectoryLost | Self::OldDirectory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_named_by_its_place() {
        for (fault, name) in Fault::ALL {
            assert_eq!(fault.name(), name);
        }
        assert!(Fault::ALL[..Fault::COMMON].iter().all(|(fault, _)| !fault.is_harm()));
    }
}
