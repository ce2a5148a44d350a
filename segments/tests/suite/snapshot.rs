//! Snapshot files on the fake disk: golden bytes, every flip noticed, and a crash at every step of writing one, naming it
//! in the log and removing its predecessor.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use coracle_base::checksum::{crc32c, mix64};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunHeader, ShardId, Term};
use coracle_io::disk::run;
use coracle_io::fake::{Completing, CrashLimits, Damage, FakeDisk, OpKind};
use coracle_io::{Disk, DiskDone, DiskError, DiskOk, DiskOp, FileMode};
use coracle_segments::snapshot::{
    CHUNK_BYTES, Progress, SnapshotError, SnapshotHead, SnapshotName, SnapshotReader, SnapshotWriter,
    Written, list,
};
use coracle_wal::{Config, Identity, SnapshotFile, Wal};

const DIR: &str = "shard-0/snapshots";
const TOKEN: u64 = 0x53 << 56;

fn identity() -> Identity {
    Identity { cluster: 0xC1, node: NodeId(2), incarnation: 3, shard: ShardId(0), shards: 1 }
}

fn head(file_no: u64, index: u64) -> SnapshotHead {
    SnapshotHead { identity: identity(), file_no, group: GroupId(1), index: Index(index), term: Term(1) }
}

fn disk() -> FakeDisk {
    let mut disk = FakeDisk::new(1);
    disk.make_dir(Path::new("shard-0")).unwrap();
    assert_eq!(list(&mut disk, Path::new(DIR)).unwrap(), Default::default());
    disk
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    (0..count as u64).map(|at| mix64(seed, at) as u8).collect()
}

/// Gives the writer more if it wants some.
fn feed(writer: &mut SnapshotWriter, disk: &mut FakeDisk, left: &mut Vec<u8>) {
    if writer.is_idle() {
        let room = writer.room().min(left.len());
        writer.body().extend(left.drain(..room));
        writer.write(disk, left.is_empty());
    }
}

fn completions(disk: &mut FakeDisk) -> Vec<DiskDone> {
    let mut done = Vec::new();
    disk.submit().unwrap();
    disk.completions(&mut done);
    done
}

fn write(disk: &mut FakeDisk, head: SnapshotHead, is_checkpoint: bool, bytes: &[u8]) -> Written {
    let mut writer = SnapshotWriter::begin(disk, Path::new(DIR), head, is_checkpoint, TOKEN);
    let mut left = bytes.to_vec();
    loop {
        for done in completions(disk) {
            assert_eq!(done.token, TOKEN);
            match writer.on_done(disk, done) {
                Written::Going => {}
                end => return end,
            }
        }
        feed(&mut writer, disk, &mut left);
        assert_eq!(disk.in_flight(), 1, "one operation at a time");
    }
}

type Read = Result<(SnapshotHead, SnapshotFile, Vec<u8>), SnapshotError>;

fn read(disk: &mut FakeDisk, name: SnapshotName) -> Read {
    let mut reader = SnapshotReader::begin(disk, Path::new(DIR), name, identity(), TOKEN);
    let mut all = Vec::new();
    loop {
        for done in completions(disk) {
            match reader.on_done(disk, done) {
                Progress::Going => {}
                Progress::Chunk(bytes) => {
                    all.extend(bytes);
                    reader.next(disk);
                }
                Progress::Whole(head, file) => return Ok((head, file, all)),
                Progress::Failed(error) => return Err(error),
            }
        }
    }
}

fn content(disk: &mut FakeDisk, path: &Path) -> Vec<u8> {
    let opened = run(disk, DiskOp::Open { path: path.to_owned(), mode: FileMode::Read }).unwrap().0;
    let DiskOk::Opened { file, bytes } = opened else { panic!("it opens") };
    let mut buf = disk.buffer(bytes as usize);
    buf.resize(bytes as usize);
    let buf = run(disk, DiskOp::Read { file, offset: 0, buf }).unwrap().1.unwrap();
    run(disk, DiskOp::Close { file }).unwrap();
    buf.to_vec()
}

