use std::{
    convert::Infallible,
    future::pending,
    slice,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::{Request, Response};
use kube::client::Body;
use mailbell_runtime::tls::certificates;
use mailbell_test_servers::{Certificate, NatsCluster, NatsOptions, NatsServer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::*;
use crate::{certificate::validity, doctor::Verdict};

/// Generous: tests share two cores.
const LIMIT: Duration = Duration::from_secs(60);

type Found = Vec<(Verdict, String)>;

fn judged(answers: &Answers) -> Found {
    judged_twice(slice::from_ref(answers))
}

fn judged_twice(looks: &[Answers]) -> Found {
    let mut report = Report::default();
    judge(&mut report, "x", "mail", looks, Some("n0"));
    for it in &report.findings {
        let is_fine = [Verdict::Ok, Verdict::Skipped].contains(&it.verdict);
        assert_eq!(it.advice.is_empty(), is_fine, "{it:?}");
    }
    let findings = report.findings.into_iter();
    findings.map(|it| (it.verdict, it.said)).collect()
}

/// What each server tells; of one that does not run, what the API server would say.
async fn pages(servers: &[NatsServer]) -> Answers {
    let asked = servers.iter().enumerate().map(async |(node, server)| {
        let page = server.monitor("/jsz?accounts=true&streams=true").await;
        let told = page.map(|page| serde_json::from_value(page).unwrap());
        let told = told.map_or_else(|error| Seen::Failed(error.to_string()), Seen::There);
        (format!("n{node}"), told)
    });
    join_all(asked).await
}

/// Until they say so.
async fn until(servers: &[NatsServer], is: impl Fn(&Found) -> bool) -> Found {
    let begun = Instant::now();
    loop {
        let found = judged(&pages(servers).await);
        if is(&found) {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{found:?}");
    }
}

/// A stream with so many copies, by the protocol of clients.
async fn make_stream(server: &NatsServer, copies: usize) {
    let mut client = BufReader::new(
        TcpStream::connect(("127.0.0.1", server.port()))
            .await
            .unwrap(),
    );
    let config =
        json!({ "name": "ONE", "subjects": ["one"], "num_replicas": copies, "storage": "file" })
            .to_string();
    let asked = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB $JS.API.STREAM.CREATE.ONE answer {}\r\n{config}\r\n",
        config.len()
    );
    client.write_all(asked.as_bytes()).await.unwrap();
    let answered = async {
        let mut line = String::new();
        while !line.contains("stream_create_response") {
            line.clear();
            assert_ne!(client.read_line(&mut line).await.unwrap(), 0);
        }
        assert!(!line.contains("\"error\""), "{line}");
    };
    timeout(LIMIT, answered).await.unwrap();
}

#[tokio::test]
async fn three_servers_tell_of_a_copy_that_is_missing_when_one_is_gone() {
    let mut cluster = NatsCluster::start(3).await.unwrap();
    make_stream(&cluster.nodes[0], 3).await;
    let well = until(&cluster.nodes, |found| found[0].0 == Verdict::Ok).await;
    assert_eq!(well.len(), 1, "{well:?}");
    assert!(
        well[0]
            .1
            .contains("all copies of 1 streams are current, and 0%"),
        "{well:?}"
    );
    let leaders = [
        cluster.meta_leader().await.unwrap(),
        cluster.stream_leader("ONE").await.unwrap(),
    ];
    let gone = (0..3).find(|node| !leaders.contains(node)).unwrap();
    cluster.nodes[gone].kill();
    let behind = format!("n{gone} has no current copy of 1 streams");
    let ill = until(&cluster.nodes, |found| {
        found.iter().any(|(_, said)| *said == behind)
    })
    .await;
    assert!(
        ill.iter().all(|(verdict, _)| *verdict == Verdict::Warn),
        "{ill:?}"
    );
    assert!(
        ill[0].1.starts_with(&format!("n{gone} does not answer: ")),
        "{ill:?}"
    );
    cluster.nodes[gone].restart().await.unwrap();
    until(&cluster.nodes, |found| found[0].0 == Verdict::Ok).await;
}

/// One server has neither a leader to agree on nor copies.
#[tokio::test]
async fn a_single_server_is_asked_for_its_disk_only() {
    let options = NatsOptions {
        max_file_store: Some(1 << 30),
        ..NatsOptions::default()
    };
    let server = [NatsServer::start(options).await.unwrap()];
    make_stream(&server[0], 1).await;
    let page = server[0].monitor("/jsz?accounts=true&streams=true").await;
    let mut told: Told = serde_json::from_value(page.unwrap()).unwrap();
    assert_eq!(told.config.max_storage, 1 << 30);
    // It leads what it has by the name that it has, which on a cluster is that of its pod.
    let name = told.account_details[0].stream_detail[0]
        .cluster
        .leader
        .clone();
    let mut found = |storage: u64| {
        told.storage = storage;
        judged(&vec![(name.clone(), Seen::There(told.clone()))]).remove(0)
    };
    assert_eq!(found(858_993_459).0, Verdict::Ok);
    let (verdict, said) = found(858_993_460);
    assert_eq!(verdict, Verdict::Warn);
    assert!(
        said.contains("has used 80% of what is set aside on its disk, 0.8 of 1.0 GiB"),
        "{said}"
    );
    assert_eq!(found(1_020_054_732).0, Verdict::Warn);
    assert_eq!(found(1_020_054_733).0, Verdict::Fail);
}

/// A page as of three servers of which `n0` leads, with one stream.
fn page(leader: &str, size: usize, of_stream: Value) -> Seen<Told> {
    let replicas = json!([{ "name": "n1", "current": true }, { "name": "n2", "current": true }]);
    let meta = json!({ "leader": leader, "cluster_size": size, "replicas": replicas });
    let streams = json!([{ "stream_detail": [{ "name": "ONE", "cluster": of_stream }] }]);
    let page = json!({ "meta_cluster": meta, "account_details": streams });
    Seen::There(serde_json::from_value(page).unwrap())
}

#[test]
fn what_servers_say_is_judged() {
    let whole = || {
        let replicas =
            json!([{ "name": "n1", "current": true }, { "name": "n2", "current": true }]);
        json!({ "leader": "n0", "replicas": replicas })
    };
    let three = |pages: [Seen<Told>; 3]| {
        let named = pages.into_iter().enumerate();
        let answers = named.map(|(node, page)| (format!("n{node}"), page));
        judged(&answers.collect())
    };
    let one = |found: Found, verdict, words: &str| {
        let [(found, said)] = <[_; 1]>::try_from(found).unwrap();
        assert_eq!(found, verdict, "{said}");
        assert!(said.contains(words), "{words}: {said}");
    };
    let all = |leader: &str, size, of_stream: &Value| {
        three([0, 1, 2].map(|_| page(leader, size, of_stream.clone())))
    };
    one(all("n0", 3, &whole()), Verdict::Ok, "its servers agree");
    one(
        all("n0", 4, &whole()),
        Verdict::Warn,
        "4 servers are counted where 3 are wanted: a majority",
    );
    let mut strange = [0, 1, 2].map(|_| page("n0", 4, whole()));
    if let Seen::There(told) = &mut strange[0] {
        told.meta_cluster.replicas.push(Replica {
            name: "n9".to_owned(),
            current: true,
            offline: false,
        });
    }
    one(
        three(strange),
        Verdict::Warn,
        "wanted, n9 among them: a majority",
    );
    one(
        all("", 3, &whole()),
        Verdict::Fail,
        "no leader is known to n0, n1, n2",
    );
    // It has just started.
    let mut starts = [0, 1, 2].map(|_| page("n0", 3, whole()));
    starts[2] = page("", 3, whole());
    one(three(starts), Verdict::Warn, "no leader is known to n2");
    one(
        all("n0", 3, &json!({})),
        Verdict::Fail,
        "1 streams, ONE among them, have no leader",
    );
    let alone = json!({ "leader": "n0" });
    one(
        all("n0", 3, &alone),
        Verdict::Warn,
        "ONE among them, have fewer copies than 3",
    );
    // Its leader does not answer: that is no want of one.
    let of_another = json!({ "leader": "n9" });
    one(all("n0", 3, &of_another), Verdict::Ok, "its servers agree");
    let split = three(["n0", "n0", "n2"].map(|leader| page(leader, 3, whole())));
    one(split, Verdict::Fail, "do not agree who leads: n0, n2");
    let mut unheard = [0, 1, 2].map(|_| page("n0", 3, whole()));
    for page in &mut unheard {
        if let Seen::There(told) = page {
            told.meta_cluster.replicas[1].offline = true;
        }
    }
    one(
        three(unheard),
        Verdict::Fail,
        "n2 runs, and n0, which leads, does not hear it",
    );
    let mut off = [0, 1, 2].map(|_| page("n0", 3, whole()));
    if let Seen::There(told) = &mut off[2] {
        *told = Told {
            disabled: true,
            ..Told::default()
        };
    }
    one(three(off), Verdict::Fail, "n2 has JetStream off");
}

/// Elections last for seconds, and one who is behind catches up.
#[test]
fn only_what_stays_wrong_is_told() {
    let look = |of_stream: &Value| -> Answers {
        let named = (0..3).map(|node| (format!("n{node}"), page("n0", 3, of_stream.clone())));
        named.collect()
    };
    let current = |n1: bool, n2: bool| {
        let replicas = json!([{ "name": "n1", "current": n1 }, { "name": "n2", "current": n2 }]);
        look(&json!({ "leader": "n0", "replicas": replicas }))
    };
    let none = || look(&json!({}));
    for passing in [
        [none(), current(true, true)],
        [current(true, true), none()],
        [current(true, false), current(false, true)],
    ] {
        let found = judged_twice(&passing);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, Verdict::Ok, "{found:?}");
    }
    let found = judged_twice(&[current(false, false), current(false, true)]);
    let behind = "n1 has no current copy of 1 streams".to_owned();
    assert_eq!(found, [(Verdict::Warn, behind)]);
    assert_eq!(judged_twice(&[none(), none()])[0].0, Verdict::Fail);
}

fn mailbell(name: &str) -> Mailbell {
    let managed = json!({ "image": "nats:2.12", "storage": { "size": "20Gi" } });
    serde_json::from_value(json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell",
        "metadata": { "name": name },
        "spec": { "gateways": { "tls": { "secretName": "x" } }, "admin": { "tls": { "secretName": "x" } },
            "nats": { "managed": managed } } }))
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_looked_at_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = tower::service_fn(move |request: Request<Body>| {
        // In the first look there is no leader.
        let is_asked_for_it = request.uri().path().ends_with("/proxy/jsz");
        let leader = match count.fetch_add(is_asked_for_it.into(), Ordering::Relaxed) {
            ..3 => "",
            _ => "main-nats-0",
        };
        let meta = json!({ "leader": leader, "cluster_size": 3 });
        let page = json!({ "meta_cluster": meta }).to_string();
        async move { Ok::<_, Infallible>(Response::new(Body::from(page.into_bytes()))) }
    });
    let client = Client::new(server, "mail");
    let looks = look(&client, "mail", &[mailbell("main")]).await.remove(0);
    assert_eq!((looks.len(), asked.load(Ordering::Relaxed)), (2, 6));
    assert_eq!(judged_twice(&looks[..1])[0].0, Verdict::Fail);
    assert_eq!(judged_twice(&looks)[0].0, Verdict::Ok);
}

