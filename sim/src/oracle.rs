//! What must never happen, checked while it may. The oracle keeps a *ghost log* of every group: what any node ever
//! applied. Nodes may be late, but whatever they apply, answer or recover has to agree with it.
//!
//! Names of invariants are those of the literature: election safety (one leader a term), log matching (equal index and
//! term, equal entry), leader completeness (a later leader has everything that was committed), state machine safety
//! (equal index, equal command), linearizability (an answer reflects everything acknowledged before it was asked for).
//!
//! Invariants of the ghost log: (1) indexes rise; (2) a command is in it at most once; (3) it is never cut.

mod readers;

pub(crate) use self::readers::DiskTrouble;

use std::collections::{BTreeMap, BTreeSet};

use coracle::{GroupStatus, Index, NodeId, Outcome, Term};
use coracle_base::checksum::crc32c;

use crate::harm::Harm;
use crate::machine::{Answered, Note, State};
use crate::members::Ledger;
use crate::plan::Plan;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub detail: String,
}

/// Fails with the invariant's name and the facts, unless the condition holds.
macro_rules! hold {
    ($condition:expr, $invariant:expr, $($detail:tt)*) => {
        if !$condition {
            return Err(Violation { invariant: $invariant, detail: format!($($detail)*) });
        }
    };
}
pub(crate) use hold;

/// How a command ended, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Done,
    NotDone,
    Unknown,
}

#[derive(Debug)]
struct Proposed {
    group: usize,
    crc: u32,
    fate: Fate,
    applied: Option<Index>,
}

/// A command as it was first applied.
#[derive(Debug)]
struct Applied {
    index: Index,
    term: Term,
    id: u64,
    time_ms: u64,
    crc: u32,
    /// The machine's hash and reply.
    hash: u64,
    reply: u64,
}

/// One group, as all nodes together have shown it.
#[derive(Debug, Default)]
struct Ghost {
    log: Vec<Applied>,
    state: State,
    /// Who led in which term.
    leaders: BTreeMap<Term, NodeId>,
    /// The machine's digest at each applied index that was seen.
    digests: BTreeMap<Index, u64>,
    /// The checksum of each entry that was seen in a log, by (index, term), and the term before it.
    entries: BTreeMap<(u64, u64), (u32, Option<u64>)>,
    /// Newest index that a client knows of.
    acknowledged: Index,
}

/// How one node last showed one group, since its process began.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    last: Option<GroupStatus>,
    /// Commands that the machine holds.
    count: u64,
    /// In this term the leader's commit index is known to be at an entry of the term.
    proven: Option<Term>,
    changes: u64,
}

impl View {
    /// The group as it was last seen.
    pub(crate) fn status(&self) -> Option<&GroupStatus> {
        self.last.as_ref()
    }
}

/// What a node must not forget when it crashes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Claim {
    /// The last entry that the group believed durable, with its term.
    pub(crate) durable: Option<(Index, Term)>,
    /// The greatest term that the node led in.
    pub(crate) led: Term,
}

/// A group as a node has recovered it.
#[derive(Debug)]
pub(crate) struct Recovered<'a> {
    pub(crate) status: &'a GroupStatus,
    /// The log was found damaged.
    pub(crate) suspect: bool,
    /// It was damaged.
    pub(crate) harmed: bool,
}

/// Entries of a node's log that are in memory: (index, term, checksum).
pub(crate) type Entries = Vec<(u64, u64, u32)>;

/// Judges one run.
#[derive(Debug)]
pub(crate) struct Oracle {
    groups: Vec<Ghost>,
    members: Vec<Ledger>,
    commands: Vec<Proposed>,
    cluster: Option<u128>,
    /// Who has ever belonged to it.
    joined: BTreeSet<NodeId>,
}

/// How often a view must change before logs are compared entry by entry.
const COMPARE_EVERY: u64 = 16;

