//! Watches one group on one node from turn to turn, for what only two looks together show. First, the moment at which a
//! completion could lie: entries were cut while their write was under way, and now something is called durable while the
//! write of what replaced them is still under way; power that fails just then shows whether it was true. Then, what a log
//! may lose, what a leader that hands over may do, and who may campaign.

use std::collections::VecDeque;

use coracle::sim::{Overview, Role, SimNode};
use coracle::{GroupId, GroupStatus, Index, NodeId, Term};
use coracle_io::{Clock, Disk, Net};

use crate::oracle::{Violation, hold};
use crate::tally::Tally;

/// What is known of the group since the last look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    last: Option<(Index, Term)>,
    durable: Index,
    in_flight: usize,
    /// Entries whose write was under way were cut, and writes have been under way ever since.
    cut: bool,
    /// Where each term of the log begins, as far as it was seen.
    terms: VecDeque<(Index, Term)>,
    /// Leadership is on its way to that node, in that term.
    handing: Option<(Term, NodeId)>,
}

impl Watch {
    /// Looks at the group after a turn. Whether its log confirmed something after it was cut.
    ///
    /// # Errors
    /// What must not be.
    pub(crate) fn look<D: Disk, N: Net, C: Clock>(
        &mut self,
        node: NodeId,
        sim: &SimNode<D, N, C>,
        status: &GroupStatus,
        tally: &mut Tally,
    ) -> Result<bool, Violation> {
        let group: GroupId = status.group;
        let Some(overview) = sim.overview(group) else { return Ok(false) };
        self.look_at_leadership(node, &overview, status, tally)?;
        let in_flight = overview.writes_in_flight;
        let durable = sim.durable(group).map_or(Index::ZERO, |(index, _)| index);
        let was_cut = self
            .last
            .is_some_and(|(index, term)| index >= status.first && sim.term_at(group, index) != Some(term));
        let mut confirmed = false;
        if was_cut && self.in_flight > 0 {
            self.cut = true;
            tally.mark("log_cut_while_written");
        } else if self.cut && in_flight > 0 && durable > self.durable {
            tally.mark("log_confirmed_after_cut");
            confirmed = true;
        }
        self.look_at_log(node, status, |index| sim.term_at(group, index))?;
        self.cut &= in_flight > 0;
        (self.durable, self.in_flight) = (durable, in_flight);
        self.last = sim.term_at(group, status.last).map(|term| (status.last, term));
        Ok(confirmed)
    }

    /// Entries go only where others come that contradict them.
    fn look_at_log(
        &mut self,
        node: NodeId,
        status: &GroupStatus,
        term_at: impl Fn(Index) -> Option<Term>,
    ) -> Result<(), Violation> {
        let term = term_at(status.last);
        if let Some((last, _)) = self.last.filter(|(last, _)| *last > status.last && term.is_some()) {
            let held =
                self.terms.iter().rev().find(|(first, _)| *first <= status.last).map(|(_, term)| *term);
            hold!(
                held != term,
                "a log is cut where it is contradicted",
                "node {node} group {}: entries after {} of term {term:?} are gone, up to {last}, and nothing came instead",
                status.group.0 - 1,
                status.last
            );
        }
        let is_gone =
            |(first, term): &mut (Index, Term)| *first > status.last || term_at(*first) != Some(*term);
        while self.terms.pop_back_if(is_gone).is_some() {}
        let from = match (self.terms.back(), self.last) {
            (Some((first, _)), Some((last, _))) if *first <= last && last <= status.last => last.max(*first),
            (Some((first, _)), _) => *first,
            // Of what lies before, nothing is known.
            (None, _) => status.last,
        };
        for index in (from.0..=status.last.0).map(Index) {
            let Some(term) = term_at(index) else { continue };
            if self.terms.back().is_none_or(|(_, before)| *before != term) {
                self.terms.push_back((index, term));
            }
        }
        while self.terms.get(1).is_some_and(|(first, _)| *first <= status.first) {
            self.terms.pop_front();
        }
        Ok(())
    }

    fn look_at_leadership(
        &mut self,
        node: NodeId,
        overview: &Overview,
        status: &GroupStatus,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        let group = status.group.0 - 1;
        let campaigns = matches!(overview.role, Role::PreCandidate | Role::Candidate);
        let is_out = !status.members.is_voter(node) && status.members_index <= status.commit;
        hold!(
            !(campaigns && is_out),
            "who knows that it is out does not campaign",
            "node {node} group {group}: {:?} in term {}, with {:?} committed at {}",
            overview.role,
            status.term,
            status.members,
            status.members_index
        );
        let handing = overview.transfer.map(|to| (status.term, to));
        if let (Some(before), Some((last, _))) = (self.handing, self.last) {
            hold!(
                handing != Some(before) || status.last <= last,
                "a leader that hands over takes nothing up",
                "node {node} group {group}: entries up to {}, after {last}, while {before:?} is to lead",
                status.last
            );
            if handing.is_none() && overview.role == Role::Leader {
                tally.mark("leadership_kept");
            } else if handing.is_none() && status.term > before.0 && status.leader == Some(before.1) {
                tally.mark("leadership_handed_over");
            }
        }
        // A successor that campaigns is not known to lead yet.
        let is_open = handing.is_none() && status.leader.is_none() && overview.role == Role::Follower;
        self.handing = handing.or(self.handing.filter(|_| is_open));
        Ok(())
    }
}
