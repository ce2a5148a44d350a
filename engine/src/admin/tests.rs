//! The listener against shards that are the test, over real connections: what is refused, bounded and unknown.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_base::{GroupId, NodeId};
use hyper::Method;
use serde_json::Value;

use super::route::{Call, call};
use super::{Admin, CONNECTIONS_MAX, Shared};
use crate::Peer;
use crate::api::Handles;
use crate::node::Socket;
use crate::shard::inbox::{Command, Inbox};
use crate::shard::status::ShardStatus;

/// A listener of node 1 of three, with one shard that the test is.
fn listener() -> (Admin, Arc<Inbox<Socket>>) {
    let inbox = Arc::new(Inbox::new(Box::new(|| {})));
    let peer = |id| Peer { id: NodeId(id), address: ([127, 0, 0, 1], 7100 + id as u16).into() };
    let shared = Shared {
        handles: Handles::new(NodeId(1), vec![inbox.clone()]),
        peers: (1..=3).map(peer).collect(),
        metrics_key: "a \"key\"".to_owned(),
    };
    (Admin::start_for(shared, ([127, 0, 0, 1], 0).into()).unwrap(), inbox)
}

/// Sends bytes as they are; everything that comes back.
fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // It may be closed on us before it has read all.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn post(address: SocketAddr, path: &str, body: &str) -> (u16, Value) {
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    parts(&send(address, format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()))
}

