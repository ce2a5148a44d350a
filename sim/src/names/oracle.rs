//! What must never become of named groups, checked while it may. Each wish for a group has a number of its own, which the group
//! keeps as its argument: so what is one group's is never taken for another's, whatever uid or name it comes by.
//!
//! Invariants that are checked: a uid is one group's ever; a name one group's at a time; what was acknowledged (a group, its end,
//! a command) is so in the end; what was not done never is; equal commands in equal order on all members.

use std::collections::{BTreeMap, BTreeSet};

use coracle::{Created, Deleted, GroupId, NamedGroup, NodeId, Outcome};

use super::machine::{NameNote, number_of};
use crate::oracle::{Violation, hold};

/// Names that groups are given.
pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

const ONE_UID: &str = "a uid is one group's ever";
const ONE_NAME: &str = "a name is one group's at a time";
const KEPT: &str = "acknowledged groups are there";
const GONE: &str = "deleted groups are gone";

/// How a wish ended, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unknown,
    Done,
    NotDone,
}

#[derive(Debug)]
struct Group {
    name: usize,
    id: Option<GroupId>,
    created: Fate,
    /// Wishes that may have deleted it.
    deletions: u32,
    /// Since then it is gone for sure.
    deleted_us: Option<u64>,
    /// The commands that it applied, as it was first seen.
    log: Vec<u64>,
}

/// Judges the named groups of one run.
#[derive(Debug, Default)]
pub(crate) struct NameOracle {
    /// By the number of the wish.
    groups: Vec<Group>,
    by_id: BTreeMap<GroupId, u64>,
    /// By id: of which group, and how it ended.
    commands: Vec<(u64, Fate)>,
    /// Wishes to delete whatever has a name, whose end nobody knows.
    open_ends: [u32; NAMES.len()],
}

impl NameOracle {
    // ---- wishes ---------------------------------------------------------------------------------------------------

    /// Somebody is about to wish for a group of this name.
    pub(crate) fn begin_create(&mut self, name: usize) -> u64 {
        let deletions = self.open_ends[name];
        let group =
            Group { name, id: None, created: Fate::Unknown, deletions, deleted_us: None, log: Vec::new() };
        self.groups.push(group);
        self.groups.len() as u64 - 1
    }

    /// Somebody is about to delete this very group.
    pub(crate) fn begin_delete(&mut self, number: u64) -> Option<(usize, GroupId)> {
        let group = &mut self.groups[number as usize];
        group.deletions += 1;
        group.id.map(|id| (group.name, id))
    }

    /// Somebody is about to delete whatever has this name.
    pub(crate) fn begin_delete_name(&mut self, name: usize) {
        self.open_ends[name] += 1;
        self.groups.iter_mut().filter(|group| group.name == name).for_each(|group| group.deletions += 1);
    }

    pub(crate) fn begin_command(&mut self, number: u64) -> u64 {
        self.commands.push((number, Fate::Unknown));
        self.commands.len() as u64 - 1
    }

    /// Groups that are perhaps there.
    pub(crate) fn living(&self) -> Vec<(u64, GroupId)> {
        let living = |(number, group): (usize, &Group)| {
            group.id.filter(|_| group.deleted_us.is_none()).map(|id| (number as u64, id))
        };
        self.groups.iter().enumerate().filter_map(living).collect()
    }

    /// The uid of a wish that was granted, if anybody has shown it.
    pub(crate) fn id_of(&self, number: u64) -> Option<GroupId> {
        self.groups.get(number as usize)?.id
    }

    /// Whether it is gone for sure.
    pub(crate) fn is_deleted(&self, id: GroupId) -> bool {
        self.by_id.get(&id).is_some_and(|number| self.groups[*number as usize].deleted_us.is_some())
    }

    /// Somebody shows a group: which it is.
    pub(crate) fn meet(&mut self, group: &NamedGroup) -> Result<u64, Violation> {
        let id = group.id();
        let Some(number) = number_of(group.argument()).filter(|one| (*one as usize) < self.groups.len())
        else {
            let detail = format!("{group:?} was not wished for");
            return Err(Violation { invariant: "only what was wished for is made", detail });
        };
        let known = *self.by_id.entry(id).or_insert(number);
        hold!(known == number, ONE_UID, "{id} is wish {number}'s, and was wish {known}'s");
        let one = &mut self.groups[number as usize];
        let before = *one.id.get_or_insert(id);
        hold!(before == id, "a wish is granted once", "wish {number} made {before} and {id}");
        hold!(NAMES[one.name] == group.name(), ONE_NAME, "wish {number} was for another name: {group:?}");
        hold!(one.created != Fate::NotDone, "not done is never done", "wish {number} made {id}");
        Ok(number)
    }

