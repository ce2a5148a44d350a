//! What must hold of a group's members while they change. The ledger knows every change that any node ever showed in its
//! log, by its entry, and those that were committed.
//!
//! Invariants of the ledger: (1) one entry, one set of members; (2) what is committed is never taken back, and each
//! committed change is a step from the one before it whose majorities meet.

use std::collections::BTreeMap;

use coracle::{GroupStatus, Index, Members, Membership, NodeId, Term};
use coracle_base::checksum::crc32c;

use crate::oracle::{Entries, Violation, hold};
use crate::tally::Tally;

/// A node's log, to be asked.
pub(crate) trait Log {
    /// The term of an entry that is there.
    fn term_at(&self, index: Index) -> Option<Term>;
    /// What of it is in memory.
    fn entries(&self) -> Entries;
}

/// One group's members, as all nodes together have shown them.
#[derive(Debug)]
pub(crate) struct Ledger {
    founders: Members,
    /// By the entry that made them so.
    known: BTreeMap<(Index, Term), Members>,
    committed: BTreeMap<Index, Members>,
    /// Changes that somebody was told of who does not have their entry; an operator, or a member that is out.
    told: BTreeMap<Index, Option<Members>>,
}

/// What nodes and clients are told of changes holds in the end.
const TOLD: &str = "a change that was told is committed";
const SAME: &str = "equal entry, equal members";

