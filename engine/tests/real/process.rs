//! The examples as processes. None outlives its test.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;

/// How long anything may take that should take less than a second.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The program of an example, as `cargo test` builds it beside the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let profile = tests.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(name);
    assert!(
        program.exists(),
        "{program:?} is not built: run `cargo build -p coracle --example {name}` first"
    );
    program
}

/// How long or large a test is to be.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Calls `poll` until it returns something.
///
/// # Panics
/// If that takes too long; says what was awaited.
pub(crate) fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Loopback addresses that nobody uses, outside the range from which the kernel takes ports for outgoing connections:
/// they stay free while a node is down.
pub(crate) fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let mut found: Vec<TcpListener> = Vec::new();
    while found.len() < count {
        let port = rand::rng().random_range(10_000..32_000);
        found.extend(TcpListener::bind(("127.0.0.1", port)).ok());
    }
    found.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// A running example.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    peeked: Option<String>,
    stderr: File,
}

impl Process {
    pub(crate) fn start(name: &'static str, args: &[String]) -> Self {
        Self::start_with(name, args, &[])
    }

    /// Starts it with more in its environment.
    pub(crate) fn start_with(name: &'static str, args: &[String], env: &[(&str, &str)]) -> Self {
        // A file and not a pipe: nobody reads it meanwhile, and a full pipe would hold the process up.
        let stderr = tempfile::tempfile().unwrap();
        let mut child = Command::new(example(name))
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone().unwrap())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        Self { name, child, lines, peeked: None, stderr }
    }

    /// Runs an example to its end.
    pub(crate) fn run(name: &str, args: &[String]) -> Output {
        Command::new(example(name)).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        if let Some(line) = self.peeked.take() {
            return line;
        }
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => line,
            Err(why) => {
                let said = self.kill();
                panic!("{} printed nothing ({why}); it said: {said}", self.name)
            }
        }
    }

    /// SIGKILL. Returns what it wrote to standard error.
    pub(crate) fn kill(&mut self) -> String {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        let mut said = String::new();
        self.stderr.rewind().unwrap();
        self.stderr.read_to_string(&mut said).unwrap();
        said
    }

    /// Sends it a signal, such as `-STOP`.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// SIGTERM, and waits for the end; the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal("-TERM");
        wait_for("a process to end after SIGTERM", || self.child.try_wait().unwrap()).code()
    }

    /// Whether it has printed something, or has ended without; `None` if neither yet. What it printed can be read still.
    pub(crate) fn serves_or_ended(&mut self) -> Option<bool> {
        if self.peeked.is_none() {
            self.peeked = self.lines.try_recv().ok();
        }
        match self.peeked {
            Some(_) => Some(true),
            None => self.child.try_wait().unwrap().map(|_| false),
        }
    }

    /// Waits for its end: the exit code, and what it wrote to standard error.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let code = wait_for("a process to end by itself", || self.child.try_wait().unwrap()).code();
        (code, self.kill())
    }

    /// Bytes that it has resident.
    pub(crate) fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let said = self.kill();
        if thread::panicking() && !said.is_empty() {
            eprintln!("{} said:\n{said}", self.name);
        }
    }
}
