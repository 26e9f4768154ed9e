//! The policy file, from the start and while it runs.

use mailbell_test_servers::{Dovecot, DovecotOptions};
use rustix::process::Signal;
use serde_json::Value;

use crate::machine::{Machine, get, text};

/// A machine that watches a mailbox of a Dovecot, by a file of which it is told when it changes.
struct Watched {
    machine: Machine,
    file: String,
    account: String,
    _dovecot: Dovecot,
}

/// The one provider there is.
fn provider(rest: &str) -> String {
    format!(r#"{{"providers": [{{"name": "ours", "hosts": ["127.0.0.1"]{rest}}}]}}"#)
}

fn write(machine: &Machine, policy: &str) -> String {
    machine.beside("policy.json", policy)
}

impl Watched {
    async fn start() -> Self {
        let dovecot = Dovecot::start(DovecotOptions::default()).await.unwrap();
        let mut machine = Machine::new();
        let file = write(&machine, "{}");
        machine.start_with(&["--policy-file", &file]).await;
        let account = machine.add_alice(dovecot.imap_port());
        let mut watched = Self {
            machine,
            file,
            account,
            _dovecot: dovecot,
        };
        watched.until("watching").await;
        watched
    }

    fn say(&self, policy: &str) {
        assert_eq!(write(&self.machine, policy), self.file);
        self.machine.signal(Signal::HUP);
    }

    fn state(machine: &Machine, account: &str) -> Value {
        let shown = machine.run(&["account", "show", account, "--json"]);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown.get("state").unwrap().clone()
    }

    async fn until(&mut self, code: &str) {
        let account = self.account.clone();
        self.machine
            .until(code, |machine| {
                Self::state(machine, &account).get("code").unwrap() == code
            })
            .await;
    }

    async fn until_refused(&mut self, is_refused: u8) {
        let addresses = self.machine.addresses().unwrap();
        let http = addresses.get("http").unwrap().as_str().unwrap();
        let line = format!("mailbell_watcher_policy_refused {is_refused}");
        let tells = |_: &mut Machine| get(http, "/metrics").is_ok_and(|text| text.contains(&line));
        self.machine.until(&line, tells).await;
    }
}

#[test]
fn a_file_that_makes_no_sense_keeps_it_from_starting() {
    let machine = Machine::new();
    let file = write(&machine, &provider(r#", "limits": {"loginsPerSecond": 0}"#));
    let refused = machine.start_in_vain(&["--policy-file", &file]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(
        said.contains("limits.loginsPerSecond: 0 is not between 1 and 100000"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tenant_and_provider_are_paused_and_resumed_by_the_file() {
    let mut watched = Watched::start().await;
    let tenant = r#"{"pausedTenants": ["default"]}"#;
    let provider = provider(r#", "paused": true"#);
    for (policy, code, sentence) in [
        (tenant, "tenant-paused", "for this tenant now"),
        (&provider, "provider-paused", "to this mail provider now"),
    ] {
        watched.say(policy);
        watched.until(code).await;
        let state = Watched::state(&watched.machine, &watched.account);
        assert!(
            state["sentence"].as_str().unwrap().contains(sentence),
            "{state}"
        );
        let checked = watched.machine.run(&["account", "check", &watched.account]);
        assert!(!checked.status.success());
        let said = text(&checked.stdout) + &text(&checked.stderr);
        assert!(said.contains(sentence), "{said}");
        watched.say("{}");
        watched.until("watching").await;
    }
    assert!(watched.machine.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_makes_no_sense_changes_nothing_while_it_runs() {
    let mut watched = Watched::start().await;
    watched.say(&provider(r#", "paused": true"#));
    watched.until("provider-paused").await;
    watched.say("{");
    watched.until_refused(1).await;
    watched.until("provider-paused").await;
    watched.say("{}");
    watched.until("watching").await;
    watched.until_refused(0).await;
    assert!(watched.machine.stop().await.success());
}
