//! The file of mail providers, from the start and while it runs.

use mailbell_test_servers::{Dovecot, DovecotOptions};
use rustix::process::Signal;
use serde_json::Value;

use crate::machine::{Machine, get, text};

fn providers(machine: &Machine, rest: &str) -> String {
    let text = format!(r#"{{"providers": [{{"name": "ours", "hosts": ["127.0.0.1"]{rest}}}]}}"#);
    machine.beside("providers.json", &text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_paused_by_its_file_and_a_file_that_makes_no_sense_changes_nothing() {
    let dovecot = Dovecot::start(DovecotOptions::default()).await.unwrap();
    let mut machine = Machine::new();
    let file = providers(&machine, r#", "limits": {"loginsPerSecond": 0}"#);
    let any = "127.0.0.1:0";
    let refused = machine.run(&[
        "standalone",
        "--push-listen",
        any,
        "--admin-listen",
        any,
        "--http-listen",
        any,
        "--providers-file",
        &file,
    ]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(
        said.contains("limits.loginsPerSecond: 0 is not between 1 and 100000"),
        "{said}"
    );

    providers(&machine, "");
    machine.start_with(&["--providers-file", &file]).await;
    let url = format!("imap+plaintext://alice@127.0.0.1:{}", dovecot.imap_port());
    let password = machine.beside("password", "secret\n");
    let added = machine.run(&[
        "account",
        "add",
        &url,
        "--password-file",
        &password,
        "--json",
    ]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    let added: Value = serde_json::from_slice(&added.stdout).unwrap();
    let id = added["id"].as_str().unwrap().to_owned();
    let code = |machine: &Machine| {
        let shown = machine.run(&["account", "show", &id, "--json"]);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["state"]["code"].clone()
    };
    machine
        .until("watched", |machine| code(machine) == "watching")
        .await;

    providers(&machine, r#", "paused": true"#);
    machine.signal(Signal::HUP);
    machine
        .until("paused", |machine| code(machine) == "provider-paused")
        .await;
    let checked = machine.run(&["account", "check", &id]);
    assert!(!checked.status.success());
    let said = text(&checked.stdout) + &text(&checked.stderr);
    assert!(said.contains("lets nobody connect"), "{said}");

    machine.beside("providers.json", "{");
    machine.signal(Signal::HUP);
    let http = machine.addresses().unwrap()["http"]
        .as_str()
        .unwrap()
        .to_owned();
    let refused = |number: u8| format!("mailbell_watcher_providers_refused {number}");
    let tells = |line: String| {
        let http = http.clone();
        move |_: &mut Machine| get(&http, "/metrics").is_ok_and(|text| text.contains(&line))
    };
    machine.until("refused", tells(refused(1))).await;
    assert_eq!(code(&machine), "provider-paused");

    providers(&machine, "");
    machine.signal(Signal::HUP);
    machine
        .until("watched again", |machine| code(machine) == "watching")
        .await;
    machine.until("good again", tells(refused(0))).await;
    assert!(machine.stop().await.success());
}
