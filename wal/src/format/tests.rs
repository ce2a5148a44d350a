//! Golden bytes of every structure, and what decoders do with bytes that nobody wrote.
//!
//! The golden files are hexadecimal, 32 bytes a line. After a deliberate change of format, which is a new version, write
//! the new ones beside the old.

use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunHeader, ShardId, Term};
use proptest::prelude::*;

use super::batch::{BATCH_HEADER_BYTES, BatchHead, FLAG_MARK, RootHint};
use super::file_index::{BlockWriter, Directory, IndexPlace, IndexedFile, RunKey, put_list};
use super::head::{Cut, Head, HeadCopy, Prev};
use super::page::{Begin, Extent, FileEntry, Page, Part, Piece, Root, SnapshotFile, SnapshotPlace};
use super::record::{self, IndexRange, Mark, Moved, Record, RecordError, RecordKind, SnapshotRef};
use super::segment::{SegmentCopy, SegmentHead, SegmentRun, Trailer, put_index};
use super::{Position, SEGMENT, Uuid};
use crate::config::Identity;
use crate::groups::Extents;
use crate::read::IndexRun;

const UUID: Uuid = Uuid(0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF);

fn hex(bytes: &[u8]) -> String {
    let lines =
        bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_golden(bytes: &[u8], golden: &str) {
    assert_eq!(hex(bytes), golden.trim());
}

fn head() -> Head {
    Head {
        identity: Identity { cluster: 0xC1C2, node: NodeId(2), incarnation: 3, shard: ShardId(4), shards: 5 },
        window: 4,
        file_no: 7,
        uuid: UUID,
        boot_epoch: 6,
        first_seq: 99,
        file_bytes: 1 << 27,
        prev: Some(Prev {
            file_no: 5,
            uuid: Uuid(0x55),
            cut: Some(Cut { end: 12_288, end_seq: 94, end_chain: 0xCAFE, suspect: true }),
        }),
    }
}

fn entries() -> EntryBatch {
    let mut entries = EntryBatch::new();
    entries.push(8, EntryKind::Command, b"hello").unwrap();
    entries.stamp(Term(3), 1_700_000_000_123);
    entries
}

fn put_run(out: &mut Vec<u8>) {
    put_run_of(entries().bytes(), out);
}

fn put_run_of(body: &[u8], out: &mut Vec<u8>) {
    let header = RunHeader {
        group: GroupId(11),
        accepted_term: Term(4),
        prev_index: Index(20),
        prev_term: Term(2),
        count: 1,
        body_bytes: body.len() as u32,
    };
    record::put_header(RecordKind::Run, false, header.encoded_bytes(), out);
    header.encode_run(&[body], out);
}

fn put_state(out: &mut Vec<u8>) {
    record::put_header(RecordKind::State, true, 8 + 6, out);
    out.put_u64(11);
    out.put(b"term 4");
}

fn snapshot(live: Vec<IndexRange>) -> SnapshotRef<'static> {
    SnapshotRef { group: GroupId(11), index: Index(20), term: Term(2), live, bytes: b"state" }
}

fn ranges() -> Vec<IndexRange> {
    vec![IndexRange { first: Index(3), count: 1 }, IndexRange { first: Index(17), count: 2 }]
}

fn put_live_snapshot(out: &mut Vec<u8>) {
    record::put_header(RecordKind::Snapshot, false, 32 + 32 + 5, out);
    record::put_snapshot(&snapshot(ranges()), out);
}

fn mark() -> Mark {
    let file = SnapshotFile { file_no: 4, bytes: 100_000, crc: 0xC3C };
    Mark { group: GroupId(11), index: Index(20), term: Term(2), file, live: ranges() }
}

fn put_mark(out: &mut Vec<u8>) {
    record::put_header(RecordKind::SnapshotMark, false, 48 + 32, out);
    record::put_mark(&mark(), out);
}

fn put_place(out: &mut Vec<u8>) {
    let at = out.len();
    put_run(out);
    out[at] = RecordKind::Place as u8;
}

fn moved() -> Moved {
    Moved { group: GroupId(11), from: 6, to: SEGMENT | 2, ranges: ranges() }
}

fn put_moved(out: &mut Vec<u8>) {
    record::put_header(RecordKind::Moved, false, 32 + 32, out);
    record::put_moved(&moved(), out);
}

fn put_deleted(out: &mut Vec<u8>) {
    record::put_header(RecordKind::Deleted, false, 8, out);
    out.put_u64(11);
}

