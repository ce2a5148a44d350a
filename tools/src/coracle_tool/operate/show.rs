//! What a node told, as tables for people.

use std::io::{self, Write};

use serde_json::{Map, Value};

/// Node, shards, groups.
pub(super) fn overview(out: &mut dyn Write, told: &Value) -> io::Result<()> {
    let label = match told["metrics_key"].as_str() {
        None | Some("") => String::new(),
        Some(key) => format!(" ({key})"),
    };
    writeln!(out, "node {}{label}, version {}", told["node"], text(&told["version"]))?;
    writeln!(out, "\n{:>5}  address", "node")?;
    for peer in rows(&told["nodes"]) {
        writeln!(out, "{:>5}  {}", text(&peer["node"]), text(&peer["address"]))?;
    }
    writeln!(
        out,
        "\n{:>5} {:>8} {:>9} {:>12} {:>12} {:>10} {:>8}  state",
        "shard", "groups", "restoring", "proposed", "applied", "batches", "won"
    )?;
    for shard in rows(&told["shards"]) {
        let keys = ["shard", "groups", "groups_restoring", "proposed", "applied", "batches", "elections_won"];
        let [number, groups, restoring, proposed, applied, batches, won] = keys.map(|key| text(&shard[key]));
        let state = if shard["disk_full"] == true { "disk full" } else { "ok" };
        writeln!(
            out,
            "{number:>5} {groups:>8} {restoring:>9} {proposed:>12} {applied:>12} {batches:>10} {won:>8}  {state}"
        )?;
    }
    writeln!(
        out,
        "\n{:>10} {:>6} {:>6} {:>12} {:>12} {:>12}  members",
        "group", "leader", "term", "last", "commit", "applied"
    )?;
    for group in rows(&told["groups"]) {
        let keys = ["group", "leader", "term", "last", "commit", "applied"];
        let [uid, leader, term, last, commit, applied] = keys.map(|key| text(&group[key]));
        let members: Vec<String> = rows(&group["members"]).iter().map(member).collect();
        let members = if members.is_empty() { "none yet".to_owned() } else { members.join(" ") };
        writeln!(
            out,
            "{uid:>10} {leader:>6} {term:>6} {last:>12} {commit:>12} {applied:>12}  {members}{}",
            trouble(group)
        )?;
    }
    Ok(())
}

/// One line a member.
pub(super) fn members(out: &mut dyn Write, told: &Value) -> io::Result<()> {
    writeln!(out, "{:>10} {:>6}  {:<10} {:<6}  address", "group", "node", "is", "leads")?;
    for group in rows(&told["groups"]) {
        for member in rows(&group["members"]) {
            let leads = if group["leader"] == member["node"] { "leads" } else { "" };
            let [node, is, address] = ["node", "is", "address"].map(|key| text(&member[key]));
            writeln!(out, "{:>10} {node:>6}  {is:<10} {leads:<6}  {address}", text(&group["group"]))?;
        }
    }
    Ok(())
}

/// One line a named group.
pub(super) fn names(out: &mut dyn Write, groups: &[Value]) -> io::Result<()> {
    writeln!(out, "{:>17} {:>10}  {:<12} {:<16}  name", "group", "generation", "members", "argument")?;
    for group in groups {
        let members: Vec<String> = rows(&group["members"]).iter().map(text).collect();
        let [uid, generation, name] = ["group", "generation", "name"].map(|key| text(&group[key]));
        let argument = match &group["argument"] {
            Value::Null => format!("0x{}", text(&group["argument_hex"])),
            argument => text(argument),
        };
        writeln!(out, "{uid:>17} {generation:>10}  {:<12} {argument:<16}  {name}", members.join(" "))?;
    }
    Ok(())
}

/// A voter by its number alone.
fn member(member: &Value) -> String {
    match member["is"].as_str() {
        Some("voter") => text(&member["node"]),
        _ => format!("{}({})", text(&member["node"]), text(&member["is"])),
    }
}

/// What is not as it should be.
fn trouble(group: &Value) -> String {
    let restoring = (group["restoring"] == true).then(|| "  restoring".to_owned());
    let missing: Vec<String> = rows(&group["waits_for"]).iter().map(text).collect();
    let voters = rows(&group["members"]).iter().filter(|member| member["is"] == "voter").count();
    let loss = group["data_loss"].as_object().map(|loss| {
        format!(
            "  DATA MAY BE LOST above {}: too few members have a sound log; the best is node {}'s, up to {}; shrink to one of them",
            text(&loss["above"]),
            text(&loss["best"]["node"]),
            text(&loss["best"]["last"])
        )
    });
    let suspect = (group["suspect"] == true).then(|| match (missing.is_empty(), voters) {
        (false, _) => format!("  may have forgotten votes, waits for nodes {}", missing.join(", ")),
        // Of one alone no answers are enough (`engine/raft/src/recall.rs`).
        (true, ..2) => {
            "  damaged or may have forgotten votes, waits for its leader; if there is none, shrink it"
                .to_owned()
        }
        (true, _) => "  log damaged, waits for its leader".to_owned(),
    });
    let forced = group["recovery_epoch"].as_u64().filter(|epoch| *epoch > 0);
    let forced = forced.map(|epoch| format!("  shrunk by force ({epoch})"));
    let needs = group["needs_snapshot"].as_str().map(|why| format!("  needs a snapshot: {why}"));
    let poisoned = group["poisoned"].as_str().map(|why| format!("  stands still: {why}"));
    restoring.into_iter().chain(loss).chain(suspect).chain(forced).chain(needs).chain(poisoned).collect()
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "?".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Prometheus' text as one object: each sample's name with its labels, and its number.
pub(super) fn metrics_object(text: &str) -> Value {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, number) = line.rsplit_once(' ')?;
        Some((name.to_owned(), number.parse::<u64>().ok()?.into()))
    };
    Value::Object(lines.filter_map(sample).collect::<Map<_, _>>())
}
