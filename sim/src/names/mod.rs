//! Named groups in a cluster: clients make, use and delete groups of a few names through whatever node is up, while everything
//! else happens; each node's directory is watched, and so is what begins and ends on it.
//!
//! Invariants that are checked here, besides those of `oracle.rs`: a group that a node has removed never begins there again
//! while the process lives, and later only with all that it had committed and made durable there: it would have forgotten its
//! votes; in the end every node knows the same names, their members run them, and of others nothing is left, on disk neither.

mod clients;
mod machine;
mod oracle;

use std::collections::{BTreeMap, BTreeSet};

use coracle::identity::log_dir;
use coracle::sim::{Answer, Glance, NameAnswer, SimNode};
use coracle::{Created, Deleted, GroupId, GroupStatus, Index, NameChange, NamedGroup, Outcome};
use coracle_base::ShardId;
use coracle_io::fake::{FakeClock, FakeDisk, FakeNet};
use coracle_wal::Owner;

pub(crate) use self::clients::NameClients;
pub(crate) use self::machine::NameJournal;
use self::machine::{NameNote, ids_of};
use self::oracle::NAMES;
pub(crate) use self::oracle::NameOracle;
use crate::cluster::Cluster;
use crate::harm::Harm;
use crate::node::Node;
use crate::oracle::{Violation, hold};

/// The directory's own group.
const DIRECTORY: GroupId = GroupId(0);
/// The first uid of a named group.
const FIRST_NAMED: GroupId = GroupId(1 << 48);
const EVENT: u64 = 9;

/// What a client waits for.
#[derive(Debug)]
pub(crate) enum NameWish {
    Create {
        number: u64,
        begun_us: u64,
        answer: NameAnswer<Created>,
    },
    Delete {
        number: u64,
        answer: NameAnswer<Deleted>,
    },
    DeleteName {
        name: usize,
        answer: NameAnswer<Deleted>,
    },
    LookUp {
        name: usize,
        answer: NameAnswer<Option<NamedGroup>>,
    },
    Command {
        id: u64,
        answer: Answer,
    },
    Question {
        number: u64,
        floor: usize,
        answer: Answer,
    },
    /// An operator's, whatever becomes of it.
    Operator(Answer),
}

/// A process's part.
#[derive(Debug)]
pub(crate) struct Named {
    journal: NameJournal,
    watch: coracle::NameChanges,
    /// The names as this node's directory has them.
    here: BTreeMap<String, GroupId>,
    /// Commands of each machine.
    counts: BTreeMap<u64, usize>,
    /// Groups that have begun, and how they were last seen.
    running: BTreeMap<GroupId, Option<Glance>>,
    removed: BTreeSet<GroupId>,
    pub(crate) waiting: Vec<NameWish>,
    /// Refusals since somebody looked.
    refused: Vec<String>,
}