fn put_snapshot(out: &mut Vec<u8>) {
    record::put_header(RecordKind::Snapshot, false, 32 + 5, out);
    record::put_snapshot(&snapshot(vec![]), out);
}

fn page() -> Page {
    let part = Part {
        group: GroupId(11),
        suspect: true,
        state_lost: false,
        state: b"term 4".to_vec(),
        accepted_term: Term(4),
        base_index: Index(20),
        base_term: Term(2),
        last: Index(22),
        snapshot: Some(SnapshotPlace::Inline { at: Position { file_no: 6, offset: 8288 }, bytes: 5 }),
        terms: vec![(Index(21), Term(3))],
        extents: Extents::pack([
            Extent { file_no: 6, first: Index(21), count: 1, bytes: 128, is_placed: false },
            Extent { file_no: 7, first: Index(22), count: 1, bytes: 256, is_placed: false },
        ])
        .unwrap(),
        live: vec![Extent { file_no: SEGMENT | 2, first: Index(3), count: 1, bytes: 64, is_placed: false }],
        placed: vec![Extent { file_no: 7, first: Index(40), count: 2, bytes: 96, is_placed: true }],
        more: false,
    };
    Page { checkpoint: 9, page_no: 1, parts: vec![part] }
}

fn piece(file_no: u64) -> Piece {
    Piece { at: Position { file_no, offset: 8288 }, bytes: 300, crc: 0xC4C }
}

fn root() -> Root {
    Root {
        checkpoint: 9,
        boot_epoch: 6,
        begin: Begin { at: Position { file_no: 6, offset: 20_480 }, seq: 90, chain: 0xBEEF },
        page_count: 2,
        incomplete: false,
        files: vec![FileEntry { file_no: 6, uuid: Uuid(0x66), end: 65_536 }],
        kept: vec![[vec![piece(4), piece(5)], vec![piece(5)]]],
    }
}

fn put_page(out: &mut Vec<u8>) {
    let mut body = Vec::new();
    page().encode(&mut body);
    record::put_header(RecordKind::PackedPage, false, body.len(), out);
    out.put(&body);
}

fn put_root(out: &mut Vec<u8>) {
    let mut body = Vec::new();
    root().encode(&mut body);
    record::put_header(RecordKind::PagedRoot, false, body.len(), out);
    out.put(&body);
}

/// A whole batch around these records, without its padding: of version 1, as the golden files of the records are.
fn batch_of(put: fn(&mut Vec<u8>)) -> Vec<u8> {
    batch_of_version(1, put)
}

fn batch_of_version(version: u16, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut records = Vec::new();
    put(&mut records);
    let mut head = BatchHead {
        version,
        uuid_low: UUID.low(),
        seq: 99,
        self_off: 8192,
        boot_epoch: 6,
        payload_bytes: records.len() as u32,
        record_count: 1,
        flags: 0,
        durable_upto: 94,
        repeated_upto: 93,
        prev_chain: 0xCAFE,
        chain: 0,
        payload_crc: 0,
        root: RootHint::default(),
    };
    head.payload_crc = head.sum_of(&records, UUID.seed()).unwrap();
    let mut batch = head.encode(UUID.seed()).to_vec();
    batch.extend(records);
    batch
}

#[test]
fn golden_file_head() {
    let mut bytes = Vec::new();
    head().encode(&mut bytes);
    assert_eq!(bytes[..BLOCK_BYTES], bytes[BLOCK_BYTES..], "two equal copies");
    assert!(bytes[160..BLOCK_BYTES - 4].iter().all(|byte| *byte == 0));
    let golden = [&bytes[..160], &bytes[BLOCK_BYTES - 4..BLOCK_BYTES]].concat();
    assert_golden(&golden, include_str!("../../testdata/head-v2.hex"));
    assert_eq!(Head::decode(&bytes[..BLOCK_BYTES]), HeadCopy::Sound(Box::new(head())));
}

#[test]
fn a_file_head_of_version_1_is_read() {
    let golden = bytes_of_golden(include_str!("../../testdata/head-v1.hex"));
    let (fields, crc) = golden.split_at(160);
    let copy = [fields, &[0; BLOCK_BYTES - 164], crc].concat();
    assert_eq!(Head::decode(&copy), HeadCopy::Sound(Box::new(head())));
}

