//! Thousands of mailboxes on the synthetic mail server, an installation with several watchers, and a way of its own for each of
//! them to the mail server and to NATS, which can be cut.
//!
//! All accounts name one host. Where a watcher has a way of its own, that name leads it, and it alone, to a proxy, behind which the
//! server knows by the way whose sessions come: see [`Launch::hosts`](crate::process::Launch::hosts) for what the machine must allow.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mailbell_proto::admin::v1::{
    CreateAccountRequest, GetShardsRequest, GetShardsResponse, ImapServer, MemberState,
    MintTokenRequest, TlsMode, accounts_client::AccountsClient, shards_client::ShardsClient,
    tokens_client::TokensClient,
};
use mailbell_test_servers::{Proxy, SyntheticImap, SyntheticOptions};
use tonic::{Code, transport::Channel};

use crate::{
    auditor::{Mail, Place, Truth},
    device::{Device, with_token},
    installation::{Installation, Layout, Options, Part, WatcherOptions},
    leaks, load,
    process::{self, may_have_own_hosts, until},
    requests::{Asker, Counts, Requests},
    sessions::{self, Blind, Verdict},
    traffic::Traffic,
    world::{self, Account, SETTLE_LIMIT},
};

/// So many accounts are added at once.
const ADDED_AT_ONCE: usize = 16;
/// How long an account may take to be added, with repeats.
const ADD_LIMIT: Duration = Duration::from_secs(60);
/// The name of the mail server where each watcher has a way of its own.
const HOST: &str = "imap.test";

/// What a crowd is made of.
#[derive(Debug, Clone)]
pub struct CrowdOptions {
    /// How many mailboxes, each an account.
    pub users: usize,
    /// How many watchers at first.
    pub watchers: usize,
    /// Whether each watcher has ways of its own, so that it can be cut off, and sessions are told apart by who holds them.
    pub own_ways: bool,
    /// NATS, and what the first watchers have for themselves; the layout and the ways are set here.
    pub installation: Options,
}

/// The ways of one watcher.
#[derive(Debug)]
pub struct Ways {
    /// To the mail server.
    pub imap: Proxy,
    /// To each node of NATS, in the order of the URL.
    pub nats: Vec<Proxy>,
}

/// All of it.
#[derive(Debug)]
pub struct Crowd {
    /// The mail server.
    pub server: Arc<SyntheticImap>,
    /// The installation.
    pub installation: Installation,
    /// The accounts, in the order of the users.
    pub accounts: Vec<Account>,
    own_ways: bool,
    ways: Vec<Ways>,
    /// Every token that was minted.
    tokens: Vec<String>,
    next: Arc<AtomicU64>,
}

impl Crowd {
    /// Starts the servers and adds the accounts; whether they are watched yet, [`Crowd::watched`] waits for.
    ///
    /// # Errors
    /// When something doesn't start.
    pub async fn start(options: CrowdOptions) -> anyhow::Result<Self> {
        let server = SyntheticImap::start(SyntheticOptions {
            users: options.users,
            password: leaks::PASSWORD.to_owned(),
        })
        .await?;
        let server = Arc::new(server);
        if options.own_ways {
            may_have_own_hosts()?;
        }
        let mut installation = options.installation;
        installation.layout = Layout::Roles;
        let watchers = &mut installation.watchers;
        watchers.resize_with(options.watchers, WatcherOptions::default);
        let mut ways = Vec::new();
        if options.own_ways {
            for n in 0..options.watchers {
                let part = Part::Watcher(u16::try_from(n)?);
                let (own, led) = Ways::open(&server, part, &installation).await?;
                ways.push(own);
                if let Some(watcher) = installation.watchers.get_mut(n) {
                    watcher.nats_url = led.nats_url;
                    watcher.hosts = led.hosts;
                }
            }
        }
        let mut crowd = Self {
            installation: Installation::start(installation).await?,
            server,
            accounts: Vec::new(),
            own_ways: options.own_ways,
            ways,
            tokens: Vec::new(),
            next: Arc::new(AtomicU64::new(1)),
        };
        crowd.add_accounts(0..options.users).await?;
        Ok(crowd)
    }

