//! The objects that sessions of clients work on, a part of the replicated machine: registers, lists, counters and queues, each
//! short-lived, so that no history of one grows long.
//!
//! ```text
//!   key:    4 * serial + kind (0 register, 1 list, 2 counter, 3 queue)
//!   action: 1 what, 8 key, 8 value, 8 other value
//!   reply:  a number; see `Action`
//!   read:   8 key; answered with 8 bytes an item, or one byte if it is gone
//!   state:  8 number of objects, each: 8 key, 8 number of items, 8 each
//! ```
//!
//! Invariants: (1) of a kind, the newest objects are kept; (2) nothing ever happens to one that is gone.

use std::collections::BTreeMap;

use coracle_base::codec::{Reader, Sink, Truncated};

/// Kinds of objects.
pub(crate) const KINDS: u64 = 4;
/// Objects kept of each kind.
const KEPT: u64 = 6;
/// The reply for an object that is gone: nothing was done.
pub(crate) const GONE: u64 = u64::MAX;
/// The reply of a queue that is empty.
pub(crate) const EMPTY: u64 = u64::MAX - 1;

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A register is to hold this. Replies 0.
    Set(u64),
    /// If a register holds the first (0: nothing), it is to hold the second. Replies whether it did.
    Swap(u64, u64),
    /// So much is added to a counter. Replies the sum.
    Add(u64),
    /// This is appended to a list or a queue. Replies its length.
    Append(u64),
    /// The first is taken from a queue. Replies it.
    Take,
}

impl Action {
    /// The bytes of it, for this key.
    pub(crate) fn encode(self, key: u64, out: &mut Vec<u8>) {
        let (what, one, other) = match self {
            Self::Set(one) => (0, one, 0),
            Self::Swap(one, other) => (1, one, other),
            Self::Add(one) => (2, one, 0),
            Self::Append(one) => (3, one, 0),
            Self::Take => (4, 0, 0),
        };
        out.put_u8(what);
        [key, one, other].into_iter().for_each(|word| out.put_u64(word));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<(Self, u64), Truncated> {
        let (what, key, one, other) = (reader.u8()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let action = match what {
            0 => Self::Set(one),
            1 => Self::Swap(one, other),
            2 => Self::Add(one),
            3 => Self::Append(one),
            _ => Self::Take,
        };
        Ok((action, key))
    }
}

/// Those that there are, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Objects(BTreeMap<u64, Vec<u64>>);

impl Objects {
    fn is_gone(&self, key: u64) -> bool {
        let of_kind = |other: &&u64| *other % KINDS == key % KINDS;
        self.0.keys().rev().find(of_kind).is_some_and(|newest| key + KEPT * KINDS <= *newest)
    }

    /// Does what the bytes of an action say.
    pub(crate) fn act(&mut self, reader: &mut Reader<'_>) -> Result<u64, Truncated> {
        let (action, key) = Action::decode(reader)?;
        if self.is_gone(key) {
            return Ok(GONE);
        }
        let items = self.0.entry(key).or_default();
        let first = items.first().copied().unwrap_or_default();
        let reply = match action {
            Action::Set(value) => {
                *items = vec![value];
                0
            }
            Action::Swap(old, new) => {
                let is_equal = first == old;
                if is_equal {
                    *items = vec![new];
                }
                u64::from(is_equal)
            }
            Action::Add(more) => {
                *items = vec![first.wrapping_add(more)];
                items[0]
            }
            Action::Append(value) => {
                items.push(value);
                items.len() as u64
            }
            Action::Take if items.is_empty() => EMPTY,
            Action::Take => items.remove(0),
        };
        let of_kind = |other: u64| other % KINDS == key % KINDS;
        self.0.retain(|other, _| !of_kind(*other) || key < KEPT * KINDS || *other > key - KEPT * KINDS);
        Ok(reply)
    }

    /// Answers a reader of an object.
    pub(crate) fn read(&self, query: &mut Reader<'_>, reply: &mut Vec<u8>) -> Result<(), Truncated> {
        let key = query.u64()?;
        match self.is_gone(key) {
            true => reply.put_u8(0),
            false => self.0.get(&key).into_iter().flatten().for_each(|item| reply.put_u64(*item)),
        }
        Ok(())
    }

    /// What a reader was answered; `None` if the object is gone.
    pub(crate) fn items(reply: &[u8]) -> Option<Vec<u64>> {
        let (items, rest) = reply.as_chunks::<8>();
        rest.is_empty().then(|| items.iter().map(|item| u64::from_le_bytes(*item)).collect())
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.0.len() as u64);
        for (key, items) in &self.0 {
            out.put_u64(*key);
            out.put_u64(items.len() as u64);
            items.iter().for_each(|item| out.put_u64(*item));
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        let mut objects = BTreeMap::new();
        for _ in 0..reader.u64()? {
            let (key, mut items) = (reader.u64()?, Vec::new());
            for _ in 0..reader.u64()? {
                items.push(reader.u64()?);
            }
            objects.insert(key, items);
        }
        Ok(Self(objects))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(objects: &mut Objects, key: u64, action: Action) -> u64 {
        let mut bytes = Vec::new();
        action.encode(key, &mut bytes);
        objects.act(&mut Reader::new(&bytes)).unwrap()
    }

    #[test]
    fn each_kind_does_what_it_says_and_comes_back() {
        let mut objects = Objects::default();
        assert_eq!(act(&mut objects, 0, Action::Swap(0, 5)), 1);
        assert_eq!(act(&mut objects, 0, Action::Swap(4, 6)), 0);
        assert_eq!(act(&mut objects, 0, Action::Set(7)), 0);
        assert_eq!(act(&mut objects, 1, Action::Append(3)), 1);
        assert_eq!(act(&mut objects, 1, Action::Append(4)), 2);
        assert_eq!(act(&mut objects, 2, Action::Add(2)), 2);
        assert_eq!(act(&mut objects, 2, Action::Add(2)), 4);
        assert_eq!(act(&mut objects, 3, Action::Take), EMPTY);
        assert_eq!(act(&mut objects, 3, Action::Append(9)), 1);
        assert_eq!(act(&mut objects, 3, Action::Take), 9);
        let mut bytes = Vec::new();
        objects.encode(&mut bytes);
        assert_eq!(Objects::decode(&mut Reader::new(&bytes)).unwrap(), objects);
        let mut reply = Vec::new();
        objects.read(&mut Reader::new(&1u64.to_le_bytes()), &mut reply).unwrap();
        assert_eq!(Objects::items(&reply), Some(vec![3, 4]));
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let mut objects = Objects::default();
        for serial in 0..10 {
            assert_eq!(act(&mut objects, KINDS * serial, Action::Add(1)), 1);
        }
        assert_eq!(objects.0.len() as u64, KEPT);
        assert_eq!(act(&mut objects, KINDS * 3, Action::Add(1)), GONE);
        assert_eq!(act(&mut objects, KINDS * 4, Action::Add(1)), 2);
        assert_eq!(act(&mut objects, 1, Action::Append(1)), 1, "another kind has its own");
        let mut reply = Vec::new();
        objects.read(&mut Reader::new(&12u64.to_le_bytes()), &mut reply).unwrap();
        assert_eq!(Objects::items(&reply), None);
    }
}
