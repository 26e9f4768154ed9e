//! The charts as files, by Helm alone: what they render, what they refuse, and what is said of their values. What a cluster makes of
//! them is tested in `api_server`.

#![cfg(test)]
mod alerts;
mod golden;
mod notes;
mod readme;
mod refusals;
mod types;
mod values;

use std::path::{Path, PathBuf};

use mailbell_test_cluster::{Binaries, MISSING};
use serde_json::Value;

/// The folder of a chart.
fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../charts")
        .join(name)
}

/// Helm, with a home of its own.
struct Helm {
    binaries: Binaries,
    home: tempfile::TempDir,
}

impl Helm {
    /// `None`, and a line on standard error: there is none here. With `CI` set that is a failure.
    fn find() -> Option<Self> {
        let Some(binaries) = Binaries::find() else {
            eprintln!("left out: {MISSING}");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        Some(Self { binaries, home })
    }

    /// What it says, and whether it worked.
    async fn run(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let helm = self.binaries.helm(self.home.path());
        let output = helm.run(arguments, input).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// The chart `mailbell` with these values, as it would be installed.
    async fn render(&self, values: &Value) -> (bool, String) {
        self.render_as("mailbell", "mail", values).await
    }

    /// By the name of this release, in this namespace.
    async fn render_as(&self, release: &str, namespace: &str, values: &Value) -> (bool, String) {
        let chart = chart("mailbell");
        let chart = chart.to_str().unwrap();
        let template = [
            "template",
            release,
            chart,
            "--namespace",
            namespace,
            "--values",
            "-",
        ];
        self.run(&template, &values.to_string()).await
    }
}
