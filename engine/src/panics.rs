//! Panics as values: a machine's ends its group, a shard's own ends the shard, and neither ends anything else.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs it; a panic ends as its text. What it was changing may be half done: the caller does not use that any more.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "not a text".into())
    })
}
