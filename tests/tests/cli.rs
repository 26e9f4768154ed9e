//! The commands, as a user types them, against a real installation and a real mail server.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use mailbell_tests::{
    cli::{self, Said},
    installation::{Installation, Options, Part, imap_url, text_field},
    leaks, load,
    process::until,
    world::{SETTLE_LIMIT, World, WorldOptions, user},
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Runs a command that must fail with this code, saying why in one line.
async fn refused(installation: &Installation, code: i32, words: &str, args: &[&str]) -> Said {
    let said = installation.cli(args).await.unwrap();
    assert_eq!(said.code, Some(code), "{args:?}: {said:?}");
    assert!(said.err.contains(words), "{args:?}: {said:?}");
    assert!(said.out.is_empty(), "{args:?}: {said:?}");
    assert_eq!(said.err.trim_end().lines().count(), 1, "{args:?}: {said:?}");
    said
}

#[tokio::test]
async fn the_life_of_an_account() {
    let mut world = World::start(WorldOptions {
        users: 0,
        ..WorldOptions::default()
    })
    .await
    .unwrap();
    let name = user(7);
    world
        .dovecot
        .set_password(&name, leaks::PASSWORD)
        .await
        .unwrap();
    let installation = &world.installation;
    let url = imap_url(&name, world.dovecot.imap_port());
    let good = installation.password_file("good", leaks::PASSWORD).unwrap();
    let bad = installation.password_file("bad", "not-this-one").unwrap();
    let (good, bad) = (good.display().to_string(), bad.display().to_string());

    let none = installation.cli(&["account", "list"]).await.unwrap();
    assert!(none.ok().unwrap().contains("no accounts yet"));
    // A wrong password is found out at once, and nothing is stored.
    let said = refused(
        installation,
        77,
        "password",
        &["account", "add", &url, "--password-file", &bad],
    )
    .await;
    assert!(!said.all().contains("not-this-one"));
    let elsewhere = imap_url(&name, 1);
    let add_elsewhere = ["account", "add", &elsewhere, "--password-file", &good];
    refused(installation, 69, "Nothing answers", &add_elsewhere).await;
    let folder = [
        "account",
        "add",
        &url,
        "--password-file",
        &good,
        "--folder",
        "Nowhere",
    ];
    refused(installation, 65, "Nowhere", &folder).await;
    let list = installation
        .cli(&["account", "list", "--json"])
        .await
        .unwrap();
    assert_eq!(list.ok().unwrap(), "");

    let add = [
        "account",
        "add",
        &url,
        "--password-file",
        &good,
        "--external-id",
        "42",
        "--json",
    ];
    let added = json(&installation.cli(&add).await.unwrap().ok().unwrap());
    assert_eq!(added["created"], true);
    let id = added["id"].as_str().unwrap().to_owned();
    let again = json(&installation.cli(&add).await.unwrap().ok().unwrap());
    assert_eq!(
        (&again["created"], &again["id"]),
        (&Value::Bool(false), &added["id"])
    );

    until(SETTLE_LIMIT, "the account being watched", || async {
        let shown = installation
            .cli(&["account", "show", &id, "--json"])
            .await
            .unwrap();
        json(&shown.ok().unwrap())["state"]["health"] == "watching"
    })
    .await
    .unwrap();
    let shown = installation.cli(&["account", "show", &id]).await.unwrap();
    let shown = shown.ok().unwrap();
    assert!(
        shown.contains("watching") && shown.contains(&name),
        "{shown}"
    );
    let checked = installation
        .cli(&["account", "check", &id, "--json"])
        .await
        .unwrap();
    assert_eq!(json(&checked.ok().unwrap())["ok"], true);
    let listed = installation.cli(&["account", "list"]).await.unwrap();
    assert!(listed.ok().unwrap().contains(&id));

    let paused = installation
        .cli(&["account", "update", &id, "--pause", "--json"])
        .await
        .unwrap();
    assert_eq!(json(&paused.ok().unwrap())["paused"], true);
    let resumed = installation
        .cli(&["account", "update", &id, "--resume", "--json"])
        .await
        .unwrap();
    assert_eq!(json(&resumed.ok().unwrap())["paused"], false);
    let update = ["account", "update", &id, "--password-file", &bad];
    refused(installation, 77, "password", &update).await;
    refused(
        installation,
        64,
        "nothing to change",
        &["account", "update", &id],
    )
    .await;

    let remove = installation
        .cli(&["account", "remove", &id, "--yes"])
        .await
        .unwrap();
    remove.ok().unwrap();
    refused(installation, 66, "", &["account", "show", &id]).await;
    world.search_leaks().await.unwrap();
}

