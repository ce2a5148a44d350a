//! What every [`Disk`] does, real or simulated: one suite, so that the two cannot drift apart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::disk::{DirEntry, run};
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

const BLOCK: u64 = BLOCK_BYTES as u64;
const EBADF: i32 = 9;
const EINVAL: i32 = 22;

/// Everything, on an empty directory.
pub(crate) fn exercise<D: Disk>(disk: &mut D) {
    for depth in [1, 2, 7, 32] {
        blocks_come_back_as_written(disk, depth);
    }
    a_durable_file_is_overwritten_in_place(disk);
    a_fill_leaves_zeros(disk);
    a_read_ends_where_the_file_ends(disk);
    names_change(disk);
    mistakes_are_errors_and_bring_the_buffer_back(disk);
    assert_eq!(disk.in_flight(), 0);
}

/// Starts all at once, waits for all; completions by token.
pub(crate) fn run_all<D: Disk>(disk: &mut D, ops: Vec<DiskOp>) -> BTreeMap<u64, DiskDone> {
    let count = ops.len();
    for (token, op) in ops.into_iter().enumerate() {
        disk.start(token as u64, op);
    }
    let mut done = Vec::new();
    while done.len() < count {
        assert_eq!(disk.in_flight(), count - done.len());
        disk.wait().unwrap();
        disk.completions(&mut done);
    }
    assert_eq!(disk.in_flight(), 0);
    let by_token: BTreeMap<_, _> = done.into_iter().map(|done| (done.token, done)).collect();
    assert_eq!(by_token.len(), count, "a token came back twice");
    by_token
}

fn done<D: Disk>(disk: &mut D, op: DiskOp) {
    let (ok, buf) = run(disk, op).unwrap();
    assert!(ok == DiskOk::Done && buf.is_none());
}

pub(crate) fn open<D: Disk>(disk: &mut D, path: &str, mode: FileMode) -> (FileId, u64) {
    match run(disk, DiskOp::Open { path: path.into(), mode }).unwrap() {
        (DiskOk::Opened { file, bytes }, None) => (file, bytes),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn close<D: Disk>(disk: &mut D, file: FileId) {
    done(disk, DiskOp::Close { file });
}

/// Blocks that no other `seed` has.
pub(crate) fn pattern<D: Disk>(disk: &mut D, blocks: usize, seed: u64) -> Buffer {
    let mut buf = disk.buffer(blocks * BLOCK_BYTES);
    assert!(buf.is_empty() && buf.capacity() >= blocks * BLOCK_BYTES);
    buf.resize(blocks * BLOCK_BYTES);
    for (at, word) in buf.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed << 32 | at as u64).to_le_bytes());
    }
    buf
}

pub(crate) fn write<D: Disk>(disk: &mut D, file: FileId, block: u64, buf: Buffer) {
    let (ok, buf) = run(disk, DiskOp::Write { file, offset: block * BLOCK, buf }).unwrap();
    assert_eq!(ok, DiskOk::Done);
    disk.recycle(buf.unwrap());
}

pub(crate) fn read<D: Disk>(disk: &mut D, file: FileId, block: u64, blocks: usize) -> (usize, Buffer) {
    let mut buf = disk.buffer(blocks * BLOCK_BYTES);
    buf.resize(blocks * BLOCK_BYTES);
    match run(disk, DiskOp::Read { file, offset: block * BLOCK, buf }).unwrap() {
        (DiskOk::Read { bytes }, Some(buf)) => (bytes, buf),
        other => panic!("{other:?}"),
    }
}

