//! The targets: for each decoder what it judges, what to begin with, and how to make its checksums right.

use coracle_base::checksum::{crc32c, crc32c_from};
use coracle_base::codec::{Reader, Sink};
use coracle_base::run::RUN_HEADER_BYTES;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunHeader, RunRef, ShardId, Term};
use coracle_io::Disk;
use coracle_io::fake::FakeDisk;
use coracle_raft::{HardState, Message};
use coracle_wal::{Config, Identity, IndexRange, Recovery, SnapshotFile, Wal};
use smallvec::smallvec;

use crate::resp;

/// One decoder.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its folder in the corpus.
    pub name: &'static str,
    /// Takes any bytes: `Err` says why they are refused.
    pub judge: fn(&[u8]) -> Result<(), String>,
    /// Sound inputs.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Makes checksums and lengths right, so that what lies behind them is reached.
    pub fix: fn(&mut Vec<u8>),
}

/// All of them.
pub const TARGETS: [Target; 19] = [
    Target { name: "run", judge: run, samples: runs, fix: fix_run },
    Target { name: "entries", judge: entries, samples: entry_batches, fix: leave },
    Target {
        name: "wal-head",
        judge: coracle_wal::fuzz::head,
        samples: heads,
        fix: coracle_wal::fuzz::fix_head,
    },
    Target {
        name: "wal-batch",
        judge: coracle_wal::fuzz::batch,
        samples: batches,
        fix: coracle_wal::fuzz::fix_batch,
    },
    Target {
        name: "wal-records",
        judge: coracle_wal::fuzz::records,
        samples: records,
        fix: |bytes| coracle_wal::fuzz::fix_records(bytes),
    },
    Target { name: "wal-page", judge: coracle_wal::fuzz::page, samples: || bodies(4), fix: leave },
    Target { name: "wal-root", judge: coracle_wal::fuzz::root, samples: || bodies(5), fix: leave },
    Target {
        name: "wal-index-block",
        judge: coracle_wal::fuzz::index_block,
        samples: || index_bodies(0),
        fix: leave,
    },
    Target {
        name: "wal-index-directory",
        judge: coracle_wal::fuzz::index_directory,
        samples: || index_bodies(1),
        fix: leave,
    },
    Target {
        name: "wal-index-list",
        judge: coracle_wal::fuzz::index_list,
        samples: || index_bodies(2),
        fix: leave,
    },
    Target {
        name: "wal-file",
        judge: wal_file,
        samples: || vec![small_file()],
        fix: |bytes| coracle_wal::fuzz::fix_file(bytes),
    },
    Target {
        name: "frames",
        judge: coracle::fuzz::frames,
        samples: || sample(0),
        fix: coracle::fuzz::fix_frame,
    },
    Target { name: "envelope", judge: coracle::fuzz::envelope, samples: envelopes, fix: leave },
    Target { name: "hello", judge: coracle::fuzz::hello, samples: || sample(1), fix: leave },
    Target {
        name: "identity",
        judge: coracle::fuzz::identity,
        samples: || sample(2),
        fix: coracle::fuzz::fix_identity,
    },
    Target {
        name: "lineage",
        judge: coracle::fuzz::lineage,
        samples: || sample(3),
        fix: coracle::fuzz::fix_lineage,
    },
    Target { name: "raft-message", judge: raft_message, samples: raft_messages, fix: leave },
    Target { name: "hard-state", judge: hard_state, samples: hard_states, fix: leave },
    Target { name: "resp", judge: resp_requests, samples: requests, fix: leave },
];

fn leave(_: &mut Vec<u8>) {}

fn text(error: &impl ToString) -> String {
    error.to_string()
}

// ---- runs -----------------------------------------------------------------------------------------------------------

fn batch_of(term: u64, payloads: &[&[u8]]) -> EntryBatch {
    let mut batch = EntryBatch::new();
    for (tag, payload) in (1..).zip(payloads) {
        batch.push(tag, EntryKind::Command, payload).expect("small");
    }
    batch.stamp(Term(term), 1000);
    batch
}

