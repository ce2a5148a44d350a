//! What this process has used, by the kernel's own counters.

use std::fs;
use std::io;

/// The kernel counts CPU time for /proc in ticks of this many microseconds (USER_HZ is 100 on every Linux).
const TICK_US: u64 = 10_000;

/// Counters since the process started. Take two and subtract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that this process caused to be sent to the storage layer.
    pub written_bytes: u64,
    /// CPU time of all its threads, user and system; in steps of 10 ms.
    pub cpu_us: u64,
}

impl Usage {
    /// The counters now.
    ///
    /// # Errors
    /// /proc is not mounted, or its text is not as documented (proc(5)).
    pub fn now() -> io::Result<Self> {
        let bad =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not as proc(5) says"));
        let written_bytes =
            written(&fs::read_to_string("/proc/self/io")?).ok_or_else(|| bad("/proc/self/io"))?;
        let cpu_us = cpu_us(&fs::read_to_string("/proc/self/stat")?).ok_or_else(|| bad("/proc/self/stat"))?;
        Ok(Self { written_bytes, cpu_us })
    }

    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
            cpu_us: self.cpu_us.saturating_sub(earlier.cpu_us),
        }
    }
}

/// Bytes of memory that this process has resident.
///
/// # Errors
/// As [`Usage::now`].
pub fn rss_bytes() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    resident(&status)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no VmRSS"))
}

fn resident(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn written(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()
}

/// utime and stime, fields 14 and 15; the program's name, field 2, is in parentheses and may hold anything.
fn cpu_us(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * TICK_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_own_words() {
        assert_eq!(written("rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n"), Some(4096));
        assert_eq!(written("rchar: 1\n"), None);
        assert_eq!(resident("VmHWM:\t9 kB\nVmRSS:\t     1024 kB\n"), Some(1 << 20));
        assert_eq!(resident("VmHWM:\t9 kB\n"), None);
        let stat = "7 (a) b) c) S 1 7 7 0 -1 0 1 2 3 4 250 50 0 0 20 0 1 0 5";
        assert_eq!(cpu_us(stat), Some(3_000_000));
        assert_eq!(cpu_us("7 (a) S 1"), None);
    }

    #[test]
    fn work_is_counted() {
        let before = Usage::now().unwrap();
        let mut used = Usage::default();
        let mut word = 1u64;
        while used.cpu_us == 0 {
            (0..1_000_000).for_each(|_| word = word.wrapping_mul(6_364_136_223_846_793_005) + 1);
            used = Usage::now().unwrap().since(&before);
        }
        assert!(std::hint::black_box(word) != 0);
    }
}
