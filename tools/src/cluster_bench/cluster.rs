//! The nodes' processes: started, asked over pipes, and never left behind.
//!
//! Invariants: (1) every answer is awaited with a deadline, and a node that ends is told with what it wrote to standard
//! error; (2) when the bench ends, also by ctrl-c, the processes are killed and their data is removed. (If the bench is
//! killed, their standard input ends, and so do they.)

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use coracle_io::Clock;
use coracle_io::ring::RealClock;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use super::options::{ClusterOptions, Machines};

/// How long a node may take for an answer, beside the time that it was told to work.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How much longer a node may take to start: it may have large logs.
const START_WITHIN: Duration = Duration::from_secs(240);

/// How often the bench looks whether all nodes are alive, while it waits.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a cluster could not be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
    #[error("node {node} ended ({status}) while the bench asked to {asked}; it said:\n{stderr}")]
    Ended { node: u64, asked: String, status: String, stderr: String },
    #[error("node {node} did not {asked} within {} s; it said:\n{stderr}", .within.as_secs())]
    Late { node: u64, asked: String, within: Duration, stderr: String },
    #[error("node {node} cannot {asked}: {reason}")]
    Refused { node: u64, asked: String, reason: String },
}

fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClusterError {
    let what = what.into();
    move |source| ClusterError::System { what, source }
}

/// The processes of one bench.
pub(crate) struct Cluster {
    options: ClusterOptions,
    machines: Machines,
    /// The node that was killed and not started again.
    down: Option<usize>,
    /// All nodes' addresses, as a node is told them.
    peers: String,
    path: PathBuf,
    nodes: Vec<NodeProcess>,
    remains: Arc<Remains>,
}

struct NodeProcess {
    id: u64,
    stdin: ChildStdin,
    answers: Receiver<String>,
    stderr: PathBuf,
}

/// What must not be left behind.
struct Remains {
    children: Mutex<Vec<Child>>,
    dir: Mutex<Option<TempDir>>,
}

