//! The frames that earlier versions of the protocol sent are still understood, to the last field. (Tests only.)

use coracle_base::codec::{Reader, Sink};
use coracle_base::{EntryBatch, EntryKind, GroupId, NodeId, RunHeader, RunRef, ShardId, Term};
use coracle_raft::{Change, Configured, Members, Message};

use super::envelope::{Builder, Kind, Pieces};
use super::frame::{self, Frame, FrameKind};
use super::hello::{Hello, Lane};
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::lineage::Mark;
use crate::shard::transfer::wire::{Chunk, Key, Live, Offer, Part, Want};

/// The bytes of a frame as they were kept; `COMPAT_WRITE=protocol-1` keeps them anew.
fn kept(protocol: u16, name: &str, bytes: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat");
    let path = root.join(format!("v{protocol}/frames")).join(name);
    if std::env::var("COMPAT_WRITE").is_ok_and(|wanted| wanted == format!("protocol-{protocol}")) {
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
        held: false,
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
    let bytes = kept(1, "hello.hex", || framed(FrameKind::Hello, &hello().encode()));
    let (frame, len) = Frame::parse(&bytes).unwrap().unwrap();
    assert_eq!((frame.kind, frame.seq, len), (FrameKind::Hello, 0, bytes.len()));
    assert_eq!(Hello::decode(frame.head), Ok(hello()));
}

#[test]
fn the_refusal_of_version_1_is_understood() {
    let bytes = kept(1, "refuse.hex", || framed(FrameKind::Refuse, b"not here"));
    let (frame, _) = Frame::parse(&bytes).unwrap().unwrap();
    assert_eq!((frame.kind, frame.head), (FrameKind::Refuse, &b"not here"[..]));
}

#[test]
fn the_envelope_of_version_1_is_understood() {
    let bytes = kept(1, "envelope.hex", envelope);
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

/// Of the bulk connection, from a node that knows of places that were given away.
fn hello_with_places() -> Hello {
    let one = hello();
    let cluster = one.cluster.as_ref().map(|cluster| {
        let cluster = cluster.with(cluster.give_up(NodeId(3), NodeId(1)));
        let cluster = cluster.with(cluster.take(NodeId(3), 34, NodeId(1)));
        let cluster = cluster.with(cluster.take(NodeId(4), 44, NodeId(1)));
        cluster.with(cluster.lose(NodeId(1), NodeId(2)))
    });
    Hello { version_max: 2, lane: Lane::Bulk, cluster, ..one }
}

fn configured() -> Configured {
    let members = Members::of_voters([NodeId(1), NodeId(2), NodeId(3)]);
    let changes = [Change::Remove(NodeId(1)), Change::Voter(NodeId(4)), Change::Promotable(NodeId(5))];
    let members = members.changed(&changes, coracle_base::Index(7)).unwrap();
    Configured { index: coracle_base::Index(38), members }
}

/// What version 2 has beside those of version 1, in the order of [`parcels`].
fn messages() -> Vec<Message> {
    let (term, index, snap_term) = (Term(6), coracle_base::Index(40), Term(5));
    vec![
        Message::PreVote { term, last_index: index, last_term: snap_term, forced: true },
        Message::Snapshot { term, index, snap_term, configured: Some(Box::new(configured())) },
        Message::TimeoutNow { term },
        Message::Removed { index: coracle_base::Index(38), commit: index, term: snap_term },
    ]
}

fn key() -> Key {
    Key { index: coracle_base::Index(40), term: Term(5), bytes: 600_000, crc: 0xC0AC1E }
}

fn offer() -> Offer {
    let configured = Some(Box::new(configured()));
    Offer { raft_term: Term(6), key: key(), live: 3, state_only: false, configured }
}

fn wants() -> [Want; 2] {
    let chunks = Part::Chunks { next: 1, end: 3 };
    [chunks, Part::Live { next: coracle_base::Index(17) }].map(|part| Want { key: key(), part })
}

fn envelope_2() -> Vec<u8> {
    let mut builder = Builder::default();
    for message in messages() {
        builder.push(Kind::Raft, GroupId(9), false, |out| message.encode(out), |_| {});
    }
    builder.push(Kind::Offer, GroupId(9), false, |out| offer().encode(out), |_| {});
    for want in wants() {
        builder.push(Kind::Want, GroupId(9), false, |out| want.encode(out), |_| {});
    }
    let chunk = Chunk { key: key(), number: 2 };
    builder.push(Kind::Chunk, GroupId(9), false, |out| chunk.encode(out), |out| out.put(b"a chunk"));
    let live = Live { key: key(), from: coracle_base::Index(17), next: None };
    builder.push(Kind::Live, GroupId(9), false, |out| live.encode(out), |out| out.put(&run()));
    let mut out = Vec::new();
    builder.take(12, |head, tail| frame::encode(FrameKind::Envelope, 13, head, tail, &mut out));
    out
}

#[test]
fn the_hello_of_version_2_with_places_is_understood() {
    let bytes = kept(2, "hello.hex", || framed(FrameKind::Hello, &hello_with_places().encode()));
    let (frame, _) = Frame::parse(&bytes).unwrap().unwrap();
    assert_eq!(Hello::decode(frame.head), Ok(hello_with_places()));
}

#[test]
fn the_envelope_of_version_2_is_understood() {
    let bytes = kept(2, "envelope.hex", envelope_2);
    let (frame, _) = Frame::parse(&bytes).unwrap().unwrap();
    let mut pieces = Pieces::new(frame.head, frame.tail).unwrap();
    for message in messages() {
        let piece = pieces.next().unwrap().unwrap();
        assert_eq!(piece.kind, Kind::Raft);
        assert_eq!(Message::decode(&mut Reader::new(piece.fields)).unwrap(), message);
    }
    let mut next = |kind: Kind| {
        let piece = pieces.next().unwrap().unwrap();
        assert_eq!((piece.kind, piece.group), (kind, GroupId(9)));
        piece
    };
    assert_eq!(Offer::decode(next(Kind::Offer).fields), Ok(offer()));
    assert_eq!(wants().map(|_| Want::decode(next(Kind::Want).fields).unwrap()), wants());
    let chunk = next(Kind::Chunk);
    assert_eq!(Chunk::decode(chunk.fields), Ok(Chunk { key: key(), number: 2 }));
    assert_eq!(chunk.payload, b"a chunk");
    let live = next(Kind::Live);
    assert_eq!(Live::decode(live.fields), Ok(Live { key: key(), from: coracle_base::Index(17), next: None }));
    assert_eq!(live.payload, run());
    assert_eq!(pieces.next(), Ok(None));
}

/// From a node that has heard of the receiver.
fn hello_with_mark() -> Hello {
    let heard = Some(Mark { incarnation: 11, epoch: 5, boot: 0xB007, seq: 70_000 });
    Hello { version_max: 4, boot: 0xF00D, heard, ..hello() }
}

fn recollection() -> Message {
    // What is durable comes from a peer's bytes only: here they are.
    let mut bytes = vec![1, 17, 3, 6, 40, 5, 6];
    let members = Members::of_voters([NodeId(1), NodeId(2), NodeId(3)]);
    Configured { index: coracle_base::Index(9), members }.encode(&mut bytes);
    configured().encode(&mut bytes);
    Message::decode(&mut Reader::new(&bytes)).unwrap()
}

fn envelope_4() -> Vec<u8> {
    let mut builder = Builder::default();
    for message in [Message::Recall { round: 3 }, recollection()] {
        builder.push(Kind::Raft, GroupId(9), false, |out| message.encode(out), |_| {});
    }
    builder.push(Kind::Durable, GroupId(0), true, |out| out.put_u64(70_001), |_| {});
    let mut out = Vec::new();
    builder.take(12, |head, tail| frame::encode(FrameKind::Envelope, 13, head, tail, &mut out));
    out
}

#[test]
fn the_hello_of_version_4_with_a_mark_is_understood() {
    let bytes = kept(4, "hello.hex", || framed(FrameKind::Hello, &hello_with_mark().encode()));
    let (frame, _) = Frame::parse(&bytes).unwrap().unwrap();
    assert_eq!(Hello::decode(frame.head), Ok(hello_with_mark()));
}

#[test]
fn the_envelope_of_version_4_is_understood() {
    let bytes = kept(4, "envelope.hex", envelope_4);
    let (frame, _) = Frame::parse(&bytes).unwrap().unwrap();
    let mut pieces = Pieces::new(frame.head, frame.tail).unwrap();
    for message in [Message::Recall { round: 3 }, recollection()] {
        let piece = pieces.next().unwrap().unwrap();
        assert_eq!((piece.kind, piece.group), (Kind::Raft, GroupId(9)));
        assert_eq!(Message::decode(&mut Reader::new(piece.fields)).unwrap(), message);
    }
    let piece = pieces.next().unwrap().unwrap();
    assert_eq!((piece.kind, piece.fields), (Kind::Durable, &70_001u64.to_le_bytes()[..]));
    assert_eq!(pieces.next(), Ok(None));
}
