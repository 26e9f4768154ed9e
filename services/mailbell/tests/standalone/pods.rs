//! What the operator tells the processes of its pods, told to the real binary: each takes its settings, finds its files where they are
//! mounted, and is ready. Of the pod only addresses and the folder of the mounts are others here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::Instant,
};

use clap::CommandFactory as _;
use mailbell::{
    cli::Cli,
    secrets::{Names, What, missing},
};
use mailbell_bus::{server_certificate::shown, server_config::system_config};
use mailbell_operator::desired::{API_SERVER_PORTS, Wanted, desired};
use mailbell_runtime::tls::certificates;
use mailbell_test_servers::{Authority, Certificate, NatsOptions, NatsServer, free_port};
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::machine::{LIMIT, Machine, get, text};

/// What an installation needs. The certificate of NATS is another one here: it is one for names of a cluster.
const MADE: [What; 5] = [
    What::NatsUsers,
    What::AdminToken,
    What::OperatorToken,
    What::SigningKey,
    What::KeyRing,
];

/// What is brought under another name than it would be made with.
fn secret_of(what: What) -> String {
    match what {
        What::NatsUsers => "own-users".to_owned(),
        What::KeyRing => "own-ring".to_owned(),
        what => format!("main-{}", what.as_str()),
    }
}

/// NATS servers that the operator runs.
fn managed() -> Value {
    json!({ "managed": { "nodes": 1, "image": "nats", "storage": { "size": "8Gi" },
        "usersSecret": "own-users", "tls": { "secretName": "own-nats-tls" } } })
}

/// All said that a role can be told, but of devices and the admin API in the clear.
fn installation(nats: Value) -> Value {
    let tls = json!({ "secretName": "tls" });
    json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "Mailbell",
        "metadata": { "name": "main", "namespace": "mail", "uid": "0b8f5f5e-0000-4000-8000-000000000000" },
        "spec": {
            "finishUpgrade": true,
            "watchers": { "connectsPerHost": 20, "loginsPerHost": 10, "allowPrivateHosts": true,
                "allowPlaintextImap": true, "imapCaConfigMap": "imap-ca",
                "keyRingSecret": "own-ring",
                "pods": { "env": [{ "name": "MAILBELL_WEIGHT", "value": "50" }, { "name": "MAILBELL_EGRESS", "value": "one" },
                    { "name": "MAILBELL_REPLACE_KEY_RING", "value": "true" }] } },
            "gateways": { "tls": tls, "drainSeconds": 90 },
            "admin": { "tls": tls },
            "nats": nats,
            "telemetry": { "log": "debug", "otlpEndpoint": "http://127.0.0.1:1", "otlpSample": 0.25 },
        },
    })
}

/// What its watchers are told.
const POLICY: &str = r#"{"pausedTenants":["acme"],"providers":[]}"#;

/// What an object whose pods have one container tells it, in the order of the stages: its name, the pod, and the container.
fn pods(nats: Value) -> Vec<(String, Value, Value)> {
    let mailbell = serde_json::from_value(installation(nats)).unwrap();
    let stages = desired(&Wanted {
        mailbell: &mailbell,
        image: "mailbell",
        watchers: 1,
        gateways: 1,
        policy: Some(POLICY),
        api_server_ports: &API_SERVER_PORTS,
    });
    let objects = stages.into_iter().flat_map(|stage| stage.objects);
    let pods = objects.filter_map(|object| {
        let pod = object.pointer("/spec/template/spec")?.clone();
        let container = pod.pointer("/containers/0")?.clone();
        let name = object.pointer("/metadata/name")?.as_str()?.to_owned();
        Some((name, pod, container))
    });
    // Of ours, and of NATS: what makes Secrets is told what to make, and tried in `secrets`.
    let others = ["main-nats", "main-secrets-", "main-key-ring-"];
    let is_other = |name: &str| others.iter().any(|other| name.starts_with(other));
    pods.filter(|(name, ..)| !is_other(name)).collect()
}

/// Variables that a command takes; it passes over others without a word.
fn known(command: &str) -> BTreeSet<String> {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand(command).unwrap();
    let named = command
        .get_arguments()
        .filter_map(|argument| argument.get_env());
    named
        .map(|name| name.to_str().unwrap().to_owned())
        .collect()
}

/// By name and key.
type Secrets = BTreeMap<(String, String), String>;

/// What the jobs make.
fn secrets() -> Secrets {
    let installation = "main".parse().unwrap();
    let names = Names {
        installation: &installation,
        namespace: "mail",
    };
    let mut all = Secrets::new();
    for what in MADE {
        let name = secret_of(what);
        for (key, value) in missing(what, names, &BTreeMap::new()).unwrap() {
            let value = String::from_utf8(value.to_vec()).unwrap();
            all.insert((name.clone(), key.to_owned()), value);
        }
    }
    all
}

