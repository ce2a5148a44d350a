//! `coracle --node HOST:PORT ...`: operates a running node through its admin listener.
//!
//! Invariants: (1) what the node said was certainly not done, and worth another try, is tried again until the timeout;
//! what is unknown is told and never tried again; (2) of several groups each is told about, also when others fail.

mod http;
mod names;
mod show;

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use coracle_io::Clock;
use coracle_io::ring::RealClock;
use serde_json::{Value, json};

use super::Error;
use http::Reply;

/// Groups that are asked for with one request.
const PAGE: u64 = 256;
/// Between two looks at a node that is being drained.
const DRAIN_LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum Operation {
    /// The node, its shards, and its groups: leader, term, log, members.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 overview --limit 20")]
    Overview(Look),
    /// The members of groups, as this node knows them.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 members --group 1")]
    Members(Look),
    /// Takes a node of the cluster up into a group.
    #[command(after_help = "Example, a node that was removed comes back and votes once it has caught up:
  coracle --node 127.0.0.1:8001 add 3 --group 1
The node's process has to run the group (kv runs all of its groups). A node that was not there when the cluster was formed:
start the others again with it among their peers, one after the other, then start it, and add it.")]
    Add(Add),
    /// Takes a node out of a group. It may be the leader, which hands over then.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 remove 3 --all")]
    Remove(Remove),
    /// Hands a group's leadership to a node, or to the voter that holds most of the log.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 transfer 2 --group 1")]
    Transfer(Transfer),
    /// Lets this node's member campaign at once, though there may be a leader.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 elect --group 1")]
    Elect(Elect),
    /// Hands over every group that this node leads, as before it is stopped.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 drain")]
    Drain(Common),
    /// Lets an empty directory take the place of a node whose own is gone for good.
    #[command(after_help = "Example, node 3's disk has died:
  coracle --node 127.0.0.1:8001 remove 3 --all
  coracle --node 127.0.0.1:8001 replace 3
  (start node 3 with an empty data directory)
  coracle --node 127.0.0.1:8001 add 3 --all
One node gives a place away, and any other one names it. --force is for when that one is gone for good, too: on one node
only, ever, or two directories could pass for one member.")]
    Replace(Replace),
    /// Declares nodes gone for good, when so many are that groups have no majority any more; see `shrink`.
    #[command(
        after_help = "Example, on the node where groups are to be shrunk, and on no other:\n  coracle --node 127.0.0.1:8001 lost 2 3"
    )]
    Lost(Lost),
    /// Makes this node the only member of groups that have lost their majority. What only the others had is lost.
    #[command(
        after_help = "Example, nodes 2 and 3 of three are gone for good; ask the one that holds most of the log:
  coracle --node 127.0.0.1:8001 lost 2 3
  coracle --node 127.0.0.1:8001 shrink --all
Then, as usual, with empty directories: `replace 2`, start node 2, `add 2 --all`. Nodes that are left and are not lost have to
be up; they are members no more, and are added again. The node says ever after how often it was done: `recovery_epoch`."
    )]
    Shrink(Shrink),
    /// Named groups: those that the cluster's directory has, another one, or one less.
    #[command(subcommand)]
    Groups(names::Names),
    /// The node's counters, in Prometheus' text format.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 metrics | grep applied")]
    Metrics(Common),
}

#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Common {
    /// Print one JSON object as the last line of stdout.
    #[arg(long)]
    json: bool,
    /// How long to try, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

#[derive(Debug, Args)]
pub(super) struct Look {
    /// Only this group.
    #[arg(long, value_name = "UID")]
    group: Option<u64>,
    /// Groups that are shown, at most; 0: all.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
    #[command(flatten)]
    common: Common,
}

