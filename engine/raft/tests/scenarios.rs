//! Runs the stories in `testdata/*.txt`: commands, a line `----`, and what a small cluster does then, word for word.
//! `REWRITE=1` writes what it does now into the files; read the difference before you believe it.
//!
//! ```text
//!   nodes 3 [append_entries=1 window_messages=2]  three members, new, links down. Disks answer at once unless held
//!   nodes 5 founders=3        the first three are members, the others wait to be made some
//!   node 2 log=1,1,4 term=6 [vote=3] [accepted=7] [snapshot=2:1] [suspect] [old] [hold]   starts node 2 from
//!                       this state instead; `old`: it may have forgotten votes, `hold`: it holds back for 100 ms
//!   links up            every link              link up|down 1-2     one, as both ends see it
//!   tick 1              time goes to node 1's deadline, if it has one
//!   deliver [1->2] [n]  everything under way, until nothing is left; or what node 1 sent to node 2 (n messages)
//!   drop 1->2 [n]       loses it                double 1->2          the first message arrives twice
//!   swap 1->2           the first two change places                  keep 1->2   all but the last are lost
//!   hold 2              node 2's disk answers only to `write 2 [n]`  free 2      answers what is open, and at once again
//!   propose 1 3         three entries           read 1 7             a linearizable read with token 7
//!   change 1 +4 ~5 ^6 -2 [force]                  4 a voter, 5 a learner, 6 promotable, 2 out
//!   transfer 1 [2]            1 hands over (to 2)     campaign 2     2 is told to     resign 1    it stops leading
//!   shrink 2                                         node 2 becomes the only member, whoever the others were
//!   crash 2 [n]         n of the writes in flight reach the disk     start 2 [suspect] [old] [hold]
//!   forget 2            somebody says that node 2 has less than it had
//!   snapshot 1 5        node 1 has a durable snapshot at 5           disk 1 5    node 1 holds entries up to 5 on disk only
//!   fetch 1             node 1's disk returns the entries asked for
//!   members             what each takes for the members: `1 2 3` voters, `(2)` leaving, `~4` learner, `^4>9` promotable
//!   show, log, net      members, logs, messages under way            quietly ... the command, without its output
//! ```

#![allow(clippy::unwrap_used)]

mod model;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::Path;

use coracle_base::{Index, NodeId, Term};
use coracle_raft::{
    Change, Config, HardState, Input, Members, Membership, Message, Output, PeerMode, Role, Spans,
};
use model::{Disk, Entries, Entry, Memory, Node, Packet};

#[derive(Default)]
struct Story {
    now_us: u64,
    nodes: BTreeMap<u64, Node>,
    configs: BTreeMap<u64, Config>,
    crashed: BTreeMap<u64, Disk>,
    links: BTreeSet<(u64, u64)>,
    held: BTreeSet<u64>,
    net: VecDeque<Packet>,
    says: u64,
    text: String,
}