    pub(crate) fn on_created(
        &mut self,
        number: u64,
        begun_us: u64,
        outcome: &Outcome<Created>,
    ) -> Result<&'static str, Violation> {
        match outcome {
            Outcome::Done(done) => match &done.reply {
                Created::New(group) => {
                    let met = self.meet(group)?;
                    hold!(met == number, ONE_UID, "wish {number} was granted with {group:?}");
                    self.groups[number as usize].created = Fate::Done;
                    Ok("named_groups_created")
                }
                Created::Taken(group) => {
                    let met = self.meet(group)? as usize;
                    let deleted_us = self.groups[met].deleted_us;
                    let is_fresh = deleted_us.is_none_or(|deleted_us| deleted_us >= begun_us);
                    hold!(is_fresh, GONE, "a name is taken by {group:?}, deleted before it was asked for");
                    self.groups[number as usize].created = Fate::NotDone;
                    hold!(
                        self.groups[number as usize].id.is_none(),
                        ONE_NAME,
                        "wish {number} was granted, too"
                    );
                    Ok("named_groups_taken")
                }
                other => {
                    let detail = format!("wish {number}, which is new and sound, was answered {other:?}");
                    Err(Violation {
                        invariant: "a new wish for a name is granted, or the name is taken",
                        detail,
                    })
                }
            },
            Outcome::NotDone(why) => {
                let group = &mut self.groups[number as usize];
                group.created = Fate::NotDone;
                hold!(
                    group.id.is_none(),
                    "not done is never done",
                    "wish {number} made {:?}: {why}",
                    group.id
                );
                Ok("name_wishes_not_done")
            }
            Outcome::Unknown(_) => Ok("name_wishes_unknown"),
        }
    }

    /// The end of a certain group was wished for.
    pub(crate) fn on_deleted(
        &mut self,
        number: u64,
        now_us: u64,
        outcome: &Outcome<Deleted>,
    ) -> Result<&'static str, Violation> {
        let Outcome::Done(done) = outcome else {
            return Ok(match outcome {
                Outcome::NotDone(_) => "name_wishes_not_done",
                _ => "name_wishes_unknown",
            });
        };
        let is_found = match &done.reply {
            Deleted::Gone(group) => {
                let met = self.meet(group)?;
                hold!(met == number, ONE_UID, "wish {met} was deleted for wish {number}");
                true
            }
            Deleted::NotThere => false,
            Deleted::Other(group) => {
                let met = self.meet(group)?;
                hold!(met != number, GONE, "{group:?} was to be deleted, and is called another one");
                false
            }
        };
        let group = &mut self.groups[number as usize];
        let may_be_gone = group.created != Fate::Done || group.deletions > 1;
        hold!(is_found || may_be_gone, KEPT, "group {:?} of wish {number} was not there", group.id);
        group.deleted_us.get_or_insert(now_us);
        Ok("named_groups_deleted")
    }

    /// The end of whatever had a name was wished for.
    pub(crate) fn on_name_deleted(
        &mut self,
        name: usize,
        now_us: u64,
        outcome: &Outcome<Deleted>,
    ) -> Result<&'static str, Violation> {
        match outcome {
            Outcome::Done(done) => {
                self.open_ends[name] -= 1;
                if let Deleted::Gone(group) = &done.reply {
                    let met = self.meet(group)?;
                    self.groups[met as usize].deleted_us.get_or_insert(now_us);
                }
                Ok("names_deleted")
            }
            Outcome::NotDone(_) => {
                self.open_ends[name] -= 1;
                Ok("name_wishes_not_done")
            }
            Outcome::Unknown(_) => Ok("name_wishes_unknown"),
        }
    }

    /// A name was looked up, and this group found.
    pub(crate) fn on_looked_up(&self, name: usize, found: Option<u64>) -> Result<&'static str, Violation> {
        let is_kept = |group: &Group| group.created == Fate::Done && group.deletions == 0;
        let found = found.filter(|at| is_kept(&self.groups[*at as usize]));
        let kept = self.groups.iter().position(|group| group.name == name && is_kept(group));
        let is_other = found.zip(kept).is_some_and(|(found, kept)| found != kept as u64);
        hold!(!is_other, ONE_NAME, "wishes {found:?} and {kept:?} have one name, and nobody deleted either");
        Ok("names_looked_up")
    }

    // ---- commands -------------------------------------------------------------------------------------------------

    /// What an answer to a question asked now must include.
    pub(crate) fn floor(&self, number: u64) -> usize {
        let is_done = |id: &u64| self.commands[*id as usize].1 == Fate::Done;
        self.groups[number as usize].log.iter().rposition(is_done).map_or(0, |at| at + 1)
    }

    pub(crate) fn on_outcome(&mut self, id: u64, outcome: &Outcome) -> Result<&'static str, Violation> {
        let (number, fate) = &mut self.commands[id as usize];
        let applied = self.groups[*number as usize].log.contains(&id);
        match outcome {
            Outcome::Done(_) => {
                *fate = Fate::Done;
                hold!(applied, "acknowledged history", "command {id} of wish {number} was applied nowhere");
                Ok("named_commands_done")
            }
            Outcome::NotDone(why) => {
                *fate = Fate::NotDone;
                hold!(!applied, "not done is never applied", "command {id} of wish {number}: {why}");
                Ok("named_commands_not_done")
            }
            Outcome::Unknown(_) => Ok("named_commands_unknown"),
        }
    }

    pub(crate) fn on_answer(&self, number: u64, floor: usize, ids: &[u64]) -> Result<(), Violation> {
        let log = &self.groups[number as usize].log;
        let is_right = log.get(..ids.len()).is_some_and(|known| known == ids) && ids.len() >= floor;
        hold!(
            is_right,
            "linearizable queries",
            "wish {number} answered {ids:?}, not {floor} or more of {log:?}"
        );
        Ok(())
    }

    /// A machine of `node` did something. `counts`: the commands that its machines hold.
    pub(crate) fn on_note(
        &mut self,
        node: NodeId,
        counts: &mut BTreeMap<u64, usize>,
        note: &NameNote,
    ) -> Result<(), Violation> {
        match note {
            NameNote::Made { number } => {
                let is_known = self.groups.get(*number as usize).is_some_and(|group| group.id.is_some());
                hold!(is_known, "only the directory makes groups begin", "node {node}: wish {number}");
                counts.insert(*number, 0);
            }
            NameNote::Applied { number, nth, id } => {
                let before = counts.insert(*number, *nth).unwrap_or_default();
                hold!(
                    *nth == before + 1,
                    "entries are applied once, in order",
                    "node {node}: {note:?} after {before}"
                );
                let log = &mut self.groups[*number as usize].log;
                let (of, fate) = self.commands[*id as usize];
                if *nth == log.len() + 1 {
                    let is_new = of == *number && fate != Fate::NotDone && !log.contains(id);
                    hold!(
                        is_new,
                        "only what was proposed is applied, once",
                        "node {node}: {note:?} of wish {of}, {fate:?}"
                    );
                    log.push(*id);
                }
                let known = log.get(*nth - 1);
                hold!(known == Some(id), "state machine safety", "node {node}: {note:?}, known: {known:?}");
            }
            NameNote::Restored { number, ids } => {
                counts.insert(*number, ids.len());
                self.on_answer(*number, 0, ids)?;
            }
        }
        Ok(())
    }

    // ---- the end --------------------------------------------------------------------------------------------------

    /// These groups are left when everything is repaired.
    pub(crate) fn judge(&self, left: &BTreeSet<GroupId>) -> Result<(), Violation> {
        for (number, group) in self.groups.iter().enumerate() {
            let is_left = group.id.is_some_and(|id| left.contains(&id));
            let is_kept = group.created == Fate::Done && group.deletions == 0;
            hold!(is_left || !is_kept, KEPT, "wish {number} was acknowledged: {group:?}; left: {left:?}");
            let is_gone = group.deleted_us.is_some();
            hold!(!is_left || !is_gone, GONE, "wish {number} is there: {group:?}");
            let lost = || {
                let of =
                    |(id, one): (usize, &(u64, Fate))| (*one == (number as u64, Fate::Done)).then_some(id);
                let acknowledged = self.commands.iter().enumerate().filter_map(of);
                acknowledged.map(|id| id as u64).find(|id| !group.log.contains(id))
            };
            hold!(lost().is_none(), "acknowledged history", "wish {number} lost command {:?}", lost());
        }
        Ok(())
    }
}
