//! Watchers that share a crowd of mailboxes, come, go and fail, while mail arrives all the time; judged on the mail server's side
//! (who held what when) and on the devices' (what came, once and in order).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use mailbell_test_servers::{Proxy, proxy::Mode};
use rustix::process::Signal;

use crate::{
    auditor::alerted,
    crowd::{Crowd, CrowdOptions},
    device::Device,
    installation::{Options, Part, STOP_LIMIT, WatcherOptions},
    process::until,
    sessions::{Blind, Fault, Verdict},
    traffic::Traffic,
};

/// A guard against a hang, not a bound that is asserted for its own sake: tests share two cores.
pub const SOON: Duration = Duration::from_secs(120);
/// How long two watchers may hold one mailbox though both hear: sessions that a watcher gives away may take 10 s to end
/// (`finish` of the watcher's options) before they are cut short, and the rest is for two busy cores.
pub const HAND_OVER: Duration = Duration::from_secs(20);
/// The longest that a mailbox may be alone if one of the others is there to take it: the detection takes 12 s, and the rest is for
/// the take-over on two busy cores.
pub const ALONE: Duration = Duration::from_secs(40);
/// The same where two nodes of a NATS cluster have no way to one another. A node passes nothing on for others, so a watcher whose node
/// has no way to the leader of a log reads nothing of it; what it is given meanwhile is alone until it has gone to another node, which
/// may take it several tries.
pub const NO_ROUTE: Duration = Duration::from_secs(120);
/// The same where a watcher has no way to a mail host: it probes that at least once a minute, and then logs in.
pub const NO_MAIL: Duration = Duration::from_secs(100);
/// The same where it is handed over: nobody has to find anything out, and what does not end by itself is cut short after 10 s.
pub const IN_ORDER: Duration = Duration::from_secs(15);

/// What a scene begins with.
#[derive(Debug, Clone)]
pub struct SceneOptions {
    /// How many mailboxes.
    pub users: usize,
    /// How many watchers.
    pub watchers: usize,
    /// Further arguments of the first of them.
    pub args: Vec<Vec<String>>,
    /// Further environment of every process.
    pub env: Vec<(String, String)>,
    /// Messages a second, over all mailboxes.
    pub a_second: u32,
    /// Whose mailboxes get them.
    pub seed: u64,
    /// The URL of NATS, with all its nodes.
    pub nats_url: String,
    /// Replicas of each stream.
    pub replicas: u8,
}

impl SceneOptions {
    /// A small one: sixty mailboxes, three watchers, one node of NATS.
    #[must_use]
    pub fn new(nats_url: String) -> Self {
        Self {
            users: 60,
            watchers: 3,
            args: Vec::new(),
            env: Vec::new(),
            a_second: 15,
            seed: 1,
            nats_url,
            replicas: 1,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Scene {
    /// The mailboxes and the installation.
    pub crowd: Crowd,
    devices: Vec<Device>,
    begun: Instant,
    blind: Vec<Blind>,
    /// Since when they are blind that are now.
    unhearing: BTreeMap<Part, Instant>,
    traffic: Traffic,
}

impl Scene {
    /// Starts all of it and waits until each watcher has its share, so that nothing changes hands any more, and the devices are live.
    /// Mail arrives from then on.
    ///
    /// # Errors
    /// When something doesn't start.
    pub async fn start(options: SceneOptions) -> anyhow::Result<Self> {
        let mut crowd = Crowd::start(CrowdOptions {
            users: options.users,
            watchers: options.watchers,
            own_ways: true,
            installation: Options {
                watchers: options.args.into_iter().map(with_args).collect(),
                env: options.env,
                nats_url: Some(options.nats_url),
                replicas: options.replicas,
                ..Options::default()
            },
        })
        .await?;
        let watchers = crowd.installation.watchers();
        crowd.level(&watchers, SOON).await?;
        let devices = vec![
            crowd.device_of_all().await?,
            crowd.device(&[0, 1, options.users - 1]).await?,
        ];
        for device in &devices {
            device.can_resume().await?;
        }
        Ok(Self {
            traffic: crowd.traffic(options.seed, options.a_second),
            crowd,
            devices,
            begun: Instant::now(),
            blind: Vec::new(),
            unhearing: BTreeMap::new(),
        })
    }

    /// Kills a watcher; nothing is known of it until it is launched again.
    pub fn kill(&mut self, watcher: Part) {
        self.crowd.installation.kill(watcher);
        self.hears(watcher);
    }

    /// Asks a watcher to end and waits for that, however far it had come.
    ///
    /// # Errors
    /// When it doesn't run, or doesn't end.
    pub async fn end(&mut self, watcher: Part) -> anyhow::Result<()> {
        let process = self.crowd.installation.process_mut(watcher)?;
        process.terminate(STOP_LIMIT).await?;
        self.kill(watcher);
        Ok(())
    }

    /// Starts those again that have ended by themselves, as a supervisor does: who starts while NATS is away gives up.
    ///
    /// # Errors
    /// When one can't be started.
    pub fn supervise(&mut self) -> anyhow::Result<()> {
        for watcher in self.crowd.installation.watchers() {
            if !self.crowd.installation.runs(watcher) {
                self.crowd.installation.launch(watcher)?;
            }
        }
        Ok(())
    }

    /// Stops a watcher; its sessions stay, and nobody hears them.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn freeze(&mut self, watcher: Part) -> anyhow::Result<()> {
        self.crowd.installation.signal(watcher, Signal::STOP)?;
        self.unhears(watcher);
        Ok(())
    }

    /// Lets a stopped watcher go on.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn thaw(&mut self, watcher: Part) -> anyhow::Result<()> {
        self.crowd.installation.signal(watcher, Signal::CONT)?;
        self.hears(watcher);
        Ok(())
    }

    /// What happens from now on between a watcher and NATS. Whatever it hears of mail, it can tell nobody.
    ///
    /// # Errors
    /// When there is no such watcher.
    pub fn cut_from_nats(&mut self, watcher: Part, mode: Mode) -> anyhow::Result<()> {
        for way in &self.crowd.ways(watcher)?.nats {
            way.set(mode);
        }
        self.unhears(watcher);
        Ok(())
    }

    /// Ends what [`Scene::cut_from_nats`] began. What has lost bytes is reset first, as no connection of TCP goes on after a hole.
    ///
    /// # Errors
    /// When there is no such watcher.
    pub async fn heal_nats(&mut self, watcher: Part) -> anyhow::Result<()> {
        for way in &self.crowd.ways(watcher)?.nats {
            heal(way).await;
        }
        self.hears(watcher);
        Ok(())
    }

    /// What happens from now on between a watcher and the mail server.
    ///
    /// # Errors
    /// When there is no such watcher.
    pub fn cut_from_mail(&mut self, watcher: Part, mode: Mode) -> anyhow::Result<()> {
        self.crowd.ways(watcher)?.imap.set(mode);
        self.unhears(watcher);
        Ok(())
    }

    /// Ends what [`Scene::cut_from_mail`] began, as [`Scene::heal_nats`] does.
    ///
    /// # Errors
    /// When there is no such watcher.
    pub async fn heal_mail(&mut self, watcher: Part) -> anyhow::Result<()> {
        heal(&self.crowd.ways(watcher)?.imap).await;
        self.hears(watcher);
        Ok(())
    }

    fn unhears(&mut self, watcher: Part) {
        self.unhearing.entry(watcher).or_insert_with(Instant::now);
    }

    fn hears(&mut self, watcher: Part) {
        if let Some(since) = self.unhearing.remove(&watcher) {
            self.blind.push(Blind {
                holder: watcher.to_string(),
                time: since..Instant::now(),
            });
        }
    }

    /// Waits until these watchers share the mailboxes, and nobody else has a session.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn shared_by(&self, watchers: &[Part]) -> anyhow::Result<()> {
        self.crowd.shared_by(watchers, SOON).await
    }

