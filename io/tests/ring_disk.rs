//! The real disk on a real directory: the suite that the simulated one passes too, then what only a kernel can do.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::disk::run;
use coracle_io::ring::{
    DiskOptions, PlainFiles, RealClock, Ring, RingDisk, RingOptions, RingPark, SharedRing,
};
use coracle_io::{BlockingRead, Buffer, Clock, Disk, DiskError, DiskOk, DiskOp, FileMode, Park, Strategy};
use tempfile::TempDir;

mod ring_suite;

use ring_suite::{close, exercise, open, pattern, read, run_all, write};

fn temp_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn ring() -> SharedRing {
    Ring::new(&RingOptions { queue: 64, buffers: vec![(256 * 1024, 4)] }).unwrap()
}

fn disk(ring: &SharedRing, root: &Path) -> RingDisk {
    RingDisk::open(ring, root, DiskOptions::default()).unwrap()
}

#[test]
fn the_real_disk_passes_the_suite_with_every_strategy() {
    for strategy in Strategy::ALL {
        let dir = temp_dir();
        // Missing directories are created.
        let root = dir.path().join("a/b");
        let mut disk = RingDisk::open(&ring(), &root, DiskOptions { lock: true, strategy }).unwrap();
        exercise(&mut disk);
    }
}

#[cfg(feature = "fake")]
#[test]
fn the_simulated_disk_passes_the_suite_too() {
    for seed in 0..20 {
        exercise(&mut coracle_io::fake::FakeDisk::new(seed));
    }
}

/// Four entries in the submission queue, sixteen in the completion queue, hundreds of operations.
#[test]
fn queues_that_overflow_lose_nothing() {
    let dir = temp_dir();
    let ring = Ring::new(&RingOptions { queue: 4, buffers: vec![(BLOCK_BYTES, 2)] }).unwrap();
    let mut disk = disk(&ring, dir.path());
    exercise(&mut disk);
    let (file, _) = open(&mut disk, "many", FileMode::Write);
    let block = BLOCK_BYTES as u64;
    for round in 0..3 {
        let writes = (0..300).map(|at| {
            let buf = pattern(&mut disk, 1, round * 1000 + at);
            DiskOp::Write { file, offset: at * block, buf }
        });
        let writes = writes.collect();
        assert!(run_all(&mut disk, writes).values().all(|done| done.result == Ok(DiskOk::Done)));
        for at in [0, 1, 150, 299] {
            let expected = pattern(&mut disk, 1, round * 1000 + at);
            assert!(read(&mut disk, file, at, 1).1[..] == expected[..], "block {at}");
        }
    }
}

/// Nobody waits and nothing more is started: then finished operations themselves are the reason to enter the kernel.
#[test]
fn completions_come_by_polling_alone() {
    let dir = temp_dir();
    let ring = Ring::new(&RingOptions { queue: 4, buffers: vec![(BLOCK_BYTES, 2)] }).unwrap();
    let mut disk = disk(&ring, dir.path());
    let (file, _) = open(&mut disk, "many", FileMode::Write);
    for at in 0..100 {
        let buf = pattern(&mut disk, 1, at);
        disk.start(at, DiskOp::Write { file, offset: at * BLOCK_BYTES as u64, buf });
    }
    let started_us = RealClock.now_us();
    let mut done = Vec::new();
    while disk.in_flight() > 0 {
        disk.submit().unwrap();
        disk.completions(&mut done);
        assert!(RealClock.now_us() - started_us < 10_000_000, "only {} of 100 came", done.len());
    }
    assert!(done.len() == 100 && done.iter().all(|done| done.result == Ok(DiskOk::Done)));
}

#[test]
fn a_directory_is_locked_as_long_as_its_disk_lives() {
    let dir = temp_dir();
    let ring = ring();
    let first = disk(&ring, dir.path());
    let refused = RingDisk::open(&ring, dir.path(), DiskOptions::default()).err();
    let root = dir.path().canonicalize().unwrap();
    assert_eq!(refused, Some(DiskError::InUse { path: root }));
    // Who only looks may look.
    let mut looking =
        RingDisk::open(&ring, dir.path(), DiskOptions { lock: false, ..Default::default() }).unwrap();
    assert_eq!(looking.list(Path::new("")).unwrap(), []);
    drop(first);
    drop(disk(&ring, dir.path()));
}

