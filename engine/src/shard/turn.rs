//! THE WRITE PATH. One turn of a shard: gather, step, persist and send, apply, reply. The simulator calls this very
//! function.
//!
//! A proposal leaves the inbox in step 1, becomes entries of its group's log, goes out in step 2 as part of one run, is
//! in the turn's one WAL batch in step 3 and in one envelope a peer in step 4. The disk and the network work while
//! step 6 applies what earlier turns have committed. In a later turn's step 1 the disk's completion and the peers'
//! acknowledgements come in, the commit index moves in step 2, and steps 6 and 7 apply it and answer.

use coracle_io::{Clock, Disk, Net};

use super::{Shard, ShardError};

/// What a turn leaves to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// There is more to do at once: do not sleep.
    pub busy: bool,
    /// The next turn is wanted at this time even if nothing happens.
    pub deadline_us: u64,
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// One turn.
    ///
    /// # Errors
    /// The disk or the network driver failed: the shard has stopped, and every further call returns the same. Nothing
    /// that was not durable has been acknowledged.
    pub(crate) fn turn(&mut self) -> Result<Turn, ShardError> {
        self.now_us = self.clock.now_us();
        self.status.turns += 1;
        self.again = false;

        self.receive()?; //     1 commands, frames and completions become inputs of their groups
        self.step_groups(); //  2 raft: inputs -> outputs, no I/O; runs go into the open WAL batch and the envelopes
        self.compact(); //        a bounded piece of it: its records go with the turn's batch
        self.persist()?; //     3 every group's records leave as ONE batch: one write
        self.send(); //         4 one envelope a peer; it travels while the disk works
        self.submit()?; //      5 the turn's one system call
        self.apply(); //        6 committed entries run on the machines, in index order, bounded a turn
        self.step_names(); //     the directory's machine may have said which groups begin and end here
        self.reply(); //        7 one wake-up a client, only for what is applied
        self.trim_cache();

        Ok(Turn { busy: self.again || self.has_work(), deadline_us: self.deadline_us() })
    }

    fn persist(&mut self) -> Result<(), ShardError> {
        self.wal.submit(&mut self.disk, self.now_us)?;
        self.watch_room();
        Ok(())
    }

    fn send(&mut self) {
        self.send_index_wishes();
        self.transport.flush(&mut self.net, self.now_us);
    }

    fn submit(&mut self) -> Result<(), ShardError> {
        self.disk.submit()?;
        Ok(self.net.submit()?)
    }

    fn has_work(&self) -> bool {
        !self.inbox.is_empty()
            || !self.dirty.is_empty()
            || !self.applying.is_empty()
            // Answers that step 6 gave to other nodes' commands leave with the next turn's envelopes.
            || self.transport.has_unsent()
            || self.places.has_unsent()
            || self.names.has_work()
            || self.wal.has_finished_read()
            || self.compaction_is_due()
    }

    fn deadline_us(&self) -> u64 {
        let timers = self.timers.first().map_or(u64::MAX, |(at, _)| *at);
        let forwards = self.forwards.deadline_us();
        let wal = self.wal.deadline_us().unwrap_or(u64::MAX).min(self.compaction_deadline_us());
        let due = wal.min(self.sweeping.deadline_us(self.wal.sweep_is_ready())).min(self.stall_deadline_us());
        due.min(self.places.deadline_us())
            .min(self.names.deadline_us())
            .min(self.snapshots.deadline_us())
            .min(self.boots.deadline_us())
            .min(self.transport.deadline_us())
            .min(timers)
            .min(forwards)
    }
}
