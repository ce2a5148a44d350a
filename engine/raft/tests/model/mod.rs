//! What a shard is to a group, as small as can be: the entries' content, a disk that says later what it has written, and
//! the bytes between nodes. Shared by the scenario runner and the random cluster.
#![allow(dead_code, unreachable_pub)] // each test binary uses its own part

use std::collections::VecDeque;
use std::rc::Rc;

use coracle_base::codec::Reader;
use coracle_base::{Index, NodeId, Term};
use coracle_raft::{
    Change, ChangeError, Config, Fit, Group, HardState, Input, Members, Message, NotLeader, Output,
    PersistSeq, Proposed, Restored, Sizes,
};

/// Bytes that an entry is taken to have.
pub const ENTRY_BYTES: u32 = 100;

/// An entry: its term and what it says. A no-op says 0, and so does a change of members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    pub term: Term,
    pub says: u64,
    pub members: Option<Rc<Members>>,
}

impl Entry {
    pub fn says(term: Term, says: u64) -> Self {
        Self { term, says, members: None }
    }
}

/// A log with its content, above a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    pub base: Index,
    pub base_term: Term,
    pub held: Vec<Entry>,
}

impl Entries {
    pub fn last(&self) -> Index {
        self.base.plus(self.held.len() as u64)
    }

    pub fn get(&self, index: Index) -> Option<Entry> {
        (index > self.base).then(|| self.held.get((index.0 - self.base.0 - 1) as usize).cloned()).flatten()
    }

    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base { Some(self.base_term) } else { self.get(index).map(|entry| entry.term) }
    }

    pub fn range(&self, first: Index, last: Index) -> Vec<Entry> {
        (first.0..=last.0).map(|index| self.get(Index(index)).expect("the entry is held")).collect()
    }

    /// Drops `first` and all after it, then appends.
    pub fn replace(&mut self, first: Index, entries: &[Entry]) {
        assert!(first > self.base && first <= self.last().next(), "entries at {first} would leave a gap");
        self.held.truncate((first.0 - self.base.0 - 1) as usize);
        self.held.extend_from_slice(entries);
    }

    /// How a write-ahead log replays a run: an entry that is held already changes nothing, one that differs cuts.
    pub fn replay(&mut self, first: Index, entries: &[Entry]) {
        for (at, entry) in entries.iter().enumerate() {
            let index = first.plus(at as u64);
            if index > self.base && self.get(index).is_none_or(|held| held.term != entry.term) {
                self.replace(index, std::slice::from_ref(entry));
            }
        }
    }

    pub fn release(&mut self, index: Index) {
        let term = self.term_at(index).expect("the released entry is held");
        self.held.drain(..(index.0 - self.base.0) as usize);
        (self.base, self.base_term) = (index, term);
    }

    pub fn reset(&mut self, index: Index, term: Term) {
        *self = Self { base: index, base_term: term, held: Vec::new() };
    }

    /// The newest change of members that is held.
    pub fn newest_change(&self) -> Option<(Index, Rc<Members>)> {
        let held = self.held.iter().enumerate().rev();
        held.filter_map(|(at, entry)| Some((self.base.plus(at as u64 + 1), entry.members.clone()?))).next()
    }

    /// First index of each term.
    pub fn terms(&self) -> Vec<(Index, Term)> {
        let mut terms: Vec<(Index, Term)> = Vec::new();
        for (at, entry) in self.held.iter().enumerate() {
            if terms.last().is_none_or(|&(_, term)| term != entry.term) {
                terms.push((self.base.plus(at as u64 + 1), entry.term));
            }
        }
        terms
    }
}

/// What survives a crash.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub hard_state: Option<HardState>,
    pub log: Entries,
    pub accepted_term: Term,
}

/// One `Persist` on its way to the disk.
#[derive(Debug, Clone)]
pub struct Write {
    pub seq: PersistSeq,
    pub install: Option<(Index, Term)>,
    pub hard_state: Option<HardState>,
    pub first: Index,
    pub entries: Vec<Entry>,
    pub accepted_term: Term,
}

impl Disk {
    pub fn write(&mut self, write: &Write) {
        if let Some(hard_state) = &write.hard_state {
            self.hard_state = Some(HardState::decode(&hard_state.encode()).unwrap());
        }
        if let Some((index, term)) = write.install {
            self.log.reset(index, term);
        }
        if !write.entries.is_empty() {
            self.log.replay(write.first, &write.entries);
            self.accepted_term = write.accepted_term;
        }
    }
}

