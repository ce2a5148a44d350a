//! CRC32C of short pieces, in three lanes at once.
//!
//! The CPU's instruction takes eight bytes, and has its result only three cycles later. A single chain of it waits two of
//! three cycles, and payloads of a few hundred bytes are too short for the interleaving of the `crc32c` crate, which begins
//! at 768 bytes. Here a piece is split into three equal lanes whose sums are joined by a carry-less multiplication: a sum
//! that is followed by `n` bytes is multiplied by x^(8n) modulo the polynomial (V. Gopal and others, "Fast CRC computation
//! for iSCSI polynomial using CRC32 instruction", Intel 2011; P. Cawley, "Faster CRC32-C on x86", 2023).
//!
//! Invariants: (1) the same result as any other CRC32C; (2) the one unsafe block of this crate is the call of a function
//! for a CPU that was asked whether it is one.

#![allow(unsafe_code)]

/// Longer pieces are left to the crate.
const MAX_BYTES: usize = 3 * 8 * LANE_WORDS_MAX;
const LANE_WORDS_MAX: usize = 42;
/// Shorter ones are not worth the joining.
const MIN_BYTES: usize = 3 * 8 * 2;

/// CRC32C of `bytes` going on from `seed`, if the piece is short and the CPU can do it.
#[inline]
pub(super) fn crc32c_from(seed: u32, bytes: &[u8]) -> Option<u32> {
    if bytes.len() > MAX_BYTES {
        return None;
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") && std::arch::is_x86_feature_detected!("pclmulqdq") {
        // SAFETY: the function is safe but for the instructions that it uses, and the CPU was just asked for them.
        return Some(unsafe { x86::crc32c_from(seed, bytes) });
    }
    let _ = seed;
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64, _mm_cvtsi64_si128,
        _mm_cvtsi128_si64, _mm_xor_si128,
    };

    use super::{LANE_WORDS_MAX, MIN_BYTES};

    /// The polynomial without its highest term, bits reversed.
    const POLYNOMIAL: u32 = 0x82F6_3B78;

    /// By words of a lane: what takes a sum over one lane, and what over two.
    const SHIFTS: [[u64; 2]; LANE_WORDS_MAX + 1] = {
        let mut shifts = [[0; 2]; LANE_WORDS_MAX + 1];
        let mut words = 1;
        while words <= LANE_WORDS_MAX {
            // The multiplication of reversed bits and the instruction that reduces it add 33 to the exponent.
            shifts[words] = [x_to(64 * words - 33), x_to(128 * words - 33)];
            words += 1;
        }
        shifts
    };

    /// x^`exponent` modulo the polynomial, bits reversed.
    const fn x_to(exponent: usize) -> u64 {
        let mut power = 1 << 31;
        let mut nth = 0;
        while nth < exponent {
            power = (power >> 1) ^ if power & 1 == 1 { POLYNOMIAL } else { 0 };
            nth += 1;
        }
        power as u64
    }

    #[target_feature(enable = "sse4.2,pclmulqdq")]
    pub(super) fn crc32c_from(seed: u32, bytes: &[u8]) -> u32 {
        let mut sum = u64::from(!seed);
        let mut rest = bytes;
        if bytes.len() >= MIN_BYTES {
            let words = bytes.len() / 24;
            let (first, after) = bytes.split_at(8 * words);
            let (second, after) = after.split_at(8 * words);
            let (third, after) = after.split_at(8 * words);
            let (mut second_sum, mut third_sum) = (0, 0);
            for ((a, b), c) in words_of(first).zip(words_of(second)).zip(words_of(third)) {
                sum = _mm_crc32_u64(sum, a);
                second_sum = _mm_crc32_u64(second_sum, b);
                third_sum = _mm_crc32_u64(third_sum, c);
            }
            let [over_one, over_two] = SHIFTS[words];
            let joined = _mm_xor_si128(shifted(sum, over_two), shifted(second_sum, over_one));
            sum = _mm_crc32_u64(0, _mm_cvtsi128_si64(joined) as u64) ^ third_sum;
            rest = after;
        }
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            sum = _mm_crc32_u64(sum, u64::from_le_bytes(*word));
        }
        // Four of the last bytes at once: a header has them, and each instruction waits for the one before.
        let (halves, bytes) = tail.as_chunks::<4>();
        let sum = halves.iter().fold(sum as u32, |sum, half| _mm_crc32_u32(sum, u32::from_le_bytes(*half)));
        !bytes.iter().fold(sum, |sum, byte| _mm_crc32_u8(sum, *byte))
    }

    #[target_feature(enable = "pclmulqdq")]
    fn shifted(sum: u64, by: u64) -> __m128i {
        _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(sum as i64), _mm_cvtsi64_si128(by as i64))
    }

    #[inline]
    fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().map(|word| u64::from_le_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_same_as_the_crate(bytes in proptest::collection::vec(any::<u8>(), 0..1100), seed in any::<u32>(), from in 0usize..9) {
            let bytes = bytes.get(from..).unwrap_or(&[]);
            if let Some(sum) = crc32c_from(seed, bytes) {
                prop_assert_eq!(sum, crc32c::crc32c_append(seed, bytes));
            }
        }
    }

    #[test]
    fn every_length() {
        let bytes: Vec<u8> = (0..MAX_BYTES + 2).map(|at| (at * at / 3) as u8).collect();
        for len in 0..bytes.len() {
            let sum =
                crc32c_from(7, &bytes[..len]).unwrap_or_else(|| crc32c::crc32c_append(7, &bytes[..len]));
            assert_eq!(sum, crc32c::crc32c_append(7, &bytes[..len]), "{len} bytes");
        }
    }
}