    /// Adds the accounts of these users, many at once; their logins aren't tried.
    async fn add_accounts(&mut self, users: Range<usize>) -> anyhow::Result<()> {
        let (url, token) = self.installation.admin()?;
        let client = AccountsClient::new(Channel::from_shared(url)?.connect().await?);
        let host = if self.own_ways { HOST } else { "127.0.0.1" };
        let port = u32::from(self.server.port());
        let adding = users.map(|n| {
            let user = SyntheticImap::user(n);
            let request = CreateAccountRequest {
                // A repeat after a lost answer finds the account that was added.
                external_id: user.clone(),
                server: Some(ImapServer {
                    host: host.to_owned(),
                    port,
                    tls: TlsMode::Plaintext.into(),
                    user: user.clone(),
                }),
                password: leaks::PASSWORD.to_owned(),
                no_check: true,
                ..CreateAccountRequest::default()
            };
            add_account(client.clone(), token.clone(), request, user)
        });
        let added: Vec<Account> = stream::iter(adding)
            .buffered(ADDED_AT_ONCE)
            .try_collect()
            .await?;
        self.accounts.extend(added);
        Ok(())
    }

    /// Starts one more watcher and doesn't wait for it.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn add_watcher(&mut self) -> anyhow::Result<Part> {
        let mut options = WatcherOptions::default();
        if self.own_ways {
            let part = Part::Watcher(u16::try_from(self.ways.len())?);
            let installation = self.installation.options();
            let (ways, led) = Ways::open(&self.server, part, installation).await?;
            self.ways.push(ways);
            options = led;
        }
        self.installation.add_watcher(options)
    }

    /// The ways of a watcher, to be cut and healed.
    ///
    /// # Errors
    /// When it has none of its own.
    pub fn ways(&self, watcher: Part) -> anyhow::Result<&Ways> {
        let ways = match watcher {
            Part::Watcher(n) => self.ways.get(usize::from(n)),
            _ => None,
        };
        ways.with_context(|| format!("{watcher} has no ways of its own"))
    }

    /// Waits until somebody idles in every mailbox.
    ///
    /// # Errors
    /// When that isn't so after `limit`; the text says how many there are.
    pub async fn watched(&self, limit: Duration) -> anyhow::Result<()> {
        let all = self.server.users();
        until(limit, "every mailbox to be watched", || async {
            self.server.watched() == all
        })
        .await
        .with_context(|| format!("{} of {all} are watched", self.server.watched()))
    }

    /// Waits until each mailbox is watched by one of these watchers and no other has a session of it, and each of them has its share:
    /// at least half of what is fair of the mailboxes, or, since these fall into partitions by chance, exactly the partitions that it
    /// should have.
    ///
    /// # Errors
    /// When that isn't so after `limit`; the text says who has how many.
    pub async fn shared_by(&self, watchers: &[Part], limit: Duration) -> anyhow::Result<()> {
        let names: BTreeSet<String> = watchers.iter().map(Part::to_string).collect();
        let least = self.server.users() / watchers.len().max(1) / 2;
        let shared = until(limit, "the mailboxes to be shared", || async {
            let shares = self.shares();
            let known = shares.keys().all(|holder| names.contains(holder));
            known
                && shares.len() == names.len()
                && self.is_single()
                && self.server.watched() == self.server.users()
                && (shares.values().all(|share| *share >= least)
                    || self.is_level(watchers).await.unwrap_or(false))
        });
        shared.await.with_context(|| self.who_watches())
    }

    /// Waits until these watchers, and no others, own what they should, so that nothing changes hands any more by itself, and each
    /// mailbox is watched by one alone.
    ///
    /// # Errors
    /// When that isn't so after `limit`; the text says who has how many.
    pub async fn level(&self, watchers: &[Part], limit: Duration) -> anyhow::Result<()> {
        let level = until(limit, "the shares to be level", || async {
            self.is_level(watchers).await.unwrap_or(false)
        });
        level.await.with_context(|| self.who_watches())?;
        self.single(limit).await?;
        Ok(())
    }

    /// Whether these watchers, and no others, own what they should.
    async fn is_level(&self, watchers: &[Part]) -> anyhow::Result<bool> {
        let (url, token) = self.installation.admin()?;
        let mut client = ShardsClient::new(Channel::from_shared(url)?.connect().await?);
        let request = with_token(GetShardsRequest {}, &token)?;
        let board = client.get_shards(request).await?;
        Ok(is_level(board.get_ref(), watchers))
    }

    /// Waits until each mailbox is watched, and by one watcher alone. That was so in this moment: each looks into its mailbox now and
    /// then, and waits for nothing meanwhile.
    ///
    /// # Errors
    /// When that isn't so after `limit`; the text says who has how many.
    pub async fn single(&self, limit: Duration) -> anyhow::Result<Instant> {
        let moment = Cell::new(None);
        let single = until(limit, "one session of each mailbox", || async {
            moment.set(self.server.all_watched());
            moment.get().is_some()
        });
        single.await.with_context(|| self.who_watches())?;
        moment.get().context("no such moment")
    }

    /// How many mailboxes each holder has a session of now.
    #[must_use]
    pub fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for holder in self.server.held().values().flatten() {
            *shares.entry(holder.to_string()).or_default() += 1;
        }
        shares
    }

    /// For the text of a failure.
    fn who_watches(&self) -> String {
        self.installation.keep();
        let (watched, shares) = (self.server.watched(), self.shares());
        let log = process::tail(&self.installation.log_file());
        format!("{watched} are watched, by {shares:?}\n{log}")
    }

    fn is_single(&self) -> bool {
        let held = self.server.held();
        held.values().all(|holders| holders.len() == 1)
    }

    /// Judges who held which mailbox within a window of time; with ways of their own, holders have the names of the watchers.
    #[must_use]
    pub fn verdict(&self, window: Range<Instant>, blind: &[Blind]) -> Verdict {
        let users = 0..self.server.users();
        sessions::judge(&self.server.records(), users, window, blind)
    }

    /// Delivers numbered messages to a user.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn deliver(&self, user: usize, count: u64) -> anyhow::Result<Range<u64>> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        for number in first..first + count {
            self.server.deliver(user, load::message(number))?;
        }
        Ok(first..first + count)
    }

    /// Delivers messages from now on, so many a second, each to some user of the seed's choice.
    #[must_use]
    pub fn traffic(&self, seed: u64, a_second: u32) -> Traffic {
        Traffic::start(
            Arc::clone(&self.server),
            Arc::clone(&self.next),
            seed,
            a_second,
        )
    }

    /// Lists the INBOX and checks the login of one account after the other from now on, and looks whether each answer is right. Returns
    /// when there are first answers.
    ///
    /// # Errors
    /// When there is no token to be had.
    pub async fn requests(&mut self) -> anyhow::Result<Requests> {
        Requests::start(&self.asker().await?).await
    }

    /// Lists the INBOX of every account at once, and looks whether each answer is right.
    ///
    /// # Errors
    /// When an answer is wrong, a refusal is not one to be tried again, or a listing takes too long.
    pub async fn list_all(&mut self) -> anyhow::Result<Counts> {
        self.asker().await?.list_all().await
    }

    async fn asker(&mut self) -> anyhow::Result<Asker> {
        Ok(Asker {
            push: (self.installation.push_url()?, self.tenant_token().await?),
            admin: self.installation.admin()?,
            server: Arc::clone(&self.server),
            accounts: self.accounts.clone(),
        })
    }

    /// A new device on the accounts of these users, connected and live.
    ///
    /// # Errors
    /// When it doesn't become live.
    pub async fn device(&mut self, users: &[usize]) -> anyhow::Result<Device> {
        let places = users
            .iter()
            .map(|n| self.place(*n))
            .collect::<anyhow::Result<Vec<Place>>>()?;
        let token = self
            .mint(MintTokenRequest {
                accounts: places.iter().map(|place| place.account.clone()).collect(),
                ..MintTokenRequest::default()
            })
            .await?;
        live(Device::new(self.installation.push_url()?, token, places)?).await
    }

    /// A new device on all accounts, as an app's back end has it, connected and live.
    ///
    /// # Errors
    /// When it doesn't become live.
    pub async fn device_of_all(&mut self) -> anyhow::Result<Device> {
        let places = self.accounts.iter().map(Account::inbox).collect();
        let token = self.tenant_token().await?;
        let device = Device::new(self.installation.push_url()?, token, places)?;
        live(device.of_tenant()).await
    }

    async fn tenant_token(&mut self) -> anyhow::Result<String> {
        self.mint(MintTokenRequest {
            whole_tenant: true,
            ..MintTokenRequest::default()
        })
        .await
    }

    async fn mint(&mut self, request: MintTokenRequest) -> anyhow::Result<String> {
        let (url, admin_token) = self.installation.admin()?;
        let mut client = TokensClient::new(Channel::from_shared(url)?.connect().await?);
        let minted = client
            .mint_token(with_token(request, &admin_token)?)
            .await?;
        let token = minted.into_inner().token;
        self.tokens.push(token.clone());
        Ok(token)
    }

    fn place(&self, user: usize) -> anyhow::Result<Place> {
        let account = self.accounts.get(user).context("there is no such user")?;
        Ok(account.inbox())
    }

    /// What lies in every INBOX, by the mail server's own word.
    ///
    /// # Errors
    /// Never, for users that it has.
    pub fn truth(&self) -> anyhow::Result<BTreeMap<Place, Truth>> {
        let mut all = BTreeMap::new();
        for (user, account) in self.accounts.iter().enumerate() {
            let messages = self.server.messages(user)?;
            let mail = messages.iter().map(|message| Mail {
                uid: message.uid,
                number: load::number_in(&String::from_utf8_lossy(&message.bytes)).unwrap_or(0),
            });
            let truth = Truth {
                generation: self.server.generation(),
                mail: mail.collect(),
            };
            all.insert(account.inbox(), truth);
        }
        Ok(all)
    }

    /// Waits until each device has all that lies in its mailboxes, and has it judged.
    ///
    /// # Errors
    /// When a device lacks something after a while, or was told something twice, out of order or wrong.
    pub async fn judge(&self, devices: &[&Device]) -> anyhow::Result<()> {
        world::judge_devices(&self.installation, devices, &self.truth()?).await
    }

    /// The last check of a test: delivers one last message to every user, has each device judged, and looks for planted secrets in
    /// all that was printed. Whatever comes late or twice came before that last message.
    ///
    /// # Errors
    /// As [`Crowd::judge`], or with the lines that have a secret.
    pub async fn finish(self, devices: &[&Device]) -> anyhow::Result<()> {
        for user in 0..self.server.users() {
            self.deliver(user, 1)?;
        }
        self.judge(devices).await?;
        world::search_leaks(&self.installation, &self.tokens).await
    }
}