impl Ledger {
    pub(crate) fn new(founders: &[NodeId]) -> Self {
        Self {
            founders: Members::of_voters(founders.iter().copied()),
            known: BTreeMap::new(),
            committed: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// A node shows its members after a turn.
    pub(crate) fn look(
        &mut self,
        node: NodeId,
        before: Option<&GroupStatus>,
        now: &GroupStatus,
        log: &impl Log,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        let newly = before.is_none_or(|before| {
            (before.members_index, &before.members) != (now.members_index, &now.members)
        });
        let perhaps_cut = before.is_some_and(|before| now.last < before.last || now.term != before.term);
        if newly || perhaps_cut {
            self.check_entry(node, now, log)?;
        }
        if let Some(before) = before.filter(|_| newly) {
            check_begun(node, before, now, log)?;
            if now.members_index < before.members_index {
                tally.mark("change_undone");
            }
            if now.members_index > now.last && !now.members.contains(node) {
                tally.mark("removal_told");
            }
        }
        if now.members_index > Index::ZERO && now.members_index <= now.commit && !now.members.is_empty() {
            self.on_committed(node, now, tally)?;
        }
        Ok(())
    }

    /// The members are what the entry says that they come from.
    fn check_entry(&mut self, node: NodeId, now: &GroupStatus, log: &impl Log) -> Result<(), Violation> {
        let (group, index, members) = (now.group.0 - 1, now.members_index, &now.members);
        if index == Index::ZERO {
            let is_founder = self.founders.contains(node);
            let expected = if is_founder { self.founders.clone() } else { Members::default() };
            hold!(
                *members == expected,
                SAME,
                "node {node} group {group}: {members:?} without a change, not {expected:?}"
            );
        } else if index > now.last || members.is_empty() {
            let members = Some(members).filter(|members| !members.is_empty());
            let told = self.told.entry(index).or_default();
            *told = members.cloned().or_else(|| told.take());
        } else if let Some(term) = log.term_at(index) {
            let known = self.known.entry((index, term)).or_insert_with(|| members.clone());
            hold!(
                known == members,
                SAME,
                "node {node} group {group}: {members:?} by entry {index} of term {term}, elsewhere {known:?}"
            );
            let mut payload = Vec::new();
            members.encode(&mut payload);
            let held = log.entries().into_iter().find(|(at, ..)| *at == index.0);
            hold!(
                held.is_none_or(|(_, _, crc)| crc == crc32c(&payload)),
                "members are those of the log",
                "node {node} group {group}: {members:?} are not what entry {index} of term {term} says"
            );
        }
        Ok(())
    }

    /// A node knows that its members are committed.
    fn on_committed(&mut self, node: NodeId, now: &GroupStatus, tally: &mut Tally) -> Result<(), Violation> {
        let (group, index, members) = (now.group.0 - 1, now.members_index, &now.members);
        if let Some(known) = self.committed.get(&index) {
            hold!(
                known == members,
                "committed members are the same everywhere",
                "node {node} group {group}: {members:?} by entry {index}, elsewhere {known:?}"
            );
            return Ok(());
        }
        let before = self.committed.range(..index).next_back().map_or(&self.founders, |(_, before)| before);
        hold!(
            meet(before, members),
            "majorities of neighbours meet",
            "group {group}: {members:?} by entry {index} after {before:?}"
        );
        tally.mark(if members.is_joint() { "joint_change_committed" } else { "change_committed" });
        let was_promotable = |node| {
            let before = before.get(node).map(|member| member.membership());
            matches!(before, Some(Membership::Promotable { .. }))
        };
        let is_promoted =
            |member: &coracle::Member| member.membership() == Membership::Voter && was_promotable(member.id);
        if !members.is_joint() && members.iter().any(is_promoted) {
            tally.mark("learner_promoted");
        }
        if now.leader == Some(node) && !members.is_voter(node) {
            tally.mark("leader_removed_itself");
        }
        self.committed.insert(index, members.clone());
        Ok(())
    }

    /// An operator was told that a change is done.
    pub(crate) fn on_done(&mut self, index: Index) {
        self.told.entry(index).or_default();
    }

    /// At the end of a run: whatever was told of changes has become true.
    pub(crate) fn check_told(&self, group: usize) -> Result<(), Violation> {
        for (index, told) in &self.told {
            let committed = self.committed.get(index);
            let is_true = committed.is_some_and(|members| told.as_ref().is_none_or(|told| told == members));
            hold!(is_true, TOLD, "group {group}: {told:?} by entry {index}; committed: {committed:?}");
        }
        Ok(())
    }
}

/// A change that a leader begins comes after the one before it is committed, and after an entry of its own term is.
fn check_begun(
    node: NodeId,
    before: &GroupStatus,
    now: &GroupStatus,
    log: &impl Log,
) -> Result<(), Violation> {
    let (group, index) = (now.group.0 - 1, now.members_index);
    let leads = |one: &GroupStatus| one.leader == Some(node);
    let is_own = leads(now) && index > before.members_index && log.term_at(index) == Some(now.term);
    if !is_own {
        return Ok(());
    }
    let committed = log.term_at(now.commit);
    hold!(
        committed == Some(now.term),
        "a leader changes members after its first commit",
        "group {group}: node {node} changed them at {index} in term {}, and committed {} of term {committed:?}",
        now.term,
        now.commit
    );
    hold!(
        !leads(before) || before.term < now.term || before.members_index <= now.commit,
        "one change at a time",
        "group {group}: node {node} changed members at {index} when {} was not committed ({})",
        before.members_index,
        now.commit
    );
    Ok(())
}

/// Whether every majority before meets every majority after, tried one by one.
fn meet(before: &Members, after: &Members) -> bool {
    let mut nodes: Vec<NodeId> = before.iter().chain(after.iter()).map(|member| member.id).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let agrees = |set: u32, node: NodeId| {
        nodes.iter().position(|one| *one == node).is_some_and(|at| set >> at & 1 == 1)
    };
    (0..1u32 << nodes.len())
        .all(|set| !before.quorum(|node| agrees(set, node)) || !after.quorum(|node| agrees(!set, node)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle::Change;

    #[test]
    fn majorities_of_one_step_meet_and_of_two_they_may_not() {
        let of = |ids: &[u64]| Members::of_voters(ids.iter().copied().map(NodeId));
        assert!(meet(&of(&[1, 2, 3]), &of(&[1, 2])));
        assert!(meet(&of(&[1, 2, 3]), &of(&[1, 2, 3, 4])));
        assert!(!meet(&of(&[1, 2, 3]), &of(&[1, 2, 3, 4, 5])));
        assert!(!meet(&of(&[1, 2, 3]), &of(&[1, 2, 4])));
        let changes = [Change::Remove(NodeId(3)), Change::Voter(NodeId(4))];
        let joint = of(&[1, 2, 3]).changed(&changes, Index::ZERO).unwrap();
        assert!(meet(&of(&[1, 2, 3]), &joint) && meet(&joint, &of(&[1, 2, 4])));
    }
}
