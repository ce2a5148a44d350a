//! Majorities: what a set of voters has committed, and who won. Pure arithmetic.

use coracle_base::{Index, NodeId};
use smallvec::SmallVec;

use crate::member::Members;

/// Voters that make a majority of `voters`.
pub(crate) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The greatest index that a majority has reached, given how far each voter is. Reorders `reached`.
pub(crate) fn committed(reached: &mut [Index]) -> Index {
    let Some(last) = reached.len().checked_sub(1) else { return Index::ZERO };
    reached.sort_unstable();
    // In ascending order the element `majority - 1` places from the end has that many at or above it.
    reached[last + 1 - majority(last + 1)]
}

/// Who has said yes. Saying it twice counts once; whether it is enough, [`Members::quorum`] knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    yes: SmallVec<[NodeId; 4]>,
}

impl Tally {
    pub(crate) fn grant(&mut self, node: NodeId) {
        if !self.has(node) {
            self.yes.push(node);
        }
    }

    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.yes.contains(&node)
    }

    pub(crate) fn won(&self, members: &Members) -> bool {
        members.quorum(|node| self.has(node))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn majorities_of_small_groups() {
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(majority), [1, 2, 2, 3, 3, 4, 4]);
    }

    proptest! {
        /// The definition, tried for every index: the greatest one that a majority has reached.
        #[test]
        fn committed_is_what_a_majority_reached(mut reached in prop::collection::vec(0u64..12, 0..9)) {
            let by_definition = (0..12)
                .filter(|&at| 2 * reached.iter().filter(|&&r| r >= at).count() > reached.len())
                .max()
                .unwrap_or(0);
            let mut indexes: Vec<Index> = reached.drain(..).map(Index).collect();
            prop_assert_eq!(committed(&mut indexes), Index(by_definition));
        }

        #[test]
        fn a_tally_is_won_by_more_than_half(voters in 1usize..16, said in prop::collection::vec(0usize..20, 0..40)) {
            let mut tally = Tally::default();
            let members = Members::of_voters((1..=voters as u64).map(NodeId));
            said.iter().for_each(|&node| tally.grant(NodeId(node as u64)));
            // Strangers' words do not count.
            let mut distinct: Vec<usize> = said.into_iter().filter(|&node| (1..=voters).contains(&node)).collect();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(tally.won(&members), 2 * distinct.len() > voters);
        }
    }
}
