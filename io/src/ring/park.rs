//! Sleeping in the ring: the turn's submission, its sleep and its waking are one system call.
//!
//! A read of the wake-up eventfd is always in flight in the same ring, so a wake-up is just one more completion.

use super::core::{ClientId, SharedRing};
use super::ops::RingOp;
use super::sys::EventFd;
use super::system_error;
use crate::DiskError;
use crate::park::{Park, Waker};

/// [`Park`] for a thread whose drivers all live on one ring.
pub struct RingPark {
    ring: SharedRing,
    client: ClientId,
    bell: EventFd,
    waker: Waker,
}

impl RingPark {
    /// Hangs a bell into the ring.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(ring: &SharedRing) -> Result<Self, DiskError> {
        let bell = EventFd::new().map_err(|error| system_error("eventfd", &error))?;
        let waker = Waker::new({
            let bell = bell.clone();
            move || bell.ring()
        });
        let client = ring.borrow_mut().add_client();
        let park = Self { ring: ring.clone(), client, bell, waker };
        park.listen();
        Ok(park)
    }

    fn listen(&self) {
        let hear = RingOp::Hear { bell: self.bell.file(), count: Box::default() };
        self.ring.borrow_mut().push(self.client, 0, hear);
    }

    /// Listens again if the bell was heard. A ring in between is not lost: the kernel counts it.
    fn answer_bell(&self) -> Result<(), DiskError> {
        let heard = self.ring.borrow_mut().take(self.client);
        match heard {
            None => Ok(()),
            Some(heard) if heard.result >= 0 || heard.result == -libc::EINTR => {
                self.listen();
                Ok(())
            }
            Some(heard) => {
                Err(system_error("read eventfd", &std::io::Error::from_raw_os_error(-heard.result)))
            }
        }
    }
}

impl Park for RingPark {
    fn park(&mut self, timeout_us: Option<u64>, idle: &dyn Fn() -> bool) -> Result<(), DiskError> {
        self.answer_bell()?;
        self.waker.announce_sleep();
        let may_sleep = timeout_us != Some(0) && idle();
        let mut ring = self.ring.borrow_mut();
        let parked = if may_sleep && !ring.has_deliveries() { ring.wait(timeout_us) } else { ring.submit() };
        self.waker.announce_awake();
        parked
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Drop for RingPark {
    fn drop(&mut self) {
        // The read of the bell stays in the table, which owns it, until the ring ends.
        self.ring.borrow_mut().remove_client(self.client);
    }
}