fn get(address: SocketAddr, path: &str) -> String {
    send(address, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
}

/// Status and body.
fn parts(answer: &str) -> (u16, Value) {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.unwrap_or_else(|| panic!("{answer:?}")), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn paths_are_what_they_say() {
    let group = GroupId(7);
    assert_eq!(call("/", ""), Ok((Call::Help, Method::GET)));
    assert_eq!(call("/api/groups/7", ""), Ok((Call::Group(group), Method::GET)));
    assert_eq!(call("/api/groups/7/add", ""), Ok((Call::Add(group), Method::POST)));
    let overview = |query| call("/api/overview", query).ok();
    let page = |after, limit| Some((Call::Overview { after: GroupId(after), limit }, Method::GET));
    assert_eq!(overview(""), page(0, 100));
    assert_eq!(overview("limit=256&after=9"), page(9, 256));
    for bad in ["limit=0", "limit=257", "limit", "after=x", "before=1"] {
        assert_eq!(overview(bad), None, "{bad}");
    }
    let names = |query| match call("/api/names", query) {
        Ok((Call::Names(listed), Method::GET)) => Some((listed.prefix, listed.after, listed.limit)),
        _ => None,
    };
    assert_eq!(names(""), Some((String::new(), String::new(), 100)));
    assert_eq!(names("after=%C3%A4%20b&limit=2&prefix=a/"), Some(("a/".into(), "ä b".into(), 2)));
    for bad in ["prefix=%", "prefix=%4", "prefix=%zz", "prefix=%ff", "limit=257", "limit=x", "name=a"] {
        assert_eq!(names(bad), None, "{bad}");
    }
    for bad in ["", "*", "/api", "/api/groups/", "/api/groups/-1", "/api/groups/7/", "/api/groups/7/add/9"] {
        assert!(call(bad, "").is_err(), "{bad}");
    }
}

#[test]
fn what_is_no_fitting_request_is_refused_and_reaches_no_shard() {
    let (admin, inbox) = listener();
    let at = admin.address();
    let add = "/api/groups/1/add";
    for (path, body, status, reason) in [
        ("/nothing", "{}", 404, "no_such_path"),
        ("/metrics", "{}", 405, "method_not_allowed"),
        (add, "", 400, "bad_request"),
        (add, "[3]", 400, "bad_request"),
        (add, "{}", 400, "bad_request"),
        (add, r#"{"node": -3}"#, 400, "bad_request"),
        (add, r#"{"node": 3, "as": "king"}"#, 400, "bad_request"),
        (add, r#"{"node": 3, "force": "yes"}"#, 400, "bad_request"),
        (add, r#"{"node": 3, "forse": true}"#, 400, "bad_request"),
        (add, r#"{"node": 9, "address": "127.0.0.1:7109"}"#, 422, "unknown_node"),
        (add, r#"{"node": 3, "address": "127.0.0.1:9999"}"#, 409, "other_address"),
        ("/api/groups/1/transfer", r#"{"to": 0}"#, 400, "bad_request"),
        (add, &format!("{{\"node\": 3, \"x\": \"{}\"}}", "x".repeat(17_000)), 413, "too_large"),
        (add, &"[".repeat(10_000), 400, "bad_request"),
    ] {
        let (got, answer) = post(at, path, body);
        assert_eq!((got, &answer["reason"]), (status, &reason.into()), "{path} {body:.40}: {answer}");
        assert_eq!(answer["outcome"], "not_done");
    }
    let page = "POST /api/drain HTTP/1.1\r\nhost: x\r\n";
    let json = "content-type: application/json\r\n";
    for (more, status) in [("origin: http://evil\r\n", 403), ("content-type: text/plain\r\n", 415), ("", 415)]
    {
        let json = if status == 403 { json } else { "" };
        let request = format!("{page}{json}{more}content-length: 2\r\n\r\n{{}}");
        assert_eq!(parts(&send(at, request.as_bytes())).0, status, "{more}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(40_000));
    for bytes in [&b"\0\xff garbage\r\n\r\n"[..], b"GET / HTTP/1.1\r\nbad header\r\n\r\n", long.as_bytes()] {
        assert!(send(at, bytes).starts_with("HTTP/1.1 4"), "{bytes:?}");
    }
    assert!(inbox.is_empty(), "a shard was asked");
    assert!(get(at, "/").contains("no authentication"));
}

#[test]
fn a_shard_that_does_not_answer_is_unknown_and_one_that_stopped_says_so() {
    let (admin, inbox) = listener();
    let at = admin.address();
    assert_eq!(parts(&get(at, "/health/live")).0, 200);
    let (status, answer) = parts(&get(at, "/health/ready"));
    assert_eq!((status, &answer["outcome"]), (504, &"unknown".into()), "{answer}");
    inbox.close();
    for path in ["/health/live", "/health/ready", "/metrics", "/api/overview", "/api/groups/1"] {
        let (status, answer) = parts(&get(at, path));
        assert_eq!((status, &answer["reason"]), (503, &"stopping".into()), "{path}: {answer}");
    }
    let (status, answer) = post(at, "/api/groups/1/remove", r#"{"node": 3}"#);
    assert_eq!((status, &answer["outcome"]), (503, &"not_done".into()), "{answer}");
}

#[test]
fn a_node_that_waits_for_its_cluster_is_live_and_not_ready() {
    let (admin, inbox) = listener();
    let at = admin.address();
    for (forming, expected) in [(true, 503), (false, 200)] {
        let inbox = inbox.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let shard = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(Command::Status { reply }) = inbox.pop() {
                        reply.answer(Ok(ShardStatus { forming, ..Default::default() }));
                    }
                    std::thread::yield_now();
                }
            }
        });
        let (status, answer) = parts(&get(at, "/health/ready"));
        assert_eq!(status, expected, "{answer}");
        if forming {
            assert_eq!(answer["reason"], "forming");
        }
        assert_eq!(parts(&get(at, "/health/live")).0, 200);
        stop.store(true, Ordering::Relaxed);
        shard.join().unwrap();
    }
}

#[test]
fn metrics_have_every_shard_and_their_label_is_quoted() {
    let (admin, inbox) = listener();
    let shard = std::thread::spawn(move || {
        loop {
            match inbox.pop() {
                Some(Command::Status { reply }) => {
                    return reply.answer(Ok(ShardStatus { turns: 5, disk_full: true, ..Default::default() }));
                }
                _ => std::thread::yield_now(),
            }
        }
    });
    let answer = get(admin.address(), "/metrics");
    shard.join().unwrap();
    let label = r#"{node="1",shard="0",metrics_key="a \"key\""}"#;
    for line in [format!("coracle_turns_total{label} 5\n"), format!("coracle_disk_full{label} 1\n")] {
        assert!(answer.contains(&line), "{line} is not in {answer}");
    }
    assert!(answer.contains("# TYPE coracle_turns_total counter\n"), "{answer}");
}

#[test]
fn connections_are_bounded_and_the_listener_ends_with_them_open() {
    let (admin, _inbox) = listener();
    let silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| TcpStream::connect(admin.address()).unwrap()).collect();
    assert!(get(admin.address(), "/").starts_with("HTTP/1.1 503"));
    drop(silent);
    // Those that are gone make room.
    while !get(admin.address(), "/").starts_with("HTTP/1.1 200") {
        std::thread::yield_now();
    }
    let _open = TcpStream::connect(admin.address()).unwrap();
    drop(admin);
}