fn header_of(group: u64, prev: u64, batch: &EntryBatch) -> RunHeader {
    RunHeader {
        group: GroupId(group),
        accepted_term: Term(3),
        prev_index: Index(prev),
        prev_term: Term(if prev == 0 { 0 } else { 2 }),
        count: batch.count(),
        body_bytes: batch.bytes().len() as u32,
    }
}

fn runs() -> Vec<Vec<u8>> {
    let one = |prev, payloads: &[&[u8]]| {
        let batch = batch_of(2, payloads);
        let mut out = Vec::new();
        header_of(7, prev, &batch).encode_run(&[batch.bytes()], &mut out);
        out
    };
    vec![one(0, &[b"first"]), one(9, &[b"a", b"", b"ccc"])]
}

fn run(bytes: &[u8]) -> Result<(), String> {
    let run = RunRef::parse(bytes).map_err(|error| text(&error))?;
    let mut again = Vec::new();
    run.header.encode_run(&[run.body], &mut again);
    assert_eq!(again, bytes[..run.header.encoded_bytes()]);
    assert_eq!(run.entries().count(), run.header.count as usize);
    let in_spans: u64 = run.term_spans().map(|(_, count)| u64::from(count)).sum();
    assert_eq!(in_spans, u64::from(run.header.count));
    run.check_payloads().map_err(|error| text(&error))
}

/// Makes a run's lengths and checksums right.
fn fix_run(bytes: &mut Vec<u8>) {
    const ENTRY: usize = 32;
    if bytes.len() < RUN_HEADER_BYTES {
        return;
    }
    let (mut at, mut count, mut headers) = (RUN_HEADER_BYTES, 0u32, Vec::new());
    while at + ENTRY <= bytes.len() {
        let length = u32::from_le_bytes([bytes[at + 24], bytes[at + 25], bytes[at + 26], bytes[at + 27]]);
        let end = (at + ENTRY).saturating_add(length as usize).min(bytes.len());
        bytes[at + 24..at + 28].copy_from_slice(&((end - at - ENTRY) as u32).to_le_bytes());
        let payload_crc = crc32c(&bytes[at + ENTRY..end]).to_le_bytes();
        bytes[at + 28..at + 32].copy_from_slice(&payload_crc);
        headers.extend_from_slice(&bytes[at..at + ENTRY]);
        (at, count) = (end, count + 1);
    }
    bytes.truncate(at);
    bytes[32..36].copy_from_slice(&count.to_le_bytes());
    bytes[36..40].copy_from_slice(&((at - RUN_HEADER_BYTES) as u32).to_le_bytes());
    let crc = crc32c_from(crc32c(&bytes[..44]), &headers).to_le_bytes();
    bytes[44..48].copy_from_slice(&crc);
}

fn entry_batches() -> Vec<Vec<u8>> {
    vec![[&2u32.to_le_bytes(), batch_of(0, &[b"x", b"yy"]).bytes()].concat()]
}

fn entries(bytes: &[u8]) -> Result<(), String> {
    let mut reader = Reader::new(bytes);
    let count = reader.u32().map_err(|error| text(&error))?;
    let batch = EntryBatch::decode(count, reader.rest().to_vec()).map_err(|error| text(&error))?;
    assert_eq!((batch.bytes(), batch.count()), (reader.rest(), count));
    assert_eq!(batch.tags().len(), count as usize);
    Ok(())
}

// ---- the log --------------------------------------------------------------------------------------------------------

const FILE: &str = "wal/00000001.wal";

fn config(seed: u64) -> Config {
    Config {
        file_bytes: 60 * 1024,
        checkpoint_every_bytes: 1024,
        batch_bytes: 4096,
        ..Config::new("wal", seed)
    }
}

fn owner() -> Identity {
    Identity { cluster: 0xC1, node: NodeId(2), incarnation: 3, shard: ShardId(0), shards: 1 }
}

