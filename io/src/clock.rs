//! Time as an input. The monotonic clock is for every timeout; the wall clock only stamps entries.

/// A source of time.
pub trait Clock {
    /// Microseconds on a clock that never goes back and counts suspended time (CLOCK_BOOTTIME). The origin is
    /// arbitrary.
    fn now_us(&self) -> u64;
    /// Milliseconds since 1970 by the wall clock, which may jump: for the log's time, never for safety.
    fn wall_ms(&self) -> u64;
}
