//! RESP2 connections: requests in, replies out in order, pipelined and bounded.
//!
//! Invariants: (1) replies leave in the order of their requests; (2) a connection has at most [`PIPELINE_MAX`] requests
//! without a reply, [`OUTPUT_BYTES_MAX`] and one reply of unsent output, and one request of input: beyond it nothing is
//! read from it, so a client that floods or does not read holds up nobody but itself; (3) a read is asked for only when
//! the connection's earlier changes are answered, and the other way round, so a connection sees what it wrote.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_local};

use crate::resp;
use crate::service::{Reply, Service};
use crate::store::{Change, NOT_AN_INTEGER};

/// Connections at once; further ones are told so and closed.
const CONNECTIONS_MAX: usize = 10_000;
/// Requests of one connection without a reply.
const PIPELINE_MAX: usize = 1024;
/// Unsent output of one connection before nothing more is read from it.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// One read from a socket.
const READ_BYTES: usize = 64 * 1024;
/// How long connections may take to get their last replies when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What INFO and the connections share.
pub(crate) struct Server {
    pub(crate) service: Service,
    /// What INFO says about this node.
    pub(crate) info: String,
    pub(crate) connections: Cell<usize>,
}

/// Serves clients until `stop`; then every connection gets the replies to what it has sent, and is closed.
pub(crate) async fn serve(listener: TcpListener, server: Rc<Server>, stop: impl Future<Output = ()>) {
    let engine = [
        spawn_local({
            let server = server.clone();
            async move { server.service.dispatch().await }
        }),
        spawn_local({
            let server = server.clone();
            async move { server.service.complete().await }
        }),
    ];
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if connections.len() < CONNECTIONS_MAX => {
                    let connection = Connection::new(socket, server.clone());
                    connections.spawn_local(connection.run(stopped.clone()));
                }
                Ok((socket, _)) => drop(socket.try_write(b"-ERR max number of clients reached\r\n")),
                // Out of descriptors, or gone again: others may do better.
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
        server.connections.set(connections.len());
    }
    drop(listener);
    let _ = stopping.send(true);
    let _ =
        tokio::time::timeout(STOP_WITHIN, async { while connections.join_next().await.is_some() {} }).await;
    engine.iter().for_each(|task| task.abort());
}

/// What a request does, as far as order goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Change,
}

enum Answer {
    Ready(Vec<u8>),
    Waiting(Reply),
}

struct Connection {
    socket: TcpStream,
    server: Rc<Server>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Answers in the order of their requests.
    pending: VecDeque<Answer>,
    /// What the pending requests are.
    kind: Kind,
    /// Nothing more is read: the client has finished, sent something that is not RESP2, or the server stops.
    finished: bool,
    /// `input` begins with a whole request whose turn has not come.
    held: bool,
}

impl Connection {
    fn new(socket: TcpStream, server: Rc<Server>) -> Self {
        Self {
            socket,
            server,
            input: Vec::new(),
            output: Vec::new(),
            pending: VecDeque::new(),
            kind: Kind::Read,
            finished: false,
            held: false,
        }
    }