/// Which groups are to be changed. Nothing needs to be said if the node has only one.
#[derive(Debug, Args)]
struct Groups {
    /// The group's uid; may be left out if the node has only one.
    #[arg(long, value_name = "UID", conflicts_with = "all")]
    group: Option<u64>,
    /// Every group of the node, one after the other.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The node's id.
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// What it becomes.
    #[arg(long = "as", value_name = "WHAT", default_value = "promotable")]
    kind: Kind,
    /// Where the node listens for the others; only checked, as nodes are known from the cluster's configuration.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Even if no majority of the new members can be reached now.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    groups: Groups,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Receives the log, and becomes a voter by itself once it has caught up.
    Promotable,
    /// Votes at once, whatever it holds.
    Voter,
    /// Receives the log and never votes.
    NonVoter,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The node's id.
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Even if no majority of the members that are left can be reached now.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    groups: Groups,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Transfer {
    /// The node that is to lead; if left out, the voter that holds most of the log.
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    #[command(flatten)]
    groups: Groups,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Elect {
    #[command(flatten)]
    groups: Groups,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Replace {
    /// The node's id.
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Though this node is not the one that gives the place away: that one is gone for good.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Lost {
    /// The nodes' ids.
    #[arg(value_name = "NODE", required = true, value_parser = clap::value_parser!(u64).range(1..))]
    ids: Vec<u64>,
    /// Though another node has declared them lost: that one is gone for good, too.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Shrink {
    #[command(flatten)]
    groups: Groups,
    #[command(flatten)]
    common: Common,
}

/// What a node refused, or why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeError {
    #[error(
        "cannot reach a node's admin listener at {at}: {why}. Does the node run, with --admin and this address?"
    )]
    Unreachable { at: SocketAddr, why: io::Error },
    #[error(
        "node at {at}: no whole answer ({why}); it is unknown whether the request was done: look before you try again"
    )]
    NoAnswer { at: SocketAddr, why: io::Error },
    #[error("what answers at {at} is no admin listener of a node: {why}")]
    NotANode { at: SocketAddr, why: String },
    #[error("not done: {0}")]
    NotDone(String),
    #[error("unknown whether it was done: {0}")]
    Unknown(String),
    #[error("not everything was done in time: {0}")]
    Late(String),
    #[error("{failed} of {of} groups failed")]
    Some { failed: usize, of: usize },
}

/// A node that is asked, until a deadline.
struct Node {
    at: SocketAddr,
    deadline_us: u64,
}

/// Does it, and prints what came of it.
pub(super) fn run(node: Option<&str>, operation: &Operation) -> Result<(), Error> {
    let Some(text) = node else {
        return Err(Error::Usage(
            "which node? Say --node HOST:PORT, its admin address (that of `kv --admin`)".to_owned(),
        ));
    };
    let usage = |why: String| Error::Usage(format!("--node {text}: {why}; expected HOST:PORT"));
    let at = text.to_socket_addrs().map_err(|error| usage(error.to_string()))?.next();
    let at = at.ok_or_else(|| usage("no address".to_owned()))?;
    let node = |common: &Common| Node { at, deadline_us: RealClock.now_us() + common.timeout * 1_000_000 };
    match operation {
        Operation::Overview(look) => node(&look.common).look(look, show::overview),
        Operation::Members(look) => node(&look.common).look(look, show::members),
        Operation::Add(add) => {
            let kind = match add.kind {
                Kind::Promotable => "promotable",
                Kind::Voter => "voter",
                Kind::NonVoter => "non_voter",
            };
            let mut body = json!({ "node": add.id, "as": kind, "force": add.force });
            if let Some(address) = &add.address {
                body["address"] = address.as_str().into();
            }
            let later = if add.kind == Kind::Promotable { "; it votes once it has caught up" } else { "" };
            let said = |_: &Value| format!("node {} is added as {kind}{later}", add.id);
            node(&add.common).change("add", &body, &add.groups, add.common, said)
        }
        Operation::Remove(remove) => {
            let body = json!({ "node": remove.id, "force": remove.force });
            let said = |_: &Value| format!("node {} is removed", remove.id);
            node(&remove.common).change("remove", &body, &remove.groups, remove.common, said)
        }
        Operation::Transfer(transfer) => {
            let body = transfer.to.map_or(json!({}), |to| json!({ "to": to }));
            let said = |done: &Value| format!("node {} leads", done["leader"]);
            node(&transfer.common).change("transfer", &body, &transfer.groups, transfer.common, said)
        }
        Operation::Elect(elect) => {
            let said = |done: &Value| format!("node {} campaigns", done["candidate"]);
            node(&elect.common).change("elect", &json!({}), &elect.groups, elect.common, said)
        }
        Operation::Drain(common) => node(common).drain(*common),
        Operation::Lost(lost) => node(&lost.common).lost(lost),
        Operation::Shrink(shrink) => {
            let said = |done: &Value| format!("node {} is the only member now", done["member"]);
            node(&shrink.common).change("shrink", &json!({}), &shrink.groups, shrink.common, said)
        }
        Operation::Replace(replace) => node(&replace.common).replace(replace),
        Operation::Groups(names) => node(names.common()).names(names),
        Operation::Metrics(common) => node(common).metrics(*common),
    }
}

