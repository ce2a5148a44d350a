//! The runner: mutates a target's inputs for some time and keeps those that are judged in a new way.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Target;
use crate::mutate::mutate;

/// Inputs kept for one way of being judged.
const KEPT_A_WAY: usize = 8;
/// Ways of being judged that are told apart.
const WAYS_MAX: usize = 256;
/// Saved inputs are small, so that the corpus stays so.
const SAVED_BYTES_MAX: usize = 4096;

/// What a run of one target found.
#[derive(Debug, Default)]
pub struct Found {
    /// Inputs tried.
    pub executions: u64,
    /// Of these, accepted.
    pub accepted: u64,
    /// Ways in which inputs were judged.
    pub ways: usize,
    /// An input that made the target panic.
    pub crash: Option<Vec<u8>>,
}

/// Where a target's corpus lies.
pub fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// What a target begins with: its samples, and its corpus in the order of names.
///
/// # Errors
/// A file cannot be read.
pub fn inputs(target: &Target) -> std::io::Result<Vec<Vec<u8>>> {
    let mut inputs = (target.samples)();
    let dir = corpus(target);
    if dir.is_dir() {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            paths.push(entry?.path());
        }
        paths.sort_unstable();
        for path in paths {
            inputs.push(std::fs::read(path)?);
        }
    }
    Ok(inputs)
}

/// How a target judges an input, without the numbers that make each input's reason its own; `None` if it panics.
pub fn judge(target: &Target, bytes: &[u8]) -> Option<String> {
    let judged = catch_unwind(AssertUnwindSafe(|| (target.judge)(bytes))).ok()?;
    Some(match judged {
        Ok(()) => String::new(),
        Err(why) => why.chars().filter(|letter| !letter.is_ascii_hexdigit()).collect(),
    })
}

/// The inputs that are worth mutating, by how they were judged.
#[derive(Debug, Default)]
pub struct Pool {
    ways: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Pool {
    fn add(&mut self, way: String, bytes: &[u8]) {
        if let Some(kept) = self.ways.get_mut(&way) {
            if kept.len() < KEPT_A_WAY {
                kept.push(bytes.to_vec());
            } else if bytes.len() < kept[0].len() {
                kept[0] = bytes.to_vec();
            }
        } else if self.ways.len() < WAYS_MAX {
            self.ways.insert(way, vec![bytes.to_vec()]);
        }
    }

    fn pick(&self, rng: &mut SmallRng) -> &[u8] {
        // What is accepted leads furthest: half of the time it is one of these.
        let sound = self.ways.get("").filter(|_| rng.random());
        let kept = sound.or_else(|| self.ways.values().nth(rng.random_range(0..self.ways.len().max(1))));
        kept.map_or(&[], |kept| &kept[rng.random_range(0..kept.len())])
    }

    /// The smallest small input of each way.
    pub fn smallest(&self) -> impl Iterator<Item = &[u8]> {
        self.ways
            .values()
            .filter_map(|kept| kept.iter().map(Vec::as_slice).min_by_key(|bytes| bytes.len()))
            .filter(|bytes| bytes.len() <= SAVED_BYTES_MAX)
    }
}

/// Mutates a target's inputs for so long, or until one makes it panic.
///
/// # Errors
/// The corpus cannot be read.
#[allow(clippy::disallowed_methods, reason = "a person says for how long")]
pub fn run(target: &Target, seed: u64, time: Duration) -> std::io::Result<(Found, Pool)> {
    let (begun, mut rng) = (Instant::now(), SmallRng::seed_from_u64(seed));
    let (mut found, mut pool) = (Found::default(), Pool::default());
    let mut samples = inputs(target)?.into_iter();
    let mut bytes = Vec::new();
    while begun.elapsed() < time {
        // The clock is slower than most targets.
        for _ in 0..16 {
            match samples.next() {
                Some(sample) => bytes = sample,
                None => {
                    bytes.clear();
                    bytes.extend_from_slice(pool.pick(&mut rng));
                    let other = pool.pick(&mut rng).to_vec();
                    mutate(&mut bytes, &other, &mut rng);
                    if rng.random() {
                        (target.fix)(&mut bytes);
                    }
                }
            }
            found.executions += 1;
            let Some(way) = judge(target, &bytes) else {
                found.crash = Some(bytes);
                return Ok((found, pool));
            };
            found.accepted += u64::from(way.is_empty());
            pool.add(way, &bytes);
        }
    }
    found.ways = pool.ways.len();
    Ok((found, pool))
}
