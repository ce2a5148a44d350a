//! One key of a store: read, written, added to, compared and swapped. What `kv` does, and the machine of the simulator.

use crate::Model;

/// What a key holds; `None` if it is not there.
pub type Value = Option<Vec<u8>>;

/// What is asked of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Call {
    /// What is there?
    Get,
    /// This is to be there; `None` removes it.
    Set(Value),
    /// So much is to be added to the number there.
    Add(i64),
    /// If the first is there, the second is to be there.
    Swap(Value, Vec<u8>),
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    /// What is there.
    Value(Value),
    /// It was done.
    Done,
    /// The sum.
    Number(i64),
    /// Whether it was done.
    Swapped(bool),
}

/// A key that is not there at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Register;

impl Model for Register {
    type State = Value;
    type Call = Call;
    type Answer = Answer;

    fn initial(&self) -> Value {
        None
    }

    fn step(&self, state: &Value, call: &Call, answer: Option<&Answer>) -> Option<Value> {
        let (next, says) = match call {
            Call::Get => (state.clone(), Answer::Value(state.clone())),
            Call::Set(value) => (value.clone(), Answer::Done),
            Call::Add(more) => {
                let sum = number(state)?.checked_add(*more)?;
                (Some(sum.to_string().into_bytes()), Answer::Number(sum))
            }
            Call::Swap(old, new) if state == old => (Some(new.clone()), Answer::Swapped(true)),
            Call::Swap(..) => (state.clone(), Answer::Swapped(false)),
        };
        answer.is_none_or(|answer| *answer == says).then_some(next)
    }
}

/// What a key counts as: nothing is zero.
fn number(state: &Value) -> Option<i64> {
    let Some(bytes) = state else { return Some(0) };
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
