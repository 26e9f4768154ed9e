use mailbell_proto::push::v1::AccountState;
use serde_json::json;

use super::*;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn wanted() -> MailAccount {
    let object = json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "MailAccount",
        "metadata": { "name": "alice", "namespace": "mail", "generation": 3 },
        "spec": {
            "mailbell": "main",
            "server": { "host": "IMAP.Example.org", "user": "Alice" },
            "folders": ["inbox", "Work"],
        },
    });
    serde_json::from_value(object).unwrap()
}

/// As the admin API answers what it was asked to make.
fn there() -> Account {
    let asked = creation(&wanted(), "secret".to_owned());
    Account {
        id: "default.01".to_owned(),
        external_id: asked.external_id,
        server: asked.server,
        folders: asked.folders,
        managed_by: asked.managed_by,
        content: asked.content,
        revision: 7,
        ..Account::default()
    }
}

fn in_state(health: Health, code: &str, sentence: &str, mode: &str) -> Account {
    Account {
        state: Some(AccountState {
            health: health.into(),
            code: code.to_owned(),
            sentence: sentence.to_owned(),
            mode: mode.to_owned(),
            ..AccountState::default()
        }),
        last_arrival_ms: NOW * 1000 + 789,
        ..there()
    }
}

fn of(account: &Account) -> Result<Registered<'_>, Trouble> {
    Ok(Registered {
        account,
        password_version: Ok("uid/5/alice".to_owned()),
    })
}

#[test]
fn what_is_asked_for_is_complete_and_in_one_spelling() {
    let asked = creation(&wanted(), "secret".to_owned());
    let server = asked.server.unwrap();
    assert_eq!(
        (server.host.as_str(), server.port),
        ("imap.example.org", 993)
    );
    assert_eq!(
        (server.tls(), server.user.as_str()),
        (TlsMode::Implicit, "Alice")
    );
    assert_eq!(asked.folders, ["INBOX", "Work"]);
    assert_eq!(asked.external_id, "mailaccount/mail/alice");
    assert_eq!(asked.managed_by, asked.external_id);
    assert!(asked.no_check && asked.tenant == "default");
    assert_eq!(password_key(&wanted()), "alice");
    assert_eq!(wanted().spec.password.secret_name, "mail-passwords");
    let mut other = wanted();
    other.spec.server.tls = api::TlsMode::StartTls;
    other.spec.server.host = "[2001:DB8::1]".to_owned();
    let asked = creation(&other, String::new()).server.unwrap();
    assert_eq!((asked.host.as_str(), asked.port), ("2001:db8::1", 143));
    other.spec.server.port = Some(1143);
    assert_eq!(creation(&other, String::new()).server.unwrap().port, 1143);
}

#[test]
fn each_difference_is_seen() {
    assert!(is_right(&wanted(), &there()));
    let changes: [fn(&mut Account); 8] = [
        |it| it.server.as_mut().unwrap().host.push('x'),
        |it| it.server.as_mut().unwrap().port += 1,
        |it| it.server.as_mut().unwrap().user.push('x'),
        |it| it.server = None,
        |it| it.folders.truncate(1),
        |it| it.paused = true,
        |it| it.managed_by.clear(),
        |it| it.content = ContentLevel::Headers.into(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut account = there();
        change(&mut account);
        assert!(!is_right(&wanted(), &account), "{number}");
        assert_eq!(has_server(&wanted(), &account), number > 3, "{number}");
    }
    // Of what it was, nothing is left but its id.
    let asked = change(&wanted(), &there(), None);
    assert_eq!((asked.id.as_str(), asked.revision), ("default.01", 7));
    // Said in so many words: unset would leave what somebody else has set.
    assert_eq!(asked.content(), ContentLevel::Preview);
    assert_eq!((asked.paused, asked.password), (Some(false), None));
    let mut limited = wanted();
    limited.spec.content = api::Content::Key;
    assert!(!is_right(&limited, &there()));
    assert_eq!(
        change(&limited, &there(), None).content(),
        ContentLevel::Key
    );
    assert_eq!(
        creation(&limited, String::new()).content(),
        ContentLevel::Key
    );
}

#[test]
fn a_status_says_what_the_admin_api_says() {
    let account = in_state(Health::Watching, "ok", "New mail is told at once.", "idle");
    let said = status(&wanted(), &of(&account), now());
    assert_eq!(said.account.as_deref(), Some("default.01"));
    assert_eq!(
        (said.mode, said.observed_generation),
        (Some(AccountMode::Idle), Some(3))
    );
    assert_eq!(said.last_arrival, Some(Time(now())));
    assert_eq!(said.password_version.as_deref(), Some("uid/5/alice"));
    let ready = &said.conditions[0];
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("True", "Watching")
    );
    assert_eq!(ready.message, "New mail is told at once.");

    // Later, with another answer: since when is it so?
    let mut before = wanted();
    before.status = Some(said.clone());
    let later = Timestamp::from_second(NOW + 60).unwrap();
    let same = status(&before, &of(&account), later);
    assert_eq!(same, said);
    let sentence = "The password is wrong: set the right one.";
    let account = in_state(Health::ActionNeeded, "bad-credentials", sentence, "");
    let said = status(&before, &of(&account), later);
    let ready = &said.conditions[0];
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "BadCredentials")
    );
    assert_eq!((ready.message.as_str(), said.mode), (sentence, None));
    assert_eq!(ready.last_transition_time, Time(later));
}