#[test]
fn two_disks_share_a_ring_and_keep_apart() {
    let (one_dir, two_dir, ring) = (temp_dir(), temp_dir(), ring());
    let (mut one, mut two) = (disk(&ring, one_dir.path()), disk(&ring, two_dir.path()));
    let (one_file, _) = open(&mut one, "file", FileMode::Write);
    let (two_file, _) = open(&mut two, "file", FileMode::Write);
    for (disk, file, seed) in [(&mut one, one_file, 1), (&mut two, two_file, 2)] {
        let buf = pattern(disk, 4, seed);
        disk.start(seed, DiskOp::Write { file, offset: 0, buf });
    }
    // One waits; the other's completion must be kept for it.
    let mut done = Vec::new();
    one.wait().unwrap();
    one.completions(&mut done);
    assert_eq!(done.pop().map(|done| done.token), Some(1));
    two.wait().unwrap();
    two.completions(&mut done);
    assert_eq!(done.pop().map(|done| done.token), Some(2));
    let expected = pattern(&mut two, 4, 2);
    assert!(read(&mut two, two_file, 0, 4).1[..] == expected[..]);
}

#[test]
fn paths_stay_within_the_directory() {
    let dir = temp_dir();
    let mut disk = disk(&ring(), &dir.path().join("disk"));
    for path in ["/etc/hostname", "../secret", "a/../../secret", "", "nul\0"] {
        let error = run(&mut disk, DiskOp::Open { path: path.into(), mode: FileMode::Write }).unwrap_err();
        assert!(matches!(error, DiskError::Failed { code: 22, op: "open", .. }), "{path}: {error}");
    }
    assert!(disk.list(Path::new("..")).is_err() && disk.make_dir(Path::new("../x")).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Kernel objects that nobody may write, not even root.
#[test]
fn permission_denied_is_told() {
    let root = Path::new("/sys/kernel");
    let mut disk = RingDisk::open(&ring(), root, DiskOptions { lock: false, ..Default::default() }).unwrap();
    let error =
        run(&mut disk, DiskOp::Open { path: "uevent_seqnum".into(), mode: FileMode::Write }).unwrap_err();
    assert_eq!(error, DiskError::Denied { path: "/sys/kernel/uevent_seqnum".into() });
}

#[test]
fn a_file_system_in_memory_is_not_called_durable() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return }; // no such file system here
    let open = |strategy| {
        let mut disk = RingDisk::open(&ring(), dir.path(), DiskOptions { lock: true, strategy }).unwrap();
        run(&mut disk, DiskOp::Open { path: "wal".into(), mode: FileMode::Durable })
    };
    for strategy in [Strategy::Direct, Strategy::DirectFsync, Strategy::Buffered, Strategy::Sync] {
        let error = open(strategy).unwrap_err();
        let DiskError::Unsupported { what, hint } = &error else { panic!("{error}") };
        assert!(what.contains("tmpfs") && hint.contains("`none`"), "{error}");
    }
    open(Strategy::None).unwrap();
    let options = DiskOptions { lock: true, strategy: Strategy::None };
    fs::remove_file(dir.path().join("wal")).unwrap();
    exercise(&mut RingDisk::open(&ring(), dir.path(), options).unwrap());
}

/// What an old kernel or a strange file system may leave behind: the size is not a multiple of the block.
#[test]
fn a_ragged_end_is_read_up_to_its_last_byte() {
    let dir = temp_dir();
    fs::write(dir.path().join("ragged"), vec![7; BLOCK_BYTES + 100]).unwrap();
    for strategy in Strategy::ALL {
        let mut disk = RingDisk::open(&ring(), dir.path(), DiskOptions { lock: true, strategy }).unwrap();
        let (file, bytes) = open(&mut disk, "ragged", FileMode::Read);
        assert_eq!(bytes as usize, BLOCK_BYTES + 100);
        let (bytes, buf) = read(&mut disk, file, 0, 4);
        assert_eq!(bytes, BLOCK_BYTES + 100);
        assert!(buf[..bytes].iter().all(|byte| *byte == 7));
    }
}

/// Else they would land in a directory that is not ours any more.
#[test]
fn a_dropped_disk_has_finished_its_writes() {
    let (dir, ring) = (temp_dir(), ring());
    let mut disk = disk(&ring, dir.path());
    let (file, _) = open(&mut disk, "file", FileMode::Write);
    for at in 0..32 {
        let buf = pattern(&mut disk, 1, at);
        disk.start(at, DiskOp::Write { file, offset: at * BLOCK_BYTES as u64, buf });
    }
    let expected: Vec<_> = (0..32).map(|at| pattern(&mut disk, 1, at)).collect();
    drop(disk);
    let written = fs::read(dir.path().join("file")).unwrap();
    assert!(written.chunks(BLOCK_BYTES).eq(expected.iter().map(|block| &block[..])));
}

