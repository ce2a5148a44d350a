//! The [`Net`] driver on tokio-uring. Completion-shaped like the others: what is started becomes a task of its own
//! inside the runtime, which runs only while the driver submits or parks, and leaves an event behind.
//!
//! tokio-uring 0.5 hands operations to its ring only when its thread parks, and loses what a dropped read has read. So
//! (1) each operation's future runs to its end, nothing is raced against it; closing shuts the socket down, which ends
//! them; (2) a submit waits for a no-op, for the runtime parks then; (3) its ring must not defer task work, or it hangs.
//! It also frees the buffers of operations that are in flight when its runtime is dropped, although the kernel may still
//! write to them: (4) dropping the driver ends all operations first and waits for them.
//!
//! The disk's ring is another one. Its registered eventfd wakes the runtime, and parking fetches what it announces.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

use crate::net::RECEIVE_BYTES_MIN;
use crate::ring::{SharedRing, duplicate, listener, socket_error, watch};
use crate::{ConnId, DiskError, Net, NetError, NetEvent, Park, Waker};

/// Entries of the runtime's ring; more than one turn starts, usually.
const RING_ENTRIES: u32 = 256;

/// A listener that cannot accept (out of descriptors, say) tries again after so long.
const REST: Duration = Duration::from_millis(100);

/// How long a dropped driver waits for the kernel. Operations on a socket that was shut down end at once.
const DRAIN: Duration = Duration::from_secs(10);

struct Connection {
    stream: TcpStream,
    sending: Cell<bool>,
    receiving: Cell<bool>,
    /// It has ended for its user; whatever its operations bring is dropped.
    ended: Cell<bool>,
}

impl Connection {
    fn new(stream: TcpStream) -> Rc<Self> {
        // Small messages leave at once. Only a socket that is gone refuses, which the next operation reports.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let (sending, receiving, ended) = Default::default();
        Rc::new(Self { stream, sending, receiving, ended })
    }

    fn end(&self) {
        self.ended.set(true);
        if (self.sending.get() || self.receiving.get())
            && let Err(error) = self.stream.shutdown(Shutdown::Both)
        {
            // Then it was not connected any more, and nothing can be in flight for long.
            tracing::debug!(%error, "cannot shut a socket down");
        }
    }
}

/// What waits to become a task.
enum Op {
    Accept { listener: TcpListener },
    Connect { conn: ConnId, address: SocketAddr },
    Send { conn: ConnId, connection: Rc<Connection>, buf: Vec<u8> },
    Receive { conn: ConnId, connection: Rc<Connection>, buf: Vec<u8> },
}

/// What the driver and its tasks share.
#[derive(Default)]
struct Shared {
    connections: RefCell<BTreeMap<ConnId, Rc<Connection>>>,
    /// Being made, and not closed meanwhile.
    connecting: RefCell<BTreeSet<ConnId>>,
    events: RefCell<Vec<NetEvent>>,
    next_conn: Cell<u64>,
    /// Tasks whose operation has memory that the kernel may write to.
    running: Cell<usize>,
    /// The driver is being dropped.
    ending: Cell<bool>,
    /// Something happened: an event, or the end of a task.
    happened: Notify,
}

impl Shared {
    fn name(&self) -> ConnId {
        self.next_conn.set(self.next_conn.get() + 1);
        ConnId(self.next_conn.get())
    }

    fn emit(&self, event: NetEvent) {
        self.events.borrow_mut().push(event);
        self.happened.notify_one();
    }

    fn add(&self, conn: ConnId, stream: TcpStream) {
        self.connections.borrow_mut().insert(conn, Connection::new(stream));
    }

    fn fail(&self, conn: ConnId, connection: &Connection, error: NetError) {
        self.connections.borrow_mut().remove(&conn);
        connection.end();
        self.emit(NetEvent::Closed { conn, error });
    }

    async fn run(self: Rc<Self>, op: Op) {
        match op {
            Op::Connect { conn, address } => self.connect(conn, address).await,
            Op::Accept { listener } => self.counted(self.accept(listener)).await,
            Op::Send { conn, connection, buf } => self.counted(self.send(conn, &connection, buf)).await,
            Op::Receive { conn, connection, buf } => self.counted(self.receive(conn, &connection, buf)).await,
        }
    }

    async fn counted(&self, work: impl Future<Output = ()>) {
        self.running.set(self.running.get() + 1);
        work.await;
        self.running.set(self.running.get() - 1);
        if self.ending.get() {
            self.happened.notify_one();
        }
    }

