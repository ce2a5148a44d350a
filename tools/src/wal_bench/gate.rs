//! A gate where all threads meet before the next phase, and which breaks if one of them leaves early.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Somebody left early: there is nothing to wait for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another thread failed")]
pub(super) struct Broken;

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    /// Rises each time the gate opens.
    opened: u64,
    broken: bool,
}

/// Opens each time `threads` have arrived.
#[derive(Debug)]
pub(super) struct Gate {
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for all the others.
    ///
    /// # Errors
    /// [`Broken`] if one of them will never come.
    pub(super) fn arrive(&self) -> Result<(), Broken> {
        let mut state = self.lock();
        state.waiting += 1;
        if state.waiting == self.threads {
            state.waiting = 0;
            state.opened += 1;
            self.changed.notify_all();
        }
        let turn = state.opened + u64::from(state.waiting > 0);
        while state.opened < turn && !state.broken {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.broken { Err(Broken) } else { Ok(()) }
    }

    /// Nobody needs to wait any more: the caller failed.
    pub(super) fn break_open(&self) {
        self.lock().broken = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn nobody_passes_before_all_are_there() {
        let (gate, arrived) = (Gate::new(3), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for phase in 1..=100 {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        gate.arrive().unwrap();
                        assert!(arrived.load(Ordering::SeqCst) >= 3 * phase);
                    }
                });
            }
        });
    }

    #[test]
    fn a_failure_frees_those_who_wait() {
        let gate = Gate::new(2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.arrive());
            gate.break_open();
            assert_eq!(waiting.join().unwrap(), Err(Broken));
        });
        assert_eq!(gate.arrive(), Err(Broken));
    }
}
