//! Whether a history of concurrent operations is linearizable: whether each of them may have taken effect at one moment between
//! its beginning and its end, so that every answer is the right one (Herlihy and Wing 1990).
//!
//! The search is that of Wing and Gong (1993) with the memory of Lowe (2017): it takes any operation that nothing else has to
//! come before, goes on, and steps back where no answer fits; a set of operations taken that has come to the same state before
//! is not looked at twice. Histories of several keys are checked key by key: linearizability is local.
//!
//! Operations whose outcome nobody knows may have taken effect at any time after they began, also after their client gave up,
//! or never.
//!
//! Invariant: `Ok` is only said with an order found, [`Verdict::Broken`] only with every order tried; anything else is
//! [`Verdict::Undecided`].
#![forbid(unsafe_code)]

mod register;
mod search;
mod sequence;

use std::hash::Hash;

pub use register::{Answer, Call, Register, Value};
pub use sequence::{Sequence, SequenceAnswer, SequenceCall};

/// What a sequential object does.
pub trait Model {
    /// The object's state.
    type State: Clone + Eq + Hash;
    /// What it is asked to do.
    type Call;
    /// What it says.
    type Answer;

    /// What it is like at first.
    fn initial(&self) -> Self::State;

    /// The state after `call`, if it may have said `answer` in `state`. Without an answer, whatever it said.
    fn step(
        &self,
        state: &Self::State,
        call: &Self::Call,
        answer: Option<&Self::Answer>,
    ) -> Option<Self::State>;
}

/// One operation of a history. Times are on one clock, in any unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<C, A> {
    /// What was asked.
    pub call: C,
    /// When, or some time before.
    pub begun: u64,
    /// What was said, and when, or some time after; `None` if nobody knows whether it took effect.
    pub ended: Option<(u64, A)>,
}

/// What is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No order explains it.
    Broken {
        /// So many operations could be explained, at most.
        explained: usize,
        /// Numbers of those one of which had to come next there; none of them could.
        stuck: Vec<usize>,
    },
    /// The search was given up after so many steps.
    Undecided {
        /// Steps made.
        steps: u64,
    },
}

/// Looks for an order of `history` that explains every answer, for at most `steps_max` steps.
///
/// # Errors
/// [`Verdict`]: there is none, or it was not found.
pub fn check<M: Model>(
    model: &M,
    history: &[Operation<M::Call, M::Answer>],
    steps_max: u64,
) -> Result<(), Verdict> {
    search::Search::new(model, history).run(steps_max)
}