impl Story {
    fn run(&mut self, line: &str) -> String {
        self.text.clear();
        if let Some(line) = line.strip_prefix("quietly ") {
            self.command(line);
            self.text.clear();
            return "done\n".into();
        }
        self.command(line);
        if self.text.is_empty() {
            self.text.push_str("nothing\n");
        }
        std::mem::take(&mut self.text)
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        let node = || number(1).unwrap_or_else(|| panic!("which node? {line}"));
        match words[0] {
            "nodes" => self.nodes(node(), &words[2..]),
            "node" => self.node(node(), &words[2..]),
            "links" => self.links_up(),
            "link" => self.link(words[1] == "up", words[2]),
            "tick" => self.tick(node()),
            "deliver" if words.len() == 1 => self.deliver_all(),
            "deliver" => self.deliver(way(words[1]), number(2).unwrap_or(u64::MAX)),
            "drop" => self.lose(way(words[1]), number(2).unwrap_or(u64::MAX)),
            "keep" => {
                let sent = self.under_way(way(words[1])).len() as u64;
                self.lose(way(words[1]), sent.saturating_sub(1));
            }
            "double" => {
                let at = self.under_way(way(words[1]))[0];
                self.net.insert(at, self.net[at].clone());
            }
            "swap" => {
                let at = self.under_way(way(words[1]));
                self.net.swap(at[0], at[1]);
            }
            "hold" => _ = self.held.insert(node()),
            "free" => {
                self.held.remove(&node());
                self.write(node(), u64::MAX);
            }
            "write" => self.write(node(), number(2).unwrap_or(1)),
            "propose" => self.propose(node(), number(2).unwrap_or(1)),
            "read" => self.read(node(), number(2).expect("a token")),
            "change" => self.change(node(), &words[2..]),
            "transfer" => {
                let now_us = self.now_us;
                let to = number(2).map(NodeId);
                match self.nodes.get_mut(&node()).unwrap().group.transfer(now_us, to) {
                    Ok(to) => _ = writeln!(self.text, "to {to}"),
                    Err(error) => _ = writeln!(self.text, "{error}"),
                }
                self.turn(node(), |_, _| Vec::new());
            }
            "campaign" => {
                let now_us = self.now_us;
                if !self.nodes.get_mut(&node()).unwrap().group.trigger_election(now_us) {
                    self.text.push_str("it does not\n");
                }
                self.turn(node(), |_, _| Vec::new());
            }
            "shrink" => {
                let now_us = self.now_us;
                let mut out = Vec::new();
                if let Err(error) = self.nodes.get_mut(&node()).unwrap().group.shrink(now_us, &mut out) {
                    let _ = writeln!(self.text, "{error}");
                }
                self.turn(node(), |_, _| out);
            }
            "resign" => self.turn(node(), |node, now_us| {
                let mut out = Vec::new();
                node.group.resign(now_us, &mut out);
                out
            }),
            "members" => self.members(),
            "crash" => self.crash(node(), number(2).unwrap_or(0)),
            "start" => self.start(node(), memory(&words[2..])),
            "forget" => self.turn(node(), |node, now_us| node.step(now_us, Input::VotesLost)),
            "snapshot" => {
                let index = Index(number(2).expect("an index"));
                self.turn(node(), |node, now_us| node.release(now_us, index));
            }
            "disk" => self.nodes.get_mut(&node()).unwrap().resident_from = Index(number(2).unwrap() + 1),
            "fetch" => self.turn(node(), |node, now_us| node.complete_fetch(now_us, u64::MAX)),
            "show" => self.show(),
            "log" => self.logs(),
            "net" => {
                for packet in &self.net {
                    let _ = writeln!(self.text, "{} -> {} {}", packet.from, packet.to, said(&packet.message));
                }
            }
            other => panic!("unknown command {other}"),
        }
    }

    fn nodes(&mut self, count: u64, settings: &[&str]) {
        let founders = settings.iter().find_map(|setting| setting.strip_prefix("founders="));
        let founders: u64 = founders.map_or(count, |number| number.parse().unwrap());
        for id in 1..=count {
            let members = if id <= founders { founders } else { 0 };
            let mut config = Config::new(NodeId(id), (1..=members).map(NodeId));
            for setting in settings {
                let (name, value) = setting.split_once('=').expect("name=value");
                let value: u32 = value.parse().unwrap();
                match name {
                    "founders" => {}
                    "append_entries" => config.append_entries_max = value,
                    "window_messages" => config.window_messages = value,
                    other => panic!("unknown setting {other}"),
                }
            }
            self.configs.insert(id, config.clone());
            self.nodes.insert(id, Node::new(config, Disk::default(), Memory::default(), self.now_us));
        }
    }

