//! Steps: other programs that a command runs, one after the other, each printed as a person would type it.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Why a command of xtask ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A step ran and was not content.
    #[error("`{step}` failed ({status})")]
    Failed {
        /// As typed.
        step: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A step could not even be started.
    #[error("`{step}` cannot be started: {source}")]
    NotStarted {
        /// As typed.
        step: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the workspace cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// `cargo metadata` printed something else than expected.
    #[error("cargo metadata: {what}")]
    Metadata {
        /// What is wrong with it.
        what: String,
    },
    /// Tidy has told its findings already.
    #[error("tidy: {findings} findings")]
    Untidy {
        /// How many.
        findings: usize,
    },
}

/// One program with its arguments and environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    words: Vec<String>,
    env: Vec<(&'static str, &'static str)>,
}

impl Step {
    fn cargo(words: &[&str]) -> Self {
        let words = std::iter::once("cargo").chain(words.iter().copied()).map(str::to_owned).collect();
        Self { words, env: Vec::new() }
    }

    /// The format of every file.
    pub(crate) fn format() -> Self {
        Self::cargo(&["fmt", "--all", "--check"])
    }

    /// Clippy and rustc, on every target, warnings denied.
    pub(crate) fn lints() -> Self {
        Self::cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    }

    /// The documentation, warnings denied.
    pub(crate) fn docs() -> Self {
        let mut step =
            Self::cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"]);
        step.env.push(("RUSTDOCFLAGS", "-D warnings"));
        step
    }

    /// README's test command, narrowed to tests whose name contains `name`.
    pub(crate) fn test(name: Option<&str>) -> Self {
        let mut step = Self::cargo(&["test", "--workspace", "--locked"]);
        step.words.extend(name.map(str::to_owned));
        step
    }

    /// The stories in engine/raft/testdata.
    pub(crate) fn scenarios(rewrite: bool) -> Self {
        let mut step = Self::cargo(&["test", "--locked", "-p", "coracle-raft", "--test", "scenarios"]);
        if rewrite {
            step.env.push(("REWRITE", "1"));
        }
        step
    }

    /// Crash enumeration of the log, `scale` times as long as in `cargo test`.
    pub(crate) fn crash(scale: &'static str) -> Self {
        let mut step =
            Self::cargo(&["test", "--release", "--locked", "-p", "coracle-wal", "--test", "crash"]);
        step.words.extend(["--", "--nocapture"].map(str::to_owned));
        step.env.push(("CRASH_SCALE", scale));
        step
    }

    /// Real processes killed at random while clients count on them.
    pub(crate) fn kills(kills: &'static str) -> Self {
        // After the dashes: a name before them would keep cargo from building the examples, which are what is killed.
        let mut step =
            Self::cargo(&["test", "--release", "--locked", "-p", "coracle", "--", "kills", "--nocapture"]);
        step.env.push(("CORACLE_KILLS", kills));
        step
    }

    /// Real processes that are killed and stopped, and links that are cut; the clients' history is checked.
    pub(crate) fn torture(nodes: &'static str, seconds: &'static str) -> Self {
        let mut step =
            Self::cargo(&["test", "--release", "--locked", "-p", "coracle", "--", "torture", "--nocapture"]);
        step.env.extend([("CORACLE_TORTURE_NODES", nodes), ("CORACLE_TORTURE_SECONDS", seconds)]);
        step
    }

    /// A large snapshot for a real process that is killed twice while it receives.
    pub(crate) fn transfer(mib: &'static str) -> Self {
        let mut step = Self::cargo(&[
            "test",
            "--release",
            "--locked",
            "-p",
            "coracle",
            "--",
            "hardly_sent",
            "--nocapture",
        ]);
        step.env.push(("CORACLE_TRANSFER_MIB", mib));
        step
    }

    /// Real processes whose disks fail as planned. Nothing that is shipped is built this way.
    pub(crate) fn faults() -> Self {
        Self::cargo(&[
            "test",
            "--locked",
            "-p",
            "coracle",
            "-p",
            "coracle-io",
            "--features",
            "faults",
            "--",
            "faults",
        ])
    }

