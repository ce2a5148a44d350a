//! The replicated machine of `kv`: an ordered map of keys to values. Its replies are RESP2, ready to be sent.
//!
//! A command is an operation byte and its arguments, each a little-endian `u32` length and bytes. A query is a key. A
//! snapshot is all keys and values, in order, each as an argument.

use std::collections::BTreeMap;

use coracle::{Class, Effects, Entry, Index, Machine, RestoreError};

use crate::resp;

/// Applied commands between two snapshots.
const RELEASE_EVERY: u64 = 4096;
/// And bytes of them: few large commands fill a disk as well.
const RELEASE_BYTES: u64 = 1024 * 1024;
/// A snapshot larger than this is not asked for: the engine takes none over 64 KiB yet.
const SNAPSHOT_BYTES_MAX: usize = 64 * 1024;
/// What an INCR of something else answers.
pub(crate) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// A command that changes the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// Sets a key.
    Set { key: &'a [u8], value: &'a [u8] },
    /// Sets a key that is not there.
    SetNx { key: &'a [u8], value: &'a [u8] },
    /// Removes a key.
    Del { key: &'a [u8] },
    /// Adds to a number; a key that is not there is 0.
    IncrBy { key: &'a [u8], by: i64 },
    /// Sets a key whose value is `old`.
    Cas { key: &'a [u8], old: &'a [u8], new: &'a [u8] },
}

impl<'a> Change<'a> {
    /// The key that it is about.
    pub(crate) fn key(&self) -> &'a [u8] {
        match *self {
            Change::Set { key, .. }
            | Change::SetNx { key, .. }
            | Change::Del { key }
            | Change::IncrBy { key, .. }
            | Change::Cas { key, .. } => key,
        }
    }

    /// The command's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match *self {
            Change::Set { key, value } => encode(0, &[key, value]),
            Change::SetNx { key, value } => encode(1, &[key, value]),
            Change::Del { key } => encode(2, &[key]),
            Change::IncrBy { key, by } => encode(3, &[key, &by.to_le_bytes()]),
            Change::Cas { key, old, new } => encode(4, &[key, old, new]),
        }
    }

    /// Reads them back; `None` if they are no command that this version knows.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (operation, rest) = bytes.split_first()?;
        let args: Vec<&[u8]> = Args(rest).collect::<Option<_>>()?;
        match (*operation, args.as_slice()) {
            (0, &[key, value]) => Some(Change::Set { key, value }),
            (1, &[key, value]) => Some(Change::SetNx { key, value }),
            (2, &[key]) => Some(Change::Del { key }),
            (3, &[key, by]) => Some(Change::IncrBy { key, by: i64::from_le_bytes(by.try_into().ok()?) }),
            (4, &[key, old, new]) => Some(Change::Cas { key, old, new }),
            _ => None,
        }
    }
}

fn encode(operation: u8, args: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + args.iter().map(|arg| 4 + arg.len()).sum::<usize>());
    out.push(operation);
    args.iter().for_each(|arg| put(&mut out, arg));
    out
}

fn put(out: &mut Vec<u8>, arg: &[u8]) {
    out.extend_from_slice(&(arg.len() as u32).to_le_bytes());
    out.extend_from_slice(arg);
}

/// Walks arguments; yields `None` once if they end inside one.
struct Args<'a>(&'a [u8]);

impl<'a> Iterator for Args<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Option<&'a [u8]>> {
        if self.0.is_empty() {
            return None;
        }
        let arg = self
            .0
            .split_first_chunk()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        self.0 = arg.map_or(&[][..], |(_, rest)| rest);
        Some(arg.map(|(arg, _)| arg))
    }
}

/// The map.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Store {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Size of a snapshot taken now.
    snapshot_bytes: usize,
    /// Where the last snapshot was asked for, and bytes of commands since; not part of the state.
    released: Index,
    since_bytes: u64,
}

impl Store {
    fn run(&mut self, change: Change<'_>, reply: &mut Vec<u8>) {
        match change {
            Change::Set { key, value } => {
                self.set(key, value);
                resp::simple(reply, "OK");
            }
            Change::SetNx { key, value } => {
                let absent = !self.values.contains_key(key);
                if absent {
                    self.set(key, value);
                }
                resp::number(reply, absent.into());
            }
            Change::Del { key } => resp::number(reply, self.remove(key).into()),
            Change::IncrBy { key, by } => self.add(key, by, reply),
            Change::Cas { key, old, new } => {
                let equal = self.values.get(key).is_some_and(|value| value == old);
                if equal {
                    self.set(key, new);
                }
                resp::number(reply, equal.into());
            }
        }
    }