/// A network that swallows questions is waited for once, however many installations there are.
#[tokio::test(start_paused = true)]
async fn silent_servers_of_many_installations_leave_time_for_the_rest() {
    let server =
        tower::service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
    let client = Client::new(server, "mail");
    let named = |count: usize| -> Vec<Mailbell> {
        let names = (0..count).map(|number| mailbell(&format!("m{number}")));
        names.collect()
    };
    for (count, limit) in [(12, super::LIMIT), (300, LIMIT_OF_ALL)] {
        let all = named(count);
        let looked = look(&client, "mail", &all);
        let looks = timeout(limit + AGAIN, looked).await.unwrap();
        assert_eq!(looks.len(), count);
        for look in &looks {
            assert_eq!(judged_twice(look)[0].0, Verdict::Skipped);
        }
    }
}

#[test]
fn only_a_server_that_runs_can_be_asked_by_hand() {
    let servers = ["n0", "n1"].map(str::to_owned);
    let pod = |name: &str, phase: &str| -> Pod {
        let pod = json!({ "metadata": { "name": name }, "status": { "phase": phase } });
        serde_json::from_value(pod).unwrap()
    };
    let one = [pod("n0", "Pending"), pod("n1", "Running")];
    assert_eq!(running(&servers, &one), Some("n1"));
    assert_eq!(running(&servers, &one[..1]), None);
    let denied = vec![("n0".to_owned(), Seen::Denied("no".to_owned()))];
    let mut report = Report::default();
    judge(&mut report, "x", "mail", &[denied], None);
    let said = report.findings.remove(0).said;
    assert!(said.ends_with("(get pods/proxy): no"), "{said}");
}

