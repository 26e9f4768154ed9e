//! A mail server, an installation and its accounts, ready for devices.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{anyhow, bail, ensure};
use mailbell_test_servers::{Dovecot, DovecotOptions};

use crate::{
    auditor::{self, Place, Truth, audit, describe},
    device::Device,
    installation::{Installation, Options},
    leaks, load, mailbox, process,
};

/// How long a message may take to every device before a test gives up. Generous: tests share two cores, and a mail server that was
/// away is tried again after up to a minute.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(150);

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// How many mailboxes, each an account.
    pub users: usize,
    /// The mail server; its users are added.
    pub dovecot: DovecotOptions,
    /// The installation.
    pub installation: Options,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            users: 1,
            dovecot: DovecotOptions::default(),
            installation: Options::default(),
        }
    }
}

/// A mailbox and the account that watches it.
#[derive(Debug, Clone)]
pub struct Account {
    /// The mail server's name of the user.
    pub user: String,
    /// Mailbell's name of the account.
    pub id: String,
}

impl Account {
    /// Its INBOX.
    #[must_use]
    pub fn inbox(&self) -> Place {
        Place::inbox(&self.id)
    }
}

/// All of it.
#[derive(Debug)]
pub struct World {
    /// The mail server.
    pub dovecot: Dovecot,
    /// The installation.
    pub installation: Installation,
    /// The accounts, in the order of the users.
    pub accounts: Vec<Account>,
    /// Every token that was minted.
    tokens: Vec<String>,
    next: AtomicU64,
}

/// The name of the n-th planted user.
#[must_use]
pub fn user(n: usize) -> String {
    format!("{}-{n}@example.org", leaks::USER)
}

impl World {
    /// Starts the servers and adds the accounts.
    ///
    /// # Errors
    /// When something doesn't start.
    pub async fn start(options: WorldOptions) -> anyhow::Result<Self> {
        let mut dovecot = options.dovecot;
        for n in 0..options.users {
            dovecot.users.push((user(n), leaks::PASSWORD.to_owned()));
        }
        let (dovecot, installation) = tokio::join!(
            Dovecot::start(dovecot),
            Installation::start(options.installation)
        );
        let mut world = Self {
            dovecot: dovecot?,
            installation: installation?,
            accounts: Vec::new(),
            tokens: Vec::new(),
            next: AtomicU64::new(1),
        };
        for n in 0..options.users {
            world.add(&user(n)).await?;
        }
        Ok(world)
    }

    /// Adds the account of a user.
    ///
    /// # Errors
    /// With all that the command said.
    pub async fn add(&mut self, user: &str) -> anyhow::Result<Account> {
        let id = self.installation.add_account(&self.dovecot, user).await?;
        let account = Account {
            user: user.to_owned(),
            id,
        };
        self.accounts.push(account.clone());
        Ok(account)
    }