    fn add(&mut self, key: &[u8], by: i64, reply: &mut Vec<u8>) {
        let Some(before) = self.values.get(key).map_or(Some(0), |value| resp::integer(value)) else {
            return resp::error(reply, NOT_AN_INTEGER);
        };
        let Some(sum) = before.checked_add(by) else {
            return resp::error(reply, "ERR increment or decrement would overflow");
        };
        self.set(key, sum.to_string().as_bytes());
        resp::number(reply, sum);
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.remove(key);
        self.snapshot_bytes += 8 + key.len() + value.len();
        self.values.insert(key.to_vec(), value.to_vec());
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let removed = self.values.remove(key);
        self.snapshot_bytes -= removed.as_ref().map_or(0, |value| 8 + key.len() + value.len());
        removed.is_some()
    }
}

impl Machine for Store {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        match Change::decode(entry.command) {
            Some(change) => self.run(change, effects.reply()),
            None => resp::error(effects.reply(), "ERR a command that this version does not know"),
        }
        self.since_bytes += entry.command.len() as u64;
        let is_due = entry.index.since(self.released) >= RELEASE_EVERY || self.since_bytes >= RELEASE_BYTES;
        if is_due && self.snapshot_bytes <= SNAPSHOT_BYTES_MAX {
            self.released = entry.index;
            self.since_bytes = 0;
            effects.release();
        }
    }

    fn class(&self, command: &[u8]) -> Class {
        match Change::decode(command) {
            Some(Change::Del { .. }) => Class::Freeing,
            _ => Class::Ordinary,
        }
    }

    fn query(&self, key: &[u8], reply: &mut Vec<u8>) {
        resp::bulk(reply, self.values.get(key).map(Vec::as_slice));
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.values {
            put(out, key);
            put(out, value);
        }
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let damaged = || RestoreError(format!("{} bytes that are not keys and values", snapshot.len()));
        *self = Self::default();
        let mut args = Args(snapshot);
        while let Some(key) = args.next() {
            let (Some(key), Some(Some(value))) = (key, args.next()) else { return Err(damaged()) };
            self.set(key, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(store: &mut Store, change: Change<'_>) -> String {
        let decoded = change.encode();
        let mut reply = Vec::new();
        store.run(Change::decode(&decoded).unwrap(), &mut reply);
        String::from_utf8(reply).unwrap()
    }

    #[test]
    fn commands_answer_as_redis_does() {
        let mut store = Store::default();
        let (a, b) = (&b"a"[..], &b"b"[..]);
        assert_eq!(run(&mut store, Change::IncrBy { key: a, by: 5 }), ":5\r\n");
        assert_eq!(run(&mut store, Change::IncrBy { key: a, by: -7 }), ":-2\r\n");
        assert_eq!(run(&mut store, Change::SetNx { key: a, value: b"x" }), ":0\r\n");
        assert_eq!(run(&mut store, Change::SetNx { key: b, value: b"x" }), ":1\r\n");
        assert_eq!(run(&mut store, Change::IncrBy { key: b, by: 1 }), format!("-{NOT_AN_INTEGER}\r\n"));
        assert_eq!(run(&mut store, Change::Cas { key: b, old: b"y", new: b"z" }), ":0\r\n");
        assert_eq!(run(&mut store, Change::Cas { key: b, old: b"x", new: b"9223372036854775807" }), ":1\r\n");
        assert_eq!(
            run(&mut store, Change::IncrBy { key: b, by: 1 }),
            "-ERR increment or decrement would overflow\r\n"
        );
        assert_eq!(run(&mut store, Change::Set { key: b, value: b"" }), "+OK\r\n");
        assert_eq!(run(&mut store, Change::Del { key: a }), ":1\r\n");
        assert_eq!(run(&mut store, Change::Del { key: a }), ":0\r\n");
    }

    #[test]
    fn a_snapshot_is_as_long_as_reckoned_and_restores_the_same_map() {
        let mut store = Store::default();
        for i in 0..100u8 {
            run(&mut store, Change::Set { key: &[i % 40], value: &vec![i; i.into()] });
            run(&mut store, Change::Del { key: &[i % 7] });
        }
        let mut snapshot = Vec::new();
        store.snapshot(&mut snapshot);
        assert_eq!(snapshot.len(), store.snapshot_bytes);
        let mut restored = Store::default();
        restored.restore(&snapshot).unwrap();
        assert_eq!(restored, store);
        assert!(restored.restore(&snapshot[..snapshot.len() - 1]).is_err());
    }

    #[test]
    fn bytes_that_are_no_command_are_refused() {
        let good = Change::Cas { key: b"k", old: b"old", new: b"new" }.encode();
        for cut in 0..good.len() {
            assert_eq!(Change::decode(&good[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Change::decode(&[9, 0, 0, 0, 0]), None);
    }
}