/// A file with a record of every kind that the log writes by itself, checkpoints among them.
fn small_file() -> Vec<u8> {
    let mut disk = FakeDisk::new(1);
    let (mut wal, _) = Wal::open(&mut disk, config(1), owner()).expect("an empty disk");
    wal.append(&header_of(4, 0, &batch_of(2, &[b"covered"])), &[batch_of(2, &[b"covered"]).bytes()]);
    wal.mark_snapshot(GroupId(4), Index(1), Term(2), &[], SnapshotFile { file_no: 1, bytes: 5000, crc: 9 });
    for round in 0..3u64 {
        for group in 1..=3 {
            let batch = batch_of(2, &[b"entry", &[round as u8; 300]]);
            let header = RunHeader {
                prev_term: Term(if round == 0 { 0 } else { 2 }),
                ..header_of(group, 2 * round, &batch)
            };
            wal.put_state(GroupId(group), &[round as u8; 40]);
            wal.append(&header, &[batch.bytes()]);
        }
        let live = [IndexRange { first: Index(1), count: round + 1 }];
        wal.put_snapshot(GroupId(3), Index(2 * round + 1), Term(2), &live, b"a snapshot");
        wal.delete(GroupId(10 + round));
        for _ in 0..20 {
            wal.submit(&mut disk, round * 1_000_000).expect("a sound disk");
            disk.wait().expect("a sound disk");
            let mut done = Vec::new();
            disk.completions(&mut done);
            done.into_iter().for_each(|one| wal.on_done(&mut disk, one).expect("a sound disk"));
        }
    }
    wal.shutdown(&mut disk).expect("a sound disk");
    disk.read_file(FILE).expect("the log's first file")
}

fn heads() -> Vec<Vec<u8>> {
    vec![small_file()[..4096].to_vec()]
}

fn records() -> Vec<Vec<u8>> {
    coracle_wal::fuzz::records_of_file(&small_file())
}

/// Batches of the file that the target expects them in.
fn batches() -> Vec<Vec<u8>> {
    let whole = |records: Vec<u8>| {
        let mut batch = b"CWB1\x01\x00\x60\x00".to_vec();
        batch.resize(96, 0);
        batch[16] = 1; // its number
        batch[36..40].copy_from_slice(&(records.len() as u32).to_le_bytes());
        batch.extend(records);
        batch.resize(batch.len().next_multiple_of(4096), 0);
        coracle_wal::fuzz::fix_batch(&mut batch);
        batch
    };
    records().into_iter().map(whole).collect()
}

/// A body of a file's index: of its block, its directory, or a list.
fn index_bodies(which: usize) -> Vec<Vec<u8>> {
    vec![coracle_wal::fuzz::index_samples()[which].clone()]
}

/// Bodies of the records of one kind.
fn bodies(kind: u8) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for records in records() {
        let mut reader = Reader::new(&records);
        while let (Ok(head), Ok(length)) = (reader.u32(), reader.u32()) {
            let Ok(body) = reader.bytes(length as usize) else { break };
            found.extend((head as u8 == kind).then(|| body.to_vec()));
        }
    }
    found
}

/// A recovery: it ends well or says why not, and the next one finds the same.
fn wal_file(bytes: &[u8]) -> Result<(), String> {
    let mut disk = FakeDisk::new(2);
    disk.make_dir("wal".as_ref()).map_err(|error| text(&error))?;
    disk.put_file(FILE, bytes);
    let (_, first) = Wal::open(&mut disk, config(2), owner()).map_err(|error| text(&error))?;
    let (_, second) = Wal::open(&mut disk, config(3), owner())
        .unwrap_or_else(|error| panic!("the second start fails after a good first one: {error}"));
    assert_eq!(groups(&first), groups(&second), "two starts, one log");
    let is_whole = first.groups.iter().all(|group| !group.suspect && !group.state_lost);
    if is_whole { Ok(()) } else { Err("damaged".into()) }
}

fn groups(found: &Recovery) -> String {
    format!("{:?}", found.groups)
}

// ---- what other nodes send ------------------------------------------------------------------------------------------

fn sample(at: usize) -> Vec<Vec<u8>> {
    coracle::fuzz::samples().into_iter().skip(at).take(1).collect()
}

