//! House rules that no compiler checks. Each rule is a function from the sources to findings, with a test that shows
//! it failing.

mod code;
mod layers;
mod layouts;
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
    findings.extend(layouts::check(&sources));
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

/// Copies the layouts of the code into docs/FORMAT.md.
pub(crate) fn rewrite_layouts(root: &Path) -> Result<(), Error> {
    let path = root.join(layouts::DOCUMENT);
    let unreadable = |source| Error::Unreadable { path: path.display().to_string(), source };
    let sources = tree::read(root)?;
    let Some(document) = find(&sources, layouts::DOCUMENT) else {
        return Err(unreadable(std::io::ErrorKind::NotFound.into()));
    };
    let text = layouts::expected(document, &sources).map_err(|finding| {
        eprintln!("{finding}");
        Error::Untidy { findings: 1 }
    })?;
    std::fs::write(&path, text).map_err(unreadable)
}

/// The file at `path`, if it is there.
fn find<'a>(sources: &'a [Source], path: &str) -> Option<&'a Source> {
    sources.iter().find(|source| source.path == path)
}
