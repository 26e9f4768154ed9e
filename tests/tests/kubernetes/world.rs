//! A cluster, a mail server beside it, and Mailbell on it, with the accounts and devices of a test.

use std::{path::Path, sync::Arc, time::Instant};

use mailbell_test_cluster::{Cluster, ClusterOptions, archive};
use mailbell_test_servers::{Authority, Certificate, Dovecot, DovecotOptions};
use mailbell_tests::{journal::Journal, world::SETTLE_LIMIT};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    balancer::Balancer,
    figures::count_requests,
    install::{
        self, ADMIN_HOST, MAIL_HOST, balancer, install_definitions, install_operator, installation,
        provider, roots, tls_secret, turn,
    },
    load::{Load, Numbers, connections},
    subscribers::{DEVICES, LATE_USER, Mailbox, PASSWORD, Phone, USERS, declaration},
};

/// Of the image that `make image` makes, of the same with another name, and of the release before (`make e2e-images`).
pub(crate) const TAG: &str = env!("CARGO_PKG_VERSION");
pub(crate) const NEXT_TAG: &str = "next";
pub(crate) const PREV_TAG: &str = "prev";

/// What is there at first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// The image.
    pub(crate) tag: &'static str,
    /// The last account is declared by an object; else all are added by the admin API.
    pub(crate) declared: bool,
    /// Whom to trust is said of the mail provider; else of the installation.
    pub(crate) provider: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tag: TAG,
            declared: true,
            provider: false,
        }
    }
}

/// All of it. In this order it ends.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) phones: Vec<Phone>,
    pub(crate) push: Balancer,
    pub(crate) admin: Balancer,
    pub(crate) cluster: Cluster,
    pub(crate) dovecot: Arc<Dovecot>,
    pub(crate) mailboxes: Vec<Mailbox>,
    pub(crate) numbers: Numbers,
    directory: TempDir,
    authority: Authority,
    certificate: Certificate,
}

impl World {
    /// A cluster of three nodes with an installation that is ready, four accounts, and four devices on both gateways.
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub(crate) async fn start_with(options: Options) -> Self {
        let authority = Authority::new();
        let certificate = authority.certificate(&NAMES);
        let (cluster, dovecot) = servers(&certificate, options.tag).await;
        count_requests(&cluster).await;
        install_definitions(&cluster).await;
        install_operator(&cluster, options.tag).await;
        let mut objects = vec![roots(&certificate), tls_secret(&certificate)];
        if options.provider {
            objects.push(provider());
        }
        objects.push(installation(!options.provider));
        if options.declared {
            objects.extend(declaration(USERS[USERS.len() - 1], dovecot.imaps_port()));
        }
        let applied = Instant::now();
        install::apply(&cluster, objects).await;
        install::wait_ready(&cluster).await;
        let ready = applied.elapsed();
        let mut world = Self {
            phones: Vec::new(),
            push: balancer(&cluster, "main-gateway").await,
            admin: balancer(&cluster, "main-admin").await,
            cluster,
            dovecot: Arc::new(dovecot),
            mailboxes: Vec::new(),
            numbers: Numbers::default(),
            directory: TempDir::with_prefix("mailbell-test-").unwrap(),
            authority,
            certificate,
        };
        world.take_admin_token().await;
        world.add_account().await;
        let account = applied.elapsed();
        world.add_device(DEVICES[0]).await;
        let device = applied.elapsed();
        world.first_message(&world.phones[0]).await;
        let message = applied.elapsed();
        println!(
            "from apply to the first message pushed: {message:.1?} (ready {ready:.1?}, an account {:.1?} later, a device live after \
             {:.1?}, the message on it after {:.2?})",
            account - ready,
            device - account,
            message - device,
        );
        while world.mailboxes.len() < USERS.len() - usize::from(options.declared) {
            world.add_account().await;
        }
        if options.declared {
            world.wait_declared().await;
        }
        for mailboxes in &DEVICES[1..] {
            world.add_device(mailboxes).await;
        }
        world.judge().await;
        world.wait_running(options.tag).await;
        world
    }

