//! The alerts of the chart `mailbell` are about metrics that there are.

use std::{collections::BTreeSet, fs, path::Path};

use crate::machine::{Machine, get};

/// The names of ours in the alerts' expressions.
fn names() -> BTreeSet<String> {
    let rules = "../../charts/mailbell/files/alerts.yaml";
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join(rules);
    let rules = fs::read_to_string(rules).unwrap();
    let lines = rules.lines().map(str::trim);
    let expressions: Vec<&str> = lines
        .filter_map(|line| line.strip_prefix("expr: "))
        .collect();
    assert_eq!(expressions.len(), rules.matches("- alert: ").count());
    let words = expressions.iter().flat_map(|text| {
        text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
    });
    let ours = words.filter(|word| word.starts_with("mailbell_"));
    ours.map(str::to_owned).collect()
}

/// Families that serve nothing before the first is counted, or without TLS, or a server of theirs, by the names that their crates register them with.
fn served_later() -> [String; 6] {
    [
        format!(
            "mailbell_{}_total",
            mailbell::roles::server_certificates::RELOADS
        ),
        format!("mailbell_{}_total", mailbell_bus::metrics::APPENDS),
        format!("mailbell_{}_total", mailbell_gateway::metrics::REFUSED),
        format!("mailbell_{}_seconds", mailbell::certificate::EXPIRY),
        format!("mailbell_{}_total", mailbell_watcher::metrics::LOGINS),
        format!("mailbell_{}", mailbell_watcher::metrics::HELD_BACK),
    ]
}

/// Each of those that are meant is in what a process serves at `/metrics`, or will be.
pub(crate) fn are_about(metrics: &str, meant: impl Fn(&str) -> bool) {
    let meant: Vec<String> = names().into_iter().filter(|name| meant(name)).collect();
    assert!(meant.len() > 2, "{meant:?}");
    for name in meant {
        let mut samples = metrics.lines().filter_map(|line| line.strip_prefix(&name));
        let is_served = samples.any(|rest| rest.starts_with(['{', ' ']));
        assert!(
            is_served || served_later().contains(&name),
            "an alert is about {name}, which nobody serves: {metrics}"
        );
    }
}

#[tokio::test]
async fn each_alert_is_about_what_the_roles_serve() {
    let mut machine = Machine::new();
    machine.start().await;
    let http = machine.addresses().unwrap()["http"]
        .as_str()
        .unwrap()
        .to_owned();
    let metrics = get(&http, "/metrics").unwrap();
    are_about(&metrics, |name| !name.starts_with("mailbell_operator_"));
}
