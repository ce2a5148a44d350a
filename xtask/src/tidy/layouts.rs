//! docs/FORMAT.md shows every layout exactly as the header of its module has it: a fact lives in one place, the code.
//!
//! A line `Layout: \`path\`` in the document stands above a text block; the block is the first text block of that file's
//! module header.

use super::tree::Source;
use super::{Finding, find};

/// The document.
pub(super) const DOCUMENT: &str = "docs/FORMAT.md";
const MARK: &str = "Layout: `";

/// Layouts in the document that are not those of the code.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let Some(document) = find(sources, DOCUMENT) else { return Vec::new() };
    match expected(document, sources) {
        Err(finding) => vec![finding],
        Ok(text) => {
            let differs =
                text.lines().zip(document.text.lines()).position(|(expected, found)| expected != found);
            let line = differs.map_or(0, |at| at + 1);
            let what = "the layout is not that of the code: run `cargo xtask formats`";
            (text != document.text).then(|| Finding::new(DOCUMENT, line, what)).into_iter().collect()
        }
    }
}

/// The document with the layouts of the code.
pub(super) fn expected(document: &Source, sources: &[Source]) -> Result<String, Finding> {
    let mut out = String::new();
    let mut lines = document.text.lines().enumerate().peekable();
    while let Some((i, line)) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some(path) = line.strip_prefix(MARK).and_then(|rest| rest.split('`').next()) else { continue };
        let missing =
            || Finding::new(DOCUMENT, i + 1, format!("{path} has no text block in its module header"));
        let layout = find(sources, path).and_then(|source| layout(&source.text)).ok_or_else(missing)?;
        // What stands there now, if anything, gives way.
        if lines.next_if(|(_, line)| line.is_empty()).is_some()
            && lines.next_if(|(_, l)| *l == "```text").is_some()
        {
            lines.by_ref().find(|(_, line)| *line == "```");
        }
        out.push_str(&format!("\n```text\n{layout}```\n"));
        if lines.peek().is_some_and(|(_, line)| !line.is_empty()) {
            out.push('\n');
        }
    }
    Ok(out)
}

/// The first text block of a module header, without the comment marks and the indentation that all its lines share.
fn layout(text: &str) -> Option<String> {
    let mut header = text.lines().map_while(|line| line.strip_prefix("//!"));
    header.find(|line| line.trim() == "```text")?;
    let block: Vec<&str> = header.take_while(|line| line.trim() != "```").collect();
    let indentation = |line: &&str| line.len() - line.trim_start().len();
    let shared = block.iter().filter(|line| !line.trim().is_empty()).map(indentation).min()?;
    Some(block.iter().map(|line| format!("{}\n", line.get(shared..).unwrap_or("").trim_end())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str =
        "//! A run.\n//!\n//! ```text\n//!   0  8  group\n//!\n//!     8  term\n//! ```\nfn f() {}\n";

    fn document(text: &str) -> Vec<Source> {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        vec![source(DOCUMENT, text), source("base/src/run.rs", CODE)]
    }

    #[test]
    fn a_layout_is_the_codes() {
        let sound = "# Run\nLayout: `base/src/run.rs`\n\n```text\n0  8  group\n\n  8  term\n```\n\nMore.\n";
        assert_eq!(check(&document(sound)), []);
        let stale = sound.replace("group", "groups");
        assert_eq!(check(&document(&stale))[0].line, 5);
        for text in [&stale, "# Run\nLayout: `base/src/run.rs`\nMore.\n"] {
            let sources = document(text);
            let rewritten = expected(&sources[0], &sources).unwrap();
            assert_eq!(check(&document(&rewritten)), [], "{rewritten}");
            assert!(rewritten.ends_with("More.\n"));
        }
    }

    #[test]
    fn a_layout_of_nowhere_is_found() {
        assert_eq!(check(&document("Layout: `gone.rs`\n"))[0].line, 1);
    }
}
