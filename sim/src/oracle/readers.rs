//! What readers of a group's log must get: the entries that live on, as they were proposed, on every node.

use coracle::{Index, NoEntry, NodeId, ReadEntry};
use coracle_base::checksum::crc32c;

use super::{Oracle, View, Violation, hold};
use crate::machine::{LIFE, lives};
use crate::tally::Tally;

/// What a disk has done to readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskTrouble {
    None,
    /// Reads failed.
    Failed,
    /// Pages were damaged.
    Damaged,
}

impl Oracle {
    /// What lives on in the log of a group on a node, as its machine is now.
    pub(crate) fn live(&self, group: usize, view: &View, percent: u64) -> Vec<Index> {
        let (from, to) = (view.count.saturating_sub(LIFE) as usize, view.count as usize);
        let lately = self.groups[group].log.get(from..to).unwrap_or_default();
        lately.iter().filter(|one| lives(one.index.0, one.hash, percent)).map(|one| one.index).collect()
    }

    /// A reader got an entry that lived on when it was asked for, or was told why not.
    pub(crate) fn on_read(
        &self,
        node: NodeId,
        group: usize,
        view: &View,
        (index, entry): ReadEntry,
        disk: DiskTrouble,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        let log = &self.groups[group].log;
        let found = log.binary_search_by_key(&index, |one| one.index).ok();
        let Some((nth, known)) = found.and_then(|nth| Some((nth as u64, log.get(nth)?))) else {
            let detail = format!("group {group} entry {index}: it was not asked for");
            return Err(Violation { invariant: "a reader gets what it asked for", detail });
        };
        // The log may be at a newer snapshot already than its machine is.
        let first = view.last.as_ref().map_or(Index::ZERO, |status| status.first);
        let covered = log.partition_point(|one| one.index < first) as u64;
        let is_over = nth + LIFE < view.count.max(covered);
        match entry {
            Ok(entry) => {
                // The log keeps the leader's time; machines see it never go back.
                let read =
                    (entry.is_command && entry.time_ms <= known.time_ms, entry.term, crc32c(&entry.payload));
                hold!(
                    read == (true, known.term, known.crc),
                    "what lives on is what was proposed",
                    "node {node} group {group} entry {index}: {read:?}, and it was {known:?}"
                );
                tally.mark("live_entries_read");
            }
            Err(NoEntry::Released) if is_over => tally.mark("live_entries_over"),
            Err(NoEntry::NotYet) => tally.mark("live_entries_not_yet"),
            Err(NoEntry::Damaged { .. } | NoEntry::Disk(_)) if disk > DiskTrouble::None => {
                tally.mark("live_entries_unreadable")
            }
            Err(error) => {
                let detail = format!(
                    "node {node} group {group} entry {index}, command {nth} of {}: {error}",
                    view.count
                );
                return Err(Violation { invariant: "what lives on can be read", detail });
            }
        }
        Ok(())
    }
}
