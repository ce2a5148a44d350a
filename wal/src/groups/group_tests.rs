//! The rules of one group's log, against a plain list of entries.

use proptest::prelude::*;

use super::*;

/// What happens to a log.
#[derive(Debug, Clone)]
enum Change {
    /// Entries after one that is held: how far back from the last, how many, with which terms.
    Run {
        back: u64,
        terms: Vec<u64>,
    },
    Snapshot {
        ahead: i64,
        term: u64,
    },
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let run = (0u64..5, proptest::collection::vec(1u64..4, 1..6)).prop_map(|(back, mut terms)| {
        terms.sort_unstable();
        Change::Run { back, terms }
    });
    let snapshot = (-6i64..4, 1u64..4).prop_map(|(ahead, term)| Change::Snapshot { ahead, term });
    proptest::collection::vec(prop_oneof![4 => run, 1 => snapshot], 1..30)
}

/// Index, term, and where the run lies that wrote it.
#[derive(Debug, Default)]
struct Plain {
    base: (u64, u64),
    entries: Vec<(u64, u64, Position)>,
}

impl Plain {
    fn last(&self) -> u64 {
        self.entries.last().map_or(self.base.0, |(index, ..)| *index)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        let held = self.entries.iter().find(|(at, ..)| *at == index).map(|(_, term, _)| *term);
        held.or((index == self.base.0).then_some(self.base.1))
    }

    fn run(&mut self, prev: u64, terms: &[u64], at: Position) {
        for (index, term) in (prev + 1..).zip(terms) {
            if index <= self.base.0 || self.term_at(index) == Some(*term) {
                continue;
            }
            self.entries.retain(|(held, ..)| *held < index);
            self.entries.push((index, *term, at));
        }
    }

    fn snapshot(&mut self, index: u64, term: u64) {
        if self.term_at(index) == Some(term) {
            self.entries.retain(|(held, ..)| *held > index);
        } else {
            self.entries.clear();
        }
        self.base = (index, term);
    }
}

fn fresh() -> (Group, Refs, Runs) {
    (Group::new(GroupId(1), 0), Refs::default(), Runs::default())
}

fn check(group: &Group, plain: &Plain, refs: &Refs, runs: &Runs) {
    assert!(group.is_whole(), "{group:?}");
    assert_eq!((group.base.0, group.last.0), (plain.base.0, plain.last()));
    for index in plain.base.0..=plain.last() {
        assert_eq!(group.term_at(Index(index)).map(|term| term.0), plain.term_at(index));
    }
    assert_eq!(group.term_at(Index(plain.last() + 1)), None);
    let mut files = std::collections::BTreeSet::new();
    for (index, _, at) in &plain.entries {
        let extent = group.extent_of(Index(*index)).unwrap();
        assert_eq!(extent.file_no, at.file_no);
        files.insert(at.file_no);
        if let Some(run) = group.run_of(&extent, Index(*index), runs) {
            assert_eq!(u64::from(run.offset), at.offset, "entry {index}");
        }
    }
    assert_eq!(
        refs.files().filter(|no| refs.held(*no).extents > 0).collect::<Vec<_>>(),
        Vec::from_iter(files)
    );
    if let Some((index, ..)) = plain.entries.last() {
        let extent = group.extent_of(Index(*index)).unwrap();
        assert!(group.run_of(&extent, Index(*index), runs).is_some(), "the newest file's runs are known");
    }
}

fn run_header(group: &Group, prev: u64, terms: &[u64]) -> RunHeader {
    RunHeader {
        group: GroupId(1),
        accepted_term: Term(9),
        prev_index: Index(prev),
        prev_term: group.term_at(Index(prev)).unwrap(),
        count: terms.len() as u32,
        body_bytes: 0,
    }
}

proptest! {
    #[test]
    fn the_log_is_what_the_rules_say(changes in changes()) {
        let (mut group, mut refs, mut runs) = fresh();
        let mut plain = Plain::default();
        for (i, change) in changes.into_iter().enumerate() {
            // A new file after every fourth record.
            let at = Position { file_no: 1 + i as u64 / 4, offset: 8192 + i as u64 * 100 };
            match change {
                Change::Run { back, terms } => {
                    let prev = plain.last().saturating_sub(back).max(plain.base.0);
                    let header = run_header(&group, prev, &terms);
                    let spans = terms.iter().map(|term| (Term(*term), 1));
                    let fit = group.append(&header, spans, at, i as u64, &mut refs, &mut runs);
                    prop_assert_eq!(fit, Fit::Fits);
                    plain.run(prev, &terms, at);
                }
                Change::Snapshot { ahead, term } => {
                    let index = plain.last().saturating_add_signed(ahead).max(1);
                    let place = SnapshotPlace::Inline { at, bytes: 0 };
                    if group.install(Index(index), Term(term), place, &[], i as u64, &mut refs) {
                        plain.snapshot(index, term);
                    } else {
                        prop_assert!(index < plain.base.0 || term != plain.base.1);
                    }
                }
            }
            check(&group, &plain, &refs, &runs);
            let mut again = Group::new(GroupId(1), 0);
            let mut counted = Refs::default();
            prop_assert!(again.become_parts(&group.parts(), 0, &mut counted));
            prop_assert_eq!(again.parts(), group.parts());
        }
    }
}

#[test]
fn a_run_that_does_not_continue_the_log_says_so() {
    let (mut group, mut refs, mut runs) = fresh();
    let at = Position { file_no: 1, offset: 8192 };
    let header = run_header(&group, 0, &[2, 2]);
    assert_eq!(group.append(&header, [(Term(2), 2)].into_iter(), at, 1, &mut refs, &mut runs), Fit::Fits);
    let gap = RunHeader { prev_index: Index(3), ..header };
    assert_eq!(group.append(&gap, [(Term(2), 2)].into_iter(), at, 1, &mut refs, &mut runs), Fit::Gap);
    let other = RunHeader { prev_index: Index(2), prev_term: Term(1), ..header };
    assert_eq!(group.append(&other, [(Term(2), 2)].into_iter(), at, 1, &mut refs, &mut runs), Fit::Mismatch);
    assert_eq!(group.last, Index(2));
}

#[test]
fn a_very_long_history_of_terms_takes_several_parts() {
    let (mut group, mut refs, mut runs) = fresh();
    for term in 1..=2000u64 {
        let prev = group.last.0;
        let header = RunHeader { accepted_term: Term(term), ..run_header(&group, prev, &[term]) };
        let at = Position { file_no: term, offset: 8192 };
        assert_eq!(
            group.append(&header, [(Term(term), 1)].into_iter(), at, 1, &mut refs, &mut runs),
            Fit::Fits
        );
    }
    let parts = group.parts();
    assert_eq!(parts.len(), 4);
    assert!(parts.iter().all(|part| part.encoded_bytes() < 32 * 1024));
    let mut again = Group::new(GroupId(1), 0);
    assert!(again.become_parts(&parts, 0, &mut Refs::default()));
    assert_eq!(again.parts(), parts);
    assert!(
        !Group::new(GroupId(1), 0).become_parts(&parts[1..], 0, &mut Refs::default()),
        "the first is missing"
    );
}
