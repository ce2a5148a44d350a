//! What a node shows after a turn, given to the oracle: first what its machines did, then its groups, then what readers and
//! clients were answered.
//!
//! Invariant: nothing that a node did is looked at twice, and nothing is left out.

use coracle::sim::SimNode;
use coracle::{GroupId, GroupStatus, Index, Members, NodeId, Outcome, Term};
use coracle_base::checksum::crc32c;
use coracle_io::fake::{FakeClock, FakeDisk, FakeNet};

use crate::cluster::{Cluster, TURN};
use crate::harm::Harm;
use crate::histories::{Ticket, Told};
use crate::machine::Answered;
use crate::members::Log;
use crate::node::{Asked, Node, Process};
use crate::objects::Objects;
use crate::oracle::{DiskTrouble, Entries, Recovered, Violation};
use crate::plan::Harmed;
use crate::tally::Tally;

/// Events of the trace.
const APPLIED: u64 = 2;
const ANSWER: u64 = 3;
const READ: u64 = 8;

/// A leader's commit index has risen: the group, its members before, and how it is now.
type Committed = (usize, Members, GroupStatus);

impl Cluster {
    /// Shows the oracle what a node has done.
    pub(crate) fn look(&mut self, at: usize) -> Result<(), Violation> {
        self.look_at_machines(at)?;
        self.look_at_directory(at)?;
        let committed = self.look_at_groups(at)?;
        self.look_at_readers(at)?;
        self.look_at_names(at)?;
        let Some(process) = &mut self.nodes[at].process else { return Ok(()) };
        let answered = process.waiting.extract_if(.., |one| one.answer.get().is_some());
        let mut answered: Vec<(Asked, Option<Outcome>)> =
            answered.map(|one| (one.asked, one.answer.get())).collect();
        for (id, outcome) in process.sim.answers() {
            process.batched.remove(&id);
            answered.push((Asked::Command(id), Some(outcome)));
        }
        for (group, before, status) in committed {
            self.check_majority(at, group, &before, &status)?;
        }
        answered.iter().try_for_each(|(asked, outcome)| self.settle(*asked, outcome.as_ref()))
    }

    fn look_at_directory(&self, at: usize) -> Result<(), Violation> {
        let Node { id, process: Some(process), harm, .. } = &self.nodes[at] else { return Ok(()) };
        if *harm == Harm::None && process.sim.is_old_copy() {
            let detail = format!("node {id} was never given an older one");
            return Err(Violation { invariant: "nobody's directory is taken for an older copy", detail });
        }
        Ok(())
    }

    fn look_at_machines(&mut self, at: usize) -> Result<(), Violation> {
        let now_us = self.clock.true_us();
        let Node { id, process: Some(process), harm, .. } = &mut self.nodes[at] else { return Ok(()) };
        self.oracle.on_cluster(*id, *harm, process.sim.cluster())?;
        for note in process.journal.take() {
            self.tally.event(&[APPLIED, at as u64, note.hash()]);
            if let Some(group) = note.restored() {
                let runs = process.views[group.0 as usize - 1].status().is_some();
                self.tally.mark(if runs { "snapshots_installed" } else { "snapshots_recovered" });
            }
            tracing::trace!(now_us, node = %id, ?note, "machine");
            self.oracle.on_note(*id, &mut process.views, note)?;
        }
        Ok(())
    }