    async fn connect(&self, conn: ConnId, address: SocketAddr) {
        let result = TcpStream::connect(address).await;
        if !self.connecting.borrow_mut().remove(&conn) {
            return;
        }
        match result {
            Ok(stream) => {
                self.add(conn, stream);
                self.emit(NetEvent::Connected { conn });
            }
            Err(error) => self.emit(NetEvent::Closed { conn, error: socket_error("connect", &error) }),
        }
    }

    async fn accept(&self, listener: TcpListener) {
        while !self.ending.get() {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let conn = self.name();
                    self.add(conn, stream);
                    self.emit(NetEvent::Accepted { conn, from });
                }
                Err(_) if self.ending.get() => {}
                // The client has gone again; that is no reason to rest.
                Err(error) if is_momentary(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    async fn send(&self, conn: ConnId, connection: &Connection, buf: Vec<u8>) {
        let (result, buf) = connection.stream.write_all(buf).await;
        connection.sending.set(false);
        match result {
            _ if connection.ended.get() => {}
            Ok(()) => self.emit(NetEvent::Sent { conn, buf }),
            Err(error) => self.fail(conn, connection, socket_error("send", &error)),
        }
    }

    async fn receive(&self, conn: ConnId, connection: &Connection, buf: Vec<u8>) {
        let start = buf.len();
        let (result, room) = connection.stream.read(buf.slice(start..)).await;
        let buf = room.into_inner();
        connection.receiving.set(false);
        match result {
            _ if connection.ended.get() => {}
            Ok(0) => self.fail(conn, connection, NetError::Closed),
            Ok(bytes) => self.emit(NetEvent::Received { conn, buf, bytes }),
            Err(error) => self.fail(conn, connection, socket_error("receive", &error)),
        }
    }
}

fn is_momentary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
    )
}

/// [`Net`] on tokio-uring, and the thread's [`Park`].
pub struct UringNet {
    runtime: tokio_uring::Runtime,
    shared: Rc<Shared>,
    queued: Vec<Op>,
    /// Second descriptors of the listening sockets, to end their accepts with.
    listening: Vec<std::net::TcpStream>,
    disk: Option<Disk>,
    bell: Arc<Notify>,
    waker: Waker,
}

/// The disk's ring, which completes beside the runtime's.
struct Disk {
    ring: SharedRing,
    completed: AsyncFd<Arc<File>>,
}

impl UringNet {
    /// A driver for this thread; with a disk's ring, parking serves that, too.
    ///
    /// # Errors
    /// The kernel does not allow io_uring, or there are no descriptors left.
    pub fn new(disk: Option<&SharedRing>) -> Result<Self, NetError> {
        let failed = |error| socket_error("set up tokio-uring", &error);
        let mut flags = tokio_uring::uring_builder();
        flags.setup_coop_taskrun();
        let mut builder = tokio_uring::builder();
        builder.entries(RING_ENTRIES).uring_builder(&flags);
        let runtime = tokio_uring::Runtime::new(&builder).map_err(failed)?;
        let disk = disk.map(|ring| {
            let event = ring.borrow_mut().completion_event().map_err(crate::ring::ring_error)?;
            let completed = runtime.block_on(async { watch(event) }).map_err(failed)?;
            Ok(Disk { ring: ring.clone(), completed })
        });
        let bell = Arc::new(Notify::new());
        let waker = Waker::new({
            let bell = bell.clone();
            move || bell.notify_one()
        });
        let (shared, queued, listening) = Default::default();
        Ok(Self { runtime, shared, queued, listening, disk: disk.transpose()?, bell, waker })
    }

    /// Starts what is queued, and hands it to the kernel.
    fn flush(&mut self) -> io::Result<()> {
        let ops = std::mem::take(&mut self.queued);
        self.runtime.block_on(async {
            start(&self.shared, ops);
            tokio_uring::no_op().await
        })
    }

