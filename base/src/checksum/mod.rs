//! CRC32C, seeded and resumable. Hides what computes it: the `crc32c` crate, or lanes of our own for short pieces.

mod lanes;

/// CRC32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_from(0, bytes)
}

/// CRC32C of `bytes`, going on from `seed`: an earlier checksum, or an identity that makes equal bytes of another
/// file differ.
pub fn crc32c_from(seed: u32, bytes: &[u8]) -> u32 {
    lanes::crc32c_from(seed, bytes).unwrap_or_else(|| crc32c::crc32c_append(seed, bytes))
}

/// A 64-bit mix of two words (the finalizer of splitmix64): links checksums into a chain. Not cryptographic.
pub fn mix64(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(25) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c_from(crc32c(b"1234"), b"56789"), 0xE306_9283);
    }
}
