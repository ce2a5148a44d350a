//! When entries are meant to arrive: as fast as the log takes them, or at a set rate whatever it does.

use std::time::Duration;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    Entries(u64),
    Time(Duration),
}

/// The arrivals of one shard. Times are microseconds of one clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    start_us: u64,
    until: Until,
    /// Entries a second; `None` is a closed loop.
    rate: Option<f64>,
}

impl Pace {
    pub(super) fn new(start_us: u64, until: Until, rate: Option<f64>) -> Self {
        Self { start_us, until, rate }
    }

    /// How many entries should have arrived in all by `now_us`.
    pub(super) fn arrived(&self, now_us: u64) -> u64 {
        let elapsed_us = now_us.saturating_sub(self.start_us);
        match (self.rate, self.until) {
            (None, Until::Entries(entries)) => entries,
            (None, Until::Time(time)) => {
                if elapsed_us < time.as_micros() as u64 {
                    u64::MAX
                } else {
                    0
                }
            }
            (Some(rate), until) => {
                let scheduled = (elapsed_us as f64 * rate / 1e6) as u64 + 1;
                scheduled.min(total(rate, until))
            }
        }
    }

    /// Whether nothing arrives after `now_us`, once `appended` entries have.
    pub(super) fn is_over(&self, now_us: u64, appended: u64) -> bool {
        match (self.rate, self.until) {
            (None, Until::Time(time)) => now_us.saturating_sub(self.start_us) >= time.as_micros() as u64,
            (None, Until::Entries(entries)) => appended >= entries,
            (Some(rate), until) => appended >= total(rate, until),
        }
    }

    /// When entry number `nth` (from 0) was meant to arrive; `None` in a closed loop, where it arrives when it can.
    pub(super) fn intended_us(&self, nth: u64) -> Option<u64> {
        self.rate.map(|rate| self.start_us + (nth as f64 * 1e6 / rate) as u64)
    }

    /// Whether entries arrive when they can.
    pub(super) fn is_closed_loop(&self) -> bool {
        self.rate.is_none()
    }

    /// So many entries, one at least, arrive within the same microsecond.
    pub(super) fn together(&self) -> u64 {
        self.rate.map_or(1, |rate| ((rate / 1e6) as u64).max(1))
    }
}

/// Entries of the whole run at a set rate.
fn total(rate: f64, until: Until) -> u64 {
    match until {
        Until::Entries(entries) => entries,
        Until::Time(time) => (rate * time.as_secs_f64()).ceil() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_takes_all_there_is() {
        let timed = Pace::new(100, Until::Time(Duration::from_micros(50)), None);
        assert_eq!((timed.arrived(149), timed.is_over(149, 7)), (u64::MAX, false));
        assert_eq!((timed.arrived(150), timed.is_over(150, 7)), (0, true));
        let counted = Pace::new(100, Until::Entries(7), None);
        assert_eq!((counted.arrived(1_000_000), counted.is_over(1_000_000, 6)), (7, false));
        assert!(counted.is_over(100, 7));
        assert_eq!(counted.intended_us(3), None);
    }

    #[test]
    fn an_open_loop_does_not_wait_for_anybody() {
        let pace = Pace::new(1000, Until::Time(Duration::from_secs(1)), Some(10_000.0));
        assert_eq!((pace.arrived(1000), pace.arrived(1099), pace.arrived(1100)), (1, 1, 2));
        assert_eq!((pace.intended_us(2), pace.together()), (Some(1200), 1));
        assert_eq!(Pace::new(0, Until::Entries(1), Some(2_400_000.0)).together(), 2);
        // All that was meant to arrive is waited for, however late it is.
        assert_eq!(pace.arrived(9_000_000), 10_000);
        assert!(!pace.is_over(9_000_000, 9_999) && pace.is_over(9_000_000, 10_000));
    }
}
