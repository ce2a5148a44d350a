//! The load of one shard, as a shard makes it: each turn gathers what has arrived into runs, one for each group that it
//! hit, hands them to the log and lets it submit; entries are done when their batch is proven durable.
//!
//! The turn allocates nothing in the steady state. A run is built in one small buffer that stays in the CPU's cache and
//! is copied once, into the batch.

use std::collections::VecDeque;
use std::ops::Range;

use coracle_base::limits::{BATCH_BYTES_TARGET, RUN_BYTES_MAX};
use coracle_base::run::ENTRY_HEADER_BYTES;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, RunError, RunHeader, Term};
use coracle_io::ring::{RealClock, RingPark};
use coracle_io::{Clock, Disk, DiskDone, Park};
use coracle_wal::{BatchSeq, Wal};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::Error;
use super::pace::Pace;
use crate::latency::Latencies;

/// Groups that are brought into the cache together.
const WARM_GROUPS: usize = 24;
/// While the log only gathers, arrivals are looked at this often, or when a write completes: a driver that looks at each of
/// them keeps the kernel's threads that complete the writes from the CPU.
const LOOK_EVERY_US: u64 = 100;
/// The term of every entry: one leader, from the beginning to the end.
const TERM: Term = Term(1);
/// Besides its entries, a run that is alone in a batch takes at most this much of it.
const RUN_OVERHEAD_BYTES: usize = 256;
/// Random bytes from which payloads are cut.
const NOISE_BYTES: usize = 64 * 1024;

/// Entries of one batch that are not durable yet.
#[derive(Debug, Clone, Copy)]
struct Notice {
    batch: BatchSeq,
    /// Number of the first one since the start.
    first: u64,
    count: u64,
    appended_us: u64,
}

/// What one stretch of load came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) entries: u64,
    /// Encoded runs: what the log was given.
    pub(super) run_bytes: u64,
    pub(super) micros: u64,
    pub(super) latencies: Latencies,
}

/// The groups of one shard and where their logs end.
pub(super) struct Load {
    /// By slot: the group, and the index and number of its last entry.
    groups: Vec<(GroupId, Index)>,
    /// By slot: entries that this turn brings it.
    hits: Vec<u32>,
    hit_slots: Vec<u32>,
    rng: SmallRng,
    noise: Vec<u8>,
    entry_bytes: usize,
    run: EntryBatch,
    in_flight_max: u64,
    turn_entries_max: u64,
    /// So many fit a batch. If not even one does, it gets a larger batch of its own.
    run_entries_max: u32,
    notices: VecDeque<Notice>,
    done: Vec<DiskDone>,
}

impl Load {
    /// Groups `ids`, all empty.
    pub(super) fn new(
        ids: impl Iterator<Item = GroupId>,
        entry_bytes: usize,
        in_flight_max: u64,
        batch_bytes: usize,
        seed: u64,
    ) -> Self {
        let groups: Vec<_> = ids.map(|id| (id, Index::ZERO)).collect();
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut noise = vec![0; NOISE_BYTES + entry_bytes];
        rng.fill_bytes(&mut noise);
        let encoded = ENTRY_HEADER_BYTES + entry_bytes;
        // A turn brings about a batch, and never more than one run can hold if all of it hits one group.
        let turn_entries_max = (4 * BATCH_BYTES_TARGET / encoded).clamp(1, RUN_BYTES_MAX / encoded) as u64;
        let run_entries_max = (batch_bytes.saturating_sub(RUN_OVERHEAD_BYTES) / encoded).max(1) as u32;
        Self {
            hits: vec![0; groups.len()],
            hit_slots: Vec::with_capacity(groups.len()),
            groups,
            rng,
            noise,
            entry_bytes,
            run: EntryBatch::with_capacity(RUN_BYTES_MAX),
            in_flight_max,
            turn_entries_max,
            run_entries_max,
            notices: VecDeque::new(),
            done: Vec::new(),
        }
    }

    /// Each group and its last index.
    pub(super) fn groups(&self) -> &[(GroupId, Index)] {
        &self.groups
    }

