//! What a log should hold: plain maps, no files.

use std::collections::BTreeMap;

use coracle_base::{EntryBatch, Index, RunHeader, RunRef};
use coracle_wal::{Recovery, Wal};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    groups: BTreeMap<u64, GroupModel>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupModel {
    pub state: Vec<u8>,
    pub accepted_term: u64,
    /// Index and term of the snapshot's last entry; 0 without one.
    pub base: (u64, u64),
    pub snapshot: Option<Vec<u8>>,
    /// Term and payload by index; payloads are unknown (`None`) for what a recovery found.
    pub entries: BTreeMap<u64, (u64, Option<Vec<u8>>)>,
    /// Payloads of entries that the snapshot covers and that live on.
    pub live: BTreeMap<u64, Option<Vec<u8>>>,
}

impl Model {
    pub fn group(&mut self, id: u64) -> &mut GroupModel {
        self.groups.entry(id).or_default()
    }

    pub fn ids(&self) -> Vec<u64> {
        self.groups.keys().copied().collect()
    }

    pub fn get(&self, id: u64) -> GroupModel {
        self.groups.get(&id).cloned().unwrap_or_default()
    }

    pub fn last(&self, id: u64) -> u64 {
        self.groups.get(&id).map_or(0, GroupModel::last)
    }

    pub fn term_at(&self, id: u64, index: u64) -> Option<u64> {
        let Some(group) = self.groups.get(&id) else { return (index == 0).then_some(0) };
        if index == group.base.0 {
            Some(group.base.1)
        } else {
            group.entries.get(&index).map(|(term, _)| *term)
        }
    }

    /// The later run wins; what differs drops everything after it.
    pub fn append(&mut self, header: &RunHeader, batch: &EntryBatch) {
        let group = self.group(header.group.0);
        group.accepted_term = group.accepted_term.max(header.accepted_term.0);
        for entry in RunRef::trusted(*header, batch.bytes()).entries() {
            let (index, term) = (entry.index.0, entry.header.term.0);
            if index <= group.base.0 || group.entries.get(&index).is_some_and(|(held, _)| *held == term) {
                continue;
            }
            group.entries.split_off(&index);
            group.entries.insert(index, (term, Some(entry.payload.to_vec())));
        }
    }

    pub fn snapshot(&mut self, id: u64, index: u64, term: u64, bytes: &[u8]) {
        self.snapshot_live(id, index, term, &[], bytes);
    }

    /// Of what lived and what the snapshot covers, only `live` goes on.
    pub fn snapshot_live(&mut self, id: u64, index: u64, term: u64, live: &[u64], bytes: &[u8]) {
        let held = self.term_at(id, index);
        let group = self.group(id);
        if index < group.base.0 {
            return;
        }
        let mut own = std::mem::take(&mut group.live);
        if held == Some(term) {
            let covered = group.entries.range(..=index);
            own.extend(covered.map(|(index, (_, payload))| (*index, payload.clone())));
        }
        own.retain(|index, _| live.contains(index));
        group.live = own;
        if held == Some(term) {
            group.entries = group.entries.split_off(&(index + 1));
        } else {
            group.entries.clear();
        }
        group.base = (index, term);
        group.snapshot = Some(bytes.to_vec());
    }

    /// What a recovery found.
    pub fn of(recovery: &Recovery) -> Self {
        let mut model = Self::default();
        for found in &recovery.groups {
            let group = model.group(found.group.0);
            group.state = found.state.clone();
            group.accepted_term = found.accepted_term.0;
            let live = found.live.iter().flat_map(|range| range.first.0..=range.last().0);
            group.live = live.map(|index| (index, None)).collect();
            // The log begins after its snapshot even if that is too damaged to be read.
            let base = found.first.prev();
            let base_term =
                found.terms.first().filter(|(first, _)| *first == base).map_or(0, |(_, term)| term.0);
            group.base = (base.0, base_term);
            if let Some(snapshot) = &found.snapshot {
                group.snapshot = Some(snapshot.bytes.clone());
                assert_eq!(
                    group.base,
                    (snapshot.index.0, snapshot.term.0),
                    "the log begins after its snapshot"
                );
            }
            let terms = &found.terms;
            for (at, (first, term)) in terms.iter().enumerate() {
                let end = terms.get(at + 1).map_or(found.last.next(), |(next, _)| *next);
                for index in (first.0..end.0).filter(|index| *index > group.base.0) {
                    group.entries.insert(index, (term.0, None));
                }
            }
            assert_eq!(found.last.0, group.last(), "terms cover the log");
        }
        model
    }

    /// What it knows of one group alone.
    pub fn only(&self, id: u64) -> Self {
        let of = self.groups.get_key_value(&id);
        Self { groups: of.into_iter().map(|(id, group)| (*id, group.clone())).collect() }
    }

    /// Equal but for payloads that one of them does not know.
    pub fn same_shape(&self, other: &Model) -> bool {
        let bare = |model: &Model| {
            let mut model = model.clone();
            model.groups.values_mut().flat_map(|group| group.entries.values_mut()).for_each(|e| e.1 = None);
            model.groups.values_mut().flat_map(|group| group.live.values_mut()).for_each(|e| *e = None);
            // A group that was only looked at is no group.
            model.groups.retain(|_, group| *group != GroupModel::default());
            model
        };
        bare(self) == bare(other)
    }

    /// Entries read back are the model's.
    pub fn check_entries(&self, id: u64, read: &[(u64, u64, Vec<u8>)]) -> Result<(), String> {
        let expected = &self.groups.get(&id).cloned().unwrap_or_default().entries;
        let indexes: Vec<_> = read.iter().map(|(index, ..)| *index).collect();
        if indexes != expected.keys().copied().collect::<Vec<_>>() {
            return Err(format!("group {id}: read {indexes:?}, expected {:?}", expected.keys()));
        }
        for (index, term, payload) in read {
            let (held, bytes) = &expected[index];
            if held != term || bytes.as_ref().is_some_and(|bytes| bytes != payload) {
                return Err(format!("group {id}: entry {index} is not what was written"));
            }
        }
        Ok(())
    }

    /// What the log in memory says of each group.
    pub fn check_live(&self, wal: &Wal) {
        for (id, group) in &self.groups {
            let Some(log) = wal.group((*id).into()) else {
                assert_eq!(*group, GroupModel::default(), "group {id} has no record");
                continue;
            };
            assert_eq!((log.first.0, log.last.0), (group.base.0 + 1, group.last()), "group {id}");
            assert_eq!(Some(log.last_term.0), self.term_at(*id, group.last()), "group {id}");
            let snapshot = if group.snapshot.is_some() { Index(group.base.0) } else { Index::ZERO };
            assert_eq!(log.snapshot_index, snapshot, "group {id}");
        }
    }
}

impl GroupModel {
    pub fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.base.0, |(index, _)| *index)
    }
}
