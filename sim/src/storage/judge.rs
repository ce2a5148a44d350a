//! What must never happen to a log, however its disk fails.
//!
//! | the disk | what is held against the log |
//! |---|---|
//! | only crashed | that anything is called damaged, or is not what it was after some record no older than the last durable one |
//! | had a page damaged | that more is lost than what the page held, or that it is lost in silence |
//! | lost a write | that anything is wrong in silence: what may be wrong is suspect, what cannot be read is refused |
//!
//! And always: an entry that is handed out is what was written at its index and term.

use std::collections::{BTreeMap, BTreeSet};

use coracle_base::Index;
use coracle_base::run::Entries;
use coracle_io::DiskError;
use coracle_wal::{ReadError, RecoveredGroup, Recovery};

use super::model::{Group, Model, difference, payload};
use super::store::{Read, Store};
use crate::oracle::Violation;

/// What was done to the disk that a disk should not do.
#[derive(Debug, Clone, Default)]
pub(super) struct Harm {
    /// Pages that were damaged where they lay.
    pub(super) pages: u64,
    /// Writes that never landed.
    pub(super) lost: u64,
    /// Groups that were given up: their records were lost with a page, or are suspect.
    pub(super) given_up: BTreeSet<u64>,
}

impl Harm {
    /// Nothing but crashes.
    fn is_none(&self) -> bool {
        self.pages == 0 && self.lost == 0
    }
}

/// A log as it was when it was last seen.
#[derive(Default)]
pub(super) struct Before {
    pub(super) durable: Model,
    pub(super) pending: Vec<super::model::Op>,
    pub(super) batches: BTreeMap<u64, BTreeSet<u64>>,
}

impl Before {
    pub(super) fn of(store: Store) -> Self {
        let pending = store.pending.into_iter().map(|(_, op)| op).collect();
        Self { durable: store.durable, pending, batches: store.batches }
    }
}

fn violation(invariant: &'static str, detail: String) -> Violation {
    Violation { invariant, detail }
}

/// What was found is what was there. Returns it; groups that are lost are given up.
pub(super) fn recovered(before: &Before, recovery: &Recovery, harm: &mut Harm) -> Result<Model, Violation> {
    let report = &recovery.report;
    let is_suspect = |group: &RecoveredGroup| group.suspect || group.state_lost;
    let is_damage = !report.holes.is_empty()
        || !report.missing.is_empty()
        || !report.strays.is_empty()
        || report.tail_suspect
        || report.is_incomplete()
        || report.damaged_heads > 0
        || recovery.groups.iter().any(is_suspect);
    if is_damage && harm.is_none() {
        return Err(violation("a crash is not taken for damage", format!("{report:?}")));
    }
    let lost: BTreeSet<u64> = (report.holes.iter())
        .flat_map(|hole| before.batches.range(hole.first_seq..=hole.last_seq))
        .flat_map(|(_, groups)| groups.iter().copied())
        .collect();
    harm.given_up.extend(lost);
    // Of all that it may be, the one with most records: what is placed is not seen, and may be there.
    let mut model = before.durable.clone();
    let mut best = mismatch(&model, recovery, harm).map(|given_up| (model.clone(), given_up));
    for op in &before.pending {
        model.apply(op);
        best = match mismatch(&model, recovery, harm) {
            Ok(given_up) => Ok((model.clone(), given_up)),
            Err(why) => best.map_err(|_| why),
        };
    }
    let (mut model, given_up) =
        best.map_err(|detail| violation("what was durable outlives a crash", detail))?;
    harm.given_up.extend(given_up);
    harm.given_up.iter().for_each(|group| drop(model.groups.remove(group)));
    Ok(model)
}

/// Whether what was found is this model: groups that may differ and do, or how one differs that may not.
fn mismatch(model: &Model, recovery: &Recovery, harm: &Harm) -> Result<Vec<u64>, String> {
    let found: BTreeMap<u64, &RecoveredGroup> =
        recovery.groups.iter().map(|group| (group.group.0, group)).collect();
    let ids: BTreeSet<u64> = model.groups.keys().chain(found.keys()).copied().collect();
    let mut given_up = Vec::new();
    for id in ids.difference(&harm.given_up) {
        let expected = model.get(*id);
        let (differs, is_suspect) = match found.get(id) {
            Some(found) => (difference(&expected, found, found.suspect), found.suspect),
            None if expected == Group::default() => (None, false),
            None => (Some(format!("group {id} is gone")), recovery.report.is_incomplete()),
        };
        match differs {
            Some(_) if is_suspect && harm.lost > 0 => given_up.push(*id),
            Some(difference) => return Err(format!("{difference}; {:?}", recovery.report)),
            None => {}
        }
    }
    Ok(given_up)
}

/// What was read is what the log holds. `may_wait`: entries that are not durable are nobody's mistake.
pub(super) fn read(
    read: &Read,
    model: &Model,
    bytes_max: u64,
    harm: &Harm,
    may_wait: bool,
) -> Result<(), Violation> {
    let invariant = "what is read is what was written";
    let is_given_up = harm.given_up.contains(&read.group);
    let group = model.get(read.group);
    for (index, entry) in &read.entries {
        let held = group.readable(*index);
        match entry {
            Ok(encoded) => {
                let entry = Entries::new(Index(*index), encoded).next();
                let term = entry.map(|entry| entry.header.term.0);
                let sound = entry.zip(term).is_some_and(|(entry, term)| {
                    entry.payload == payload(read.group, *index, term, bytes_max)
                        && (is_given_up || held.is_none_or(|held| held == term))
                });
                if !sound {
                    let detail =
                        format!("group {} entry {index}: of term {term:?}, held: {held:?}", read.group);
                    return Err(violation(invariant, detail));
                }
            }
            Err(_) if is_given_up => {}
            Err(ReadError::Disk(DiskError::Crashed)) => {}
            Err(ReadError::Released { .. }) if held.is_none() => {}
            Err(ReadError::NotDurable { .. }) if may_wait => {}
            Err(ReadError::Corrupt { .. } | ReadError::Disk(_)) if !harm.is_none() => {}
            Err(error) => {
                let detail = format!("group {} entry {index}, held: {held:?}: {error}", read.group);
                return Err(violation(invariant, detail));
            }
        }
    }
    Ok(())
}

/// The log in memory is what was staged.
pub(super) fn staged(store: &Store, group: u64) -> Result<(), Violation> {
    let expected = store.now.get(group);
    let Some(log) = store.wal.group(group.into()) else { return Ok(()) };
    let found = (log.first.prev().0, log.last.0, Some(log.last_term.0));
    if found == (expected.base.0, expected.last(), expected.term_at(expected.last())) {
        return Ok(());
    }
    Err(violation("the log is what was staged", format!("group {group}: {log:?}, expected {expected:?}")))
}
