//! Places at which a test kills the process, to see what a crash right there leaves behind.
//!
//! Without the feature `failpoints` a [`failpoint!`](crate::failpoint!) is nothing at all. With it, a process whose
//! environment says `MAILBELL_FAILPOINT=<name>` ends by SIGABRT when it comes to the place of that name; `<name>:<n>` means
//! the n-th time. No image is ever built with it.

/// `MAILBELL_FAILPOINT=<name>[:<n>]`
pub const VARIABLE: &str = "MAILBELL_FAILPOINT";

/// Marks a place by name.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint::reached($name)
    };
}

/// Comes to the place of this name. Use [`failpoint!`](crate::failpoint!), which shows up in a search for all places.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn reached(_name: &'static str) {}

/// Comes to the place of this name. Use [`failpoint!`](crate::failpoint!), which shows up in a search for all places.
#[cfg(feature = "failpoints")]
pub fn reached(name: &'static str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };
    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static TIMES: AtomicU64 = AtomicU64::new(0);
    let armed = ARMED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    if let Some((place, nth)) = armed
        && place == name
        && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == *nth
    {
        // Nothing is flushed and no destructor runs: as near to a crash as a process can bring about itself.
        std::process::abort();
    }
}

/// `<name>[:<n>]`; nothing for an empty name or an `n` that is no number above 0.
#[cfg(any(feature = "failpoints", test))]
fn parse(text: &str) -> Option<(String, u64)> {
    let (name, nth) = match text.split_once(':') {
        Some((name, nth)) => (name, nth.parse().ok().filter(|nth| *nth > 0)?),
        None => (text, 1),
    };
    (!name.is_empty()).then(|| (name.to_owned(), nth))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_with_and_without_a_count() {
        assert_eq!(parse("a"), Some(("a".to_owned(), 1)));
        assert_eq!(parse("a:3"), Some(("a".to_owned(), 3)));
        for bad in ["", ":2", "a:", "a:0", "a:x"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        // Not armed here: passing it does nothing.
        crate::failpoint!("a");
    }
}
