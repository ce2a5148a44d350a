//! What a node's directory takes on the disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};

/// The kernel counts blocks of this many bytes, whatever the file system's are.
const BLOCK: u64 = 512;

/// Files and bytes of the logs, of segments, and of all else (snapshots), as the file system has allocated them.
pub(crate) fn used(dir: &Path) -> io::Result<Value> {
    let (mut files, mut log, mut segments, mut others) = (0u64, 0, 0, 0);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let metadata = match fs::symlink_metadata(&path) {
                // It was removed or renamed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                dirs.push(path);
                continue;
            }
            files += 1;
            let bytes = metadata.blocks() * BLOCK;
            match path.extension().and_then(|end| end.to_str()) {
                Some("wal") => log += bytes,
                Some("seg") => segments += bytes,
                _ => others += bytes,
            }
        }
    }
    Ok(json!({ "files": files, "log_bytes": log, "segment_bytes": segments, "other_bytes": others }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shard-0")).unwrap();
        for name in ["identity", "shard-0/00000001.wal", "shard-0/00000001.seg", "shard-0/00000002.wal"] {
            fs::write(dir.path().join(name), vec![1; 8192]).unwrap();
        }
        let used = used(dir.path()).unwrap();
        assert_eq!(used["files"], 4);
        let bytes = |key: &str| used[key].as_u64().unwrap();
        assert!(bytes("log_bytes") >= 2 * bytes("segment_bytes"), "{used}");
    }
}
