//! Many mailboxes, on a mail server that notes who logged in when: what they share, and what each has for itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mailbell_bus::{Role, Share, ShareOptions};
use mailbell_core::ids::{AccountId, Group, Tenant};
use mailbell_proto::{admin::v1::TlsMode, bus::v1::AccountRecord, push::v1::Health};
use mailbell_test_servers::{DovecotOptions, SyntheticImap, SyntheticOptions};
use mailbell_watcher::Options;
use tokio::time::sleep;
use ulid::Ulid;

use crate::world::{LIMIT, World, mail};

/// How often is looked whether something has come.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The mail server; its users have accounts in the order of their numbers.
struct Crowd {
    server: SyntheticImap,
    accounts: Vec<AccountId>,
}

impl Crowd {
    /// Writes the accounts of so many users; all in one partition, or anywhere.
    async fn start(world: &World, users: usize, together: bool) -> Self {
        let server = SyntheticImap::start(SyntheticOptions {
            users,
            password: "secret".to_owned(),
        });
        let mut crowd = Self {
            server: server.await.unwrap(),
            accounts: Vec::new(),
        };
        for user in 0..users {
            let beside = crowd.accounts.first().filter(|_| together);
            let account = account_beside(beside);
            let record = crowd.record(world, user);
            let sealed = world.sealed(&account, &record, crowd.server.password());
            world.write(&account, record, Some(sealed)).await;
            crowd.accounts.push(account);
        }
        crowd
    }

    fn record(&self, world: &World, user: usize) -> AccountRecord {
        AccountRecord {
            host: "127.0.0.1".to_owned(),
            port: self.server.port().into(),
            tls: TlsMode::Plaintext.into(),
            user: SyntheticImap::user(user),
            ..world.record(&["INBOX"])
        }
    }

    async fn watched(&self) {
        until("every mailbox to be watched", || {
            self.server.watched() == self.server.users()
        })
        .await;
    }

    /// Who came since then and logged in, and when they came, in order: the login itself takes a while on busy cores.
    fn logins(&self, since: Instant) -> Vec<(Instant, usize)> {
        let records = self.server.records().into_iter();
        let logged_in = records.filter(|session| session.logged_in.is_some());
        let logins = logged_in.filter_map(|session| Some((session.opened, session.user?)));
        let mut logins: Vec<_> = logins.filter(|(at, _)| *at >= since).collect();
        logins.sort();
        logins
    }
}

/// A new account, in the same partition as another one.
fn account_beside(other: Option<&AccountId>) -> AccountId {
    let is_beside =
        |account: &AccountId| other.is_none_or(|other| other.partition() == account.partition());
    let mut all = std::iter::repeat_with(|| AccountId::new(Tenant::default(), Ulid::generate()));
    all.find(is_beside).unwrap()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < LIMIT, "{what}");
        sleep(LOOK_EVERY).await;
    }
}

/// A whole life of an account, with a mail server that refuses it for a while: those of the same partition notice nothing, and keep
/// the connections that they have.
#[tokio::test]
async fn what_happens_to_one_account_is_nothing_to_its_neighbours() {
    const NEIGHBOURS: usize = 5;
    let world = World::new().await;
    let crowd = Crowd::start(&world, NEIGHBOURS, true).await;
    crowd.watched().await;
    let before = crowd.server.records().len();
    assert_eq!(before, NEIGHBOURS);

    world
        .dovecot
        .imap("alice")
        .await
        .unwrap()
        .command("CREATE Work")
        .await
        .unwrap();
    let account = account_beside(crowd.accounts.first());
    let record = |version, folders: &[&str]| AccountRecord {
        credential_version: version,
        ..world.record(folders)
    };
    let password = async |record: &AccountRecord, password: &str| {
        let sealed = world.sealed(&account, record, password);
        world.write(&account, record.clone(), Some(sealed)).await;
    };
    password(&record(1, &["INBOX"]), "secret").await;
    world.until_watching(&account).await;
    password(&record(2, &["INBOX"]), "wrong").await;
    world
        .until_status(&account, |_, health| health == Health::ActionNeeded)
        .await;
    password(&record(3, &["INBOX"]), "secret").await;
    world.until_watching(&account).await;
    let both = record(3, &["INBOX", "Work"]);
    world.write(&account, both.clone(), None).await;
    world
        .until_events(&account, |events| {
            events.iter().any(|event| event.folder_name == "Work")
        })
        .await;
    let paused = AccountRecord {
        paused: true,
        ..both.clone()
    };
    world.write(&account, paused, None).await;
    world
        .until_status(&account, |_, health| health == Health::Paused)
        .await;
    world.write(&account, both.clone(), None).await;
    world.until_watching(&account).await;
    let tombstone = AccountRecord {
        removed_at_ms: 1,
        ..both
    };
    world.write(&account, tombstone, None).await;
    world.until_forgotten(&account).await;

    for (user, neighbour) in crowd.accounts.iter().enumerate() {
        crowd.server.deliver(user, mail("one")).unwrap();
        assert_eq!(world.until_arrived(neighbour, 1).await, ["one"]);
    }
    let records = crowd.server.records();
    assert_eq!(records.len(), before, "nobody has connected again");
    assert!(records.iter().all(|session| session.ended.is_none()));
}