    fn node(&mut self, id: u64, settings: &[&str]) {
        let config = self.configs[&id].clone();
        let mut accepted = None;
        let (mut log, mut term, mut vote) = (Entries::default(), Term::ZERO, NodeId::NONE);
        for setting in settings {
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            match name {
                "log" => {
                    for term in value.split(',').filter(|term| !term.is_empty()) {
                        let term = Term(term.parse().unwrap());
                        log.held.push(Entry::says(term, log.last().0 + 1));
                    }
                }
                "snapshot" => {
                    let (index, term) = value.split_once(':').unwrap();
                    (log.base, log.base_term) = (Index(index.parse().unwrap()), Term(term.parse().unwrap()));
                }
                "term" => term = Term(value.parse().unwrap()),
                "accepted" => accepted = Some(Term(value.parse().unwrap())),
                "vote" => vote = NodeId(value.parse().unwrap()),
                "suspect" | "old" | "hold" => {}
                other => panic!("unknown setting {other}"),
            }
        }
        let newest = log.terms().last().map_or(log.base_term, |&(_, term)| term);
        let accepted_term = accepted.unwrap_or(newest);
        let members = Members::of_voters(config.voters.iter().copied());
        let hard_state = HardState { term, vote, ..HardState::new(members) };
        let disk = Disk { hard_state: Some(hard_state), log, accepted_term };
        self.nodes.insert(id, Node::new(config, disk, memory(settings), self.now_us));
    }

    fn links_up(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for (a, b) in ids.iter().flat_map(|&a| ids.iter().map(move |&b| (a, b))) {
            if a < b && !self.links.contains(&(a, b)) {
                self.connect(a, b);
            }
        }
    }

    fn link(&mut self, up: bool, ends: &str) {
        let (a, b) = ends.split_once('-').expect("a-b");
        let (a, b): (u64, u64) = (a.parse().unwrap(), b.parse().unwrap());
        if up { self.connect(a, b) } else { self.disconnect(a, b) }
    }

    fn connect(&mut self, a: u64, b: u64) {
        self.links.insert((a.min(b), a.max(b)));
        self.turn(a, |node, now_us| node.step(now_us, Input::LinkUp(NodeId(b))));
        self.turn(b, |node, now_us| node.step(now_us, Input::LinkUp(NodeId(a))));
    }

    fn disconnect(&mut self, a: u64, b: u64) {
        self.links.remove(&(a.min(b), a.max(b)));
        self.net.retain(|packet| ![(a, b), (b, a)].contains(&(packet.from.0, packet.to.0)));
        self.turn(a, |node, now_us| node.step(now_us, Input::LinkDown(NodeId(b))));
        self.turn(b, |node, now_us| node.step(now_us, Input::LinkDown(NodeId(a))));
    }

    fn tick(&mut self, id: u64) {
        match self.nodes[&id].group.deadline_us() {
            Some(due) => {
                self.now_us = self.now_us.max(due);
                self.turn(id, |node, now_us| node.step(now_us, Input::Tick));
            }
            None => self.text.push_str("it waits for nothing\n"),
        }
    }

