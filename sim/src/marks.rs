//! States that the cluster's world is there for, by name.

/// Some dozen seeds must reach each of them: a world that does not get into the corners shows nothing of them.
pub const CLUSTER_MARKS: [&str; 14] = [
    "change_committed",
    "change_undone",
    "joint_change_committed",
    "leader_removed_itself",
    "leadership_handed_over",
    "leadership_kept",
    "learner_promoted",
    "live_entries_read",
    "live_entries_received",
    "removal_told",
    "stall_transfers",
    "transfers_asked_again",
    "transfers_installed",
    "transfers_resumed",
];
