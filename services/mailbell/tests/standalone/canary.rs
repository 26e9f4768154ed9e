//! `mailbell doctor --canary` with a real mail server: what it says, and that nothing stays.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use mailbell_test_servers::{Dovecot, DovecotOptions};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::machine::{Machine, send, text};

struct Scene {
    dovecot: Dovecot,
    machine: Machine,
    id: String,
}

impl Scene {
    /// A mailbox that is watched. `quirks`: of its provider.
    async fn start(quirks: &str) -> Self {
        let dovecot = Dovecot::start(DovecotOptions::default()).await.unwrap();
        let mut machine = Machine::new();
        let policy = format!(
            r#"{{"providers": [{{"name": "ours", "hosts": ["127.0.0.1"], "quirks": {{{quirks}}}}}]}}"#
        );
        let policy = machine.beside("policy.json", &policy);
        machine.start_with(&["--policy-file", &policy]).await;
        let id = machine.add_alice(dovecot.imap_port());
        let mut scene = Self {
            dovecot,
            machine,
            id,
        };
        let show = ["account", "show", &scene.id, "--json"].map(str::to_owned);
        let watched = |machine: &mut Machine| {
            let show: Vec<&str> = show.iter().map(String::as_str).collect();
            let shown: Value = serde_json::from_slice(&machine.run(&show).stdout).unwrap();
            shown.pointer("/state/health") == Some(&json!("watching"))
        };
        scene.machine.until("watched", watched).await;
        scene
    }

    fn doctor(&self, password: &str, more: &[&str]) -> Command {
        let file = self.machine.beside("canary-password", password);
        let mut command = self
            .machine
            .command(&["doctor", "--json", "--no-mailboxes"]);
        let canary = ["--canary", &self.id, "--canary-password-file", &file];
        command.args(canary).args(more);
        command
    }

    /// What it says of the canary: each verdict with its sentence and what to do.
    fn says(&self, password: &str, more: &[&str]) -> Vec<String> {
        let output = self.doctor(password, more).output().unwrap();
        canary(&output.stdout)
    }

    /// Neither is a message left nor a token that is good.
    async fn is_clean(&self, tokens: usize) {
        let mut raw = self.dovecot.imap("alice").await.unwrap();
        let status = raw.command("STATUS INBOX (MESSAGES)").await.unwrap();
        assert!(status.contains("MESSAGES 0"), "{status}");
        let listed = self.machine.run(&["token", "list", "--json"]);
        let listed = text(&listed.stdout);
        let tokens_of_it: Vec<&str> = listed
            .lines()
            .filter(|line| line.contains("mailbell doctor"))
            .collect();
        assert_eq!(tokens_of_it.len(), tokens, "{listed}");
        for token in tokens_of_it {
            let token: Value = serde_json::from_str(token).unwrap();
            let has = |name: &str, value: Value| token.get(name) == Some(&value);
            assert!(has("revoked", json!(true)), "{listed}");
            assert!(has("accounts", json!([self.id])), "{listed}");
            assert!(has("content", json!("key")), "{listed}");
        }
    }
}

fn canary(said: &[u8]) -> Vec<String> {
    let report: Value =
        serde_json::from_slice(said).unwrap_or_else(|error| panic!("{error}: {}", text(said)));
    let findings = report.get("findings").unwrap().as_array().unwrap().iter();
    let of_canary = findings.filter(|it| it.get("name") == Some(&json!("canary")));
    let field = |it: &Value, name: &str| it.get(name).unwrap().as_str().unwrap().to_owned();
    of_canary
        .map(|it| {
            let parts = ["verdict", "said", "advice"].map(|name| field(it, name));
            parts.join(": ")
        })
        .collect()
}

fn one(said: &[String], words: &[&str]) {
    assert_eq!(said.len(), 1, "{said:?}");
    for word in words {
        assert!(said.concat().contains(word), "{word}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_pushed_and_leaves_nothing_behind() {
    let mut scene = Scene::start("").await;
    let said = scene.says("secret\n", &[]);
    one(
        &said,
        &[
            "ok: a message was pushed ",
            " ms after it was in the mailbox, ",
        ],
    );
    scene.is_clean(1).await;

    // Each step that does not work is named, and what was made before it is removed.
    let said = scene.says("wrong\n", &[]);
    one(
        &said,
        &["fail: the mailbox: ", "refuses", "--canary-password-file"],
    );
    scene.is_clean(1).await;
    let nobody = "http://127.0.0.1:1";
    let said = scene.says("secret\n", &["--url", nobody]);
    one(
        &said,
        &[
            "fail: no device can connect: ",
            "refused",
            "see whether --url",
        ],
    );
    scene.is_clean(2).await;
    let said = scene.says("secret\n", &["--admin-url", nobody]);
    one(&said, &["fail: the admin API: ", "--admin-url"]);
    // Beside --kube too, wherever no cluster is.
    let said = scene.says("secret\n", &["--kube"]);
    one(&said, &["ok: a message was pushed "]);
    scene.is_clean(3).await;

    let paused = scene
        .machine
        .run(&["account", "update", &scene.id, "--pause"]);
    assert!(paused.status.success(), "{}", text(&paused.stderr));
    let said = scene.says("secret\n", &[]);
    one(
        &said,
        &[
            "fail: the mailbox is not watched: it is paused",
            "account show",
        ],
    );
    let alone = scene.machine.run(&["doctor", "--canary", &scene.id]);
    assert_eq!(alone.status.code(), Some(64));
    scene.is_clean(3).await;
    assert!(!scene.machine.said().contains("secret"));
    assert!(scene.machine.stop().await.success());
}

/// Where the watcher looks for mail every half an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_is_not_told_and_one_that_is_given_up_are_removed_too() {
    let mut scene = Scene::start(r#""noIdle": true, "pollSeconds": 1740"#).await;
    let said = scene.says("secret\n", &["--canary-wait", "1s"]);
    let words = [
        "fail: the message is in the mailbox, and no device was told within 1 s",
        "--canary-wait",
    ];
    one(&said, &words);
    scene.is_clean(1).await;

    for (number, signal) in [(2, Signal::INT), (3, Signal::TERM)] {
        let mut doctor = scene.doctor("secret\n", &["--canary-wait", "30m"]);
        let mut doctor: Child = doctor.stdout(Stdio::piped()).spawn().unwrap();
        let mut raw = scene.dovecot.imap("alice").await.unwrap();
        while !raw
            .command("STATUS INBOX (MESSAGES)")
            .await
            .unwrap()
            .contains("MESSAGES 1")
        {
            // It waits for half an hour, or has ended without a message.
            assert_eq!(doctor.try_wait().unwrap(), None);
            sleep(Duration::from_millis(20)).await;
        }
        raw.command("EXAMINE INBOX").await.unwrap();
        let message = raw.command("UID FETCH 1:* (BODY.PEEK[])").await.unwrap();
        assert!(
            message.contains("Subject: Mailbell doctor: canary"),
            "{message}"
        );
        drop(raw);
        send(doctor.id(), signal);
        let output = doctor.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(69));
        one(
            &canary(&output.stdout),
            &["fail: ended before the message was told"],
        );
        scene.is_clean(number).await;
    }
    assert!(scene.machine.stop().await.success());
}