    /// One turn of a node's shard: an input, the drain, and the disk's answer unless it is held.
    fn turn(&mut self, id: u64, input: impl FnOnce(&mut Node, u64) -> Vec<Output>) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let mut out = input(node, now_us);
        out.extend(node.drain(now_us));
        if !self.held.contains(&id) {
            while !node.writes.is_empty() {
                out.extend(node.complete_write(now_us));
                out.extend(node.drain(now_us));
            }
        }
        for packet in std::mem::take(&mut node.sent) {
            let (a, b) = (packet.from.0, packet.to.0);
            if self.links.contains(&(a.min(b), a.max(b))) {
                self.net.push_back(packet);
            }
        }
        out.iter().for_each(|output| print(&mut self.text, id, output));
    }

    fn under_way(&self, (from, to): (u64, u64)) -> Vec<usize> {
        (0..self.net.len()).filter(|&at| (self.net[at].from.0, self.net[at].to.0) == (from, to)).collect()
    }

    fn deliver_all(&mut self) {
        for _ in 0..1000 {
            let Some(packet) = self.net.pop_front() else { return };
            self.turn(packet.to.0, |node, now_us| node.receive(now_us, packet));
        }
        panic!("the messages never end");
    }

    fn deliver(&mut self, way: (u64, u64), most: u64) {
        for _ in 0..most.min(self.under_way(way).len() as u64) {
            let packet = self.net.remove(self.under_way(way)[0]).unwrap();
            self.turn(packet.to.0, |node, now_us| node.receive(now_us, packet));
        }
    }

    fn lose(&mut self, way: (u64, u64), most: u64) {
        for _ in 0..most.min(self.under_way(way).len() as u64) {
            let packet = self.net.remove(self.under_way(way)[0]).unwrap();
            let _ = writeln!(self.text, "lost: {} -> {} {}", packet.from, packet.to, said(&packet.message));
        }
    }

    fn write(&mut self, id: u64, most: u64) {
        for _ in 0..most.min(self.nodes[&id].writes.len() as u64) {
            self.turn(id, |node, now_us| node.complete_write(now_us));
        }
    }

    fn propose(&mut self, id: u64, count: u64) {
        let says: Vec<u64> = (1..=count).map(|n| self.says + n).collect();
        self.says += count;
        match self.nodes.get_mut(&id).unwrap().propose(&says) {
            Ok(_) => self.turn(id, |_, _| Vec::new()),
            Err(error) => _ = writeln!(self.text, "{error}"),
        }
    }

    fn change(&mut self, id: u64, words: &[&str]) {
        let force = words.contains(&"force");
        let changes: Vec<Change> = (words.iter().filter(|word| **word != "force"))
            .map(|word| {
                let node = NodeId(word[1..].parse().expect("a node"));
                match &word[..1] {
                    "+" => Change::Voter(node),
                    "~" => Change::Learner(node),
                    "^" => Change::Promotable(node),
                    "-" => Change::Remove(node),
                    other => panic!("unknown change {other}"),
                }
            })
            .collect();
        let (result, out) = self.nodes.get_mut(&id).unwrap().change(self.now_us, &changes, force);
        match result {
            Ok(_) => self.turn(id, |_, _| out),
            Err(error) => _ = writeln!(self.text, "{error}"),
        }
    }

    fn members(&mut self) {
        for (id, node) in &self.nodes {
            let current = &node.group.hard_state().current;
            let settled = if node.group.members_are_settled() { "" } else { " (not committed)" };
            let _ = writeln!(self.text, "{id} [{}] of {}{settled}", list(&current.members), current.index);
        }
    }

    fn read(&mut self, id: u64, token: u64) {
        match self.nodes.get_mut(&id).unwrap().group.read(token) {
            Ok(()) => self.turn(id, |_, _| Vec::new()),
            Err(error) => _ = writeln!(self.text, "{error}"),
        }
    }

    fn crash(&mut self, id: u64, kept: u64) {
        let mut node = self.nodes.remove(&id).expect("it runs");
        for write in node.writes.iter().take(kept as usize) {
            node.disk.write(write);
        }
        self.crashed.insert(id, node.disk);
        let others: Vec<u64> = self.links.iter().filter_map(|&(a, b)| other(id, a, b)).collect();
        others.into_iter().for_each(|other| self.disconnect(id, other));
    }

    fn start(&mut self, id: u64, memory: Memory) {
        let disk = self.crashed.remove(&id).expect("it crashed");
        self.nodes.insert(id, Node::new(self.configs[&id].clone(), disk, memory, self.now_us));
    }

    fn show(&mut self) {
        for (id, node) in &self.nodes {
            let about = node.group.overview();
            let waits = if node.group.deadline_us().is_some() { "waits" } else { "idle" };
            let _ = writeln!(
                self.text,
                "{id} {:?} term {} vote {} leader {} log {}..{} durable {} commit {} {waits}{}",
                about.role,
                about.term,
                about.vote,
                about.leader.map_or("none".into(), |leader| leader.to_string()),
                about.first,
                about.last,
                about.durable,
                about.commit,
                if node.group.suspect() { " suspect" } else { "" },
            );
            for peer in about.peers.iter().filter(|_| about.role == Role::Leader) {
                let inflight = match (peer.mode, peer.inflight_messages) {
                    (PeerMode::Stream | PeerMode::Fetching, n) if n > 0 => format!(", {n} under way"),
                    _ => String::new(),
                };
                let (mode, matched, next) = (peer.mode, peer.match_index, peer.next_index);
                let held = match peer.held {
                    held if held > matched => format!(", held {held}"),
                    _ => String::new(),
                };
                let _ = writeln!(
                    self.text,
                    "    {} {mode:?} match {matched} next {next}{held}{inflight}",
                    peer.id
                );
            }
        }
    }

    fn logs(&mut self) {
        for (id, node) in &self.nodes {
            let terms: Vec<String> = node.log.held.iter().map(|entry| entry.term.to_string()).collect();
            let base = if node.log.base > Index::ZERO {
                format!("(snapshot {}/{}) ", node.log.base, node.log.base_term)
            } else {
                String::new()
            };
            let _ = writeln!(self.text, "{id} {base}{}", terms.join(" "));
        }
    }
}

