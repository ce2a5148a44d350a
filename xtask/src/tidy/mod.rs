//! House rules that no compiler checks. Each rule is a function from the sources to findings, with a test that shows
//! it failing.

mod code;
mod layers;
mod proof;
mod text;
mod tree;

use std::fmt;
use std::path::Path;

use crate::steps::Error;
use tree::Source;

/// A place where a house rule is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// From 1; 0 is the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Checks the whole workspace and prints what it finds.
pub(crate) fn run(root: &Path) -> Result<(), Error> {
    eprintln!("== cargo xtask tidy");
    let sources = tree::read(root)?;
    let packages = layers::packages(root)?;
    let mut findings = layers::check(&packages);
    findings.extend(layers::check_roots(&packages, &sources));
    findings.extend(text::check(&sources));
    findings.extend(proof::check(&sources));
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => {
            eprintln!("== {} files are tidy", sources.len());
            Ok(())
        }
        findings => Err(Error::Untidy { findings }),
    }
}

/// The file at `path`, if it is there.
fn find<'a>(sources: &'a [Source], path: &str) -> Option<&'a Source> {
    sources.iter().find(|source| source.path == path)
}
