//! The text files of the workspace, in the order of their paths.

use std::fs;
use std::path::Path;

use crate::steps::Error;

/// Folders that hold nothing of ours.
const SKIPPED: [&str; 2] = ["target", ".git"];
/// Only these are read: what people write.
const ENDINGS: [&str; 9] = [".rs", ".md", ".toml", ".txt", ".hex", ".yml", ".sh", ".py", ".ci/run"];

/// A file's text.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// From the workspace's root, with slashes.
    pub(super) path: String,
    pub(super) text: String,
}

impl Source {
    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Reads every text file under `root`.
pub(super) fn read(root: &Path) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    read_folder(root, "", &mut sources)?;
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn read_folder(folder: &Path, prefix: &str, sources: &mut Vec<Source>) -> Result<(), Error> {
    let unreadable = |source| Error::Unreadable { path: folder.display().to_string(), source };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.file_type().map_err(unreadable)?.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                read_folder(&entry.path(), &format!("{path}/"), sources)?;
            }
        } else if ENDINGS.iter().any(|ending| path.ends_with(ending)) {
            let text = fs::read_to_string(entry.path())
                .map_err(|source| Error::Unreadable { path: path.clone(), source })?;
            sources.push(Source { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_itself_and_skips_build_output() {
        let sources = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).unwrap();
        assert!(sources.iter().any(|source| source.path == "xtask/src/tidy/tree.rs"));
        assert!(sources.iter().any(|source| source.path == ".ci/run"));
        assert!(!sources.iter().any(|source| source.path.starts_with("target/")));
    }
}
