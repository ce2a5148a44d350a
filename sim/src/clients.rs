//! Sessions of clients: each does one thing after the other to objects of some groups, through whatever node is up, waits for the
//! answer, and gives up when it has waited for too long. What they did and heard is in `histories.rs`.
//!
//! Nothing here looks at which bug is planted.

use coracle_base::checksum::mix64;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;
use crate::histories::Ticket;
use crate::objects::{Action, KINDS};
use crate::plan::Plan;

/// Groups that sessions work on.
const GROUPS_MAX: u64 = 3;
/// Time between two operations of a session, at most.
const GAP_US: u64 = 800_000;

#[derive(Debug, Clone, Copy, Default)]
struct Session {
    next_us: u64,
    /// What it waits for, and until when.
    waits: Option<(Ticket, u64)>,
}

/// The object of a kind that is in use in a group.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    serial: u64,
    operations: u64,
    /// What a register was last made to hold.
    value: u64,
}

/// All sessions of one run.
pub(crate) struct Clients {
    rng: SmallRng,
    sessions: Vec<Session>,
    objects: Vec<Use>,
    patience_us: u64,
    operations_max: u64,
    over: bool,
}

impl Clients {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut rng = SmallRng::seed_from_u64(mix64(plan.seed, 0x5e55));
        let groups = plan.groups.min(GROUPS_MAX);
        Self {
            sessions: vec![Session::default(); plan.load.sessions],
            objects: vec![Use::default(); (groups * KINDS) as usize],
            patience_us: [300_000, 1_000_000, 6_000_000][rng.random_range(0..3)],
            operations_max: rng.random_range(8..=40),
            over: false,
            rng,
        }
    }

    /// When somebody does something.
    pub(crate) fn next_us(&self) -> u64 {
        let next = |session: &Session| match session.waits {
            // Answers are looked for when something happens anyway.
            Some((_, until_us)) => until_us,
            None if self.over => u64::MAX,
            None => session.next_us,
        };
        self.sessions.iter().map(next).min().unwrap_or(u64::MAX)
    }

    /// Nobody begins anything any more.
    pub(crate) fn rest(&mut self) {
        self.over = true;
    }

    /// Whatever is due.
    pub(crate) fn act(&mut self, cluster: &mut Cluster) {
        let now_us = cluster.now_us();
        for at in 0..self.sessions.len() {
            if let Some((ticket, until_us)) = self.sessions[at].waits {
                let is_open = cluster.histories.is_open(ticket);
                if is_open && now_us < until_us {
                    continue;
                }
                if is_open {
                    cluster.histories.give_up(ticket);
                    cluster.tally.mark("sessions_gave_up");
                }
                let next_us = now_us + self.rng.random_range(0..=GAP_US);
                self.sessions[at] = Session { next_us, waits: None };
            } else if self.sessions[at].next_us <= now_us && !self.over {
                self.begin(cluster, at);
            }
        }
    }

    fn begin(&mut self, cluster: &mut Cluster, at: usize) {
        let now_us = cluster.now_us();
        self.sessions[at].next_us = now_us + self.rng.random_range(1..=GAP_US);
        let up = (0..cluster.nodes.len()).filter(|at| cluster.nodes[*at].process.is_some());
        let up: Vec<usize> = up.collect();
        if up.is_empty() {
            return;
        }
        let node = up[self.rng.random_range(0..up.len())];
        let chosen = self.rng.random_range(0..self.objects.len());
        let (group, kind) = (chosen / KINDS as usize, chosen as u64 % KINDS);
        let object = &mut self.objects[chosen];
        object.operations += 1;
        if object.operations > self.operations_max {
            *object = Use { serial: object.serial + 1, operations: 1, value: 0 };
        }
        let key = object.serial * KINDS + kind;
        // Of its own, so that it tells who wrote it.
        let value = cluster.oracle.proposed() + 1;
        let action = match (kind, self.rng.random_range(0..6)) {
            (0, 0..2) => Some(Action::Set(value)),
            (0, 2..4) => Some(Action::Swap(object.value, value)),
            (1, 0..3) => Some(Action::Append(value)),
            (2, 0..4) => Some(Action::Add(value)),
            (3, 0..3) => Some(Action::Append(value)),
            (3, _) => Some(Action::Take),
            _ => None,
        };
        if let Some(Action::Set(value) | Action::Swap(_, value)) = action {
            object.value = value;
        }
        let ticket = cluster.session(node, group, key, action);
        self.sessions[at].waits = ticket.map(|ticket| (ticket, now_us + self.patience_us));
    }
}
