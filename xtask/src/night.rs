//! The long runs, and what became of them: a file in `docs/results/`, named by its date and commit.
//!
//! Invariants: (1) every step is run, whatever became of those before it, and the command fails if one did; (2) the file
//! tells what machine it was, and no path or name of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::{Error, Step};

/// Of a program that does not end in a report, the last lines are kept.
const LINES_KEPT: usize = 15;

/// What became of a step.
struct Ran {
    typed: String,
    /// `Err`: how it failed.
    outcome: Result<(), Error>,
    seconds: u64,
    output: String,
}

/// All of it; the simulator alone takes `minutes`.
fn steps(minutes: u64) -> Vec<Step> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let sim = words(&format!("--minutes {minutes} --json"));
    let bench = |program: &str, text: &str| Step::program("coracle-tools", program, &words(text));
    vec![
        Step::deny(),
        Step::crash("20"),
        Step::kills("100"),
        Step::torture("3", "600"),
        Step::torture("5", "600"),
        Step::transfer("1024"),
        Step::faults(),
        Step::random_groups("0..20000"),
        Step::program("coracle-sim", "sim", &sim),
        bench("wal-bench", "--seconds 10 --baseline --json"),
        bench("cluster-bench", "throughput --preset ra --seconds 20 --json"),
        bench("cluster-bench", "latency --seconds 10 --json"),
        bench("cluster-bench", "restart --groups 1000 --log-bytes 256MiB --json"),
        bench("cluster-bench", "soak --seconds 120 --snapshot-bytes 1GiB --json"),
        bench("cluster-bench", "soak --seconds 60 --live-percent 0 --json"),
        bench("cluster-bench", "soak --seconds 30 --nodes 3 --backlog-bytes 1GiB --json"),
        Step::fuzz(),
    ]
}

/// Runs all steps (or those whose command has `only` in it), and writes the file.
pub(crate) fn run(root: &Path, minutes: u64, only: Option<&str>) -> Result<(), Error> {
    let steps = steps(minutes).into_iter();
    let steps: Vec<Step> = steps.filter(|step| only.is_none_or(|only| step.typed().contains(only))).collect();
    let facts = Facts::of(root);
    let ran: Vec<Ran> = steps.iter().map(|step| run_step(root, step)).collect();
    let dir = root.join("docs/results");
    let path = dir.join(format!("{}-{}.md", facts.date, facts.commit));
    let unwritable = |source| Error::Unreadable { path: path.display().to_string(), source };
    std::fs::create_dir_all(&dir).map_err(unwritable)?;
    std::fs::write(&path, report(&facts, &ran, &scrubs(root))).map_err(unwritable)?;
    eprintln!("== results are in {}", path.strip_prefix(root).unwrap_or(&path).display());
    ran.into_iter().find_map(|ran| ran.outcome.err()).map_or(Ok(()), Err)
}

#[allow(clippy::disallowed_methods, reason = "tells a person how long a step took")]
fn run_step(root: &Path, step: &Step) -> Ran {
    let started = std::time::Instant::now();
    let (outcome, output) = step.run_captured(root);
    Ran { typed: step.typed(), outcome, seconds: started.elapsed().as_secs(), output }
}

/// What has to be known of the machine to judge a figure.
struct Facts {
    date: String,
    commit: String,
    machine: String,
}

impl Facts {
    fn of(root: &Path) -> Self {
        let said = |words: &[&str]| {
            let output = Command::new(words[0]).args(&words[1..]).current_dir(root).output();
            output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let told = |words: &[&str]| said(words).filter(|text| !text.is_empty());
        let unknown = || "unknown".to_owned();
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split(':').nth(1).unwrap_or_default().trim().to_owned()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let kib: u64 = memory.split(' ').next().unwrap_or_default().parse().unwrap_or(0);
        let changed = told(&["git", "status", "--porcelain", "--untracked-files=no"]).is_some();
        let commit = told(&["git", "rev-parse", "--short=12", "HEAD"]).unwrap_or_else(unknown);
        Self {
            date: told(&["date", "-u", "+%F"]).unwrap_or_else(unknown),
            commit: if changed { format!("{commit}-changed") } else { commit },
            machine: format!(
                "{} cores ({}), {} GiB of memory, Linux {}, {}, {}",
                std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
                field("/proc/cpuinfo", "model name"),
                kib >> 20,
                told(&["uname", "-r"]).map_or_else(unknown, |release| version(&release)),
                told(&["stat", "-f", "-c", "%T", "."]).unwrap_or_else(unknown),
                told(&["rustc", "--version"]).unwrap_or_else(unknown),
            ),
        }
    }
}

/// A kernel's version without what its builder appended, which may name him.
fn version(release: &str) -> String {
    release.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}

/// Paths of this machine, and what stands for them; the longest first.
fn scrubs(root: &Path) -> Vec<(String, &'static str)> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let home = std::env::home_dir();
    let places =
        [target.map(|path| (path, "target")), Some((root.to_owned(), ".")), home.map(|path| (path, "~"))];
    let mut scrubs: Vec<_> =
        places.into_iter().flatten().map(|(path, word)| (path.display().to_string(), word)).collect();
    scrubs.retain(|(path, _)| path.len() > 1);
    scrubs.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    scrubs
}

fn report(facts: &Facts, ran: &[Ran], scrubs: &[(String, &'static str)]) -> String {
    let mut text = format!(
        "# Night of {}\n\nCommit {}. {}. Written by `cargo xtask night`.\n\n| Run | Result | Seconds |\n|---|---|---|\n",
        facts.date, facts.commit, facts.machine
    );
    // Writing into a string does not fail.
    for ran in ran {
        let result = ran.outcome.as_ref().map_or("**failed**", |()| "passed");
        let _ = writeln!(text, "| `{}` | {result} | {} |", ran.typed, ran.seconds);
    }
    for ran in ran {
        let _ = write!(text, "\n## {}\n\n```text\n{}\n```\n", ran.typed, kept(&ran.output));
    }
    scrubs.iter().fold(text, |text, (path, word)| text.replace(path, word))
}

/// The report in the last line, if it is one (JSON), else the last lines.
fn kept(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    match lines.last() {
        Some(last) if last.starts_with('{') => (*last).to_owned(),
        Some(_) => lines[lines.len().saturating_sub(LINES_KEPT)..].join("\n"),
        None => "(nothing)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_night_goes_on_after_a_failure_and_tells_no_paths() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let steps = [["false"; 1].as_slice(), &["echo", env!("CARGO_MANIFEST_DIR")], &["no-such-program"]];
        let ran: Vec<Ran> = steps.iter().map(|words| run_step(root, &Step::of(words))).collect();
        assert_eq!(ran.iter().map(|ran| ran.outcome.is_ok()).collect::<Vec<_>>(), [false, true, false]);
        let text = report(&Facts::of(root), &ran, &scrubs(root));
        assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{text}");
        assert_eq!(
            (text.matches("**failed**").count(), text.matches("| passed |").count()),
            (2, 1),
            "{text}"
        );
        assert!(text.contains(" cores ("), "{text}");
    }

    #[test]
    fn a_report_is_kept_whole_and_of_other_output_the_end() {
        assert_eq!(kept("warming up\n{\"a\":1}\n"), "{\"a\":1}");
        let long: Vec<String> = (0..100).map(|line| line.to_string()).collect();
        assert_eq!(kept(&long.join("\n")).lines().count(), LINES_KEPT);
        assert_eq!(kept(""), "(nothing)");
        assert_eq!(version("6.1.0-18-amd64"), "6.1.0");
    }
}
