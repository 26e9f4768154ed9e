//! Work for one account beside others.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the work came to; `None`: it panicked. Whatever it had begun to change is to be thrown away.
pub fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
