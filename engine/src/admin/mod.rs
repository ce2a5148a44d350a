//! The admin listener: what an operator asks of a running node, as JSON over HTTP/1.1, and its counters for Prometheus.
//!
//! It runs on a thread of its own with a current-thread tokio, and asks the shards through their inboxes as every other
//! handle does. **There is no authentication**: whoever reaches the address may change members and hand leadership
//! over. Keep it on loopback, or on a network that only operators reach.
//!
//! ```text
//!   GET  /                            what can be asked, as text
//!   GET  /metrics                     counters, in Prometheus' text format
//!   GET  /health/live                 200 while all shards run
//!   GET  /health/ready                200 while all shards answer
//!   GET  /api/overview                node, shards, groups by uid; ?after=UID&limit=N for the next page
//!   GET  /api/groups/UID              one group: leader, term, log, members
//!   POST /api/groups/UID/add          {"node": 3, "as": "promotable", "address": "HOST:PORT", "force": false}
//!   POST /api/groups/UID/remove       {"node": 3, "force": false}
//!   POST /api/groups/UID/transfer     {"to": 3}, or {}: to the voter that holds most of the log
//!   POST /api/groups/UID/elect        {}: this node's member campaigns
//!   POST /api/groups/UID/shrink       {}: this node is its only member from now on, when a majority is lost
//!   POST /api/drain                   {}: every group that is led here is handed over; `kept`: those that cannot be
//!   POST /api/lost                    {"nodes": [2, 3], "force": false}: gone for good, though groups have them as members
//!   GET  /api/names                   named groups; ?prefix=TEXT&after=NAME&limit=N
//!   POST /api/names/create            {"name": "orders", "members": [1, 2, 3], "argument": "queue"}
//!   POST /api/names/delete            {"name": "orders", "group": null or its uid}: and all that is in it
//!   POST /api/nodes/ID/replace        {"force": false}: that node's directory is gone, and an empty one may take its place
//! ```
//!
//! Every answer but metrics and text is one JSON object with `outcome`: `done`, `not_done` (certainly did not happen:
//! `reason`, `message`, `retry_after_ms` if trying again may help, `leader` if it is known) or `unknown`.
//!
//! Invariants: (1) connections, heads, bodies, answers and waiting are bounded; (2) no request ends the listener, and
//! the listener's end ends nothing else; (3) what a shard did not answer in time is said to be unknown; (4) a web page
//! cannot use a browser to change anything: changes need `content-type: application/json` and no `origin`.

mod answer;
mod metrics;
mod names;
mod operate;
mod route;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::Handles;
use crate::config::Peer;
use crate::node::Node;

/// Connections at once; further ones are told so and closed.
const CONNECTIONS_MAX: usize = 64;
/// A request's head: line and headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a request's head may take to come.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may take in all: one request and its answer.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);

/// A running admin listener. It stops when it is dropped; the node goes on.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the listener knows of its node. It does not keep the node running.
struct Shared {
    handles: Handles,
    peers: Vec<Peer>,
    metrics_key: String,
}

impl Admin {
    /// Listens on `address` (port 0: any that is free) and answers for `node`, from now on: also while the node waits for
    /// its cluster to form. There is no authentication, so keep it on loopback unless the network is trusted.
    ///
    /// # Errors
    /// The address cannot be listened on, or there is no thread for it. Nothing was started.
    pub fn start(node: &Node, address: SocketAddr) -> io::Result<Self> {
        let shared = Shared {
            handles: node.handles().clone(),
            peers: node.peers().to_vec(),
            metrics_key: node.metrics_key().to_owned(),
        };
        Self::start_for(shared, address)
    }

    fn start_for(shared: Shared, address: SocketAddr) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "other machines may reach the admin listener, which has no authentication");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || runtime.block_on(serve(listener, Arc::new(shared), stopped));
        let thread = thread::Builder::new().name("coracle-admin".into()).spawn(serve)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // Dropping the sender is the word; requests under way are cut off.
        drop(self.stop.take());
        if let Some(Err(_panic)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the admin listener had panicked");
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(timeout(CONNECTION_WITHIN, connection(socket, shared.clone())));
                }
                Ok((socket, _)) => drop(socket.try_write(answer::TOO_MANY)),
                // Out of descriptors, or gone again: others may do better.
                Err(error) => {
                    tracing::warn!(%error, "the admin listener could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            // A panic ends its connection alone.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One request and its answer.
async fn connection(socket: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, std::convert::Infallible>(route::answer(&shared, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended");
    }
}
