//! An assertion that fails in the code under test is a finding like any other: its message is kept instead of printed,
//! but only on threads that run a seed.

use std::backtrace::Backtrace;
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
            let keep = TOLD.with_borrow_mut(|told| told.as_mut().map(|told| *told = info.to_string()));
            tracing::debug!(backtrace = %Backtrace::capture(), "panic");
            if keep.is_none() {
                before(info);
            }
        }));
    });
    TOLD.set(Some(String::new()));
    let result = work();
    (result, TOLD.take().unwrap_or_default())
}