/// Runs, placed entries and another record after one another.
fn put_several(out: &mut Vec<u8>) {
    put_run(out);
    put_state(out);
    put_place(out);
    put_run(out);
}

#[test]
fn golden_batch_of_version_2() {
    let batch = batch_of_version(2, put_several);
    assert_golden(&batch, include_str!("../../testdata/batch-v2.hex"));
    let head = BatchHead::decode(&batch, UUID.seed(), UUID.low()).unwrap();
    assert!(head.payload_holds(&batch[BATCH_HEADER_BYTES..], UUID.seed()));
    let first = BatchHead { version: 1, ..head };
    assert!(!first.payload_holds(&batch[BATCH_HEADER_BYTES..], UUID.seed()), "the sums differ");
}

/// It was written whole: called torn, everything after it would be dropped.
#[test]
fn a_batch_with_an_entry_of_a_newer_kind_holds_though_the_run_is_not_understood() {
    let mut body = entries().bytes().to_vec();
    body[22] = 200;
    let batch = batch_of_version(2, |out| put_run_of(&body, out));
    let head = BatchHead::decode(&batch, UUID.seed(), UUID.low()).unwrap();
    let records = &batch[BATCH_HEADER_BYTES..];
    assert!(head.payload_holds(records, UUID.seed()));
    assert!(matches!(Record::read(&mut Reader::new(records)), Err(RecordError::Run(_))));
}

#[test]
fn a_batch_of_an_unknown_version_is_none() {
    for version in [0, 3] {
        let head =
            BatchHead { version, uuid_low: UUID.low(), seq: 1, ..BatchHead::default() }.encode(UUID.seed());
        assert_eq!(BatchHead::decode(&head, UUID.seed(), UUID.low()), None);
    }
}

#[test]
fn golden_batch_of_a_run() {
    assert_golden(&batch_of(put_run), include_str!("../../testdata/run-v1.hex"));
}

#[test]
fn golden_batch_of_a_state() {
    assert_golden(&batch_of(put_state), include_str!("../../testdata/state-v1.hex"));
}

#[test]
fn golden_batch_of_a_snapshot() {
    assert_golden(&batch_of(put_snapshot), include_str!("../../testdata/snapshot-v1.hex"));
}

#[test]
fn golden_batch_of_a_checkpoint_page() {
    assert_golden(&batch_of(put_page), include_str!("../../testdata/page-v3.hex"));
}

/// The records of a batch that an earlier version wrote.
fn records_of_golden(golden: &str) -> Vec<u8> {
    bytes_of_golden(golden).split_off(BATCH_HEADER_BYTES)
}

fn bytes_of_golden(golden: &str) -> Vec<u8> {
    let golden: String = golden.split_whitespace().collect();
    let byte = |at: usize| u8::from_str_radix(&golden[at..at + 2], 16).unwrap();
    (0..golden.len()).step_by(2).map(byte).collect()
}

/// A page of the first version had neither live entries nor the bytes of extents; one of the second had extents that were
/// not packed.
#[test]
fn pages_of_earlier_versions_are_understood() {
    let second = records_of_golden(include_str!("../../testdata/page-v2.hex"));
    assert!(matches!(Record::read(&mut Reader::new(&second)), Ok(Record::Page(found)) if found == page()));
    let first = records_of_golden(include_str!("../../testdata/page-v1.hex"));
    let mut expected = page();
    let part = &mut expected.parts[0];
    part.extents = Extents::pack(part.extents.iter().map(|extent| Extent { bytes: 0, ..extent })).unwrap();
    (part.live, part.placed) = (Vec::new(), Vec::new());
    let record = Record::read(&mut Reader::new(&first));
    assert!(matches!(record, Ok(Record::Page(found)) if found == expected));
}

/// A root of an earlier version named no pages.
#[test]
fn a_root_of_an_earlier_version_is_understood() {
    let bytes = records_of_golden(include_str!("../../testdata/root-v1.hex"));
    let expected = Root { kept: Vec::new(), ..root() };
    let record = Record::read(&mut Reader::new(&bytes));
    assert!(matches!(record, Ok(Record::Root(found)) if found == expected));
}

