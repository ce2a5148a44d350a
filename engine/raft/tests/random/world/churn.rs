//! Members change, and leadership is handed over, at random.

use coracle_base::Index;
use coracle_raft::{Change, ChangeError};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::lost::voters;
use super::{World, id};

impl World {
    /// A few random changes at once; most make sense.
    pub(super) fn act_change(&mut self, at: usize) {
        let (now_us, size) = (self.now_us, self.size());
        let count = *[1, 1, 1, 2, 3].choose(&mut self.rng).unwrap();
        let changes: Vec<Change> = (0..count)
            .map(|_| {
                let node = id(self.rng.random_range(0..size));
                match self.rng.random_range(0..8) {
                    0..3 => Change::Voter(node),
                    3 => Change::Learner(node),
                    4 => Change::Promotable(node),
                    _ => Change::Remove(node),
                }
            })
            .collect();
        let force = self.rng.random_bool(0.1);
        let old_copy = self.faults.old_copy;
        let Some(node) = &mut self.nodes[at] else { return };
        let next = node.group.members().changed(&changes, Index::ZERO);
        // Nobody's rule saves a member of a group of two from having been alone once.
        if old_copy && next.is_ok_and(|next| voters(&next) < 3) {
            return;
        }
        let (result, out) = node.change(now_us, &changes, force);
        if !matches!(result, Err(ChangeError::NotLeader(_))) {
            self.note(|| format!("{} changes {changes:?}: {result:?}", id(at)));
            self.after(at, out);
        }
    }

    pub(super) fn act_transfer(&mut self, at: usize) {
        let (now_us, to) = (self.now_us, id(self.rng.random_range(0..self.size())));
        let Some(node) = &mut self.nodes[at] else { return };
        if self.rng.random_bool(0.3) {
            let begins = node.group.trigger_election(now_us);
            self.note(|| format!("{} is to campaign: {begins}", id(at)));
        } else if let Ok(to) = node.group.transfer(now_us, (to != id(at)).then_some(to)) {
            self.note(|| format!("{} hands over to {to}", id(at)));
        }
        self.after(at, Vec::new());
    }
}
