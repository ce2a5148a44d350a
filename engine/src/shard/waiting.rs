//! Proposals in a group's log that wait to be applied.
//!
//! A node may lose the lead and win it again before it hears what became of its earlier proposals. So several may wait
//! for one place, of different terms, until the entry that is applied there tells them apart:
//!
//! ```text
//!   leads term 1, proposes a b c at 4..6;  follows, its log is cut after 3;  leads term 3, proposes d at 4
//!   entry 4 of term 3 is applied:  a, b and c are overwritten, d is done
//! ```
//!
//! Only an applied entry decides: what was cut from this log may still be committed from another member's.
//!
//! Invariants: (1) in order of the first place when proposed, of equals the earlier proposal first; (2) what an applied entry decides is
//! not in the list any more, so each command is answered once.

use std::collections::VecDeque;

use coracle_base::{Index, Term};

use super::inbox::Origin;

/// Entries of one proposal that wait to be applied.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) first: Index,
    pub(crate) last: Index,
    pub(crate) term: Term,
    pub(crate) bytes: usize,
    pub(crate) deadline_us: u64,
    /// The tags of `first..=last` are the last ones here: also those that will never be seen in the log get an answer.
    pub(crate) tags: Vec<u64>,
    pub(crate) origin: Origin,
}

impl Waiting {
    /// The tags that have no answer yet.
    pub(crate) fn open_tags(&self) -> &[u64] {
        let open = (self.last.0 + 1).saturating_sub(self.first.0) as usize;
        &self.tags[self.tags.len() - open..]
    }
}

/// What an applied entry means for a proposal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision<'a> {
    /// It is the proposal's entry.
    Done,
    /// It took the place of the proposal's entry: these tags will never be applied.
    Overwritten(&'a [u64]),
}

/// The proposals of one group that wait.
#[derive(Debug, Default)]
pub(crate) struct WaitingList {
    list: VecDeque<Waiting>,
    bytes: usize,
}