#[test]
fn packed_extents_that_are_not_ours_are_refused() {
    let extents = page().parts.remove(0).extents;
    let (first, packed) = (extents.first(), extents.packed().to_vec());
    assert_eq!(Extents::unpack(first, 2, &packed), Some(extents));
    assert_eq!(Extents::unpack(first, 1, &packed), None, "more bytes than extents");
    assert_eq!(Extents::unpack(first, 3, &packed), None);
    assert_eq!(Extents::unpack(Index(u64::MAX), 2, &packed), None, "beyond all indexes");
    let longer = [&[packed[0] | 0x80, 0][..], &packed[1..]].concat();
    assert_eq!(Extents::unpack(first, 2, &longer), None, "a number in more bytes than it takes");
    let empty = [&[0][..], &packed[1..]].concat();
    assert_eq!(Extents::unpack(first, 2, &empty), None, "an extent of nothing");
}

#[test]
fn golden_batches_of_what_outlives_its_log() {
    assert_golden(&batch_of(put_live_snapshot), include_str!("../../testdata/live-snapshot-v2.hex"));
    assert_golden(&batch_of(put_mark), include_str!("../../testdata/mark-of-snapshot-v2.hex"));
    assert_golden(&batch_of(put_place), include_str!("../../testdata/place-v2.hex"));
    assert_golden(&batch_of(put_moved), include_str!("../../testdata/moved-v2.hex"));
    assert_golden(&batch_of(put_deleted), include_str!("../../testdata/deleted-v2.hex"));
}

/// What was placed and lives on is told only where there is any: other pages are what they were.
#[test]
fn a_page_tells_which_live_entries_were_placed() {
    let extent =
        |first, is_placed| Extent { file_no: 7, first: Index(first), count: 1, bytes: 64, is_placed };
    let encoded = |live: Vec<Extent>| {
        let part = Part { base_index: Index(9), last: Index(9), live, ..Part::default() };
        let page = Page { checkpoint: 1, page_no: 0, parts: vec![part] };
        let mut body = Vec::new();
        page.encode(&mut body);
        assert_eq!(Page::decode(&body), Ok(page));
        body
    };
    let plain = encoded(vec![extent(1, false), extent(3, false)]);
    let placed = encoded(vec![extent(1, false), extent(3, true)]);
    let flags = 16 + 8;
    assert_eq!((plain[flags], placed[flags]), (0x60, 0xE0));
    let differing: Vec<usize> = (0..plain.len()).filter(|at| plain[*at] != placed[*at]).collect();
    assert_eq!(differing, [flags, plain.len() - 1]);
}

#[test]
fn a_snapshot_file_of_a_group_is_in_its_page() {
    let file = SnapshotFile { file_no: 9, bytes: 1 << 40, crc: 7 };
    let part = Part { snapshot: Some(SnapshotPlace::File(file)), ..Part::default() };
    let page = Page { checkpoint: 1, page_no: 0, parts: vec![part] };
    let mut body = Vec::new();
    page.encode(&mut body);
    assert_eq!(Page::decode(&body), Ok(page));
}

#[test]
fn ranges_out_of_order_are_refused() {
    for ranges in [[(5, 0), (6, 1)], [(5, 3), (7, 1)], [(5, 1), (5, 1)], [(5, 1), (u64::MAX, 1)]] {
        let ranges = ranges.map(|(first, count)| IndexRange { first: Index(first), count });
        let mut body = Vec::new();
        record::put_header(RecordKind::Moved, false, 32 + 32, &mut body);
        record::put_moved(&Moved { ranges: ranges.to_vec(), ..moved() }, &mut body);
        assert!(Record::read(&mut Reader::new(&body)).is_err(), "{ranges:?}");
    }
}

#[test]
fn golden_batch_of_a_checkpoint_root() {
    assert_golden(&batch_of(put_root), include_str!("../../testdata/root-v3.hex"));
}

fn put_file_index(out: &mut Vec<u8>) {
    let of = IndexedFile { file_no: 5, uuid: Uuid(0x55) };
    let run = |group, first, count, offset| IndexRun { group: GroupId(group), first, count, offset };
    let mut block = BlockWriter::new(of, 0);
    block.push(false, &run(11, 3, 2, 9000));
    block.push(false, &run(11, 5, 1, 8500));
    block.push(true, &run(4, 300, 1, 70_000));
    let (first, body) = block.finish().unwrap();
    let mut record = |kind, body: &[u8]| {
        record::put_header(kind, false, body.len(), out);
        out.extend_from_slice(body);
    };
    record(RecordKind::IndexBlock, &body);
    let mut directory = Vec::new();
    let placed = RunKey { is_placed: true, group: GroupId(4), index: Index(300) };
    Directory { of, blocks: vec![(first, piece(7)), (placed, piece(8))] }.encode(&mut directory);
    record(RecordKind::IndexDirectory, &directory);
    let mut list = Vec::new();
    put_list(&[IndexPlace { of, first_file: 7, directory: piece(8) }], &mut list);
    record(RecordKind::IndexList, &list);
}

