//! One io_uring, shared by the drivers of one thread.
//!
//! Each driver is a *client*: it pushes operations and fetches its own completions; whoever enters the kernel submits
//! what all of them have queued, and routes every completion to its client's queue. There is no other thread, so a
//! plain `RefCell` will do, and it is never borrowed across a call into a driver.
//!
//! Invariants: (1) an operation is in `table`, with its memory and files, from `push` until its last completion has
//! been reaped: nothing that the kernel may still touch is ever freed, not even when the ring is dropped; (2) the
//! completion queue is emptied after each enter into queues that grow, and the kernel keeps what did not fit
//! (NODROP, checked at start), so no completion is lost.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coracle_base::limits::{BATCH_BYTES_MAX, BATCH_BYTES_TARGET};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;

use super::clock::RealClock;
use super::ops::RingOp;
use super::pool::Pool;
use super::sys::{self, EventFd};
use super::{Buffer, probe, system_error};
use crate::{Clock, DiskError};

/// The ring of one thread, shared by its drivers.
pub type SharedRing = Rc<RefCell<Ring>>;

/// How long a dropped ring or disk waits for the kernel before it gives up and leaks what the kernel still holds.
const DRAIN_US_MAX: u64 = 30_000_000;

/// Marks completions that nobody waits for.
const NOBODY: u64 = u64::MAX;

/// What a ring is made of.
#[derive(Debug, Clone)]
pub struct RingOptions {
    /// Operations that can be queued between two system calls; more only cost further calls. A power of two.
    pub queue: u32,
    /// Registered buffers: (bytes, count) of each size. They stay pinned in memory, and count towards
    /// RLIMIT_MEMLOCK unless the process is privileged.
    pub buffers: Vec<(usize, usize)>,
}

impl Default for RingOptions {
    /// 7 MiB of buffers: a full WAL batch in each large one, and below the usual limit of 8 MiB.
    fn default() -> Self {
        Self { queue: 256, buffers: vec![(BATCH_BYTES_TARGET, 12), (BATCH_BYTES_MAX, 1)] }
    }
}

/// A driver's number on its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientId(usize);

/// An operation's number, for the kernel, too: its place in the table, and which of the place's tenants it is. A place is
/// let again as soon as its completion is routed, maybe before the driver has looked: a cancellation that comes late
/// must not hit the next tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpKey {
    place: u32,
    tenant: u32,
}

impl OpKey {
    fn user_data(self) -> u64 {
        u64::from(self.tenant) << 32 | u64::from(self.place)
    }

    fn of(user_data: u64) -> Self {
        Self { place: user_data as u32, tenant: (user_data >> 32) as u32 }
    }
}

/// What became of an operation.
#[derive(Debug)]
pub(crate) struct Completion {
    /// The client's word.
    pub(crate) token: u64,
    /// As of the system call: negative is an errno.
    pub(crate) result: i32,
    /// The operation with all it owns; `None` if more completions of it follow.
    pub(crate) op: Option<RingOp>,
}

struct InFlight {
    tenant: u32,
    client: ClientId,
    token: u64,
    op: RingOp,
}

#[derive(Default)]
struct Client {
    completions: VecDeque<Completion>,
    /// The driver itself holds results that its user has not fetched.
    ready: bool,
}

/// An io_uring with its operations in flight and its buffers. Bound to the thread that made it.
pub struct Ring {
    // Dropped first: afterwards the kernel accepts nothing more.
    uring: IoUring,
    table: Slab<InFlight>,
    /// The newest operation's. Below 2^31, so that none is NOBODY.
    tenant: u32,
    /// Entries that found the submission queue full and could not be submitted either; always empty in practice.
    backlog: VecDeque<squeue::Entry>,
    /// By number; numbers are never used again, since operations of a client that is gone may still complete.
    clients: Vec<Option<Client>>,
    pool: Pool,
    event: Option<EventFd>,
    enters: u64,
}

impl Ring {
    /// Sets up the ring of this thread.
    ///
    /// # Errors
    /// [`DiskError::Unsupported`] if the kernel is too old or does not allow io_uring; it says what to do.
    pub fn new(options: &RingOptions) -> Result<SharedRing, DiskError> {
        Ok(Rc::new(RefCell::new(Self::over(probe::set_up(options.queue, &probe::SETTINGS)?, options))))
    }