impl Named {
    pub(crate) fn new(journal: NameJournal, sim: &SimNode<FakeDisk, FakeNet, FakeClock>) -> Self {
        Self {
            journal,
            watch: sim.name_changes(),
            here: BTreeMap::new(),
            counts: BTreeMap::new(),
            running: BTreeMap::new(),
            removed: BTreeSet::new(),
            waiting: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn on_change(&mut self, change: NameChange, oracle: &mut NameOracle) -> Result<(), Violation> {
        match change {
            NameChange::Created(group) => {
                oracle.meet(&group)?;
                let before = self.here.insert(group.name().to_owned(), group.id());
                let is_free = before.is_none_or(|before| before == group.id());
                hold!(is_free, "a name is one group's at a time", "{group:?} took the name of {before:?}");
            }
            NameChange::Members(group) => drop(oracle.meet(&group)?),
            NameChange::Deleted(group) => {
                oracle.meet(&group)?;
                let before = self.here.remove(group.name());
                hold!(
                    before == Some(group.id()),
                    "a name is one group's at a time",
                    "{group:?} was {before:?}"
                );
            }
            NameChange::Restarted => self.here.clear(),
        }
        Ok(())
    }
}

impl NameWish {
    fn is_answered(&self) -> bool {
        match self {
            Self::Create { answer, .. } => answer.get().is_some(),
            Self::Delete { answer, .. } | Self::DeleteName { answer, .. } => answer.get().is_some(),
            Self::LookUp { answer, .. } => answer.get().is_some(),
            Self::Command { answer, .. } | Self::Question { answer, .. } | Self::Operator(answer) => {
                answer.get().is_some()
            }
        }
    }
}

impl Cluster {
    // ---- looking --------------------------------------------------------------------------------------------------

    /// Shows what became of names on a node in its last turn.
    pub(crate) fn look_at_names(&mut self, at: usize) -> Result<(), Violation> {
        let Node { id, process: Some(process), .. } = &mut self.nodes[at] else { return Ok(()) };
        let Some(named) = &mut process.named else { return Ok(()) };
        while let Some(change) = named.watch.try_recv() {
            self.tally.event(&[EVENT, at as u64, 0]);
            named.on_change(change, &mut self.names)?;
        }
        for note in named.journal.take() {
            self.tally.event(&[EVENT, at as u64, 1]);
            tracing::trace!(now_us = self.clock.true_us(), node = %id, ?note, "named machine");
            self.names.on_note(*id, &mut named.counts, &note)?;
            let NameNote::Made { number } = note else { continue };
            let Some(uid) = self.names.id_of(number) else { continue };
            let is_first = !named.removed.contains(&uid);
            hold!(is_first, "a removed group never begins again", "node {id}: {uid} of wish {number}");
            named.running.insert(uid, None);
        }
        self.look_at_running(at)?;
        self.look_at_wishes(at)
    }

    fn look_at_running(&mut self, at: usize) -> Result<(), Violation> {
        let Node { id, process: Some(process), kept, harm, .. } = &mut self.nodes[at] else { return Ok(()) };
        let Some(named) = &mut process.named else { return Ok(()) };
        let sim = &process.sim;
        let mut over = Vec::new();
        for (uid, seen) in &mut named.running {
            let glance = sim.glance(*uid);
            if seen.is_some() && *seen == glance {
                continue;
            }
            let Some(status) = sim.group_status(*uid) else {
                // It may have been refused: by a node whose disk was harmed.
                let is_excused = seen.is_some() || *harm > Harm::None;
                hold!(is_excused, "named groups begin", "node {id}: {uid} did not");
                over.push((*uid, seen.is_some()));
                continue;
            };
            let durable = sim.durable(*uid).map_or(Index::ZERO, |(index, _)| index);
            let known = kept.entry(*uid).or_default();
            if seen.is_none() && *harm == Harm::None {
                hold!(
                    durable >= *known,
                    "a removed group never begins again",
                    "node {id}: {uid} begins with {durable}, and had {known} committed and durable"
                );
                let is_late = self.names.is_deleted(*uid);
                self.tally.mark_many("deleted_groups_go_on_for_a_while", u64::from(is_late));
            }
            *known = (*known).max(durable.min(status.commit));
            *seen = glance;
        }
        for (uid, has_run) in over {
            named.running.remove(&uid);
            named.removed.insert(uid);
            self.tally.mark_many("named_groups_removed", u64::from(has_run));
        }
        Ok(())
    }

    fn look_at_wishes(&mut self, at: usize) -> Result<(), Violation> {
        let now_us = self.clock.true_us();
        let Node { process: Some(process), .. } = &mut self.nodes[at] else { return Ok(()) };
        let Some(named) = &mut process.named else { return Ok(()) };
        let answered: Vec<NameWish> = named.waiting.extract_if(.., |one| one.is_answered()).collect();
        for one in answered {
            let text = format!("{one:?}");
            tracing::trace!(now_us, node = at + 1, text, "ended");
            let names = &mut self.names;
            let mark = match one {
                NameWish::Create { number, begun_us, answer } => match answer.get() {
                    Some(outcome) => names.on_created(number, begun_us, &outcome)?,
                    None => continue,
                },
                NameWish::Delete { number, answer } => match answer.get() {
                    Some(outcome) => names.on_deleted(number, now_us, &outcome)?,
                    None => continue,
                },
                NameWish::DeleteName { name, answer } => match answer.get() {
                    Some(outcome) => names.on_name_deleted(name, now_us, &outcome)?,
                    None => continue,
                },
                NameWish::LookUp { name, answer } => match answer.get() {
                    Some(Outcome::Done(done)) => {
                        let found = done.reply.as_ref().map(|group| names.meet(group)).transpose()?;
                        names.on_looked_up(name, found)?
                    }
                    _ => "names_not_looked_up",
                },
                NameWish::Command { id, answer } => match answer.get() {
                    Some(outcome) => names.on_outcome(id, &outcome)?,
                    None => continue,
                },
                NameWish::Question { number, floor, answer } => match answer.get() {
                    Some(Outcome::Done(done)) => {
                        names.on_answer(number, floor, &ids_of(&done.reply))?;
                        "named_queries_answered"
                    }
                    _ => "named_queries_not_answered",
                },
                NameWish::Operator(_) => continue,
            };
            self.tally.event(&[EVENT, at as u64, 2]);
            self.tally.mark(mark);
            if mark.contains("not_") || mark.contains("unknown") {
                named.refused.push(text);
            }
        }
        Ok(())
    }

    // ---- the end --------------------------------------------------------------------------------------------------

    /// An operator takes leadership from members that cannot read their own log any more.
    pub(crate) fn relieve_named(&mut self) {
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else { continue };
            let Some(named) = process.named.as_mut().filter(|named| named.waiting.is_empty()) else {
                continue;
            };
            for uid in named.running.keys().copied().chain([DIRECTORY]) {
                let status = process.sim.group_status(uid);
                if status.is_some_and(|one| one.poisoned.is_some() && one.leader == Some(node.id)) {
                    let answer = process.sim.transfer_leadership(uid, None);
                    named.waiting.push(NameWish::Operator(answer));
                }
            }
        }
    }

    /// What is not well yet of names.
    pub(crate) fn names_ail(&self) -> Option<String> {
        self.plan.names_gap_us?;
        let runs = |node: &&Node| node.process.as_ref().is_some_and(|process| process.sim.is_running());
        let nodes: Vec<&Node> = self.nodes.iter().filter(runs).collect();
        let mut names: Option<&BTreeMap<String, GroupId>> = None;
        for node in &nodes {
            let Some(named) = node.process.as_ref().and_then(|process| process.named.as_ref()) else {
                continue;
            };
            if let Some(one) = named.waiting.first() {
                return Some(format!("node {} has not answered {one:?}", node.id));
            }
            let directory = self.status_of(node, DIRECTORY);
            if node.harm > Harm::None && directory.is_none_or(|one| one.poisoned.is_some()) {
                continue; // it said so
            }
            let first = *names.get_or_insert(&named.here);
            if *first != named.here {
                return Some(format!("node {} has names {:?}, not {first:?}", node.id, named.here));
            }
            if let Some(uid) = named.running.keys().find(|uid| !first.values().any(|one| one == *uid)) {
                return Some(format!("node {} runs {uid}, which is no name's", node.id));
            }
        }
        let uids = names.into_iter().flat_map(|names| names.values().copied());
        uids.chain([DIRECTORY]).find_map(|uid| self.named_group_ails(&nodes, uid))
    }

    fn status_of(&self, node: &Node, uid: GroupId) -> Option<GroupStatus> {
        node.process.as_ref()?.sim.group_status(uid)
    }

    fn named_group_ails(&self, nodes: &[&Node], uid: GroupId) -> Option<String> {
        let all = nodes.iter().filter_map(|node| Some((*node, self.status_of(node, uid)?)));
        let all: Vec<(&Node, GroupStatus)> = all.collect();
        let shown = || all.iter().map(|(node, one)| (node.id, one)).collect::<Vec<_>>();
        if !all.is_empty() && all.iter().all(|(_, one)| one.poisoned.is_some()) {
            return None; // its members' disks do not give them what they need
        }
        let leads = |(node, one): &&(&Node, GroupStatus)| one.leader == Some(node.id);
        let Some((_, first)) = all.iter().filter(leads).max_by_key(|(_, one)| one.term) else {
            return Some(format!("group {uid} has no leader: {:?}", shown()));
        };
        for member in first.members.iter() {
            let node = &self.nodes[member.id.0 as usize - 1];
            if node.harm > Harm::None {
                continue;
            }
            let status = all.iter().find(|(one, _)| one.id == member.id).map(|(_, status)| status);
            let agrees = status.is_some_and(|one| {
                (one.term, one.leader, one.last, one.applied, one.digest)
                    == (first.term, first.leader, first.last, first.last, first.digest)
                    || one.poisoned.is_some()
            });
            if !agrees {
                return Some(format!("group {uid} has not come together: {:?}", shown()));
            }
        }
        None
    }

    /// Every name is looked up and every group there is takes a command through every member, and a new group comes and goes.
    pub(crate) fn probe_names(&mut self) {
        let is_well = |node: &Node| node.harm == Harm::None && node.process.is_some();
        let Some(first) = self.nodes.iter().position(is_well) else { return };
        (0..NAMES.len()).for_each(|name| self.look_up_name(first, name));
        for (number, uid) in self.names.living() {
            for at in 0..self.nodes.len() {
                let status = self.status_of(&self.nodes[at], uid);
                let is_member =
                    |one: &GroupStatus| one.members.contains(self.nodes[at].id) && one.poisoned.is_none();
                if self.nodes[at].harm == Harm::None && status.as_ref().is_some_and(is_member) {
                    self.use_named(at, number, uid);
                    self.ask_named(at, number, uid);
                }
            }
        }
    }

    /// What nodes refused since the last time, though there was no cause.
    pub(crate) fn names_refused(&mut self) -> Option<String> {
        let named = self.nodes.iter_mut().filter_map(|node| node.process.as_mut()?.named.as_mut());
        let all: Vec<String> = named.flat_map(|named| std::mem::take(&mut named.refused)).collect();
        all.into_iter().next()
    }

    /// When nothing happens any more: what is left, in memory and on disks.
    pub(crate) fn judge_names(&mut self) -> Result<(), Violation> {
        let left: BTreeSet<GroupId> = {
            let named = self.nodes.iter().filter(|node| node.harm == Harm::None);
            let mut named = named.filter_map(|node| node.process.as_ref()?.named.as_ref());
            let Some(named) = named.next() else { return Ok(()) };
            named.here.values().copied().collect()
        };
        self.names.judge(&left)?;
        for node in self.nodes.iter().filter(|node| node.harm == Harm::None) {
            let mut copy = FakeDisk::new(1);
            copy.restore(&node.disk.image());
            let dir = log_dir(ShardId(0));
            let Ok(Owner::Of(identity)) = coracle_wal::owner(&mut copy, &dir) else { continue };
            let Ok((groups, _)) = coracle_wal::look(&mut copy, &dir, &identity) else { continue };
            let forgotten = groups.iter().find(|one| one.group >= FIRST_NAMED && !left.contains(&one.group));
            hold!(
                forgotten.is_none(),
                "deleted groups leave nothing on disks",
                "node {}: {:?}",
                node.id,
                forgotten.map(|one| (one.group, one.first, one.last))
            );
            self.tally.mark("disks_searched_for_deleted_groups");
        }
        Ok(())
    }

    // ---- wishes ---------------------------------------------------------------------------------------------------

    fn wish_of_names(
        &mut self,
        at: usize,
        wish: impl FnOnce(&SimNode<FakeDisk, FakeNet, FakeClock>) -> NameWish,
    ) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let Some(named) = &mut process.named else { return };
        let wish = wish(&process.sim);
        tracing::trace!(now_us = self.clock.true_us(), node = at + 1, ?wish, "wished");
        named.waiting.push(wish);
        self.nodes[at].wake();
    }