#[test]
fn servers_that_nobody_may_ask_are_not_judged() {
    let none = |why: fn(String) -> Seen<Told>| {
        let answers = (0..3).map(|node| (format!("n{node}"), why("no".to_owned())));
        judged(&answers.collect()).remove(0)
    };
    let (verdict, said) = none(Seen::Denied);
    assert_eq!(verdict, Verdict::Skipped);
    assert!(
        said.contains("get pods/proxy") && said.contains("port-forward n0 8222"),
        "{said}"
    );
    let (verdict, said) = none(Seen::Failed);
    assert_eq!(verdict, Verdict::Skipped);
    assert!(said.contains("no server was reached"), "{said}");
}

#[test]
fn a_majority_has_to_be_ready() {
    let servers = [0, 1, 2].map(|node| format!("main-nats-{node}"));
    let with = |ready: usize| {
        let pods = (0..3).map(|node| {
            let is = if node < ready { "True" } else { "False" };
            let ready = json!([{ "type": "Ready", "status": is }]);
            let pod = json!({ "metadata": { "name": format!("main-nats-{node}") }, "status": { "conditions": ready } });
            serde_json::from_value(pod).unwrap()
        });
        let mut report = Report::default();
        readiness(&mut report, "x", &servers, &pods.collect::<Vec<Pod>>());
        let it = report.findings.remove(0);
        (it.verdict, it.said)
    };
    let told = |verdict, said: &str| (verdict, said.to_owned());
    assert_eq!(with(3), told(Verdict::Ok, "3 of 3 servers are ready"));
    let one_less = "2 of 3 servers are ready: one more may not be lost; not ready: main-nats-2";
    assert_eq!(with(2), told(Verdict::Warn, one_less));
    let (verdict, said) = with(1);
    assert_eq!(verdict, Verdict::Fail);
    assert!(
        said.contains("below 2; not ready: main-nats-1, main-nats-2"),
        "{said}"
    );
}

