//! Quantities as Kubernetes writes them: `4Gi`, `1.5G`, `2e9`.

/// How much it is, without what is left over of a whole number. `None`: it is no quantity, or more than fits.
pub(super) fn whole(text: &str) -> Option<u64> {
    let end = text
        .find(|it: char| !it.is_ascii_digit() && it != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let (tens, twos) = match unit {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => (unit.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?, 0),
    };
    let (before, after) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("{before}{after}").parse().ok()?;
    let tens = tens.checked_sub(i32::try_from(after.len()).ok()?)?;
    let scale = 10_u128.checked_pow(tens.unsigned_abs())?;
    let digits = digits.checked_mul(1 << twos)?;
    let all = if tens < 0 {
        digits / scale
    } else {
        digits.checked_mul(scale)?
    };
    u64::try_from(all).ok()
}

#[test]
fn a_quantity_is_read_as_kubernetes_writes_it() {
    for (text, expected) in [
        ("0", 0),
        ("128974848", 128_974_848),
        ("129e6", 129_000_000),
        ("1E3", 1_000),
        ("2e+9", 2_000_000_000),
        ("5e-1", 0),
        ("129M", 129_000_000),
        ("128974848000m", 128_974_848),
        ("123Mi", 128_974_848),
        ("1.5Gi", 3 << 29),
        (".5Ki", 512),
        ("1.k", 1_000),
        ("2G", 2_000_000_000),
        ("4Ti", 4 << 40),
        ("1E", 1_000_000_000_000_000_000),
        ("15Ei", 15 << 60),
    ] {
        assert_eq!(whole(text), Some(expected), "{text}");
    }
    for text in [
        "",
        ".",
        "Gi",
        "-1Gi",
        "1 Gi",
        "1gi",
        "1..5",
        "1.5.5",
        "1e",
        "1e1.5",
        "16Ei",
        "1e40",
        "1e-40",
        "1e99999999999",
        "much",
    ] {
        assert_eq!(whole(text), None, "{text}");
    }
}