impl Remains {
    fn kill(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        for child in children.iter_mut() {
            // It may have ended by itself; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn remove(&self) {
        self.kill();
        drop(self.dir.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.remains.remove();
    }
}

impl Cluster {
    /// Starts the nodes' processes and waits until their groups run.
    pub(crate) fn start(options: &ClusterOptions, machines: Machines) -> Result<Self, ClusterError> {
        let parent = options.dir.clone().unwrap_or_else(default_dir);
        fs::create_dir_all(&parent).map_err(system(parent.display().to_string()))?;
        let dir = tempfile::Builder::new().prefix("cluster-bench-").tempdir_in(&parent);
        let dir = dir.map_err(system(parent.display().to_string()))?;
        let path = dir.path().to_owned();
        let remains = Arc::new(Remains { children: Mutex::default(), dir: Mutex::new(Some(dir)) });
        remove_on_signal(&remains)?;

        let peers = free_addresses(options.nodes())?;
        let peers = peers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
        let options = options.clone();
        let mut cluster = Self { options, machines, down: None, peers, path, nodes: Vec::new(), remains };
        for id in 1..=cluster.options.nodes() {
            let dir = cluster.dir(id);
            fs::create_dir(&dir).map_err(system(dir.display().to_string()))?;
        }
        cluster.begin()?;
        Ok(cluster)
    }

    /// Kills all nodes (SIGKILL), and starts them again with what they have on disk. What each says of its start.
    pub(crate) fn restart(&mut self) -> Result<Vec<Value>, ClusterError> {
        // Before their pipes are closed, which would be a request to stop in good order.
        self.remains.kill();
        self.remains.children.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.nodes.clear();
        self.begin()
    }

    /// Kills one node (SIGKILL).
    pub(crate) fn kill(&mut self, at: usize) {
        let mut children = self.remains.children.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself; then there is nothing to kill.
        let _ = children[at].kill();
        let _ = children[at].wait();
        self.down = Some(at);
    }

    /// Starts the node that was killed again.
    pub(crate) fn revive(&mut self) -> Result<(), ClusterError> {
        let Some(at) = self.down.take() else { return Ok(()) };
        self.spawn(at as u64 + 1)?;
        // It has been waited for when it was killed; the new one, which is the last, takes its place.
        let mut children = self.remains.children.lock().unwrap_or_else(PoisonError::into_inner);
        let last = children.len() - 1;
        children.swap(at, last);
        children.truncate(last);
        drop(children);
        self.nodes.swap_remove(at);
        self.answer(at, "start", START_WITHIN).map(drop)
    }

    fn begin(&mut self) -> Result<Vec<Value>, ClusterError> {
        (1..=self.options.nodes()).try_for_each(|id| self.spawn(id))?;
        (0..self.nodes.len()).map(|at| self.answer(at, "start", START_WITHIN)).collect()
    }

    fn dir(&self, id: u64) -> PathBuf {
        self.path.join(format!("node-{id}"))
    }

    fn spawn(&mut self, id: u64) -> Result<(), ClusterError> {
        let (dir, options) = (self.dir(id), &self.options);
        let program = std::env::current_exe().map_err(system("the bench's own program"))?;
        let stderr = dir.join("stderr");
        let errors = File::create(&stderr).map_err(system(stderr.display().to_string()))?;
        let mut child = Command::new(program)
            .args(["node", "--id", &id.to_string(), "--peers", &self.peers])
            .args(["--groups", &options.groups().to_string(), "--shards", &options.shards.to_string()])
            .args(["--strategy", &options.strategy.to_string()])
            .args(["--machines", &self.machines.to_string()])
            .arg("--dir")
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(system(format!("node {id} does not start")))?;
        let pipes = (child.stdin.take(), child.stdout.take());
        self.remains.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        let (Some(stdin), Some(stdout)) = pipes else { unreachable!("both were asked for") };
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        self.nodes.push(NodeProcess { id, stdin, answers, stderr });
        Ok(())
    }

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Asks one node, by its place from 0, for something that takes it about `time`.
    pub(crate) fn ask(&mut self, at: usize, request: &Value, time: Duration) -> Result<Value, ClusterError> {
        self.request(at, request);
        self.answer(at, request["do"].as_str().unwrap_or_default(), time)
    }

    /// Asks all nodes at once; answers in the nodes' order.
    pub(crate) fn ask_all(&mut self, what: &str) -> Result<Vec<Value>, ClusterError> {
        (0..self.nodes.len()).for_each(|at| self.request(at, &json!({ "do": what })));
        (0..self.nodes.len()).map(|at| self.answer(at, what, Duration::ZERO)).collect()
    }

    fn request(&mut self, at: usize, request: &Value) {
        // If the node has ended, its missing answer tells.
        let _ = writeln!(self.nodes[at].stdin, "{request}");
    }

    fn answer(&mut self, at: usize, asked: &str, time: Duration) -> Result<Value, ClusterError> {
        let (node, within, asked) = (self.nodes[at].id, ANSWER_WITHIN + time, asked.to_owned());
        let begun_us = RealClock.now_us();
        loop {
            match self.nodes[at].answers.recv_timeout(LOOK_EVERY) {
                Ok(line) => {
                    let mut answer: Value = serde_json::from_str(&line).unwrap_or_default();
                    let Some(ok) = answer.get_mut("ok") else {
                        let reason = answer["error"].as_str().unwrap_or(&line).to_owned();
                        return Err(ClusterError::Refused { node, asked, reason });
                    };
                    return Ok(ok.take());
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended(at, asked)),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Whichever it is: without one of its nodes a cluster is not what was to be measured.
            if let Some(ended) = self.find_ended() {
                return Err(self.ended(ended, asked));
            }
            if u128::from(RealClock.now_us() - begun_us) > within.as_micros() {
                return Err(ClusterError::Late { node, asked, within, stderr: self.stderr(at) });
            }
        }
    }

    /// The error that a node is too slow.
    pub(crate) fn late(&self, at: usize, asked: String, within: Duration) -> ClusterError {
        ClusterError::Late { node: self.nodes[at].id, asked, within, stderr: self.stderr(at) }
    }

    /// A node whose process has ended.
    fn find_ended(&self) -> Option<usize> {
        let mut children = self.remains.children.lock().unwrap_or_else(PoisonError::into_inner);
        let ended =
            |(at, child): (usize, &mut Child)| Some(at) != self.down && !matches!(child.try_wait(), Ok(None));
        children.iter_mut().enumerate().map(ended).position(|ended| ended)
    }

    fn ended(&self, at: usize, asked: String) -> ClusterError {
        let mut children = self.remains.children.lock().unwrap_or_else(PoisonError::into_inner);
        let status = children[at].wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        ClusterError::Ended { node: self.nodes[at].id, asked, status, stderr: self.stderr(at) }
    }

    fn stderr(&self, at: usize) -> String {
        fs::read_to_string(&self.nodes[at].stderr).unwrap_or_else(|error| format!("(not readable: {error})"))
    }
}

/// Where the data goes if nothing is said: most likely a real disk.
fn default_dir() -> PathBuf {
    let target = PathBuf::from("target");
    if target.is_dir() { target } else { std::env::temp_dir() }
}

/// Loopback addresses that were free a moment ago, all different.
fn free_addresses(count: u64) -> Result<Vec<SocketAddr>, ClusterError> {
    let bind = |_| TcpListener::bind("127.0.0.1:0");
    let sockets: Vec<TcpListener> =
        (0..count).map(bind).collect::<Result<_, _>>().map_err(system("loopback"))?;
    sockets.iter().map(TcpListener::local_addr).collect::<Result<_, _>>().map_err(system("loopback"))
}

fn remove_on_signal(remains: &Arc<Remains>) -> Result<(), ClusterError> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(system("signal handlers"))?;
    let remains = remains.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            remains.remove();
            eprintln!("cluster-bench: interrupted");
            std::process::exit(1);
        }
    });
    Ok(())
}
