//! Linearizable reads without the log (Raft thesis 6.4): the leader notes its commit index, asks a majority whether it
//! still leads, and answers once that index is applied.
//!
//! Reads are gathered: at most one round is open, and one batch waits for the next.
//!
//! Invariants: (1) no round opens before an entry of our own term is committed, since until then an earlier leader may
//! have acknowledged more than we know to be committed (tikv 6340); (2) a read is confirmed by a round that began after
//! it was asked; (3) when we stop leading, every read fails.

use alloc::vec::Vec;

use coracle_base::{Index, Term};

use crate::group::{Group, NotLeader, Output, Role};
use crate::message::Message;
use crate::quorum::Tally;

/// Reads that wait to be confirmed.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: Vec<u64>,
    /// The open round's reads; empty if none is open.
    asked: Vec<u64>,
    index: Index,
    round: u64,
    acks: Tally,
}

impl Reads {
    fn open(&self) -> bool {
        !self.asked.is_empty()
    }

    pub(crate) fn pending(&self) -> usize {
        self.waiting.len() + self.asked.len()
    }
}

impl Group {
    /// Asks for a linearizable read: `ReadReady` or `ReadFailed` with this token comes from a later step or drain.
    ///
    /// # Errors
    /// [`NotLeader`]: nothing was asked; the caller goes to the leader, or waits for one.
    pub fn read(&mut self, token: u64) -> Result<(), NotLeader> {
        self.require_leader()?;
        self.reads.waiting.push(token);
        Ok(())
    }

    /// Releases the open round if it is confirmed, and opens the next one.
    pub(crate) fn turn_reads(&mut self, out: &mut Vec<Output>) {
        self.release_reads(out);
        let own_term_committed = self.commit >= self.term_start || self.config.breaks.read_without_noop();
        if self.reads.open() || self.reads.waiting.is_empty() || !own_term_committed {
            return;
        }
        core::mem::swap(&mut self.reads.waiting, &mut self.reads.asked);
        self.reads.round += 1;
        self.reads.index = self.commit;
        self.reads.acks = Tally::default();
        self.reads.acks.grant(self.config.id);
        self.peers.iter_mut().for_each(|peer| peer.read_asked = false);
        self.release_reads(out);
    }

    fn release_reads(&mut self, out: &mut Vec<Output>) {
        let won = self.reads.acks.won(self.members()) || self.config.breaks.read_without_quorum();
        if !self.reads.open() || !won {
            return;
        }
        let index = self.reads.index;
        out.extend(self.reads.asked.drain(..).map(|token| Output::ReadReady { token, index }));
        self.peers.iter_mut().for_each(|peer| peer.read_asked = false);
    }

    /// Sends the open round's probe to a member, once.
    pub(crate) fn ask_read(&mut self, at: usize, out: &mut Vec<Output>) {
        let peer = &mut self.peers[at];
        let is_voter = self.state.current.members.is_voter(peer.id);
        if self.reads.open() && is_voter && !peer.read_asked && !self.reads.acks.has(peer.id) {
            peer.read_asked = true;
            let message = Message::ReadProbe { term: self.state.term, round: self.reads.round };
            out.push(Output::Send { to: peer.id, message });
        }
    }

    pub(crate) fn on_read_ack(
        &mut self,
        now_us: u64,
        at: usize,
        term: Term,
        round: u64,
        out: &mut Vec<Output>,
    ) {
        if term > self.state.term {
            return self.become_follower(now_us, term, out);
        }
        if self.role == Role::Leader && term == self.state.term && round == self.reads.round {
            self.reads.acks.grant(self.peers[at].id);
            self.peers[at].read_asked = false;
            self.peers[at].waiting_since = None;
        }
    }

    pub(crate) fn fail_reads(&mut self, out: &mut Vec<Output>) {
        let Reads { waiting, asked, .. } = &mut self.reads;
        out.extend(asked.drain(..).chain(waiting.drain(..)).map(|token| Output::ReadFailed { token }));
    }
}
