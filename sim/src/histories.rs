//! What sessions of clients did to objects, when, and what they were told: a history for each object, which has to be
//! linearizable. Nothing here knows of logs, indexes or leaders: it sees what a client sees.
//!
//! Times are positions in the order of everything that sessions did, so that two operations at one moment of simulated time have
//! an order, too: that of cause and effect.
//!
//! Invariant: what a client gave up may have taken effect at any time, or never; what is known not to be done is not there.

use std::collections::BTreeMap;

use coracle_history::{
    Answer, Call, Model, Operation, Register, Sequence, SequenceAnswer, SequenceCall, Verdict, check,
};

use crate::objects::{Action, EMPTY, GONE, KINDS};
use crate::oracle::Violation;
use crate::tally::Tally;

/// How long an order is looked for.
const STEPS_MAX: u64 = 300_000;

/// What a session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ticket {
    /// A command, by its id.
    Command(u64),
    /// A read, by its number.
    Read(u64),
}

/// What a session was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is done: the reply of an action.
    Reply(u64),
    /// The items of an object; `None` if it is gone.
    Items(Option<Vec<u64>>),
    /// It was certainly not done.
    NotDone,
    /// Nobody knows.
    Nothing,
}

/// One operation of a session.
#[derive(Debug, Clone)]
struct Done {
    /// What; `None` for a read.
    action: Option<Action>,
    begun: u64,
    ended: Option<(u64, Told)>,
}

/// The histories of all objects.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    now: u64,
    reads: u64,
    /// By group and key.
    of: BTreeMap<(usize, u64), Vec<Done>>,
    /// Where what is not answered is.
    open: BTreeMap<Ticket, ((usize, u64), usize)>,
}

impl Histories {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A read's number.
    pub(crate) fn next_read(&mut self) -> u64 {
        self.reads += 1;
        self.reads
    }

    /// A session asks for something.
    pub(crate) fn begin(&mut self, ticket: Ticket, group: usize, key: u64, action: Option<Action>) {
        let begun = self.tick();
        let history = self.of.entry((group, key)).or_default();
        self.open.insert(ticket, ((group, key), history.len()));
        history.push(Done { action, begun, ended: None });
    }

    /// Whether an answer is still waited for.
    pub(crate) fn is_open(&self, ticket: Ticket) -> bool {
        self.open.contains_key(&ticket)
    }

    /// A session has no patience any more: whatever comes now is heard by nobody.
    pub(crate) fn give_up(&mut self, ticket: Ticket) {
        self.open.remove(&ticket);
    }

    /// An answer has come, whoever waits for it.
    pub(crate) fn end(&mut self, ticket: Ticket, told: Told) {
        let now = self.tick();
        let Some((object, nth)) = self.open.remove(&ticket) else { return };
        if told != Told::Nothing
            && let Some(done) = self.of.get_mut(&object).and_then(|history| history.get_mut(nth))
        {
            done.ended = Some((now, told));
        }
    }

    /// Looks for an order of each history.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn judge(&self, tally: &mut Tally) -> Result<(), Violation> {
        for ((group, key), history) in &self.of {
            let unknown = history.iter().filter(|done| done.ended.is_none()).count() as u64;
            tally.mark("histories");
            tally.mark_many("history_operations", history.len() as u64);
            tally.mark_many("history_operations_unknown", unknown);
            let verdict = match key % KINDS {
                0 | 2 => judge(&Register, history, register),
                _ => judge(&Sequence, history, sequence),
            };
            match verdict {
                Ok(()) => {}
                Err(Verdict::Undecided { .. }) => tally.mark("histories_undecided"),
                Err(Verdict::Broken { explained, stuck }) => {
                    let stuck: Vec<_> = stuck.iter().filter_map(|nth| history.get(*nth)).collect();
                    let detail = format!(
                        "group {group} object {key}: after {explained} operations none of these fits: {stuck:?}; all: {history:?}"
                    );
                    return Err(Violation { invariant: "histories are linearizable", detail });
                }
            }
        }
        Ok(())
    }
}

/// An operation as its model has it; `None` if it is known not to have happened.
type AsCall<M> = fn(&Done) -> Option<Operation<<M as Model>::Call, <M as Model>::Answer>>;

fn judge<M: Model>(model: &M, history: &[Done], as_call: AsCall<M>) -> Result<(), Verdict> {
    let operations: Vec<_> = history.iter().filter_map(as_call).collect();
    check(model, &operations, STEPS_MAX)
}

/// Whether it is known that nothing happened.
fn is_void(done: &Done) -> bool {
    matches!(done.ended, Some((_, Told::NotDone | Told::Items(None) | Told::Reply(GONE))))
}

