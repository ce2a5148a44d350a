//! The decoders of what other nodes send and of a directory's identity, as a fuzzer calls them: only with the feature
//! `fuzz`. Each takes any bytes, says why it refuses them, and panics if what it accepts does not come back from its own
//! encoder.

use coracle_base::GroupId;
use coracle_base::checksum::{crc32c, crc32c_from};
use coracle_base::codec::{Reader, Sink};
use coracle_raft::Message;

use crate::identity::Identity;
use crate::lineage::{Lineage, Mark};
use crate::shard::transfer::receive::live_runs;
use crate::shard::transfer::wire::{Chunk, Live, Offer, Want};
use crate::shard::{check_indexes, check_payload, check_replies};
use crate::transport::envelope::{Builder, Kind, Piece, Pieces, echo};
use crate::transport::frame::{self, FRAME_HEADER_BYTES, Frame};
use crate::transport::hello::Hello;

type Judged = Result<(), String>;

fn text(error: &impl ToString) -> String {
    error.to_string()
}

/// A stream of frames.
///
/// # Errors
/// Why the next one is none.
pub fn frames(bytes: &[u8]) -> Judged {
    let mut rest = bytes;
    while let Some((frame, length)) = Frame::parse(rest).map_err(|error| text(&error))? {
        let mut again = Vec::new();
        frame::encode(frame.kind, frame.seq, frame.head, frame.tail, &mut again);
        assert_eq!(again, rest[..length], "{frame:?}");
        rest = &rest[length..];
    }
    if rest.is_empty() { Ok(()) } else { Err("waits for more".into()) }
}

/// Makes lengths and checksum of the frame at the start right.
pub fn fix_frame(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().max(FRAME_HEADER_BYTES), 0);
    let body = bytes.len() - FRAME_HEADER_BYTES;
    let head = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]).min(body as u32);
    bytes[4..8].copy_from_slice(&(body as u32).to_le_bytes());
    bytes[8..12].copy_from_slice(&head.to_le_bytes());
    let head = &bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + head as usize];
    let crc = crc32c_from(crc32c(&bytes[..24]), head);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
}

/// An envelope, down to each message's own decoder: the length of its head (`u16`), its head, its tail.
///
/// # Errors
/// Why it, or a message in it, is none.
pub fn envelope(bytes: &[u8]) -> Judged {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Err("no length".into()) };
    let Some((head, tail)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else {
        return Err("no head".into());
    };
    let mut pieces = Pieces::new(head, tail).map_err(|error| text(&error))?;
    let (mut again, mut all) = (Builder::default(), Vec::new());
    while let Some(piece) = pieces.next().map_err(|error| text(&error))? {
        let is_checked = piece.kind == Kind::Raft;
        again.push(
            piece.kind,
            piece.group,
            is_checked,
            |out| out.put(piece.fields),
            |out| out.put(piece.payload),
        );
        all.push(piece);
    }
    let echoed = echo(head).map_err(|error| text(&error))?;
    again.take(echoed, |head, tail| {
        let mut pieces = Pieces::new(head, tail).expect("our own envelope");
        for piece in &all {
            assert_eq!(pieces.next(), Ok(Some(*piece)));
        }
        assert_eq!((pieces.next(), echo(head)), (Ok(None), Ok(echoed)));
    });
    all.into_iter().try_for_each(message)
}

fn message(piece: Piece<'_>) -> Judged {
    match piece.kind {
        Kind::Raft => {
            let message = Message::decode(&mut Reader::new(piece.fields)).map_err(|error| text(&error))?;
            check_payload(&message, piece).map(drop).map_err(|error| text(&error))
        }
        Kind::Forward => {
            let mut fields = Reader::new(piece.fields);
            let (_, count) = (fields.u64(), fields.u32().map_err(|error| text(&error))?);
            let entries = coracle_base::EntryBatch::decode(count, piece.payload.to_vec());
            entries.map(drop).map_err(|error| text(&error))
        }
        Kind::Query => Ok(()),
        Kind::Replies => check_replies(piece.payload).map_err(|error| text(&error)),
        Kind::WantIndexes | Kind::Indexes => {
            check_indexes(piece.kind, piece.payload).map_err(|error| text(&error))
        }
        Kind::Offer => Offer::decode(piece.fields).map(drop).map_err(|error| text(&error)),
        Kind::Want => Want::decode(piece.fields).map(drop).map_err(|error| text(&error)),
        Kind::Chunk => Chunk::decode(piece.fields).map(drop).map_err(|error| text(&error)),
        Kind::Live => {
            let live = Live::decode(piece.fields).map_err(|error| text(&error))?;
            live_runs(piece.group, &live, piece.payload).map(drop).map_err(|error| text(&error))
        }
        Kind::WantSnapshot | Kind::Durable => {
            Reader::new(piece.fields).u64().map(drop).map_err(|error| text(&error))
        }
    }
}

