//! The roster: which groups the batch before has records of. If that batch is lost, these may have lost something and no
//! others have. A reader that does not know rosters skips them, and then every group may have.
//!
//! ```text
//!   body   for each group, in the order of its records, but not twice in a row: its uid, as the difference to the one
//!          before (zigzag, 7 bits a byte); nothing, if the batch had no records of groups
//! ```
//!
//! There is none in the first batch of a start, nor where it did not fit.

use coracle_base::GroupId;

use super::varint::{put, take, unzigzag, zigzag};

/// A roster while its batch is gathered.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    body: Vec<u8>,
    last: Option<GroupId>,
}

impl Roster {
    /// The batch has a record of this group.
    pub(crate) fn add(&mut self, group: GroupId) {
        if self.last == Some(group) {
            return;
        }
        let before = self.last.replace(group).map_or(0, |last| last.0);
        put(zigzag(group.0.wrapping_sub(before)), &mut self.body);
    }

    /// The record's body.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// For another batch.
    pub(crate) fn clear(&mut self) {
        self.body.clear();
        self.last = None;
    }
}

/// The groups of a roster; `None` if it is none.
pub(crate) fn groups(mut body: &[u8]) -> Option<Vec<GroupId>> {
    let (mut groups, mut last) = (Vec::new(), 0u64);
    while !body.is_empty() {
        last = last.wrapping_add(unzigzag(take(&mut body)?));
        groups.push(GroupId(last));
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_roster_names_every_group_of_its_batch(ids in prop::collection::vec(prop_oneof![0u64..50, any::<u64>()], 0..40)) {
            let mut roster = Roster::default();
            ids.iter().for_each(|id| roster.add(GroupId(*id)));
            let mut expected: Vec<_> = ids.into_iter().map(GroupId).collect();
            expected.dedup();
            prop_assert_eq!(groups(roster.body()), Some(expected));
            roster.clear();
            prop_assert_eq!(groups(roster.body()), Some(Vec::new()));
        }

        #[test]
        fn a_roster_that_is_none_is_told(body in prop::collection::vec(any::<u8>(), 0..40)) {
            let is_whole = body.last().is_none_or(|last| *last < 0x80);
            prop_assert_eq!(groups(&body).is_some(), is_whole);
        }
    }

    #[test]
    fn golden_roster() {
        let mut roster = Roster::default();
        [7, 7, 5, 300].into_iter().for_each(|id| roster.add(GroupId(id)));
        assert_eq!(roster.body(), [14, 3, 0xCE, 0x04]);
    }
}
