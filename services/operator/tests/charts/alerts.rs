//! The alerts of the chart `mailbell`, by Prometheus' own checker. That its metrics are there is tested in `services/mailbell`.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::values::{file, parsed};

const RULES: &str = "files/alerts.yaml";

/// A sentence for whoever is woken, and what to do; the guide has it too.
#[test]
fn each_alert_says_what_is_wrong_and_what_to_do() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let rules = parsed(&file(RULES));
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 10);
    for rule in rules {
        let name = &rule["alert"];
        let text = |place: &str| {
            rule.pointer(place)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        assert!(
            ["critical", "warning"].contains(&text("/labels/severity")),
            "{name}"
        );
        assert!(text("/annotations/summary").len() > 10, "{name}");
        let row = format!("\n| {} | ", text("/alert"));
        assert!(
            guide.contains(&row),
            "docs/operating.md says nothing of {name}"
        );
        assert!(text("/annotations/description").ends_with('.'), "{name}");
        assert!(
            !text("/for").is_empty(),
            "{name}: one scrape that is missed would wake somebody"
        );
    }
}

/// And one alert, at least, of the scenes in `alerts.test.yaml` for each.
#[test]
fn each_alert_comes_when_it_should_and_not_before() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/charts/alerts.test.yaml");
    let scenes = std::fs::read_to_string(&tests).unwrap();
    let rules = parsed(&file(RULES));
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let fires = format!("alertname=\"{}\"", rule["alert"].as_str().unwrap());
        assert!(scenes.contains(&fires), "no scene in which {fires} comes");
    }
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/promtool");
    if !tool.is_file() {
        let missing = "no promtool: `make promtool` gets it from Debian";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("left out: {missing}");
        return;
    }
    let output = Command::new(tool)
        .args(["test", "rules"])
        .arg(tests)
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
}
