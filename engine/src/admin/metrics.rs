//! The engine's counters in Prometheus' text format, version 0.0.4. A line a shard and counter needs no crate.

use std::fmt::Write;

use super::Shared;
use crate::shard::status::ShardStatus;

struct Metric {
    name: &'static str,
    /// It goes up only, while the node runs.
    is_counter: bool,
    help: &'static str,
    of: fn(&ShardStatus) -> u64,
}

const fn counter(name: &'static str, help: &'static str, of: fn(&ShardStatus) -> u64) -> Metric {
    Metric { name, is_counter: true, help, of }
}

const fn gauge(name: &'static str, help: &'static str, of: fn(&ShardStatus) -> u64) -> Metric {
    Metric { name, is_counter: false, help, of }
}

const METRICS: &[Metric] = &[
    counter("turns_total", "Turns of the shard's loop.", |s| s.turns),
    counter("syscalls_total", "System calls of the shard's loop.", |s| s.syscalls),
    counter("proposed_total", "Commands proposed here or forwarded to here.", |s| s.proposed),
    counter("applied_total", "Commands applied.", |s| s.applied),
    counter("wal_batches_total", "Batches written to the log.", |s| s.batches),
    counter("wal_batch_bytes_total", "Bytes of these batches.", |s| s.batch_bytes),
    counter("wal_run_bytes_total", "Encoded bytes of the runs appended.", |s| s.run_bytes),
    counter("frames_total", "Frames sent to other nodes that carried a message.", |s| s.frames),
    counter("beats_total", "Frames sent to other nodes without one.", |s| s.beats),
    counter("elections_won_total", "Elections that groups of this shard won.", |s| s.elections_won),
    counter("read_index_wishes_total", "Wishes for read indexes sent to leaders.", |s| s.read_index_wishes),
    gauge("elections_waiting", "Groups that wait to campaign behind others.", |s| s.elections_waiting),
    gauge("disk_stalled", "1 while the disk does not finish a write.", |s| s.disk_stalled.into()),
    counter("disk_stalls_total", "How often the disk began to stall.", |s| s.disk_stalls),
    counter("stall_transfers_total", "Groups begun to be handed over for a stall.", |s| s.stall_transfers),
    counter("stall_resignations_total", "Groups no longer led for a stall.", |s| s.stall_resignations),
    gauge("groups", "Groups that run here.", |s| s.groups),
    counter(
        "groups_damaged_total",
        "Groups of whose logs the start, or their leader, found a part lost.",
        |s| s.groups_damaged,
    ),
    counter("groups_lost_acknowledged_total", "Those whose leader had to tell: mistrust the disk.", |s| {
        s.groups_lost_acknowledged
    }),
    counter("groups_data_loss_total", "Those that stand still, as nobody can say what was committed.", |s| {
        s.groups_data_loss
    }),
    counter("groups_deleted_total", "Named groups that were deleted, and removed here.", |s| {
        s.groups_deleted
    }),
    counter("groups_mended_total", "Those that are whole again, through their leaders.", |s| s.groups_mended),
    gauge("directory_old", "1 if another node remembers more than this directory.", |s| {
        s.directory_old.into()
    }),
    gauge("groups_restoring", "Groups whose machines wait for their state.", |s| s.groups_restoring),
    counter("groups_restored_total", "Machines that got their state back from a file.", |s| {
        s.groups_restored
    }),
    gauge("groups_behind", "Groups whose next entries to apply lie in files only.", |s| s.groups_behind),
    gauge("sweep_bytes", "Bytes of files that the present pass over the log reads.", |s| s.sweep_bytes),
    gauge("sweep_bytes_done", "What of them it is done with.", |s| s.sweep_bytes_done),
    counter("snapshot_files_total", "Snapshots and checkpoints written to files.", |s| s.snapshot_files),
    counter("transfer_sent_bytes_total", "Bytes of snapshots sent.", |s| s.transfer_bytes_sent),
    counter("transfer_received_bytes_total", "Bytes of snapshots received.", |s| s.transfer_bytes_received),
    counter("transfers_installed_total", "Snapshots received that took effect.", |s| s.transfers_installed),
    counter("transfers_resumed_total", "Transfers that went on after a break.", |s| s.transfers_resumed),
    counter("transfers_restarted_total", "Transfers given up for another snapshot.", |s| {
        s.transfers_restarted
    }),
    counter("transfers_abandoned_total", "Transfers overtaken by the log.", |s| s.transfers_abandoned),
    counter("transfers_needless_total", "Snapshots offered that the log had.", |s| s.transfers_needless),
    gauge("arena_bytes", "Bytes of entries in memory.", |s| s.arena_bytes),
    counter("segment_bytes_total", "Bytes of segments written by compaction.", |s| s.segment_bytes),
    counter("compacted_files_total", "Files that compaction emptied.", |s| s.compacted_files),
    counter("compaction_microseconds_total", "Time that compaction took.", |s| s.compaction_us),
    gauge("sealed_bytes", "Bytes of sealed files and segments that hold something.", |s| s.sealed_bytes),
    gauge("sealed_live_bytes", "What lives in them.", |s| s.sealed_live_bytes),
    gauge("disk_full", "1 while commands are refused because the disk is full.", |s| s.disk_full.into()),
];

/// All of them, for all shards.
pub(super) fn text(shared: &Shared, shards: &[ShardStatus]) -> String {
    let key = match shared.metrics_key.as_str() {
        "" => String::new(),
        key => format!(",metrics_key=\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\"")),
    };
    let node = shared.handles.id;
    let mut out = String::new();
    for metric in METRICS {
        let Metric { name, is_counter, help, of } = metric;
        let kind = if *is_counter { "counter" } else { "gauge" };
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP coracle_{name} {help}\n# TYPE coracle_{name} {kind}");
        for (shard, status) in shards.iter().enumerate() {
            let value = of(status);
            let _ = writeln!(out, "coracle_{name}{{node=\"{node}\",shard=\"{shard}\"{key}}} {value}");
        }
    }
    out
}
