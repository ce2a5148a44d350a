//! What the documents say is proven by a test is proven by a test that exists.
//!
//! A table whose last heading is `Test` makes a claim a row. The row's last cell is `*later*` (not claimed yet), or
//! names proofs in backquotes: `folder::name`, a test function in that package's folder, or a path of a file.

use super::code::code_lines;
use super::tree::Source;
use super::{Finding, find};

/// Documents whose tables are claims.
const DOCUMENTS: [&str; 3] = ["docs/FEATURES.md", "docs/FORMAT.md", "docs/TESTING.md"];

/// A test function and the package folder it is in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    folder: String,
    name: String,
}

/// Claims without proof, in all documents.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let tests: Vec<Test> = sources.iter().filter(|source| source.is_rust()).flat_map(tests_in).collect();
    let mut findings = Vec::new();
    for path in DOCUMENTS {
        match find(sources, path) {
            Some(document) => findings.extend(check_document(document, &tests, sources)),
            None => findings.push(Finding::new(path, 0, "is missing")),
        }
    }
    findings
}

fn check_document(document: &Source, tests: &[Test], sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_table = false;
    for (i, line) in document.text.lines().enumerate() {
        let Some(cell) = last_cell(line) else {
            in_table = false;
            continue;
        };
        if cell == "Test" {
            in_table = true;
        } else if in_table && !cell.starts_with("--") {
            let complaint = |what| Finding::new(&document.path, i + 1, what);
            findings.extend(check_cell(cell, tests, sources).into_iter().map(complaint));
        }
    }
    findings
}

/// The text between the last two bars of a table's row.
fn last_cell(line: &str) -> Option<&str> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.rsplit('|').next().unwrap_or(inner).trim())
}

fn check_cell(cell: &str, tests: &[Test], sources: &[Source]) -> Vec<String> {
    let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
    if names.is_empty() {
        let is_later = cell.contains("*later*");
        return if is_later {
            Vec::new()
        } else {
            vec!["the row names no test and does not say *later*".to_owned()]
        };
    }
    let is_proof = |name: &str| match name.split_once("::") {
        Some((folder, name)) => tests.iter().any(|test| test.folder == folder && test.name == name),
        None => find(sources, name).is_some(),
    };
    names.iter().filter(|name| !is_proof(name)).map(|name| format!("there is no test `{name}`")).collect()
}

/// The functions marked as tests: those with an attribute `#[test]` (or one ending in `::test`) above them.
fn tests_in(source: &Source) -> Vec<Test> {
    let folder = package_folder(&source.path);
    let mut tests = Vec::new();
    let mut marked = false;
    for (_, line) in code_lines(&source.text) {
        let line = line.trim();
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        }
        if let Some(name) = function_name(line)
            && std::mem::take(&mut marked)
        {
            tests.push(Test { folder: folder.clone(), name: name.to_owned() });
        }
    }
    tests
}

fn function_name(line: &str) -> Option<&str> {
    let at = line.find("fn ")?;
    let starts_word = line[..at].chars().next_back().is_none_or(char::is_whitespace);
    let name = line[at + 3..].split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (starts_word && !name.is_empty()).then_some(name)
}

/// The folder of the package that a file is in, by its last part: `raft` for `engine/raft/src/log.rs`.
fn package_folder(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let inside = ["src", "tests", "benches", "examples"];
    let at = parts.iter().position(|part| inside.contains(part)).unwrap_or(0);
    parts[at.saturating_sub(1)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn findings(features: &str) -> Vec<usize> {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let sources = [
            source("docs/FEATURES.md", features),
            source("docs/FORMAT.md", "nothing claimed\n"),
            source("docs/TESTING.md", "nothing claimed\n"),
            source(
                "engine/raft/src/log.rs",
                "#[test]\n#[ignore]\nfn proven() {}\nfn helper() {}\n// fn spoken() {}\n",
            ),
        ];
        check(&sources).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_claim_names_a_test_that_exists() {
        let table = |cell: &str| format!("| Feature | Test |\n|---|---|\n| it works | {cell} |\n");
        assert_eq!(findings(&table("`raft::proven`")), NONE);
        assert_eq!(findings(&table("`engine/raft/src/log.rs`")), NONE);
        assert_eq!(findings(&table("*later*")), NONE);
        assert_eq!(findings(&table("")), [3]);
        assert_eq!(findings(&table("`raft::helper`")), [3]);
        assert_eq!(findings(&table("`raft::spoken`")), [3]);
        assert_eq!(findings(&table("`wal::proven`")), [3]);
        assert_eq!(findings(&table("`raft::proven`, `raft::gone`")), [3]);
        assert_eq!(findings(&table("`engine/raft/testdata/gone.txt`")), [3]);
        assert_eq!(findings("| Feature | Where |\n|---|---|\n| no claim | `gone::gone` |\n"), NONE);
    }

    #[test]
    fn the_documents_are_there() {
        assert_eq!(check(&[]).len(), DOCUMENTS.len());
    }
}