impl Node {
    fn left(&self) -> Duration {
        Duration::from_micros(self.deadline_us.saturating_sub(RealClock.now_us()))
    }

    /// Asks until it is done, refused for good, unknown, or too late.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, NodeError> {
        let body = body.map(Value::to_string);
        loop {
            let reply = http::ask(self.at, method, path, body.as_deref(), self.left())?;
            let not_a_node = |why: String| NodeError::NotANode { at: self.at, why };
            let value: Value =
                serde_json::from_slice(&reply.body).map_err(|error| not_a_node(error.to_string()))?;
            let message = || value["message"].as_str().unwrap_or("it does not say why").to_owned();
            match value["outcome"].as_str() {
                Some("done") => return Ok(value),
                Some("unknown") => return Err(NodeError::Unknown(message())),
                Some("not_done") => {
                    let pause = value["retry_after_ms"].as_u64().map(Duration::from_millis);
                    match pause.filter(|pause| *pause < self.left()) {
                        // Nothing tells when it is worth another try: so the node's own advice it is.
                        Some(pause) => thread::park_timeout(pause.max(Duration::from_millis(10))),
                        None => return Err(NodeError::NotDone(message())),
                    }
                }
                _ => return Err(not_a_node(format!("status {}", reply.status))),
            }
        }
    }

    fn lost(&self, lost: &Lost) -> Result<(), Error> {
        let body = json!({ "nodes": lost.ids, "force": lost.force });
        let done = self.ask("POST", "/api/lost", Some(&body))?;
        if lost.common.json {
            println!("{done}");
        } else {
            lost.ids
                .iter()
                .for_each(|id| println!("node {id} is lost: its directory is refused from now on"));
        }
        Ok(())
    }

    fn replace(&self, replace: &Replace) -> Result<(), Error> {
        let path = format!("/api/nodes/{}/replace", replace.id);
        let done = self.ask("POST", &path, Some(&json!({ "force": replace.force })))?;
        match replace.common.json {
            true => println!("{done}"),
            false => println!(
                "an empty directory may take the place of node {}: start it, then add it",
                replace.id
            ),
        }
        Ok(())
    }

    /// The overview with groups after another, so many at most; 0: all.
    fn overview(&self, limit: u64) -> Result<Value, NodeError> {
        let page = |after: u64, count: u64| {
            self.ask("GET", &format!("/api/overview?after={after}&limit={count}"), None)
        };
        let left = |shown: usize| if limit == 0 { PAGE } else { limit - shown as u64 };
        let mut overview = page(0, left(0).min(PAGE))?;
        let mut groups = std::mem::take(&mut overview["groups"]).as_array().cloned().unwrap_or_default();
        while let Some(after) = overview["next"].as_u64().filter(|_| left(groups.len()) > 0) {
            let mut more = page(after, left(groups.len()).min(PAGE))?;
            groups.extend(std::mem::take(&mut more["groups"]).as_array().cloned().unwrap_or_default());
            overview["next"] = more["next"].take();
        }
        overview["groups"] = groups.into();
        Ok(overview)
    }

    fn look(&self, look: &Look, show: fn(&mut dyn Write, &Value) -> io::Result<()>) -> Result<(), Error> {
        let told = match look.group {
            None => self.overview(look.limit)?,
            Some(group) => {
                let mut overview = self.overview(1)?;
                let group = self.ask("GET", &format!("/api/groups/{group}"), None)?;
                overview["groups"] = vec![group].into();
                overview["next"] = Value::Null;
                overview
            }
        };
        let mut out = io::stdout().lock();
        if look.common.json {
            writeln!(out, "{told}")?;
        } else {
            show(&mut out, &told)?;
        }
        if !told["next"].is_null() {
            let (shown, all) = (told["groups"].as_array().map_or(0, Vec::len), &told["groups_total"]);
            eprintln!("coracle: {shown} of {all} groups are shown; --limit 0 shows all");
        }
        Ok(())
    }

    /// The groups that are meant.
    fn groups(&self, groups: &Groups) -> Result<Vec<u64>, Error> {
        if let Some(group) = groups.group {
            return Ok(vec![group]);
        }
        let overview = self.overview(if groups.all { 0 } else { 2 })?;
        let found: Vec<u64> = overview["groups"]
            .as_array()
            .map(|groups| groups.iter().filter_map(|group| group["group"].as_u64()).collect())
            .unwrap_or_default();
        match found.len() {
            0 => Err(NodeError::NotDone("no group runs on this node".to_owned()).into()),
            2.. if !groups.all => Err(Error::Usage(format!(
                "the node has {} groups: which? Say --group UID, or --all; nothing was changed",
                overview["groups_total"]
            ))),
            _ => Ok(found),
        }
    }

    /// Changes each group, and tells about each.
    fn change(
        &self,
        verb: &str,
        body: &Value,
        groups: &Groups,
        common: Common,
        said: impl Fn(&Value) -> String,
    ) -> Result<(), Error> {
        let is_all = groups.all;
        let mut groups = self.groups(groups)?;
        // The directory of named groups, if there is one, is a group, too; it takes nodes up by itself.
        if is_all && verb != "add" && self.ask("GET", "/api/groups/0", None).is_ok() {
            groups.push(0);
        }
        let (mut ends, mut failures) = (Vec::with_capacity(groups.len()), Vec::new());
        for group in &groups {
            match self.ask("POST", &format!("/api/groups/{group}/{verb}"), Some(body)) {
                Ok(done) => {
                    if !common.json {
                        writeln!(io::stdout(), "group {group}: {}", said(&done))?;
                    }
                    ends.push(done);
                }
                Err(error) => {
                    let outcome = match &error {
                        NodeError::NotDone(_) | NodeError::Unreachable { .. } => "not_done",
                        _ => "unknown",
                    };
                    ends.push(json!({ "group": group, "outcome": outcome, "message": error.to_string() }));
                    if groups.len() > 1 {
                        eprintln!("coracle: group {group}: {error}");
                    }
                    failures.push(error);
                }
            }
        }
        if common.json {
            writeln!(io::stdout(), "{}", json!({ "groups": ends }))?;
        }
        match (failures.len(), failures.pop()) {
            (_, None) => Ok(()),
            (_, Some(error)) if groups.len() == 1 => Err(error.into()),
            (failed, Some(_)) => Err(NodeError::Some { failed, of: groups.len() }.into()),
        }
    }

    /// Asks again until nothing is left that could be handed over.
    fn drain(&self, common: Common) -> Result<(), Error> {
        let mut handed_over = 0;
        loop {
            let done = self.ask("POST", "/api/drain", Some(&json!({})))?;
            let left = done["handing_over"].as_u64().unwrap_or(0);
            handed_over = left.max(handed_over);
            let (node, kept) = (&done["node"], done["kept"].as_u64().unwrap_or(0));
            let is_late = self.left() <= DRAIN_LOOK;
            // What is kept now may be gone in a moment: a link may just have come up.
            if left == 0 && (kept == 0 || is_late) {
                if common.json {
                    let told = json!({ "node": node, "handed_over": handed_over, "kept": kept });
                    writeln!(io::stdout(), "{told}")?;
                } else {
                    writeln!(io::stdout(), "node {node} has handed over {handed_over} groups")?;
                }
                return match kept {
                    0 => Ok(()),
                    kept => Err(NodeError::NotDone(format!(
                        "node {node} still leads {kept} groups, which it cannot hand over: no other voter of theirs can \
                         be reached, or a member has to be upgraded first"
                    ))
                    .into()),
                };
            }
            if is_late {
                return Err(NodeError::Late(format!("{left} groups are still being handed over")).into());
            }
            thread::park_timeout(DRAIN_LOOK);
        }
    }

    fn metrics(&self, common: Common) -> Result<(), Error> {
        let Reply { status, body } = http::ask(self.at, "GET", "/metrics", None, self.left())?;
        let text = String::from_utf8_lossy(&body);
        if status != 200 {
            // Refusals are JSON, whatever was asked for.
            self.ask("GET", "/health/ready", None)?;
            return Err(NodeError::NotDone(format!("status {status}: {text}")).into());
        }
        let mut out = io::stdout().lock();
        match common.json {
            true => writeln!(out, "{}", show::metrics_object(&text))?,
            false => write!(out, "{text}")?,
        }
        Ok(())
    }
}