fn other(id: u64, a: u64, b: u64) -> Option<u64> {
    if a == id { Some(b) } else { (b == id).then_some(a) }
}

fn way(word: &str) -> (u64, u64) {
    let (from, to) = word.split_once("->").expect("from->to");
    (from.parse().unwrap(), to.parse().unwrap())
}

fn print(text: &mut String, id: u64, output: &Output) {
    let _ = match output {
        Output::Store { first } => writeln!(text, "{id}: store from {first}"),
        Output::AppendNoop { index, term } => writeln!(text, "{id}: no-op {index}/{term}"),
        Output::AppendMembers { index, term, members } => {
            writeln!(text, "{id}: members {index}/{term} [{}]", list(members))
        }
        Output::TransferEnded => writeln!(text, "{id}: it leads on"),
        Output::Persist { seq, hard_state, entries } => {
            let state =
                hard_state.as_ref().map_or(String::new(), |s| format!(" term {} vote {}", s.term, s.vote));
            let entries = entries.map_or(String::new(), |(first, last)| format!(" entries {first}..{last}"));
            writeln!(text, "{id}: persist #{}{state}{entries}", seq.0)
        }
        Output::Send { to, message } => writeln!(text, "{id} -> {to} {}", said(message)),
        Output::Fetch { to, first, last } => writeln!(text, "{id}: fetch {first}..{last} for {to}"),
        Output::SendSnapshot { to } => writeln!(text, "{id}: send the snapshot to {to}"),
        Output::Install { index, term } => writeln!(text, "{id}: install {index}/{term}"),
        Output::Commit { upto } => writeln!(text, "{id}: commit {upto}"),
        Output::ReadReady { token, index } => writeln!(text, "{id}: read {token} at {index}"),
        Output::ReadFailed { token } => writeln!(text, "{id}: read {token} failed"),
        Output::Role { role, leader, term } => {
            let leader = leader.map_or("nobody".into(), |leader| leader.to_string());
            writeln!(text, "{id}: {role:?} in term {term}, {leader} leads")
        }
        Output::CaughtUp => writeln!(text, "{id}: caught up"),
        Output::LostAcknowledged { index } => writeln!(text, "{id}: acknowledged {index} and lost it"),
        Output::DataLost(loss) => {
            let (node, last) = loss.best;
            writeln!(
                text,
                "{id}: data above {} may be lost; the best log is node {node}'s, up to {last}",
                loss.above
            )
        }
        Output::Diverged { index } => writeln!(text, "{id}: diverged at {index}"),
    };
}

fn memory(words: &[&str]) -> Memory {
    let has = |word| words.contains(&word);
    Memory { suspect: has("suspect"), votes_lost: has("old"), hold_us: if has("hold") { 100_000 } else { 0 } }
}

