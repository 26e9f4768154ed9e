//! The list of values in the chart's README, which is made of the comments in `values.yaml`.

use std::fmt::Write as _;

use crate::{
    chart,
    values::{Documented, documented, file},
};

/// What comes after it is generated.
const MARK: &str = "<!-- Below: generated of values.yaml by `make chart-readme`. -->\n";

#[test]
fn the_readme_says_what_the_values_say() {
    let values = documented(&file("values.yaml"));
    assert!(values.len() > 15, "{values:?}");
    for value in &values {
        assert!(
            value.text.ends_with(['.', ':', '`']),
            "{} has no comment in values.yaml, or one that is no sentence: {:?}",
            value.name(),
            value.text
        );
    }
    let stored = file("README.md");
    let (by_hand, _) = stored
        .split_once(MARK)
        .unwrap_or_else(|| panic!("charts/mailbell/README.md lacks the line {MARK}"));
    let text = format!("{by_hand}{MARK}\n{}", table(&values));
    if std::env::var_os("MAILBELL_UPDATE_GOLDEN").is_some() {
        std::fs::write(chart("mailbell").join("README.md"), &text).unwrap();
        return;
    }
    assert!(
        stored == text,
        "charts/mailbell/README.md is stale: make chart-readme"
    );
}

fn table(values: &[Documented]) -> String {
    let mut text = "| value | usual | what it is |\n| --- | --- | --- |\n".to_owned();
    for value in values {
        let (name, said) = (value.name(), value.text.replace('|', r"\|"));
        writeln!(text, "| `{name}` | `{}` | {said} |", value.default).unwrap();
    }
    text
}
