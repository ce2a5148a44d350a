//! Pins: files that somebody beside the log reads, by handles of his own and on his own thread. While a pin holds, its files
//! are neither reused nor removed; but no reader holds up the log for ever.
//!
//! ```text
//!   reader   look ── read ── look again ── hand out     both looks must find the pin holding
//!   log             revoke ── reuse the file            never the other way round
//! ```
//!
//! A pin is revoked when its time is over, when the files that nothing but pins keep are more than the budget (oldest
//! first, as far as that helps), on a full disk (as if the budget were 0), and when the log ends. If the second look finds
//! the pin holding, the log had not begun to reuse the file when the bytes were read, so they are the file's; if not, what
//! was read may be anything, and is `Released`.
//!
//! Invariants: (1) a file's count of pins is that of the pins that hold it and are not revoked; (2) a pin is revoked before
//! its file's count is lowered; (3) the log never waits for a reader: what a dropped pin leaves is found at the next look.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crate::format::SEGMENT;
use crate::wal::Wal;

/// Pins of one log at once.
const PINS_MAX: usize = 1024;
/// How often it is looked which pins are not needed any more.
const LOOK_US: u64 = 10_000;

#[derive(Debug, Default)]
struct Flags {
    /// The log says: the files may be gone.
    revoked: AtomicBool,
    /// The reader says: they are not needed any more.
    dropped: AtomicBool,
}

/// A reader's hold on files. Dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Pin(Arc<Flags>);

impl Pin {
    /// Whether the files are still what they were. To be asked after every read as well.
    pub(crate) fn holds(&self) -> bool {
        // What was read before comes before this look.
        fence(Ordering::SeqCst);
        !self.0.revoked.load(Ordering::SeqCst)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Release);
    }
}

#[derive(Debug)]
struct Held {
    flags: Arc<Flags>,
    files: Vec<u64>,
    until_us: u64,
}

/// All pins of one log, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: VecDeque<Held>,
    next_look_us: u64,
}

impl Pins {
    /// When the oldest pin's time is over.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        self.held.front().map(|held| held.until_us)
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

impl Drop for Pins {
    /// Nobody keeps the files any more.
    fn drop(&mut self) {
        self.held.iter().for_each(revoke);
    }
}

fn revoke(held: &Held) {
    held.flags.revoked.store(true, Ordering::SeqCst);
    // The file is written to after this.
    fence(Ordering::SeqCst);
}

impl Wal {
    /// Pins files, all of which the log has. `None`: there are too many pins already.
    pub(crate) fn pin(&mut self, files: BTreeSet<u64>) -> Option<Pin> {
        if self.pins.len() >= PINS_MAX {
            self.look_at_pins();
        }
        if self.pins.len() >= PINS_MAX {
            return None;
        }
        let flags = Arc::new(Flags::default());
        files.iter().for_each(|file_no| self.count_pin(*file_no, 1));
        let until_us = self.now_us.saturating_add(self.config.pin_us);
        let files = files.into_iter().collect();
        self.pins.held.push_back(Held { flags: flags.clone(), files, until_us });
        Some(Pin(flags))
    }

    /// Gives up pins that are not needed any more, or must not hold any longer.
    pub(crate) fn step_pins(&mut self) {
        let is_late = self.pins.deadline_us().is_some_and(|until| until <= self.now_us);
        if self.pins.held.is_empty() || (!is_late && self.now_us < self.pins.next_look_us) {
            return;
        }
        self.look_at_pins();
    }

    fn look_at_pins(&mut self) {
        self.pins.next_look_us = self.now_us + LOOK_US;
        let now_us = self.now_us;
        self.give_up_pins(|held| held.flags.dropped.load(Ordering::Acquire), usize::MAX);
        self.give_up_pins(|held| held.until_us <= now_us, usize::MAX);
        let budget = if self.prepare.is_full() { 0 } else { self.config.pin_bytes };
        loop {
            let (kept, bytes) = self.kept_by_pins();
            if bytes <= budget {
                return;
            }
            self.give_up_pins(|held| held.files.iter().any(|file_no| kept.contains(file_no)), 1);
        }
    }

    /// Gives up at most `max` of the pins that meet the condition, oldest first.
    fn give_up_pins(&mut self, mut condition: impl FnMut(&Held) -> bool, max: usize) {
        let mut given_up: Vec<Vec<u64>> = Vec::new();
        self.pins.held.retain(|held| {
            let goes = given_up.len() < max && condition(held);
            if goes {
                revoke(held);
                given_up.push(held.files.clone());
            }
            !goes
        });
        given_up.iter().flatten().for_each(|file_no| self.count_pin(*file_no, -1));
    }

    fn count_pin(&mut self, file_no: u64, change: i32) {
        if let Some(file) = self.files.get_mut(file_no) {
            file.pins = file.pins.saturating_add_signed(change);
        }
    }

    /// The files that nothing but pins keeps from being used again, or removed; and their bytes.
    fn kept_by_pins(&self) -> (BTreeSet<u64>, u64) {
        let needed_from = self.checkpoints.needed_from();
        let (mut kept, mut bytes) = (BTreeSet::new(), 0);
        for (file_no, file) in self.files.iter().filter(|(_, file)| file.pins > 0) {
            let is_needed =
                if file_no & SEGMENT == 0 { file_no >= needed_from } else { self.moving_to == Some(file_no) };
            let held = self.refs.held(file_no);
            if !is_needed && held.is_nothing() && !self.refs.has_pages(file_no) {
                kept.insert(file_no);
                bytes += file.bytes;
            }
        }
        (kept, bytes)
    }
}
