//! What was done to a node's disk that no disk should do, and what may come of it.
//!
//! | harm | what the node may do | what it must not do |
//! |---|---|---|
//! | a write that was confirmed and is lost | the same as with a damaged page | the same |
//! | a damaged page | say that a group is suspect, start it late or never, not start at all | forget in silence |
//! | its directory is lost | wait, refused by all others | be a member again |
//! | its directory is an older copy | be suspect until all others have answered | vote and count as if it had not forgotten |

use std::cmp::Reverse;
use std::path::PathBuf;

use coracle_io::fake::{Damage, DiskImage, FakeDisk};
use rand::Rng;
use rand::rngs::SmallRng;

const PAGE_BYTES: u64 = 4096;
/// How many of the newest batches are damaged more often than others.
const NEWEST_BATCHES: usize = 6;
/// Who a directory is; without it a node does not begin.
const IDENTITY: &str = "identity";

/// The worst that was done to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    None,
    /// Pages were damaged where they lay.
    Damaged,
    /// It is an older copy of itself.
    Old,
    /// Everything is gone.
    Lost,
}

/// Damages a page of any file but the identity's, which has a test of its own. Whether there was one.
pub(crate) fn damage_a_page(disk: &FakeDisk, dice: &mut SmallRng) -> bool {
    let mut pages = pages(&disk.image());
    if dice.random_ratio(1, 2) {
        // The newest batches are those that a group may not have anywhere else.
        pages.sort_unstable_by_key(|page| Reverse(page.batch));
        pages.truncate(NEWEST_BATCHES);
    } else if dice.random_ratio(7, 8) {
        pages.retain(|page| page.is_used);
    }
    if pages.is_empty() {
        return false;
    }
    let Page { path, at: page, .. } = &pages[dice.random_range(0..pages.len())];
    let within = dice.random_range(0..PAGE_BYTES);
    let bytes = dice.random_range(1..=PAGE_BYTES - within) as usize;
    let (offset, damage) = match dice.random_range(0..4) {
        0 => (page + within, Damage::FlipBit { bit: (within % 8) as u8 }),
        1 => (page + within, Damage::Zero { bytes }),
        2 => (page + within, Damage::Garbage { bytes }),
        _ => (*page, Damage::Unreadable),
    };
    tracing::debug!(path = %path.display(), offset, ?damage, "damage");
    disk.corrupt(path, offset, damage)
}

struct Page {
    path: PathBuf,
    at: u64,
    is_used: bool,
    /// The number of the batch that begins here, if one does.
    batch: Option<u64>,
}

fn pages(image: &DiskImage) -> Vec<Page> {
    let mut pages = Vec::new();
    for path in image.paths().into_iter().filter(|path| !path.ends_with(IDENTITY)) {
        let bytes = image.read(&path).unwrap_or_default();
        for (at, page) in (0..).step_by(PAGE_BYTES as usize).zip(bytes.chunks(PAGE_BYTES as usize)) {
            let is_used = page.iter().any(|byte| *byte != 0);
            // As `docs/FORMAT.md` has it: a batch's magic and number.
            let number = page.get(16..24).filter(|_| page.starts_with(b"CWB1"));
            let batch = number.and_then(|number| Some(u64::from_le_bytes(number.try_into().ok()?)));
            pages.push(Page { path: path.clone(), at, is_used, batch });
        }
    }
    pages
}
