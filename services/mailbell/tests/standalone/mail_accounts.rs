//! MailAccounts from end to end: on a real Kubernetes API server, by a real operator, in a real installation, of mailboxes of a real mail
//! server. What is refused, and what is not there, is tested in `services/operator`.

use std::collections::BTreeMap;

use mailbell_test_cluster::{ApiServer, Binaries, MISSING, Workloads};
use mailbell_test_servers::{
    Dovecot, DovecotOptions, NatsOptions, NatsServer, SyntheticImap, SyntheticOptions, free_port,
};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use crate::{
    cluster::Cluster,
    machine::{Machine, text},
};

const ADMIN: &str = "mba_q83vEjRWeJC6mHZUMhD3LqYdlQyEP7cupiHZUMhD0AbCxYz1";
const OPERATOR: &str = "mba_Kq7xVt2LhYd9RwZ4nPfJ6cBs8mGu3eAo5iTy1DkQ0XvN";
/// Some rounds of the operator, and a login.
const LIMIT: Duration = Duration::from_secs(150);
/// Where an installation says whether it runs.
const READY: &str = r#"{range .status.conditions[?(@.type=="Ready")]}{.status} {.reason}{end}"#;

/// A cluster without nodes, and beside it an installation whose processes are no pods.
struct World {
    server: ApiServer,
    imap_port: u16,
    admin_url: String,
    /// Where the gateway says how many devices it has.
    gateway_http: String,
    /// Has the state directory by which commands are given.
    tool: Machine,
    admin_token: String,
    operator_token: String,
    _nats: NatsServer,
    _roles: Vec<Machine>,
}

impl World {
    /// For the mailboxes of a mail server on this port.
    async fn start(binaries: Binaries, imap_port: u16) -> Self {
        let nats = NatsServer::start(NatsOptions {
            max_file_store: Some(8 << 30),
            ..NatsOptions::default()
        });
        let nats = nats.await.unwrap();
        let tool = Machine::new();
        let url = nats.url();
        let done = tool.run(&["setup", "--nats-url", &url]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let mut watcher = Machine::new();
        let ring = format!("{}.ring", watcher.state().display());
        let plain = "--allow-plaintext-imap";
        watcher
            .start_role(&[
                "watcher",
                "--nats-url",
                &url,
                "--key-ring-file",
                &ring,
                plain,
            ])
            .await;
        let mut gateway = Machine::new();
        let push = ["--push-listen", "127.0.0.1:0"];
        let gateway_http = gateway
            .start_role(&[&["gateway", "--nats-url", &url][..], &push].concat())
            .await;
        let mut admin = Machine::new();
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        let admin_token = admin.beside("admin-tokens", ADMIN);
        let operator_token = admin.beside("operator-tokens", OPERATOR);
        let signing = format!("{}.pem", admin.state().display());
        admin
            .start_role(&[
                "admin",
                "--nats-url",
                &url,
                "--admin-listen",
                &listen,
                "--admin-token-file",
                &admin_token,
                "--operator-token-file",
                &operator_token,
                "--signing-key-file",
                &signing,
                "--allow-private-hosts",
                plain,
            ])
            .await;
        let server = ApiServer::start(binaries).await.unwrap();
        let cluster = Cluster { server };
        cluster.definitions(&tool).await;
        let world = Self {
            server: cluster.server,
            imap_port,
            admin_url: format!("http://{listen}"),
            gateway_http,
            tool,
            admin_token,
            operator_token,
            _nats: nats,
            _roles: vec![watcher, gateway, admin],
        };
        let mailbell = json!({
            "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell", "metadata": { "name": "main" },
            "spec": {
                // As many as there are: each is asked.
                "gateways": { "tls": { "insecurePlaintext": true }, "scale": { "min": 1, "max": 1 } },
                "admin": { "tls": { "insecurePlaintext": true } },
                "nats": { "external": { "urls": ["tls://nats:4222"], "usersSecret": "nats" } },
            },
        });
        world.apply(mailbell).await;
        world
            .secret("main-operator-token", json!({ "token": OPERATOR }))
            .await;
        world
    }

    async fn operator(&self) -> Machine {
        let mut operator = Machine::on_cluster(self.server.kubeconfig());
        operator
            .start_role(&[
                "operator",
                "--image",
                "mailbell",
                "--lease-namespace",
                "default",
                "--admin-url",
                &self.admin_url,
                "--gateway-http",
                &self.gateway_http,
            ])
            .await;
        operator
    }

    async fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let tool = self.server.tool("kubectl");
        let output = tool.run(arguments, input).await.unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }

