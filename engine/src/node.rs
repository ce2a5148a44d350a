//! A running node: one thread a shard, each with its own ring for disk and sockets, and the handles into them.
//!
//! Who may block on what: a shard's thread sleeps only in [`Park::park`], and otherwise only while it opens or recovers
//! its files. Nothing is shared between threads but inboxes and completion queues.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use coracle_base::ShardId;
use coracle_io::ring::{self, DiskOptions, RealClock, Ring, RingDisk, RingNet, RingOptions, RingPark};
use coracle_io::{Clock, Net, Park, Waker};

use crate::Error;
use crate::api::Handles;
use crate::boot::{Parts, Server};
use crate::config::{Config, Peer};
use crate::identity::Identity;
use crate::machine::Machine;
use crate::panics::caught;
use crate::shard::inbox::{Command, Inbox};
use crate::shard::names::Machines;
use crate::transport::hello::PROTOCOL;

/// The network driver's socket.
pub(crate) type Socket = <RingNet as Net>::Socket;

type Inboxes = Vec<Arc<Inbox<Socket>>>;

/// A node of a cluster, running in this process. Clones share it; it stops when [`stop`](Node::stop) is called or the
/// last clone is dropped.
#[derive(Clone)]
pub struct Node {
    running: Arc<Running>,
}

struct Running {
    handles: Handles,
    metrics_key: String,
    peers: Vec<Peer>,
    inboxes: Inboxes,
    threads: Mutex<Vec<JoinHandle<Result<(), Error>>>>,
}

impl Node {
    /// Opens (or makes) the data directory, recovers it and joins the other nodes. Returns when this node's own part is
    /// done; the first start of a cluster then waits, in the background, until every listed node is there.
    ///
    /// # Errors
    /// Whatever is wrong with the configuration, the directory or the address: nothing was started.
    pub fn start(config: Config) -> Result<Self, Error> {
        Self::start_all(config, None)
    }

    /// As [`start`](Self::start), with named groups: this node takes part in the cluster's directory
    /// ([`directory`](Self::directory)), and runs every group by itself of which it is a member by it, with the machine that
    /// `machines` makes from the group's name and argument; a group for which it makes none does not run here. All nodes of a
    /// cluster are started so, or none: the directory needs a majority of them. `machines` is called in the shards' threads.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_groups(
        config: Config,
        machines: impl Fn(&str, &[u8]) -> Option<Box<dyn Machine>> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Self::start_all(config, Some(Arc::new(machines)))
    }

    fn start_all(config: Config, machines: Option<Machines>) -> Result<Self, Error> {
        config.check()?;
        let shards = shards_of(&config)?;
        let config = Config { shards, ..config };
        let wakers: Vec<Arc<OnceLock<Waker>>> = (0..shards).map(|_| Arc::default()).collect();
        let inboxes: Inboxes =
            wakers.iter().cloned().map(|waker| Arc::new(Inbox::new(wake_through(waker)))).collect();
        let mut running = Running {
            handles: Handles::new(config.id, inboxes.clone()),
            metrics_key: config.metrics_key.clone(),
            peers: config.peers.clone(),
            inboxes: inboxes.clone(),
            threads: Mutex::default(),
        };
        let (tell_identity, identities): (Vec<_>, Vec<_>) = (1..shards).map(|_| sync_channel(1)).unzip();
        let mut lives = vec![Life::First { tell_identity }];
        lives.extend(identities.into_iter().map(|identity| Life::Further { identity }));
        let (started, starts) = sync_channel(usize::from(shards));
        for (shard, (life, waker)) in lives.into_iter().zip(wakers).enumerate() {
            let shard = ShardId(shard as u16);
            let (config, inboxes, machines) = (config.clone(), inboxes.clone(), machines.clone());
            let thread = ShardThread { shard, life, waker, config, inboxes, machines };
            let started = started.clone();
            let handle = std::thread::Builder::new()
                .name(format!("coracle-{}-{shard}", thread.config.id))
                .spawn(move || thread.run(&started))
                .map_err(|error| Error::Thread(error.to_string()))?;
            running.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
        drop(started);
        // Further shards of a node without a cluster report only when there is one; the first one's word is enough. If it
        // fails, they end with it and may say so before it has said why.
        let is_word = |start: &Result<(), Error>| !matches!(start, Err(Error::Stopped(None)));
        starts.iter().find(is_word).unwrap_or(Err(Error::Stopped(None)))?;
        Ok(Self { running: Arc::new(running) })
    }

    pub(crate) fn handles(&self) -> &Handles {
        &self.running.handles
    }

    /// The label of its configuration.
    pub fn metrics_key(&self) -> &str {
        &self.running.metrics_key
    }

    /// The nodes of its cluster, this one among them, as its configuration has them.
    pub fn peers(&self) -> &[Peer] {
        &self.running.peers
    }

    /// Stops the node in good order: every command is answered, what is under way becomes durable, files are closed.
    ///
    /// # Errors
    /// Why a shard had stopped before, if one had.
    pub fn stop(&self) -> Result<(), Error> {
        self.running.stop()
    }

    /// Whether all shards still run.
    pub fn is_running(&self) -> bool {
        self.running.inboxes.iter().all(|inbox| !inbox.is_closed())
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("shards", &self.running.inboxes.len()).finish_non_exhaustive()
    }
}