fn append() -> (Message, Vec<u8>) {
    let batch = batch_of(2, &[b"one", b"two"]);
    let mut payload = Vec::new();
    let header = header_of(5, 9, &batch);
    header.encode_run(&[batch.bytes()], &mut payload);
    let message = Message::Append {
        term: Term(3),
        prev_index: Index(9),
        prev_term: Term(2),
        spans: smallvec![(Term(2), 2)],
        bytes: header.body_bytes,
        commit: Index(9),
        answer: false,
        trusted: true,
        held: true,
        changes: Vec::new(),
    };
    (message, payload)
}

fn envelopes() -> Vec<Vec<u8>> {
    let (message, payload) = append();
    let snapshot = Message::Snapshot { term: Term(4), index: Index(9), snap_term: Term(3), configured: None };
    vec![
        coracle::fuzz::sample_envelope(&message, &payload),
        coracle::fuzz::sample_envelope(&snapshot, b"a snapshot"),
    ]
}

fn raft_messages() -> Vec<Vec<u8>> {
    let all = [
        append().0,
        Message::PreVote { term: Term(300), last_index: Index(70_000), last_term: Term(4), forced: true },
        Message::Snapshot { term: Term(4), index: Index(9), snap_term: Term(3), configured: None },
        Message::ReadProbe { term: Term(4), round: 8 },
        Message::LeaderGone { term: Term(4) },
    ];
    let encode = |message: &Message| {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
    };
    // Those whose durable parts only a group can make, in their bytes: kinds 2, 3, 4, 6, 9.
    let heard: [&[u8]; 5] =
        [&[1, 2, 5, 1, 5], &[1, 3, 5, 9, 4], &[1, 4, 5, 2], &[1, 6, 5, 8, 9, 8, 2, 9, 7, 3], &[1, 9, 5, 8]];
    all.iter().map(encode).chain(heard.iter().map(|bytes| bytes.to_vec())).collect()
}

fn raft_message(bytes: &[u8]) -> Result<(), String> {
    let message = Message::decode(&mut Reader::new(bytes)).map_err(|error| text(&error))?;
    let mut again = Vec::new();
    message.encode(&mut again);
    let mut reader = Reader::new(&again);
    assert_eq!(Message::decode(&mut reader).as_ref(), Ok(&message));
    assert!(reader.is_empty());
    Ok(())
}

fn hard_states() -> Vec<Vec<u8>> {
    let mut out = vec![1, 2, 0, 0];
    out.put_u32(0);
    out.put_u64(5);
    out.put_u64(2);
    out.put_u64(0);
    out.put_u64(0);
    for voter in [1u64, 2] {
        out.put_u64(voter);
        out.put_u8(1);
    }
    vec![out]
}

fn hard_state(bytes: &[u8]) -> Result<(), String> {
    let state = HardState::decode(bytes).map_err(|error| text(&error))?;
    assert_eq!(state.encode().as_slice(), bytes);
    Ok(())
}

// ---- clients --------------------------------------------------------------------------------------------------------

fn requests() -> Vec<Vec<u8>> {
    vec![
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\nPING\r\n".to_vec(),
        b"GET k\r\n\r\n*1\r\n$4\r\nINFO\r\n".to_vec(),
    ]
}

/// Requests one after the other; the same when they arrive byte by byte.
fn resp_requests(bytes: &[u8]) -> Result<(), String> {
    let mut rest = bytes;
    while let Some((args, length)) = resp::parse(rest).map_err(|error| text(&error))? {
        assert!(0 < length && length <= rest.len(), "a request of {length} bytes");
        let again = encode(&args);
        match resp::parse(&again) {
            Ok(Some((same, all))) => assert_eq!((same, all), (args, again.len())),
            other => panic!("{args:?} does not come back: {other:?}"),
        }
        let early = resp::parse(&rest[..length - 1]);
        assert!(matches!(early, Ok(None)), "{early:?} of a request without its end");
        rest = &rest[length..];
    }
    if rest.is_empty() { Ok(()) } else { Err("waits for more".into()) }
}

fn encode(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).into_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}
