//! What does consensus cost without a disk and a network? Three members of one group hand each other their messages
//! directly, and every write is durable at once: a whole commit, from the proposal to the commit index on all three,
//! and the encoding of the message that carries it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::hint::black_box;

use coracle_base::codec::Reader;
use coracle_base::{Index, NodeId};
use coracle_raft::{Config, Fit, Group, Input, Message, Output, Restored, Role, Sizes};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Entries proposed at a time: a lone command, a busy turn, a burst.
const ENTRIES: [u32; 3] = [1, 100, 1000];
/// Bytes of an entry with its header.
const ENTRY_BYTES: u32 = 288;

/// All entries are in memory and of one size.
struct Resident;

impl Sizes for Resident {
    fn fit(&self, first: Index, last: Index, max_bytes: u32) -> Fit {
        let count = u64::from((max_bytes / ENTRY_BYTES).max(1)).min(last.since(first) + 1);
        Fit::Resident { last: first.plus(count - 1), bytes: count as u32 * ENTRY_BYTES }
    }
}

struct Cluster {
    members: Vec<Group>,
    now_us: u64,
    outputs: Vec<Output>,
    inputs: VecDeque<(usize, Input)>,
    committed: [Index; 3],
    /// The newest append with entries.
    append: Option<Message>,
}

impl Cluster {
    /// Three members, the first of which leads.
    fn led() -> Self {
        let ids = [1, 2, 3].map(NodeId);
        let members = ids.map(|id| Group::new(Config::new(id, ids), Restored::default(), 0)).into();
        let (outputs, inputs, committed) = (Vec::new(), VecDeque::new(), [Index::ZERO; 3]);
        let mut cluster = Self { members, now_us: 0, outputs, inputs, committed, append: None };
        for (member, other) in [(0, 2), (0, 3), (1, 1), (1, 3), (2, 1), (2, 2)] {
            cluster.inputs.push_back((member, Input::LinkUp(NodeId(other))));
        }
        cluster.settle();
        cluster.now_us = cluster.members[0].deadline_us().expect("a follower without a leader waits");
        cluster.inputs.push_back((0, Input::Tick));
        cluster.settle();
        assert_eq!(cluster.members[0].role(), Role::Leader);
        cluster
    }

    fn commit(&mut self, entries: u32) -> Index {
        self.members[0].propose(entries).expect("it leads");
        self.drain(0);
        self.settle();
        self.committed[0]
    }

    /// Until nobody has anything to say.
    fn settle(&mut self) {
        while let Some((member, input)) = self.inputs.pop_front() {
            let mut outputs = std::mem::take(&mut self.outputs);
            self.members[member].step(self.now_us, input, &mut outputs);
            self.outputs = outputs;
            self.drain(member);
        }
    }

    fn drain(&mut self, member: usize) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.members[member].drain(self.now_us, &Resident, &mut outputs);
        let from = NodeId(member as u64 + 1);
        for output in outputs.drain(..) {
            match output {
                Output::Persist { seq, .. } => self.inputs.push_back((member, Input::Persisted(seq))),
                Output::Send { to, message } => {
                    if message.entries().is_some() {
                        self.append = Some(message.clone());
                    }
                    self.inputs.push_back((to.0 as usize - 1, Input::Receive { from, message }));
                }
                Output::Commit { upto } => self.committed[member] = upto,
                _ => {}
            }
        }
        self.outputs = outputs;
    }
}

fn raft_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit_on_three");
    for entries in ENTRIES {
        let mut cluster = Cluster::led();
        group.throughput(Throughput::Elements(u64::from(entries)));
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| cluster.commit(black_box(entries)))
        });
        assert!(cluster.committed.iter().all(|index| *index == cluster.committed[0]), "all three agree");
    }
    group.finish();

    let mut cluster = Cluster::led();
    cluster.commit(100);
    let append = cluster.append.expect("something was replicated");
    let mut bytes = Vec::with_capacity(64);
    let mut group = c.benchmark_group("append_message");
    group.bench_function("encode", |b| {
        b.iter(|| {
            bytes.clear();
            black_box(&append).encode(&mut bytes);
        });
    });
    group.bench_function("decode", |b| {
        b.iter(|| Message::decode(&mut Reader::new(black_box(&bytes))).expect("sound"))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(600));
    targets = raft_step
}
criterion_main!(benches);