impl WaitingList {
    /// Bytes of all that waits.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When somebody gives up waiting; a proposal behind a newer one may be told up to one timeout late.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        self.list.front().map(|one| one.deadline_us)
    }

    /// A proposal that is in the log now.
    pub(crate) fn push(&mut self, new: Waiting) {
        self.bytes += new.bytes;
        let mut at = self.list.len();
        while at > 0 && self.list[at - 1].first > new.first {
            at -= 1;
        }
        self.list.insert(at, new);
    }

    /// The entry at `index`, of `term`, is applied: `say` hears what that means. Returns the bytes that wait no more.
    pub(crate) fn decide(
        &mut self,
        index: Index,
        term: Term,
        mut say: impl FnMut(&Origin, Decision<'_>),
    ) -> usize {
        let before = self.bytes;
        while let Some(front) = self.list.front_mut().filter(|front| front.first <= index) {
            if front.term == term {
                assert_eq!(front.first, index, "what is not applied is skipped");
                say(&front.origin, Decision::Done);
                front.first = index.next();
                if front.first <= front.last {
                    break;
                }
            } else {
                say(&front.origin, Decision::Overwritten(front.open_tags()));
            }
            self.drop_front();
        }
        before - self.bytes
    }

    /// A snapshot took the place of the entries up to `upto`: nobody will see which they were. `say` hears whose tag has
    /// no answer. Returns the bytes that wait no more.
    pub(crate) fn skip(&mut self, upto: Index, mut say: impl FnMut(&Origin, u64)) -> usize {
        let before = self.bytes;
        while let Some(front) = self.list.front_mut().filter(|front| front.first <= upto) {
            let skipped = upto.min(front.last).since(front.first.prev()) as usize;
            front.open_tags()[..skipped].iter().for_each(|tag| say(&front.origin, *tag));
            front.first = upto.min(front.last).next();
            if front.first > front.last {
                self.drop_front();
                continue;
            }
            // The rest waits on, in its new place.
            let rest = self.list.pop_front().expect("front_mut found it");
            self.bytes -= rest.bytes;
            self.push(rest);
        }
        before - self.bytes
    }

    /// Takes out what has waited too long.
    pub(crate) fn take_late(&mut self, now_us: u64) -> Vec<Waiting> {
        if self.deadline_us().is_none_or(|at| at > now_us) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.list);
        let (late, rest): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|one| one.deadline_us <= now_us);
        self.list = rest;
        self.bytes -= late.iter().map(|one| one.bytes).sum::<usize>();
        late.into()
    }

    /// Takes out everything.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Waiting> {
        self.bytes = 0;
        std::mem::take(&mut self.list).into_iter()
    }

    fn drop_front(&mut self) {
        if let Some(front) = self.list.pop_front() {
            self.bytes -= front.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_base::NodeId;

    /// A proposal of one entry a tag, from request `request`.
    fn waiting(request: u64, first: u64, term: u64, tags: &[u64]) -> Waiting {
        Waiting {
            first: Index(first),
            last: Index(first + tags.len() as u64 - 1),
            term: Term(term),
            bytes: 10 * tags.len(),
            deadline_us: request,
            tags: tags.to_vec(),
            origin: Origin::Peer { node: NodeId(1), session: 0, request },
        }
    }

    fn request(origin: &Origin) -> u64 {
        match origin {
            Origin::Peer { request, .. } => *request,
            _ => 0,
        }
    }

    /// Who heard what of an applied entry.
    fn decided(list: &mut WaitingList, index: u64, term: u64) -> Vec<(u64, Vec<u64>)> {
        let mut heard = Vec::new();
        list.decide(Index(index), Term(term), |origin, decision| {
            heard.push(match decision {
                Decision::Done => (request(origin), vec![]),
                Decision::Overwritten(tags) => (request(origin), tags.to_vec()),
            });
        });
        heard
    }

    #[test]
    fn proposals_of_two_terms_wait_for_one_place() {
        let mut list = WaitingList::default();
        for one in [
            waiting(1, 4, 1, &[7]),
            waiting(2, 5, 1, &[8, 9]),
            waiting(3, 4, 3, &[1]),
            waiting(4, 5, 3, &[2]),
        ] {
            list.push(one);
        }
        assert_eq!(list.bytes(), 50);
        assert_eq!(decided(&mut list, 3, 1), []);
        assert_eq!(decided(&mut list, 4, 3), [(1, vec![7]), (3, vec![])]);
        assert_eq!(decided(&mut list, 5, 3), [(2, vec![8, 9]), (4, vec![])]);
        assert_eq!(list.bytes(), 0);
    }

    #[test]
    fn the_older_proposal_may_be_the_one_that_is_committed() {
        let mut list = WaitingList::default();
        list.push(waiting(1, 4, 1, &[7, 8, 9]));
        list.push(waiting(2, 5, 3, &[1, 2]));
        assert_eq!(decided(&mut list, 4, 1), [(1, vec![])]);
        assert_eq!(decided(&mut list, 5, 1), [(1, vec![])]);
        assert_eq!(
            decided(&mut list, 6, 1),
            [(1, vec![]), (2, vec![1, 2])],
            "an entry of term 3 cannot precede it"
        );
        assert_eq!(list.bytes(), 0);
    }

    #[test]
    fn a_snapshot_may_end_within_a_proposal() {
        let mut list = WaitingList::default();
        list.push(waiting(1, 4, 1, &[7, 8, 9]));
        list.push(waiting(2, 5, 3, &[1]));
        let mut heard = Vec::new();
        list.skip(Index(5), |origin, tag| heard.push((request(origin), tag)));
        assert_eq!(heard, [(1, 7), (1, 8), (2, 1)]);
        assert_eq!(decided(&mut list, 6, 1), [(1, vec![])]);
        assert_eq!(list.bytes(), 0);
    }

    #[test]
    fn who_has_waited_too_long_is_found_behind_newer_proposals() {
        let mut list = WaitingList::default();
        list.push(waiting(1, 9, 1, &[7]));
        list.push(waiting(2, 4, 3, &[1]));
        assert!(list.take_late(1).is_empty());
        assert_eq!(list.take_late(2).len(), 2);
        assert_eq!((list.bytes(), list.deadline_us()), (0, None));
    }
}
