//! Inputs from inputs: flips, numbers that decoders stumble over, cuts, copies, splices.

use rand::Rng;
use rand::rngs::SmallRng;

/// No input grows beyond this.
const BYTES_MAX: usize = 64 * 1024;

/// Numbers at the borders of what lengths and counts may be.
const NUMBERS: [u64; 14] =
    [0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0xFFFF_FFFF, u64::MAX];

/// Changes `bytes` a few times; `other` is another input.
pub(crate) fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut SmallRng) {
    for _ in 0..rng.random_range(1..=4) {
        once(bytes, other, rng);
    }
    bytes.truncate(BYTES_MAX);
}

fn once(bytes: &mut Vec<u8>, other: &[u8], rng: &mut SmallRng) {
    if bytes.is_empty() {
        bytes.extend_from_slice(&other[..other.len().min(64)]);
        return;
    }
    let at = rng.random_range(0..bytes.len());
    let end = (at + rng.random_range(1..=64)).min(bytes.len());
    match rng.random_range(0..12) {
        0..3 => bytes[at] ^= 1 << rng.random_range(0..8),
        3 => bytes[at] = rng.random(),
        4..7 => number(&mut bytes[at..], rng),
        7 => bytes.truncate(at),
        8 => drop(bytes.drain(at..end)),
        9 => {
            let copy = bytes[at..end].to_vec();
            let to = rng.random_range(0..=bytes.len());
            bytes.splice(to..to, copy);
        }
        10 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let upto = (from + rng.random_range(1..=256)).min(other.len());
            bytes.splice(at..end, other[from..upto].iter().copied());
        }
        _ => bytes[at..end].fill(0),
    }
}

/// A number of one, two, four or eight bytes: one at a border, or one near what was there.
fn number(bytes: &mut [u8], rng: &mut SmallRng) {
    let size = [1, 2, 4, 8][rng.random_range(0..4)].min(bytes.len());
    let mut held = [0; 8];
    held[..size].copy_from_slice(&bytes[..size]);
    let held = u64::from_le_bytes(held);
    let new = match rng.random_range(0..3) {
        0 => held.wrapping_add(1),
        1 => held.wrapping_sub(1),
        _ => NUMBERS[rng.random_range(0..NUMBERS.len())],
    };
    bytes[..size].copy_from_slice(&new.to_le_bytes()[..size]);
}