    fn look_at_groups(&mut self, at: usize) -> Result<Vec<Committed>, Violation> {
        let mut committed = Vec::new();
        let now_us = self.clock.true_us();
        let Node { id, process: Some(process), disk, claims, harm, .. } = &mut self.nodes[at] else {
            return Ok(committed);
        };
        let (id, harmed) = (*id, *harm > Harm::None);
        let Process { sim, views, watches, glances, .. } = &mut *process;
        for (group, (view, watch)) in views.iter_mut().zip(watches).enumerate() {
            let uid = GroupId(group as u64 + 1);
            let glance = sim.glance(uid);
            if std::mem::replace(&mut glances[group], glance) == glance {
                continue;
            }
            let Some(status) = sim.group_status(uid) else { continue };
            if let Some(loss) = status.data_loss.filter(|_| self.plan.harmed != Harmed::Anybody) {
                let detail = format!("node {id} group {group}: {loss:?}");
                return Err(Violation {
                    invariant: "data is lost only with the disks of a majority",
                    detail,
                });
            }
            if watch.look(id, sim, &status, &mut self.tally)? {
                self.doubtful.push(at);
            }
            if view.status().is_none() {
                let suspect = sim.is_suspect(uid);
                self.tally.mark_many("groups_suspect", u64::from(suspect));
                let recovered = Recovered { status: &status, suspect, harmed };
                self.oracle.on_recovered(id, recovered, claims[group], |index| sim.term_at(uid, index))?;
            }
            if view.status() != Some(&status) {
                let log = LogOf { sim, group: uid };
                self.oracle.members(group).look(id, view.status(), &status, &log, &mut self.tally)?;
                let before = view.status().filter(|before| before.commit < status.commit);
                if let Some(before) = before.filter(|_| status.leader == Some(id)) {
                    committed.push((group, before.members.clone(), status.clone()));
                }
                mark_trouble(view.status(), &status, &mut self.tally);
            }
            let term = status.term;
            // Its log could not be read, again and again; or its snapshot, and nobody was there to fetch it from.
            let names_the_disk =
                status.poisoned.as_ref().is_some_and(|why| why.contains("simulated I/O error"));
            let is_excused = harmed || names_the_disk && disk.fault_counts().contains_key("read_error");
            if self.oracle.on_status(id, view, status, is_excused, || sim.entries(uid))? {
                tracing::debug!(now_us, node = %id, group, %term, "leads");
                self.tally.event(&[TURN, at as u64, group as u64, term.0]);
                self.tally.mark("elections");
                self.elected.push(group);
            }
        }
        Ok(committed)
    }

    fn look_at_readers(&mut self, at: usize) -> Result<(), Violation> {
        let Node { id, process: Some(process), disk, harm, .. } = &mut self.nodes[at] else {
            return Ok(());
        };
        for mut reading in std::mem::take(&mut process.readings) {
            let Some(result) = reading.pending.take() else {
                process.readings.push(reading);
                continue;
            };
            let trouble = match disk.fault_counts().contains_key("read_error") {
                _ if *harm > Harm::None => DiskTrouble::Damaged,
                true => DiskTrouble::Failed,
                false => DiskTrouble::None,
            };
            // A node may have no time for it, or no group, or lose power while it reads.
            for entry in result.unwrap_or_default().into_iter().filter(|_| !disk.is_crashed()) {
                self.tally.event(&[READ, at as u64, reading.group as u64, entry.0.0]);
                let view = &process.views[reading.group];
                self.oracle.on_read(*id, reading.group, view, entry, trouble, &mut self.tally)?;
            }
        }
        Ok(())
    }

    /// What a leader has committed in its own term is durable on a majority of its members. `before`: those of the look
    /// before, which may have been in force until just now.
    fn check_majority(
        &self,
        at: usize,
        group: usize,
        before: &Members,
        status: &GroupStatus,
    ) -> Result<(), Violation> {
        let term_at = |node: &Node, index| node.process.as_ref()?.sim.term_at(status.group, index);
        if term_at(&self.nodes[at], status.commit) != Some(status.term) {
            return Ok(()); // an entry of its own term is what counts
        }
        // What a node that is down may have is not known in every case; and what was harmed had acknowledged it perhaps.
        let holds = |id: NodeId| {
            let node = &self.nodes[id.0 as usize - 1];
            if node.harm > Harm::None {
                return true;
            }
            let has_it = term_at(node, status.commit).is_none_or(|term| term == status.term);
            node.durable(group).is_none_or(|(durable, _)| durable >= status.commit && has_it)
        };
        if status.members.quorum(holds) || before.quorum(holds) {
            return Ok(());
        }
        let durable: Vec<_> = self.nodes.iter().map(|node| (node.id, node.durable(group))).collect();
        Err(Violation {
            invariant: "what is committed is durable on a majority",
            detail: format!(
                "group {group}: node {} committed {} in term {} with {:?}; durable: {durable:?}",
                self.nodes[at].id, status.commit, status.term, status.members
            ),
        })
    }