    /// The n-th account.
    ///
    /// # Panics
    /// When there are not so many: a fault of the test.
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "a test names accounts that it made"
    )]
    pub fn account(&self, n: usize) -> &Account {
        &self.accounts[n]
    }

    /// A token for these accounts.
    ///
    /// # Errors
    /// With all that the command said.
    pub async fn token(&mut self, accounts: &[usize]) -> anyhow::Result<String> {
        let ids: Vec<String> = accounts
            .iter()
            .map(|n| self.account(*n).id.clone())
            .collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let token = self.installation.mint(&ids).await?;
        self.tokens.push(token.clone());
        Ok(token)
    }

    /// A new device on these accounts, connected and live.
    ///
    /// # Errors
    /// When it doesn't become live.
    pub async fn device(&mut self, accounts: &[usize]) -> anyhow::Result<Device> {
        let token = self.token(accounts).await?;
        let places = accounts.iter().map(|n| self.account(*n).inbox()).collect();
        let mut device = Device::new(self.installation.push_url()?, token, places)?;
        device.start()?;
        device
            .wait(SETTLE_LIMIT, "live", |journal| journal.live)
            .await?;
        Ok(device)
    }

    /// The next numbers for messages.
    pub fn numbers(&self, count: u64) -> Range<u64> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        first..first + count
    }

    /// Delivers messages to an account by LMTP.
    ///
    /// # Errors
    /// When the mail server refuses.
    pub async fn deliver(&self, account: usize, count: u64) -> anyhow::Result<Range<u64>> {
        let numbers = self.numbers(count);
        load::deliver(&self.dovecot, &self.account(account).user, numbers.clone()).await?;
        Ok(numbers)
    }

    /// What lies in an account's INBOX.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn truth(&self, account: usize) -> anyhow::Result<Truth> {
        Ok(mailbox::read(&self.dovecot, &self.account(account).user, "INBOX").await?)
    }

    /// Delivers one last message to every account, waits until each device has all that lies in its mailboxes, and has each
    /// device judged. Whatever comes late or twice came before that last message.
    ///
    /// # Errors
    /// When a device lacks something after a while, or was told something twice, out of order or wrong.
    pub async fn settle(&self, devices: &[&Device]) -> anyhow::Result<()> {
        for n in 0..self.accounts.len() {
            self.deliver(n, 1).await?;
        }
        self.judge(devices).await
    }

    /// Like [`World::settle`], without a last message.
    ///
    /// # Errors
    /// The same.
    pub async fn judge(&self, devices: &[&Device]) -> anyhow::Result<()> {
        let mut all = BTreeMap::new();
        for (n, account) in self.accounts.iter().enumerate() {
            all.insert(account.inbox(), self.truth(n).await?);
        }
        judge_devices(&self.installation, devices, &all).await
    }

    /// Looks for planted secrets in all that the installation has printed, and in its metrics if it runs.
    ///
    /// # Errors
    /// With the lines that have one.
    pub async fn search_leaks(&self) -> anyhow::Result<()> {
        search_leaks(&self.installation, &self.tokens).await
    }

    /// The last check of a test.
    ///
    /// # Errors
    /// As [`World::settle`] and [`World::search_leaks`].
    pub async fn finish(self, devices: &[&Device]) -> anyhow::Result<()> {
        self.settle(devices).await?;
        self.search_leaks().await
    }
}

/// The numbers of which each message of a range alerted exactly once.
#[must_use]
pub fn alerted_once(device: &Device, numbers: Range<u64>) -> bool {
    let alerts = auditor::alerted(&device.journal().seen);
    numbers
        .into_iter()
        .all(|number| alerts.iter().filter(|n| **n == number).count() == 1)
}

/// Waits until each device has all of `all` that it is subscribed to, and has it judged.
///
/// # Errors
/// As [`World::judge`].
pub async fn judge_devices(
    installation: &Installation,
    devices: &[&Device],
    all: &BTreeMap<Place, Truth>,
) -> anyhow::Result<()> {
    judge(devices, all).await.map_err(|error| {
        installation.keep();
        let log = process::tail(&installation.log_file());
        anyhow!("{error:#}\n{log}")
    })
}

/// The same, wherever the devices' installation is.
///
/// # Errors
/// As [`World::judge`].
pub async fn judge(devices: &[&Device], all: &BTreeMap<Place, Truth>) -> anyhow::Result<()> {
    for (n, device) in devices.iter().enumerate() {
        let truth = device.expected(all)?;
        let complete = device
            .wait(SETTLE_LIMIT, "everything", |journal| {
                journal.has_all(&truth)
            })
            .await;
        let journal = device.journal();
        let faults = audit(&truth, &journal.seen);
        if !faults.is_empty() || complete.is_err() {
            bail!(
                "device {n}: {}\nended {:?}\n  {}",
                describe(&faults),
                journal.ended,
                journal.told(),
            );
        }
    }
    Ok(())
}

/// Looks for planted secrets in all that an installation has printed, and in its metrics if it runs. A token's signature is enough
/// to know it by.
///
/// # Errors
/// With the lines that have one.
pub async fn search_leaks(installation: &Installation, tokens: &[String]) -> anyhow::Result<()> {
    let mut text = installation.log();
    text.push_str(&installation.metrics().await);
    ensure!(
        !text.is_empty(),
        "nothing was printed: there is nothing to search"
    );
    let signatures: Vec<&str> = tokens
        .iter()
        .filter_map(|token| token.rsplit('.').next())
        .collect();
    let found = leaks::find(&text, &signatures);
    ensure!(found.is_empty(), "secrets in logs: {found:#?}");
    Ok(())
}
