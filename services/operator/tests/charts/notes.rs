//! What is said after an installation.

use serde_json::{Value, json};

use crate::{Helm, chart};

impl Helm {
    /// As a person reads it.
    async fn notes(&self, values: &Value) -> String {
        let chart = chart("mailbell");
        let chart = chart.to_str().unwrap();
        let install = [
            "install",
            "mailbell",
            chart,
            "--dry-run=client",
            "--namespace",
            "mail",
            "--values",
            "-",
        ];
        let (installed, said) = self.run(&install, &values.to_string()).await;
        assert!(installed, "{said}");
        let (_, notes) = said.split_once("NOTES:\n").unwrap();
        notes.to_owned()
    }
}

/// Each of their sentences depends on a value or two.
#[tokio::test]
async fn the_notes_say_what_was_installed_and_what_comes_next() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let spec = json!({ "paused": true });
    for (values, said, not_said) in [
        (
            json!({}),
            &[
                "is installed for the namespace mail.",
                "of an installation, named main:\n\n    kubectl explain mailbell.spec",
                "kubectl --namespace mail apply -f mailbell.yaml",
                "helm --namespace mail test mailbell --logs",
            ][..],
            "It makes the installation",
        ),
        (
            json!({ "watchAllNamespaces": true, "installations": ["main", "else/two"] }),
            &[
                "is installed for all namespaces.",
                "named main or else/two:",
                "mailbell doctor --kube --namespace mail",
            ],
            "for the namespace",
        ),
        (
            json!({ "installations": [] }),
            &["say what you want of an installation:\n\n    kubectl explain"],
            "named",
        ),
        (
            json!({ "mailbell": { "create": true, "spec": spec } }),
            &[
                "It makes the installation main.",
                "kubectl --namespace mail get mailbell main --watch",
                "helm --namespace mail test mailbell --logs",
            ],
            "apply -f",
        ),
    ] {
        let notes = helm.notes(&values).await;
        for sentence in said {
            assert!(notes.contains(sentence), "{values}: {notes}");
        }
        assert!(!notes.contains(not_said), "{values}: {notes}");
    }
}
