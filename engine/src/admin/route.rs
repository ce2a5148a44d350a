//! Requests: which path is what, and what of it is refused before any shard is asked.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;

use coracle_base::{GroupId, NodeId};

use super::answer::{Answer, Failed};
use super::names::Listed;
use super::{Shared, metrics, names, operate};

/// A request's body.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Groups in one answer.
pub(super) const PAGE_MAX: usize = 256;
/// And if nothing is said.
const PAGE: usize = 100;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const HELP: &str = "\
Coracle's admin listener. There is no authentication: keep it where only operators reach it.

GET  /metrics, /health/live, /health/ready
GET  /api/overview?after=UID&limit=N
GET  /api/groups/UID
POST /api/groups/UID/add       {\"node\": 3, \"as\": \"promotable\"|\"voter\"|\"non_voter\", \"force\": false}
POST /api/groups/UID/remove    {\"node\": 3, \"force\": false}
POST /api/groups/UID/transfer  {\"to\": 3}, or {}
POST /api/groups/UID/elect     {}
POST /api/groups/UID/shrink    {}: by force, when a majority is gone for good and was declared lost
POST /api/drain                {}
POST /api/lost                 {\"nodes\": [2, 3], \"force\": false}: gone for good, though groups have them as members
GET  /api/names?prefix=TEXT&after=NAME&limit=N
POST /api/names/create         {\"name\": \"orders\", \"members\": [1, 2, 3], \"argument\": \"queue\"}
POST /api/names/delete         {\"name\": \"orders\", \"group\": null}: and all that is in it
POST /api/nodes/ID/replace     {\"force\": false}: its directory is gone; an empty one may take its place

Changes need the header `content-type: application/json`. The tool: coracle --node HOST:PORT --help
";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Help,
    Metrics,
    Live,
    Ready,
    Overview { after: GroupId, limit: usize },
    Group(GroupId),
    Add(GroupId),
    Remove(GroupId),
    Transfer(GroupId),
    Elect(GroupId),
    Shrink(GroupId),
    Drain,
    Lost,
    Replace(NodeId),
    Names(Listed),
    Create,
    Delete,
}

/// Answers one request, whatever it is.
pub(super) async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answer = match accept(request).await {
        Ok((call, body)) => run(shared, call, &body).await,
        Err(failed) => Answer::Failed(failed),
    };
    answer.into_response()
}

async fn run(shared: &Shared, call: Call, body: &Value) -> Answer {
    match call {
        Call::Help => Answer::Text(TEXT, HELP.to_owned()),
        Call::Metrics => match operate::shards(shared).await {
            Ok(shards) => Answer::Text(METRICS, metrics::text(shared, &shards)),
            Err(failed) => Answer::Failed(failed),
        },
        Call::Live => operate::live(shared).into(),
        Call::Ready => operate::ready(shared).await.into(),
        Call::Overview { after, limit } => operate::overview(shared, after, limit).await.into(),
        Call::Group(group) => operate::group(shared, group).await.into(),
        Call::Add(group) => operate::add(shared, group, body).await.into(),
        Call::Remove(group) => operate::remove(shared, group, body).await.into(),
        Call::Transfer(group) => operate::transfer(shared, group, body).await.into(),
        Call::Elect(group) => operate::elect(shared, group).await.into(),
        Call::Shrink(group) => operate::shrink(shared, group).await.into(),
        Call::Lost => operate::lost(shared, body).await.into(),
        Call::Drain => operate::drain(shared).await.into(),
        Call::Replace(node) => operate::replace(shared, node, body).await.into(),
        Call::Names(listed) => names::list(shared, &listed).await.into(),
        Call::Create => names::create(shared, body).await.into(),
        Call::Delete => names::delete(shared, body).await.into(),
    }
}

/// Takes a request apart; the body is null if there is none.
async fn accept(request: Request<Incoming>) -> Result<(Call, Value), Failed> {
    let (head, body) = request.into_parts();
    let (call, method) = call(head.uri.path(), head.uri.query().unwrap_or_default())?;
    if head.method != method {
        let message = format!("{} wants {method}, not {}", head.uri.path(), head.method);
        return Err(Failed::not_done(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
    }
    if method == Method::GET {
        return Ok((call, Value::Null));
    }
    if head.headers.contains_key(ORIGIN) {
        let message = "the request comes from a web page; use the coracle tool";
        return Err(Failed::not_done(StatusCode::FORBIDDEN, "from_a_page", message));
    }
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        let message = "a change needs the header `content-type: application/json`";
        return Err(Failed::not_done(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
    }
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| {
        match error.downcast_ref::<http_body_util::LengthLimitError>() {
            Some(_) => Failed::not_done(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("a body has at most {BODY_BYTES_MAX} bytes"),
            ),
            None => Failed::bad_request(format!("the body did not come whole: {error}")),
        }
    })?;
    let body: Value = serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Failed::bad_request(format!("the body is not JSON: {error}")))?;
    match body.is_object() {
        true => Ok((call, body)),
        false => Err(Failed::bad_request("the body is not a JSON object")),
    }
}

/// What a path asks for, and how it wants to be asked.
pub(super) fn call(path: &str, query: &str) -> Result<(Call, Method), Failed> {
    let unknown = || {
        let message = format!("there is nothing at {path}; GET / says what there is");
        Failed::not_done(StatusCode::NOT_FOUND, "no_such_path", message)
    };
    let parts: Vec<&str> = path.strip_prefix('/').ok_or_else(unknown)?.split('/').collect();
    let of_group = |text: &str| {
        let uid = text.parse().map_err(|_| Failed::bad_request(format!("{text:?} is no group's uid")))?;
        Ok::<_, Failed>(GroupId(uid))
    };
    let of_node = |text: &str| match text.parse() {
        Ok(id) if id > 0 => Ok(NodeId(id)),
        _ => Err(Failed::bad_request(format!("{text:?} is no node's id"))),
    };
    Ok(match parts[..] {
        [""] => (Call::Help, Method::GET),
        ["metrics"] => (Call::Metrics, Method::GET),
        ["health", "live"] => (Call::Live, Method::GET),
        ["health", "ready"] => (Call::Ready, Method::GET),
        ["api", "overview"] => {
            let (after, limit) = page(query)?;
            (Call::Overview { after, limit }, Method::GET)
        }
        ["api", "drain"] => (Call::Drain, Method::POST),
        ["api", "lost"] => (Call::Lost, Method::POST),
        ["api", "names"] => (Call::Names(listed(query)?), Method::GET),
        ["api", "names", "create"] => (Call::Create, Method::POST),
        ["api", "names", "delete"] => (Call::Delete, Method::POST),
        ["api", "nodes", id, "replace"] => (Call::Replace(of_node(id)?), Method::POST),
        ["api", "groups", uid] => (Call::Group(of_group(uid)?), Method::GET),
        ["api", "groups", uid, "add"] => (Call::Add(of_group(uid)?), Method::POST),
        ["api", "groups", uid, "remove"] => (Call::Remove(of_group(uid)?), Method::POST),
        ["api", "groups", uid, "transfer"] => (Call::Transfer(of_group(uid)?), Method::POST),
        ["api", "groups", uid, "elect"] => (Call::Elect(of_group(uid)?), Method::POST),
        ["api", "groups", uid, "shrink"] => (Call::Shrink(of_group(uid)?), Method::POST),
        _ => return Err(unknown()),
    })
}

/// Which groups an overview is to show.
fn page(query: &str) -> Result<(GroupId, usize), Failed> {
    let (mut after, mut limit) = (GroupId(0), PAGE);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
        let number: u64 =
            text.parse().map_err(|_| Failed::bad_request(format!("{key}={text}: not a number")))?;
        match key {
            "after" => after = GroupId(number),
            "limit" if (1..=PAGE_MAX as u64).contains(&number) => limit = number as usize,
            "limit" => return Err(Failed::bad_request(format!("limit={number}: 1 to {PAGE_MAX}"))),
            _ => return Err(Failed::bad_request(format!("{key:?}: there are after and limit"))),
        }
    }
    Ok((after, limit))
}

/// Which names a list is to show.
fn listed(query: &str) -> Result<Listed, Failed> {
    let mut listed = Listed { prefix: String::new(), after: String::new(), limit: PAGE };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let text = unescaped(value)
            .ok_or_else(|| Failed::bad_request(format!("{key}={value}: not an escaped UTF-8 text")))?;
        match (key, text.parse()) {
            ("prefix", _) => listed.prefix = text,
            ("after", _) => listed.after = text,
            ("limit", Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => listed.limit = limit,
            ("limit", _) => return Err(Failed::bad_request(format!("limit={text}: 1 to {PAGE_MAX}"))),
            _ => return Err(Failed::bad_request(format!("{key:?}: there are prefix, after and limit"))),
        }
    }
    Ok(listed)
}

/// A part of a query as it was meant: `%` and two hexadecimal digits are a byte.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}