#[tokio::test]
async fn tokens_are_minted_listed_and_revoked() {
    let world = World::start(WorldOptions::default()).await.unwrap();
    let installation = &world.installation;
    let id = world.account(0).id.clone();
    let minted = installation
        .cli(&[
            "token",
            "mint",
            "--account",
            &id,
            "--ttl",
            "2h",
            "--label",
            "phone",
            "--json",
        ])
        .await
        .unwrap()
        .ok()
        .unwrap();
    let token_id = text_field(&minted, "id").unwrap();
    let plain = installation
        .cli(&["token", "mint", "--account", &id])
        .await
        .unwrap()
        .ok()
        .unwrap();
    assert_eq!(
        plain.trim().split('.').count(),
        3,
        "the token alone, as a JWT"
    );
    let list = installation
        .cli(&["token", "list"])
        .await
        .unwrap()
        .ok()
        .unwrap();
    assert!(list.contains(&token_id) && list.contains("phone") && list.contains("good"));
    let revoke = installation
        .cli(&["token", "revoke", &token_id])
        .await
        .unwrap();
    revoke.ok().unwrap();
    let list = installation
        .cli(&["token", "list", "--json"])
        .await
        .unwrap()
        .ok()
        .unwrap();
    let revoked: Vec<Value> = list
        .lines()
        .map(json)
        .filter(|token| token["revoked"] == true)
        .collect();
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0]["id"], token_id.as_str());
    let nobody = "default.01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let mint = ["token", "mint", "--account", nobody];
    refused(installation, 66, "", &mint).await;
}

#[tokio::test]
async fn listen_shows_what_arrives_and_goes_on_where_it_stopped() {
    let world = World::start(WorldOptions::default()).await.unwrap();
    let state = world.installation.state_dir();
    let cursor = state.join("cursor").display().to_string();
    let args = ["listen", "--json", "--count", "2", "--cursor-file", &cursor];
    let mut child = cli::command(state, args).unwrap().spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while json(&lines.next_line().await.unwrap().unwrap())["kind"] != "live" {}
    let second = ["listen", "--cursor-file", &cursor];
    refused(&world.installation, 73, "in use", &second).await;
    let numbers = world.deliver(0, 2).await.unwrap();
    let mut told = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let event = json(&line);
        if event["kind"] == "arrived" {
            assert_eq!(event["alert"], true);
            assert!(event["latency_us"].as_i64().unwrap() > 0);
            let subject = event["message"]["subject"].as_str().unwrap();
            let uid = event["uid"].as_u64().unwrap();
            told.push((uid, load::number_in(subject).unwrap()));
        }
    }
    // In the order of the mailbox: Dovecot may give two deliveries that follow each other closely their UIDs the other way round.
    assert!(told.is_sorted_by(|(a, _), (b, _)| a < b), "{told:?}");
    told.sort_by_key(|(_, number)| *number);
    let told: Vec<u64> = told.into_iter().map(|(_, number)| number).collect();
    assert_eq!(told, numbers.clone().collect::<Vec<_>>());
    assert_eq!(child.wait().await.unwrap().code(), Some(0));

    // What came while nobody listened.
    let missed = world.deliver(0, 3).await.unwrap();
    let out = world
        .installation
        .cli(&["listen", "--count", "3", "--cursor-file", &cursor])
        .await
        .unwrap()
        .ok()
        .unwrap();
    for number in missed {
        assert!(out.contains(&format!("#{number}#")), "{out}");
    }
    for number in numbers {
        assert!(!out.contains(&format!("#{number}#")), "{out}");
    }
    assert!(
        out.contains("Planted Sender") && out.contains(leaks::BODY),
        "{out}"
    );
    // Nothing more comes: it ends by itself when asked to, and says with its exit code whether it had what it waited for.
    for (more, code) in [(&["--count", "1"][..], 75), (&[], 0)] {
        let mut args = vec!["listen", "--exit-after", "1s", "--cursor-file", &cursor];
        args.extend(more);
        let said = world.installation.cli(&args).await.unwrap();
        assert_eq!((said.code, said.out.as_str()), (Some(code), ""), "{said:?}");
    }
}

#[tokio::test]
async fn listen_hears_of_the_named_account_only() {
    let options = WorldOptions {
        users: 2,
        ..WorldOptions::default()
    };
    let mut world = World::start(options).await.unwrap();
    let other = world.device(&[0]).await.unwrap();
    let state = world.installation.state_dir();
    let id = world.account(1).id.clone();
    let args = ["listen", "--json", "--count", "1", "--account", &id];
    let mut child = cli::command(state, args).unwrap().spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while json(&lines.next_line().await.unwrap().unwrap())["kind"] != "live" {}
    // By the time that the other account's message was told, who listens to all would have been told of it too.
    world.deliver(0, 1).await.unwrap();
    world.judge(&[&other]).await.unwrap();
    let number = world.deliver(1, 1).await.unwrap().start;
    let mut arrived = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let event = json(&line);
        assert!(
            event["account"].is_null() || event["account"] == id,
            "{event}"
        );
        if event["kind"] == "arrived" {
            arrived.push(load::number_in(event["message"]["subject"].as_str().unwrap()).unwrap());
        }
    }
    assert_eq!(arrived, [number]);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    let nobody = ["listen", "--account", "default.01ARZ3NDEKTSV4RRFFQ69G5FAV"];
    refused(&world.installation, 66, "does not exist", &nobody).await;
}