#[test]
fn golden_snapshot_file() {
    let mut disk = disk();
    let Written::Whole(file) = write(&mut disk, head(7, 9), false, b"state") else { panic!("it is written") };
    assert_eq!(file, SnapshotFile { file_no: 7, bytes: 5, crc: crc32c(b"state") });
    let content = content(&mut disk, &Path::new(DIR).join("00000007.snap"));
    let hex = |at: usize, count: usize| -> String {
        content[at..at + count].iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(content.len(), 3 * BLOCK_BYTES);
    assert_eq!(&content[..8], b"CORSNAP1");
    // Checksum, version and shard; cluster; node, incarnation; number, group; index, term.
    assert_eq!(hex(8, 8), "c937bb1f01000000");
    assert_eq!(hex(16, 16), "c1000000000000000000000000000000");
    assert_eq!(hex(32, 16), "02000000000000000300000000000000");
    assert_eq!(hex(48, 16), "07000000000000000100000000000000");
    assert_eq!(hex(64, 16), "09000000000000000100000000000000");
    let (chunk, end) = (BLOCK_BYTES, 2 * BLOCK_BYTES);
    assert_eq!(&content[chunk..chunk + 4], b"CHNK");
    // Checksum, number, bytes, the state.
    assert_eq!(hex(chunk + 4, 17), "1d8ed67900000000050000007374617465");
    assert_eq!(&content[end..end + 8], b"CORSNEND");
    // Checksum, chunks, bytes, checksum of the whole.
    assert_eq!(hex(end + 8, 20), "025c4058010000000500000000000000df68db66");
    for zeros in [80..chunk, chunk + 21..end, end + 28..content.len()] {
        assert!(content[zeros].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_was_written_is_read_back() {
    let mut disk = disk();
    let body = CHUNK_BYTES - 16;
    let counts =
        [1, BLOCK_BYTES - 16, BLOCK_BYTES - 15, body - 1, body, body + 1, 3 * body, 3 * body + BLOCK_BYTES];
    for (file_no, count) in (1..).zip(counts) {
        let state = bytes(count, file_no);
        let Written::Whole(file) = write(&mut disk, head(file_no, 5), false, &state) else {
            panic!("{count}")
        };
        let name = SnapshotName::Snapshot { file_no };
        assert_eq!(read(&mut disk, name).unwrap(), (head(file_no, 5), file, state), "{count} bytes");
    }
    let checkpoint =
        SnapshotName::Checkpoint { file_no: 9, group: GroupId(1), index: Index(5), term: Term(1) };
    assert!(matches!(write(&mut disk, head(9, 5), true, b"c"), Written::Whole(_)));
    assert_eq!(read(&mut disk, checkpoint).unwrap().2, b"c");
    let listing = list(&mut disk, Path::new(DIR)).unwrap();
    assert_eq!((listing.names.len(), listing.highest), (9, 9));
    assert_eq!(listing.names[8], checkpoint);
}

#[test]
fn every_changed_byte_is_noticed() {
    let mut good = disk();
    write(&mut good, head(1, 5), false, &bytes(5000, 3));
    let path = Path::new(DIR).join("00000001.snap");
    let bytes = content(&mut good, &path).len() as u64;
    assert_eq!(bytes, 4 * BLOCK_BYTES as u64);
    for offset in 0..bytes {
        let bit = (offset % 8) as u8;
        assert!(good.corrupt(&path, offset, Damage::FlipBit { bit }));
        match read(&mut good, SnapshotName::Snapshot { file_no: 1 }) {
            Err(SnapshotError::Damaged { path: named, .. }) => assert_eq!(named, path),
            other => panic!("a flip at {offset} of {bytes}: {other:?}"),
        }
        good.corrupt(&path, offset, Damage::FlipBit { bit });
    }
    assert!(read(&mut good, SnapshotName::Snapshot { file_no: 1 }).is_ok());
}

#[test]
fn a_file_of_another_name_or_another_node_is_refused() {
    let mut disk = disk();
    write(&mut disk, head(1, 5), false, b"state");
    let path = |name: &str| Path::new(DIR).join(name);
    let (from, to) = (path("00000001.snap"), path("00000002.snap"));
    run(&mut disk, DiskOp::Rename { from, to }).unwrap();
    let damage = |disk: &mut FakeDisk, file_no| match read(disk, SnapshotName::Snapshot { file_no }) {
        Err(SnapshotError::Damaged { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(damage(&mut disk, 2), "its header and its name differ");
    assert_eq!(damage(&mut disk, 1), "it is missing");
    let foreign = SnapshotHead { identity: Identity { incarnation: 4, ..identity() }, ..head(3, 5) };
    write(&mut disk, foreign, false, b"state");
    assert_eq!(damage(&mut disk, 3), "it is of another cluster, node, incarnation or shard");
    disk.fail_next(OpKind::Read, None, 5);
    assert!(matches!(
        read(&mut disk, SnapshotName::Snapshot { file_no: 3 }),
        Err(SnapshotError::Disk(DiskError::Failed { .. }))
    ));
}

#[test]
fn a_file_that_fails_or_is_not_wanted_leaves_nothing_behind() {
    for kind in [OpKind::Open, OpKind::Write, OpKind::Sync, OpKind::Close, OpKind::Rename] {
        let mut disk = disk();
        disk.fail_next(kind, None, 28);
        assert!(matches!(write(&mut disk, head(1, 5), false, b"state"), Written::Gone(Some(_))), "{kind:?}");
        let left = list(&mut disk, Path::new(DIR)).unwrap();
        assert!(left.names.is_empty() && left.unfinished.is_empty(), "{kind:?}: {left:?}");
    }
    for wait in 0..3 {
        let mut disk = disk();
        let mut writer = SnapshotWriter::begin(&mut disk, Path::new(DIR), head(1, 5), false, TOKEN);
        let (mut left, mut end) = (bytes(900_000, 1), None);
        for turn in 0..20 {
            for done in completions(&mut disk) {
                match writer.on_done(&mut disk, done) {
                    Written::Going => {}
                    other => end = Some(other),
                }
            }
            if turn == wait {
                writer.abandon(&mut disk);
            }
            feed(&mut writer, &mut disk, &mut left);
        }
        assert_eq!(end, Some(Written::Gone(None)), "abandoned in turn {wait}");
        assert!(list(&mut disk, Path::new(DIR)).unwrap().unfinished.is_empty());
    }
}

#[test]
fn a_machine_that_crashes_ends_a_writer() {
    let mut disk = disk();
    let mut writer = SnapshotWriter::begin(&mut disk, Path::new(DIR), head(1, 5), false, TOKEN);
    disk.crash_after(0);
    let mut ends = Vec::new();
    for _ in 0..10 {
        let mut done = Vec::new();
        let _ = disk.submit();
        disk.completions(&mut done);
        ends.extend(done.into_iter().map(|one| writer.on_done(&mut disk, one)));
    }
    assert_eq!(ends.last(), Some(&Written::Gone(Some(DiskError::Crashed))), "{ends:?}");
}

/// A log with a group of twenty entries.
fn log(disk: &mut FakeDisk) -> Wal {
    let (mut wal, _) = Wal::open(disk, wal_config(), identity()).unwrap();
    let mut batch = EntryBatch::new();
    for tag in 0..20 {
        batch.push(tag, EntryKind::Command, b"command").unwrap();
    }
    batch.stamp(Term(1), 0);
    let header = RunHeader {
        group: GroupId(1),
        accepted_term: Term(1),
        prev_index: Index(0),
        prev_term: Term(0),
        count: 20,
        body_bytes: batch.bytes().len() as u32,
    };
    wal.append(&header, &[batch.bytes()]);
    wal
}

fn wal_config() -> Config {
    Config { file_bytes: 64 * 1024, ..Config::new("shard-0", 5) }
}

const LIMITS: CrashLimits = CrashLimits { units_all: 4, sectors_all: 6, tears: 3, sample: 4 };

/// Images tried, and in how many of them the log named which file.
#[derive(Debug, Default)]
struct Tally {
    images: u64,
    named: [u64; 3],
}

/// What the log says of the snapshot after a crash is true: nothing was released, or the file that it names is there.
fn check(disk: &FakeDisk, tally: &mut Tally) -> Result<(), String> {
    let mut disk = disk.clone();
    let opened = Wal::open(&mut disk, wal_config(), identity());
    let (_, recovery) = opened.map_err(|error| error.to_string())?;
    tally.images += 1;
    let Some(group) = recovery.groups.first() else { return Ok(()) };
    let Some(file) = group.snapshot_file else {
        let is_whole = group.first == Index(1);
        return if is_whole { Ok(()) } else { Err(format!("released without a snapshot: {group:?}")) };
    };
    let name = SnapshotName::Snapshot { file_no: file.file_no };
    let (head, found, _) = read(&mut disk, name).map_err(|error| error.to_string())?;
    tally.named[file.file_no as usize] += 1;
    if found == file && head.index == group.first.prev() {
        return Ok(());
    }
    Err(format!("the log names {file:?} at {}, the file is {found:?} of {head:?}", group.first.prev()))
}

/// One operation of log or writer completes, and every crash is tried. False if there was none.
fn crash_at_next_step(
    disk: &mut FakeDisk,
    wal: &mut Wal,
    mut on_ours: impl FnMut(&mut FakeDisk, &mut Wal, DiskDone),
    tally: &mut Tally,
) -> Result<bool, String> {
    wal.submit(disk, 0).unwrap();
    disk.submit().unwrap();
    if disk.flights().is_empty() {
        return Ok(false);
    }
    disk.complete(0);
    let mut done = Vec::new();
    disk.completions(&mut done);
    for one in done {
        if Wal::owns(one.token) { wal.on_done(disk, one).unwrap() } else { on_ours(disk, wal, one) }
    }
    for image in disk.crash_images(LIMITS) {
        check(&image, tally).map_err(|error| format!("{error} ({})", image.story()))?;
    }
    Ok(true)
}

#[test]
fn no_crash_leaves_a_log_that_names_a_file_that_is_not_there() {
    let mut disk = disk();
    let mut wal = log(&mut disk);
    disk.set_completing(Completing::Manual);
    let mut tally = Tally::default();
    for (file_no, index) in [(1, 8), (2, 15)] {
        let mut writer = SnapshotWriter::begin(&mut disk, Path::new(DIR), head(file_no, index), false, TOKEN);
        let (mut left, mut marked) = (bytes(300_000, file_no), None);
        loop {
            let on_ours = |disk: &mut FakeDisk, wal: &mut Wal, done| {
                if let Written::Whole(file) = writer.on_done(disk, done) {
                    marked = Some(wal.mark_snapshot(GroupId(1), Index(index), Term(1), &[], file));
                }
            };
            let more = crash_at_next_step(&mut disk, &mut wal, on_ours, &mut tally).unwrap();
            feed(&mut writer, &mut disk, &mut left);
            if !more && disk.in_flight() == 0 {
                break;
            }
        }
        assert!(wal.durable().covers(marked.expect("the file was written")));
        // Only now may the older one go.
        if file_no == 2 {
            let path = SnapshotName::Snapshot { file_no: 1 }.path(Path::new(DIR));
            disk.start(TOKEN, DiskOp::Unlink { path });
            while crash_at_next_step(&mut disk, &mut wal, |_, _, _| {}, &mut tally).unwrap() {}
        }
    }
    println!("{tally:?}");
    assert!(tally.images > 300 && tally.named[1] > 50 && tally.named[2] > 2, "{tally:?}");
}

/// The same check notices a mark that does not wait for its file.
#[test]
fn a_mark_before_its_file_is_caught() {
    let mut disk = disk();
    let mut wal = log(&mut disk);
    disk.set_completing(Completing::Manual);
    let file = SnapshotFile { file_no: 1, bytes: 3000, crc: crc32c(&bytes(3000, 1)) };
    wal.mark_snapshot(GroupId(1), Index(8), Term(1), &[], file);
    let caught = (0..20)
        .any(|_| crash_at_next_step(&mut disk, &mut wal, |_, _, _| {}, &mut Tally::default()).is_err());
    assert!(caught);
}