/// Everything is dropped with many reads and writes in flight, some not even submitted. The kernel must be done with
/// each buffer before its memory is used for something else, and with each block before the next disk reads it.
#[test]
fn dropping_everything_mid_flight_corrupts_nothing() {
    const BLOCKS: u64 = 64;
    let dir = temp_dir();
    {
        let mut disk = disk(&ring(), dir.path());
        let (file, _) = open(&mut disk, "file", FileMode::Write);
        let buf = pattern(&mut disk, BLOCKS as usize, 0);
        write(&mut disk, file, 0, buf);
    }
    let mut generation = vec![0; BLOCKS as usize];
    for round in 1..=60 {
        let ring = ring();
        let mut disk = disk(&ring, dir.path());
        let (file, _) =
            open(&mut disk, "file", if round % 2 == 0 { FileMode::Durable } else { FileMode::Write });
        let before = read(&mut disk, file, 0, BLOCKS as usize).1;
        for (block, generation) in generation.iter_mut().enumerate() {
            let bytes = &before[block * BLOCK_BYTES..][..BLOCK_BYTES];
            *generation = block_generation(bytes, block, &[*generation, round - 1]);
        }
        for block in 0..BLOCKS {
            let offset = block * BLOCK_BYTES as u64;
            let mut buf =
                if block % 3 == 0 { disk.buffer(BLOCK_BYTES) } else { Buffer::with_capacity(BLOCK_BYTES) };
            buf.resize(BLOCK_BYTES);
            fill_block(&mut buf, block as usize, round);
            disk.start(block, DiskOp::Write { file, offset, buf });
            let mut buf = Buffer::with_capacity(16 * BLOCK_BYTES);
            buf.resize(16 * BLOCK_BYTES);
            disk.start(BLOCKS + block, DiskOp::Read { file, offset: 0, buf });
            if block == round % BLOCKS {
                disk.submit().unwrap();
            }
        }
        // With the disk goes the ring, or the ring lives on.
        let kept = (round % 3 == 0).then(|| ring.clone());
        drop(ring);
        drop(disk);
        // Memory that was just freed, if it was freed too early, is what we get here; nobody may write to it.
        let canaries: Vec<Vec<u64>> =
            (0..256).map(|_| vec![0x5a5a_5a5a_5a5a_5a5a; 16 * BLOCK_BYTES / 8]).collect();
        thread::yield_now();
        assert!(canaries.iter().flatten().all(|word| *word == 0x5a5a_5a5a_5a5a_5a5a), "round {round}");
        drop(kept);
    }
}

fn fill_block(buf: &mut [u8], block: usize, round: u64) {
    for (at, word) in buf.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(round << 32 | (block * BLOCK_BYTES / 8 + at) as u64).to_le_bytes());
    }
}

/// The round that wrote this block, which must be one of `allowed`, and must have written all of it.
fn block_generation(bytes: &[u8], block: usize, allowed: &[u64]) -> u64 {
    let mut expected = vec![0; BLOCK_BYTES];
    let found = allowed.iter().find(|round| {
        fill_block(&mut expected, block, **round);
        bytes == expected
    });
    *found.unwrap_or_else(|| panic!("block {block} is none of {allowed:?}"))
}