#[test]
fn golden_records_of_a_file_index() {
    let mut records = Vec::new();
    put_file_index(&mut records);
    assert_golden(&records, include_str!("../../testdata/file-index-v4.hex"));
    let mut reader = Reader::new(&records);
    assert!(matches!(Record::read(&mut reader), Ok(Record::IndexBlock)));
    assert!(
        matches!(Record::read(&mut reader), Ok(Record::IndexDirectory(found, _)) if found.blocks.len() == 2)
    );
    assert!(matches!(Record::read(&mut reader), Ok(Record::IndexList(found)) if found.len() == 1));
    // A reader that does not know them skips them: none says that it must be understood.
    let mut at = 0;
    while at < records.len() {
        assert_eq!(records[at + 1], 0);
        at += 8 + u32::from_le_bytes(records[at + 4..at + 8].try_into().unwrap()) as usize;
    }
}

#[test]
fn a_root_says_that_the_log_is_incomplete() {
    let mut body = Vec::new();
    Root { incomplete: true, ..root() }.encode(&mut body);
    assert_eq!(Root::decode(&body), Ok(Root { incomplete: true, ..root() }));
}

#[test]
fn golden_marker() {
    let mut head =
        BatchHead { version: 1, seq: 7, uuid_low: UUID.low(), flags: FLAG_MARK, ..BatchHead::default() };
    assert_golden(&head.encode(UUID.seed()), include_str!("../../testdata/mark-v1.hex"));
    assert_eq!(head.batch_bytes(), BLOCK_BYTES as u64);
}

#[test]
fn a_batch_says_where_the_newest_root_lies() {
    let root = Position { file_no: 40, offset: 0x0102 * BLOCK_BYTES as u64 };
    let mut head = BatchHead {
        version: 2,
        seq: 7,
        uuid_low: UUID.low(),
        root: RootHint::new(43, root),
        ..BatchHead::default()
    };
    let bytes = head.encode(UUID.seed());
    assert_eq!(bytes[84..92], [3, 0, 0, 0, 2, 1, 0, 0]);
    let found = BatchHead::decode(&bytes, UUID.seed(), UUID.low()).unwrap();
    assert_eq!((found.root.at(43), found.root.at(2)), (Some(root), None));
    assert_eq!(BatchHead::default().root.at(43), None, "as batches were before");
    assert_eq!(RootHint::new(39, root), RootHint::default(), "it cannot lie ahead");
}

#[test]
fn records_come_back() {
    let mut bytes = Vec::new();
    let all = [put_run, put_state, put_snapshot, put_page, put_root, put_live_snapshot, put_mark, put_place];
    for put in all.into_iter().chain([put_moved as fn(&mut Vec<u8>), put_deleted]) {
        put(&mut bytes);
    }
    let mut reader = Reader::new(&bytes);
    let mut next = || Record::read(&mut reader).unwrap();
    assert!(matches!(next(), Record::Run(run) if run.body == entries().bytes()));
    assert!(matches!(next(), Record::State { group: GroupId(11), blob: b"term 4" }));
    let Record::Snapshot(snapshot) = next() else { panic!("a snapshot was written") };
    assert_eq!((snapshot.index, snapshot.term, snapshot.bytes), (Index(20), Term(2), &b"state"[..]));
    assert!(matches!(next(), Record::Page(found) if found == page()));
    assert!(matches!(next(), Record::Root(found) if found == root()));
    assert!(matches!(next(), Record::Snapshot(found) if found.live == ranges() && found.bytes == b"state"));
    assert!(matches!(next(), Record::Mark(found) if found == mark()));
    assert!(matches!(next(), Record::Place(run) if run.body == entries().bytes()));
    assert!(matches!(next(), Record::Moved(found) if found == moved()));
    assert!(matches!(next(), Record::Deleted(GroupId(11))));
    assert!(reader.is_empty());
}

#[test]
fn an_unknown_record_is_skipped_unless_it_must_be_understood() {
    let must_understand = [99, 1, 0, 0, 2, 0, 0, 0, 1, 2];
    assert_eq!(Record::read(&mut Reader::new(&must_understand)).unwrap_err(), RecordError::Unknown(99));
    let mut reader = Reader::new(&[99, 0, 0, 0, 2, 0, 0, 0, 1, 2]);
    assert!(matches!(Record::read(&mut reader), Ok(Record::Skipped)));
    assert!(reader.is_empty());
}

