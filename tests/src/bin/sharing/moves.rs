//! Accounts that change hands: one watcher more, one killed, all restarted one after the other.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use mailbell_core::ids::PARTITIONS;
use mailbell_test_servers::{NatsOptions, NatsServer, SyntheticImap, synthetic::SessionRecord};
use mailbell_tests::{
    crowd::Crowd,
    http,
    installation::{Installation, Part},
    load,
    process::until,
    sessions::Verdict,
};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    LIMIT, crowd, progress,
    report::{head, percentile, row, seconds},
};

/// Nothing changed for so long: that is all.
const REST: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// While a message is fetched nobody idles either. A longer gap is that of a mailbox whose owner went.
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// Above the numbers of messages that a crowd delivers itself.
const FIRST_NUMBER: u64 = 1 << 32;

/// One watcher more.
struct Grown {
    /// How many there are now.
    watchers: usize,
    partitions: u32,
    moved: usize,
    verdict: Verdict,
    took: Duration,
}

/// One watcher less, without a word.
struct Killed {
    accounts: usize,
    /// Until the first of its accounts was watched again, and until all were.
    first: Duration,
    all: Duration,
}

/// All of it, with one watcher at first.
pub(crate) async fn measure(accounts: usize, kills: usize, rate: u32) -> anyhow::Result<()> {
    let begun = Instant::now();
    let nats = NatsServer::start(NatsOptions::default()).await?;
    progress(
        begun,
        &format!("a watcher starts, {accounts} accounts are added"),
    );
    let mut crowd = Crowd::start(crowd(accounts, true, &nats.url())).await?;
    at_rest(&crowd).await?;
    progress(begun, "all are watched; two more watchers come");
    let mut grown = vec![grow(&mut crowd).await?, grow(&mut crowd).await?];
    let mut killed = Vec::new();
    for _ in 0..kills {
        let victim = crowd.installation.watchers();
        let victim = *victim.first().context("no watcher")?;
        let run = kill(&mut crowd, victim).await?;
        progress(
            begun,
            &format!(
                "{victim} with {} accounts was killed: the first watched again after {}, all after {}",
                run.accounts,
                seconds(run.first),
                seconds(run.all)
            ),
        );
        killed.push(run);
        // With a name of its own: nobody keeps anything from it because of who it was.
        grown.push(grow(&mut crowd).await?);
    }
    print_killed(&killed);

    let device = crowd.device_of_all().await?;
    progress(begun, "all watchers are restarted, one after the other");
    restart(&mut crowd, rate).await?;
    progress(begun, "restarted; did the device get every message?");
    crowd.judge(&[&device]).await?;
    println!("Every message of the rolling restart reached the device, once and in order.");

    grown.push(grow(&mut crowd).await?);
    print_grown(&grown, accounts);
    progress(begun, "done");
    Ok(())
}

async fn grow(crowd: &mut Crowd) -> anyhow::Result<Grown> {
    let begin = Instant::now();
    let before = owners(&crowd.server.records());
    let part = crowd.add_watcher().await?;
    let rested = at_rest(crowd).await?;
    let after = owners(&crowd.server.records());
    let moved = before
        .iter()
        .filter(|(user, owner)| after.get(user) != Some(owner));
    Ok(Grown {
        watchers: crowd.installation.watchers().len(),
        partitions: partitions(crowd, part).await?,
        moved: moved.count(),
        verdict: crowd.verdict(begin..Instant::now(), &[]),
        took: rested - begin,
    })
}

async fn kill(crowd: &mut Crowd, victim: Part) -> anyhow::Result<Killed> {
    let begin = Instant::now();
    crowd.installation.kill(victim);
    let all = crowd.server.users();
    until(LIMIT, "the end of its sessions", || async {
        crowd.server.watched() < all
    })
    .await?;
    crowd.watched(LIMIT).await?;
    let verdict = crowd.verdict(begin..Instant::now(), &[]);
    let alone: Vec<Duration> = verdict
        .longest_gaps()
        .iter()
        .filter(|gap| gap.length() > LEFT_ALONE)
        .map(|gap| gap.time.end - begin)
        .collect();
    Ok(Killed {
        accounts: alone.len(),
        first: alone.iter().min().copied().unwrap_or_default(),
        all: alone.iter().max().copied().unwrap_or_default(),
    })
}

/// Restarts every watcher, as a cluster does it: the next one when the one before is ready.
async fn restart(crowd: &mut Crowd, rate: u32) -> anyhow::Result<()> {
    let begin = Instant::now();
    let watchers = crowd.installation.watchers();
    let delivered = AtomicU64::new(0);
    tokio::select! {
        // The restart's end first: it ends the load too.
        biased;
        restarted = restart_each(&mut crowd.installation, &watchers) => restarted?,
        failed = deliver(&crowd.server, rate, &delivered) => failed?,
    }
    let restarted = begin.elapsed();
    let rested = at_rest(crowd).await? - begin;
    let verdict = crowd.verdict(begin..Instant::now(), &[]);
    let gaps = verdict.longest_gaps();
    let gaps: Vec<Duration> = gaps.iter().map(|gap| gap.length()).collect();
    let logins: usize = verdict.logins.values().sum();
    head(
        &format!(
            "Rolling restart of {} watchers, {} accounts, {rate} messages a second arriving ({} in all)",
            watchers.len(),
            crowd.server.users(),
            delivered.load(Ordering::Relaxed)
        ),
        ["", ""],
    );
    let line = |name: &str, value: String| row([name.to_owned(), value]);
    line(
        "first SIGTERM to the last one ready again",
        seconds(restarted),
    );
    line("... to all shares level again", seconds(rested));
    line(
        "longest gap of an account, p50 of all accounts",
        seconds(percentile(&gaps, 50)),
    );
    line("... p99", seconds(percentile(&gaps, 99)));
    line("... max", seconds(percentile(&gaps, 100)));
    line(
        "two watchers held one account",
        format!("{} times", verdict.overlaps.len()),
    );
    line("... the longest", seconds(verdict.longest_overlap()));
    line("logins", logins.to_string());
    Ok(())
}

