//! The frames that version 1 sent are still understood, to the last field. (Tests only.)

use coracle_base::codec::{Reader, Sink};
use coracle_base::{EntryBatch, EntryKind, GroupId, NodeId, RunHeader, RunRef, ShardId, Term};
use coracle_raft::Message;

use super::envelope::{Builder, Kind, Pieces};
use super::frame::{self, Frame, FrameKind};
use super::hello::Hello;
use crate::cluster::Cluster;
use crate::identity::Identity;

fn kept(name: &str, bytes: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat/v1/frames").join(name);
    if std::env::var_os("COMPAT_WRITE").is_some() {
        let hex: String = bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(&path, hex + "\n").unwrap();
    }
    let hex = std::fs::read_to_string(path).unwrap();
    let digits = hex.trim().as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn hello() -> Hello {
    let members = vec![(NodeId(1), 11), (NodeId(2), 22), (NodeId(3), 33)];
    let cluster = Some(Cluster::new(0xC0AC1E, members));
    let hello =
        Hello::of(&Identity { node: NodeId(2), incarnation: 22, shards: 4, cluster }, ShardId(3), 17, 1);
    Hello { version_min: 1, ..hello }
}

fn run() -> Vec<u8> {
    let mut entries = EntryBatch::new();
    entries.push(77, EntryKind::Command, b"add 5").unwrap();
    entries.push(0, EntryKind::Noop, b"").unwrap();
    entries.stamp(Term(6), 1_700_000_000_000);
    let header = RunHeader {
        group: GroupId(9),
        accepted_term: Term(6),
        prev_index: coracle_base::Index(40),
        prev_term: Term(5),
        count: 2,
        body_bytes: entries.bytes().len() as u32,
    };
    let mut out = Vec::new();
    header.encode_run(&[entries.bytes()], &mut out);
    out
}

fn append() -> Message {
    Message::Append {
        term: Term(6),
        prev_index: coracle_base::Index(40),
        prev_term: Term(5),
        spans: [(Term(6), 2)].into_iter().collect(),
        bytes: 69,
        commit: coracle_base::Index(39),
        answer: true,
        trusted: false,
        changes: Vec::new(),
    }
}

fn envelope() -> Vec<u8> {
    let mut builder = Builder::default();
    builder.push(Kind::Raft, GroupId(9), true, |out| append().encode(out), |out| out.put(&run()));
    builder.push(Kind::Forward, GroupId(9), false, |out| out.put_u64(3), |out| out.put(b"entries"));
    builder.push(Kind::Query, GroupId(9), false, |out| out.put_u64(4), |out| out.put(b"what?"));
    builder.replies().put(b"answers");
    let mut out = Vec::new();
    builder.take(12, |head, tail| frame::encode(FrameKind::Envelope, 13, head, tail, &mut out));
    out
}

fn framed(kind: FrameKind, head: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(kind, 0, head, &[], &mut out);
    out
}

#[test]
fn the_hello_of_version_1_is_understood() {
    let bytes = kept("hello.hex", || framed(FrameKind::Hello, &hello().encode()));
    let (frame, len) = Frame::parse(&bytes).unwrap().unwrap();
    assert_eq!((frame.kind, frame.seq, len), (FrameKind::Hello, 0, bytes.len()));
    assert_eq!(Hello::decode(frame.head), Ok(hello()));
}

#[test]
fn the_refusal_of_version_1_is_understood() {
    let bytes = kept("refuse.hex", || framed(FrameKind::Refuse, b"not here"));
    let (frame, _) = Frame::parse(&bytes).unwrap().unwrap();
    assert_eq!((frame.kind, frame.head), (FrameKind::Refuse, &b"not here"[..]));
}

#[test]
fn the_envelope_of_version_1_is_understood() {
    let bytes = kept("envelope.hex", envelope);
    let (frame, _) = Frame::parse(&bytes).unwrap().unwrap();
    assert_eq!((frame.kind, frame.seq, super::envelope::echo(frame.head)), (FrameKind::Envelope, 13, Ok(12)));
    let mut pieces = Pieces::new(frame.head, frame.tail).unwrap();
    let raft = pieces.next().unwrap().unwrap();
    assert_eq!((raft.kind, raft.group, raft.payload), (Kind::Raft, GroupId(9), &run()[..]));
    assert_eq!(Message::decode(&mut Reader::new(raft.fields)).unwrap(), append());
    RunRef::parse(raft.payload).unwrap().check_payloads().unwrap();
    for (kind, payload) in
        [(Kind::Forward, &b"entries"[..]), (Kind::Query, b"what?"), (Kind::Replies, b"answers")]
    {
        let piece = pieces.next().unwrap().unwrap();
        assert_eq!((piece.kind, piece.payload), (kind, payload));
    }
    assert_eq!(pieces.next(), Ok(None));
}
