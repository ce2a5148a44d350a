//! The deterministic simulator: whole Coracle clusters, the very code that runs in production, on fake disks, networks
//! and clocks. A seed goes in, a verdict comes out; the same seed gives the same run, on any machine.
//!
//! Reading order: `run.rs` (the story of one seed), `plan.rs` (what a seed draws), `cluster.rs`, `node.rs` and `look.rs` (the
//! world), `faults.rs`, `harm.rs`, `workload.rs`, `clients.rs` and `churn.rs` (what acts on it), `machine.rs` and `objects.rs`
//! (what is replicated), `oracle.rs`, `members.rs` and `histories.rs` (what must never happen), `names/` (named groups: all of
//! that), `campaign.rs` (many seeds), `shrink.rs` (less of one).
//!
//! Invariants: (1) there is no log, Raft or network code here; (2) all randomness comes from the seed, nothing is
//! unordered, and no real clock takes part in a run; (3) a planted bug is known to the code under test only: neither the
//! faults nor the oracle look at which one it is.
#![forbid(unsafe_code)]

mod campaign;
mod churn;
mod clients;
mod cluster;
mod faults;
mod harm;
mod histories;
mod look;
mod machine;
mod marks;
mod members;
mod names;
mod node;
mod objects;
mod oracle;
mod panics;
mod plan;
mod run;
mod shrink;
mod storage;
mod tally;
mod watch;
mod workload;

pub use campaign::{Failure, Medians, Report, campaign};
pub use faults::Strike;
pub use marks::{CLUSTER_MARKS, CLUSTER_MARKS_RARE};
pub use oracle::Violation;
pub use plan::{Numbers, Trim};
pub use run::{Verdict, Worlds, run_seed};
pub use shrink::{Shrunk, shrink};
pub use storage::{STORAGE_MARKS, STORAGE_MARKS_RARE};
pub use tally::Tally;

pub use coracle::breaks::Breaks;

/// The bugs that can be planted, as `sim --break` spells them.
pub const BREAKS: [&str; 31] = [
    "ack-before-durable",
    "vote-not-persisted",
    "old-term-commit-by-count",
    "torn-tail-accepted",
    "stale-completion",
    "read-without-noop",
    "read-without-quorum",
    "read-here-at-once",
    "snapshot-match-counts-early",
    "stale-append-truncates",
    "removed-voter-counts",
    "two-changes-in-flight",
    "change-before-noop",
    "config-not-reverted",
    "transfer-keeps-serving",
    "suspect-votes",
    "match-below-hole",
    "commit-above-recovered",
    "double-bootstrap",
    "old-incarnation-accepted",
    "recycled-truncation-revives",
    "recycle-before-moved",
    "place-truncates",
    "higher-term-wins-replay",
    "corrupt-tail-dropped",
    "read-plan-races-reuse",
    "torn-checkpoint-accepted",
    "watermark-ignored",
    "recall-ends-early",
    "deleted-group-revives",
    "uid-drawn-again",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_bug_can_be_planted() {
        assert!(BREAKS.iter().all(|name| Breaks::named(name).is_some()));
        assert!(Breaks::named("no-such-bug").is_none());
    }
}