    /// Waits until the device of all mailboxes was told of so many messages more.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn more_arrived(&self, messages: usize) -> anyhow::Result<()> {
        let device = self.devices.first().context("no device")?;
        let before = device.journal().arrivals().len();
        until(SOON, "more messages", || async {
            device.journal().arrivals().len() >= before + messages
        })
        .await
    }

    /// Ends the traffic, waits until every mailbox is watched by one watcher alone, and judges both sides.
    ///
    /// # Errors
    /// When two watchers held a mailbox for too long with no excuse, one was alone for longer than `alone`, or a device lacks
    /// something, or was told something twice, out of order or wrong, or of a new message without an alert.
    pub async fn finish(self, alone: Duration) -> anyhow::Result<Verdict> {
        self.finish_after(&[], alone).await
    }

    /// As [`Scene::finish`], but how long a mailbox was alone is counted from the last of these faults: see [`Verdict::late`].
    ///
    /// # Errors
    /// As [`Scene::finish`].
    pub async fn finish_after(
        mut self,
        faults: &[Fault],
        alone: Duration,
    ) -> anyhow::Result<Verdict> {
        let watchers = self.crowd.installation.watchers();
        for watcher in watchers {
            self.hears(watcher);
        }
        let messages = self.traffic.stop().await?;
        ensure!(messages > 0, "no mail arrived");
        self.crowd.installation.ready().await?;
        let end = self.crowd.single(SOON).await?;
        let verdict = self.crowd.verdict(self.begun..end, &self.blind);
        let judged = judge(&verdict, &self.blind, faults, alone);
        if judged.is_err() {
            self.crowd.installation.keep();
        }
        judged?;
        let devices: Vec<&Device> = self.devices.iter().collect();
        self.crowd.finish(&devices).await?;
        for device in devices {
            let journal = device.journal();
            let alerted = BTreeSet::from_iter(alerted(&journal.seen));
            let silent = journal.arrivals();
            let silent = silent.iter().filter(|number| !alerted.contains(number));
            ensure!(
                silent.clone().next().is_none(),
                "nobody was alerted of {} messages",
                silent.count()
            );
        }
        Ok(verdict)
    }
}

fn with_args(args: Vec<String>) -> WatcherOptions {
    WatcherOptions {
        args,
        ..WatcherOptions::default()
    }
}

async fn heal(way: &Proxy) {
    if loses(way.mode()) {
        way.set(Mode::Cut);
        way.connections(|count| *count == 0).await;
    }
    way.set(Mode::PASS);
}

/// Whether some bytes of a connection in this mode never arrive.
fn loses(mode: Mode) -> bool {
    [Mode::DEAF, Mode::MUTE, Mode::BLACK_HOLE].contains(&mode)
}

fn judge(
    verdict: &Verdict,
    blind: &[Blind],
    faults: &[Fault],
    alone: Duration,
) -> anyhow::Result<()> {
    let doubled = verdict.doubled(blind, HAND_OVER);
    ensure!(
        doubled.is_empty(),
        "{} mailboxes were held twice for too long: {verdict}",
        doubled.len()
    );
    let late = verdict.late(faults, alone);
    if let Some(gap) = late.first() {
        bail!(
            "{} mailboxes were alone for too long, u{} for {:?} and {:?} after the last fault: {verdict}",
            late.len(),
            gap.user,
            gap.length(),
            gap.after(faults)
        );
    }
    ensure!(verdict.unwatched.is_empty(), "{verdict}");
    Ok(())
}
