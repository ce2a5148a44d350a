//! A sequence of numbers: appended to, read as a whole, taken from at its front. A list to those who only append and read, a
//! queue to those who append and take.

use crate::Model;

/// What is asked of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SequenceCall {
    /// This is to be its last.
    Append(u64),
    /// What is its first is to be taken out.
    Take,
    /// What is in it?
    Read,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SequenceAnswer {
    /// It was appended, and so many are in it now.
    Length(u64),
    /// It was taken; `None` if there was none.
    Taken(Option<u64>),
    /// All that is in it, in order.
    Items(Vec<u64>),
}

/// A sequence that is empty at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequence;

impl Model for Sequence {
    type State = Vec<u64>;
    type Call = SequenceCall;
    type Answer = SequenceAnswer;

    fn initial(&self) -> Vec<u64> {
        Vec::new()
    }

    fn step(
        &self,
        state: &Vec<u64>,
        call: &SequenceCall,
        answer: Option<&SequenceAnswer>,
    ) -> Option<Vec<u64>> {
        let mut next = state.clone();
        let says = match call {
            SequenceCall::Append(item) => {
                next.push(*item);
                SequenceAnswer::Length(next.len() as u64)
            }
            SequenceCall::Take if next.is_empty() => SequenceAnswer::Taken(None),
            SequenceCall::Take => SequenceAnswer::Taken(Some(next.remove(0))),
            SequenceCall::Read => SequenceAnswer::Items(next.clone()),
        };
        answer.is_none_or(|answer| *answer == says).then_some(next)
    }
}
