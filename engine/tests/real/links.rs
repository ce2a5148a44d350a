//! What lies between nodes: each way from one node to another is a proxy of its own, which can be cut in one direction or in
//! both. A cut holds bytes back, as a network does that loses every packet; when it ends they come late, or the connection is
//! gone.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::process::free_addresses;

/// How often a pump looks whether its way is cut.
const LOOK: Duration = Duration::from_millis(5);

/// Whether bytes from one node reach another.
#[derive(Default)]
struct Way {
    is_cut: AtomicBool,
    /// Rises when all connections are to be dropped.
    drops: AtomicU64,
}

/// All ways between some nodes, numbered from 0.
pub(crate) struct Links {
    nodes: usize,
    /// By sender, then receiver.
    ways: Arc<Vec<Way>>,
    /// By who connects, then whom to: where the others listen, as each node sees it.
    pub(crate) seen: Vec<Vec<SocketAddr>>,
    over: Arc<AtomicBool>,
}

impl Links {
    pub(crate) fn new(nodes: usize) -> Self {
        let real = free_addresses(nodes);
        let ways = Arc::new((0..nodes * nodes).map(|_| Way::default()).collect::<Vec<_>>());
        let over = Arc::new(AtomicBool::new(false));
        let mut seen = vec![real.clone(); nodes];
        for (from, seen) in seen.iter_mut().enumerate() {
            for to in (0..nodes).filter(|to| *to != from) {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                seen[to] = listener.local_addr().unwrap();
                let (ways, over, target) = (ways.clone(), over.clone(), real[to]);
                let (there, back) = (from * nodes + to, to * nodes + from);
                thread::spawn(move || listen(&listener, target, &ways, (there, back), &over));
            }
        }
        Self { nodes, ways, seen, over }
    }

    /// Nothing comes from one node to another any more.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.ways[from * self.nodes + to].is_cut.store(true, Ordering::Relaxed);
    }

    /// A node hears nobody and nobody hears it.
    pub(crate) fn isolate(&self, node: usize) {
        for other in (0..self.nodes).filter(|other| *other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Ends all cuts. What was held back arrives late, or is lost with its connection.
    pub(crate) fn heal(&self, is_lost: bool) {
        for way in self.ways.iter() {
            if is_lost && way.is_cut.load(Ordering::Relaxed) {
                way.drops.fetch_add(1, Ordering::Relaxed);
            }
            way.is_cut.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn listen(
    listener: &TcpListener,
    target: SocketAddr,
    ways: &Arc<Vec<Way>>,
    (there, back): (usize, usize),
    over: &Arc<AtomicBool>,
) {
    listener.set_nonblocking(true).unwrap();
    while !over.load(Ordering::Relaxed) {
        let Ok((near, _)) = listener.accept() else {
            thread::park_timeout(LOOK);
            continue;
        };
        let Ok(far) = TcpStream::connect(target) else { continue };
        near.set_nonblocking(false).unwrap();
        for (source, sink, way) in [(&near, &far, there), (&far, &near, back)] {
            let (source, sink) = (source.try_clone().unwrap(), sink.try_clone().unwrap());
            let (ways, over) = (ways.clone(), over.clone());
            thread::spawn(move || pump(source, sink, &ways[way], &over));
        }
    }
}

/// Carries bytes until either side ends, the way drops its connections, or the test is over.
fn pump(mut source: TcpStream, mut sink: TcpStream, way: &Way, over: &AtomicBool) {
    let drops = way.drops.load(Ordering::Relaxed);
    source.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    sink.set_nodelay(true).unwrap();
    let mut bytes = vec![0; 64 * 1024];
    'carry: loop {
        let got = match source.read(&mut bytes) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => break,
        };
        while way.is_cut.load(Ordering::Relaxed) {
            if over.load(Ordering::Relaxed) {
                break 'carry;
            }
            thread::park_timeout(LOOK);
        }
        let is_dropped = way.drops.load(Ordering::Relaxed) != drops || over.load(Ordering::Relaxed);
        if is_dropped || sink.write_all(&bytes[..got]).is_err() {
            break;
        }
    }
    let _ = (source.shutdown(Shutdown::Both), sink.shutdown(Shutdown::Both));
}
