//! An assertion that fails in the code under test is a finding like any other: its message is kept instead of printed,
//! but only on threads that run a seed.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    /// What the last panic of this thread said, while it runs a seed.
    static TOLD: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `work` and returns what it returned, and what a panic in it said.
pub(crate) fn told<T>(work: impl FnOnce() -> T) -> (T, String) {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Empty unless RUST_BACKTRACE asks for it.
            let backtrace = Backtrace::capture();
            let told = || match backtrace.status() {
                BacktraceStatus::Captured => format!("{info}\n{backtrace}"),
                _ => info.to_string(),
            };
            let keep = TOLD.with_borrow_mut(|kept| kept.as_mut().map(|kept| *kept = told()));
            if keep.is_none() {
                before(info);
            }
        }));
    });
    TOLD.set(Some(String::new()));
    let result = work();
    (result, TOLD.take().unwrap_or_default())
}
