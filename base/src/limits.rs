//! Every bound in one table, each with its why. Bytes unless the name says otherwise.

/// Largest payload of one entry. A batch must hold it with its headers under [`BATCH_BYTES_MAX`].
pub const ENTRY_BYTES_MAX: usize = 512 * 1024;

/// Entries in one run. Keeps a header's count and a decoder's loop small.
pub const RUN_ENTRIES_MAX: u32 = 65_536;

/// Entries' bytes in one run: a run plus its record header always fits an empty batch.
pub const RUN_BYTES_MAX: usize = 768 * 1024;

/// A batch that has to wait is closed when it has gathered this much: smaller ones cost the CPU more a byte, larger ones
/// win nothing (measured in `docs/decisions/0002`).
pub const BATCH_BYTES_TARGET: usize = 512 * 1024;

/// Hard cap of one batch, for one huge entry or snapshot.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Durable writes in flight before a shard gathers instead of submitting: each one more adds a flush to the disk.
pub const WRITES_IN_FLIGHT: usize = 2;

/// Writes in flight at most, for full batches only; also the window `K` of the torn-tail rule.
pub const WRITES_IN_FLIGHT_MAX: usize = 4;

/// Everything written to a WAL file starts and ends on this boundary: no acknowledged byte is ever rewritten.
pub const BLOCK_BYTES: usize = 4096;

/// A consensus blob (hard state and configurations) of one group.
pub const STATE_BYTES_MAX: usize = 256;

/// A snapshot that goes into the WAL as a record; a larger one needs a file.
pub const INLINE_SNAPSHOT_BYTES_MAX: usize = 64 * 1024;

/// One frame between nodes; larger ones close the connection before anything is allocated.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Unacknowledged append bytes towards one member of one group.
pub const PEER_WINDOW_BYTES: u32 = 1024 * 1024;

/// Unacknowledged append messages towards one member of one group.
pub const PEER_WINDOW_MESSAGES: u32 = 64;

/// Bytes queued for one link before commands are no longer forwarded over it: the peer is slower than our clients.
pub const LINK_BYTES_HIGH: usize = 8 * 1024 * 1024;

/// Bytes queued for one link before its session is ended: the peer does not read.
pub const LINK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A machine's reply to a command that another node forwarded: it must fit a frame with others.
pub const FORWARDED_REPLY_BYTES_MAX: usize = 1024 * 1024;

/// Uncommitted bytes of all groups of one shard; beyond it proposals get `Busy`.
pub const SHARD_UNCOMMITTED_BYTES: usize = 64 * 1024 * 1024;

/// Uncommitted bytes of one group; beyond it its proposals get `Busy`.
pub const GROUP_UNCOMMITTED_BYTES: usize = 16 * 1024 * 1024;

/// Client commands waiting in a shard's inbox.
pub const INBOX_BYTES: usize = 16 * 1024 * 1024;

/// Entries of all groups of one shard kept in memory; older ones are read back from WAL files.
pub const ARENA_BYTES: usize = 128 * 1024 * 1024;

/// Members of one group.
pub const MEMBERS_MAX: usize = 16;

const _: () = {
    assert!(ENTRY_BYTES_MAX < RUN_BYTES_MAX);
    assert!(RUN_BYTES_MAX < BATCH_BYTES_MAX);
    assert!(WRITES_IN_FLIGHT <= WRITES_IN_FLIGHT_MAX);
    assert!(BATCH_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    assert!(BATCH_BYTES_MAX < FRAME_BYTES_MAX);
};