#[test]
fn what_was_known_of_the_account_stays_known_in_trouble() {
    let account = in_state(Health::Watching, "ok", "", "poll");
    let mut before = wanted();
    before.status = Some(status(&wanted(), &of(&account), now()));
    let said = status(
        &before,
        &Err(Trouble::new("NoSecret", "there is none")),
        now(),
    );
    let ready = &said.conditions[0];
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "NoSecret")
    );
    assert_eq!(
        (said.account.as_deref(), said.mode),
        (Some("default.01"), None)
    );
    assert!(said.last_arrival.is_some() && said.password_version.is_some());
    let said = status(&before, &Err(Trouble::unknown("AdminAway", "no")), now());
    assert_eq!(said.conditions[0].status, "Unknown");
}

/// Nothing has happened to the mailbox: nobody is told by an event of each of thousands whose Secret is made anew.
#[test]
fn a_secret_that_has_gone_changes_nothing_but_the_sentence() {
    let account = in_state(Health::Watching, "ok", "New mail is told at once.", "idle");
    let mut before = wanted();
    let was = status(&before, &of(&account), now());
    before.status = Some(was.clone());
    let found = Registered {
        account: &account,
        password_version: Err(Trouble::new("NoSecret", "there is none: make it")),
    };
    let mut now_said = status(&before, &Ok(found), now());
    assert_eq!(said(&now_said), Some(("True", "Watching")));
    let sentence =
        "New mail is told at once. Its password cannot be read (there is none: make it).";
    assert_eq!(now_said.conditions[0].message, sentence);
    now_said.conditions.clone_from(&was.conditions);
    assert_eq!(now_said, was);
}

#[test]
fn any_code_makes_a_reason_that_kubernetes_takes() {
    for (code, reason) in [
        ("bad-credentials", "BadCredentials"),
        ("no-watcher", "NoWatcher"),
        ("421 x", "X"),
        ("\u{1b}é", ""),
        ("", ""),
    ] {
        assert_eq!(camel(code), reason, "{code:?}");
    }
    assert!(camel(&"x".repeat(5000)).len() <= 100);
    let odd = in_state(Health::Retrying, "é", "It is tried again.", "");
    let said = status(&wanted(), &of(&odd), now());
    assert_eq!(said.conditions[0].reason, "NotWatched");
}

/// Else each of thousands of mailboxes would have a warning when one provider is paused.
#[test]
fn no_pause_needs_somebody() {
    let reasons: Vec<String> = Pause::ALL
        .iter()
        .map(|pause| {
            let account = in_state(Health::Paused, pause.code(), "It is paused.", "");
            let said = status(&wanted(), &of(&account), now());
            said.conditions[0].reason.clone()
        })
        .collect();
    assert_eq!(reasons, ["Paused", "TenantPaused", "ProviderPaused"]);
    for reason in &reasons {
        assert!(goes_on_by_itself(reason), "{reason}");
    }
    for reason in ["BadCredentials", "NotWatched", "NoSecret", ""] {
        assert!(!goes_on_by_itself(reason), "{reason}");
    }
}

#[test]
fn mail_alone_is_no_news() {
    let account = in_state(Health::Watching, "ok", "", "idle");
    let said = status(&wanted(), &of(&account), now());
    let mut later = said.clone();
    later.last_arrival = Some(Time(Timestamp::from_second(NOW + 9).unwrap()));
    assert!(differs_in_arrival_only(&said, &later));
    later.mode = Some(AccountMode::Poll);
    assert!(!differs_in_arrival_only(&said, &later));
}