    pub(crate) fn create_named(&mut self, at: usize, name: usize, members: &[coracle::NodeId]) {
        let (number, begun_us) = (self.names.begin_create(name), self.clock.true_us());
        self.wish_of_names(at, |sim| {
            let answer = sim.create_group(NAMES[name], members, &number.to_le_bytes());
            NameWish::Create { number, begun_us, answer }
        });
    }

    pub(crate) fn delete_named(&mut self, at: usize, number: u64) {
        let Some((name, id)) = self.names.begin_delete(number) else { return };
        self.wish_of_names(at, |sim| {
            let answer = sim.delete_group(NAMES[name], Some(id));
            NameWish::Delete { number, answer }
        });
    }

    pub(crate) fn delete_name(&mut self, at: usize, name: usize) {
        self.names.begin_delete_name(name);
        self.wish_of_names(at, |sim| NameWish::DeleteName {
            name,
            answer: sim.delete_group(NAMES[name], None),
        });
    }

    pub(crate) fn look_up_name(&mut self, at: usize, name: usize) {
        self.wish_of_names(at, |sim| NameWish::LookUp { name, answer: sim.look_up(NAMES[name], false) });
    }

    pub(crate) fn use_named(&mut self, at: usize, number: u64, uid: GroupId) {
        let id = self.names.begin_command(number);
        self.wish_of_names(at, |sim| NameWish::Command { id, answer: sim.propose(uid, &id.to_le_bytes()) });
    }

    pub(crate) fn ask_named(&mut self, at: usize, number: u64, uid: GroupId) {
        let floor = self.names.floor(number);
        self.wish_of_names(at, |sim| NameWish::Question { number, floor, answer: sim.query(uid, b"") });
    }

    /// An operator changes the members of a named group.
    pub(crate) fn change_named(&mut self, at: usize, uid: GroupId, change: coracle::Change) {
        self.wish_of_names(at, |sim| NameWish::Operator(sim.change_members(uid, &[change], false)));
    }
}
