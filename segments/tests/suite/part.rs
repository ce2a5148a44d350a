//! Another member's snapshot, a chunk at a time: whatever an earlier process left of it is gone on with as far as it is
//! sound, and what comes out is the snapshot or nothing.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use coracle_base::checksum::{crc32c, mix64};
use coracle_base::{GroupId, Index, NodeId, ShardId, Term};
use coracle_io::fake::{CrashPolicy, Damage, FakeDisk};
use coracle_io::{Disk, DiskDone};
use coracle_segments::snapshot::{
    CHUNK_BODY_BYTES, CHUNK_BYTES, ChunkRead, ChunkReader, PartName, SnapshotHead, SnapshotWriter, Written,
    chunks_of, list,
};
use coracle_wal::{Identity, SnapshotFile};

const DIR: &str = "shard-0/snapshots";
const TOKEN: u64 = 0x53 << 56;
const CHUNKS: usize = 4;

fn identity() -> Identity {
    Identity { cluster: 0xC1, node: NodeId(2), incarnation: 3, shard: ShardId(0), shards: 1 }
}

fn state() -> Vec<u8> {
    (0..(CHUNKS * CHUNK_BODY_BYTES) as u64 - 1000).map(|at| mix64(7, at / 64) as u8).collect()
}

fn part(state: &[u8]) -> PartName {
    let whole = SnapshotFile { file_no: 5, bytes: state.len() as u64, crc: crc32c(state) };
    PartName { group: GroupId(1), index: Index(9), term: Term(2), whole }
}

fn head() -> SnapshotHead {
    SnapshotHead { identity: identity(), file_no: 5, group: GroupId(1), index: Index(9), term: Term(2) }
}

fn disk() -> FakeDisk {
    let mut disk = FakeDisk::new(1);
    disk.make_dir(Path::new("shard-0")).unwrap();
    assert_eq!(list(&mut disk, Path::new(DIR)).unwrap(), Default::default());
    disk
}

fn completions(disk: &mut FakeDisk) -> Vec<DiskDone> {
    let mut done = Vec::new();
    disk.submit().unwrap();
    disk.completions(&mut done);
    done
}

/// Goes on until the writer wants bytes, or ends.
fn settle(writer: &mut SnapshotWriter, disk: &mut FakeDisk) -> Option<Written> {
    while !writer.is_idle() {
        for done in completions(disk) {
            match writer.on_done(disk, done) {
                Written::Going => {}
                end => return Some(end),
            }
        }
    }
    None
}

fn begin(disk: &mut FakeDisk, state: &[u8]) -> SnapshotWriter {
    let mut writer = SnapshotWriter::receive(disk, Path::new(DIR), head(), part(state), TOKEN);
    assert_eq!(settle(&mut writer, disk), None);
    writer
}

/// Feeds chunks from where it is, at most `most`, and ends it when it has all.
fn feed(writer: &mut SnapshotWriter, disk: &mut FakeDisk, state: &[u8], most: usize) -> Option<Written> {
    let first = writer.chunks() as usize;
    for chunk in state.chunks(CHUNK_BODY_BYTES).skip(first).take(most) {
        writer.put_chunk(disk, chunk);
        assert_eq!(settle(writer, disk), None);
    }
    let judged = writer.judge()?;
    assert!(judged, "all of it is there, and it is not what it should be");
    writer.write(disk, true);
    settle(writer, disk)
}

/// The chunks of the file, read one by one in an order of their own.
fn chunks(disk: &mut FakeDisk, file: SnapshotFile) -> Result<Vec<u8>, String> {
    let mut reader = ChunkReader::begin(disk, Path::new(DIR), head(), file, TOKEN);
    let count = chunks_of(file.bytes);
    let mut found = vec![Vec::new(); count as usize];
    let mut order: Vec<u64> = (0..count).collect();
    order.sort_by_key(|number| mix64(1, *number));
    loop {
        for done in completions(disk) {
            match reader.on_done(disk, done) {
                ChunkRead::Going | ChunkRead::Ready => {}
                ChunkRead::Chunk(bytes) => found[order.pop().unwrap() as usize] = bytes,
                ChunkRead::Failed(error) => return Err(error.to_string()),
            }
        }
        match order.last() {
            None => break,
            Some(number) => reader.read(disk, *number),
        }
    }
    assert!(reader.close(disk));
    Ok(found.concat())
}

