//! `coracle dump`: the entries of one group, as they lie in the log.
//!
//! The log's own rules say which index has which term; of all runs in the files those entries are taken that have it. By
//! Raft, entries of one index and term are the same, so it does not matter which copy is found. What is asked for is
//! held in memory until it is printed in order: ask for a range if the group is large.

use std::collections::BTreeMap;
use std::io::{self, Write};

use coracle::identity::log_dir;
use coracle_base::run::{EntryKind, EntryRef};
use coracle_base::{GroupId, Index};
use coracle_wal::{Config, RecoveredGroup};
use serde_json::{Value, json};

use super::directory::Directory;
use super::{Dump, Error};

/// Prints the entries; whether none is missing.
pub(super) fn run(options: &Dump) -> Result<bool, Error> {
    let mut directory = Directory::open(&options.look.dir)?;
    let shards = directory.shards()?.max(1);
    let id = GroupId(options.group);
    let shard = id.shard(shards);
    let identity = directory.owner(shard)?.ok_or(Error::NoGroup(options.group))?;
    let (groups, _) = coracle_wal::look(&mut directory.disk, &log_dir(shard), &identity)?;
    let group = groups.iter().find(|group| group.group == id).ok_or(Error::NoGroup(options.group))?;
    let wanted = Wanted::new(group, options.from, options.to);

    let mut found = BTreeMap::<Index, Found>::new();
    let config = Config::new(log_dir(shard), 0);
    coracle_wal::walk(&mut directory.disk, &config, &identity, |run| {
        if run.header.group != id {
            return;
        }
        for entry in run.entries().filter(|entry| wanted.has(entry)) {
            let sound = coracle_base::checksum::crc32c(entry.payload) == entry.header.payload_crc;
            if sound || !found.contains_key(&entry.index) {
                found.insert(entry.index, Found { sound, line: line(&entry, sound, options.look.json) });
            }
        }
    })?;
    print(options, &wanted, &found)?;
    let missing = wanted.count() - found.len() as u64;
    let damaged = found.values().filter(|found| !found.sound).count();
    if missing > 0 || damaged > 0 {
        let all = wanted.count();
        return Err(Error::Damaged(format!(
            "Of {all} entries {missing} are missing and {damaged} are not as written"
        )));
    }
    Ok(true)
}

struct Found {
    /// Its payload's checksum holds.
    sound: bool,
    line: String,
}

/// Which entries are to be printed.
struct Wanted<'a> {
    group: &'a RecoveredGroup,
    first: Index,
    last: Index,
}

impl<'a> Wanted<'a> {
    fn new(group: &'a RecoveredGroup, from: Option<u64>, to: Option<u64>) -> Self {
        let oldest = group.live.first().map_or(group.first, |range| range.first);
        let first = from.map_or(oldest, Index).max(oldest);
        let last = to.map_or(group.last, Index).min(group.last);
        Self { group, first, last }
    }

    /// How many there should be: of the log, and of what its snapshot covers only that which lives on.
    fn count(&self) -> u64 {
        let within =
            |first: Index, last: Index| (last.min(self.last).0 + 1).saturating_sub(first.max(self.first).0);
        let live = self.group.live.iter().map(|range| within(range.first, range.last()));
        live.sum::<u64>() + within(self.group.first, self.group.last)
    }

    fn has(&self, entry: &EntryRef<'_>) -> bool {
        let index = entry.index;
        let is_live = if index < self.group.first {
            // Which term it had is not known any more; the newest copy is the one that was kept.
            self.group.live.iter().any(|range| (range.first..=range.last()).contains(&index))
        } else {
            let terms = &self.group.terms;
            let at = terms.partition_point(|(first, _)| *first <= index);
            at.checked_sub(1).map(|at| terms[at].1) == Some(entry.header.term)
        };
        (self.first..=self.last).contains(&index) && is_live
    }
}

fn line(entry: &EntryRef<'_>, sound: bool, as_json: bool) -> String {
    let header = &entry.header;
    let kind = match header.kind {
        EntryKind::Command => "command",
        EntryKind::Noop => "noop",
        EntryKind::Config => "config",
    };
    if as_json {
        return json!({
            "index": entry.index.0,
            "term": header.term.0,
            "kind": kind,
            "tag": header.tag,
            "time_ms": header.time_ms,
            "bytes": header.payload_bytes,
            "sound": sound,
            "payload_hex": entry.payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        })
        .to_string();
    }
    let payload = if sound { entry.payload.escape_ascii().to_string() } else { "(damaged)".to_owned() };
    let (index, term, tag) = (entry.index, header.term, header.tag);
    format!("{index} {term} {kind} {tag} {} {} {payload}", header.time_ms, header.payload_bytes)
}

fn print(options: &Dump, wanted: &Wanted<'_>, found: &BTreeMap<Index, Found>) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if !options.look.json {
        found.values().try_for_each(|found| writeln!(out, "{}", found.line))?;
        return out.flush();
    }
    // By hand: the entries are JSON already, and there may be many.
    let head: [(&str, Value); 3] =
        [("group", options.group.into()), ("first", wanted.first.0.into()), ("last", wanted.last.0.into())];
    write!(out, "{{")?;
    head.iter().try_for_each(|(key, value)| write!(out, "\"{key}\":{value},"))?;
    write!(out, "\"entries\":[")?;
    for (at, found) in found.values().enumerate() {
        write!(out, "{}{}", if at == 0 { "" } else { "," }, found.line)?;
    }
    writeln!(out, "]}}")?;
    out.flush()
}