    /// Appends at `pace` until it is over and everything is durable.
    pub(super) fn run<D: Disk>(
        &mut self,
        disk: &mut D,
        wal: &mut Wal,
        park: &mut RingPark,
        pace: Pace,
    ) -> Result<Outcome, Error> {
        let started_us = RealClock.now_us();
        let mut outcome = Outcome::default();
        let mut durable = 0;
        loop {
            let now_us = RealClock.now_us();
            let wanted = pace.arrived(now_us).saturating_sub(outcome.entries);
            let room = self.in_flight_max - (outcome.entries - durable);
            let count = wanted.min(room).min(self.turn_entries_max);
            self.append(wal, count, now_us, &mut outcome)?;
            wal.submit(disk, now_us)?;
            let timeout_us = if wanted.min(room) > count {
                Some(0)
            } else {
                let arrival = pace.intended_us(outcome.entries);
                let arrival = arrival.filter(|_| room > count && !pace.is_over(now_us, outcome.entries));
                let not_before_us = if wal.is_gathering() { now_us + LOOK_EVERY_US } else { 0 };
                let arrival = arrival.map(|at| at.max(not_before_us));
                let wake_us = [arrival, wal.deadline_us()].into_iter().flatten().min();
                wake_us.map(|at| at.saturating_sub(now_us))
            };
            // The turn's one system call.
            park.park(timeout_us, &|| true)?;
            durable += self.complete(disk, wal, &pace, &mut outcome.latencies)?;
            if pace.is_closed_loop() {
                // What waits for a place in flight need not wait until the next entries are made. At a set rate some have
                // arrived meanwhile, and go with it.
                wal.submit(disk, RealClock.now_us())?;
                disk.submit()?;
            }
            if durable == outcome.entries && pace.is_over(RealClock.now_us(), outcome.entries) {
                outcome.micros = RealClock.now_us() - started_us;
                return Ok(outcome);
            }
        }
    }

    /// `count` new entries for random groups.
    fn append(
        &mut self,
        wal: &mut Wal,
        count: u64,
        now_us: u64,
        outcome: &mut Outcome,
    ) -> Result<(), RunError> {
        let time_ms = RealClock.wall_ms();
        for _ in 0..count {
            let slot = self.rng.random_range(0..self.groups.len() as u32);
            let hits = &mut self.hits[slot as usize];
            if *hits == 0 {
                self.hit_slots.push(slot);
            }
            *hits += 1;
        }
        let mut warm = self.hit_slots.len();
        while let Some(slot) = self.hit_slots.pop() {
            if self.hit_slots.len() < warm {
                warm = self.hit_slots.len().saturating_sub(WARM_GROUPS);
                wal.warm(self.hit_slots[warm..].iter().map(|slot| self.groups[*slot as usize].0));
            }
            let hits = self.hits[slot as usize];
            let taken = hits.min(self.run_entries_max);
            self.hits[slot as usize] -= taken;
            if taken < hits {
                self.hit_slots.push(slot);
            }
            let batch = self.append_run(wal, (slot, taken), time_ms, outcome)?;
            let (first, count) = (outcome.entries, u64::from(taken));
            match self.notices.back_mut() {
                Some(last) if last.batch == batch && last.appended_us == now_us => last.count += count,
                _ => self.notices.push_back(Notice { batch, first, count, appended_us: now_us }),
            }
            outcome.entries += count;
        }
        Ok(())
    }

    /// One run of fresh entries at the end of a group's log.
    fn append_run(
        &mut self,
        wal: &mut Wal,
        (slot, count): (u32, u32),
        time_ms: u64,
        outcome: &mut Outcome,
    ) -> Result<BatchSeq, RunError> {
        let (group, last) = self.groups[slot as usize];
        self.run.clear();
        for nth in 0..u64::from(count) {
            let number = outcome.entries + nth;
            let payload = self.fresh(number);
            self.run.push(number, EntryKind::Command, &self.noise[payload])?;
        }
        self.run.stamp(TERM, time_ms);
        let header = RunHeader {
            group,
            accepted_term: TERM,
            prev_index: last,
            prev_term: if last == Index::ZERO { Term::ZERO } else { TERM },
            count,
            body_bytes: self.run.bytes().len() as u32,
        };
        self.groups[slot as usize].1 = header.last();
        outcome.run_bytes += header.encoded_bytes() as u64;
        Ok(wal.append(&header, &[self.run.bytes()]))
    }

    /// Where bytes lie that no entry has had before: noise from a random place, headed by the entry's number.
    fn fresh(&mut self, number: u64) -> Range<usize> {
        let at = self.rng.random_range(0..NOISE_BYTES);
        let payload = at..at + self.entry_bytes;
        if let Some(head) = self.noise[payload.clone()].first_chunk_mut() {
            *head = number.to_le_bytes();
        }
        payload
    }

    /// Takes the disk's answers; says how many entries became durable.
    fn complete<D: Disk>(
        &mut self,
        disk: &mut D,
        wal: &mut Wal,
        pace: &Pace,
        latencies: &mut Latencies,
    ) -> Result<u64, Error> {
        disk.completions(&mut self.done);
        for one in self.done.drain(..) {
            wal.on_done(disk, one)?;
        }
        let (proof, now_us) = (wal.durable(), RealClock.now_us());
        let mut count = 0;
        while let Some(notice) = self.notices.pop_front_if(|notice| proof.covers(notice.batch)) {
            count += notice.count;
            if pace.is_closed_loop() {
                latencies.record((now_us - notice.appended_us) * 1000, notice.count);
                continue;
            }
            let end = notice.first + notice.count;
            for nth in (notice.first..end).step_by(pace.together() as usize) {
                let intended_us = pace.intended_us(nth).unwrap_or(notice.appended_us);
                latencies.record(now_us.saturating_sub(intended_us) * 1000, pace.together().min(end - nth));
            }
        }
        Ok(count)
    }
}