/// How many consumers each stream of a bucket of accounts has.
async fn consumers(world: &World) -> BTreeMap<String, u64> {
    let mut consumers = BTreeMap::new();
    for group in Group::all() {
        for bucket in ["STATE", "CKPT"] {
            let stream = format!("KV_MB_test_{bucket}_{group}");
            let info = world.api(&format!("STREAM.INFO.{stream}"), "").await;
            let (_, rest) = info.split_once("\"consumer_count\":").unwrap();
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
            let (count, _) = rest.split_at(digits);
            consumers.insert(stream, count.parse().unwrap());
        }
    }
    consumers
}

/// Waits until nobody has more consumers than one for the changes of each bucket of accounts: a pass over a bucket has had another, which
/// the server forgets a while later.
async fn until_one_a_bucket(world: &World) {
    let begun = Instant::now();
    let one = |(stream, count): (&String, &u64)| *count == u64::from(stream.contains("STATE"));
    loop {
        let there = consumers(world).await;
        if there.iter().all(one) {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{there:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// A watcher learns of changes of its accounts with one consumer a bucket, however many partitions it has.
#[tokio::test]
async fn partitions_cost_no_consumers() {
    /// Its weight leaves a watcher four partitions or so of 1024.
    const HEAVY: u32 = 25_500;
    /// More than a batch of direct gets has.
    const LARGE: usize = 1100;
    let mut world = World::without_watcher(DovecotOptions::default()).await;
    // Something to read in each bucket, and in some so much that a pass over it has a consumer.
    for group in Group::all() {
        let ours = |account: &AccountId| account.group() == group;
        let accounts = std::iter::repeat_with(|| account_beside(None)).filter(ours);
        let count = if group.number() < 2 { LARGE } else { 1 };
        for account in accounts.take(count) {
            let record = AccountRecord {
                paused: true,
                ..world.record(&["INBOX"])
            };
            world.write(&account, record, None).await;
        }
    }
    let bus = world.bus(Role::Watcher).await;
    let mut shards = bus
        .share(ShareOptions {
            weight: HEAVY,
            ..ShareOptions::new("heavy", "1")
        })
        .unwrap();
    let heavy = tokio::spawn(async move {
        while let Some(share) = shards.next().await {
            match share {
                Share::Load {
                    partition, epoch, ..
                } => shards.serving(partition, epoch, 0),
                Share::Finish { partition, epoch } => shards.finished(partition, epoch),
                _ => {}
            }
        }
    });
    let light = world.begin("pod-0", |_| {}).await;
    until("a few partitions", || light.partitions() > 0).await;
    until_one_a_bucket(&world).await;
    assert!(light.partitions() < 32, "{}", light.partitions());
    heavy.abort();
    until("all partitions", || light.partitions() == 1024).await;
    until_one_a_bucket(&world).await;
}

/// What others have written since the last look proves how far logs had come. It is looked at while the silent one may still live, so that
/// nobody waits for that once its partitions can be taken.
#[tokio::test]
async fn checkpoints_are_looked_at_when_somebody_falls_silent() {
    let mut world = World::without_watcher(DovecotOptions::default()).await;
    world.timing.member_renew = Duration::from_secs(1);
    world.timing.member_dead = Duration::from_secs(4);
    let group = account_beside(None).group();
    let bus = world.bus(Role::Watcher).await;
    let mut shards = bus.share(ShareOptions::new("silent", "1")).unwrap();
    let left = Arc::new(Mutex::new(BTreeSet::new()));
    let has = Arc::clone(&left);
    let silent = tokio::spawn(async move {
        while let Some(share) = shards.next().await {
            match share {
                Share::Load {
                    partition, epoch, ..
                } => {
                    has.lock().unwrap().insert(partition.number());
                    shards.serving(partition, epoch, 0);
                }
                Share::Finish { partition, epoch } => {
                    has.lock().unwrap().remove(&partition.number());
                    shards.finished(partition, epoch);
                }
                _ => {}
            }
        }
    });
    let begun = Instant::now();
    let other = world.begin("pod-0", |_| {}).await;
    // What it saw at its start no longer counts.
    let long_ago = world.timing.member_dead * 6;
    until("a part of the partitions", || {
        other.partitions() > 400 && begun.elapsed() > long_ago
    })
    .await;
    silent.abort();
    let calls = world.note_calls(group).await;
    until("all partitions", || other.partitions() == 1024).await;
    let left = left.lock().unwrap();
    let claims = calls.claims();
    let mut taken = claims.iter().filter(|(_, of)| left.contains(of));
    let (taken, _) = taken.next().unwrap();
    let looked = calls.of("STREAM.INFO", "CKPT");
    let first = looked.first();
    assert!(
        first.is_some_and(|first| first < taken),
        "{looked:?}, {taken}"
    );
}

/// Two watchers share what a mail host lets in: together they log in no faster, also while one dies and the other takes what it had.
#[tokio::test]
async fn watchers_share_the_budget_of_a_mail_host() {
    const USERS: usize = 40;
    const A_SECOND: u32 = 10;
    const WINDOW: Duration = Duration::from_secs(2);
    /// Each may have one in hand, and on two busy cores a few may come late. With all of the budget for each there are 35 or more.
    const WITHIN: usize = 28;
    let few = |options: &mut Options| options.logins_per_host = A_SECOND;
    let mut world = World::without_watcher(DovecotOptions::default()).await;
    let one = world.begin("pod-0", few).await;
    let two = world.begin("pod-1", few).await;
    let shares = |one: usize, two: usize| one + two == 1024 && one.min(two) > 400;
    until("each to have its share", || {
        shares(one.partitions(), two.partitions())
    })
    .await;
    let crowd = Crowd::start(&world, USERS, false).await;
    crowd.watched().await;

    let begun = Instant::now();
    crowd.server.cut(|_| true);
    until("most of them to be back", || {
        crowd.logins(begun).len() >= USERS * 3 / 4
    })
    .await;
    one.crash().await;
    until("the other to have all", || two.partitions() == 1024).await;
    crowd.watched().await;
    let logins = crowd.logins(begun);
    // Those of the dead one too.
    assert!(logins.len() > USERS);
    let windows = logins.iter().map(|(from, _)| {
        let window = *from..*from + WINDOW;
        logins.iter().filter(|(at, _)| window.contains(at)).count()
    });
    let most = windows.max().unwrap();
    assert!(most <= WITHIN, "{most} logins within {WINDOW:?}");
}

/// What a mail host lets in is counted by address: who is alone behind one has all of it, and those behind another share theirs.
#[tokio::test]
async fn watchers_behind_another_address_have_a_budget_of_their_own() {
    let mut world = World::without_watcher(DovecotOptions::default()).await;
    let mut watchers = Vec::new();
    for (member, egress) in [("pod-0", "one"), ("pod-1", "two"), ("pod-2", "two")] {
        let behind = |options: &mut Options| egress.clone_into(&mut options.egress);
        watchers.push(world.begin(member, behind).await);
    }
    let parts = || {
        let parts = watchers
            .iter()
            .map(|one| one.metric("mailbell_watcher_budget_part"));
        parts.collect::<Vec<f64>>()
    };
    until("each to have its part", || {
        let [alone, one, two] = parts()[..] else {
            return false;
        };
        // All know all three.
        let three = watchers
            .iter()
            .all(|one| (200..500).contains(&one.partitions()));
        three && alone == 1.0 && (0.4..=0.6).contains(&one) && (one + two - 1.0).abs() < 0.001
    })
    .await;
}

/// A watcher dies, and the next one logs in to those first that had mail last.
#[tokio::test]
async fn who_had_mail_last_is_watched_first_after_a_take_over() {
    /// Few enough for no turn to be of the one that waits longest.
    const USERS: usize = 7;
    let order = [3, 0, 5, 1, 6, 2, 4];
    let mut world = World::new().await;
    let crowd = Crowd::start(&world, USERS, true).await;
    crowd.watched().await;
    for user in order {
        crowd.server.deliver(user, mail("one")).unwrap();
        let account = crowd.accounts.get(user).unwrap();
        world.until_arrived(account, 1).await;
        let stored = async || {
            let checkpoint = world.admin.checkpoints().load(account).await.unwrap();
            checkpoint.is_some_and(|stored| stored.value.last_arrival_us > 0)
        };
        let begun = Instant::now();
        while !stored().await {
            assert!(begun.elapsed() < LIMIT);
            sleep(LOOK_EVERY).await;
        }
    }
    world.crash().await;
    until("the connections to break", || {
        crowd.server.connections() == 0
    })
    .await;
    let begun = Instant::now();
    let few = |options: &mut Options| options.logins_per_host = 2;
    let _next = world.begin("pod-1", few).await;
    crowd.watched().await;
    // The first of them to be there needs no turn.
    let mut logins = crowd.logins(begun).into_iter().map(|(_, user)| user);
    let first = logins.next().unwrap();
    let expected = order.iter().rev().copied().filter(|user| *user != first);
    assert!(logins.eq(expected), "{:?}", crowd.logins(begun));
}