/// As configured; else as the cluster was formed, whatever this machine has become since; else by its cores.
fn shards_of(config: &Config) -> Result<u16, Error> {
    if config.shards > 0 {
        return Ok(config.shards);
    }
    let ring = Ring::new(&RingOptions::default())?;
    let options = DiskOptions { lock: false, strategy: config.wal_write_strategy };
    let mut disk = RingDisk::open(&ring, &config.data_dir, options)?;
    let formed = Identity::look(&mut disk)?.filter(|identity| identity.cluster.is_some());
    Ok(formed.map_or(config.shards_in_force(), |identity| identity.shards))
}

fn wake_through(waker: Arc<OnceLock<Waker>>) -> Box<dyn Fn() + Send + Sync> {
    // Before the thread has a waker it does not sleep.
    Box::new(move || {
        if let Some(waker) = waker.get() {
            waker.wake();
        }
    })
}

impl Running {
    fn stop(&self) -> Result<(), Error> {
        for inbox in &self.inboxes {
            inbox.push_stop();
        }
        let mut result = Ok(());
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            match thread.join() {
                Ok(Ok(()) | Err(Error::Stopped(None))) => {}
                Ok(Err(error)) => result = Err(error),
                Err(_panic) => result = Err(Error::Stopped(Some("a shard's thread panicked".into()))),
            }
        }
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "the node had failed");
        }
    }
}

/// How a shard gets to know who its directory is.
enum Life {
    /// Reads the identity, forms the cluster, and tells the others.
    First { tell_identity: Vec<SyncSender<Identity>> },
    /// Is told.
    Further { identity: Receiver<Identity> },
}

struct ShardThread {
    shard: ShardId,
    life: Life,
    waker: Arc<OnceLock<Waker>>,
    config: Config,
    inboxes: Inboxes,
    machines: Option<Machines>,
}

type RealServer = Server<RingDisk, RingNet, RealClock>;

impl ShardThread {
    fn run(self, started: &SyncSender<Result<(), Error>>) -> Result<(), Error> {
        let (shard, inbox) = (self.shard, self.inboxes[usize::from(self.shard.0)].clone());
        let result =
            caught(|| self.open_and_loop(started)).unwrap_or_else(|panic| Err(panicked(shard, &panic)));
        // Whatever ended it: no command may wait for ever. A panic loses at most the one that it met.
        inbox.close();
        if let Err(error) = &result {
            if !matches!(error, Error::Stopped(None)) {
                tracing::error!(%error, "shard stopped");
            }
            let _ = started.try_send(Err(error.clone()));
        }
        result
    }

    fn open_and_loop(self, started: &SyncSender<Result<(), Error>>) -> Result<(), Error> {
        if self.config.pin_threads {
            let cores = ring::allowed_cores()?;
            if let Some(core) = cores.get(usize::from(self.shard.0) % cores.len().max(1)) {
                ring::pin_to_core(*core)?;
            }
        }
        let ring = Ring::new(&RingOptions::default())?;
        let mut park = RingPark::new(&ring)?;
        let lock = matches!(self.life, Life::First { .. });
        let options = DiskOptions { lock, strategy: self.config.wal_write_strategy };
        let disk = RingDisk::open(&ring, &self.config.data_dir, options)?;
        let inbox = self.inboxes[usize::from(self.shard.0)].clone();
        let parts = Parts {
            disk,
            net: RingNet::new(&ring),
            clock: RealClock,
            inbox: inbox.clone(),
            siblings: self.inboxes,
            seed: rand::random(),
            machines: self.machines,
            protocol: PROTOCOL,
            #[cfg(feature = "breaks")]
            breaks: Default::default(),
        };
        let _ = self.waker.set(park.waker());
        let (server, mut tell) = match self.life {
            Life::First { tell_identity } => {
                let listen = self.config.listen().expect("checked: this node is among its peers");
                (Server::open(&self.config, listen, parts)?, tell_identity)
            }
            Life::Further { identity } => {
                let Ok(identity) = identity.recv() else { return Err(Error::Stopped(None)) };
                (Server::open_further(&self.config, &identity, self.shard, parts)?, Vec::new())
            }
        };
        let _ = started.try_send(Ok(()));
        let shard = self.shard;
        let mut server = server;
        caught(|| run_loop(&mut server, &mut park, &inbox, &mut tell)).unwrap_or_else(|panic| {
            let error = panicked(shard, &panic);
            // What the panic left half done may make this one panic, too: then the inbox's end is all that is heard.
            caught(|| server.fail(error.clone())).map_err(|again| panicked(shard, &again))?;
            Err(error)
        })
    }
}

/// A bug of ours, or of a client's waker.
fn panicked(shard: ShardId, text: &str) -> Error {
    Error::Stopped(Some(format!("shard {shard} panicked: {text}")))
}

/// Turn after turn; sleeps when there is nothing to do.
fn run_loop(
    server: &mut RealServer,
    park: &mut RingPark,
    inbox: &Inbox<Socket>,
    tell: &mut Vec<SyncSender<Identity>>,
) -> Result<(), Error> {
    let clock = RealClock;
    loop {
        let turn = server.turn()?;
        if let Some(identity) = server.identity() {
            for further in tell.drain(..) {
                let _ = further.try_send(identity.clone());
            }
        }
        if !turn.busy {
            let timeout_us =
                (turn.deadline_us != u64::MAX).then(|| turn.deadline_us.saturating_sub(clock.now_us()));
            park.park(timeout_us, &|| inbox.is_empty())?;
        }
    }
}

impl<S> Inbox<S> {
    /// Asks the shard to stop, also when the inbox is full: then as soon as there is room.
    fn push_stop(&self) {
        let mut command = Command::Stop;
        while let Err(back) = self.push(command) {
            if self.is_closed() {
                return;
            }
            command = back;
            std::thread::yield_now();
        }
    }
}