/// Answers to forwarded commands.
///
/// # Errors
/// Why they are none.
pub fn replies(bytes: &[u8]) -> Judged {
    check_replies(bytes).map_err(|error| text(&error))
}

/// The first frame of a connection.
///
/// # Errors
/// Why it is none.
pub fn hello(bytes: &[u8]) -> Judged {
    let hello = Hello::decode(bytes).map_err(|error| text(&error))?;
    let again = hello.encode();
    assert_eq!(Hello::decode(&again).as_ref(), Ok(&hello));
    Ok(())
}

/// The file that says whose a directory is.
///
/// # Errors
/// Why it is none.
pub fn identity(bytes: &[u8]) -> Judged {
    let identity = Identity::decode(bytes).map_err(|error| text(&error))?;
    let again = identity.encode();
    assert_eq!(Identity::decode(&again).map_err(|error| text(&error)).as_ref(), Ok(&identity));
    Ok(())
}

/// Makes an identity's checksum right, wherever its cluster ends.
pub fn fix_identity(bytes: &mut Vec<u8>) {
    const CLUSTER_COUNT_AT: usize = 8 + 4 + 8 + 8 + 2 + 16;
    bytes.resize(bytes.len().max(CLUSTER_COUNT_AT + 2), 0);
    let members = u16::from_le_bytes([bytes[CLUSTER_COUNT_AT], bytes[CLUSTER_COUNT_AT + 1]]);
    let covered = CLUSTER_COUNT_AT + 2 + 16 * usize::from(members % 20);
    bytes.resize(covered, 0);
    let crc = crc32c(bytes);
    bytes.put_u32(crc);
}

/// The file that says which boots a directory knows.
///
/// # Errors
/// Why it is none.
pub fn lineage(bytes: &[u8]) -> Judged {
    let lineage = Lineage::decode(bytes).map_err(|_| "damaged, or of a newer version")?;
    let again = lineage.encode();
    // A list of another version that this one can read is written as one of this version.
    let (versions, rest) = (8..12, 12..again.len() - 4);
    assert_eq!(again[rest.clone()], bytes[rest]);
    if again[versions.clone()] == bytes[versions] {
        assert_eq!(again, bytes[..again.len()]);
    }
    assert_eq!(Lineage::decode(&again), Ok(lineage));
    Ok(())
}

/// Makes its checksum right.
pub fn fix_lineage(bytes: &mut Vec<u8>) {
    let covered = bytes.len().saturating_sub(4);
    bytes.truncate(covered);
    let crc = crc32c(bytes);
    bytes.put_u32(crc);
}

/// An envelope as [`envelope`] takes it, with one message of each kind around a raft message and its payload.
pub fn sample_envelope(message: &Message, payload: &[u8]) -> Vec<u8> {
    let mut builder = Builder::default();
    builder.push(Kind::Raft, GroupId(5), false, |out| message.encode(out), |out| out.put(payload));
    let query = |out: &mut Vec<u8>| {
        out.put_u64(1);
        out.put_u8(1);
        out.put_u64(2);
    };
    builder.push(Kind::Query, GroupId(6), false, query, |out| out.put(b"what?"));
    let mut out = Vec::new();
    builder.take(3, |head, tail| {
        out.put_u16(head.len() as u16);
        out.put(head);
        out.put(tail);
    });
    out
}

/// A frame, a hello, an identity and a list of boots to begin with.
pub fn samples() -> [Vec<u8>; 4] {
    use crate::cluster::Cluster;
    use coracle_base::{NodeId, ShardId};
    let members = vec![(NodeId(1), 11), (NodeId(2), 12), (NodeId(3), 13)];
    let cluster = Some(Cluster::new(77, members));
    let identity = Identity { node: NodeId(2), incarnation: 12, shards: 1, cluster };
    let hello = Hello::of(&identity, ShardId(0), 4, crate::transport::hello::PROTOCOL).encode();
    let mut frame = Vec::new();
    frame::encode(frame::FrameKind::Hello, 0, &hello, b"", &mut frame);
    frame::encode(frame::FrameKind::Envelope, 1, &[0; 12], b"tail", &mut frame);
    let mut lineage = Lineage::default();
    (1..3).for_each(|epoch| lineage.begin(epoch, 100 + epoch, 10 * epoch));
    lineage.heard.push((NodeId(3), Mark { incarnation: 13, epoch: 1, boot: 5, seq: 9 }));
    [frame, hello, identity.encode(), lineage.encode()]
}