/// A message with the entries that travel beside it.
#[derive(Debug, Clone)]
pub struct Packet {
    pub from: NodeId,
    pub to: NodeId,
    pub message: Message,
    pub entries: Vec<Entry>,
}

/// Entries below `from` are on disk only.
struct Resident {
    from: Index,
}

impl Sizes for Resident {
    fn fit(&self, first: Index, last: Index, max_bytes: u32) -> Fit {
        if first < self.from {
            return Fit::OnDisk;
        }
        let count = last.since(first.prev()).min(u64::from((max_bytes / ENTRY_BYTES).max(1)));
        Fit::Resident { last: first.plus(count).prev(), bytes: count as u32 * ENTRY_BYTES }
    }
}

pub struct Node {
    pub id: NodeId,
    pub group: Group,
    pub log: Entries,
    pub disk: Disk,
    pub writes: VecDeque<Write>,
    /// Reads from disk that were asked for: for whom, from where, and what was found there then.
    pub fetches: VecDeque<(NodeId, Index, Vec<Entry>)>,
    /// What the step that runs has read.
    fetched: Option<Vec<Entry>>,
    pub resident_from: Index,
    pub sent: Vec<Packet>,
    installing: Option<(Index, Term)>,
    out: Vec<Output>,
}

/// What the storage knows to be missing, and for how long the member holds back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub suspect: bool,
    pub votes_lost: bool,
    pub hold_us: u64,
}

impl Node {
    pub fn new(config: Config, disk: Disk, memory: Memory, now_us: u64) -> Self {
        let Memory { suspect, votes_lost, hold_us } = memory;
        let restored = Restored {
            hard_state: disk.hard_state.clone(),
            snapshot: Some((disk.log.base, disk.log.base_term)),
            last: disk.log.last(),
            terms: &disk.log.terms(),
            accepted_term: disk.accepted_term,
            suspect,
            votes_lost,
            hold_us,
        };
        Self {
            id: config.id,
            group: Group::new(config, restored, now_us),
            log: disk.log.clone(),
            disk,
            writes: VecDeque::new(),
            fetches: VecDeque::new(),
            fetched: None,
            resident_from: Index::ZERO,
            sent: Vec::new(),
            installing: None,
            out: Vec::new(),
        }
    }

    pub fn propose(&mut self, says: &[u64]) -> Result<Proposed, NotLeader> {
        let proposed = self.group.propose(says.len() as u32)?;
        let entries: Vec<Entry> = says.iter().map(|&says| Entry::says(proposed.term, says)).collect();
        assert_eq!(proposed.first, self.log.last().next());
        self.log.replace(proposed.first, &entries);
        Ok(proposed)
    }

    /// Changes the members.
    pub fn change(
        &mut self,
        now_us: u64,
        changes: &[Change],
        force: bool,
    ) -> (Result<Proposed, ChangeError>, Vec<Output>) {
        let mut out = Vec::new();
        let result = self.group.change(now_us, changes, force, &mut out);
        self.act_at_once(&out, &[], None);
        (result, out)
    }

    /// Steps the group and does what a shard would do at once. What it asked for is returned too.
    pub fn step(&mut self, now_us: u64, input: Input) -> Vec<Output> {
        self.step_with(now_us, input, &[])
    }

    pub fn receive(&mut self, now_us: u64, packet: Packet) -> Vec<Output> {
        self.step_with(now_us, Input::Receive { from: packet.from, message: packet.message }, &packet.entries)
    }

    fn step_with(&mut self, now_us: u64, mut input: Input, entries: &[Entry]) -> Vec<Output> {
        if let Input::Receive { message: Message::Append { prev_index, changes, .. }, .. } = &mut input {
            let first = prev_index.next();
            let found = entries.iter().enumerate().filter_map(|(at, entry)| {
                let members = entry.members.as_ref()?;
                Some((first.plus(at as u64), Members::clone(members)))
            });
            changes.extend(found);
        }
        let end = match &input {
            Input::Receive { message, .. } => message.entries().map(|(_, last)| last),
            _ => None,
        };
        let mut out = std::mem::take(&mut self.out);
        self.group.step(now_us, input, &mut out);
        self.act_at_once(&out, entries, end);
        out
    }