    /// Starts what is queued, and sleeps until something happens.
    fn sleep(&mut self, timeout_us: Option<u64>) -> io::Result<()> {
        let ops = std::mem::take(&mut self.queued);
        self.runtime.block_on(async {
            start(&self.shared, ops);
            let disk = async {
                match &self.disk {
                    // The eventfd is never read: each completion is an edge of its own.
                    Some(disk) => disk.completed.readable().await.map(|mut guard| guard.clear_ready()),
                    None => std::future::pending().await,
                }
            };
            let timeout = async {
                match timeout_us {
                    Some(us) => tokio::time::sleep(Duration::from_micros(us)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shared.happened.notified() => Ok(()),
                () = self.bell.notified() => Ok(()),
                woken = disk => woken,
                () = timeout => Ok(()),
            }
        })
    }

    fn submit_disk(&self) -> Result<(), DiskError> {
        self.disk.as_ref().map_or(Ok(()), |disk| disk.ring.borrow_mut().submit())
    }

    /// Whether nothing waits to be fetched from either ring.
    fn has_nothing(&self) -> bool {
        let disk_has = self.disk.as_ref().is_some_and(|disk| disk.ring.borrow().has_deliveries());
        self.shared.events.borrow().is_empty() && !disk_has
    }

    fn connection(&self, conn: ConnId) -> Option<Rc<Connection>> {
        self.shared.connections.borrow().get(&conn).cloned()
    }
}

fn start(shared: &Rc<Shared>, ops: Vec<Op>) {
    for op in ops {
        tokio_uring::spawn(shared.clone().run(op));
    }
}

impl Net for UringNet {
    type Socket = std::net::TcpStream;

    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, NetError> {
        let failed = |error| socket_error("listen", &error);
        let socket = listener(address)?;
        let address = socket.local_addr().map_err(failed)?;
        self.listening.push(duplicate(&socket).map_err(failed)?.into());
        self.queued.push(Op::Accept { listener: TcpListener::from_std(socket) });
        Ok(address)
    }

    fn connect(&mut self, address: SocketAddr) -> ConnId {
        let conn = self.shared.name();
        self.shared.connecting.borrow_mut().insert(conn);
        self.queued.push(Op::Connect { conn, address });
        conn
    }

    fn send(&mut self, conn: ConnId, buf: Vec<u8>) {
        let Some(connection) = self.connection(conn) else { return };
        assert!(!connection.sending.replace(true), "one send at a time a connection");
        self.queued.push(Op::Send { conn, connection, buf });
    }

    fn receive(&mut self, conn: ConnId, mut buf: Vec<u8>) {
        let Some(connection) = self.connection(conn) else { return };
        assert!(!connection.receiving.replace(true), "one receive at a time a connection");
        if buf.capacity() - buf.len() < RECEIVE_BYTES_MIN {
            buf.reserve(RECEIVE_BYTES_MIN);
        }
        self.queued.push(Op::Receive { conn, connection, buf });
    }

    fn close(&mut self, conn: ConnId) {
        self.shared.connecting.borrow_mut().remove(&conn);
        let connection = self.shared.connections.borrow_mut().remove(&conn);
        if let Some(connection) = connection {
            self.shared.events.borrow_mut().retain(|event| event.conn() != conn);
            connection.end();
        }
    }

    fn detach(&mut self, conn: ConnId) -> Option<std::net::TcpStream> {
        let connection = self.connection(conn)?;
        let idle = !connection.sending.get() && !connection.receiving.get();
        assert!(idle, "detached with operations in flight");
        self.shared.connections.borrow_mut().remove(&conn);
        // tokio-uring keeps its descriptor to itself and closes it when the connection is dropped here.
        match duplicate(&connection.stream) {
            Ok(socket) => Some(socket.into()),
            Err(error) => {
                tracing::warn!(%error, "cannot hand a connection over: closing it");
                None
            }
        }
    }

    fn adopt(&mut self, socket: std::net::TcpStream) -> ConnId {
        let conn = self.shared.name();
        self.shared.add(conn, TcpStream::from_std(socket));
        conn
    }

    fn submit(&mut self) -> Result<(), NetError> {
        self.flush().map_err(|error| socket_error("submit", &error))
    }

    fn events(&mut self, events: &mut Vec<NetEvent>) {
        events.append(&mut self.shared.events.borrow_mut());
    }
}

impl Park for UringNet {
    fn park(&mut self, timeout_us: Option<u64>, idle: &dyn Fn() -> bool) -> Result<(), DiskError> {
        self.submit_disk()?;
        self.waker.announce_sleep();
        let may_sleep = timeout_us != Some(0) && idle() && self.has_nothing();
        let slept = if may_sleep { self.sleep(timeout_us) } else { self.flush() };
        self.waker.announce_awake();
        slept.map_err(|error| crate::ring::system_error("tokio-uring", &error))?;
        self.submit_disk()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Drop for UringNet {
    fn drop(&mut self) {
        self.shared.ending.set(true);
        self.queued.clear();
        for socket in &self.listening {
            // Also right for a listening socket: its accept fails.
            if let Err(error) = socket.shutdown(Shutdown::Both) {
                tracing::debug!(%error, "cannot shut a listener down");
            }
        }
        std::mem::take(&mut *self.shared.connections.borrow_mut()).values().for_each(|c| c.end());
        let drained = self.runtime.block_on(async {
            let all = async {
                while self.shared.running.get() > 0 {
                    self.shared.happened.notified().await;
                }
            };
            tokio::time::timeout(DRAIN, all).await
        });
        if drained.is_err() {
            tracing::error!(running = self.shared.running.get(), "sockets are still in use by the kernel");
        }
    }
}
