//! The mailboxes of an installation, and the devices that are told of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mailbell_tests::{
    auditor::{Place, Truth},
    cli,
    device::Device,
    installation::write_secret,
    journal::{Journal, Step},
    load::deliver,
    mailbox,
    world::{SETTLE_LIMIT, judge},
};
use serde_json::{Value, json};

use crate::{
    install::{LIMIT, MAIL_HOST, NAME},
    pods::Pod,
    world::World,
};

/// The users of the mail server, each with a mailbox and an account.
pub(crate) const USERS: [&str; 4] = ["alice", "bob", "carol", "dora"];
/// Who has a mailbox, and no account yet.
pub(crate) const LATE_USER: &str = "erin";
pub(crate) const PASSWORD: &str = "secret";
/// Which of them each device is told of. The first one is there before the others, and is told of a message that they are not.
pub(crate) const DEVICES: [&[usize]; 4] = [&[0], &[1, 2, 3], &[1, 2], &[2, 3]];

/// A mailbox and the account that watches it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) user: String,
    pub(crate) account: String,
}

/// A device, and of which mailboxes it is told.
#[derive(Debug)]
pub(crate) struct Phone {
    pub(crate) device: Device,
    pub(crate) mailboxes: Vec<usize>,
}

/// Objects that declare the account of a user.
pub(crate) fn declaration(user: &str, port: u16) -> [Value; 2] {
    [
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": "mail-passwords" },
            "stringData": { user: PASSWORD },
        }),
        json!({
            "apiVersion": "mailbell.dev/v1alpha1",
            "kind": "MailAccount",
            "metadata": { "name": user },
            "spec": { "mailbell": NAME, "server": { "host": MAIL_HOST, "port": port, "user": user } },
        }),
    ]
}

impl World {
    /// What commands outside of the cluster need.
    pub(crate) async fn take_admin_token(&self) {
        let token = "get secret main-admin-token -o jsonpath={.data.tokens}";
        let token = BASE64_STANDARD.decode(self.kubectl(token).await).unwrap();
        let token = String::from_utf8(token).unwrap();
        write_secret(&self.path("admin.token"), &token).unwrap();
        write_secret(&self.path("password"), &format!("{PASSWORD}\n")).unwrap();
        fs::write(self.path("ca.crt"), &self.certificate().authority_pem).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub(crate) fn authority_file(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// A command as a person types it outside of the cluster; what it printed.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> String {
        let mut command = cli::command(self.directory(), arguments).unwrap();
        command
            .env("MAILBELL_ADMIN_URL", self.admin.url())
            .env("MAILBELL_ADMIN_TOKEN_FILE", self.path("admin.token"))
            .env("MAILBELL_ADMIN_CA", self.path("ca.crt"));
        let said = cli::finish(command).await.unwrap();
        said.ok().unwrap()
    }

    /// The same, of which one object is printed.
    async fn object(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.cli(arguments).await).unwrap()
    }

    /// The account of the next user, by the admin API.
    pub(crate) async fn add_account(&mut self) {
        let user = USERS[self.mailboxes.len()];
        let url = format!("imaps://{user}@{MAIL_HOST}:{}", self.dovecot.imaps_port());
        let password = self.path("password");
        let password = password.to_str().unwrap();
        let added = [
            "account",
            "add",
            &url,
            "--password-file",
            password,
            "--json",
        ];
        let account = text(&self.object(&added).await, "id");
        self.note_account(account);
    }

    /// The account of the next user, once its object says that it is watched.
    pub(crate) async fn wait_declared(&mut self) {
        let user = USERS[self.mailboxes.len()];
        let seconds = LIMIT.as_secs();
        self.kubectl(&format!(
            "wait mailaccount/{user} --for=condition=Ready --timeout={seconds}s"
        ))
        .await;
        let account = format!("get mailaccount {user} -o jsonpath={{.status.account}}");
        let account = self.kubectl(&account).await;
        self.note_account(account);
    }

    fn note_account(&mut self, account: String) {
        let user = USERS[self.mailboxes.len()].to_owned();
        self.mailboxes.push(Mailbox { user, account });
    }

    /// A device that is told of these mailboxes, outside of the cluster, connected and live.
    pub(crate) async fn add_device(&mut self, mailboxes: &[usize]) {
        let accounts = mailboxes.iter().map(|n| &self.mailboxes[*n].account);
        let mut mint = vec!["token", "mint", "--json"];
        let mut places = Vec::new();
        for account in accounts {
            mint.extend(["--account", account]);
            places.push(Place::inbox(account));
        }
        let token = text(&self.object(&mint).await, "token");
        let device = Device::new(self.push.url(), token, places).unwrap();
        let mut device = device.trusting(self.certificate().authority_pem.clone());
        device.start().unwrap();
        let live = device.wait(SETTLE_LIMIT, "live", |journal| journal.live);
        live.await.unwrap();
        let mailboxes = mailboxes.to_vec();
        self.phones.push(Phone { device, mailboxes });
    }