    /// A question has ended, or its node has.
    pub(crate) fn settle(&mut self, asked: Asked, outcome: Option<&Outcome>) -> Result<(), Violation> {
        let (number, index) = match outcome {
            Some(Outcome::Done(done)) => (1, done.index.0),
            Some(Outcome::NotDone(why)) => (2, u64::from(crc32c(why.reason.to_string().as_bytes()))),
            Some(Outcome::Unknown(_)) => (3, 0),
            None => (4, 0),
        };
        self.tally.event(&[ANSWER, self.clock.true_us(), number, index]);
        self.tally.mark(mark(asked, outcome));
        tracing::trace!(now_us = self.clock.true_us(), ?asked, ?outcome, "ended");
        match (asked, outcome) {
            (Asked::Command(id), outcome) => {
                self.histories.end(
                    Ticket::Command(id),
                    told(outcome, |reply| {
                        Told::Reply(reply.first_chunk().map_or(0, |reply| u64::from_le_bytes(*reply)))
                    }),
                );
                self.oracle.on_outcome(id, outcome)
            }
            (Asked::Read(group, floor, number), outcome) => {
                let items = |reply: &[u8]| Told::Items(Objects::items(Answered::split(reply).1));
                self.histories.end(Ticket::Read(number), told(outcome, items));
                let Some(Outcome::Done(done)) = outcome else { return Ok(()) };
                self.oracle.on_answer(group, floor, done.index, Answered::split(&done.reply).0)
            }
            (Asked::Query(group, floor), Some(Outcome::Done(done))) => {
                self.oracle.on_answer(group, floor, done.index, &done.reply)
            }
            (Asked::Change(group), Some(Outcome::Done(done))) => {
                self.oracle.members(group).on_done(done.index);
                Ok(())
            }
            (Asked::Query(..) | Asked::Change(_) | Asked::HandOver(_), _) => Ok(()),
        }
    }
}

/// What a disk did to a group's machine.
fn mark_trouble(before: Option<&GroupStatus>, now: &GroupStatus, tally: &mut Tally) {
    if now.poisoned.is_some() && before.is_none_or(|before| before.poisoned.is_none()) {
        tally.mark("machines_stopped_by_disk");
    }
    if now.needs_snapshot.is_some() && before.is_none_or(|before| before.needs_snapshot.is_none()) {
        tally.mark("machines_without_a_sound_snapshot");
    }
}

/// One group's log on a node.
struct LogOf<'a> {
    sim: &'a SimNode<FakeDisk, FakeNet, FakeClock>,
    group: GroupId,
}

impl Log for LogOf<'_> {
    fn term_at(&self, index: Index) -> Option<Term> {
        self.sim.term_at(self.group, index)
    }

    fn entries(&self) -> Entries {
        self.sim.entries(self.group)
    }
}

/// What a session was told.
fn told(outcome: Option<&Outcome>, done: impl Fn(&[u8]) -> Told) -> Told {
    match outcome {
        Some(Outcome::Done(outcome)) => done(&outcome.reply),
        Some(Outcome::NotDone(_)) => Told::NotDone,
        Some(Outcome::Unknown(_)) | None => Told::Nothing,
    }
}

/// How an ended question is counted.
fn mark(asked: Asked, outcome: Option<&Outcome>) -> &'static str {
    use coracle::Reason;
    match (asked, outcome) {
        (Asked::Command(_), Some(Outcome::Done(_))) => "commands_done",
        (Asked::Command(_), Some(Outcome::NotDone(why))) => match why.reason {
            Reason::Overwritten => "commands_overwritten",
            Reason::DiskFull => "commands_disk_full",
            Reason::Busy => "commands_busy",
            Reason::TooLarge => "commands_too_large",
            Reason::Poisoned => "commands_poisoned",
            Reason::NoGroup => "commands_without_group",
            _ => "commands_not_done",
        },
        (Asked::Command(_), Some(Outcome::Unknown(_))) => "commands_unknown",
        (Asked::Command(_), None) => "commands_lost_with_their_node",
        (Asked::Query(..) | Asked::Read(..), Some(Outcome::Done(_))) => "queries_answered",
        (Asked::Query(..) | Asked::Read(..), _) => "queries_not_answered",
        (Asked::Change(_), Some(Outcome::Done(_))) => "changes_done",
        (Asked::Change(_), Some(Outcome::NotDone(why))) => match why.reason {
            Reason::ChangeUnderWay => "changes_too_early",
            Reason::NoLiveQuorum => "changes_without_majority",
            Reason::NoLeader => "changes_without_leader",
            _ => "changes_refused",
        },
        (Asked::Change(_), _) => "changes_unknown",
        (Asked::HandOver(_), Some(Outcome::Done(_))) => "hand_overs_done",
        (Asked::HandOver(_), Some(Outcome::NotDone(_))) => "hand_overs_refused",
        (Asked::HandOver(_), _) => "hand_overs_unknown",
    }
}