/// Several sizes, registered memory and not, all in flight together; then read back in another order.
fn blocks_come_back_as_written<D: Disk>(disk: &mut D, depth: usize) {
    let (file, _) = open(disk, "blocks", FileMode::Write);
    let sizes: Vec<usize> = (0..depth).map(|at| [1, 3, 16, 64][at % 4]).collect();
    let starts: Vec<u64> =
        sizes.iter().scan(0, |at, size| Some(std::mem::replace(at, *at + *size as u64))).collect();
    let expected = |disk: &mut D, at: usize| pattern(disk, sizes[at], (depth * 100 + at) as u64);

    let writes = (0..depth).map(|at| {
        let mut buf = expected(disk, at);
        if at % 5 == 4 {
            let mut own = Buffer::with_capacity(buf.len());
            own.resize(buf.len());
            own.copy_from_slice(&buf);
            disk.recycle(std::mem::replace(&mut buf, own));
        }
        DiskOp::Write { file, offset: starts[at] * BLOCK, buf }
    });
    let writes = writes.collect();
    for done in run_all(disk, writes).into_values() {
        assert_eq!(done.result, Ok(DiskOk::Done));
        disk.recycle(done.buf.unwrap());
    }
    done(disk, DiskOp::Sync { file });

    let reads = (0..depth).rev().map(|at| {
        let mut buf =
            if at % 2 == 0 { disk.buffer(1) } else { Buffer::with_capacity(sizes[at] * BLOCK_BYTES) };
        if buf.capacity() < sizes[at] * BLOCK_BYTES {
            buf = Buffer::with_capacity(sizes[at] * BLOCK_BYTES);
        }
        buf.resize(sizes[at] * BLOCK_BYTES);
        DiskOp::Read { file, offset: starts[at] * BLOCK, buf }
    });
    let reads = reads.collect();
    for (token, done) in run_all(disk, reads) {
        let at = depth - 1 - token as usize;
        let (expected, buf) = (expected(disk, at), done.buf.unwrap());
        assert_eq!(done.result, Ok(DiskOk::Read { bytes: expected.len() }));
        assert!(buf[..] == expected[..], "write {at} of {depth} came back changed");
        disk.recycle(buf);
        disk.recycle(expected);
    }
    close(disk, file);
}

fn a_durable_file_is_overwritten_in_place<D: Disk>(disk: &mut D) {
    let (file, bytes) = open(disk, "durable", FileMode::Durable);
    assert_eq!(bytes, 0);
    done(disk, DiskOp::Fill { file, offset: 0, bytes: 4 * BLOCK });
    for (block, seed) in [(0, 1), (1, 2), (2, 3), (1, 4)] {
        let buf = pattern(disk, 1, seed);
        write(disk, file, block, buf);
    }
    close(disk, file);
    let (file, bytes) = open(disk, "durable", FileMode::Read);
    assert_eq!(bytes, 4 * BLOCK);
    for (block, seed) in [(0, 1), (1, 4), (2, 3)] {
        let expected = pattern(disk, 1, seed);
        assert!(read(disk, file, block, 1).1[..] == expected[..], "block {block}");
    }
    assert!(read(disk, file, 3, 1).1.iter().all(|byte| *byte == 0));
    close(disk, file);
}

/// More than one piece, not a multiple of it, in the middle of a file, over what was there.
fn a_fill_leaves_zeros<D: Disk>(disk: &mut D) {
    let (file, _) = open(disk, "filled", FileMode::Write);
    let blocks = 2 * 1024 * 1024 / BLOCK + 3;
    for block in [0, 1, blocks] {
        let buf = pattern(disk, 1, 9);
        write(disk, file, block, buf);
    }
    let fill = DiskOp::Fill { file, offset: BLOCK, bytes: blocks * BLOCK };
    done(disk, fill);
    let (bytes, buf) = read(disk, file, 0, blocks as usize + 2);
    assert_eq!(bytes as u64, (blocks + 1) * BLOCK);
    let expected = pattern(disk, 1, 9);
    assert!(buf[..BLOCK_BYTES] == expected[..], "the fill wrote before its start");
    assert!(buf[BLOCK_BYTES..bytes].iter().all(|byte| *byte == 0));
    done(disk, DiskOp::Fill { file, offset: 0, bytes: 0 });
    close(disk, file);
    assert_eq!(open(disk, "filled", FileMode::Read).1, (blocks + 1) * BLOCK);
}

fn a_read_ends_where_the_file_ends<D: Disk>(disk: &mut D) {
    let (file, _) = open(disk, "short", FileMode::Write);
    let buf = pattern(disk, 3, 5);
    write(disk, file, 0, buf);
    let expected = pattern(disk, 3, 5);
    let (bytes, buf) = read(disk, file, 1, 4);
    assert_eq!(bytes, 2 * BLOCK_BYTES);
    assert!(buf[..bytes] == expected[BLOCK_BYTES..]);
    for past in [3, 4, 1000] {
        assert_eq!(read(disk, file, past, 2).0, 0);
    }
    assert_eq!(read(disk, file, 0, 0).0, 0);
    close(disk, file);
}