#[tokio::test]
async fn a_wrong_password_that_was_not_checked_is_found_by_the_doctor() {
    let options = WorldOptions {
        users: 0,
        ..WorldOptions::default()
    };
    let world = World::start(options).await.unwrap();
    let installation = &world.installation;
    let url = imap_url(&user(0), world.dovecot.imap_port());
    let bad = installation.password_file("bad", "not-this-one").unwrap();
    let bad = bad.display().to_string();
    let add = ["account", "add", &url, "--password-file", &bad];
    refused(installation, 77, "password", &add).await;
    let unchecked = [&add[..], &["--no-check", "--json"]].concat();
    let added = installation.cli(&unchecked).await.unwrap().ok().unwrap();
    let added = json(&added);
    assert_eq!(added["created"], true);
    let id = added["id"].as_str().unwrap();
    until(SETTLE_LIMIT, "the login to be refused", || async {
        let show = ["account", "show", id, "--json"];
        let shown = installation.cli(&show).await.unwrap();
        json(&shown.ok().unwrap())["state"]["code"] == "bad-credentials"
    })
    .await
    .unwrap();
    let said = installation.cli(&["doctor", "--json"]).await.unwrap();
    assert_eq!(said.code, Some(69), "{said:?}");
    let report = json(&said.out);
    let found = report["findings"].as_array().unwrap().iter();
    let bad: Vec<&Value> = found
        .filter(|finding| finding["verdict"] == "fail")
        .collect();
    assert_eq!(bad.len(), 1, "{report}");
    assert_eq!(bad[0]["name"], "mailbox");
    let sentence = bad[0]["said"].as_str().unwrap();
    assert!(
        sentence.starts_with(id) && sentence.contains("password"),
        "{sentence}"
    );
    let advice = bad[0]["advice"].as_str().unwrap();
    assert!(advice.contains(&format!("account update {id}")), "{advice}");
    assert!(!said.all().contains("not-this-one"));
}

#[tokio::test]
async fn the_doctor_finds_a_healthy_installation_and_a_dead_one() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let well = world.installation.cli(&["doctor"]).await.unwrap();
    assert_eq!(well.code, Some(0), "{well:?}");
    world.installation.stop().await.unwrap();
    let ill = world.installation.cli(&["doctor"]).await.unwrap();
    assert_ne!(ill.code, Some(0), "{ill:?}");
    assert!(ill.all().contains("standalone"), "{ill:?}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let empty = tempfile::tempdir().unwrap();
    let usage: [&[&str]; 6] = [
        &["acount", "list"],
        &["account", "add", "bob@example.org"],
        &["account", "add", "imaps://bob:secret@example.org"],
        &["token", "mint"],
        &["listen", "--exit-after", "soon"],
        &["listen", "--exit-after", "9999999999999999999"],
    ];
    for args in usage {
        let said = cli::run(empty.path(), args).await.unwrap();
        assert_eq!(said.code, Some(64), "{args:?}: {said:?}");
        assert!(!said.all().contains("secret@"), "{said:?}");
    }
    // No installation there.
    let said = cli::run(empty.path(), ["account", "list"]).await.unwrap();
    assert_ne!(said.code, Some(0));
    assert!(said.err.contains("standalone"), "{said:?}");
    let help = cli::run(empty.path(), ["--help"])
        .await
        .unwrap()
        .ok()
        .unwrap();
    for command in ["standalone", "account", "token", "listen", "doctor"] {
        assert!(help.contains(command), "{help}");
    }
    let version = cli::run(empty.path(), ["--version"])
        .await
        .unwrap()
        .ok()
        .unwrap();
    assert!(version.starts_with("mailbell "), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = cli::run(empty.path(), ["completions", shell])
            .await
            .unwrap();
        assert!(script.ok().unwrap().contains("standalone"));
    }
}

#[tokio::test]
async fn a_second_standalone_on_the_same_directory_is_refused() {
    let first = Installation::start(Options::default()).await.unwrap();
    let state = first.state_dir().display().to_string();
    let args = [
        "standalone",
        "--state-dir",
        &state,
        "--push-listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ];
    let second = first.cli(&args).await.unwrap();
    assert_eq!(second.code, Some(69), "{second:?}");
    assert!(second.err.contains("in use by process"), "{second:?}");
    assert!(
        second
            .err
            .contains(&first.pid(Part::Standalone).to_string()),
        "{second:?}"
    );
    assert!(first.is_ready().await);
}
