//! Rules about single files: where unsafe code may be, what is left undone, how long a file may grow.

use super::Finding;
use super::code::{code_lines, has_word};
use super::tree::Source;

/// A Rust file longer than this has a second job to look for.
const LINES_MAX: usize = 600;
/// Files that may be longer: path, then the reason.
const LONG_FILES: &str = "xtask/long_files.txt";
/// The only folder with libc calls.
const RING: &str = "io/src/ring/";
/// Where unsafe code may be: there, and where a function for a certain CPU is called (docs/decisions/0003).
const UNSAFE: [&str; 2] = [RING, "base/src/checksum/lanes.rs"];

/// Words of work left undone. In halves, so that this file does not find itself.
const UNDONE: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
];
/// Beginnings of paths of one person's machine.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Use", "rs/")];

/// All findings in all files.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let allowed = sources.iter().find(|source| source.path == LONG_FILES).map_or("", |source| &source.text);
    let mut findings = check_allowed(allowed, sources);
    for source in sources {
        findings.extend(check_words(source));
        if source.is_rust() {
            findings.extend(check_code(source));
            findings.extend(check_length(source, allowed));
        }
    }
    findings
}

/// Words that no file may have, in code or prose.
fn check_words(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, line) in source.text.lines().enumerate() {
        for word in UNDONE {
            // The border is checked without the `!`, which is none.
            if line.contains(word) && has_word(line, word.trim_end_matches('!')) {
                findings.push(Finding::new(&source.path, i + 1, format!("{word} is left undone")));
            }
        }
        for path in MACHINE_PATHS.iter().filter(|path| line.contains(**path)) {
            findings.push(Finding::new(&source.path, i + 1, format!("{path} is a path of one machine")));
        }
    }
    findings
}

/// Unsafe code and libc calls outside the ring; sleeping threads anywhere.
fn check_code(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, code) in code_lines(&source.text) {
        let mut find = |what: &str| findings.push(Finding::new(&source.path, line, what));
        if !UNSAFE.iter().any(|path| source.path.starts_with(path)) && has_word(&code, "unsafe") {
            find("unsafe code belongs in io/src/ring/");
        }
        if !source.path.starts_with(RING) && has_word(&code, "libc") {
            find("libc calls belong in io/src/ring/");
        }
        // An example stands for a user's program, which may do as it likes.
        if !source.path.contains("/examples/") && has_word(&code, "thread::sleep") {
            find("threads do not sleep: wait on a condition with a deadline");
        }
    }
    findings
}

fn check_length(source: &Source, allowed: &str) -> Option<Finding> {
    let lines = source.text.lines().count();
    let is_allowed = allowed.lines().any(|line| line.split_whitespace().next() == Some(&source.path));
    (lines > LINES_MAX && !is_allowed).then(|| {
        Finding::new(&source.path, 0, format!("{lines} lines: look for a second job, or see {LONG_FILES}"))
    })
}

/// Every line of the allow-list names a file that is there and still long, and a reason.
fn check_allowed(allowed: &str, sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, line) in
        allowed.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
    {
        let (path, reason) = line.split_once(' ').unwrap_or((line, ""));
        let long = sources.iter().any(|one| one.path == path && one.text.lines().count() > LINES_MAX);
        if !long {
            findings.push(Finding::new(LONG_FILES, i + 1, format!("{path} is not a long file (any more)")));
        }
        if reason.trim().is_empty() {
            findings.push(Finding::new(LONG_FILES, i + 1, format!("{path} has no reason")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        check(&[source(path, text)]).into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn unsafe_code_and_libc_stay_in_the_ring() {
        let text = "fn f() {\n    unsafe { libc::getpid() };\n}\n";
        assert_eq!(found("wal/src/lib.rs", text).len(), 2);
        assert_eq!(found("wal/src/lib.rs", text)[0].0, 2);
        assert_eq!(found("io/src/ring/sys.rs", text), []);
        assert_eq!(found("base/src/checksum/lanes.rs", text).len(), 1, "no libc there");
        assert_eq!(found("io/src/fake/disk.rs", text).len(), 2);
        assert_eq!(found("wal/src/lib.rs", "// no unsafe code, no libc here\n#![forbid(unsafe_code)]\n"), []);
    }

    #[test]
    fn nothing_is_left_undone() {
        for word in UNDONE {
            assert_eq!(
                found("wal/src/lib.rs", &format!("fn f() {{}}\n// {word} later\n")).len(),
                1,
                "{word}"
            );
        }
        assert_eq!(found("docs/A.md", &format!("{}: write this\n", UNDONE[0])).len(), 1);
        assert_eq!(found("docs/A.md", &format!("{}S are not words\n", UNDONE[0])), []);
    }

    #[test]
    fn no_path_of_one_machine() {
        for path in MACHINE_PATHS {
            assert_eq!(found("README.md", &format!("see {path}someone\n")).len(), 1, "{path}");
        }
    }

    #[test]
    fn threads_do_not_sleep() {
        assert_eq!(found("engine/src/x.rs", "use std::thread;\nfn f() { thread::sleep(d) }\n")[0].0, 2);
        assert_eq!(found("engine/examples/x.rs", "fn f() { thread::sleep(d) }\n"), []);
    }

    #[test]
    fn long_files_need_a_reason() {
        let long = source("wal/src/long.rs", &"\n".repeat(LINES_MAX + 1));
        let listed = |line: &str| source(LONG_FILES, line);
        assert_eq!(check(std::slice::from_ref(&long)).len(), 1);
        assert_eq!(check(&[long.clone(), listed("# comment\nwal/src/long.rs one table\n")]), []);
        assert_eq!(check(&[long, listed("wal/src/long.rs\n")]).len(), 1);
        assert_eq!(check(&[listed("wal/src/gone.rs one table\n")]).len(), 1);
        assert_eq!(found("wal/src/fits.rs", &"\n".repeat(LINES_MAX)), []);
    }
}