    /// Connects all devices anew, so that they are on all gateways, of which there are so many.
    pub(crate) async fn spread_devices(&mut self, gateways: usize) {
        // Nodes hear late of a pod that is there, and of one that is gone.
        self.until("those that have a gateway take devices", async || {
            let pods = self.pods_of("gateway").await;
            let nodes: BTreeSet<_> = pods.iter().filter_map(Pod::host).collect();
            nodes.len() == gateways && self.push.nodes_that_answer().await == nodes
        })
        .await;
        for phone in &mut self.phones {
            phone.device.stop().await.unwrap();
        }
        for phone in &mut self.phones {
            phone.device.start().unwrap();
            let live = phone
                .device
                .wait(SETTLE_LIMIT, "live", |journal| journal.live);
            live.await.unwrap();
        }
        assert_eq!(self.push.nodes_in_use(), gateways);
    }

    /// Waits until the installation shows all of its mailboxes and devices: the operator has asked the admin API and all gateways.
    pub(crate) async fn wait_counted(&self) {
        let (mailboxes, devices) = (self.mailboxes.len(), self.phones.len());
        let expected = format!("{mailboxes}/{mailboxes}/{devices}");
        let counts = "get mailbell main -o jsonpath={.status.counts.mailboxes}/{.status.counts.watched}/{.status.counts.devices}";
        self.until("the mailboxes and the devices are counted", async || {
            self.kubectl(counts).await == expected
        })
        .await;
    }

    /// How much each device was told.
    pub(crate) fn steps(&self) -> Vec<usize> {
        let of = |phone: &Phone| phone.device.journal().trail.len();
        self.phones.iter().map(of).collect()
    }

    /// Each device whose stream has ended since was told to go elsewhere; how many these are.
    pub(crate) fn told_to_go(&self, before: &[usize]) -> usize {
        let mut told = 0;
        for ends in self.ends_since(before) {
            // By its own gateway. After that it may come to one that goes too, or to one that takes nobody any more.
            if let Some(first) = ends.first() {
                assert!(first.contains("GoAway"), "{ends:?}");
                told += 1;
            }
        }
        told
    }

    /// How streams of each device have ended since, in order.
    fn ends_since(&self, before: &[usize]) -> Vec<Vec<String>> {
        let ends = |(phone, before): (&Phone, &usize)| {
            let trail = phone.device.journal().trail;
            let steps = trail[*before..].iter().map(Step::to_string);
            steps.filter(|step| step.contains("Disconnected")).collect()
        };
        self.phones.iter().zip(before).map(ends).collect()
    }

    /// How many messages devices have got.
    pub(crate) fn told(&self) -> usize {
        let of = |phone: &Phone| phone.device.journal().messages;
        self.phones.iter().map(of).sum()
    }

    /// One more message to each mailbox.
    pub(crate) async fn deliver(&self) {
        for mailbox in &self.mailboxes {
            let number = self.numbers.next();
            let done = deliver(&self.dovecot, &mailbox.user, number..number + 1).await;
            done.unwrap();
        }
    }

    /// One more message to each mailbox, after which each device must have all that lies in its mailboxes, once and in order. Nothing
    /// else may arrive meanwhile.
    pub(crate) async fn judge(&self) {
        self.deliver().await;
        let devices: Vec<&Device> = self.phones.iter().map(|phone| &phone.device).collect();
        judge(&devices, &self.truth().await).await.unwrap();
    }

    /// One more message to each mailbox, and waits until each device has what lies in its mailboxes, while more arrives.
    pub(crate) async fn wait_told(&self) {
        self.deliver().await;
        let all = self.truth().await;
        for phone in &self.phones {
            let truth = phone.device.expected(&all).unwrap();
            let told = |journal: &Journal| journal.has_all(&truth);
            let waited = phone.device.wait(SETTLE_LIMIT, "what lies there", told);
            waited.await.unwrap();
        }
    }

    /// What lies in the mailboxes now.
    async fn truth(&self) -> BTreeMap<Place, Truth> {
        let mut all = BTreeMap::new();
        for mailbox in &self.mailboxes {
            let truth = mailbox::read(&self.dovecot, &mailbox.user, "INBOX").await;
            all.insert(Place::inbox(&mailbox.account), truth.unwrap());
        }
        all
    }
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}
