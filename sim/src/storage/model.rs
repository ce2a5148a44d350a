//! What a log should hold: plain maps, no files. Payloads are not kept: as in Raft, the same group, index and term have
//! the same payload, which follows from them ([`payload`]).

use std::collections::{BTreeMap, BTreeSet};

use coracle_base::checksum::mix64;
use coracle_wal::RecoveredGroup;

/// A record, as it is staged.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// Entries after `prev`, of these terms, from a leader of term `accepted`.
    Append { group: u64, prev: u64, accepted: u64, terms: Vec<u64> },
    /// Consensus state number `id`.
    State { group: u64, id: u64 },
    /// Snapshot number `id`, in the log or in a file of its own; of what it covers the entries in `live` live on.
    Snapshot { group: u64, index: u64, term: u64, live: Vec<u64>, id: u64, in_file: bool },
    /// Entries of these terms, of a snapshot that is still to come.
    Place { group: u64, first: u64, terms: Vec<u64> },
    /// The group's end.
    Delete { group: u64 },
}

impl Op {
    /// Whose it is.
    pub(super) fn group(&self) -> u64 {
        match self {
            Self::Append { group, .. }
            | Self::State { group, .. }
            | Self::Snapshot { group, .. }
            | Self::Place { group, .. }
            | Self::Delete { group } => *group,
        }
    }
}

/// The bytes of an entry. Lengths differ, most are short.
pub(super) fn payload(group: u64, index: u64, term: u64, bytes_max: u64) -> Vec<u8> {
    let seed = mix64(group, mix64(index, term));
    let bytes = if seed.is_multiple_of(8) { bytes_max } else { seed >> 8 & 0xff };
    noise(seed, bytes.min(bytes_max))
}

/// The blob of consensus state number `id`.
pub(super) fn state(id: u64) -> Vec<u8> {
    noise(!id, 8 + id % 50)
}

/// The bytes of snapshot number `id`.
pub(super) fn snapshot(id: u64) -> Vec<u8> {
    noise(id, 8 + mix64(id, 1) % 1500)
}

fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes as usize + 8);
    for word in 0..bytes.div_ceil(8) {
        out.extend_from_slice(&mix64(seed, word).to_le_bytes());
    }
    out.truncate(bytes as usize);
    out
}

/// One group's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// Number of the state, if there is one.
    pub(super) state: Option<u64>,
    pub(super) accepted: u64,
    /// Index and term of the snapshot's last entry; zeros without one.
    pub(super) base: (u64, u64),
    /// Number of the snapshot, and whether it is in a file.
    pub(super) snapshot: Option<(u64, bool)>,
    /// Terms by index.
    pub(super) entries: BTreeMap<u64, u64>,
    /// Terms of the entries that the snapshot covers and that live on.
    pub(super) live: BTreeMap<u64, u64>,
    /// Terms of entries that came before the snapshot that names them.
    pub(super) placed: BTreeMap<u64, u64>,
}

/// All groups' logs.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) groups: BTreeMap<u64, Group>,
}

impl Group {
    pub(super) fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.base.0, |(index, _)| *index)
    }

    /// The term of an entry of the log, or of the one before it.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 { Some(self.base.1) } else { self.entries.get(&index).copied() }
    }

    /// The term of an entry that can be read: of the log, or one that lives on.
    pub(super) fn readable(&self, index: u64) -> Option<u64> {
        self.entries.get(&index).or_else(|| self.live.get(&index)).copied()
    }

    /// The later run wins; what differs drops everything after it.
    fn append(&mut self, prev: u64, accepted: u64, terms: &[u64]) {
        self.accepted = self.accepted.max(accepted);
        for (index, term) in (prev + 1..).zip(terms) {
            if index > self.base.0 && self.entries.get(&index) != Some(term) {
                self.entries.split_off(&index);
                self.entries.insert(index, *term);
            }
        }
    }

    /// Of what lived, what the snapshot covers and what was placed, only `live` goes on.
    fn snapshot(&mut self, index: u64, term: u64, live: &[u64], snapshot: (u64, bool)) {
        if index < self.base.0 {
            return;
        }
        let is_held = self.term_at(index) == Some(term);
        let above = self.entries.split_off(&(index + 1));
        let covered = std::mem::take(&mut self.entries);
        let mut own = std::mem::take(&mut self.live);
        if is_held {
            own.extend(covered);
            self.entries = above;
        }
        for (placed, term) in std::mem::take(&mut self.placed) {
            own.entry(placed).or_insert(term);
        }
        own.retain(|index, _| live.contains(index));
        (self.live, self.base, self.snapshot) = (own, (index, term), Some(snapshot));
    }
}

impl Model {
    pub(super) fn get(&self, group: u64) -> Group {
        self.groups.get(&group).cloned().unwrap_or_default()
    }

    /// The record's meaning.
    pub(super) fn apply(&mut self, op: &Op) {
        let group = self.groups.entry(op.group()).or_default();
        match op {
            Op::Append { prev, accepted, terms, .. } => group.append(*prev, *accepted, terms),
            Op::State { id, .. } => group.state = Some(*id),
            Op::Snapshot { index, term, live, id, in_file, .. } => {
                group.snapshot(*index, *term, live, (*id, *in_file));
            }
            Op::Place { first, terms, .. } => group.placed.extend((*first..).zip(terms.iter().copied())),
            Op::Delete { .. } => *group = Group::default(),
        }
    }
}

/// How a group that was found differs from what it should be, if it does. A snapshot that cannot be read is not held
/// against a group that is `excused`.
pub(super) fn difference(expected: &Group, found: &RecoveredGroup, excused: bool) -> Option<String> {
    let base = found.first.prev().0;
    let mut terms = BTreeMap::new();
    for (at, (first, term)) in found.terms.iter().enumerate() {
        let end = found.terms.get(at + 1).map_or(found.last.next(), |(next, _)| *next);
        terms.extend((first.0..end.0).map(|index| (index, term.0)));
    }
    let base_term = terms.remove(&base).unwrap_or_default();
    let live: BTreeSet<u64> = found.live.iter().flat_map(|range| range.first.0..=range.last().0).collect();
    let same_snapshot = match (expected.snapshot, &found.snapshot, found.snapshot_file) {
        (None, None, None) => true,
        (Some((id, false)), Some(inline), None) => inline.bytes == snapshot(id),
        (Some((id, true)), None, Some(file)) => file.file_no == id,
        (Some(_), None, None) => excused,
        _ => false,
    };
    let differs = [
        ("state", found.state != expected.state.map(state).unwrap_or_default() && !found.state_lost),
        ("accepted term", found.accepted_term.0 != expected.accepted),
        ("base", (base, base_term) != expected.base),
        ("snapshot", !same_snapshot),
        ("entries", terms != expected.entries || found.last.0 != expected.last()),
        ("live entries", !live.iter().eq(expected.live.keys())),
    ];
    let (what, _) = differs.into_iter().find(|(_, differs)| *differs)?;
    Some(format!("{what} of group {}: found {found:?}, expected {expected:?}", found.group))
}
