//! What the simulated disk promises to the tests that stand on it: nothing durable is ever lost, everything else may be,
//! in every legal way, and nothing illegal ever happens.
#![cfg(feature = "fake")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::disk::run;
use coracle_io::fake::{Completing, CrashLimits, CrashPolicy, Damage, DiskRates, FakeDisk, Latency, OpKind};
use coracle_io::{Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

const EIO: i32 = 5;
const SECTOR: usize = 512;

fn open(disk: &mut FakeDisk, path: &str, mode: FileMode) -> FileId {
    match run(disk, DiskOp::Open { path: path.into(), mode }).unwrap().0 {
        DiskOk::Opened { file, .. } => file,
        other => panic!("{other:?}"),
    }
}

fn filled(disk: &mut FakeDisk, blocks: usize, byte: u8) -> coracle_io::Buffer {
    let mut buf = disk.buffer(blocks * BLOCK_BYTES);
    buf.resize(blocks * BLOCK_BYTES);
    buf.fill(byte);
    buf
}

fn write(disk: &mut FakeDisk, file: FileId, block: usize, byte: u8) -> Result<(), DiskError> {
    let buf = filled(disk, 1, byte);
    run(disk, DiskOp::Write { file, offset: (block * BLOCK_BYTES) as u64, buf }).map(|_| ())
}

fn start_write(disk: &mut FakeDisk, token: u64, file: FileId, block: usize, byte: u8) {
    let buf = filled(disk, 1, byte);
    disk.start(token, DiskOp::Write { file, offset: (block * BLOCK_BYTES) as u64, buf });
}

fn sync_dir(disk: &mut FakeDisk) {
    run(disk, DiskOp::SyncDir { path: PathBuf::new() }).unwrap();
}

/// A disk with a durable file `a` of `blocks` blocks of ones, opened in `mode`.
fn with_file(blocks: usize, mode: FileMode) -> (FakeDisk, FileId) {
    let mut disk = FakeDisk::new(1);
    disk.put_file("a", &vec![1; blocks * BLOCK_BYTES]);
    let file = open(&mut disk, "a", mode);
    (disk, file)
}

fn tokens(disk: &mut FakeDisk) -> Vec<u64> {
    let mut done = Vec::new();
    disk.completions(&mut done);
    done.iter().map(|d| d.token).collect()
}

/// The first byte of every sector of a file.
fn sectors(disk: &FakeDisk, path: &str) -> Vec<u8> {
    disk.read_file(path).unwrap().chunks(SECTOR).map(|s| s[0]).collect()
}

#[test]
fn a_write_is_durable_by_its_handle_or_by_a_sync_and_not_before() {
    for (mode, sync, survives) in
        [(FileMode::Durable, false, true), (FileMode::Write, false, false), (FileMode::Write, true, true)]
    {
        let (mut disk, file) = with_file(1, mode);
        write(&mut disk, file, 0, 2).unwrap();
        if sync {
            run(&mut disk, DiskOp::Sync { file }).unwrap();
        }
        assert_eq!(disk.read_file("a").unwrap()[0], 2, "reads see what is written");
        disk.crash(CrashPolicy::LOSE_ALL);
        assert_eq!(disk.read_file("a").unwrap()[0] == 2, survives, "{mode:?} {sync}");
    }
}

#[test]
fn a_sync_does_not_cover_a_write_in_flight_beside_it() {
    let (mut disk, file) = with_file(1, FileMode::Write);
    disk.set_completing(Completing::Manual);
    start_write(&mut disk, 1, file, 0, 2);
    disk.start(2, DiskOp::Sync { file });
    disk.submit().unwrap();
    disk.complete(0);
    disk.complete(0);
    assert_eq!(tokens(&mut disk), [1, 2]);
    disk.crash(CrashPolicy::LOSE_ALL);
    assert_eq!(disk.read_file("a").unwrap()[0], 1);
}

#[test]
fn a_sector_in_flight_is_old_or_new_and_every_mixture_comes() {
    let (mut disk, file) = with_file(1, FileMode::Durable);
    disk.set_completing(Completing::Manual);
    start_write(&mut disk, 1, file, 0, 2);
    disk.submit().unwrap();
    let limits = CrashLimits { sample: 0, ..CrashLimits::default() };
    let seen: BTreeSet<_> = disk.crash_images(limits).map(|image| sectors(&image, "a")).collect();
    assert_eq!(seen.len(), 256, "8 sectors, each old or new");
    assert!(seen.iter().flatten().all(|byte| [1, 2].contains(byte)));
    disk.complete(0);
    let after: Vec<_> = disk.crash_images(CrashLimits::default()).map(|i| sectors(&i, "a")).collect();
    assert_eq!(after, [vec![2; 8]], "durable now: nothing to choose");
}

#[test]
fn large_writes_are_torn_at_each_sector_and_holed_at_each_sector() {
    let (mut disk, file) = with_file(4, FileMode::Durable);
    disk.set_completing(Completing::Manual);
    let buf = filled(&mut disk, 4, 2);
    disk.start(1, DiskOp::Write { file, offset: 0, buf });
    disk.submit().unwrap();
    let seen: BTreeSet<_> = disk.crash_images(CrashLimits::default()).map(|i| sectors(&i, "a")).collect();
    for cut in 0..=32 {
        let prefix: Vec<u8> = (0..32).map(|s| if s < cut { 2 } else { 1 }).collect();
        assert!(seen.contains(&prefix), "prefix of {cut}");
        let hole: Vec<u8> = (0..32).map(|s| if s == cut { 1 } else { 2 }).collect();
        assert!(seen.contains(&hole), "hole at {cut}");
    }
}

#[test]
fn an_extending_write_may_leave_any_size_up_to_its_end() {
    let (mut disk, file) = with_file(1, FileMode::Write);
    write(&mut disk, file, 1, 2).unwrap();
    let images = disk.crash_images(CrashLimits::default());
    let seen: BTreeSet<_> = images.map(|image| sectors(&image, "a")).collect();
    for sectors in 8..=16 {
        let partial: Vec<u8> = (0..sectors).map(|s| if s < 8 { 1 } else { 2 }).collect();
        assert!(seen.contains(&partial), "cut after sector {sectors}");
    }
    assert!(seen.contains(&[[1; 8], [0; 8]].concat()), "size without data");
    run(&mut disk, DiskOp::Sync { file }).unwrap();
    disk.crash(CrashPolicy::LOSE_ALL);
    assert_eq!(disk.read_file("a").unwrap().len(), 2 * BLOCK_BYTES);
}

#[test]
fn unsynced_writes_survive_in_any_subset_but_never_undo_durable_ones() {
    let (mut disk, file) = with_file(2, FileMode::Write);
    let durable = open(&mut disk, "a", FileMode::Durable);
    write(&mut disk, file, 0, 2).unwrap();
    write(&mut disk, durable, 0, 3).unwrap();
    write(&mut disk, file, 1, 4).unwrap();
    let seen: BTreeSet<_> = disk.crash_images(CrashLimits::default()).map(|i| sectors(&i, "a")).collect();
    assert!(seen.iter().all(|image| image[..8] == [3; 8]), "the durable write is there in each image");
    assert!(seen.contains(&[[3; 8], [1; 8]].concat()) && seen.contains(&[[3; 8], [4; 8]].concat()));
}

#[test]
fn names_survive_in_legal_subsets_only() {
    let mut disk = FakeDisk::new(1);
    let file = open(&mut disk, "a", FileMode::Durable);
    run(&mut disk, DiskOp::Close { file }).unwrap();
    run(&mut disk, DiskOp::Rename { from: "a".into(), to: "b".into() }).unwrap();
    open(&mut disk, "c", FileMode::Durable);
    let images = disk.crash_images(CrashLimits::default());
    let seen: BTreeSet<Vec<PathBuf>> = images.map(|image| image.image().paths()).collect();
    let names = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
    let legal = [&[][..], &["a"], &["b"], &["c"], &["a", "c"], &["b", "c"]];
    assert_eq!(seen, legal.into_iter().map(names).collect());
    sync_dir(&mut disk);
    disk.crash(CrashPolicy::LOSE_ALL);
    assert_eq!(disk.image().paths(), names(&["b", "c"]));
}

#[test]
fn a_file_renamed_twice_has_one_name() {
    let mut disk = FakeDisk::new(1);
    disk.put_file("a", &[1; 10]);
    run(&mut disk, DiskOp::Rename { from: "a".into(), to: "b".into() }).unwrap();
    run(&mut disk, DiskOp::Rename { from: "b".into(), to: "c".into() }).unwrap();
    let images = disk.crash_images(CrashLimits::default());
    let seen: BTreeSet<Vec<PathBuf>> = images.map(|image| image.image().paths()).collect();
    assert_eq!(seen, ["a", "b", "c"].map(|name| vec![PathBuf::from(name)]).into());
}

#[test]
fn a_replacing_rename_leaves_the_old_or_the_new_file_and_never_none() {
    let mut disk = FakeDisk::new(1);
    disk.put_file("live", &[1; BLOCK_BYTES]);
    let file = open(&mut disk, "new", FileMode::Durable);
    write(&mut disk, file, 0, 2).unwrap();
    run(&mut disk, DiskOp::Rename { from: "new".into(), to: "live".into() }).unwrap();
    let seen: BTreeSet<_> =
        disk.crash_images(CrashLimits::default()).map(|image| image.read_file("live").unwrap()[0]).collect();
    assert_eq!(seen, [1, 2].into());
}

#[test]
fn an_unlinked_file_may_come_back_until_its_directory_is_synced() {
    let mut disk = FakeDisk::new(1);
    disk.put_file("a", &[1; 10]);
    run(&mut disk, DiskOp::Unlink { path: "a".into() }).unwrap();
    let there = |image: FakeDisk| image.read_file("a").is_some();
    let seen: BTreeSet<_> = disk.crash_images(CrashLimits::default()).map(there).collect();
    assert_eq!(seen, [false, true].into());
    sync_dir(&mut disk);
    assert!(!disk.crash_images(CrashLimits::default()).any(there));
}

/// A little scenario: a file is written beside the live one, synced, renamed over it, its directory synced.
fn replace(disk: &mut FakeDisk) -> Result<(), DiskError> {
    let (opened, _) = run(disk, DiskOp::Open { path: "new".into(), mode: FileMode::Write })?;
    let DiskOk::Opened { file, .. } = opened else { panic!("{opened:?}") };
    write(disk, file, 0, 2)?;
    run(disk, DiskOp::Sync { file })?;
    run(disk, DiskOp::Close { file })?;
    run(disk, DiskOp::Rename { from: "new".into(), to: "live".into() })?;
    run(disk, DiskOp::SyncDir { path: PathBuf::new() })?;
    Ok(())
}

#[test]
fn the_fuse_stops_a_scenario_after_each_step_and_an_atomic_replace_holds() {
    let start = FakeDisk::new(1);
    start.put_file("live", &[1; BLOCK_BYTES]);
    let start = start.image();
    let whole = FakeDisk::from_image(start.clone(), 1);
    replace(&mut whole.clone()).unwrap();
    assert_eq!(whole.steps(), 12, "six operations, submitted and completed");
    let mut outcomes = BTreeSet::new();
    for steps in 0..whole.steps() {
        let mut disk = FakeDisk::from_image(start.clone(), 1);
        disk.crash_after(steps);
        assert_eq!(replace(&mut disk), Err(DiskError::Crashed), "after {steps} steps");
        assert!(disk.is_crashed() && disk.list(Path::new("")).is_err() && disk.submit().is_err());
        for image in disk.crash_images(CrashLimits::default()) {
            let live = image.read_file("live").unwrap();
            assert!(live == [1; BLOCK_BYTES] || live == [2; BLOCK_BYTES], "{}", image.story());
            outcomes.insert((steps, live[0]));
        }
        disk.crash(CrashPolicy::default());
        assert_eq!(replace(&mut disk), Ok(()), "it works again");
    }
    assert!(
        outcomes.contains(&(11, 1)) && outcomes.contains(&(11, 2)),
        "not sure until the directory is synced"
    );
}

/// What was in flight when the fuse blew may have happened; once a crash has decided, it is history.
#[test]
fn what_the_fuse_cut_off_is_decided_by_one_crash_only() {
    let (mut disk, file) = with_file(1, FileMode::Durable);
    disk.crash_after(1);
    assert_eq!(write(&mut disk, file, 0, 2), Err(DiskError::Crashed));
    let bytes = |image: FakeDisk| image.read_file("a").unwrap()[0];
    let limits = CrashLimits { sample: 0, ..CrashLimits::default() };
    assert_eq!(disk.crash_images(limits).map(bytes).collect::<BTreeSet<_>>(), [1, 2].into());
    disk.crash(CrashPolicy::LOSE_ALL);
    assert_eq!(disk.crash_images(limits).map(bytes).collect::<BTreeSet<_>>(), [1].into());
}

/// Without the sync, the same scenario is broken, and the images show it.
#[test]
fn a_missing_sync_is_noticed() {
    let mut disk = FakeDisk::new(1);
    disk.put_file("live", &[1; BLOCK_BYTES]);
    let file = open(&mut disk, "new", FileMode::Write);
    write(&mut disk, file, 0, 2).unwrap();
    run(&mut disk, DiskOp::Rename { from: "new".into(), to: "live".into() }).unwrap();
    let broken = |image: &FakeDisk| {
        let live = image.read_file("live").unwrap();
        live != [1; BLOCK_BYTES] && live != [2; BLOCK_BYTES]
    };
    assert!(disk.crash_images(CrashLimits::default()).any(|image| broken(&image)));
}

#[test]
fn completions_come_in_every_order_and_the_seed_picks_it() {
    let order = |seed: u64| {
        let mut disk = FakeDisk::new(seed);
        let file = open(&mut disk, "a", FileMode::Durable);
        (0..4).for_each(|i| start_write(&mut disk, i, file, i as usize, 1));
        assert_eq!(
            (disk.in_flight(), tokens(&mut disk)),
            (4, vec![]),
            "nothing completes before it is submitted"
        );
        disk.submit().unwrap();
        tokens(&mut disk)
    };
    let orders: BTreeSet<_> = (0..200).map(order).collect();
    assert_eq!(orders.len(), 24, "all permutations of four");
    assert_eq!(order(7), order(7));
}

#[test]
fn timed_operations_complete_when_their_time_has_come() {
    let (mut disk, file) = with_file(8, FileMode::Durable);
    let latency = Latency { write_us: (100, 200), bytes_per_us: 4096, stall_one_in: 3, ..Latency::default() };
    disk.set_completing(Completing::Timed(Latency { stall_us: 5000, ..latency }));
    (0..8).for_each(|i| start_write(&mut disk, i, file, i as usize, 2));
    disk.submit().unwrap();
    let mut expected: Vec<_> = disk.flights().iter().map(|f| (f.ready_us, f.token)).collect();
    expected.sort();
    assert!(expected[0].0 >= 101 && expected[7].0 > 201, "some stall: {expected:?}");
    for (ready_us, token) in expected {
        assert_eq!(disk.next_event_us(), Some(ready_us));
        disk.advance(ready_us - 1);
        assert_eq!(tokens(&mut disk), []);
        disk.advance(ready_us);
        assert_eq!(tokens(&mut disk), [token]);
    }
}

#[test]
fn rings_share_files_but_not_completions() {
    let (mut one, file) = with_file(1, FileMode::Durable);
    let mut two = one.ring();
    start_write(&mut one, 1, file, 0, 5);
    one.submit().unwrap();
    assert_eq!((one.in_flight(), two.in_flight(), tokens(&mut two)), (1, 0, vec![]));
    assert_eq!(tokens(&mut one), [1]);
    assert_eq!(two.read_file("a").unwrap()[0], 5);
    two.crash(CrashPolicy::LOSE_ALL);
    assert!(
        matches!(write(&mut one, file, 0, 6), Err(DiskError::Failed { .. })),
        "handles die with the machine"
    );
}

#[test]
fn chosen_faults_hit_the_chosen_operation_once() {
    let (mut disk, file) = with_file(2, FileMode::Durable);
    disk.fail_next(OpKind::Write, Some(Path::new("other")), EIO);
    write(&mut disk, file, 0, 2).unwrap();
    disk.fail_next(OpKind::Write, Some(Path::new("a")), EIO);
    assert!(matches!(write(&mut disk, file, 0, 3), Err(DiskError::Failed { code: EIO, .. })));
    write(&mut disk, file, 1, 4).unwrap();
    assert_eq!(disk.fault_counts()["write_error"], 1);
    let limits = CrashLimits { sample: 0, ..CrashLimits::default() };
    let seen: BTreeSet<_> = disk.crash_images(limits).map(|i| sectors(&i, "a")).collect();
    assert!(seen.iter().flatten().all(|byte| [2, 3, 4].contains(byte)), "old or new, sector by sector");
    assert!(seen.iter().all(|image| image[8..] == [4; 8]), "durable");
}

#[test]
fn after_a_failed_sync_no_later_sync_makes_it_durable() {
    let (mut disk, file) = with_file(1, FileMode::Write);
    write(&mut disk, file, 0, 2).unwrap();
    disk.fail_next(OpKind::Sync, None, EIO);
    assert!(run(&mut disk, DiskOp::Sync { file }).is_err());
    assert_eq!(run(&mut disk, DiskOp::Sync { file }).map(|_| ()), Ok(()), "it lies, as the kernel does");
    assert_eq!(disk.read_file("a").unwrap()[0], 2);
    disk.crash(CrashPolicy::LOSE_ALL);
    assert_eq!(disk.read_file("a").unwrap()[0], 1);
}

#[test]
fn rates_lose_misdirect_and_fail_about_as_often_as_asked() {
    let (mut disk, file) = with_file(16, FileMode::Durable);
    disk.set_rates(DiskRates { lost_write: 4, misdirected_write: 4, write_error: 4, ..DiskRates::default() });
    let failed = (0..400).filter(|i| write(&mut disk, file, i % 16, 2).is_err()).count() as u64;
    let counts = disk.fault_counts();
    assert_eq!(counts["write_error"], failed);
    for kind in ["lost_write", "misdirected_write", "write_error"] {
        assert!((40..160).contains(&counts[kind]), "{kind}: {}", counts[kind]);
    }
    assert_eq!(disk.read_file("a").unwrap().len(), 16 * BLOCK_BYTES, "a misdirected write stays in its file");
}

#[test]
fn a_quota_refuses_growth_but_not_overwriting() {
    let (mut disk, file) = with_file(2, FileMode::Durable);
    disk.set_quota(Some(3 * BLOCK_BYTES as u64));
    write(&mut disk, file, 2, 2).unwrap();
    assert_eq!(write(&mut disk, file, 3, 2), Err(DiskError::Full { path: "a".into() }));
    write(&mut disk, file, 0, 2).unwrap();
    assert_eq!(disk.read_file("a").unwrap().len(), 3 * BLOCK_BYTES);
}

#[test]
fn damage_is_exactly_what_was_asked_for() {
    let (mut disk, file) = with_file(2, FileMode::Durable);
    let changed = |disk: &FakeDisk, before: &[u8]| -> Vec<usize> {
        let now = disk.read_file("a").unwrap();
        (0..before.len()).filter(|i| now[*i] != before[*i]).collect()
    };
    let before = disk.read_file("a").unwrap();
    assert!(disk.corrupt("a", 5000, Damage::FlipBit { bit: 3 }));
    assert_eq!((changed(&disk, &before), disk.read_file("a").unwrap()[5000]), (vec![5000], 1 ^ 8));
    assert!(disk.corrupt("a", 4090, Damage::Zero { bytes: 10 }));
    assert_eq!(changed(&disk, &before).len(), 11);
    let old = disk.image();
    write(&mut disk, file, 0, 9).unwrap();
    assert!(disk.corrupt("a", 0, Damage::SwapSectors { with: BLOCK_BYTES as u64 + 600 }));
    assert_eq!(sectors(&disk, "a")[0], 1);
    assert_eq!(sectors(&disk, "a")[9], 9);
    assert!(disk.corrupt("a", 4100, Damage::Unreadable));
    let mut read = |block: usize| {
        let buf = filled(&mut disk, 1, 0);
        run(&mut disk, DiskOp::Read { file, offset: (block * BLOCK_BYTES) as u64, buf }).map(|(ok, _)| ok)
    };
    assert_eq!(read(0), Ok(DiskOk::Read { bytes: BLOCK_BYTES }));
    assert!(matches!(read(1), Err(DiskError::Failed { code: EIO, .. })));
    assert!(disk.put_old_file("a", &old) && changed(&disk, &before).len() == 11);
    assert!(disk.copy_file("a", "b") && disk.truncate_file("b", 700));
    assert_eq!(disk.read_file("b").unwrap().len(), 700);
    disk.remove_file("a");
    disk.crash(CrashPolicy::LOSE_ALL);
    assert_eq!(disk.image().paths(), [PathBuf::from("b")]);
    assert!(!disk.corrupt("a", 0, Damage::FlipBit { bit: 0 }));
}

#[test]
fn reads_end_with_the_file_and_misuse_is_an_error() {
    let mut disk = FakeDisk::new(1);
    disk.put_file("d/a", &[1; 5000]);
    assert_eq!(disk.list(Path::new("d")).unwrap()[0].bytes, 5000);
    assert!(disk.list(Path::new("")).unwrap().is_empty() && disk.list(Path::new("x")).is_err());
    let file = open(&mut disk, "d/a", FileMode::Read);
    let buf = filled(&mut disk, 4, 9);
    let (ok, buf) = run(&mut disk, DiskOp::Read { file, offset: 4096, buf }).unwrap();
    assert_eq!((ok, &buf.unwrap()[..904]), (DiskOk::Read { bytes: 904 }, &[1; 904][..]));
    assert!(write(&mut disk, file, 0, 1).is_err(), "opened for reading");
    let missing = DiskOp::Open { path: "nope".into(), mode: FileMode::Read };
    assert!(matches!(run(&mut disk, missing), Err(DiskError::NotFound { .. })));
    let nowhere = DiskOp::Open { path: "no/where".into(), mode: FileMode::Write };
    assert!(matches!(run(&mut disk, nowhere), Err(DiskError::NotFound { .. })));
    disk.make_dir(Path::new("no")).unwrap();
    open(&mut disk, "no/where", FileMode::Write);
    let odd = DiskOp::Fill { file, offset: 100, bytes: 4096 };
    assert!(run(&mut disk, odd).is_err());
}

/// Random operations and crashes against the simplest possible model: what was durable for certain must be there.
#[test]
fn nothing_durable_is_ever_lost() {
    for seed in 0..200u64 {
        let mut disk = FakeDisk::new(seed);
        disk.put_file("a", &[0; 4 * BLOCK_BYTES]);
        let mut file = open(&mut disk, "a", FileMode::Write);
        let mut certain = [0u8; 4];
        let mut possible: [BTreeSet<u8>; 4] = Default::default();
        for step in 1..120u8 {
            let block = usize::from(step.wrapping_mul(37).wrapping_add(seed as u8)) % 4;
            match (u64::from(step) * 31 + seed) % 7 {
                0..=3 => {
                    write(&mut disk, file, block, step).unwrap();
                    possible[block].insert(step);
                }
                4 | 5 => {
                    run(&mut disk, DiskOp::Sync { file }).unwrap();
                    for (block, maybe) in possible.iter_mut().enumerate() {
                        certain[block] = maybe.last().copied().unwrap_or(certain[block]);
                        maybe.clear();
                    }
                }
                _ => {
                    disk.crash(CrashPolicy { garbage: 0, ..CrashPolicy::default() });
                    file = open(&mut disk, "a", FileMode::Write);
                    for (i, byte) in sectors(&disk, "a").into_iter().enumerate() {
                        let fine = byte == certain[i / 8] || possible[i / 8].contains(&byte);
                        assert!(fine, "seed {seed} step {step} sector {i}: {byte}");
                    }
                    let settled = filled(&mut disk, 4, step);
                    run(&mut disk, DiskOp::Write { file, offset: 0, buf: settled }).unwrap();
                    run(&mut disk, DiskOp::Sync { file }).unwrap();
                    certain = [step; 4];
                    possible = Default::default();
                }
            }
        }
    }
}

#[test]
fn a_crash_says_what_it_took() {
    let mut disk = FakeDisk::new(5);
    for i in 0..60u8 {
        let file = open(&mut disk, &format!("f{i}"), FileMode::Write);
        write(&mut disk, file, 0, i + 1).unwrap();
    }
    disk.crash(CrashPolicy { kept_percent: 40, lost_percent: 30, garbage: 0 });
    let counts = disk.fault_counts();
    let paths = disk.image().paths();
    assert_eq!((counts["crash"], counts["lost_name_change"]), (1, 60 - paths.len() as u64));
    // A file whose name was lost shows nothing of what became of its bytes.
    let empty = paths.iter().filter(|path| disk.read_file(path).unwrap().is_empty()).count() as u64;
    assert!(0 < empty && empty <= counts["lost_unsynced_write"] && counts["torn_write"] > 0, "{counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let life = |seed: u64| {
        let mut disk = FakeDisk::new(seed);
        disk.set_rates(DiskRates {
            write_error: 9,
            lost_write: 9,
            misdirected_write: 9,
            ..DiskRates::default()
        });
        let mut trace: Vec<(u64, bool)> = Vec::new();
        for _ in 0..20 {
            let file = open(&mut disk, "a", FileMode::Durable);
            (0..6).for_each(|i| start_write(&mut disk, i, file, i as usize, i as u8 + 1));
            disk.submit().unwrap();
            let mut done: Vec<DiskDone> = Vec::new();
            disk.completions(&mut done);
            trace.extend(done.iter().map(|d| (d.token, d.result.is_ok())));
            start_write(&mut disk, 7, file, 3, 99);
            disk.submit().unwrap();
            disk.crash(CrashPolicy::default());
        }
        (trace, disk.read_file("a"), disk.fault_counts())
    };
    assert_eq!(life(3), life(3));
    assert_ne!(life(3).0, life(4).0);
}
