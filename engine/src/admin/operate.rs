//! What the listener asks of the node, and how it tells it.

use std::time::Duration;

use coracle_base::limits::MEMBERS_MAX;
use coracle_base::{GroupId, NodeId};
use coracle_raft::{Change, DataLoss, Member, Membership};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Shared;
use super::answer::Failed;
use crate::api::{Pending, Proposal, ask};
use crate::outcome::Outcome;
use crate::shard::inbox::Command;
use crate::shard::places::Word;
use crate::shard::status::{GroupStatus, ShardStatus};

/// How long a shard may take to tell about itself: a turn, and what was before it in the inbox.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// How long a change may take: longer than the default for commands, which ends it by itself.
pub(super) const CHANGED_WITHIN: Duration = Duration::from_secs(15);

/// What a shard told, or that it did not.
async fn told<T>(pending: Pending<T>) -> Result<T, Failed> {
    match timeout(TOLD_WITHIN, pending).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => {
            let message = format!(
                "a shard has not answered within {} s: it forms its cluster, recovers, or waits for its disk",
                TOLD_WITHIN.as_secs()
            );
            Err(Failed::unknown("no_answer", message))
        }
    }
}

/// How a wish ended.
async fn changed(group: GroupId, proposal: Proposal) -> Result<Value, Failed> {
    match timeout(CHANGED_WITHIN, proposal).await {
        Ok(Outcome::Done(done)) => {
            Ok(json!({ "group": group.0, "index": done.index.0, "leader": done.leader.0 }))
        }
        Ok(Outcome::NotDone(why)) => Err(why.into()),
        Ok(Outcome::Unknown(why)) => Err(why.into()),
        Err(_elapsed) => {
            let message = format!(
                "no answer within {} s; look at the members before you try again",
                CHANGED_WITHIN.as_secs()
            );
            Err(Failed::unknown("no_answer", message))
        }
    }
}

/// The counters of each shard.
pub(super) async fn shards(shared: &Shared) -> Result<Vec<ShardStatus>, Failed> {
    let inboxes = shared.handles.inboxes.iter();
    let asked: Vec<_> = inboxes.map(|inbox| ask(inbox, |reply| Command::Status { reply })).collect();
    let mut shards = Vec::with_capacity(asked.len());
    for pending in asked {
        shards.push(told(pending).await?);
    }
    Ok(shards)
}

pub(super) fn live(shared: &Shared) -> Result<Value, Failed> {
    match shared.handles.inboxes.iter().any(|inbox| inbox.is_closed()) {
        false => Ok(json!({ "node": shared.handles.id.0 })),
        true => Err(Failed::from(crate::Error::Stopped(None))),
    }
}

pub(super) async fn ready(shared: &Shared) -> Result<Value, Failed> {
    // The first shard forms the cluster; until then there are no others to answer.
    if let Some(first) = shared.handles.inboxes.first()
        && told(ask(first, |reply| Command::Status { reply })).await?.forming
    {
        let others = shared.peers.len() - 1;
        let message =
            format!("the node waits for its cluster: every one of its {others} peers has to be there");
        return Err(Failed::not_done(StatusCode::SERVICE_UNAVAILABLE, "forming", message));
    }
    shards(shared).await?;
    live(shared)
}

/// The node, its shards, and one page of its groups.
pub(super) async fn overview(shared: &Shared, after: GroupId, limit: usize) -> Result<Value, Failed> {
    let shards = shards(shared).await?;
    let inboxes = shared.handles.inboxes.iter();
    // One more than is shown: whether there is another page.
    let count = limit + 1;
    let asked: Vec<_> =
        inboxes.map(|inbox| ask(inbox, |reply| Command::GroupsAfter { after, count, reply })).collect();
    let mut groups = Vec::new();
    for pending in asked {
        groups.extend(told(pending).await?);
        groups.sort_unstable_by_key(|status: &GroupStatus| status.group);
        groups.truncate(count);
    }
    let next = (groups.len() > limit).then(|| groups[limit - 1].group.0);
    groups.truncate(limit);
    let peer = |peer: &crate::Peer| json!({ "node": peer.id.0, "address": peer.address.to_string() });
    Ok(json!({
        "node": shared.handles.id.0,
        "version": env!("CARGO_PKG_VERSION"),
        "metrics_key": shared.metrics_key,
        "nodes": shared.peers.iter().map(peer).collect::<Vec<_>>(),
        "groups_total": shards.iter().map(|shard| shard.groups).sum::<u64>(),
        "shards": shards.iter().enumerate().map(tell_shard).collect::<Vec<_>>(),
        "groups": groups.iter().map(|group| tell_group(shared, group)).collect::<Vec<_>>(),
        "next": next,
    }))
}