impl Oracle {
    pub(crate) fn new(plan: &Plan) -> Self {
        let groups = 0..plan.groups as usize;
        Self {
            groups: groups.clone().map(|_| Ghost::default()).collect(),
            members: groups.map(|group| Ledger::new(&plan.founders(group))).collect(),
            commands: Vec::new(),
            cluster: None,
            joined: BTreeSet::new(),
        }
    }

    /// Who belongs to a group.
    pub(crate) fn members(&mut self, group: usize) -> &mut Ledger {
        &mut self.members[group]
    }

    fn ghost(&mut self, group: usize) -> &mut Ghost {
        &mut self.groups[group]
    }

    // ---- clients --------------------------------------------------------------------------------------------------

    /// A new command's id.
    pub(crate) fn next_id(&self) -> u64 {
        self.commands.len() as u64
    }

    /// A client is about to propose the command of the next id.
    pub(crate) fn on_proposed(&mut self, group: usize, command: &[u8]) {
        self.commands.push(Proposed { group, crc: crc32c(command), fate: Fate::Open, applied: None });
    }

    /// How many commands were proposed.
    pub(crate) fn proposed(&self) -> u64 {
        self.commands.len() as u64
    }

    /// A command with at least this id that was not done, as far as its client knows.
    pub(crate) fn not_done_from(&self, id: u64) -> Option<String> {
        let (id, command) =
            (id..).zip(&self.commands[id as usize..]).find(|(_, one)| one.fate != Fate::Done)?;
        Some(format!("command {id} of group {}: {:?}", command.group, command.fate))
    }

    /// What an answer to a query asked now must include.
    pub(crate) fn acknowledged(&self, group: usize) -> Index {
        self.groups[group].acknowledged
    }

