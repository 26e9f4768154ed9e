//! Figures from many runs, and how they are printed.

use std::time::Duration;

/// The value below which so many percent of the values lie; zero if there are none.
pub(crate) fn percentile(values: &[Duration], percent: usize) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Seconds, as a cell of a table.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Prints a row of a table.
pub(crate) fn row<const N: usize>(cells: [String; N]) {
    println!("| {} |", cells.join(" | "));
}

/// Prints the title and the head of a table.
pub(crate) fn head<const N: usize>(title: &str, cells: [&str; N]) {
    println!(
        "\n{title}\n\n| {} |\n|{}",
        cells.join(" | "),
        "---|".repeat(N)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let of = |values: &[u64], percent| {
            let values: Vec<Duration> = values.iter().copied().map(Duration::from_secs).collect();
            percentile(&values, percent).as_secs()
        };
        assert_eq!(of(&[], 50), 0);
        assert_eq!(of(&[7], 50), 7);
        assert_eq!(of(&[3, 1, 2], 50), 2);
        assert_eq!(of(&[4, 3, 2, 1], 50), 2);
        assert_eq!(of(&[4, 3, 2, 1], 99), 4);
        assert_eq!(of(&[4, 3, 2, 1], 100), 4);
    }
}