    async fn apply(&self, object: Value) {
        self.kubectl(&["apply", "-f", "-"], &object.to_string())
            .await;
    }

    async fn secret(&self, name: &str, content: Value) {
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": content });
        self.apply(secret).await;
    }

    fn declared(&self, name: &str, user: &str, more: Value) -> Value {
        let server = json!({ "host": "127.0.0.1", "port": self.imap_port, "tls": "Plaintext", "user": user });
        let mut spec = json!({ "mailbell": "main", "server": server });
        let more = more.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(more);
        json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "MailAccount", "metadata": { "name": name }, "spec": spec })
    }

    async fn declare(&self, name: &str, user: &str, more: Value) {
        self.apply(self.declared(name, user, more)).await;
    }

    async fn status(&self, name: &str) -> Value {
        let said = self
            .kubectl(&["get", "mailaccount", name, "-o", "json"], "")
            .await;
        let object: Value = serde_json::from_str(&said).unwrap();
        object.get("status").cloned().unwrap_or_default()
    }

    /// Once the status is so, which it must be soon.
    async fn once(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let status = self.status(name).await;
            if is_so(&status) {
                return status;
            }
            assert!(begin.elapsed() < LIMIT, "{name} is not {what}: {status}");
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn once_ready(&self, name: &str, status: &str, reason: &str) -> Value {
        let said = |it: &Value| ready(it, "status") == status && ready(it, "reason") == reason;
        self.once(name, reason, said).await
    }

    /// Once the installation names these accounts as left by their MailAccounts.
    async fn once_left(&self, expected: &[&str]) {
        let begin = Instant::now();
        loop {
            let said = self.installation("{.status.leftAccounts.ids[*]}").await;
            let found: Vec<&str> = said.split_whitespace().collect();
            if found == expected {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{said} and not {expected:?}");
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Once the installation runs, as far as its workloads, which nobody runs here, can be told.
    async fn once_running(&self) {
        let client = self.server.client().await.unwrap();
        let workloads = Workloads::new(client, "default");
        let begin = Instant::now();
        loop {
            let said = self.installation(READY).await;
            if said == "True Running" {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{said} and not Running");
            // Each part waits for those before it.
            workloads.all_are_ready().await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn installation(&self, path: &str) -> String {
        let path = format!("jsonpath={path}");
        self.kubectl(&["get", "mailbell", "main", "-o", &path], "")
            .await
    }

    /// With the admin token.
    fn account(&self, arguments: &[&str]) -> (bool, String) {
        self.account_by(&self.admin_token, arguments)
    }

    fn account_by(&self, token: &str, arguments: &[&str]) -> (bool, String) {
        let mut command = self.tool.command(&["account"]);
        command
            .args(arguments)
            .args(["--admin-url", &self.admin_url, "--admin-token-file", token]);
        let output = command.output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        (output.status.success(), said)
    }
}

/// A field of the condition.
fn ready<'a>(status: &'a Value, field: &str) -> &'a str {
    let found = status.pointer(&format!("/conditions/0/{field}"));
    found.and_then(Value::as_str).unwrap_or_default()
}

fn id(status: &Value) -> &str {
    status.get("account").unwrap().as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_is_watched_until_it_is_declared_no_longer() {
    let Some(binaries) = Binaries::find() else {
        eprintln!("left out: {MISSING}");
        return;
    };
    let users = ["alice", "bob"].map(|user| (user.to_owned(), "secret".to_owned()));
    let options = DovecotOptions {
        users: users.to_vec(),
        ..DovecotOptions::default()
    };
    let dovecot = Dovecot::start(options).await.unwrap();
    let mut world = World::start(binaries, dovecot.imap_port()).await;
    let operator = world.operator().await;
    world.declare("alice", "alice", json!({})).await;
    world.once_ready("alice", "False", "NoSecret").await;
    let passwords = |bob: &str| json!({ "alice": "secret", "again": "secret\n", "bob": bob });
    world.secret("mail-passwords", passwords("wrong")).await;
    world.declare("again", "alice", json!({})).await;
    world.declare("bob", "bob", json!({})).await;
    let alice = world.once_ready("alice", "True", "Watching").await;
    assert_eq!(alice.get("mode").and_then(Value::as_str), Some("Idle"));
    // One mailbox may be declared twice, and is two accounts then.
    let again = world.once_ready("again", "True", "Watching").await;
    assert_ne!(id(&alice), id(&again));
    let shown = world.kubectl(&["get", "mailaccounts"], "").await;
    assert!(shown.contains("Idle"), "{shown}");

    let message = b"Subject: one\r\n\r\nHello\r\n";
    dovecot.deliver_lmtp("alice", message).await.unwrap();
    let came = |status: &Value| status.get("lastArrival").is_some();
    world.once("alice", "told of its mail", came).await;

    // What the mail server says is what a person reads, and another password ends it.
    let bob = world.once_ready("bob", "False", "BadCredentials").await;
    assert!(ready(&bob, "message").contains("password"), "{bob}");
    world.secret("mail-passwords", passwords("secret")).await;
    world.once_ready("bob", "True", "Watching").await;
    // Nobody else's was set anew: a change of an account is a revision.
    let revision = |name: &str| {
        let (_, said) = world.account(&["show", id(&alice), "--json"]);
        let account: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(account["managed_by"], format!("mailaccount/default/{name}"));
        account["revision"].clone()
    };
    let before = revision("alice");
    let version = |status: &Value| status.get("passwordVersion").cloned();
    let is_newer = |status: &Value| version(status) != version(&alice);
    world.once("alice", "of the new Secret", is_newer).await;
    assert_eq!(revision("alice"), before);

    // One writer: whoever else tries is sent to it.
    for arguments in [
        &["update", id(&alice), "--pause"][..],
        &["remove", id(&alice), "--yes"],
    ] {
        let (done, said) = world.account(arguments);
        assert!(
            !done && said.contains("mailaccount alice -n default"),
            "{said}"
        );
    }
    world
        .declare("alice", "alice", json!({ "paused": true }))
        .await;
    world.once_ready("alice", "False", "Paused").await;
    world.declare("alice", "alice", json!({})).await;
    world.once_ready("alice", "True", "Watching").await;

    // It goes when its account has gone, and the other of the same mailbox stays.
    let delete = ["delete", "mailaccount", "alice", "--timeout=60s"];
    world.kubectl(&delete, "").await;
    let (found, said) = world.account(&["show", id(&alice)]);
    assert!(!found && said.contains("there is no account"), "{said}");
    let events = world.kubectl(&["get", "events"], "").await;
    assert!(!events.contains("AccountLeft"), "{events}");
    assert!(world.account(&["show", id(&again)]).0);
    world.once_ready("again", "True", "Watching").await;

    // One whose object goes without it is named, and can be removed by who may do what the operator may. Nobody looks meanwhile: who
    // saw that it is to be deleted would delete the account.
    let freed = ["--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#];
    let free = [&["patch", "mailaccount", "again"][..], &freed].concat();
    ended(operator).await;
    world
        .kubectl(&["delete", "mailaccount", "again", "--wait=false"], "")
        .await;
    world.kubectl(&free, "").await;
    let operator = world.operator().await;
    world.once_left(&[id(&again)]).await;
    let remove = ["remove", id(&again), "--yes"];
    assert!(!world.account(&remove).0);
    let (removed, said) = world.account_by(&world.operator_token, &remove);
    assert!(removed, "{said}");
    world.once_left(&[]).await;

    ended(operator).await;
    world.server.stop().await;
}

/// Ends it; it has said no secret.
async fn ended(mut operator: Machine) {
    assert_eq!(operator.stop().await.code(), Some(0));
    for secret in [ADMIN, OPERATOR, "secret\"", "=secret", " secret "] {
        assert!(!operator.said().contains(secret), "{}", operator.said());
    }
}

/// Requests that the API server has counted, by kind and verb: those of the operator, and those of the server itself.
async fn requests(world: &World) -> BTreeMap<String, u64> {
    let metrics = world.kubectl(&["get", "--raw", "/metrics"], "").await;
    let mut counts = BTreeMap::new();
    for line in metrics.lines() {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        if line.starts_with("apiserver_request_total{") {
            let kind = label("resource").unwrap_or_default();
            let count = line
                .rsplit(' ')
                .next()
                .and_then(|it| it.parse::<f64>().ok());
            let name = format!("{} {kind}", label("verb").unwrap_or_default());
            *counts.entry(name).or_default() += count.unwrap_or_default() as u64;
        }
    }
    counts
}

/// What has come since, and how much that is in all.
fn since(
    before: &BTreeMap<String, u64>,
    mut now: BTreeMap<String, u64>,
) -> (u64, BTreeMap<String, u64>) {
    for (name, count) in &mut now {
        *count -= before.get(name).copied().unwrap_or_default();
    }
    now.retain(|_, count| *count > 0);
    (now.values().sum(), now)
}

async fn ready_of(world: &World) -> usize {
    let path = r#"jsonpath={.items[*].status.conditions[?(@.reason=="Watching")].status}"#;
    let said = world
        .kubectl(&["get", "mailaccounts", "-o", path], "")
        .await;
    said.split_whitespace().filter(|it| *it == "True").count()
}

fn resident(process: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap_or_default().to_owned()
}

/// With `MAILBELL_BENCH_MAIL_ACCOUNTS` it prints numbers of so many (`make bench-mail-accounts`, docs/performance.md), which takes minutes.
#[tokio::test(flavor = "multi_thread")]
async fn many_mail_accounts_are_watched() {
    const FEW: usize = 10;
    let measured = std::env::var("MAILBELL_BENCH_MAIL_ACCOUNTS").ok();
    let many: usize = measured.as_ref().map_or(30, |count| count.parse().unwrap());
    let Some(binaries) = Binaries::find() else {
        eprintln!("left out: {MISSING}");
        return;
    };
    let options = SyntheticOptions {
        users: many,
        password: "secret".to_owned(),
    };
    let imap = SyntheticImap::start(options).await.unwrap();
    let mut world = World::start(binaries, imap.port()).await;
    let name = |n: usize| format!("user-{n}");
    let passwords: serde_json::Map<String, Value> =
        (0..many).map(|n| (name(n), json!("secret"))).collect();
    world.secret("mail-passwords", passwords.into()).await;
    let declare = async |first: usize, end: usize| {
        let one = |n: usize| world.declared(&name(n), &SyntheticImap::user(n), json!({}));
        let items: Vec<Value> = (first..end).map(one).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        let apply = ["apply", "--server-side", "-f", "-"];
        world.kubectl(&apply, &list.to_string()).await;
    };
    let watched = async |count: usize| {
        let begin = Instant::now();
        while imap.watched() < count {
            assert!(
                begin.elapsed() < 4 * LIMIT,
                "{} are watched",
                imap.watched()
            );
            sleep(Duration::from_millis(100)).await;
        }
        let watched = begin.elapsed();
        while ready_of(&world).await < count {
            assert!(begin.elapsed() < 4 * LIMIT, "not all say so");
            sleep(Duration::from_secs(1)).await;
        }
        (watched, begin.elapsed())
    };
    let mut operator = world.operator().await;
    world.once_running().await;
    declare(0, FEW).await;
    watched(FEW).await;
    let (begin, before) = (Instant::now(), requests(&world).await);
    declare(FEW, many).await;
    let declared = begin.elapsed();
    let (all, said) = watched(many).await;
    let (made, kinds) = since(&before, requests(&world).await);
    println!(
        "from {FEW} to {many} MailAccounts: applied in {declared:?}, all watched {all:?} after, all said so {said:?} after"
    );
    println!("requests for that: {made}, also kubectl's: {kinds:?}");
    if measured.is_some() {
        // Until the pace is that of a quiet installation.
        sleep(Duration::from_secs(90)).await;
        // An installation that does not change is looked at once in that time.
        let in_five_minutes = async || {
            let before = requests(&world).await;
            sleep(Duration::from_secs(300)).await;
            since(&before, requests(&world).await)
        };
        world.once_running().await;
        let (idle, kinds) = in_five_minutes().await;
        let conditions = world.installation("{.status.conditions}").await;
        assert_eq!(
            world.installation(READY).await,
            "True Running",
            "{conditions}"
        );
        println!("requests in five minutes, idle: {idle}: {kinds:?}");
        println!("memory of the operator: {}", resident(operator.pid()));
        operator.stop().await;
        // The ends of its watches are counted late.
        sleep(Duration::from_secs(10)).await;
        let (others, kinds) = in_five_minutes().await;
        println!("the same without an operator: {others}: {kinds:?}");
    } else {
        operator.stop().await;
    }
    world.server.stop().await;
}