fn text(number: u64) -> Option<Vec<u8>> {
    (number > 0).then(|| number.to_string().into_bytes())
}

fn register(done: &Done) -> Option<Operation<Call, Answer>> {
    let call = match done.action {
        None => Call::Get,
        Some(Action::Set(value)) => Call::Set(text(value)),
        Some(Action::Swap(old, new)) => Call::Swap(text(old), new.to_string().into_bytes()),
        Some(Action::Add(more)) => Call::Add(more as i64),
        Some(Action::Append(_) | Action::Take) => return None,
    };
    let answer = |told: &Told| match (done.action, told) {
        (None, Told::Items(Some(items))) => Answer::Value(items.first().and_then(|item| text(*item))),
        (Some(Action::Swap(..)), Told::Reply(reply)) => Answer::Swapped(*reply == 1),
        (Some(Action::Add(_)), Told::Reply(reply)) => Answer::Number(*reply as i64),
        _ => Answer::Done,
    };
    let ended = done.ended.as_ref().map(|(at, told)| (*at, answer(told)));
    (!is_void(done)).then_some(Operation { call, begun: done.begun, ended })
}

fn sequence(done: &Done) -> Option<Operation<SequenceCall, SequenceAnswer>> {
    let call = match done.action {
        None => SequenceCall::Read,
        Some(Action::Append(item)) => SequenceCall::Append(item),
        Some(Action::Take) => SequenceCall::Take,
        Some(Action::Set(_) | Action::Swap(..) | Action::Add(_)) => return None,
    };
    let answer = |told: &Told| match (done.action, told) {
        (None, Told::Items(items)) => SequenceAnswer::Items(items.clone().unwrap_or_default()),
        (Some(Action::Take), Told::Reply(reply)) => {
            SequenceAnswer::Taken((*reply != EMPTY).then_some(*reply))
        }
        (_, Told::Reply(reply)) => SequenceAnswer::Length(*reply),
        _ => SequenceAnswer::Items(Vec::new()),
    };
    let ended = done.ended.as_ref().map(|(at, told)| (*at, answer(told)));
    (!is_void(done)).then_some(Operation { call, begun: done.begun, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(operations: &[(u64, Option<Action>, Told)]) -> Result<(), Violation> {
        let mut histories = Histories::default();
        for (nth, (key, action, told)) in operations.iter().enumerate() {
            let ticket = Ticket::Command(nth as u64);
            histories.begin(ticket, 0, *key, *action);
            histories.end(ticket, told.clone());
        }
        histories.judge(&mut Tally::default())
    }

    /// One operation after the other, of each kind: the right answers, and one that is wrong.
    #[test]
    fn right_answers_are_believed_and_wrong_ones_of_each_kind_are_not() {
        let read = |items: &[u64]| Told::Items(Some(items.to_vec()));
        let rows: [&[(u64, Option<Action>, Told)]; 4] = [
            &[
                (0, Some(Action::Set(7)), Told::Reply(0)),
                (0, Some(Action::Swap(7, 8)), Told::Nothing),
                (0, None, read(&[8])),
            ],
            &[
                (1, Some(Action::Append(7)), Told::Reply(1)),
                (1, Some(Action::Append(8)), Told::Nothing),
                (1, Some(Action::Append(9)), Told::Reply(3)),
                (1, None, read(&[7, 8, 9])),
            ],
            &[
                (2, Some(Action::Add(7)), Told::Reply(7)),
                (2, Some(Action::Add(70)), Told::Nothing),
                (2, None, read(&[77])),
            ],
            &[
                (3, Some(Action::Append(7)), Told::Reply(1)),
                (3, Some(Action::Append(8)), Told::Reply(2)),
                (3, Some(Action::Take), Told::Nothing),
                (3, Some(Action::Take), Told::Reply(8)),
                (3, Some(Action::Take), Told::Reply(EMPTY)),
            ],
        ];
        for row in rows {
            assert_eq!(told(row), Ok(()));
            let mut wrong = row.to_vec();
            let (.., last) = wrong.last_mut().unwrap();
            *last = match last {
                Told::Items(_) => read(&[6]),
                _ => Told::Reply(7),
            };
            assert!(told(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_was_not_done_must_not_be_seen_and_what_is_unknown_may() {
        let read = Told::Items(Some(vec![5]));
        let row = |told: Told| [(0, Some(Action::Set(5)), told), (0, None, read.clone())];
        assert!(told(&row(Told::NotDone)).is_err());
        assert!(told(&row(Told::Reply(GONE))).is_err());
        assert_eq!(told(&row(Told::Nothing)), Ok(()));
    }
}
