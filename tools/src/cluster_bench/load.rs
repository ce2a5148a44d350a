//! The clients: threads that keep a number of commands in flight each, through the public handles alone.
//!
//! Invariants: (1) every command that was taken is counted once, as done, not done or unknown, also when the load
//! stops; (2) operations and latencies count only what was completed between the begin and the end of the measurement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use coracle::{Client, Completions, Group, Node, Outcome};
use coracle_io::Clock;
use coracle_io::ring::RealClock;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::options::Until;
use crate::latency::Latencies;

/// How long a client waits for completions before it looks around.
const WAIT: Duration = Duration::from_millis(20);

/// How often the course of a measurement is noted.
const NOTE_EVERY_US: u64 = 200_000;

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// How commands ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) done: u64,
    pub(crate) not_done: u64,
    pub(crate) unknown: u64,
}

/// What the clients measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) ops: u64,
    pub(crate) seconds: f64,
    pub(crate) latencies: Latencies,
    /// Of all commands, warm-up and end included.
    pub(crate) ends: Ends,
    /// Seconds since the begin, and commands done by then: every so often.
    pub(crate) course: Vec<(f64, u64)>,
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<(Latencies, Ends)>>,
}

#[derive(Debug)]
struct Shared {
    phase: AtomicU8,
    /// Commands done since the load began.
    done: AtomicU64,
    /// Commands done in the measurement, which ends at `ops_max`.
    ops: AtomicU64,
    ops_max: AtomicU64,
    end_us: AtomicU64,
    /// Who waits for the end.
    owner: Thread,
}

impl Shared {
    /// Ends the measurement, once.
    fn end(&self) {
        let now_us = RealClock.now_us();
        if self.phase.swap(STOP, Ordering::AcqRel) != STOP {
            self.end_us.store(now_us, Ordering::Release);
            self.owner.unpark();
        }
    }
}

impl Load {
    /// Starts `clients` threads with `pipe` commands in flight each. The calling thread has to measure, too.
    pub(crate) fn start(node: &Node, groups: &[Group], clients: u64, pipe: u64, entry_bytes: usize) -> Self {
        let shared = Arc::new(Shared {
            phase: AtomicU8::new(WARM_UP),
            done: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            ops_max: AtomicU64::new(u64::MAX),
            end_us: AtomicU64::new(0),
            owner: thread::current(),
        });
        let start = |seed| {
            let worker = Worker::new(node.client(), groups.to_vec(), shared.clone(), seed, pipe, entry_bytes);
            thread::spawn(move || worker.run())
        };
        let clients = (0..clients).map(start).collect();
        Self { shared, clients }
    }

    /// Commands done since the load began.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Measures from now on, then stops the clients and waits for the last answers.
    ///
    /// # Panics
    /// If a client's thread panicked.
    pub(crate) fn measure(self, until: Until) -> Measured {
        let begin_us = RealClock.now_us();
        let end_us = match until {
            Until::Time(time) => begin_us + time.as_micros() as u64,
            Until::Ops(ops) => {
                self.shared.ops_max.store(ops, Ordering::Relaxed);
                u64::MAX
            }
        };
        self.shared.phase.store(MEASURE, Ordering::Release);
        let mut course = Vec::new();
        while self.shared.phase.load(Ordering::Acquire) != STOP {
            let now_us = RealClock.now_us();
            if now_us >= end_us {
                self.shared.end();
            } else {
                thread::park_timeout(Duration::from_micros(NOTE_EVERY_US.min(end_us - now_us)));
                let seconds = (RealClock.now_us() - begin_us) as f64 / 1e6;
                course.push((seconds, self.shared.ops.load(Ordering::Relaxed)));
            }
        }
        let (mut latencies, mut ends) = (Latencies::default(), Ends::default());
        for client in self.clients {
            let (more, other) = client.join().expect("a client's thread does not panic");
            latencies.add(&more);
            ends.done += other.done;
            ends.not_done += other.not_done;
            ends.unknown += other.unknown;
        }
        let seconds = (self.shared.end_us.load(Ordering::Acquire) - begin_us) as f64 / 1e6;
        Measured { ops: latencies.count(), seconds, latencies, ends, course }
    }
}

/// One client.
struct Worker {
    client: Client,
    groups: Vec<Group>,
    shared: Arc<Shared>,
    random: SmallRng,
    command: Vec<u8>,
    /// When the command with this tag was proposed.
    sent_us: Vec<u64>,
    /// (group, tag) of commands to be proposed.
    next: Vec<(usize, u64)>,
    latencies: Latencies,
    ends: Ends,
}

impl Worker {
    fn new(
        client: Client,
        groups: Vec<Group>,
        shared: Arc<Shared>,
        seed: u64,
        pipe: u64,
        entry_bytes: usize,
    ) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut command = vec![0; entry_bytes];
        random.fill(command.as_mut_slice());
        let next = (0..pipe).map(|tag| (random.random_range(0..groups.len()), tag)).collect();
        let (latencies, ends) = (Latencies::default(), Ends::default());
        Self {
            client,
            groups,
            shared,
            random,
            command,
            sent_us: vec![0; pipe as usize],
            next,
            latencies,
            ends,
        }
    }

    fn run(mut self) -> (Latencies, Ends) {
        loop {
            if self.shared.phase.load(Ordering::Acquire) != STOP {
                self.propose();
            } else if self.client.in_flight() == 0 {
                return (self.latencies, self.ends);
            }
            if let Some(completions) = self.client.wait(WAIT) {
                self.complete(&completions);
                while let Some(completions) = self.client.poll() {
                    self.complete(&completions);
                }
            }
        }
    }

    /// Proposes what is to be proposed, a batch a group. What is refused stays for the next time.
    fn propose(&mut self) {
        self.next.sort_unstable();
        let now_us = RealClock.now_us();
        let mut at = 0;
        while at < self.next.len() {
            let group = self.next[at].0;
            let same = self.next[at..].iter().take_while(|(other, _)| *other == group);
            let commands = same.map(|(_, tag)| (*tag, &self.command));
            let Ok(taken) = self.client.propose(&self.groups[group], commands) else { break };
            for (_, tag) in &self.next[at..at + taken] {
                self.sent_us[*tag as usize] = now_us;
            }
            at += taken;
        }
        self.next.drain(..at);
    }

    /// Counts what has ended, and makes new commands of the tags.
    fn complete(&mut self, completions: &Completions) {
        let measuring = self.shared.phase.load(Ordering::Acquire) == MEASURE;
        let now_us = RealClock.now_us();
        let mut done = 0;
        for (tag, outcome) in completions.iter() {
            match outcome {
                Outcome::Done(_) => {
                    done += 1;
                    if measuring {
                        self.latencies.record((now_us - self.sent_us[tag as usize]) * 1000, 1);
                    }
                }
                Outcome::NotDone(_) => self.ends.not_done += 1,
                Outcome::Unknown(_) => self.ends.unknown += 1,
            }
            self.next.push((self.random.random_range(0..self.groups.len()), tag));
        }
        self.ends.done += done;
        self.shared.done.fetch_add(done, Ordering::Relaxed);
        if measuring {
            let ops = self.shared.ops.fetch_add(done, Ordering::Relaxed) + done;
            if ops >= self.shared.ops_max.load(Ordering::Relaxed) {
                self.shared.end();
            }
        }
    }
}