/// As the kubelet mounts them, where `/run/mailbell` is this folder.
fn mount(pod: &Value, folder: &Path, secrets: &Secrets) {
    for volume in pod.get("volumes").unwrap().as_array().unwrap() {
        let name = volume.get("name").unwrap().as_str().unwrap();
        let secret = volume.pointer("/secret/secretName");
        let source = secret
            .or_else(|| volume.pointer("/configMap/name"))
            .unwrap()
            .as_str()
            .unwrap();
        let items = ["/secret/items", "/configMap/items"]
            .iter()
            .find_map(|place| volume.pointer(place));
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        for item in items.unwrap().as_array().unwrap() {
            let field = |field: &str| item.get(field).unwrap().as_str().unwrap();
            let content = secrets.get(&(source.to_owned(), field("key").to_owned()));
            let content = content.unwrap_or_else(|| panic!("{source} has no {}", field("key")));
            let path = folder.join(field("path"));
            fs::write(&path, content).unwrap();
            // In a pod the file is root's, and its group, of which nobody is but the pod, may read it. Who runs tests may be root, for
            // whom that rule is not made.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        }
    }
}

/// The server's own files, and the one that the admin API has of its Secret, become others, in the order in which kubelets may bring them.
async fn assert_renews(
    machine: &mut Machine,
    http: &str,
    nats: &NatsServer,
    folder: &Path,
    authority: &Authority,
) {
    let is_told = |words: &str| {
        let page = get(http, "/metrics").unwrap();
        page.lines().any(|line| line.starts_with(words))
    };
    let expiry = "mailbell_tls_certificate_expiry_timestamp_seconds{listener=\"nats\"} ";
    let reloads = |why, outcome| {
        format!("mailbell_nats_server_reloads_total{{why=\"{why}\",outcome=\"{outcome}\"}} ")
    };
    machine.until("it tells of it", |_| is_told(expiry)).await;
    // Whom servers trust nobody sees: they are told once it is known here.
    machine
        .until("it tells them", |_| is_told(&reloads("roots", "done")))
        .await;
    assert!(!is_told(&reloads("roots", "failed")));
    let shows = async || shown(&nats.url()).await.unwrap().certificate;
    let before = shows().await;
    let bring = |name: &str, content: &str| {
        let mounted = folder.join("nats-ca").join(name);
        fs::remove_file(&mounted).unwrap();
        fs::write(&mounted, content).unwrap();
        certificates(&mounted).unwrap().swap_remove(0)
    };
    let serve = |certificate: &Certificate| {
        let file = |name: &str| nats.directory().join(name);
        fs::write(file("cert.pem"), &certificate.certificate_pem).unwrap();
        fs::write(file("key.pem"), &certificate.key_pem).unwrap();
    };
    // Nobody could be told by a server that showed this one.
    let elsewhere = authority.certificate(&["elsewhere.example"]);
    serve(&elsewhere);
    bring("tls.crt", &elsewhere.certificate_pem);
    machine.signal(Signal::HUP);
    let lost = "is not good for localhost";
    machine
        .until("it refuses it", |machine| machine.said().contains(lost))
        .await;
    machine
        .until("it counts it", |_| {
            is_told(&reloads("certificate", "failed"))
        })
        .await;
    assert_eq!(shows().await, before);
    // The server's own key is the new one already, and the certificate the old one.
    let renewed = authority.certificate(&["localhost"]);
    serve(&renewed);
    fs::write(
        nats.directory().join("cert.pem"),
        &elsewhere.certificate_pem,
    )
    .unwrap();
    let wanted = bring("tls.crt", &renewed.certificate_pem);
    machine.signal(Signal::HUP);
    let lost = "private key does not match";
    machine
        .until("it fails", |machine| machine.said().contains(lost))
        .await;
    assert_eq!(shows().await, before);
    let told = async |machine: &mut Machine, wanted: &CertificateDer<'_>| {
        machine.signal(Signal::HUP);
        let begun = Instant::now();
        while shows().await != *wanted {
            assert!(begun.elapsed() < LIMIT, "{}", machine.said());
        }
    };
    serve(&renewed);
    told(machine, &wanted).await;
    // With another authority, and as it was.
    for other in [&Authority::new(), authority] {
        let certificate = other.certificate(&["localhost"]);
        serve(&certificate);
        bring("ca.crt", &certificate.authority_pem);
        let wanted = bring("tls.crt", &certificate.certificate_pem);
        told(machine, &wanted).await;
    }
}

/// What a test has for all its processes.
struct Cluster {
    tool: Machine,
    authority: Authority,
    nats: NatsServer,
    secrets: Secrets,
}

