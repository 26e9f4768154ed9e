//! Durations as people write them.

use std::time::Duration;

/// A century. Nobody means more, and an instant that lies so far ahead can be told.
const MOST: Duration = Duration::from_secs(36_500 * 24 * 3600);

/// `90d`, `12h`, `30m`, `10s`, or a plain number of seconds; a century at most.
///
/// # Errors
/// One line that says how it is written.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and a unit, such as 90d, 12h, 30m or 10s".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(unit)
        .map(Duration::from_secs)
        .filter(|duration| *duration <= MOST)
        .ok_or_else(|| "at most 36500d".to_owned())
}

/// How long ago something was, as a person says it.
#[must_use]
pub fn age(now_ms: i64, then_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        // Clocks differ: what is a little in the future is now.
        ..45 => "just now".to_owned(),
        45..3600 => format!("{} min ago", (seconds + 30).max(60) / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        86_400..172_800 => "yesterday".to_owned(),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        let seconds = |text: &str| parse(text).map(|duration| duration.as_secs());
        assert_eq!(seconds("90d"), Ok(90 * 86_400));
        assert_eq!(seconds("12h"), Ok(43_200));
        assert_eq!(
            (seconds("2m"), seconds("3s"), seconds("4"), seconds("1w")),
            (Ok(120), Ok(3), Ok(4), Ok(604_800))
        );
        for wrong in ["", "d", "1y", "1.5h", "-1s", "99999999999999999999d", "1 h"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        // Whoever waits so long adds it to the time of now.
        assert_eq!(seconds("36500d"), Ok(36_500 * 86_400));
        for long in ["36501d", "9999999999999999999", "9999999999999999999w"] {
            assert_eq!(seconds(long), Err("at most 36500d".to_owned()), "{long}");
        }
    }

    #[test]
    fn ages_as_people_say_them() {
        let ago = |seconds: i64| age(1_000_000_000, 1_000_000_000 - seconds * 1000);
        for (seconds, said) in [
            (-100, "just now"),
            (0, "just now"),
            (44, "just now"),
            (45, "1 min ago"),
            (180, "3 min ago"),
            (3599, "60 min ago"),
            (3600, "1 h ago"),
            (7300, "2 h ago"),
            (90_000, "yesterday"),
            (3 * 86_400, "3 days ago"),
        ] {
            assert_eq!(ago(seconds), said, "{seconds}");
        }
    }
}
