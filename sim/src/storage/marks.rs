//! What the log's world counts, by name: a world that does not get into the corners shows nothing of them.

/// Faults of the log's world, and states that it is there for: some hundred seeds must reach each of them.
pub const STORAGE_MARKS: [&str; 24] = [
    "storage_checkpoints",
    "storage_compactions_failed",
    "storage_crashes",
    "storage_damaged_page",
    "storage_disk_full",
    "storage_entries_moved",
    "storage_entries_read",
    "storage_files_removed",
    "storage_files_reused",
    "storage_groups_given_up",
    "storage_groups_mended",
    "storage_holes_found",
    "storage_kill",
    "storage_lost_write",
    "storage_opens",
    "storage_opens_from_checkpoint",
    "storage_power_loss",
    "storage_power_loss_at_disk_step",
    "storage_power_loss_at_start",
    "storage_reads_refused",
    "storage_reads_too_late",
    "storage_suspect_tails",
    "storage_torn_tails",
    "storage_write_error",
];

/// States that only much longer runs may reach.
pub const STORAGE_MARKS_RARE: [&str; 2] = ["storage_files_missed", "storage_logs_refused"];
