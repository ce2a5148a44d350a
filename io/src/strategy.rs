//! How a write to a file opened as [`FileMode::Durable`](crate::FileMode::Durable) becomes durable.
//!
//! ```text
//!   name          opened with   a write completes
//!   direct        O_DIRECT      when it is on the device (O_DSYNC)
//!   direct_fsync  O_DIRECT      after an fdatasync of its own, begun when all its bytes were written
//!   buffered                    after an fdatasync of its own, begun when all its bytes were written
//!   sync                        when it is on the device, with all metadata (O_SYNC)
//!   none          O_DIRECT      when the kernel has it: a power loss loses acknowledged data
//! ```
//!
//! The driver hides the difference: whoever writes sees a completion, and it means durable. A directory that was written
//! with one strategy is read with every other.

use std::fmt;
use std::str::FromStr;

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// O_DIRECT, each write with O_DSYNC: the fastest that is durable.
    #[default]
    Direct,
    /// O_DIRECT, then fdatasync.
    DirectFsync,
    /// Through the page cache, then fdatasync: Ra's `default`.
    Buffered,
    /// Through the page cache, each write with O_SYNC: Ra's `do_sync`.
    Sync,
    /// Not at all: **a power loss loses acknowledged data**. For tests and benches.
    None,
}

impl Strategy {
    /// All of them, the preferred one first.
    pub const ALL: [Self; 5] = [Self::Direct, Self::DirectFsync, Self::Buffered, Self::Sync, Self::None];

    /// As it is written in configurations and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectFsync => "direct_fsync",
            Self::Buffered => "buffered",
            Self::Sync => "sync",
            Self::None => "none",
        }
    }

    /// What does the same without O_DIRECT, for file systems that refuse it.
    #[must_use]
    pub fn without_direct(self) -> Self {
        match self {
            Self::Direct => Self::Sync,
            Self::DirectFsync => Self::Buffered,
            Self::Buffered | Self::Sync | Self::None => self,
        }
    }

    /// Whether an acknowledged write survives a power loss.
    #[must_use]
    pub fn is_durable(self) -> bool {
        self != Self::None
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad`, so that tables may ask for a width.
        f.pad(self.name())
    }
}

/// There is no such strategy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no strategy is called {name:?}; there are direct, direct_fsync, buffered, sync and none")]
pub struct UnknownStrategy {
    name: String,
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    /// Takes Ra's names, too: `default` is `buffered`, `do_sync` is `sync`.
    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        let of_ra = match name {
            "default" => Some(Self::Buffered),
            "do_sync" => Some(Self::Sync),
            _ => None,
        };
        let ours = Self::ALL.into_iter().find(|strategy| strategy.name() == name);
        ours.or(of_ra).ok_or_else(|| UnknownStrategy { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_told_by_our_names_and_by_ras() {
        let table = [
            ("direct", Strategy::Direct),
            ("direct_fsync", Strategy::DirectFsync),
            ("buffered", Strategy::Buffered),
            ("sync", Strategy::Sync),
            ("none", Strategy::None),
            ("default", Strategy::Buffered),
            ("do_sync", Strategy::Sync),
        ];
        for (name, strategy) in table {
            assert_eq!(name.parse(), Ok(strategy));
        }
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        let error = "fast".parse::<Strategy>().unwrap_err().to_string();
        assert!(error.contains("fast") && error.contains("direct_fsync"), "{error}");
    }

    #[test]
    fn every_fallback_is_as_durable_as_what_it_replaces() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.without_direct().is_durable(), strategy.is_durable());
        }
        assert_eq!(Strategy::Direct.without_direct(), Strategy::Sync);
        assert_eq!(Strategy::DirectFsync.without_direct(), Strategy::Buffered);
    }
}