    async fn run(mut self, mut stopping: watch::Receiver<bool>) -> io::Result<()> {
        self.socket.set_nodelay(true)?;
        loop {
            self.take_requests();
            self.take_answers();
            if self.finished && self.pending.is_empty() && self.output.is_empty() {
                return Ok(());
            }
            let readable = (!self.finished && !self.held && self.has_room()).then_some(Interest::READABLE);
            let writable = (!self.output.is_empty()).then_some(Interest::WRITABLE);
            let interest = readable.into_iter().chain(writable).reduce(Interest::add);
            let answers = !self.pending.is_empty() && self.output.len() < OUTPUT_BYTES_MAX;
            tokio::select! {
                ready = self.socket.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    let ready = ready?;
                    if writable.is_some() && ready.is_writable() {
                        self.write()?;
                    }
                    if readable.is_some() && ready.is_readable() {
                        self.read()?;
                    }
                }
                reply = first(&mut self.pending), if answers => self.output.extend_from_slice(&reply),
                _ = stopping.changed(), if !self.finished => self.finished = true,
            }
        }
    }

    fn has_room(&self) -> bool {
        self.pending.len() < PIPELINE_MAX
            && self.output.len() < OUTPUT_BYTES_MAX
            && self.input.len() < resp::REQUEST_BYTES_MAX
    }

    fn read(&mut self) -> io::Result<()> {
        self.input.reserve(READ_BYTES);
        match self.socket.try_read_buf(&mut self.input) {
            Ok(bytes) => self.finished |= bytes == 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        match self.socket.try_write(&self.output) {
            Ok(bytes) => drop(self.output.drain(..bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Asks for everything that has wholly arrived and whose turn it is.
    fn take_requests(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        self.held = false;
        while !self.held && self.pending.len() < PIPELINE_MAX && self.output.len() < OUTPUT_BYTES_MAX {
            match resp::parse(rest) {
                Ok(None) => break,
                Ok(Some((args, bytes))) => {
                    self.held = !self.ask(&args);
                    rest = &rest[if self.held { 0 } else { bytes }..];
                }
                Err(error) => {
                    self.pending.push_back(Answer::Ready(error_reply(&format!("ERR {error}"))));
                    self.finished = true;
                    rest = &[];
                    break;
                }
            }
        }
        let taken = input.len() - rest.len();
        self.input = input;
        self.input.drain(..taken);
    }

    /// Begins one request; `false` if it has to wait for the ones before it.
    fn ask(&mut self, args: &[&[u8]]) -> bool {
        let Some((name, args)) = args.split_first() else { return true };
        let request = request(name, args);
        let kind = match &request {
            Request::Get(_) => Kind::Read,
            Request::Change(_) => Kind::Change,
            Request::Info | Request::Answered(_) => self.kind,
        };
        if kind != self.kind && !self.pending.is_empty() {
            return false;
        }
        self.kind = kind;
        self.pending.push_back(match request {
            Request::Get(key) => Answer::Waiting(self.server.service.get(key)),
            Request::Change(change) => Answer::Waiting(self.server.service.change(change)),
            Request::Info => Answer::Ready(self.info()),
            Request::Answered(reply) => Answer::Ready(reply),
        });
        true
    }

    fn info(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let text = format!("{}connected_clients:{}\r\n", self.server.info, self.server.connections.get());
        resp::bulk(&mut out, Some(text.as_bytes()));
        out
    }

    /// Moves the answers that are there to the output.
    fn take_answers(&mut self) {
        while self.output.len() < OUTPUT_BYTES_MAX {
            match self.pending.front_mut() {
                None => return,
                Some(Answer::Ready(reply)) => self.output.append(reply),
                Some(Answer::Waiting(reply)) => match reply.try_recv() {
                    Ok(reply) => self.output.extend_from_slice(&reply),
                    Err(TryRecvError::Empty) => return,
                    Err(TryRecvError::Closed) => self.output.append(&mut stopped_reply()),
                },
            }
            self.pending.pop_front();
        }
    }
}

/// The first pending answer, when it is there. Never returns if nothing is pending.
async fn first(pending: &mut VecDeque<Answer>) -> Vec<u8> {
    let reply = match pending.front_mut() {
        None => std::future::pending().await,
        Some(Answer::Ready(reply)) => std::mem::take(reply),
        Some(Answer::Waiting(reply)) => reply.await.unwrap_or_else(|_| stopped_reply()),
    };
    pending.pop_front();
    reply
}

/// What a client asks for.
enum Request<'a> {
    Get(&'a [u8]),
    Change(Change<'a>),
    Info,
    /// Needs no engine: the reply.
    Answered(Vec<u8>),
}

fn request<'a>(name: &[u8], args: &[&'a [u8]]) -> Request<'a> {
    match (name.to_ascii_uppercase().as_slice(), args) {
        (b"GET", &[key]) => Request::Get(key),
        (b"SET", &[key, value]) => Request::Change(Change::Set { key, value }),
        (b"SETNX", &[key, value]) => Request::Change(Change::SetNx { key, value }),
        (b"DEL", &[key]) => Request::Change(Change::Del { key }),
        (b"INCR", &[key]) => Request::Change(Change::IncrBy { key, by: 1 }),
        (b"INCRBY", &[key, by]) => match resp::integer(by) {
            Some(by) => Request::Change(Change::IncrBy { key, by }),
            None => Request::Answered(error_reply(NOT_AN_INTEGER)),
        },
        (b"CAS", &[key, old, new]) => Request::Change(Change::Cas { key, old, new }),
        (b"PING", []) => Request::Answered(b"+PONG\r\n".to_vec()),
        (b"PING", &[text]) => {
            let mut out = Vec::new();
            resp::bulk(&mut out, Some(text));
            Request::Answered(out)
        }
        (b"INFO", _) => Request::Info,
        (b"SET", &[_, _, _, ..]) => Request::Answered(error_reply("ERR syntax error")),
        (b"GET" | b"SET" | b"SETNX" | b"DEL" | b"INCR" | b"INCRBY" | b"CAS" | b"PING", _) => {
            let name = name.to_ascii_lowercase();
            let text = format!("ERR wrong number of arguments for '{}' command", name.escape_ascii());
            Request::Answered(error_reply(&text))
        }
        _ => {
            let name = name[..name.len().min(64)].escape_ascii();
            Request::Answered(error_reply(&format!("ERR unknown command '{name}'")))
        }
    }
}

fn error_reply(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    resp::error(&mut out, text);
    out
}

fn stopped_reply() -> Vec<u8> {
    error_reply("UNKNOWN the server stopped before the answer came")
}