pub(super) async fn group(shared: &Shared, group: GroupId) -> Result<Value, Failed> {
    let groups = vec![group];
    let asked = ask(shared.handles.inbox(group), |reply| Command::GroupStatus { groups, reply });
    let status = told(asked).await?.pop().flatten().ok_or(crate::Error::NoGroup(group))?;
    let mut told = tell_group(shared, &status);
    told["node"] = shared.handles.id.0.into();
    Ok(told)
}

pub(super) async fn add(shared: &Shared, group: GroupId, body: &Value) -> Result<Value, Failed> {
    known_keys(body, &["node", "as", "address", "force"])?;
    let node = node(body, "node")?.ok_or_else(|| Failed::bad_request("which node? \"node\": N"))?;
    check_node(shared, node, body)?;
    let change = match body["as"].as_str() {
        Some("promotable") => Change::Promotable(node),
        Some("voter") => Change::Voter(node),
        Some("non_voter") => Change::Learner(node),
        None if body["as"].is_null() => Change::Promotable(node),
        _ => return Err(Failed::bad_request("\"as\" is promotable, voter or non_voter")),
    };
    changed(group, shared.handles.group(group).change_members(&[change], force(body)?)).await
}

/// Whether the engine can reach that node at all.
fn check_node(shared: &Shared, node: NodeId, body: &Value) -> Result<(), Failed> {
    let Some(peer) = shared.peers.iter().find(|peer| peer.id == node) else {
        let known: Vec<_> = shared.peers.iter().map(|peer| peer.id.to_string()).collect();
        let message = format!(
            "node {node} is not among this node's peers ({}): start every node of the cluster again with it among them, \
             one after the other, and then the new one",
            known.join(", ")
        );
        return Err(Failed::not_done(StatusCode::UNPROCESSABLE_ENTITY, "unknown_node", message));
    };
    match body["address"].as_str() {
        None if body["address"].is_null() => Ok(()),
        Some(address) if address == peer.address.to_string() => Ok(()),
        _ => {
            let message = format!(
                "this cluster reaches node {node} at {}, by its configuration; it is not changed here",
                peer.address
            );
            Err(Failed::not_done(StatusCode::CONFLICT, "other_address", message))
        }
    }
}

pub(super) async fn remove(shared: &Shared, group: GroupId, body: &Value) -> Result<Value, Failed> {
    known_keys(body, &["node", "force"])?;
    let node = node(body, "node")?.ok_or_else(|| Failed::bad_request("which node? \"node\": N"))?;
    let changes = [Change::Remove(node)];
    changed(group, shared.handles.group(group).change_members(&changes, force(body)?)).await
}

pub(super) async fn transfer(shared: &Shared, group: GroupId, body: &Value) -> Result<Value, Failed> {
    known_keys(body, &["to"])?;
    let to = node(body, "to")?;
    changed(group, shared.handles.group(group).transfer_leadership(to)).await
}

pub(super) async fn elect(shared: &Shared, group: GroupId) -> Result<Value, Failed> {
    let asked = ask(shared.handles.inbox(group), |reply| Command::Campaign { group, reply });
    let id = shared.handles.id;
    match told(asked).await? {
        true => Ok(json!({ "group": group.0, "candidate": id.0 })),
        false => {
            let message = format!(
                "node {id} does not campaign: it leads already, is no voter, or no majority is there"
            );
            Err(Failed::not_done(StatusCode::CONFLICT, "no_candidate", message))
        }
    }
}

pub(super) async fn drain(shared: &Shared) -> Result<Value, Failed> {
    let inboxes = shared.handles.inboxes.iter();
    let asked: Vec<_> = inboxes.map(|inbox| ask(inbox, |reply| Command::Drain { reply })).collect();
    let (mut handing_over, mut kept, mut told_by, mut failed) = (0, 0, 0, None);
    for pending in asked {
        match told(pending).await {
            Ok(one) => {
                (handing_over, kept, told_by) =
                    (handing_over + one.handing_over, kept + one.kept, told_by + 1)
            }
            Err(why) => failed = Some(why),
        }
    }
    match failed {
        // Some of it has begun.
        Some(why) if told_by > 0 => return Err(Failed::unknown("partly", why.message().to_owned())),
        Some(why) => return Err(why),
        None => {}
    }
    Ok(json!({ "node": shared.handles.id.0, "handing_over": handing_over, "kept": kept }))
}

/// Nodes are gone for good, though groups have them as members.
pub(super) async fn lost(shared: &Shared, body: &Value) -> Result<Value, Failed> {
    known_keys(body, &["nodes", "force"])?;
    let force = force(body)?;
    let ids = body["nodes"].as_array().filter(|ids| !ids.is_empty() && ids.len() <= MEMBERS_MAX);
    let ids = ids
        .and_then(|ids| ids.iter().map(|id| id.as_u64().filter(|id| *id > 0)).collect::<Option<Vec<u64>>>());
    let ids = ids.ok_or_else(|| Failed::bad_request("which nodes? \"nodes\": [2, 3]"))?;
    let nodes = ids.iter().copied().map(NodeId).collect();
    let first = shared.handles.inboxes.first().ok_or(crate::Error::Stopped(None))?;
    told(ask(first, |reply| Command::Places(Word::Lose { nodes, force, reply }))).await?;
    Ok(json!({ "nodes": ids }))
}

