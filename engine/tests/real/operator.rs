//! An operator who changes a running cluster through its admin listeners, whatever else happens to it: members leave and come
//! back, one group after the other, and leadership moves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::{Value, json};

use crate::process::wait_for;

/// Longer than a listener takes for any answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a member to come back while nodes fail around it, several times as long as it ever took.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
/// Between two wishes.
const PAUSE: Duration = Duration::from_millis(20);

/// How often each wish was done.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) removals: u64,
    pub(crate) additions: u64,
    pub(crate) transfers: u64,
    /// Wishes that were refused, or of which nobody knows.
    failed: u64,
}

pub(crate) struct Operator<'a> {
    /// The nodes' listeners, node 1's first.
    admins: &'a [SocketAddr],
    stop: &'a AtomicBool,
    changes: Changes,
}

impl<'a> Operator<'a> {
    pub(crate) fn new(admins: &'a [SocketAddr], stop: &'a AtomicBool) -> Self {
        Self { admins, stop, changes: Changes::default() }
    }

    /// Changes groups until told to stop; then all of them have all members.
    pub(crate) fn work(mut self) -> Changes {
        let groups = wait_for("the groups as a listener tells them", || self.groups());
        while !self.stop.load(Ordering::Relaxed) {
            let group = groups[rand::rng().random_range(0..groups.len())];
            let is_done = match rand::rng().random_range(0..3) {
                0 => self.wish(group, "transfer", &json!({})),
                _ => self.swap_out(group),
            };
            self.changes.failed += u64::from(!is_done);
            thread::park_timeout(PAUSE);
        }
        groups.iter().for_each(|group| self.make_whole(*group));
        self.changes
    }

    /// One member leaves and comes back. The group is made whole before another one is touched, so that a fault of one
    /// node stops few groups.
    fn swap_out(&mut self, group: u64) -> bool {
        let node = rand::rng().random_range(1..=self.admins.len() as u64);
        let is_removed = self.wish(group, "remove", &json!({ "node": node }));
        self.make_whole(group);
        is_removed
    }

    /// Takes up who is missing, until all nodes vote in a group. That this ends, whatever fails meanwhile, is tested, too.
    fn make_whole(&mut self, group: u64) {
        let begun = Instant::now();
        while let Some(node) = (1..=self.admins.len() as u64).find(|node| !self.has_voter(group, *node)) {
            assert!(begun.elapsed() < WHOLE_WITHIN, "node {node} does not come back into group {group}");
            let role = if rand::rng().random() { "voter" } else { "promotable" };
            self.changes.failed += u64::from(!self.wish(group, "add", &json!({ "node": node, "as": role })));
            thread::park_timeout(PAUSE);
        }
    }

    /// Whether a node votes in a group, as that node sees it that knows most; false if none is to be asked.
    fn has_voter(&self, group: u64, node: u64) -> bool {
        let told = self.admins.iter().filter_map(|at| ask(*at, "GET", &format!("/api/groups/{group}"), ""));
        let newest = told.max_by_key(|told| (told["commit"].as_u64(), told["members_index"].as_u64()));
        let members = newest.and_then(|told| told["members"].as_array().cloned()).unwrap_or_default();
        members.iter().any(|member| member["node"] == node && member["is"] == "voter")
    }

    /// Asks any node. Whether it was done.
    fn wish(&mut self, group: u64, what: &str, body: &Value) -> bool {
        let at = self.admins[rand::rng().random_range(0..self.admins.len())];
        let told = ask(at, "POST", &format!("/api/groups/{group}/{what}"), &body.to_string());
        let is_done = told.is_some_and(|told| told["outcome"] == "done");
        let count = match what {
            "remove" => &mut self.changes.removals,
            "add" => &mut self.changes.additions,
            _ => &mut self.changes.transfers,
        };
        *count += u64::from(is_done);
        is_done
    }

    fn groups(&self) -> Option<Vec<u64>> {
        let told = ask(self.admins[0], "GET", "/api/overview", "")?;
        let uids = told["groups"].as_array()?.iter().filter_map(|group| group["group"].as_u64()).collect();
        Some(uids).filter(|uids: &Vec<u64>| !uids.is_empty())
    }
}

/// One request, and the object that came back, if one did.
pub(crate) fn ask(at: SocketAddr, method: &str, path: &str, body: &str) -> Option<Value> {
    serde_json::from_str(&http(at, method, path, body)?).ok()
}

/// A counter or gauge of a node's first shard, if the node answers.
pub(crate) fn metric(at: SocketAddr, name: &str) -> Option<u64> {
    let text = http(at, "GET", "/metrics", "")?;
    let sample = text.lines().find(|line| line.starts_with(&format!("coracle_{name}{{")))?;
    sample.rsplit_once(' ')?.1.parse().ok()
}

/// One request, and what came back, if anything did.
fn http(at: SocketAddr, method: &str, path: &str, body: &str) -> Option<String> {
    let mut socket = TcpStream::connect(at).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: kv\r\ncontent-type: application/json\r\n");
    write!(socket, "{head}content-length: {}\r\n\r\n{body}", body.len()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}
