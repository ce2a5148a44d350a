//! Named groups, as an operator asks for them.

use coracle_base::limits::MEMBERS_MAX;
use coracle_base::{GroupId, NodeId};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Shared;
use super::answer::Failed;
use super::operate::{CHANGED_WITHIN, known_keys};
use crate::api::{Directory, TypedProposal};
use crate::directory::{Created, Deleted, NamedGroup, Page};
use crate::machine::Wire;
use crate::outcome::Outcome;

/// A page of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) prefix: String,
    pub(super) after: String,
    pub(super) limit: usize,
}

pub(super) async fn list(shared: &Shared, listed: &Listed) -> Result<Value, Failed> {
    let page: Page = ended(directory(shared).list(&listed.prefix, &listed.after, listed.limit)).await?;
    Ok(json!({ "groups": page.groups.iter().map(tell).collect::<Vec<_>>(), "next": page.next }))
}

pub(super) async fn create(shared: &Shared, body: &Value) -> Result<Value, Failed> {
    known_keys(body, &["name", "members", "argument"])?;
    let (name, argument) = (text(body, "name")?, text(body, "argument")?);
    let (group, is_new) =
        match ended(directory(shared).create(name, &members(body)?, argument.as_bytes())).await? {
            Created::New(group) => (group, true),
            Created::Same(group) => (group, false),
            Created::Taken(other) => {
                let message = format!(
                    "{name} is group {} already, with other members or another argument; nothing was changed",
                    other.id()
                );
                return Err(Failed::not_done(StatusCode::CONFLICT, "name_taken", message));
            }
            Created::Full => {
                let message = "the directory holds as many groups as it may";
                return Err(Failed::not_done(StatusCode::INSUFFICIENT_STORAGE, "directory_full", message));
            }
            Created::Refused => return Err(Failed::bad_request("the directory takes no such group")),
        };
    let mut told = tell(&group);
    told["is_new"] = is_new.into();
    Ok(told)
}

pub(super) async fn delete(shared: &Shared, body: &Value) -> Result<Value, Failed> {
    known_keys(body, &["name", "group"])?;
    let name = text(body, "name")?;
    let id = match (&body["group"], body["group"].as_u64()) {
        (Value::Null, _) => None,
        (_, Some(uid)) => Some(GroupId(uid)),
        (other, None) => return Err(Failed::bad_request(format!("\"group\": {other} is no group's uid"))),
    };
    let directory = directory(shared);
    let wish = id.map_or_else(|| directory.delete(name), |id| directory.delete_exactly(name, id));
    match ended(wish).await? {
        Deleted::Gone(group) => Ok(tell(&group)),
        Deleted::NotThere => {
            let message = format!("there is no group of the name {name}");
            Err(Failed::not_done(StatusCode::NOT_FOUND, "no_such_name", message))
        }
        Deleted::Other(other) => {
            let message = format!("{name} is group {} now; nothing was changed", other.id());
            Err(Failed::not_done(StatusCode::CONFLICT, "other_group", message))
        }
    }
}

fn directory(shared: &Shared) -> Directory {
    shared.handles.directory()
}

async fn ended<R: Wire>(wish: TypedProposal<R>) -> Result<R, Failed> {
    match timeout(CHANGED_WITHIN, wish).await {
        Ok(Outcome::Done(done)) => Ok(done.reply),
        Ok(Outcome::NotDone(why)) => Err(why.into()),
        Ok(Outcome::Unknown(why)) => Err(why.into()),
        Err(_elapsed) => {
            let message = format!("no answer within {} s; it may be tried again", CHANGED_WITHIN.as_secs());
            Err(Failed::unknown("no_answer", message))
        }
    }
}

fn text<'a>(body: &'a Value, key: &str) -> Result<&'a str, Failed> {
    match &body[key] {
        Value::Null => Ok(""),
        Value::String(text) => Ok(text),
        other => Err(Failed::bad_request(format!("{key:?} is a text, not {other}"))),
    }
}

fn members(body: &Value) -> Result<Vec<NodeId>, Failed> {
    let wrong = || Failed::bad_request("\"members\" are nodes' ids: [1, 2, 3], or [] for all nodes");
    let ids = match &body["members"] {
        Value::Null => return Ok(Vec::new()),
        Value::Array(ids) if ids.len() <= MEMBERS_MAX => ids,
        _ => return Err(wrong()),
    };
    let node = |id: &Value| id.as_u64().filter(|id| *id > 0).map(NodeId).ok_or_else(wrong);
    ids.iter().map(node).collect()
}

fn tell(group: &NamedGroup) -> Value {
    let mut told = json!({
        "name": group.name(),
        "group": group.id().0,
        "generation": group.generation(),
        "members": group.members().iter().map(|node| node.0).collect::<Vec<_>>(),
    });
    match std::str::from_utf8(group.argument()) {
        Ok(argument) => told["argument"] = argument.into(),
        Err(_) => {
            let hex: String = group.argument().iter().map(|byte| format!("{byte:02x}")).collect();
            told["argument_hex"] = hex.into();
        }
    }
    told
}
