//! `coracle verify`: is every byte that the node relies on what was written?

use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::Error;
use super::directory::{Contents, Directory, Finding};

/// A directory in use is looked at so often: what is being written may look damaged once, and not again at the same
/// place.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Checks everything; whether it is sound.
pub(super) fn run(dir: &Path, as_json: bool) -> Result<bool, Error> {
    let mut directory = Directory::open(dir)?;
    let mut contents = directory.read()?;
    for _ in 1..LOOKS {
        if contents.findings.is_empty() || !directory.in_use {
            break;
        }
        thread::park_timeout(BETWEEN_LOOKS);
        let again = directory.read()?;
        let findings = lasting(contents.findings, &again.findings);
        contents = Contents { findings, ..again };
    }
    let report = report(&directory, &contents);
    let mut out = io::stdout().lock();
    if as_json {
        writeln!(out, "{report}")?;
    } else {
        print(&mut out, &report, &contents)?;
    }
    if !contents.findings.is_empty() {
        eprintln!(
            "coracle: {} damaged places in {}. Copy the directory away before anything else. A running cluster brings the \
             groups named back from their other members; without any, restore the files named",
            contents.findings.len(),
            directory.root.display()
        );
    }
    Ok(contents.findings.is_empty())
}

/// Those that both looks found at the same place.
fn lasting(before: Vec<Finding>, now: &[Finding]) -> Vec<Finding> {
    let same = |a: &Finding, b: &Finding| (&a.file, a.offset, &a.what) == (&b.file, b.offset, &b.what);
    before.into_iter().filter(|old| now.iter().any(|new| same(old, new))).collect()
}

fn report(directory: &Directory, contents: &Contents) -> Value {
    let sum = |of: &dyn Fn(&coracle_wal::Inspection) -> u64| {
        contents.shards.iter().map(|(_, shard)| of(shard)).sum::<u64>()
    };
    let told = |findings: &[Finding]| {
        let one = |finding: &Finding| {
            let groups: Vec<u64> = finding.groups.iter().map(|group| group.0).collect();
            json!({ "file": finding.file, "offset": finding.offset, "groups": groups, "what": finding.what })
        };
        findings.iter().map(one).collect::<Vec<_>>()
    };
    json!({
        "directory": directory.root,
        "in_use": directory.in_use,
        "node": directory.identity.as_ref().ok().map(|identity| identity.node.0),
        "shards": contents.shards.len(),
        "files": sum(&|shard| shard.files.len() as u64),
        "batches": sum(&|shard| shard.files.iter().map(|file| file.batches).sum()),
        "groups": sum(&|shard| shard.groups.len() as u64),
        "entries": sum(&|shard| shard.report.entries),
        "snapshot_files": contents.snapshots.len(),
        "sound": contents.findings.is_empty(),
        "damage": told(&contents.findings),
        "notes": told(&contents.notes),
    })
}

fn print(out: &mut impl Write, report: &Value, contents: &Contents) -> io::Result<()> {
    let notes = contents.notes.iter().map(|note| ("note: ", note));
    for (mark, finding) in contents.findings.iter().map(|finding| ("", finding)).chain(notes) {
        let offset = finding.offset.map(|offset| format!(" at {offset}")).unwrap_or_default();
        let groups: Vec<String> = finding.groups.iter().map(ToString::to_string).collect();
        let groups = match groups.len() {
            0 => String::new(),
            _ => format!(" (groups {})", groups.join(", ")),
        };
        writeln!(out, "{mark}{}{offset}: {}{groups}", finding.file.display(), finding.what)?;
    }
    let verdict = if contents.findings.is_empty() { "sound" } else { "damaged" };
    writeln!(
        out,
        "{verdict}: {} shards, {} files, {} batches, {} groups, {} entries, {} snapshot files",
        report["shards"],
        report["files"],
        report["batches"],
        report["groups"],
        report["entries"],
        report["snapshot_files"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_seen_again_is_damage() {
        let finding = |offset| Finding {
            file: "shard-0/00000001.wal".into(),
            offset: Some(offset),
            groups: Vec::new(),
            what: "durable batches are damaged".to_owned(),
        };
        assert_eq!(lasting(vec![finding(1), finding(2)], &[finding(2), finding(3)]), [finding(2)]);
    }
}
