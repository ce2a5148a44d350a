//! One Raft group's consensus, pure: inputs in, outputs out. No clock, no I/O, no payload bytes, no randomness but a
//! seed handed in.
//!
//! The driver (a shard) owns the entries' bytes; this crate knows their indexes, terms, counts and sizes. It calls
//! [`Group::step`] for everything that happens and [`Group::drain`] once a turn for each group it touched. An output is
//! safe to act on the moment it is returned: what must wait for the disk stays inside until the disk has answered.
//! Start reading at `group.rs`.
//!
//! Invariants: (1) what a message claims to be durable was durable before the message left ([`Durable`]); (2) nothing
//! at or below the commit index is ever truncated; (3) the commit index never falls; (4) a leader commits only by an
//! entry of its own term, counted on durable copies of a majority.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod breaks;
mod config;
mod election;
mod follow;
mod group;
mod hard_state;
mod invariants;
mod links;
mod log;
mod loss;
mod member;
mod membership;
mod message;
mod persist;
mod progress;
mod quorum;
mod read_index;
mod recall;
mod replicate;
mod report;
mod shrink;
mod transfer;

pub use breaks::Breaks;
pub use config::{Config, Restored, Voters};
pub use group::{Fit, Group, Input, NotLeader, Output, Proposed, Role, Sizes};
pub use hard_state::{Ballot, HardState};
pub use log::Spans;
pub use loss::DataLoss;
pub use member::{BadChange, Change, Configured, Member, Members, Membership, Previous};
pub use membership::{ChangeError, Changes};
pub use message::{AppendReply, DecodeError, Message, RecallReply, Rejected};
pub use persist::{Durable, PersistSeq};
pub use report::{Overview, PeerMode, PeerOverview};
pub use shrink::ShrinkError;
pub use transfer::TransferError;