#[test]
fn a_part_is_gone_on_with_after_each_chunk() {
    let state = state();
    for before in 0..=CHUNKS {
        let mut disk = disk();
        let mut writer = begin(&mut disk, &state);
        for chunk in state.chunks(CHUNK_BODY_BYTES).take(before) {
            writer.put_chunk(&mut disk, chunk);
            assert_eq!(settle(&mut writer, &mut disk), None);
        }
        writer.keep(&mut disk);
        assert_eq!(settle(&mut writer, &mut disk), Some(Written::Kept));
        assert_eq!(list(&mut disk, Path::new(DIR)).unwrap().parts, [part(&state)]);

        let mut writer = begin(&mut disk, &state);
        assert_eq!(writer.chunks(), before as u64);
        let Some(Written::Whole(file)) = feed(&mut writer, &mut disk, &state, CHUNKS) else {
            panic!("{before}")
        };
        assert_eq!(file, part(&state).whole);
        let listed = list(&mut disk, Path::new(DIR)).unwrap();
        assert_eq!((listed.names.len(), listed.parts.len()), (1, 0));
        assert!(chunks(&mut disk, file).unwrap() == state, "other bytes");
    }
}

#[test]
fn of_a_damaged_part_only_what_comes_before_the_damage_is_kept() {
    let state = state();
    for (offset, kept) in
        [(100, 0), (5000, 0), (4096 + CHUNK_BYTES as u64 + 9, 1), (4096 + 2 * CHUNK_BYTES as u64, 2)]
    {
        let mut disk = disk();
        let mut writer = begin(&mut disk, &state);
        assert_eq!(feed(&mut writer, &mut disk, &state, 3), None);
        writer.keep(&mut disk);
        assert_eq!(settle(&mut writer, &mut disk), Some(Written::Kept));
        let path: PathBuf = part(&state).path(Path::new(DIR));
        assert!(disk.corrupt(&path, offset, Damage::FlipBit { bit: 3 }));
        let mut writer = begin(&mut disk, &state);
        assert_eq!(writer.chunks(), kept, "damaged at {offset}");
        let Some(Written::Whole(file)) = feed(&mut writer, &mut disk, &state, CHUNKS) else {
            panic!("{offset}")
        };
        assert!(chunks(&mut disk, file).unwrap() == state, "other bytes");
    }
}

#[test]
fn what_power_failure_leaves_is_a_part_that_goes_on_or_nothing() {
    let state = state();
    for seed in 0..24 {
        let mut disk = disk();
        let mut writer = begin(&mut disk, &state);
        assert_eq!(feed(&mut writer, &mut disk, &state, 1 + seed % 3), None);
        disk.crash(if seed % 2 == 0 { CrashPolicy::KEEP_ALL } else { CrashPolicy::LOSE_ALL });
        let mut writer = begin(&mut disk, &state);
        assert!(writer.chunks() <= 1 + seed as u64 % 3);
        let Some(Written::Whole(file)) = feed(&mut writer, &mut disk, &state, CHUNKS) else {
            panic!("{seed}")
        };
        disk.crash(CrashPolicy::LOSE_ALL);
        assert!(chunks(&mut disk, file).unwrap() == state, "a whole file is durable");
    }
}

#[test]
fn other_bytes_are_no_snapshot_and_a_damaged_chunk_is_not_handed_out() {
    let state = state();
    let mut disk = disk();
    let mut other = state.clone();
    other[300_000] ^= 1;
    let mut writer = begin(&mut disk, &state);
    for chunk in other.chunks(CHUNK_BODY_BYTES) {
        writer.put_chunk(&mut disk, chunk);
        assert_eq!(settle(&mut writer, &mut disk), None);
    }
    assert_eq!(writer.judge(), Some(false));
    writer.abandon(&mut disk);
    assert_eq!(settle(&mut writer, &mut disk), Some(Written::Gone(None)));
    assert_eq!(list(&mut disk, Path::new(DIR)).unwrap(), Default::default());

    let mut writer = begin(&mut disk, &state);
    let Some(Written::Whole(file)) = feed(&mut writer, &mut disk, &state, CHUNKS) else {
        panic!("it is written")
    };
    let path = Path::new(DIR).join("00000005.snap");
    assert!(disk.corrupt(&path, 4096 + CHUNK_BYTES as u64 + 700, Damage::FlipBit { bit: 0 }));
    assert!(chunks(&mut disk, file).unwrap_err().contains("checksum"));
}