/// Every item is pushed while the parker may be awake, about to sleep or asleep. A lost wake-up shows as a park that
/// lasts until its timeout.
#[test]
fn no_wake_up_from_another_thread_is_lost() {
    const ITEMS: u64 = 20_000;
    const LOST_US: u64 = 10_000_000;
    let (pushed, taken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let ring = ring();
    let mut park = RingPark::new(&ring).unwrap();
    let other = {
        let (waker, pushed, taken) = (park.waker(), pushed.clone(), taken.clone());
        thread::spawn(move || {
            for item in 1..=ITEMS {
                pushed.store(item, Ordering::Relaxed);
                waker.wake();
                while taken.load(Ordering::Relaxed) < item {
                    // Alternately hot on the parker's heels and late enough for it to sleep.
                    if item % 3 == 0 { std::hint::spin_loop() } else { thread::yield_now() }
                }
            }
        })
    };
    let mut seen = 0;
    while seen < ITEMS {
        let started_us = RealClock.now_us();
        park.park(Some(LOST_US), &|| pushed.load(Ordering::Relaxed) == seen).unwrap();
        assert!(RealClock.now_us() - started_us < LOST_US, "the wake-up of item {} was lost", seen + 1);
        seen = pushed.load(Ordering::Relaxed);
        taken.store(seen, Ordering::Relaxed);
    }
    other.join().unwrap();
}

#[test]
fn a_park_ends_at_its_timeout() {
    let ring = ring();
    let mut park = RingPark::new(&ring).unwrap();
    let started_us = RealClock.now_us();
    park.park(Some(30_000), &|| true).unwrap();
    let slept_us = RealClock.now_us() - started_us;
    assert!((30_000..5_000_000).contains(&slept_us), "{slept_us}");
}

#[test]
fn a_park_ends_with_a_completion_and_submits_what_was_queued() {
    let dir = temp_dir();
    let ring = ring();
    let mut disk = disk(&ring, dir.path());
    let mut park = RingPark::new(&ring).unwrap();
    let (file, _) = open(&mut disk, "file", FileMode::Durable);
    for round in 0..50 {
        let buf = pattern(&mut disk, 1, round);
        disk.start(round, DiskOp::Write { file, offset: 0, buf });
        let mut done = Vec::new();
        while done.is_empty() {
            park.park(None, &|| true).unwrap();
            disk.completions(&mut done);
        }
        assert_eq!((done.len(), done[0].token), (1, round));
    }
}

#[test]
fn nobody_sleeps_on_work() {
    const LONG_US: u64 = 5_000_000;
    let dir = temp_dir();
    let ring = ring();
    let mut disk = disk(&ring, dir.path());
    let mut park = RingPark::new(&ring).unwrap();
    let started_us = RealClock.now_us();
    let asked = Cell::new(0);
    let busy = || {
        asked.set(asked.get() + 1);
        false
    };
    park.park(Some(LONG_US), &busy).unwrap();
    assert_eq!(asked.get(), 1);
    // An operation that failed at once has no completion of the kernel's.
    disk.start(1, DiskOp::Open { path: PathBuf::from("/outside"), mode: FileMode::Read });
    park.park(Some(LONG_US), &|| true).unwrap();
    let mut done = Vec::new();
    disk.completions(&mut done);
    // Nor is there one left of an operation that somebody waited for and did not fetch yet.
    disk.start(2, DiskOp::SyncDir { path: PathBuf::new() });
    disk.wait().unwrap();
    park.park(Some(LONG_US), &|| true).unwrap();
    disk.completions(&mut done);
    assert_eq!(done.iter().map(|done| done.token).collect::<Vec<_>>(), [1, 2]);
    assert!(RealClock.now_us() - started_us < LONG_US, "a park slept");
}

#[test]
fn completions_can_be_awaited_by_an_event_loop() {
    let dir = temp_dir();
    let ring = ring();
    let mut disk = disk(&ring, dir.path());
    let event = ring.borrow_mut().completion_event().unwrap();
    let (file, _) = open(&mut disk, "file", FileMode::Durable);
    let mut count = [0; 8];
    (&*event).read_exact(&mut count).unwrap(); // the open's
    for round in 0..20 {
        let buf = pattern(&mut disk, 1, round);
        disk.start(round, DiskOp::Write { file, offset: 0, buf });
        disk.submit().unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            (&*event).read_exact(&mut count).unwrap();
            disk.submit().unwrap();
            disk.completions(&mut done);
        }
        assert_eq!(done[0].token, round);
    }
}

#[test]
fn a_waker_may_outlive_its_ring() {
    let waker = {
        let ring = ring();
        RingPark::new(&ring).unwrap().waker()
    };
    waker.announce_sleep();
    thread::spawn(move || waker.wake()).join().unwrap();
}

#[test]
fn closing_gives_the_descriptor_back() {
    let dir = temp_dir();
    let mut disk = disk(&ring(), dir.path());
    let (file, _) = open(&mut disk, "file", FileMode::Write);
    let path = fs::canonicalize(dir.path().join("file")).unwrap();
    let descriptors = || {
        let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|target| *target == path).count()
    };
    assert_eq!(descriptors(), 1);
    close(&mut disk, file);
    assert_eq!(descriptors(), 0);
}

/// What a ring has written durably is what plain reads of another thread see, also after it was written over.
#[test]
fn plain_reads_see_what_the_ring_wrote() {
    let dir = temp_dir();
    let ring = ring();
    let mut disk = disk(&ring, dir.path());
    let (file, _) = open(&mut disk, "a", FileMode::Durable);
    let mut files = PlainFiles::new(dir.path());
    for round in 0..3 {
        let blocks = pattern(&mut disk, 3, round);
        let written = blocks.to_vec();
        write(&mut disk, file, 0, blocks);
        let reader = thread::spawn(move || {
            let mut read = |path: &str, block: usize, blocks: usize| {
                let mut buf = Buffer::with_capacity(blocks * BLOCK_BYTES);
                buf.resize(blocks * BLOCK_BYTES);
                let there = files.read(Path::new(path), (block * BLOCK_BYTES) as u64, &mut buf)?;
                Ok(buf[..there].to_vec())
            };
            assert!(read("a", 0, 1).unwrap() == written[..BLOCK_BYTES]);
            assert!(read("a", 1, 3).unwrap() == written[BLOCK_BYTES..], "as far as the file goes");
            assert!(read("a", 8, 1).unwrap().is_empty(), "beyond the end");
            assert!(matches!(read("b", 0, 1), Err(DiskError::NotFound { .. })));
            files
        });
        files = reader.join().unwrap();
    }
    close(&mut disk, file);
}
