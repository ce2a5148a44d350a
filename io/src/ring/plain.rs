//! Reads for threads that are no shard's: a file's bytes by plain system calls, without a ring. O_DIRECT as the shards'
//! own reads, so that what a shard has overwritten since is never served from the kernel's cache of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coracle_base::limits::BLOCK_BYTES;

use super::path_error;
use crate::{BlockingRead, Buffer, DiskError};

/// The files of a directory, one of them open at a time.
#[derive(Debug)]
pub struct PlainFiles {
    root: PathBuf,
    open: Option<(PathBuf, File)>,
}

impl PlainFiles {
    /// Reads from this directory. Nothing is opened yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), open: None }
    }

    /// The file at this path, opened if it is not the one that is.
    fn file(&mut self, path: &Path) -> io::Result<&File> {
        let file = match self.open.take() {
            Some((of, file)) if of == path => file,
            _ => open(&self.root.join(path), true)?,
        };
        Ok(&self.open.insert((path.to_owned(), file)).1)
    }
}

impl BlockingRead for PlainFiles {
    fn read(&mut self, path: &Path, offset: u64, buf: &mut Buffer) -> Result<usize, DiskError> {
        let error = |op, error: &io::Error| path_error(path, op, error);
        let file = self.file(path).map_err(|failed| error("open", &failed))?;
        match read_at(file, offset, buf) {
            // A file system that takes the flag and not the reads.
            Err(refused) if refused.raw_os_error() == Some(libc::EINVAL) => {
                let file = open(&self.root.join(path), false).map_err(|failed| error("open", &failed))?;
                let file = &self.open.insert((path.to_owned(), file)).1;
                read_at(file, offset, buf)
            }
            result => result,
        }
        .map_err(|failed| error("read", &failed))
    }
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    if !direct {
        return options.open(path);
    }
    match options.custom_flags(libc::O_DIRECT).open(path) {
        Err(refused) if refused.raw_os_error() == Some(libc::EINVAL) => open(path, false),
        result => result,
    }
}

fn read_at(file: &File, offset: u64, buf: &mut Buffer) -> io::Result<usize> {
    let mut at = 0;
    while at < buf.len() {
        match file.read_at(&mut buf[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(bytes) => at += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        // Only the file's end is reached at part of a block; O_DIRECT could not go on from there.
        if !at.is_multiple_of(BLOCK_BYTES) {
            break;
        }
    }
    Ok(at)
}