    fn over(uring: IoUring, options: &RingOptions) -> Self {
        let mut pool = Pool::new(&options.buffers);
        let block = libc::iovec { iov_base: pool.arena().address().cast(), iov_len: pool.arena().bytes() };
        // SAFETY: the pool owns the arena and outlives the io_uring: it is declared after it in Ring, and leaked if
        // the ring cannot be drained.
        match unsafe { uring.submitter().register_buffers(&[block]) } {
            Ok(()) => pool.set_registered(),
            Err(error) => tracing::warn!(
                %error,
                bytes = block.iov_len,
                "cannot register buffers, so that writes cost more; raise RLIMIT_MEMLOCK (ulimit -l)"
            ),
        }
        let (table, backlog, clients) = (Slab::new(), VecDeque::new(), Vec::new());
        Self { uring, table, tenant: 0, backlog, clients, pool, event: None, enters: 0 }
    }

    /// An eventfd that counts completions, for an event loop that cannot sleep in the ring itself. (Waiting for the
    /// ring's own descriptor would hang: with deferred task work nothing completes until somebody enters.)
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn completion_event(&mut self) -> Result<Arc<File>, DiskError> {
        if let Some(event) = &self.event {
            return Ok(event.file());
        }
        let event = EventFd::new().map_err(|error| system_error("eventfd", &error))?;
        let registered = self.uring.submitter().register_eventfd(event.file().as_raw_fd());
        registered.map_err(|error| system_error("io_uring_register", &error))?;
        Ok(self.event.insert(event).file())
    }

    pub(crate) fn add_client(&mut self) -> ClientId {
        self.clients.push(Some(Client::default()));
        ClientId(self.clients.len() - 1)
    }

    /// The client's operations go on; what they own is freed as they complete.
    pub(crate) fn remove_client(&mut self, client: ClientId) {
        let gone = self.clients[client.0].take();
        for completion in gone.into_iter().flat_map(|client| client.completions) {
            self.discard(completion);
        }
    }

    /// Whether the driver holds results that its user has not fetched yet: then nobody may sleep.
    pub(crate) fn set_ready(&mut self, client: ClientId, ready: bool) {
        if let Some(client) = &mut self.clients[client.0] {
            client.ready = ready;
        }
    }

    /// Whether anything waits to be fetched.
    pub(crate) fn has_deliveries(&self) -> bool {
        self.clients.iter().flatten().any(|client| client.ready || !client.completions.is_empty())
    }

