//! What `/proc` says of this process. Parsing apart from reading, so that it is tested on fixed texts.

use std::{fs, time::Duration};

/// Clock ticks a second in `/proc`: `USER_HZ`, which Linux keeps at 100 on x86-64 and aarch64 whatever the kernel's own rate is.
const USER_HZ: u64 = 100;

/// CPU time, user and system, since the start.
pub(crate) fn cpu_time() -> Option<Duration> {
    let ticks = stat_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?.cpu;
    Some(from_ticks(ticks))
}

/// Start of the process, in seconds since the epoch.
pub(crate) fn start_time_seconds() -> Option<f64> {
    let after_boot = stat_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?.start;
    let boot = boot_time(&fs::read_to_string("/proc/stat").ok()?)?;
    Some(
        Duration::from_secs(boot)
            .saturating_add(from_ticks(after_boot))
            .as_secs_f64(),
    )
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    kib_field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Number of open descriptors, without the one that counts them.
pub(crate) fn open_descriptors() -> Option<u64> {
    let counted = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(counted.saturating_sub(1)).ok()
}

/// Number of threads.
pub(crate) fn threads() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    field(&status, "Threads:")?.trim().parse().ok()
}

#[derive(Debug, PartialEq, Eq)]
struct Ticks {
    cpu: u64,
    start: u64,
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000 / USER_HZ))
}

fn stat_ticks(stat: &str) -> Option<Ticks> {
    // The second field is the command's name in parentheses and may hold spaces and parentheses itself: begin after the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc(5) counts from 1 and two fields lie before: utime 14, stime 15, starttime 22.
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    Some(Ticks {
        cpu: field(14)?.saturating_add(field(15)?),
        start: field(22)?,
    })
}

fn boot_time(stat: &str) -> Option<u64> {
    field(stat, "btime ")?.trim().parse().ok()
}

fn kib_field(status: &str, name: &str) -> Option<u64> {
    let kib: u64 = field(status, name)?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 1234 1000000 500 18446744073709551615";

    #[test]
    fn stat_with_parentheses_in_the_name() {
        assert_eq!(
            stat_ticks(STAT),
            Some(Ticks {
                cpu: 400,
                start: 1234
            })
        );
        assert_eq!(stat_ticks("42 (a) S 1 2"), None);
        assert_eq!(stat_ticks(""), None);
    }

    #[test]
    fn ticks_are_hundredths_of_a_second() {
        assert_eq!(from_ticks(1234), Duration::from_millis(12_340));
    }

    #[test]
    fn status_fields() {
        let status = "Name:\tx\nVmRSS:\t    1024 kB\nThreads:\t9\n";
        assert_eq!(kib_field(status, "VmRSS:"), Some(1_048_576));
        assert_eq!(kib_field("VmRSS:\t12 MB\n", "VmRSS:"), None);
        assert_eq!(
            boot_time("cpu 1 2 3\nbtime 1700000000\n"),
            Some(1_700_000_000)
        );
    }

    #[test]
    fn this_process_has_all_of_them() {
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(open_descriptors().unwrap() >= 3);
        assert!(threads().unwrap() >= 1);
        assert!(cpu_time().is_some());
        assert!(start_time_seconds().unwrap() > 1.6e9);
    }
}
