//! Answers as HTTP: a status and a body, and how an engine's refusals map to both.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Error;
use crate::outcome::{NotDone, Reason, Unknown};

/// Said to a connection that is one too many, without reading it.
pub(super) const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What goes back.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is so: an object, to which the outcome is added.
    Done(Value),
    /// Plain text, or metrics.
    Text(&'static str, String),
    /// It did not happen, or nobody knows.
    Failed(Failed),
}

/// What did not end well.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    status: StatusCode,
    outcome: &'static str,
    reason: &'static str,
    message: String,
    retry_after_ms: Option<u64>,
    leader: Option<u64>,
}

impl Failed {
    pub(super) fn not_done(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, outcome: "not_done", reason, message, retry_after_ms: None, leader: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::not_done(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// Nobody knows whether it happened.
    pub(super) fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        let status = StatusCode::GATEWAY_TIMEOUT;
        Self { status, outcome: "unknown", reason, message, retry_after_ms: None, leader: None }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    fn body(&self) -> Value {
        let mut body = json!({ "outcome": self.outcome, "reason": self.reason, "message": self.message });
        if let Some(retry_after_ms) = self.retry_after_ms {
            body["retry_after_ms"] = retry_after_ms.into();
        }
        if let Some(leader) = self.leader {
            body["leader"] = leader.into();
        }
        body
    }
}

impl From<NotDone> for Failed {
    fn from(why: NotDone) -> Self {
        let (status, reason, may_retry) = of_reason(why.reason);
        let leader = why.leader.map(|leader| format!("; node {leader} leads the group")).unwrap_or_default();
        let mut failed = Self::not_done(status, reason, format!("{}{leader}", why.reason));
        failed.retry_after_ms = may_retry.then_some(why.retry_after.as_millis() as u64);
        failed.leader = why.leader.map(|leader| leader.0);
        failed
    }
}

/// Status and name of a refusal, and whether the same request may be taken soon.
fn of_reason(reason: Reason) -> (StatusCode, &'static str, bool) {
    const AWAY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match reason {
        Reason::NoLeader => (AWAY, "no_leader", true),
        Reason::Busy => (AWAY, "busy", true),
        Reason::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk_full", false),
        Reason::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", false),
        Reason::NoGroup => (StatusCode::NOT_FOUND, "no_group", false),
        Reason::Stopping => (AWAY, "stopping", false),
        Reason::Overwritten => (AWAY, "overwritten", true),
        Reason::Poisoned => (AWAY, "poisoned", false),
        Reason::ChangeUnderWay => (StatusCode::CONFLICT, "change_under_way", true),
        Reason::NothingToChange => (StatusCode::CONFLICT, "nothing_to_change", false),
        Reason::NotAMember => (StatusCode::UNPROCESSABLE_ENTITY, "not_a_member", false),
        Reason::LastVoter => (StatusCode::CONFLICT, "last_voter", false),
        Reason::TooManyMembers => (StatusCode::CONFLICT, "too_many_members", false),
        Reason::NotJoined(_) => (AWAY, "not_joined", true),
        Reason::NeedsUpgrade(_) => (StatusCode::CONFLICT, "needs_upgrade", false),
        Reason::NotApplied => (AWAY, "not_applied", true),
        Reason::Released => (StatusCode::GONE, "released", false),
        Reason::Deleted => (StatusCode::GONE, "deleted", false),
        Reason::DataLoss => (AWAY, "data_loss", false),
        Reason::BadName => (StatusCode::BAD_REQUEST, "bad_name", false),
        Reason::NoLiveQuorum => (AWAY, "no_live_quorum", false),
        Reason::NotHandedOver => (AWAY, "not_handed_over", false),
    }
}

impl From<Unknown> for Failed {
    fn from(why: Unknown) -> Self {
        let reason = match why {
            Unknown::TimedOut => "timed_out",
            Unknown::LinkBroke => "link_broke",
            Unknown::Stopped => "stopped",
            Unknown::ReplyTooLarge => "reply_too_large",
            Unknown::Skipped => "skipped",
            Unknown::Deleted => "deleted",
            Unknown::Unreadable => "unreadable",
        };
        Self::unknown(reason, format!("{why}; look at the members before you try again"))
    }
}

/// A shard that could not be asked, or did not want to tell.
impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let (status, reason) = match &error {
            Error::NoGroup(_) => (StatusCode::NOT_FOUND, "no_group"),
            Error::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Error::Place { .. } => (StatusCode::CONFLICT, "place"),
            Error::Shrink { .. } => (StatusCode::CONFLICT, "shrink"),
            Error::Stopped(_) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        let mut failed = Self::not_done(status, reason, error.to_string());
        failed.retry_after_ms = matches!(error, Error::Busy).then_some(10);
        failed
    }
}

impl Answer {
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let json = "application/json";
        let (status, kind, body) = match self {
            Self::Done(mut value) => {
                value["outcome"] = "done".into();
                (StatusCode::OK, json, value.to_string())
            }
            Self::Text(kind, text) => (StatusCode::OK, kind, text),
            Self::Failed(failed) => (failed.status, json, failed.body().to_string()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl From<Result<Value, Failed>> for Answer {
    fn from(result: Result<Value, Failed>) -> Self {
        result.map_or_else(Self::Failed, Self::Done)
    }
}