fn said(message: &Message) -> String {
    match message {
        Message::PreVote { term, last_index, last_term, forced } => {
            format!("PreVote {term} last {last_index}/{last_term}{}", if *forced { " forced" } else { "" })
        }
        Message::PreVoteReply { asked, granted, term } => {
            format!("PreVoteReply {asked} {} (term {})", if *granted { "yes" } else { "no" }, term.get())
        }
        Message::Vote { term, last_index, last_term, forced } => {
            let forced = if *forced { " forced" } else { "" };
            format!("Vote {} last {last_index}/{last_term}{forced}", term.get())
        }
        Message::VoteReply { ballot } => format!("VoteReply {} for {}", ballot.get().term, ballot.get().vote),
        Message::Append { term, prev_index, prev_term, spans, commit, answer, trusted, held, .. } => {
            let said = [(answer, " answer"), (trusted, " trusted"), (held, " held")];
            let flags: String = said.iter().filter(|(is, _)| **is).map(|(_, word)| *word).collect();
            format!("Append {term} after {prev_index}/{prev_term} {}commit {commit}{flags}", entries(spans))
        }
        Message::AppendReply(reply) => {
            let rejected = reply.rejected.map_or(String::new(), |rejected| {
                let (prev, index, term) = (rejected.prev_index, rejected.hint_index, rejected.hint_term);
                format!(" rejects {prev}, try {index}/{term}")
            });
            let (term, durable) = (reply.term.get(), reply.durable.get());
            let suspect = if reply.suspect { " suspect" } else { "" };
            format!(
                "Ack {term} durable {durable} matched {} commit {}{suspect}{rejected}",
                reply.matched, reply.commit
            )
        }
        Message::Snapshot { term, index, snap_term, configured } => {
            let members = configured.as_ref().map_or(String::new(), |configured| {
                format!(" members [{}] of {}", list(&configured.members), configured.index)
            });
            format!("Snapshot {term} at {index}/{snap_term}{members}")
        }
        Message::ReadProbe { term, round } => format!("ReadProbe {term} round {round}"),
        Message::ReadAck { term, round } => format!("ReadAck {} round {round}", term.get()),
        Message::LeaderGone { term } => format!("LeaderGone {term}"),
        Message::TimeoutNow { term } => format!("TimeoutNow {term}"),
        Message::Removed { index, commit, term } => format!("Removed by {index}, committed {commit}/{term}"),
        Message::Recall { round } => format!("Recall {round}"),
        Message::RecallReply(reply) => {
            let (last, term) = (reply.last_index.get(), reply.last_term);
            let pending = reply.pending.as_ref().map_or(String::new(), |pending| {
                format!(", then [{}] of {}", list(&pending.members), pending.index)
            });
            let suspect = if reply.suspect { " suspect" } else { "" };
            let members = reply.committed.as_ref().map_or("no members".into(), |committed| {
                format!("members [{}] of {}", list(&committed.members), committed.index)
            });
            format!(
                "RecallReply {} term {} last {last}/{term}{suspect} {members}{pending}",
                reply.round,
                reply.term.get(),
            )
        }
    }
}

/// `1 2 (3) ~4 ^5>9`
fn list(members: &Members) -> String {
    let words: Vec<String> = (members.iter())
        .map(|member| match member.membership() {
            Membership::Voter => member.id.to_string(),
            Membership::Leaving => format!("({})", member.id),
            Membership::Learner => format!("~{}", member.id),
            Membership::Promotable { target } => format!("^{}>{target}", member.id),
        })
        .collect();
    words.join(" ")
}

/// `3x1 2x4 `: three entries of term 1, then two of term 4.
fn entries(spans: &Spans) -> String {
    spans.iter().fold(String::new(), |mut text, (term, count)| {
        let _ = write!(text, "{count}x{term} ");
        text
    })
}

/// The file as it should be: comments, commands and blank lines as they are, outputs as they come now.
fn replay(text: &str) -> String {
    let mut story = Story { now_us: 1_000_000, ..Story::default() };
    let mut result = String::new();
    let mut output = None;
    for line in text.lines() {
        match (&mut output, line) {
            (Some(_), "") => {
                output = None;
                result.push('\n');
            }
            (Some(()), _) => {}
            (None, "----") => {}
            (None, line) if line.is_empty() || line.starts_with('#') => {
                result.push_str(line);
                result.push('\n');
            }
            (None, line) => {
                let _ = write!(result, "{line}\n----\n{}", story.run(line));
                output = Some(());
            }
        }
    }
    result
}

#[test]
fn stories_go_as_written() {
    let rewrite = std::env::var_os("REWRITE").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() >= 25, "stories are missing");
    let mut wrong = Vec::new();
    for path in files {
        let expected = std::fs::read_to_string(&path).unwrap();
        let found = replay(&expected);
        if rewrite {
            std::fs::write(&path, found).unwrap();
        } else if found != expected {
            let (at, (want, got)) = (expected.lines().zip(found.lines()).enumerate())
                .find(|(_, (want, got))| want != got)
                .unwrap_or((0, ("more or fewer lines", "")));
            wrong.push(format!("{}:{}: expected `{want}`, found `{got}`", path.display(), at + 1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