/// What a real server tells of its certificate is what it shows.
#[tokio::test]
async fn a_server_that_shows_another_certificate_is_told_of() {
    let options = NatsOptions {
        tls: Some(Certificate::localhost()),
        ..NatsOptions::default()
    };
    let server = NatsServer::start(options).await.unwrap();
    let page = server.monitor("/varz").await.unwrap();
    let page: Shown = serde_json::from_value(page).unwrap();
    let shown = certificates(&server.directory().join("cert.pem")).unwrap();
    let (_, until) = validity(&shown[0]).unwrap();
    let at = page.tls_cert_not_after.unwrap();
    assert_eq!(at.as_second(), until);

    let said_of = |mailbell: &Mailbell, good, ends: [Option<i64>; 3]| {
        let mut report = Report::default();
        let told = |(node, until): (usize, Option<i64>)| {
            let mut told = Told::default();
            told.shown.tls_cert_not_after = until.map(|at| Timestamp::from_second(at).unwrap());
            (format!("main-nats-{node}"), Seen::There(told))
        };
        let looks = [ends.into_iter().enumerate().map(told).collect()];
        examine(&mut report, "mail", mailbell, None, good, &looks);
        let mut found = report.findings.into_iter();
        found.find(|it| it.said.contains("certificate"))
    };
    let mut mailbell = mailbell("main");
    let said = |good, ends| said_of(&mailbell, good, ends);
    let found = said(Some(until), [Some(until), Some(until - 1), None]).unwrap();
    assert_eq!(found.verdict, Verdict::Warn);
    assert!(found.said.ends_with("now: main-nats-1"), "{}", found.said);
    let log = "kubectl --namespace mail logs deployment/main-admin";
    assert!(found.advice.contains(log), "{}", found.advice);
    let found = said(Some(until), [Some(until), Some(until), None]).unwrap();
    assert_eq!(found.verdict, Verdict::Skipped);
    assert!(found.said.ends_with("seen: main-nats-2"), "{}", found.said);
    let found = said(Some(until), [Some(until); 3]).unwrap();
    assert_eq!(found.verdict, Verdict::Ok);
    assert!(found.said.starts_with("all show"), "{}", found.said);
    // Of what is wrong with it itself is told elsewhere.
    assert!(said(None, [Some(until); 3]).is_none());
    // Nobody gets in any more who could tell them.
    let found = said(Some(until), [Some(1), Some(2), Some(3)]).unwrap();
    assert_eq!(found.verdict, Verdict::Fail);
    let together =
        "delete pod --selector app.kubernetes.io/instance=main,app.kubernetes.io/component=nats";
    assert!(found.advice.contains(together), "{}", found.advice);
    // By those that are left they are told.
    let found = said(Some(until), [Some(1), Some(2), Some(until)]).unwrap();
    assert_eq!(found.verdict, Verdict::Warn);
    assert!(found.advice.starts_with("look again in five minutes"));
    mailbell.spec.paused = true;
    let found = said_of(&mailbell, Some(until), [Some(until - 1); 3]).unwrap();
    assert!(found.advice.starts_with("resume the installation"));
}