    /// Random clusters of the consensus core.
    pub(crate) fn random_groups(seeds: &'static str) -> Self {
        let mut step =
            Self::cargo(&["test", "--release", "--locked", "-p", "coracle-raft", "--test", "random"]);
        step.env.push(("RAFT_SEEDS", seeds));
        step
    }

    /// Every decoder under random bytes.
    pub(crate) fn fuzz() -> Self {
        let arguments = ["all", "--seconds", "600", "--json"].map(str::to_owned);
        Self::program("coracle-fuzz", "coracle-fuzz", &arguments)
    }

    /// What we take from others: licences, advisories, sources (deny.toml).
    pub(crate) fn deny() -> Self {
        Self::cargo(&["deny", "--locked", "check"])
    }

    /// Seeds of the simulator.
    pub(crate) fn seeds(range: &str) -> Self {
        Self::program("coracle-sim", "sim", &["--seeds".to_owned(), range.to_owned()])
    }

    /// One of our programs, optimised, built as it is shipped: alone.
    pub(crate) fn program(package: &str, program: &str, arguments: &[String]) -> Self {
        let mut step = Self::cargo(&["run", "--release", "--locked", "-p", package, "--bin", program, "--"]);
        step.words.extend_from_slice(arguments);
        step
    }

    pub(crate) fn typed(&self) -> String {
        let env = self.env.iter().map(|(name, value)| format!("{name}='{value}'"));
        env.chain(self.words.iter().cloned()).collect::<Vec<_>>().join(" ")
    }

    #[allow(clippy::disallowed_methods, reason = "tells a person how long a step took")]
    fn run(&self, root: &Path) -> Result<(), Error> {
        eprintln!("== {}", self.typed());
        let started = std::time::Instant::now();
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).envs(self.env.iter().copied()).current_dir(root);
        let status = command.status().map_err(|source| Error::NotStarted { step: self.typed(), source })?;
        if !status.success() {
            return Err(Error::Failed { step: self.typed(), status });
        }
        eprintln!("== done in {} s", started.elapsed().as_secs());
        Ok(())
    }

    /// Runs it, and returns what it wrote to stdout; what it writes to stderr is for whoever watches.
    pub(crate) fn run_captured(&self, root: &Path) -> (Result<(), Error>, String) {
        eprintln!("== {}", self.typed());
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).envs(self.env.iter().copied()).current_dir(root);
        match command.stderr(Stdio::inherit()).output() {
            Err(source) => (Err(Error::NotStarted { step: self.typed(), source }), String::new()),
            Ok(output) => {
                let failed = Error::Failed { step: self.typed(), status: output.status };
                let outcome = if output.status.success() { Ok(()) } else { Err(failed) };
                (outcome, String::from_utf8_lossy(&output.stdout).into_owned())
            }
        }
    }

    /// Any program, for tests.
    #[cfg(test)]
    pub(crate) fn of(words: &[&str]) -> Self {
        Self { words: words.iter().map(|word| (*word).to_owned()).collect(), env: Vec::new() }
    }
}

/// Runs `steps` in order, up to the first that fails.
pub(crate) fn run(root: &Path, steps: &[Step]) -> Result<(), Error> {
    steps.iter().try_for_each(|step| step.run(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_ci_and_xtask_use_one_test_command() {
        let typed = Step::test(None).typed();
        assert!(
            include_str!("../../README.md").lines().any(|line| line == typed),
            "README.md does not say {typed}"
        );
        assert!(
            include_str!("../../.ci/run").contains(&format!("step {typed}\n")),
            ".ci/run does not run {typed}"
        );
    }

    #[test]
    fn the_workspaces_tests_have_planned_faults() {
        let sim = include_str!("../../sim/Cargo.toml");
        let engine = "coracle = { workspace = true, features = [\"breaks\", \"faults\"] }";
        assert!(sim.contains(engine), "without it `{}` leaves tests out", Step::test(None).typed());
    }

    #[test]
    fn a_failing_step_ends_the_command() {
        let step = |word: &str| Step::of(&[word]);
        let root = Path::new(".");
        run(root, &[step("true")]).unwrap();
        assert!(matches!(run(root, &[step("false"), step("true")]), Err(Error::Failed { .. })));
        assert!(matches!(run(root, &[step("no-such-program")]), Err(Error::NotStarted { .. })));
    }
}