    fn act_at_once(&mut self, out: &[Output], entries: &[Entry], end: Option<Index>) {
        for output in out {
            match output {
                Output::Store { first } => {
                    let skipped = entries.len() - (end.expect("an append").since(first.prev()) as usize);
                    self.log.replace(*first, &entries[skipped..]);
                }
                Output::AppendNoop { index, term } => {
                    assert_eq!(*index, self.log.last().next());
                    self.log.replace(*index, &[Entry::says(*term, 0)]);
                }
                Output::AppendMembers { index, term, members } => {
                    assert_eq!(*index, self.log.last().next());
                    // As its payload would be read elsewhere.
                    let mut bytes = Vec::new();
                    members.encode(&mut bytes);
                    let members = Some(Rc::new(Members::decode(&mut Reader::new(&bytes)).unwrap()));
                    self.log.replace(*index, &[Entry { term: *term, says: 0, members }]);
                }
                Output::Install { index, term } => {
                    self.log.reset(*index, *term);
                    self.installing = Some((*index, *term));
                }
                other => self.act(other),
            }
        }
        self.check_shape();
    }

    pub fn drain(&mut self, now_us: u64) -> Vec<Output> {
        let mut out = Vec::new();
        self.group.drain(now_us, &Resident { from: self.resident_from }, &mut out);
        for output in &out {
            self.act(output);
        }
        assert!(self.installing.is_none(), "an install is covered by the next drain's write");
        out
    }

    fn act(&mut self, output: &Output) {
        match output {
            Output::Persist { seq, hard_state, entries } => {
                let (first, last) = entries.unwrap_or((Index(1), Index(0)));
                let entries = self.log.range(first, last);
                let install = self.installing.take();
                let (hard_state, accepted_term) = (hard_state.clone(), self.group.term());
                self.writes.push_back(Write {
                    seq: *seq,
                    install,
                    hard_state,
                    first,
                    entries,
                    accepted_term,
                });
            }
            Output::Send { to, message } => self.send(*to, message.clone()),
            Output::SendSnapshot { to } => {
                let (index, snap_term) = (self.log.base, self.log.base_term);
                self.send(*to, self.group.snapshot_message(index, snap_term));
            }
            Output::Fetch { to, first, last } => {
                self.fetches.push_back((*to, *first, self.log.range(*first, *last)));
            }
            _ => {}
        }
    }

    /// Through the codec, as between real nodes, with the entries that the message names.
    fn send(&mut self, to: NodeId, message: Message) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(Message::decode(&mut reader).as_ref(), Ok(&message), "what is sent can be read");
        assert!(reader.is_empty());
        let entries = match (message.entries(), self.fetched.take()) {
            (None, _) => Vec::new(),
            (Some(_), Some(fetched)) => fetched,
            (Some((first, last)), None) => self.log.range(first, last),
        };
        if let Message::Append { spans, .. } = &message {
            let told: Vec<Term> = spans.iter().flat_map(|&(term, n)| vec![term; n as usize]).collect();
            assert!(
                told.iter().eq(entries.iter().map(|entry| &entry.term)),
                "an append tells its entries' terms"
            );
        }
        self.sent.push(Packet { from: self.id, to, message, entries });
    }

    /// The oldest write is on disk.
    pub fn complete_write(&mut self, now_us: u64) -> Vec<Output> {
        let Some(write) = self.writes.pop_front() else { return Vec::new() };
        self.disk.write(&write);
        self.step(now_us, Input::Persisted(write.seq))
    }

    /// The oldest read from disk is answered, with at most `count_max` entries.
    pub fn complete_fetch(&mut self, now_us: u64, count_max: u64) -> Vec<Output> {
        let Some((to, first, mut found)) = self.fetches.pop_front() else { return Vec::new() };
        if first <= self.log.base {
            return self.step(now_us, Input::FetchFailed { to });
        }
        found.truncate(count_max as usize);
        let count = found.len() as u32;
        self.fetched = Some(found);
        let out = self.step(now_us, Input::Fetched { to, first, count, bytes: count * ENTRY_BYTES });
        self.fetched = None;
        out
    }

    /// A snapshot at `index` is durable.
    pub fn release(&mut self, now_us: u64, index: Index) -> Vec<Output> {
        let term = self.log.term_at(index).expect("the entry is held");
        assert_eq!(self.disk.log.term_at(index), Some(term), "only what is durable is released");
        self.disk.log.release(index);
        self.log.release(index);
        self.step(now_us, Input::Released { index, term })
    }

    fn check_shape(&self) {
        assert_eq!(self.group.last(), self.log.last(), "group and content end together");
        assert_eq!(self.group.first(), self.log.base.next(), "group and content begin together");
        for index in self.log.base.0..=self.log.last().0 {
            assert_eq!(self.group.term_at(Index(index)), self.log.term_at(Index(index)), "term at {index}");
        }
    }
}