async fn restart_each(installation: &mut Installation, watchers: &[Part]) -> anyhow::Result<()> {
    for part in watchers {
        installation.terminate(*part).await?;
        installation.launch(*part)?;
        installation.ready().await?;
    }
    Ok(())
}

/// Delivers to one user after the other, for ever.
async fn deliver(server: &SyntheticImap, rate: u32, delivered: &AtomicU64) -> anyhow::Result<()> {
    let mut tick = interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for user in (0..server.users()).cycle() {
        tick.tick().await;
        let number = FIRST_NUMBER + delivered.fetch_add(1, Ordering::Relaxed);
        server.deliver(user, load::message(number))?;
    }
    bail!("there are no users")
}

/// Waits until every account is watched, every watcher has about its share, and nothing changes; since when that is so.
pub(crate) async fn at_rest(crowd: &Crowd) -> anyhow::Result<Instant> {
    let begun = Instant::now();
    let watchers = crowd.installation.watchers();
    // The planner lets shares differ by chance.
    let least = u32::from(PARTITIONS) / u32::try_from(watchers.len().max(1))? * 8 / 10;
    let mut seen = (Vec::new(), Instant::now());
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let mut shares = Vec::new();
        for part in &watchers {
            // One that has just begun says nothing yet.
            shares.push(partitions(crowd, *part).await.unwrap_or_default());
        }
        let level = shares.iter().sum::<u32>() == u32::from(PARTITIONS)
            && shares.iter().all(|share| *share >= least)
            && crowd.server.watched() == crowd.server.users();
        if !level || shares != seen.0 {
            seen = (shares, Instant::now());
        } else if seen.1.elapsed() > REST {
            return Ok(seen.1);
        }
        if begun.elapsed() > LIMIT {
            bail!(
                "it doesn't come to rest: shares {:?}, {} of {} watched",
                seen.0,
                crowd.server.watched(),
                crowd.server.users()
            );
        }
    }
}

/// How many a watcher owns.
async fn partitions(crowd: &Crowd, part: Part) -> anyhow::Result<u32> {
    let page = crowd.installation.page_of(part, "/metrics").await?;
    let count = http::metric(&page.body, "mailbell_watcher_partitions", &[]);
    let count = count.context("it doesn't say how many partitions it has")?;
    // A gauge of at most 1024.
    Ok(format!("{count:.0}").parse()?)
}

/// Who waits for each user's mail now.
fn owners(records: &[SessionRecord]) -> BTreeMap<usize, Arc<str>> {
    records
        .iter()
        .filter(|record| record.idles_now())
        .filter_map(|record| Some((record.user?, Arc::clone(&record.holder))))
        .collect()
}

fn print_killed(killed: &[Killed]) {
    if killed.is_empty() {
        return;
    }
    let accounts = killed.iter().map(|run| run.accounts);
    head(
        &format!(
            "SIGKILL of one of three watchers, {} runs, {} to {} accounts each",
            killed.len(),
            accounts.clone().min().unwrap_or_default(),
            accounts.max().unwrap_or_default()
        ),
        ["", "p50", "max"],
    );
    let line = |name: &str, of: fn(&Killed) -> Duration| {
        let times: Vec<Duration> = killed.iter().map(of).collect();
        row([
            name.to_owned(),
            seconds(percentile(&times, 50)),
            seconds(percentile(&times, 100)),
        ]);
    };
    line("until the first of its accounts is watched again", |run| {
        run.first
    });
    line("until all are", |run| run.all);
    line("from the first to the last", |run| run.all - run.first);
}

fn print_grown(grown: &[Grown], accounts: usize) {
    head(
        "One watcher more",
        [
            "watchers",
            "1/n",
            "its partitions",
            "sessions that moved",
            "logins",
            "accounts held twice, the longest",
            "longest gap",
            "start to rest",
        ],
    );
    let percent = |part: f64, of: f64| format!("{:.1} %", part / of.max(1.0) * 100.0);
    for run in grown {
        let logins: usize = run.verdict.logins.values().sum();
        row([
            format!("{} to {}", run.watchers - 1, run.watchers),
            percent(1.0, run.watchers as f64),
            percent(f64::from(run.partitions), f64::from(PARTITIONS)),
            percent(run.moved as f64, accounts as f64),
            logins.to_string(),
            format!(
                "{}, {}",
                run.verdict.overlaps.len(),
                seconds(run.verdict.longest_overlap())
            ),
            seconds(run.verdict.longest_gap()),
            seconds(run.took),
        ]);
    }
}
