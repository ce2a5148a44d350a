//! `coracle inspect`: node, cluster, shards, files and groups of a data directory.

use std::io::{self, Write};
use std::path::Path;

use coracle_base::ShardId;
use coracle_raft::HardState;
use coracle_segments::snapshot::{SnapshotInfo, SnapshotKind};
use coracle_wal::{LogFileInfo, RecoveredGroup};
use serde_json::{Value, json};

use super::Error;
use super::directory::{Contents, Directory};

/// Says what is there.
pub(super) fn run(dir: &Path, as_json: bool) -> Result<(), Error> {
    let mut directory = Directory::open(dir)?;
    let contents = directory.read()?;
    let report = report(&directory, &contents);
    let mut out = io::stdout().lock();
    if as_json {
        writeln!(out, "{report}")?;
    } else {
        print(&mut out, &report)?;
    }
    if !contents.findings.is_empty() {
        eprintln!("coracle: not everything is sound; `coracle verify` says what and where");
    }
    Ok(())
}

fn report(directory: &Directory, contents: &Contents) -> Value {
    let identity = directory.identity.as_ref().ok();
    let cluster = identity.and_then(|identity| identity.cluster.as_ref());
    let members = cluster.map(|cluster| {
        let member = |(node, incarnation): &(coracle_base::NodeId, u64)| json!({ "node": node.0, "incarnation": incarnation });
        cluster.members.iter().map(member).collect::<Vec<_>>()
    });
    let shards = contents.shards.iter();
    let files = shards.clone().flat_map(|(_, found)| found.files.iter().map(file));
    let groups =
        shards.flat_map(|(shard, found)| found.groups.iter().map(|(of, live)| group(*shard, of, *live)));
    json!({
        "directory": directory.root,
        "in_use": directory.in_use,
        "node": identity.map(|identity| identity.node.0),
        "incarnation": identity.map(|identity| identity.incarnation),
        "cluster": cluster.map(|cluster| format!("{:032x}", cluster.id)),
        "members": members,
        "shards": identity.map(|identity| identity.shards),
        "files": files.collect::<Vec<_>>(),
        "snapshots": contents.snapshots.iter().map(snapshot).collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
        "damaged_places": contents.findings.len(),
    })
}

fn file(file: &LogFileInfo) -> Value {
    json!({
        "file": file.path,
        "bytes": file.bytes,
        "live_bytes": file.live_bytes,
        "batches": file.batches,
        "boot_epoch": file.boot_epoch,
    })
}

fn snapshot(one: &SnapshotInfo) -> Value {
    let kind = match one.kind {
        SnapshotKind::Marked => "snapshot",
        SnapshotKind::Checkpoint => "checkpoint",
        SnapshotKind::Leftover => "leftover",
        SnapshotKind::Unfinished => "unfinished",
        SnapshotKind::Part => "part",
    };
    json!({
        "file": one.path,
        "bytes": one.bytes,
        "kind": kind,
        "group": one.of.map(|(group, ..)| group.0),
        "index": one.of.map(|(_, index, _)| index.0),
        "term": one.of.map(|(.., term)| term.0),
        "state_bytes": one.state_bytes,
        "damage": one.damage.as_ref().map(|(_, what)| what),
    })
}

fn group(shard: ShardId, group: &RecoveredGroup, live_bytes: u64) -> Value {
    let state = HardState::decode(&group.state).ok();
    let inline = group.snapshot.as_ref().map(|snapshot| {
        json!({ "index": snapshot.index.0, "term": snapshot.term.0, "bytes": snapshot.bytes.len() })
    });
    let snapshot = inline.or_else(|| {
        let file = group.snapshot_file?;
        let (index, term) = group.terms.first()?;
        Some(json!({ "index": index.0, "term": term.0, "bytes": file.bytes, "file_no": file.file_no }))
    });
    let live: Vec<_> = group.live.iter().map(|range| json!([range.first.0, range.last().0])).collect();
    json!({
        "group": group.group.0,
        "shard": shard.0,
        "first": group.first.0,
        "last": group.last.0,
        "term": state.as_ref().map(|state| state.term.0),
        "last_term": group.terms.last().map(|(_, term)| term.0),
        "vote": state.as_ref().map(|state| state.vote.0),
        "snapshot": snapshot,
        "live_before_first": live,
        "live_bytes": live_bytes,
        "suspect": group.suspect || group.state_lost,
    })
}

fn print(out: &mut impl Write, report: &Value) -> io::Result<()> {
    let text = |value: &Value| match value {
        Value::Null => "?".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let in_use = if report["in_use"] == true { ", in use" } else { "" };
    writeln!(
        out,
        "node {} (incarnation {}) of cluster {}, {} shards{in_use}",
        text(&report["node"]),
        text(&report["incarnation"]),
        text(&report["cluster"]),
        text(&report["shards"])
    )?;
    let rows = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    writeln!(out, "\n{:<32} {:>12} {:>12} {:>8} {:>6}", "file", "bytes", "live bytes", "batches", "start")?;
    for row in rows("files") {
        let [file, bytes, live, batches, start] =
            ["file", "bytes", "live_bytes", "batches", "boot_epoch"].map(|key| text(&row[key]));
        writeln!(out, "{file:<32} {bytes:>12} {live:>12} {batches:>8} {start:>6}")?;
    }
    print_snapshots(out, &rows("snapshots"), text)?;
    writeln!(
        out,
        "\n{:>12} {:>5} {:>12} {:>12} {:>8} {:>12} {:>12}",
        "group", "shard", "first", "last", "term", "snapshot", "live bytes"
    )?;
    for row in rows("groups") {
        let [group, shard, first, last, term, live] =
            ["group", "shard", "first", "last", "term", "live_bytes"].map(|key| text(&row[key]));
        let snapshot =
            if row["snapshot"].is_null() { "-".to_owned() } else { text(&row["snapshot"]["index"]) };
        let suspect = if row["suspect"] == true { "  suspect" } else { "" };
        writeln!(
            out,
            "{group:>12} {shard:>5} {first:>12} {last:>12} {term:>8} {snapshot:>12} {live:>12}{suspect}"
        )?;
    }
    Ok(())
}

fn print_snapshots(out: &mut impl Write, rows: &[Value], text: impl Fn(&Value) -> String) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<44} {:>10} {:>12} {:>12} {:>12} {:>8}",
        "snapshot file", "kind", "bytes", "group", "index", "term"
    )?;
    for row in rows {
        let [file, kind, bytes, group, index, term] =
            ["file", "kind", "bytes", "group", "index", "term"].map(|key| text(&row[key]));
        let damaged = if row["damage"].is_null() { "" } else { "  damaged" };
        writeln!(out, "{file:<44} {kind:>10} {bytes:>12} {group:>12} {index:>12} {term:>8}{damaged}")?;
    }
    Ok(())
}
