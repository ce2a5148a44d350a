//! Sizes as people write them: plain bytes, or with KiB, MiB or GiB.

/// Bytes that `text` says: `4096`, `64KiB`, `1 MiB`, `2GiB`.
///
/// # Errors
/// A sentence for the person who typed it.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        other => return Err(format!("unknown unit {other:?}: use plain bytes, KiB, MiB or GiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a size, such as 64KiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

/// MiB in `bytes`.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_or_none() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64KiB"), Ok(65_536));
        assert_eq!(parse("1 MiB"), Ok(1 << 20));
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        for bad in ["", "KiB", "64KB", "1.5MiB", "-1", "99999999999GiB"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
