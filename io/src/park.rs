//! Sleeping until something happens, and being woken by another thread without paying for it when nobody sleeps.
//!
//! The thread that owns a ring is the only sleeper. Any thread may wake it: it first makes its work visible (pushes to
//! a queue), then calls [`Waker::wake`], which rings the bell only if the sleeper has announced that it sleeps.
//!
//! No wake-up is lost. Both sides write first and read afterwards, with a sequentially consistent fence between:
//!
//! ```text
//!   sleeper                          waker
//!   sleeping = true                  push the work
//!   fence                            fence
//!   look at the queue                read `sleeping`
//! ```
//!
//! One of the two fences comes first in the single order of all such fences. If it is the sleeper's, the waker reads
//! `true` and rings; the bell is counted by the kernel, so it also ends a sleep that begins after it. If it is the
//! waker's, the sleeper sees the work and does not sleep. Exactly one of several wakers rings: whoever swaps `sleeping`
//! back to false.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crate::DiskError;

/// Ends a turn: hands what is queued to the kernel, and sleeps if there is nothing to do.
pub trait Park {
    /// Hands everything queued on the driver to the kernel; then sleeps until an operation completes, the waker is
    /// called or `timeout_us` has passed (`None`: for ever). May return early for no reason.
    ///
    /// `idle` is asked after the sleep was announced: it looks at the queues that wakers fill, and says whether they
    /// are all empty. If it says no, or completions wait to be fetched, nothing sleeps.
    ///
    /// # Errors
    /// The driver itself failed: nothing more can be done with it.
    fn park(&mut self, timeout_us: Option<u64>, idle: &dyn Fn() -> bool) -> Result<(), DiskError>;

    /// A handle for other threads.
    fn waker(&self) -> Waker;
}

/// Wakes a parked thread. Cheap to call when it does not sleep: a fence and a load.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

struct Shared {
    sleeping: AtomicBool,
    bell: Box<dyn Fn() + Send + Sync>,
}

impl Waker {
    /// `bell` ends the sleep, or the next one if there is none at the moment.
    pub fn new(bell: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared { sleeping: AtomicBool::new(false), bell: Box::new(bell) }))
    }

    /// Wakes the sleeper if it sleeps or is about to. Call it after the work was made visible.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        // The load keeps the usual case, an awake owner, from writing to a shared cache line.
        if self.0.sleeping.load(Ordering::Relaxed) && self.0.sleeping.swap(false, Ordering::Relaxed) {
            (self.0.bell)();
        }
    }

    /// For the sleeper: from now on wakers ring. Look at the queues after this, and only then sleep.
    pub fn announce_sleep(&self) {
        self.0.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// For the sleeper: awake again, nobody needs to ring.
    pub fn announce_awake(&self) {
        self.0.sleeping.store(false, Ordering::Relaxed);
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").field("sleeping", &self.0.sleeping).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn the_bell_rings_once_a_sleep_and_never_for_the_awake() {
        let rung = Arc::new(AtomicUsize::new(0));
        let waker = Waker::new({
            let rung = rung.clone();
            move || {
                rung.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut counts = Vec::new();
        let mut wake = |waker: &Waker| {
            waker.wake();
            counts.push(rung.load(Ordering::Relaxed));
        };
        wake(&waker);
        waker.announce_sleep();
        wake(&waker);
        wake(&waker);
        waker.announce_sleep();
        wake(&waker);
        waker.announce_sleep();
        waker.announce_awake();
        wake(&waker);
        assert_eq!(counts, [0, 1, 1, 2, 2]);
    }
}