    /// A command has ended. `None`: its node has crashed, and nobody will say.
    pub(crate) fn on_outcome(&mut self, id: u64, outcome: Option<&Outcome>) -> Result<(), Violation> {
        let command = &mut self.commands[id as usize];
        hold!(
            command.fate == Fate::Open,
            "one answer a command",
            "command {id} was {:?} and now is {outcome:?}",
            command.fate
        );
        command.fate = match outcome {
            Some(Outcome::Done(_)) => Fate::Done,
            Some(Outcome::NotDone(_)) => Fate::NotDone,
            Some(Outcome::Unknown(_)) | None => Fate::Unknown,
        };
        let (group, applied) = (command.group, command.applied);
        match outcome {
            Some(Outcome::Done(done)) => {
                let at = done.index;
                hold!(
                    applied == Some(at),
                    "acknowledged history",
                    "command {id} is done at {at}, but was applied at {applied:?}"
                );
                let ghost = self.ghost(group);
                let found =
                    ghost.log.binary_search_by_key(&at, |one| one.index).map(|nth| ghost.log[nth].reply);
                let reply = found.unwrap_or_default().to_le_bytes();
                hold!(
                    done.reply == reply,
                    "acknowledged history",
                    "command {id} at {at}: reply {:?}, not {reply:?}",
                    done.reply
                );
                ghost.acknowledged = ghost.acknowledged.max(at);
            }
            Some(Outcome::NotDone(why)) => {
                hold!(
                    applied.is_none(),
                    "not done is never applied",
                    "command {id} was applied at {applied:?}, and then: {why}"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// A query was answered from the machine as it was at `at`; `floor` is [`acknowledged`](Self::acknowledged) when it
    /// was asked.
    pub(crate) fn on_answer(
        &mut self,
        group: usize,
        floor: Index,
        at: Index,
        reply: &[u8],
    ) -> Result<(), Violation> {
        let name = "linearizable queries";
        hold!(
            at >= floor,
            name,
            "group {group}: answered at {at}, but {floor} was acknowledged before it was asked"
        );
        let ghost = self.ghost(group);
        let Some(answer) = Answered::decode(reply) else {
            return Err(Violation {
                invariant: name,
                detail: format!("group {group}: {} bytes are no answer", reply.len()),
            });
        };
        let count = ghost.log.partition_point(|one| one.index <= at);
        let expected =
            count.checked_sub(1).map_or((0, 0), |nth| (ghost.log[nth].index.0, ghost.log[nth].hash));
        hold!(
            (answer.count, answer.last, answer.hash) == (count as u64, expected.0, expected.1),
            name,
            "group {group} at {at}: the answer covers {} commands up to {}, not {count} up to {}",
            answer.count,
            answer.last,
            expected.0
        );
        ghost.acknowledged = ghost.acknowledged.max(at);
        Ok(())
    }

    // ---- machines -------------------------------------------------------------------------------------------------

    /// A machine of `node` did something.
    pub(crate) fn on_note(&mut self, node: NodeId, views: &mut [View], note: Note) -> Result<(), Violation> {
        match note {
            Note::Applied { group, index, term, time_ms, command, count, hash } => {
                let group = group.0 as usize - 1;
                let (id, crc) = (id_of(&command), crc32c(&command));
                let view = &mut views[group];
                hold!(
                    count == view.count + 1,
                    "entries are applied once, in order",
                    "node {node} group {group}: command {count} at {index} after {}",
                    view.count
                );
                view.count = count;
                let nth = count as usize - 1;
                if nth == self.groups[group].log.len() {
                    self.on_first_applied(group, id, crc, index)?;
                    let ghost = self.ghost(group);
                    let reply = ghost.state.apply(index.0, &command);
                    ghost.log.push(Applied { index, term, id, time_ms, crc, hash: ghost.state.hash, reply });
                }
                let known = self.groups[group].log.get(nth);
                let same = known.is_some_and(|one| {
                    (one.index, one.term, one.id, one.time_ms, one.crc, one.hash)
                        == (index, term, id, time_ms, crc, hash)
                });
                hold!(
                    same,
                    "state machine safety",
                    "node {node} group {group}: command {id} of term {term} at {index}, as number {count}; known: {known:?}"
                );
            }
            Note::Restored { group, last, count, hash } => {
                let group = group.0 as usize - 1;
                let view = &mut views[group];
                hold!(
                    count >= view.count,
                    "a snapshot never goes back",
                    "node {node} group {group}: restored {count} commands after {}",
                    view.count
                );
                view.count = count;
                let known = (count as usize).checked_sub(1).map_or(Some((0, 0)), |nth| {
                    self.groups[group].log.get(nth).map(|one| (one.index.0, one.hash))
                });
                hold!(
                    known == Some((last, hash)),
                    "a snapshot is the state at its index",
                    "node {node} group {group}: snapshot of {count} commands up to {last}; known: {known:?}"
                );
            }
        }
        Ok(())
    }

    /// The first machine of all applies this command.
    fn on_first_applied(&mut self, group: usize, id: u64, crc: u32, index: Index) -> Result<(), Violation> {
        let last = self.groups[group].log.last().map_or(Index::ZERO, |one| one.index);
        hold!(
            index > last,
            "state machine safety",
            "group {group}: a new command {id} at {index}, after {last}"
        );
        let Some(command) =
            self.commands.get_mut(id as usize).filter(|one| one.group == group && one.crc == crc)
        else {
            let detail = format!("group {group}: nobody proposed what was applied at {index} (command {id})");
            return Err(Violation { invariant: "only what was proposed is applied", detail });
        };
        let before = command.applied.replace(index);
        hold!(
            before.is_none(),
            "a command is applied once",
            "group {group}: command {id} at {index} was at {before:?} already"
        );
        hold!(
            command.fate != Fate::NotDone,
            "not done is never applied",
            "group {group}: command {id} at {index} was answered as not done"
        );
        Ok(())
    }

    /// A node shows to which cluster it belongs.
    pub(crate) fn on_cluster(
        &mut self,
        node: NodeId,
        harm: Harm,
        cluster: Option<u128>,
    ) -> Result<(), Violation> {
        let Some(id) = cluster else { return Ok(()) };
        self.joined.insert(node);
        let known = *self.cluster.get_or_insert(id);
        hold!(known == id, "one cluster is formed", "node {node}: {id:032x}, elsewhere {known:032x}");
        hold!(
            harm != Harm::Lost,
            "who lost its directory is no member any more",
            "node {node} runs as if it had not"
        );
        Ok(())
    }

    /// How many nodes have ever belonged to the cluster.
    pub(crate) fn joined(&self) -> usize {
        self.joined.len()
    }

    // ---- consensus ------------------------------------------------------------------------------------------------

    /// A node shows a group after a turn. Whether it leads it newly. `disk_failed`: what its machine needs may not be readable.
    pub(crate) fn on_status(
        &mut self,
        node: NodeId,
        view: &mut View,
        status: GroupStatus,
        disk_failed: bool,
        entries: impl Fn() -> Entries,
    ) -> Result<bool, Violation> {
        if view.last.as_ref() == Some(&status) {
            return Ok(false);
        }
        let group = status.group.0 as usize - 1;
        let before = view.last.replace(status.clone());
        view.changes += 1;
        hold!(
            status.poisoned.is_none() || disk_failed,
            "machines do not fail",
            "node {node} group {group}: {:?}",
            status.poisoned
        );
        check_positions(node, before.as_ref(), &status)?;
        let ghost = self.ghost(group);
        if let Some(leader) = status.leader {
            let known = *ghost.leaders.entry(status.term).or_insert(leader);
            hold!(
                known == leader,
                "election safety",
                "group {group} term {}: node {node} says {leader} leads, and {known} did",
                status.term
            );
        }
        let digest = *ghost.digests.entry(status.applied).or_insert(status.digest);
        hold!(
            digest == status.digest,
            "state machine safety",
            "node {node} group {group}: digest {:#x} at {}, elsewhere {digest:#x}",
            status.digest,
            status.applied
        );
        let led = |one: &GroupStatus| (one.leader == Some(node)).then_some(one.term);
        let leads_newly = led(&status).is_some() && before.as_ref().and_then(led) != led(&status);
        if leads_newly {
            ghost.check_complete(group, node, &status, &entries())?;
        }
        let moved = before.as_ref().is_none_or(|one| one.commit < status.commit);
        if led(&status).is_some() && moved && view.proven != led(&status) {
            ghost.check_own_term(group, node, view, &status, before.as_ref(), &entries())?;
        }
        if leads_newly || view.changes.is_multiple_of(COMPARE_EVERY) {
            ghost.check_matching(group, node, &entries())?;
        }
        Ok(leads_newly)
    }

    /// A node has recovered a group after a crash: `term_at` asks its log.
    pub(crate) fn on_recovered(
        &self,
        node: NodeId,
        recovered: Recovered<'_>,
        claim: Claim,
        term_at: impl Fn(Index) -> Option<Term>,
    ) -> Result<(), Violation> {
        let Recovered { status, suspect, harmed } = recovered;
        let group = status.group.0 - 1;
        hold!(
            !suspect || harmed,
            "a crash is not taken for damage",
            "node {node} group {group}: suspect after a crash"
        );
        hold!(
            // Damage may take both copies of a state. Then the group is suspect, and asks all others before it votes.
            suspect || status.term >= claim.led,
            "a vote outlives a crash",
            "node {node} group {group}: recovered in term {}, and it led in {}",
            status.term,
            claim.led
        );
        let Some((index, term)) = claim.durable.filter(|_| !suspect) else { return Ok(()) };
        hold!(
            status.last >= index,
            "what was durable outlives a crash",
            "node {node} group {group}: recovered up to {}, and {index} of term {term} was durable",
            status.last
        );
        let found = term_at(index);
        let released = found.is_none() && status.first > index;
        hold!(
            released || found == Some(term),
            "what was durable outlives a crash",
            "node {node} group {group}: entry {index} of term {term} was durable; recovered: term {found:?}"
        );
        Ok(())
    }

    /// The last index of a group that any node applied.
    pub(crate) fn last_applied(&self, group: usize) -> Index {
        self.groups[group].log.last().map_or(Index::ZERO, |one| one.index)
    }
}

/// Term, commit and applied index never fall while a process lives, and are in order.
fn check_positions(node: NodeId, before: Option<&GroupStatus>, now: &GroupStatus) -> Result<(), Violation> {
    let group = now.group.0 - 1;
    hold!(
        now.applied <= now.commit && now.commit <= now.last,
        "positions are in order",
        "node {node} group {group}: applied {}, commit {}, last {}",
        now.applied,
        now.commit,
        now.last
    );
    let Some(before) = before else { return Ok(()) };
    let fell = |what: &'static str, before: u64, now: u64| {
        hold!(
            before <= now,
            "positions never fall",
            "node {node} group {group}: {what} fell from {before} to {now}"
        );
        Ok(())
    };
    fell("term", before.term.0, now.term.0)?;
    fell("commit", before.commit.0, now.commit.0)?;
    fell("applied", before.applied.0, now.applied.0)
}

impl Ghost {
    /// The leader of the newest term holds everything that was ever committed.
    fn check_complete(
        &self,
        group: usize,
        node: NodeId,
        status: &GroupStatus,
        entries: &Entries,
    ) -> Result<(), Violation> {
        let newest = self.leaders.last_key_value().map(|(term, _)| *term);
        if newest != Some(status.term) {
            return Ok(());
        }
        let last = self.log.last().map_or(Index::ZERO, |one| one.index);
        hold!(
            status.last >= last,
            "leader completeness",
            "group {group}: node {node} leads in term {} with a log up to {}, and {last} is committed",
            status.term,
            status.last
        );
        for (index, term, crc) in entries {
            let Ok(nth) = self.log.binary_search_by_key(&Index(*index), |one| one.index) else { continue };
            let known = &self.log[nth];
            hold!(
                (known.term.0, known.crc) == (*term, *crc),
                "leader completeness",
                "group {group}: node {node} leads in term {} with an entry of term {term} at {index}; committed: {known:?}",
                status.term
            );
        }
        Ok(())
    }

    /// A leader's commit index moves only to an entry of its own term (Raft paper 5.4.2).
    fn check_own_term(
        &self,
        group: usize,
        node: NodeId,
        view: &mut View,
        status: &GroupStatus,
        before: Option<&GroupStatus>,
        entries: &Entries,
    ) -> Result<(), Violation> {
        let in_memory =
            entries.iter().find(|(index, ..)| *index == status.commit.0).map(|(_, term, _)| Term(*term));
        let applied = || {
            let nth = self.log.binary_search_by_key(&status.commit, |one| one.index).ok()?;
            Some(self.log[nth].term)
        };
        let Some(term) = in_memory.or_else(applied) else { return Ok(()) };
        if term == status.term {
            view.proven = Some(term);
        }
        hold!(
            term == status.term || before.is_none(),
            "a leader commits by its own term",
            "group {group}: node {node} leads in term {} and committed entry {} of term {term}",
            status.term,
            status.commit
        );
        Ok(())
    }

    /// Equal index and term: equal entry, and an equal one before it.
    fn check_matching(&mut self, group: usize, node: NodeId, entries: &Entries) -> Result<(), Violation> {
        let mut term_before = None;
        for (index, term, crc) in entries {
            let known = self.entries.entry((*index, *term)).or_insert((*crc, term_before));
            known.1 = known.1.or(term_before);
            hold!(
                known.0 == *crc && (term_before.is_none() || known.1 == term_before),
                "log matching",
                "group {group} entry {index} of term {term}: node {node} has checksum {crc:#x} after term {term_before:?}; \
                 known: {known:?}"
            );
            term_before = Some(*term);
        }
        Ok(())
    }
}

/// The id that a command begins with; one that nobody has if there is none.
fn id_of(command: &[u8]) -> u64 {
    command.first_chunk().map_or(u64::MAX, |id| u64::from_le_bytes(*id))
}