/// This node is a group's only member from now on.
pub(super) async fn shrink(shared: &Shared, group: GroupId) -> Result<Value, Failed> {
    told(ask(shared.handles.inbox(group), |reply| Command::Shrink { group, reply })).await?;
    Ok(json!({ "group": group.0, "member": shared.handles.id.0 }))
}

/// A node's directory is gone for good: whoever comes next with its id and an empty one may have its place.
pub(super) async fn replace(shared: &Shared, node: NodeId, body: &Value) -> Result<Value, Failed> {
    known_keys(body, &["force"])?;
    let force = force(body)?;
    let first = shared.handles.inboxes.first().ok_or(crate::Error::Stopped(None))?;
    told(ask(first, |reply| Command::Places(Word::GiveUp { node, force, reply }))).await?;
    Ok(json!({ "node": node.0, "by": shared.handles.id.0 }))
}

/// A misspelt key must not be taken for its default.
pub(super) fn known_keys(body: &Value, known: &[&str]) -> Result<(), Failed> {
    let mut keys = body.as_object().into_iter().flat_map(|object| object.keys());
    match keys.find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(Failed::bad_request(format!("{key:?} means nothing here; there are {known:?}"))),
        None => Ok(()),
    }
}

fn node(body: &Value, key: &str) -> Result<Option<NodeId>, Failed> {
    match (&body[key], body[key].as_u64()) {
        (Value::Null, _) => Ok(None),
        (_, Some(id)) if id > 0 => Ok(Some(NodeId(id))),
        (other, _) => Err(Failed::bad_request(format!("{key:?}: {other} is no node's id"))),
    }
}

fn force(body: &Value) -> Result<bool, Failed> {
    match &body["force"] {
        Value::Null => Ok(false),
        Value::Bool(force) => Ok(*force),
        other => Err(Failed::bad_request(format!("\"force\" is true or false, not {other}"))),
    }
}

fn tell_shard((shard, status): (usize, &ShardStatus)) -> Value {
    json!({
        "shard": shard,
        "groups": status.groups,
        "groups_damaged": status.groups_damaged,
        "groups_data_loss": status.groups_data_loss,
        "groups_deleted": status.groups_deleted,
        "groups_lost_acknowledged": status.groups_lost_acknowledged,
        "groups_mended": status.groups_mended,
        "directory_old": status.directory_old,
        "new_groups_doubted": status.new_groups_doubted,
        "groups_restoring": status.groups_restoring,
        "proposed": status.proposed,
        "applied": status.applied,
        "batches": status.batches,
        "batch_bytes": status.batch_bytes,
        "elections_won": status.elections_won,
        "disk_full": status.disk_full,
        "disk_stalled": status.disk_stalled,
        "disk_stalls": status.disk_stalls,
    })
}

fn tell_group(shared: &Shared, status: &GroupStatus) -> Value {
    json!({
        "group": status.group.0,
        "leader": status.leader.map(|leader| leader.0),
        "term": status.term.0,
        "first": status.first.0,
        "last": status.last.0,
        "commit": status.commit.0,
        "applied": status.applied.0,
        "members": status.members.iter().map(|member| tell_member(shared, member)).collect::<Vec<_>>(),
        "members_index": status.members_index.0,
        "restoring": status.restoring,
        "poisoned": status.poisoned,
        "recovery_epoch": status.recovery_epoch,
        "suspect": status.suspect,
        "waits_for": status.waits_for.iter().map(|node| node.0).collect::<Vec<_>>(),
        "data_loss": status.data_loss.map(tell_loss),
        "needs_snapshot": status.needs_snapshot,
    })
}

fn tell_loss(loss: DataLoss) -> Value {
    let (node, last) = loss.best;
    json!({ "above": loss.above.0, "best": { "node": node.0, "last": last.0 } })
}

fn tell_member(shared: &Shared, member: &Member) -> Value {
    let (kind, target) = match member.membership() {
        Membership::Voter => ("voter", None),
        Membership::Leaving => ("leaving", None),
        Membership::Learner => ("non_voter", None),
        Membership::Promotable { target } => ("promotable", Some(target.0)),
    };
    let peer = shared.peers.iter().find(|peer| peer.id == member.id);
    let mut told = json!({
        "node": member.id.0,
        "is": kind,
        "address": peer.map(|peer| peer.address.to_string()),
    });
    if let Some(target) = target {
        told["target"] = target.into();
    }
    told
}