proptest! {
    #[test]
    fn every_flip_in_a_batch_is_noticed(at in 0usize..4096, bit in 0u8..8, version in 1u16..3) {
        let mut batch = batch_of_version(version, put_several);
        batch.resize(BLOCK_BYTES, 0);
        batch[at] ^= 1 << bit;
        let holds = BatchHead::decode(&batch, UUID.seed(), UUID.low())
            .is_some_and(|head| head.payload_holds(&batch[BATCH_HEADER_BYTES..], UUID.seed()));
        prop_assert!(!holds);
    }

    #[test]
    fn every_flip_in_a_head_is_noticed(at in 0usize..4096, bit in 0u8..8) {
        let mut bytes = Vec::new();
        head().encode(&mut bytes);
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(Head::decode(&bytes[..BLOCK_BYTES]), HeadCopy::Bad);
    }

    #[test]
    fn a_batch_of_another_file_never_passes(uuid in any::<u128>()) {
        prop_assume!(uuid != UUID.0);
        let other = Uuid(uuid);
        prop_assert_eq!(BatchHead::decode(&batch_of(put_run), other.seed(), other.low()), None);
    }

    #[test]
    fn hostile_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..11) {
        let _ = Record::read(&mut Reader::new(&bytes));
        // The same as the body of each kind.
        let mut framed = vec![kind, 1, 0, 0];
        framed.extend((bytes.len() as u32).to_le_bytes());
        framed.extend(&bytes);
        let _ = Record::read(&mut Reader::new(&framed));
        let _ = BatchHead::decode(&bytes, 0, 0);
        let _ = Head::decode(&bytes);
    }

    #[test]
    fn every_cut_of_a_page_is_refused(cut in 0usize..1000) {
        let mut body = Vec::new();
        page().encode(&mut body);
        let cut = cut % body.len();
        prop_assert!(Page::decode(&body[..cut]).is_err());
    }
}

fn segment_head() -> SegmentHead {
    SegmentHead { identity: head().identity, file_no: SEGMENT | 9, uuid: UUID }
}

#[test]
fn golden_segment() {
    let mut head = Vec::new();
    segment_head().encode(&mut head);
    let runs = [
        SegmentRun { group: GroupId(11), first: 21, count: 3, offset: 8192 },
        SegmentRun { group: GroupId(12), first: 5, count: 1, offset: 8500 },
    ];
    let mut index = Vec::new();
    put_index(&runs, &mut index);
    let seed = UUID.seed();
    let index_crc = coracle_base::checksum::crc32c_from(seed, &index);
    let trailer = Trailer { file_no: SEGMENT | 9, index_at: 12_288, run_count: 2, index_crc };
    let block = trailer.encode(seed);
    // Of the blocks the beginning and the checksum.
    let bytes = [&head[..96], &head[4092..4096], &index, &block[..48], &block[4092..]].concat();
    assert_golden(&bytes, include_str!("../../testdata/segment-v1.hex"));
    assert_eq!(head[..4096], head[4096..]);
    assert_eq!(SegmentHead::decode(&head[..4096]), SegmentCopy::Sound(segment_head()));
    assert_eq!(Trailer::decode(&block, seed, SEGMENT | 9, 20_480), Some(trailer));
    assert_eq!(Trailer::decode(&block, seed, SEGMENT | 8, 20_480), None, "another segment's");
    assert_eq!(
        Trailer::decode(&block, seed, SEGMENT | 9, 12_300),
        None,
        "the index would lie beyond the end"
    );
    assert_eq!(trailer.decode_index(&index, seed), Some(runs.to_vec()));
}

#[test]
fn a_segment_of_a_newer_format_is_told() {
    let mut block = Vec::new();
    segment_head().encode(&mut block);
    block.truncate(BLOCK_BYTES);
    block[8..16].copy_from_slice(&[9, 0, 0, 0, 9, 0, 0, 0]);
    let crc = coracle_base::checksum::crc32c(&block[..BLOCK_BYTES - 4]).to_le_bytes();
    block[BLOCK_BYTES - 4..].copy_from_slice(&crc);
    assert_eq!(SegmentHead::decode(&block), SegmentCopy::Newer { version: 9 });
}
