//! Coracle: an io_uring-based, storage-first, multi-group Raft engine.
//!
//! Thousands of small, durable, replicated state machines on few cores. Implement [`Machine`] (or [`TypedMachine`]),
//! start a [`Node`] on each computer, start groups on it, and propose commands:
//!
//! ```no_run
//! use coracle::{Config, Effects, Entry, GroupId, Node, Outcome, Peer, TypedMachine};
//!
//! struct Counter(i64);
//!
//! impl TypedMachine for Counter {
//!     type Command = i64;
//!     type Reply = i64;
//!     type Query = ();
//!     type Answer = i64;
//!     type State = i64;
//!     fn apply(&mut self, add: i64, _: Entry<'_>, _: &mut Effects<'_>) -> i64 {
//!         self.0 += add;
//!         self.0
//!     }
//!     fn query(&self, (): ()) -> i64 {
//!         self.0
//!     }
//!     fn save(&self) -> i64 {
//!         self.0
//!     }
//!     fn load(&mut self, state: i64) {
//!         self.0 = state;
//!     }
//! }
//!
//! let peer = |id, port| Peer { id: coracle::NodeId(id), address: ([127, 0, 0, 1], port).into() };
//! let node = Node::start(Config::new(1, vec![peer(1, 7101)], "/var/lib/coracle"))?;
//! let counter = node.start_typed(GroupId(1), Counter(0))?;
//! if let Outcome::Done(done) = counter.propose(&5).wait() {
//!     println!("{}", done.reply);
//! }
//! # Ok::<(), coracle::Error>(())
//! ```
//!
//! Every command ends as exactly one of [`Outcome::Done`], [`Outcome::NotDone`] and [`Outcome::Unknown`].
//!
//! Invariants: (1) nothing is acknowledged before it is durable on a majority; (2) entries are applied in order, each
//! once, and the same everywhere; (3) every buffer is bounded and refuses early; (4) same seed, same run: the simulator
//! drives the very code that runs in production ([`sim`]).
#![forbid(unsafe_code)]

#[cfg(feature = "admin")]
mod admin;
mod api;
mod boot;
#[cfg(feature = "breaks")]
pub mod breaks;
pub mod cluster;
mod config;
mod directory;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod identity;
mod lineage;
mod log;
mod machine;
mod node;
mod outcome;
mod panics;
mod shard;
pub mod sim;
mod transport;

#[cfg(feature = "admin")]
pub use admin::Admin;
pub use api::{
    Client, Consistency, Directory, Group, LogEntry, NameChanges, NoEntry, Pending, Proposal, ReadEntry,
    ReadPlan, TypedGroup, TypedProposal,
};
pub use config::{Config, Peer};
pub use coracle_base::{GroupId, Index, NodeId, Term};
pub use coracle_io::Strategy;
pub use coracle_raft::{Change, DataLoss, Member, Members, Membership};
pub use coracle_wal::IndexRange;
pub use directory::{Created, Deleted, NamedGroup, Page};
pub use error::Error;
pub use machine::{
    Class, Effects, Entry, Machine, ReleaseWhen, RestoreError, SnapshotSource, Typed, TypedMachine, Wire,
};
pub use node::Node;
pub use outcome::{Done, NotDone, Outcome, Reason, Unknown};
pub use shard::members::Drained;
pub use shard::names::NameChange;
pub use shard::replies::Completions;
pub use shard::{GroupStatus, ShardStatus};