    /// One more message to each mailbox, of which this device, which was told of none, is told.
    pub(crate) async fn first_message(&self, phone: &Phone) {
        self.deliver().await;
        let told = |journal: &Journal| journal.messages > 0;
        let waited = phone.device.wait(SETTLE_LIMIT, "the first message", told);
        waited.await.unwrap();
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Another certificate of the same authority, for the same names.
    pub(crate) fn new_certificate(&self) -> Certificate {
        self.authority.certificate(&NAMES)
    }

    /// Mail that arrives from now on.
    pub(crate) fn load(&self) -> Load {
        Load::start(&self.dovecot, &self.numbers, &self.mailboxes, &self.phones)
    }

    /// Ends it, and judges what all devices were told.
    pub(crate) async fn end(&self, load: Load, what: &str) {
        let outcome = load.stop().await;
        self.judge().await;
        println!(
            "{what}: {} messages to {} mailboxes, none lost; the longest took {:.1?} to one of {} devices, which connected {} times",
            outcome.messages,
            self.mailboxes.len(),
            outcome.longest,
            self.phones.len(),
            connections(&self.phones) - outcome.connections,
        );
    }

    /// Runs what happens while mail arrives, and judges what devices were told.
    pub(crate) async fn under_load(&self, what: &str, happens: impl Future<Output = ()>) {
        let load = self.load();
        happens.await;
        self.end(load, what).await;
    }

    /// In the namespace of the installation; what it printed.
    pub(crate) async fn kubectl(&self, words: &str) -> String {
        install::kubectl(&self.cluster, words).await
    }

    pub(crate) async fn helm(&self, words: &str) -> String {
        install::helm(&self.cluster, words).await
    }

    pub(crate) async fn apply(&self, objects: Vec<Value>) {
        install::apply(&self.cluster, objects).await;
    }

    /// Changes what is wanted of the installation.
    pub(crate) async fn patch(&self, spec: &Value) {
        let patch = json!({ "spec": spec }).to_string();
        self.kubectl(&format!("patch mailbell main --type=merge -p {patch}"))
            .await;
    }

    /// Upgrades the operator, and with it the installation, to this image.
    pub(crate) async fn upgrade(&self, tag: &str) {
        let chart = install::CHART;
        self.helm(&format!(
            "upgrade mailbell {chart} --reset-then-reuse-values --set image.tag={tag} --wait"
        ))
        .await;
        self.wait_running(tag).await;
    }

    pub(crate) async fn wait_ready(&self) {
        install::wait_ready(&self.cluster).await;
    }

    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFnMut() -> bool) {
        install::until(&self.cluster, what, holds).await;
    }

    /// Installs again what was uninstalled.
    pub(crate) async fn install_again(&self) {
        install_operator(&self.cluster, TAG).await;
        self.apply(vec![installation(true)]).await;
        self.wait_running(TAG).await;
        turn(&self.push, &self.cluster, "main-gateway").await;
        turn(&self.admin, &self.cluster, "main-admin").await;
    }
}

/// By which the mail server and the installation are known.
const NAMES: [&str; 4] = ["localhost", "127.0.0.1", MAIL_HOST, ADMIN_HOST];

async fn servers(certificate: &Certificate, tag: &str) -> (Cluster, Dovecot) {
    let mut images = vec!["mailbell", "nats"];
    images.push(if tag == PREV_TAG {
        "mailbell-prev"
    } else {
        "mailbell-next"
    });
    let options = ClusterOptions {
        nodes: 3,
        images: images.iter().map(|name| archive(name).unwrap()).collect(),
        names: vec![MAIL_HOST.to_owned()],
    };
    let user = |user: &str| (user.to_owned(), PASSWORD.to_owned());
    let dovecot = DovecotOptions {
        users: USERS.into_iter().chain([LATE_USER]).map(user).collect(),
        certificate: Some(certificate.clone()),
        // Pods come by the bridge.
        config: "listen = *\n".to_owned(),
        ..DovecotOptions::default()
    };
    let (cluster, dovecot) = tokio::join!(Cluster::start(&options), Dovecot::start(dovecot));
    (cluster.unwrap(), dovecot.unwrap())
}