/// Whether everything is where it should be, and that among these watchers.
fn is_level(board: &GetShardsResponse, watchers: &[Part]) -> bool {
    let members = board.members.iter();
    let live = members.filter(|member| member.state() == MemberState::Live);
    let live: BTreeSet<&str> = live.map(|member| member.id.as_str()).collect();
    let names: Vec<String> = watchers.iter().map(Part::to_string).collect();
    let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    board.steady && board.waiting.is_empty() && live == names
}

impl Ways {
    /// Opens the ways of a watcher, and says how it is led to them.
    async fn open(
        server: &SyntheticImap,
        watcher: Part,
        installation: &Options,
    ) -> anyhow::Result<(Self, WatcherOptions)> {
        let Part::Watcher(n) = watcher else {
            anyhow::bail!("only watchers have ways");
        };
        // All accounts name one port, so the ways differ by address.
        let own = Ipv4Addr::new(127, 0, 1, u8::try_from(n + 1)?);
        let behind = server.listen(&watcher.to_string()).await?;
        let imap = Proxy::start_at((own, server.port()).into(), behind).await?;
        let mut nats = Vec::new();
        for node in installation.nats_url.iter().flat_map(|url| url.split(',')) {
            let address: SocketAddr = node.trim_start_matches("nats://").parse()?;
            nats.push(Proxy::start(address).await?);
        }
        let urls: Vec<String> = nats
            .iter()
            .map(|proxy| format!("nats://{}", proxy.address()))
            .collect();
        let options = WatcherOptions {
            nats_url: Some(urls.join(",")),
            hosts: vec![(HOST.to_owned(), IpAddr::V4(own))],
            ..WatcherOptions::default()
        };
        Ok((Self { imap, nats }, options))
    }
}

async fn add_account(
    mut client: AccountsClient<Channel>,
    token: String,
    request: CreateAccountRequest,
    user: String,
) -> anyhow::Result<Account> {
    let deadline = Instant::now() + ADD_LIMIT;
    loop {
        let answer = client
            .create_account(with_token(request.clone(), &token)?)
            .await;
        match answer {
            Ok(answer) => {
                let account = answer.into_inner().account.context("no account")?;
                return Ok(Account {
                    user,
                    id: account.id,
                });
            }
            // "Try again", it says.
            Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                tokio::time::sleep(process::LOOK_EVERY).await;
            }
            Err(status) => return Err(status).context("adding an account"),
        }
    }
}

async fn live(mut device: Device) -> anyhow::Result<Device> {
    device.start()?;
    device
        .wait(SETTLE_LIMIT, "live", |journal| journal.live)
        .await?;
    Ok(device)
}
