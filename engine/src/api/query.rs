//! Questions to a group's machine: whose machine answers, and what the answer has to include.

use coracle_base::limits::ENTRY_BYTES_MAX;
use coracle_base::{Index, Term};

use super::{Group, Proposal};
use crate::outcome::Reason;
use crate::shard::inbox::Command;

/// What an answer has to include, and who gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Everything acknowledged before the question was asked (Raft thesis 6.4); the leader's machine answers.
    Linearizable,
    /// The same, and this node's machine answers: the leader only says how far it must have come, which costs one message a
    /// link and turn for the questions of all groups. For long answers, and to spare the leader.
    LinearizableHere,
    /// What the leader's machine has: not linearizable while an old leader does not know that it is one no longer.
    Leader,
    /// What this node's machine has, however old that is, once it has applied the entry at `index`; 0: at once. No other
    /// node is asked. What was acknowledged with that index, or an earlier one, is seen.
    Local {
        /// The entry that has to be applied.
        index: Index,
        /// It has to be of this term; another one ends as [`Reason::Overwritten`]. Of an entry below the newest snapshot
        /// nobody knows the term any more: [`Reason::Released`].
        term: Option<Term>,
    },
}

impl Group {
    /// Asks the machine a question; the answer covers everything acknowledged before (linearizable).
    pub fn query(&self, query: &[u8]) -> Proposal {
        self.query_as(Consistency::Linearizable, query)
    }

    /// As [`query`](Self::query), answered by this node's machine, which the leader tells how far it must have come.
    pub fn query_here(&self, query: &[u8]) -> Proposal {
        self.query_as(Consistency::LinearizableHere, query)
    }

    /// Asks the leader's machine as it is. Quicker than [`query`](Self::query), and not linearizable: for a moment, a
    /// leader may not know that it is one no longer.
    pub fn query_leader(&self, query: &[u8]) -> Proposal {
        self.query_as(Consistency::Leader, query)
    }

    /// Asks this node's machine as it is, however old that may be, once it has applied the entry at `index`; 0: at once.
    pub fn query_local(&self, query: &[u8], index: Index) -> Proposal {
        self.query_as(Consistency::Local { index, term: None }, query)
    }

    /// Asks the machine a question. It ends within [`command_timeout_us`](crate::Config::command_timeout_us), whatever it waited
    /// for; the answer's index is what was applied then.
    pub fn query_as(&self, consistency: Consistency, query: &[u8]) -> Proposal {
        if query.len() > ENTRY_BYTES_MAX {
            return Proposal::refused(Reason::TooLarge);
        }
        let query = query.to_vec();
        self.send(|origin| Command::Query { group: self.id, consistency, tag: 0, query, origin })
    }
}