fn names_change<D: Disk>(disk: &mut D) {
    disk.make_dir(Path::new("names")).unwrap();
    disk.make_dir(Path::new("names")).unwrap();
    for (name, seed) in [("names/b", 1), ("names/a", 2)] {
        let (file, _) = open(disk, name, FileMode::Write);
        let buf = pattern(disk, seed as usize, seed);
        write(disk, file, 0, buf);
        close(disk, file);
    }
    let entry = |name: &str, bytes| DirEntry { name: name.into(), bytes };
    let dir = Path::new("names");
    assert_eq!(disk.list(dir).unwrap(), [entry("a", 2 * BLOCK), entry("b", BLOCK)]);

    // Over what is there: the old file is gone, and a handle on the renamed one stays good.
    let (file, _) = open(disk, "names/a", FileMode::Read);
    let rename = DiskOp::Rename { from: "names/a".into(), to: "names/b".into() };
    done(disk, rename);
    done(disk, DiskOp::SyncDir { path: "names".into() });
    assert_eq!(disk.list(dir).unwrap(), [entry("b", 2 * BLOCK)]);
    let expected = pattern(disk, 2, 2);
    assert!(read(disk, file, 0, 2).1[..] == expected[..]);
    close(disk, file);

    done(disk, DiskOp::Unlink { path: "names/b".into() });
    done(disk, DiskOp::SyncDir { path: "".into() });
    assert_eq!(disk.list(dir).unwrap(), []);
    // Directories are no files, and nothing of the driver's own is listed.
    let names: Vec<_> = disk.list(Path::new("")).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["blocks", "durable", "filled", "short"]);
}

fn mistakes_are_errors_and_bring_the_buffer_back<D: Disk>(disk: &mut D) {
    let missing = PathBuf::from("nowhere");
    let not_found = [
        DiskOp::Open { path: missing.clone(), mode: FileMode::Read },
        DiskOp::Open { path: missing.join("file"), mode: FileMode::Write },
        DiskOp::Rename { from: missing.clone(), to: "elsewhere".into() },
        DiskOp::Unlink { path: missing.clone() },
        DiskOp::SyncDir { path: missing.clone() },
    ];
    for op in not_found {
        let error = run(disk, op).unwrap_err();
        assert!(
            matches!(&error, DiskError::NotFound { path } if path.ends_with("nowhere") || path.ends_with("file")),
            "{error}"
        );
    }
    assert!(matches!(disk.list(&missing), Err(DiskError::NotFound { .. })));
    assert!(matches!(disk.make_dir(&missing.join("below")), Err(DiskError::NotFound { .. })));

    let (file, _) = open(disk, "blocks", FileMode::Write);
    let (reader, _) = open(disk, "blocks", FileMode::Read);
    let (closed, _) = open(disk, "blocks", FileMode::Write);
    close(disk, closed);
    let sized = |bytes: usize| {
        let mut buf = Buffer::with_capacity(bytes);
        buf.resize(bytes);
        buf
    };
    let with_buffer = [
        ("read", EINVAL, DiskOp::Read { file, offset: 100, buf: sized(BLOCK_BYTES) }),
        ("read", EINVAL, DiskOp::Read { file, offset: 0, buf: sized(100) }),
        ("write", EINVAL, DiskOp::Write { file, offset: 512, buf: sized(BLOCK_BYTES) }),
        ("write", EINVAL, DiskOp::Write { file, offset: 0, buf: sized(BLOCK_BYTES + 512) }),
        ("write", EBADF, DiskOp::Write { file: reader, offset: 0, buf: sized(BLOCK_BYTES) }),
        ("read", EBADF, DiskOp::Read { file: closed, offset: 0, buf: sized(BLOCK_BYTES) }),
    ];
    let (expected, ops): (Vec<_>, Vec<_>) =
        with_buffer.into_iter().map(|(op, code, it)| ((op, code), it)).unzip();
    for (done, (expected_op, expected_code)) in run_all(disk, ops).into_values().zip(expected) {
        assert!(done.buf.is_some(), "{expected_op}: the buffer is lost");
        let error = done.result.unwrap_err();
        assert!(
            matches!(&error, DiskError::Failed { op, code, .. } if *op == expected_op && *code == expected_code),
            "{error}"
        );
    }
    for op in [DiskOp::Fill { file, offset: 1, bytes: BLOCK }, DiskOp::Fill { file, offset: 0, bytes: 1 }] {
        assert!(matches!(run(disk, op), Err(DiskError::Failed { code: EINVAL, .. })));
    }
    for op in [DiskOp::Sync { file: closed }, DiskOp::Close { file: closed }] {
        let error = run(disk, op).unwrap_err();
        assert!(matches!(&error, DiskError::Failed { code, .. } if *code == EBADF), "{error}");
    }
    close(disk, file);
    close(disk, reader);
}
