//! Who reads docs/operating.md on a cluster, with what the page takes for granted: certificates, names, a mail server, a load balancer.

use std::{collections::BTreeSet, fs};

use mailbell_test_cluster::{
    Cluster, ClusterOptions, archive,
    guide::{Block, MAIL_HOST, MailServer, Needs, PUSH_HOST, USERS, blocks, certify, prepare},
};
use mailbell_test_servers::Authority;
use mailbell_tests::{
    auditor::{Place, Truth},
    device::Device,
    load::deliver,
    mailbox,
    world::{SETTLE_LIMIT, judge},
};

use crate::{
    balancer::Balancer,
    install::{self, targets, wait_ready},
    load::Numbers,
    pods::{self, NATS_SERVERS, Pod},
    terminal::Terminal,
    world::TAG,
};

/// What the page has, and what is typed in its place.
#[derive(Debug)]
struct StandIn {
    page: String,
    typed: String,
    used: bool,
}

#[derive(Debug)]
pub(crate) struct Reader {
    // In this order it ends.
    pub(crate) device: Option<Device>,
    pub(crate) terminal: Terminal,
    forwarding: Option<Terminal>,
    push: Option<Balancer>,
    pub(crate) cluster: Cluster,
    mail: MailServer,
    numbers: Numbers,
    account: String,
    /// The last message that was in its mailbox before the device came.
    before: u32,
    forward: String,
    /// What is still to be read.
    blocks: std::vec::IntoIter<Block>,
    stand_ins: Vec<StandIn>,
}

impl Reader {
    /// Before the first block.
    pub(crate) async fn start(stand_ins: &[[&str; 2]]) -> Self {
        let images = ["mailbell", "mailbell-next", "nats", "nats-next"];
        let options = ClusterOptions {
            nodes: 3,
            images: images.map(|name| archive(name).unwrap()).into(),
            names: vec![MAIL_HOST.to_owned()],
        };
        let cluster = Cluster::start(&options).await.unwrap();
        let authority = Authority::new();
        let mail = MailServer::start(&authority).await.unwrap();
        let outside = format!("{} {PUSH_HOST} {MAIL_HOST}", Cluster::OUTSIDE);
        let mut terminal = Terminal::open(&cluster, &format!("127.0.0.1 localhost\n{outside}\n"));
        prepare(terminal.folder()).unwrap();
        certify(terminal.folder(), &authority).unwrap();
        // Who signs certificates is known to nobody else.
        let trust = "export MAILBELL_CA=admin-ca.crt MAILBELL_IMAP_CA=admin-ca.crt";
        terminal.run(trust).await;
        let mut blocks = blocks().unwrap();
        blocks.retain(|block| matches!(block.needs, Needs::Server | Needs::Nodes));
        let mut reader = Self {
            device: None,
            terminal,
            forwarding: None,
            push: None,
            cluster,
            mail,
            numbers: Numbers::default(),
            account: String::new(),
            before: 0,
            forward: String::new(),
            blocks: blocks.into_iter(),
            stand_ins: Vec::new(),
        };
        for [page, typed] in stand_ins {
            reader.stand_in(page, typed);
        }
        reader
    }

    /// From now on this is typed where the page has that.
    pub(crate) fn stand_in(&mut self, page: &str, typed: &str) {
        self.stand_ins.retain(|known| known.page != page);
        self.stand_ins.push(StandIn {
            page: page.to_owned(),
            typed: typed.to_owned(),
            used: false,
        });
    }

    /// Has the next block, which forwards a port, stay in another terminal.
    pub(crate) async fn forward(&mut self) {
        self.forward = self.blocks.next().unwrap().script;
        self.forward_again().await;
    }

    /// Ends that, and begins it again.
    pub(crate) async fn forward_again(&mut self) {
        self.forwarding = None;
        let mut other = Terminal::open(&self.cluster, "127.0.0.1 localhost\n");
        other.begin(&self.forward);
        other.says("Forwarding from 127.0.0.1:7444").await;
        self.forwarding = Some(other);
    }

    /// Types all up to the block that has these words, and that one too: what it said.
    pub(crate) async fn through(&mut self, words: &str) -> String {
        self.begin(words).await;
        self.terminal.end().await
    }

    /// The same, without waiting for its end.
    pub(crate) async fn begin(&mut self, words: &str) {
        loop {
            let block = self.blocks.next();
            let block = block.unwrap_or_else(|| panic!("the rest of the page has not: {words}"));
            let mut script = block.script.clone();
            for stand_in in &mut self.stand_ins {
                if script.contains(&stand_in.page) {
                    script = script.replace(&stand_in.page, &stand_in.typed);
                    stand_in.used = true;
                }
            }
            println!("{}", script.trim_end());
            self.terminal.begin(&script);
            if block.script.contains(words) {
                return;
            }
            self.terminal.end().await;
        }
    }

