//! The replicated machine of `kv`: an ordered map of keys to values. Its replies are RESP2, ready to be sent.
//!
//! A command is an operation byte and its arguments, each a little-endian `u32` length and bytes. A query is a key. A
//! snapshot is all keys and values, in order, each as an argument. It is read from a second handle of the map, which shares
//! with the first whatever did not change since: a snapshot of gibibytes holds up no command.

use std::ops::Bound;
use std::sync::Arc;

use coracle::{Class, Effects, Entry, Index, Machine, RestoreError, SnapshotSource};
use rpds::RedBlackTreeMapSync;

use crate::resp;

/// Applied commands between two snapshots, while they are small.
const RELEASE_EVERY: u64 = 4096;
/// Bytes of a small one.
const SMALL_BYTES: u64 = 64 * 1024;
/// Bytes of commands between two snapshots, at least. Of a large state it is as many as the state has: so a snapshot writes
/// no more than the log did since the last one, and the log is at most about as large as the state. A command that frees
/// space asks for one sooner, for on a full disk nothing else may follow it.
const RELEASE_BYTES: u64 = 1024 * 1024;
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

type Values = RedBlackTreeMapSync<Arc<[u8]>, Arc<[u8]>>;

/// The map.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Store {
    values: Values,
    /// Size of a snapshot taken now.
    snapshot_bytes: u64,
    /// Where the last snapshot was asked for, and bytes of commands since; not part of the state.
    released: Index,
    since_bytes: u64,
    /// Of a restore: the beginning of what its next chunk goes on with.
    unread: Vec<u8>,
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
                let equal = self.values.get(key).is_some_and(|value| **value == *old);
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
        self.snapshot_bytes += taken(key, value);
        self.values.insert_mut(key.into(), value.into());
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let Some(bytes) = self.values.get(key).map(|value| taken(key, value)) else { return false };
        self.snapshot_bytes -= bytes;
        self.values.remove_mut(key)
    }

    /// Whether a snapshot is worth its bytes.
    fn is_release_due(&self, index: Index, frees: bool) -> bool {
        let is_small = self.snapshot_bytes <= SMALL_BYTES;
        let least = if frees { SMALL_BYTES } else { RELEASE_BYTES };
        self.since_bytes >= least.max(self.snapshot_bytes)
            || is_small && index.since(self.released) >= RELEASE_EVERY
    }
}

/// Bytes of a key and its value in a snapshot.
fn taken(key: &[u8], value: &[u8]) -> u64 {
    (8 + key.len() + value.len()) as u64
}

/// The map at one moment, as a snapshot that is read piece by piece.
struct Reading {
    values: Values,
    /// The last key that was encoded.
    after: Option<Arc<[u8]>>,
    /// What of it did not fit the last piece.
    rest: Vec<u8>,
}

impl SnapshotSource for Reading {
    fn next_chunk(&mut self, out: &mut Vec<u8>, max: usize) -> bool {
        let from = self.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = self.values.range::<Arc<[u8]>, _>((from, Bound::Unbounded)).peekable();
        let mut last = None;
        while self.rest.len() < max
            && let Some((key, value)) = next.next()
        {
            put(&mut self.rest, key);
            put(&mut self.rest, value);
            last = Some(key.clone());
        }
        let is_read = next.peek().is_none();
        self.after = last.or(self.after.take());
        let piece = self.rest.drain(..max.min(self.rest.len()));
        out.extend(piece);
        !(is_read && self.rest.is_empty())
    }
}

impl Machine for Store {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        let change = Change::decode(entry.command);
        let frees = matches!(change, Some(Change::Del { .. }));
        match change {
            Some(change) => self.run(change, effects.reply()),
            None => resp::error(effects.reply(), "ERR a command that this version does not know"),
        }
        self.since_bytes += entry.command.len() as u64;
        if self.is_release_due(entry.index, frees) {
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
        resp::bulk(reply, self.values.get(key).map(|value| &**value));
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.values {
            put(out, key);
            put(out, value);
        }
    }

    fn snapshot_source(&self) -> Box<dyn SnapshotSource> {
        Box::new(Reading { values: self.values.clone(), after: None, rest: Vec::new() })
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.begin_restore(snapshot.len() as u64);
        self.restore_chunk(snapshot)?;
        self.finish_restore()
    }

    fn begin_restore(&mut self, _bytes: u64) -> bool {
        *self = Self::default();
        true
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        let mut bytes = std::mem::take(&mut self.unread);
        bytes.extend_from_slice(chunk);
        let mut args = Args(&bytes);
        let mut whole = 0;
        while let (Some(Some(key)), Some(Some(value))) = (args.next(), args.next()) {
            self.set(key, value);
            whole += taken(key, value) as usize;
        }
        self.unread = bytes.split_off(whole);
        Ok(())
    }

    fn finish_restore(&mut self) -> Result<(), RestoreError> {
        match self.unread.len() {
            0 => Ok(()),
            bytes => Err(RestoreError(format!("the last {bytes} bytes are no key and value"))),
        }
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
        assert_eq!(snapshot.len() as u64, store.snapshot_bytes);
        let mut restored = Store::default();
        restored.restore(&snapshot).unwrap();
        assert_eq!(restored, store);
        assert!(restored.restore(&snapshot[..snapshot.len() - 1]).is_err());
    }

    #[test]
    fn a_snapshot_in_pieces_is_of_the_moment_at_which_it_was_begun() {
        let mut store = Store::default();
        (0..100u8).for_each(|i| drop(run(&mut store, Change::Set { key: &[i], value: &vec![i; i.into()] })));
        let mut snapshot = Vec::new();
        store.snapshot(&mut snapshot);
        for piece in [1, 7, 300, 1 << 20] {
            let mut source = store.snapshot_source();
            let (mut read, mut restored) = (Vec::new(), Store::default());
            restored.begin_restore(snapshot.len() as u64);
            let mut more = true;
            while more {
                let mut chunk = Vec::new();
                more = source.next_chunk(&mut chunk, piece);
                assert!(chunk.len() == piece || !more);
                restored.restore_chunk(&chunk).unwrap();
                read.extend_from_slice(&chunk);
                // The map goes on meanwhile.
                run(&mut store, Change::Set { key: b"later", value: &[piece as u8] });
                run(&mut store, Change::Del { key: &[50] });
            }
            assert!(read == snapshot, "pieces of {piece}");
            restored.finish_restore().unwrap();
            assert_eq!(restored.values.size(), 100);
            run(&mut store, Change::Del { key: b"later" });
            run(&mut store, Change::Set { key: &[50], value: &[50; 50] });
        }
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
