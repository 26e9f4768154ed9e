//! The wall clock.

use std::time::{Duration, SystemTime};

/// Microseconds since the epoch.
pub(crate) fn now_us() -> i64 {
    since_epoch(|duration| duration.as_micros())
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> i64 {
    since_epoch(|duration| duration.as_millis())
}

/// Seconds since the epoch.
pub(crate) fn now_s() -> i64 {
    since_epoch(|duration| u128::from(duration.as_secs()))
}

fn since_epoch(unit: impl FnOnce(Duration) -> u128) -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(unit(since)).unwrap_or(i64::MAX)
}

/// A time in microseconds since the epoch.
pub(crate) fn at_us(us: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(us).unwrap_or_default())
}

/// Milliseconds of a period, as frames carry them.
pub(crate) fn millis(period: Duration) -> u32 {
    u32::try_from(period.as_millis()).unwrap_or(u32::MAX)
}
