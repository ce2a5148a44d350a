//! Time that moves when told. All clocks of one simulation share the true time; each node's own clock runs at its own
//! rate from there, and its wall clock may be wrong by any amount.
//!
//! Invariant: `now_us` of one clock never goes back, also when its rate changes.

use std::cell::Cell;
use std::rc::Rc;

use crate::Clock;

/// 2026-01-01, where every simulation starts.
const WALL_START_MS: i64 = 1_767_225_600_000;

/// A clock that reads what the test or simulator set. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct FakeClock {
    true_us: Rc<Cell<u64>>,
    own: Rc<Own>,
}

/// One node's deviation from the true time: `local = local_anchor + (true - true_anchor) * rate`.
#[derive(Debug)]
struct Own {
    true_anchor_us: Cell<u64>,
    local_anchor_us: Cell<u64>,
    rate_ppm: Cell<u64>,
    wall_offset_ms: Cell<i64>,
}

const EXACT_PPM: u64 = 1_000_000;

impl FakeClock {
    /// A clock at 0 that shows the true time.
    #[must_use]
    pub fn new() -> Self {
        Self::on(Rc::new(Cell::new(0)))
    }

    fn on(true_us: Rc<Cell<u64>>) -> Self {
        let now = true_us.get();
        let own = Own {
            true_anchor_us: Cell::new(now),
            local_anchor_us: Cell::new(now),
            rate_ppm: Cell::new(EXACT_PPM),
            wall_offset_ms: Cell::new(0),
        };
        Self { true_us, own: Rc::new(own) }
    }

    /// Another node's clock of the same simulation: the same true time, a rate and a wall clock of its own.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::on(self.true_us.clone())
    }

    /// The true time in microseconds since the start.
    #[must_use]
    pub fn true_us(&self) -> u64 {
        self.true_us.get()
    }

    /// Moves the true time, and with it every clock that shares it, to `us`. Never back: an earlier time is ignored.
    pub fn advance_to(&self, us: u64) {
        self.true_us.set(us.max(self.true_us.get()));
    }

    /// Moves the true time by `us`.
    pub fn advance(&self, us: u64) {
        self.advance_to(self.true_us.get() + us);
    }

    /// From now on this clock gains `ppm` microseconds a true second: 1,000,000 is exact, 500,000 half as fast.
    ///
    /// # Panics
    /// If `ppm` is 0: a clock that stands still waits for ever.
    pub fn set_rate_ppm(&self, ppm: u64) {
        assert!(ppm > 0, "a clock runs");
        self.own.local_anchor_us.set(self.now_us());
        self.own.true_anchor_us.set(self.true_us.get());
        self.own.rate_ppm.set(ppm);
    }

    /// The wall clock is wrong by so much from now on; it may jump either way.
    pub fn set_wall_offset_ms(&self, offset: i64) {
        self.own.wall_offset_ms.set(offset);
    }

    /// The first true time at which this clock reads `local_us` or more: when a timer set on it is due.
    #[must_use]
    pub fn true_us_at(&self, local_us: u64) -> u64 {
        let ahead = u128::from(local_us.saturating_sub(self.own.local_anchor_us.get()));
        let ahead = (ahead * u128::from(EXACT_PPM)).div_ceil(u128::from(self.own.rate_ppm.get()));
        self.own.true_anchor_us.get().saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }
}

impl Default for FakeClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for FakeClock {
    fn now_us(&self) -> u64 {
        let gone = u128::from(self.true_us.get() - self.own.true_anchor_us.get());
        let gone = gone * u128::from(self.own.rate_ppm.get()) / u128::from(EXACT_PPM);
        self.own.local_anchor_us.get() + u64::try_from(gone).expect("simulated time stays far below 2^64 us")
    }

    fn wall_ms(&self) -> u64 {
        let ms = WALL_START_MS + (self.now_us() / 1000) as i64 + self.own.wall_offset_ms.get();
        ms.max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_share_time_but_not_rate_or_wall() {
        let exact = FakeClock::new();
        let slow = exact.another();
        slow.set_rate_ppm(500_000);
        exact.advance(1000);
        assert_eq!((exact.now_us(), slow.now_us()), (1000, 500));
        slow.set_rate_ppm(2_000_000);
        exact.advance(1000);
        assert_eq!((exact.now_us(), slow.now_us()), (2000, 2500), "changing the rate does not jump");
        slow.set_wall_offset_ms(-3_600_000);
        assert_eq!(exact.wall_ms() - slow.wall_ms(), 3_600_000);
        exact.advance_to(5);
        assert_eq!(exact.now_us(), 2000, "never back");
    }

    #[test]
    fn a_timer_is_due_exactly_when_the_local_clock_says_so() {
        let clock = FakeClock::new();
        for ppm in [333_333, 500_000, 1_000_000, 1_999_999] {
            clock.set_rate_ppm(ppm);
            let local = clock.now_us() + 777;
            let due = clock.true_us_at(local);
            clock.advance_to(due - 1);
            assert!(clock.now_us() < local, "{ppm}");
            clock.advance_to(due);
            assert!(clock.now_us() >= local, "{ppm}");
        }
    }
}
