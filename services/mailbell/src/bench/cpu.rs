//! CPU time and memory of running processes, from `/proc`.

use std::{fs, time::Duration};

/// CPU time that all threads of a process have used so far, to the nanosecond where the kernel counts so (`schedstat`), else in its
/// ticks of 10 ms. `None` if there is no such process.
pub(super) fn used(pid: u32) -> Option<Duration> {
    threads(pid).or_else(|| ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
}

/// A thread that ended is not in the sum; the processes measured here keep theirs.
fn threads(pid: u32) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // One that ended in this moment counts nothing.
        if let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) {
            sum = sum.saturating_add(schedstat(&text)?);
        }
    }
    (!sum.is_zero()).then_some(sum)
}

fn schedstat(text: &str) -> Option<Duration> {
    let nanos = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// User and system time of proc(5), fields 14 and 15, behind the command's name in parentheses.
fn ticks(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)?.saturating_add(field(15)?);
    Some(Duration::from_millis(ticks.saturating_mul(10)))
}

/// Resident memory in KiB. `None` if there is no such process.
pub(super) fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_proc_are_understood() {
        assert_eq!(schedstat("1500 20 3\n"), Some(Duration::from_nanos(1500)));
        let stat = "7 (a (b) c) S 1 7 7 0 -1 0 0 0 0 0 25 15 0 0 20 0 9 0 1 1 1";
        assert_eq!(ticks(stat), Some(Duration::from_millis(400)));
        assert_eq!(ticks("7 (a) S"), None);
    }

    #[test]
    fn this_process_has_used_some() {
        assert!(used(std::process::id()).is_some_and(|time| !time.is_zero()));
        assert_eq!(used(u32::MAX), None);
        assert!(resident_kib(std::process::id()).is_some_and(|kib| kib > 100));
        assert_eq!(resident_kib(u32::MAX), None);
    }
}
