//! Accounts, tokens and `listen` with a real mail server.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use mailbell_test_servers::{Certificate, Dovecot, DovecotOptions};
use serde_json::Value;

use crate::machine::{Machine, text};

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", text(bytes)))
}

fn password(machine: &Machine, password: &str) -> String {
    machine.beside("password", &format!("{password}\n"))
}

fn mail(subject: &str, text: &str) -> String {
    format!(
        "From: Anna Schmidt <anna@example.org>\r\nTo: alice@example.org\r\nSubject: {subject}\r\nMessage-ID: <{subject}@example.org>\r\n\r\n{text}\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_is_added_listened_to_and_removed() {
    let dovecot = Dovecot::start(DovecotOptions::default()).await.unwrap();
    let mut machine = Machine::new();
    machine.start().await;
    let url = format!("imap+plaintext://alice@127.0.0.1:{}", dovecot.imap_port());

    // The login is tried first.
    let wrong = password(&machine, "wrong");
    let refused = machine.run(&["account", "add", &url, "--password-file", &wrong]);
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused.stderr));
    assert_eq!(text(&refused.stderr).lines().count(), 1);
    let file = password(&machine, "secret");
    let add = [
        "account",
        "add",
        &url,
        "--password-file",
        &file,
        "--external-id",
        "a",
        "--json",
    ];
    let added = machine.run(&add);
    assert!(added.status.success(), "{}", text(&added.stderr));
    let added = json(&added.stdout);
    assert_eq!(added["created"], true);
    let id = added["id"].as_str().unwrap().to_owned();
    assert_eq!(json(&machine.run(&add).stdout)["created"], false);

    machine
        .until("watched", |machine| {
            let shown = json(&machine.run(&["account", "show", &id, "--json"]).stdout);
            shown["state"]["health"] == "watching"
        })
        .await;
    let checked = machine.run(&["account", "check", &id]);
    assert!(checked.status.success() && text(&checked.stdout).starts_with("ok"));
    assert!(text(&machine.run(&["account", "list"]).stdout).contains(&id));

    // A person listens, and a program.
    let cursor = machine.file("cursor").display().to_string();
    let args = [
        "listen",
        "--json",
        "--count",
        "1",
        "--exit-after",
        "60s",
        "--cursor-file",
        &cursor,
    ];
    let mut listener = machine
        .command(&args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let mut next = |kind: &str| -> Value {
        loop {
            let line: Value =
                serde_json::from_str(&lines.next().expect("a line").unwrap()).unwrap();
            if line["kind"] == kind {
                return line;
            }
        }
    };
    next("live");
    dovecot
        .deliver_lmtp("alice", mail("Lunch", "Shall we?").as_bytes())
        .await
        .unwrap();
    let arrived = next("arrived");
    assert_eq!(arrived["message"]["subject"], "Lunch");
    assert_eq!(arrived["message"]["from"][0]["address"], "anna@example.org");
    assert_eq!(
        (&arrived["account"], &arrived["alert"]),
        (&Value::from(id.as_str()), &Value::from(true))
    );
    assert!(arrived["latency_us"].as_i64().unwrap() >= 0);
    assert!(listener.wait().unwrap().success());

    // What came meanwhile is told to who goes on, as a person reads it, and once.
    dovecot
        .deliver_lmtp("alice", mail("Dinner", "Or \u{1b}[2Jlater?").as_bytes())
        .await
        .unwrap();
    let args = [
        "listen",
        "--count",
        "1",
        "--exit-after",
        "60s",
        "--cursor-file",
        &cursor,
    ];
    let shown = machine.run(&args);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let said = text(&shown.stdout);
    assert!(
        said.contains("● Anna Schmidt") && said.contains("Dinner") && !said.contains("Lunch"),
        "{said}"
    );
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let nothing = machine.run(&[
        "listen",
        "--count",
        "1",
        "--exit-after",
        "1s",
        "--cursor-file",
        &cursor,
    ]);
    assert_eq!(
        (nothing.status.code(), text(&nothing.stdout).as_str()),
        (Some(75), "")
    );

    let removed = machine.run(&["account", "remove", &id, "--yes"]);
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    let gone = machine.run(&["account", "show", &id]);
    assert_eq!(gone.status.code(), Some(66));
    let said = machine.said();
    assert!(
        !said.contains("secret") && !said.contains("alice"),
        "{said}"
    );
    assert!(machine.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_policy_is_told_of_mail() {
    let dovecot = Dovecot::start(DovecotOptions::default()).await.unwrap();
    let mut machine = Machine::new();
    machine.start_with(&["--most-content", "headers"]).await;
    let url = format!("imap+plaintext://alice@127.0.0.1:{}", dovecot.imap_port());
    let file = password(&machine, "secret");
    let add = [
        "account",
        "add",
        &url,
        "--password-file",
        &file,
        "--content",
        "key",
        "--json",
    ];
    let added = json(&machine.run(&add).stdout);
    assert_eq!(added["content"], "key");
    let id = added["id"].as_str().unwrap().to_owned();
    // As much as the installation allows, which is less than a token does.
    let lifted = machine.run(&["account", "update", &id, "--content", "preview", "--json"]);
    assert_eq!(json(&lifted.stdout)["content"], "preview");
    let shown = text(&machine.run(&["account", "show", &id]).stdout);
    assert!(shown.contains("content     preview"), "{shown}");
    machine
        .until("watched", |machine| {
            let shown = json(&machine.run(&["account", "show", &id, "--json"]).stdout);
            shown["state"]["health"] == "watching"
        })
        .await;
    let args = ["listen", "--json", "--count", "1", "--exit-after", "60s"];
    let mut listener = machine
        .command(&args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let mut next = |kind: &str| -> Value {
        loop {
            let line: Value =
                serde_json::from_str(&lines.next().expect("a line").unwrap()).unwrap();
            if line["kind"] == kind {
                return line;
            }
        }
    };
    assert_eq!(next("connected")["content"], "headers");
    next("live");
    dovecot
        .deliver_lmtp("alice", mail("Lunch", "Shall we?").as_bytes())
        .await
        .unwrap();
    let arrived = next("arrived");
    assert_eq!(arrived["message"]["subject"], "Lunch");
    assert_eq!(arrived["message"]["preview"], "");
    assert!(listener.wait().unwrap().success());
    assert_eq!(machine.stop().await.code(), Some(0));
}

#[tokio::test]
async fn with_a_certificate_its_commands_find_it_by_a_name_of_it() {
    let certificate = Certificate::for_names(&["localhost"]);
    let mut machine = Machine::new();
    let cert = machine.beside("cert.pem", &certificate.certificate_pem);
    let key = machine.beside("key.pem", &certificate.key_pem);
    let ca = machine.beside("ca.pem", &certificate.authority_pem);
    let args = ["--tls-cert", &cert, "--tls-key", &key];
    machine.start_with(&args).await;
    machine
        .until("greeted", |machine| {
            machine.said().contains("https://localhost:")
        })
        .await;
    let mut listener = machine
        .command(&["listen", "--json", "--ca", &ca, "--exit-after", "60s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let kinds = lines.map(|line| json(line.unwrap().as_bytes())["kind"].clone());
    let live = kinds.take_while(|kind| kind != "disconnected");
    assert!(live.into_iter().any(|kind| kind == "live"));
    listener.kill().unwrap();
    listener.wait().unwrap();
    assert!(machine.stop().await.success());
}

#[tokio::test]
async fn a_token_of_no_use_is_refused_for_good() {
    let mut machine = Machine::new();
    machine.start().await;
    let minted = json(
        &machine
            .run(&["token", "mint", "--whole-tenant", "--json"])
            .stdout,
    );
    let (token, id) = (
        minted["token"].as_str().unwrap(),
        minted["id"].as_str().unwrap(),
    );
    let bare = machine.run(&["token", "mint", "--whole-tenant", "--ttl", "1h"]);
    assert_eq!(text(&bare.stdout).trim().split('.').count(), 3);
    let revoked = machine.run(&["token", "revoke", id]);
    assert!(revoked.status.success());
    assert!(text(&machine.run(&["token", "list"]).stdout).contains("revoked"));
    for wrong in [token, "nonsense"] {
        let mut listen = machine.command(&["listen", "--exit-after", "30s"]);
        let output = listen.env("MAILBELL_TOKEN", wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(77), "{}", text(&output.stderr));
        assert!(!text(&output.stderr).contains(wrong));
    }
}

#[tokio::test]
async fn how_the_mailboxes_are_shared_is_shown() {
    let mut machine = Machine::new();
    machine.start().await;
    let shown = machine.run(&["shards"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let page = text(&shown.stdout);
    assert!(page.contains("accounts    0, 0 without an owner"), "{page}");
    assert!(
        page.lines().all(|line| line.chars().count() <= 100),
        "{page}"
    );
    let board = json(&machine.run(&["shards", "--json"]).stdout);
    assert_eq!(board["totals"]["accounts_unowned"], 0);
    assert!(board["members"].is_array() && board["steady"].is_boolean());
    assert!(machine.run(&["shards", "--check"]).status.success());
    let refused = machine.run(&["watcher", "drain", "nobody"]);
    assert_eq!(refused.status.code(), Some(66));
    let said = text(&refused.stderr);
    assert!(
        said.contains("there is no watcher nobody") && said.lines().count() == 1,
        "{said}"
    );
    assert!(machine.stop().await.success());
}

#[test]
fn without_an_installation_it_says_what_to_do() {
    let machine = Machine::new();
    for args in [&["account", "list"][..], &["token", "list"], &["listen"]] {
        let output = machine.run(args);
        assert_eq!(output.status.code(), Some(69), "{args:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("mailbell standalone") && said.lines().count() == 1,
            "{said}"
        );
    }
    let help = machine.run(&["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("mailbell listen"));
    assert_eq!(machine.run(&["nonsense"]).status.code(), Some(64));
    let completions = machine.run(&["completions", "bash"]);
    assert!(text(&completions.stdout).contains("_mailbell"));
}