impl Cluster {
    /// With a NATS server that has the users of the roles, and TLS or none.
    async fn start(has_tls: bool) -> Self {
        let tool = Machine::new();
        let printed = tool.run(&["setup", "--print-permissions"]);
        let mut secrets = secrets();
        let mut config = String::new();
        for ((name, role), password) in &secrets {
            if *name == secret_of(What::NatsUsers) {
                let role = role.to_uppercase();
                // As the server finds it in its environment.
                config.push_str(&format!("MAILBELL_{role}_PASSWORD: {password}\n"));
            }
        }
        config.push_str(&text(&printed.stdout));
        config.push_str(&system_config(&"main".parse().unwrap()));
        let authority = Authority::new();
        let certificate = authority.certificate(&["localhost"]);
        let nats = NatsServer::start(NatsOptions {
            max_file_store: Some(8 << 30),
            tls: has_tls.then(|| certificate.clone()),
            config,
            ..NatsOptions::default()
        });
        let nats = nats.await.unwrap();
        for (name, key, content) in [
            ("own-nats-tls", "ca.crt", &certificate.authority_pem),
            ("own-nats-tls", "tls.crt", &certificate.certificate_pem),
            ("nats-ca", "ca.crt", &certificate.authority_pem),
            ("imap-ca", "ca.crt", &certificate.authority_pem),
            ("main-policy", "policy.json", &POLICY.to_owned()),
            ("tls", "tls.crt", &certificate.certificate_pem),
            ("tls", "tls.key", &certificate.key_pem),
        ] {
            secrets.insert((name.to_owned(), key.to_owned()), content.clone());
        }
        Self {
            tool,
            authority,
            nats,
            secrets,
        }
    }

    /// Runs all pods of an installation with these NATS servers, one after the other.
    async fn takes(&self, nats: Value) {
        let is_managed = nats.get("managed").is_some();
        let all = pods(nats);
        let started: Vec<&str> = all.iter().map(|(name, ..)| name.split_at(9).0).collect();
        assert_eq!(
            started,
            [
                "main-setu",
                "main-gate",
                "main-watc",
                "main-admi",
                "main-fini"
            ]
        );
        for (role, pod, container) in &all {
            let folder = TempDir::with_prefix("mailbell-pod-").unwrap();
            mount(pod, folder.path(), &self.secrets);
            let http = format!("127.0.0.1:{}", free_port().unwrap());
            let place = |value: &str| {
                let value = value.replace("/run/mailbell", folder.path().to_str().unwrap());
                match value.as_str() {
                    "[::]:7445" => http.clone(),
                    "[::]:7443" | "[::]:7444" => "127.0.0.1:0".to_owned(),
                    "tls://main-nats-0.main-nats.mail.svc:4222" => self.nats.url(),
                    other => other.to_owned(),
                }
            };
            let environment = container.get("env").unwrap().as_array().unwrap().iter();
            let environment: Vec<(String, String)> = environment
                .map(|variable| {
                    let field = |field: &str| variable.get(field).unwrap().as_str().unwrap();
                    (field("name").to_owned(), place(field("value")))
                })
                .collect();
            let arguments = container.get("args").unwrap().as_array().unwrap().iter();
            let arguments: Vec<&str> = arguments.map(|word| word.as_str().unwrap()).collect();
            let known = known(arguments.first().unwrap());
            for (name, _) in &environment {
                assert!(known.contains(name), "{role} knows nothing of {name}");
            }
            if role.starts_with("main-setup") || role.starts_with("main-finish") {
                let mut command: Command = self.tool.command(&arguments);
                let done = command.envs(environment).output().unwrap();
                assert!(done.status.success(), "{role}: {}", text(&done.stderr));
                continue;
            }
            let mut machine = Machine::new();
            machine.start_told(&arguments, environment, &http).await;
            if role.starts_with("main-admin") && is_managed {
                let (nats, authority) = (&self.nats, &self.authority);
                assert_renews(&mut machine, &http, nats, folder.path(), authority).await;
            }
            assert!(machine.stop().await.success(), "{role}: {}", machine.said());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_is_told_is_what_the_binary_takes() {
    Cluster::start(true).await.takes(managed()).await;
}

/// Of several addresses one may be of a server that is away.
#[tokio::test(flavor = "multi_thread")]
async fn nats_servers_of_ones_own_are_reached_by_what_a_mailbell_says_of_them() {
    let (of_tls, plain) = tokio::join!(Cluster::start(true), Cluster::start(false));
    let port = free_port().unwrap();
    let urls = [format!("tls://localhost:{port}"), of_tls.nats.url()];
    let external = json!({ "external": { "urls": urls, "usersSecret": "own-users", "caConfigMap": "nats-ca" } });
    of_tls.takes(external).await;
    // This machine, and no address of the loopback: in the clear, that has to be allowed.
    let urls = [format!("nats://0.0.0.0:{port}"), plain.nats.url()];
    let external =
        json!({ "external": { "urls": urls, "usersSecret": "own-users", "allowPlaintext": true } });
    plain.takes(external).await;
}
