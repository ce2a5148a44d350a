//! Watches one group's log on one node for the moment at which a completion could lie: entries were cut while their
//! write was under way, and now something is called durable while the write of what replaced them is still under way.
//! Power that fails just then shows whether it was true.

use coracle::sim::SimNode;
use coracle::{GroupId, GroupStatus, Index, Term};
use coracle_io::{Clock, Disk, Net};

/// What is known of the log since the last look.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogWatch {
    last: Option<(Index, Term)>,
    durable: Index,
    in_flight: usize,
    /// Entries whose write was under way were cut, and writes have been under way ever since.
    cut: bool,
}

/// Something rare has happened to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rare {
    /// Entries were cut while their write was under way.
    CutInFlight,
    /// After that, more of the log is called durable, and writes are still under way.
    ConfirmedAfterCut,
}

impl LogWatch {
    /// Looks at the log after a turn.
    pub(crate) fn look<D: Disk, N: Net, C: Clock>(
        &mut self,
        sim: &SimNode<D, N, C>,
        status: &GroupStatus,
    ) -> Option<Rare> {
        let group: GroupId = status.group;
        let in_flight = sim.overview(group).map_or(0, |overview| overview.writes_in_flight);
        let durable = sim.durable(group).map_or(Index::ZERO, |(index, _)| index);
        let was_cut = self
            .last
            .is_some_and(|(index, term)| index >= status.first && sim.term_at(group, index) != Some(term));
        let rare = if was_cut && self.in_flight > 0 {
            self.cut = true;
            Some(Rare::CutInFlight)
        } else if self.cut && in_flight > 0 && durable > self.durable {
            Some(Rare::ConfirmedAfterCut)
        } else {
            None
        };
        self.cut &= in_flight > 0;
        (self.durable, self.in_flight) = (durable, in_flight);
        self.last = sim.term_at(group, status.last).map(|term| (status.last, term));
        rare
    }
}