    /// System calls made so far.
    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }

    pub(crate) fn buffer(&mut self, bytes: usize) -> Buffer {
        self.pool.take(bytes)
    }

    pub(crate) fn recycle(&mut self, buf: Buffer) {
        self.pool.put(buf);
    }

    /// Queues an operation. Enters the kernel only if the submission queue is full.
    pub(crate) fn push(&mut self, client: ClientId, token: u64, op: RingOp) -> OpKey {
        let registered = op.buffer().is_some_and(|buf| self.pool.is_registered(buf));
        self.tenant = (self.tenant + 1) & (u32::MAX >> 1);
        let tenant = self.tenant;
        let place = self.table.insert(InFlight { tenant, client, token, op });
        let key = OpKey { place: place as u32, tenant };
        let entry = self.table[place].op.entry(registered).user_data(key.user_data());
        self.queue(entry);
        key
    }

    /// Asks the kernel to end an operation early. It completes all the same: cancelled, failed or done. One that has
    /// completed already is let be.
    pub(crate) fn cancel(&mut self, key: OpKey) {
        self.queue(opcode::AsyncCancel::new(key.user_data()).build().user_data(NOBODY));
    }

    /// The client's oldest completion.
    pub(crate) fn take(&mut self, client: ClientId) -> Option<Completion> {
        self.clients[client.0].as_mut()?.completions.pop_front()
    }

    /// Hands everything queued to the kernel and fetches what is finished. No system call if there is neither.
    pub(crate) fn submit(&mut self) -> Result<(), DiskError> {
        // With deferred task work, finished I/O becomes a completion only when its thread enters the kernel.
        if self.is_queued() || self.uring.submission().taskrun() {
            self.enter(0, None)?;
        }
        self.reap();
        self.submit_rest()
    }

    /// Hands everything queued to the kernel and waits until something completes or the time is up: one system call.
    /// May return early.
    pub(crate) fn wait(&mut self, timeout_us: Option<u64>) -> Result<(), DiskError> {
        if !self.backlog.is_empty() {
            self.submit()?;
        }
        if self.reap() == 0 {
            self.enter(1, timeout_us)?;
            self.reap();
        }
        self.submit_rest()
    }

    /// What one call could not do: entries behind a bad one, more than one queue full, completions that overflowed.
    fn submit_rest(&mut self) -> Result<(), DiskError> {
        while self.is_queued() {
            let submitted = self.enter(0, None)?;
            if submitted + self.reap() == 0 {
                // The kernel is short of memory; what is queued stays queued for the next call.
                std::thread::yield_now();
                break;
            }
        }
        Ok(())
    }

    fn is_queued(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.cq_overflow() || !self.backlog.is_empty()
    }

    fn queue(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.push_entry(&entry) {
            return;
        }
        if let Err(error) = self.enter(0, None) {
            // The entry is kept, and the next submit meets and reports the same error.
            tracing::debug!(%error, "submission queue full and not accepted");
        }
        self.reap();
        if !self.backlog.is_empty() || !self.push_entry(&entry) {
            self.backlog.push_back(entry);
        }
    }

    /// False if the submission queue is full.
    fn push_entry(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the entry's addresses and descriptors belong to an operation in `table` (ops.rs says how), which
        // stays there until its completion; or it is a cancellation, which has none.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// One system call; says how many entries the kernel took.
    fn enter(&mut self, want: usize, timeout_us: Option<u64>) -> Result<usize, DiskError> {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_entry(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        self.enters += 1;
        let submitter = self.uring.submitter();
        let entered = match timeout_us {
            Some(us) if want > 0 => {
                let time = types::Timespec::from(Duration::from_micros(us));
                submitter.submit_with_args(want, &types::SubmitArgs::new().timespec(&time))
            }
            _ => submitter.submit_and_wait(want),
        };
        entered.or_else(|error| match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR) => Ok(0),
            // Out of memory for requests, or the completion queue overflowed: reap and enter again.
            Some(libc::EAGAIN | libc::EBUSY) => Ok(0),
            _ => Err(system_error("io_uring_enter", &error)),
        })
    }

    /// Routes all completions to their clients; says how many there were.
    fn reap(&mut self) -> usize {
        let mut count = 0;
        while let Some(entry) = { self.uring.completion().next() } {
            count += 1;
            if entry.user_data() != NOBODY {
                self.route(&entry);
            }
        }
        count
    }

    fn route(&mut self, entry: &cqueue::Entry) {
        let key = OpKey::of(entry.user_data());
        let place = key.place as usize;
        let more = cqueue::more(entry.flags());
        let Some(InFlight { client, token, .. }) = self.table.get(place).filter(|op| op.tenant == key.tenant)
        else {
            tracing::error!(?key, "the kernel completed an operation that is not in flight");
            return;
        };
        let (client, token) = (*client, *token);
        let op = (!more).then(|| self.table.remove(place).op);
        let completion = Completion { token, result: entry.result(), op };
        match &mut self.clients[client.0] {
            Some(client) => client.completions.push_back(completion),
            None => self.discard(completion),
        }
    }

    /// Frees what a completion brings that nobody waits for.
    fn discard(&mut self, completion: Completion) {
        match completion.op {
            Some(RingOp::Open { .. }) if completion.result >= 0 => {
                drop(sys::adopt_descriptor(completion.result));
            }
            Some(RingOp::Socket(op)) => op.discard(completion.result),
            Some(op) => op.into_buffer().into_iter().for_each(|buf| self.pool.put(buf)),
            None => {}
        }
    }

    /// Removes a client and waits until the kernel has let go of all that its operations own.
    pub(crate) fn drain_client(&mut self, client: ClientId) -> Result<(), DiskError> {
        self.remove_client(client);
        self.drain(|op| op.client == client)
    }

    fn drain(&mut self, concerns: impl Fn(&InFlight) -> bool) -> Result<(), DiskError> {
        let deadline_us = RealClock.now_us() + DRAIN_US_MAX;
        while self.table.iter().any(|(_, op)| concerns(op)) {
            let now_us = RealClock.now_us();
            if now_us >= deadline_us {
                return Err(system_error("drain", &io::Error::from_raw_os_error(libc::ETIME)));
            }
            self.wait(Some(deadline_us - now_us))?;
        }
        Ok(())
    }

    /// The end of all operations: what would wait for ever (a bell, a socket) is cancelled, the disk's end by
    /// themselves.
    fn drain_all(&mut self) -> Result<(), DiskError> {
        for client in 0..self.clients.len() {
            self.remove_client(ClientId(client));
        }
        let key = |(place, op): (usize, &InFlight)| OpKey { place: place as u32, tenant: op.tenant };
        let keys: Vec<_> = self.table.iter().map(key).collect();
        keys.into_iter().for_each(|key| self.cancel(key));
        self.drain(|_| true)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Err(error) = self.drain_all() {
            tracing::error!(%error, operations = self.table.len(), "the kernel keeps our buffers: leaking them");
            mem::forget(self.pool.arena().clone());
            mem::forget(mem::take(&mut self.table));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancellation_that_comes_late_ends_nobody_else() {
        let mut ring = Ring::over(
            probe::set_up(4, &probe::SETTINGS).unwrap(),
            &RingOptions { queue: 4, buffers: vec![] },
        );
        let client = ring.add_client();
        let bells = [(); 2].map(|()| EventFd::new().unwrap());
        let hear = |ring: &mut Ring, at: usize| {
            let op = RingOp::Hear { bell: bells[at].file(), count: Box::default() };
            ring.push(client, at as u64, op)
        };
        let first = hear(&mut ring, 0);
        bells[0].ring();
        while !ring.has_deliveries() {
            ring.wait(None).unwrap();
        }
        // Its completion is routed and not taken: the driver still believes that it is in flight.
        let second = hear(&mut ring, 1);
        assert_eq!(first.place, second.place, "else this test shows nothing");
        ring.submit().unwrap();
        ring.cancel(first);
        ring.submit().unwrap();
        assert_eq!(ring.take(client).map(|heard| (heard.token, heard.result)), Some((0, 8)));
        assert!(!ring.has_deliveries(), "the second was cancelled in its place");
        bells[1].ring();
        while !ring.has_deliveries() {
            ring.wait(None).unwrap();
        }
        assert_eq!(ring.take(client).map(|heard| (heard.token, heard.result)), Some((1, 8)));
    }

    #[test]
    fn a_bell_is_heard_and_cancelled_in_every_way_to_run_a_ring() {
        for at in 0..probe::SETTINGS.len() {
            let uring = probe::set_up(4, &probe::SETTINGS[at..]).unwrap();
            let mut ring = Ring::over(uring, &RingOptions { queue: 4, buffers: vec![(4096, 1)] });
            let client = ring.add_client();
            let bell = EventFd::new().unwrap();
            let hear = |ring: &mut Ring, token| {
                ring.push(client, token, RingOp::Hear { bell: bell.file(), count: Box::default() })
            };
            hear(&mut ring, 7);
            bell.ring();
            bell.ring();
            while !ring.has_deliveries() {
                ring.wait(None).unwrap();
            }
            let heard = ring.take(client).unwrap();
            assert_eq!((heard.token, heard.result), (7, 8));
            assert!(matches!(heard.op, Some(RingOp::Hear { count, .. }) if *count == 2u64.to_ne_bytes()));

            let key = hear(&mut ring, 8);
            ring.cancel(key);
            while !ring.has_deliveries() {
                ring.wait(None).unwrap();
            }
            let cancelled = ring.take(client).unwrap();
            assert_eq!((cancelled.token, cancelled.result), (8, -libc::ECANCELED));

            // Nobody rings any more: the drop must end this one itself.
            hear(&mut ring, 9);
            ring.submit().unwrap();
        }
    }
}