    /// The page is read to its end, and nothing stands in for what it has not.
    pub(crate) fn assert_read(&self) {
        assert!(self.blocks.as_slice().is_empty(), "{:?}", self.blocks);
        let unused = self.stand_ins.iter().find(|stand_in| !stand_in.used);
        assert!(unused.is_none(), "{unused:?}");
    }

    pub(crate) async fn kubectl(&self, words: &str) -> String {
        install::kubectl(&self.cluster, words).await
    }

    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFnMut() -> bool) {
        install::until(&self.cluster, what, holds).await;
    }

    pub(crate) async fn pods_of(&self, part: &str) -> Vec<Pod> {
        let mut pods = pods::pods(&self.cluster).await;
        pods.retain(|pod| pod.component() == part);
        pods
    }

    /// Waits until the operator has seen what is wanted, and all pods run it with this image.
    pub(crate) async fn runs(&self, tag: &str) {
        let image = format!("mailbell.dev/mailbell:{tag}");
        let seen =
            "get mailbell main -o jsonpath={.metadata.generation}/{.status.observedGeneration}";
        self.until("all pods run what is wanted", async || {
            let seen = self.kubectl(seen).await;
            let pods = pods::pods(&self.cluster).await;
            let of = |part: &str| pods.iter().filter(|pod| pod.component() == part).count();
            let ours = |pod: &&Pod| pod.component() != "nats";
            seen.split_once('/').is_some_and(|(now, seen)| now == seen)
                && pods.iter().all(Pod::is_ready)
                && pods.iter().filter(ours).all(|pod| pod.image() == image)
                && ["watcher", "gateway", "admin"]
                    .iter()
                    .all(|part| of(part) > 0)
                && of("nats") == NATS_SERVERS
        })
        .await;
        wait_ready(&self.cluster).await;
    }

    /// The load balancer of a cloud, at the name by which devices come in; the service says where it is.
    pub(crate) async fn open_gateway(&mut self) {
        let port = "get service main-gateway -o jsonpath={.spec.type}/{.spec.ports[0].port}";
        let port = self.kubectl(port).await;
        let port = port.strip_prefix("LoadBalancer/").unwrap();
        let listen = (Cluster::OUTSIDE, port.parse().unwrap()).into();
        let gateways = targets(&self.cluster, "main-gateway").await;
        self.push = Some(Balancer::start(listen, gateways).await.unwrap());
        let address = format!(
            r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{}"}}]}}}}}}"#,
            Cluster::OUTSIDE
        );
        let patch = "patch service main-gateway --subresource=status --type=merge -p";
        self.kubectl(&format!("{patch} {address}")).await;
    }

    /// One message to the first mailbox of the page.
    pub(crate) async fn deliver(&self) {
        let number = self.numbers.next();
        let delivered = deliver(&self.mail.dovecot, USERS[0], number..number + 1).await;
        delivered.unwrap();
    }

    /// Connects a device that is told of this account, with the token that the page has made.
    pub(crate) async fn connect_device(&mut self, account: &str) {
        let read = |name: &str| fs::read_to_string(self.terminal.folder().join(name)).unwrap();
        let token = read("device.token");
        let places = vec![Place::inbox(account)];
        let url = format!("https://{}:7443", Cluster::OUTSIDE);
        self.before = self.mailbox().await.mail.last().map_or(0, |mail| mail.uid);
        let device = Device::new(url, token.trim().to_owned(), places).unwrap();
        let mut device = device.trusting(read("admin-ca.crt"));
        device.start().unwrap();
        let live = device.wait(SETTLE_LIMIT, "live", |journal| journal.live);
        live.await.unwrap();
        self.device = Some(device);
        self.account = account.to_owned();
    }

    /// Another device in its place.
    pub(crate) async fn connect_again(&mut self) {
        let account = self.account.clone();
        self.connect_device(&account).await;
    }

    async fn mailbox(&self) -> Truth {
        let read = mailbox::read(&self.mail.dovecot, USERS[0], "INBOX");
        read.await.unwrap()
    }

    /// One message more, after which the device must have all that has come to the mailbox since it is there, once and in order.
    pub(crate) async fn assert_told(&self) {
        self.deliver().await;
        let truth = self.mailbox().await.after(self.before);
        let all = [(Place::inbox(&self.account), truth)].into();
        let device = self.device.as_ref().unwrap();
        judge(&[device], &all).await.unwrap();
    }

    /// Puts the charts of the release after this one in their place.
    pub(crate) fn take_next_charts(&self, tag: &str) {
        let chart = self.terminal.folder().join("charts/mailbell/Chart.yaml");
        let text = fs::read_to_string(&chart).unwrap();
        let version = format!("appVersion: {TAG}");
        assert!(text.contains(&version), "{text}");
        let next = text.replace(&version, &format!("appVersion: {tag}"));
        fs::write(&chart, next).unwrap();
    }

    /// The names of all objects of these kinds in the namespace of the page.
    pub(crate) async fn names(&self, kinds: &str) -> BTreeSet<String> {
        let list = self.kubectl(&format!("get {kinds} -o name")).await;
        list.lines().map(ToOwned::to_owned).collect()
    }
}
