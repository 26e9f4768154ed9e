//! What the operator says of tenants and mail providers, and changes while a session runs.

use mailbell_core::{
    pace::{Cause, Urgency},
    policy::{HostLimits, Hosts, Quirks},
};
use tokio::time::{sleep, timeout};

use crate::{driver::connect, policy::Provider};

use super::*;

type Said = watch::Sender<Arc<Policy>>;

/// As when the file has changed: the session is told.
fn say(said: &Said, bench: Option<&Bench>, policy: Policy) {
    said.send_replace(Arc::new(policy));
    if let Some(bench) = bench {
        bench.slot.policy_changed();
    }
}

fn bench(policy: Policy) -> (Bench, Said) {
    let said = Said::default();
    say(&said, None, policy);
    let log = MemoryLog::new();
    log.with(|state| state.checkpoint = Some((watching(2), 1)));
    let bench = Bench::start_with(Server::new(&[1]), log, said.subscribe());
    (bench, said)
}

/// Of the account's provider.
fn with(provider: Provider) -> Policy {
    let mut policy = Policy::default();
    policy.providers.insert("*.test", Arc::new(provider));
    policy
}

fn quirks(quirks: Quirks) -> Policy {
    with(Provider {
        quirks,
        ..Provider::default()
    })
}

fn paused_provider() -> Policy {
    with(Provider {
        paused: true,
        ..Provider::default()
    })
}

fn paused_tenant() -> Policy {
    let mut policy = Policy::default();
    policy.paused_tenants.insert(account().tenant().clone());
    policy
}

type Made = fn() -> Policy;

/// Each pause of the operator's, and what it is called.
fn pauses() -> [(Made, &'static str); 2] {
    [
        (paused_provider, "provider-paused"),
        (paused_tenant, "tenant-paused"),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_the_session_and_it_resumes_where_it_was() {
    for (paused, code) in pauses() {
        let (bench, said) = bench(Policy::default());
        bench.idling().await;
        say(&said, Some(&bench), paused());
        bench.log.until_shown(Health::Paused, code).await;
        bench.server.until(|mailbox| mailbox.idling == 0).await;
        let refused = bench.list(newest(1)).await.unwrap().unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retry), (code, false));
        bench.server.deliver(2);
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(bench.server.look(|mailbox| mailbox.logins), 1);
        // Also if somebody wants it to log in now.
        bench.slot.hurry();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(bench.server.look(|mailbox| mailbox.logins), 1);
        say(&said, Some(&bench), quirks(Quirks::default()));
        bench.log.until_arrived(&[2]).await;
        bench.log.until_shown(Health::Watching, "watching").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_begins_while_paused_does_not_connect() {
    for (paused, code) in pauses() {
        let (bench, said) = bench(paused());
        bench.log.until_shown(Health::Paused, code).await;
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(bench.server.look(|mailbox| mailbox.logins), 0);
        say(&said, Some(&bench), Policy::default());
        bench.idling().await;
    }
}

/// The owner's word first, then the tenant's.
#[tokio::test(start_paused = true)]
async fn of_several_pauses_the_one_that_is_nearest_to_the_account_is_told() {
    let all = || Policy {
        paused_tenants: paused_tenant().paused_tenants,
        ..paused_provider()
    };
    let (bench, said) = bench(all());
    let shown = async |code| bench.log.until_shown(Health::Paused, code).await;
    shown("tenant-paused").await;
    let owners = AccountRecord {
        paused: true,
        ..record()
    };
    bench.slot.change(Arc::new(owners));
    shown("paused").await;
    say(&said, Some(&bench), Policy::default());
    bench.slot.change(Arc::new(record()));
    bench.idling().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_checks_a_login_while_paused() {
    for (paused, code) in pauses() {
        let (bench, _said) = bench(paused());
        let sealed = bench.log.with(|state| state.credential.clone()).unwrap();
        let (context, record) = (&bench.context, &bench.record);
        let refused = connect(context, &account(), record, &sealed).await;
        assert_eq!(refused.err().unwrap().code, code);
        assert_eq!(bench.server.look(|mailbox| mailbox.logins), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_waits_for_its_turn_is_refused_when_the_pause_begins() {
    for (paused, code) in pauses() {
        let (bench, said) = bench(Policy::default());
        bench.idling().await;
        let mut one_at_once = Hosts::default();
        let limits = HostLimits {
            connections: Some(1),
            ..HostLimits::default()
        };
        one_at_once.insert("*.test", limits);
        let (context, record) = (Arc::clone(&bench.context), Arc::clone(&bench.record));
        context.gate.hosts(one_at_once);
        // Somebody logs in there and takes long.
        let urgency = Urgency::new(Cause::Asked, 0);
        let turn = context.gate.enter(&record.host, &account(), urgency);
        let turn = turn.turn().await;
        let sealed = bench.log.with(|state| state.credential.clone()).unwrap();
        let checked =
            tokio::spawn(async move { connect(&context, &account(), &record, &sealed).await });
        sleep(Duration::from_secs(10)).await;
        assert_eq!(bench.context.gate.counts().handshake, 1, "it waits");
        say(&said, None, paused());
        let refused = timeout(Duration::from_secs(1), checked).await.unwrap();
        assert_eq!(refused.unwrap().err().unwrap().code, code);
        drop(turn);
        assert_eq!(bench.server.look(|mailbox| mailbox.logins), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn idle_is_left_out_where_it_does_not_work_and_polls_keep_their_distance() {
    let (bench, said) = bench(quirks(Quirks {
        no_idle: true,
        poll_seconds: Some(1000),
        ..Quirks::default()
    }));
    bench.server.until(|mailbox| mailbox.logins == 1).await;
    bench.log.until_shown(Health::Watching, "watching").await;
    sleep(Duration::from_secs(3500)).await;
    let count = |word: &str| {
        bench.server.look(|mailbox| {
            let commands = mailbox.commands.iter();
            commands.filter(|line| line.starts_with(word)).count()
        })
    };
    assert_eq!((count("IDLE"), count("NOOP")), (0, 3));
    // The next connection is as any other.
    say(&said, Some(&bench), Policy::default());
    bench.server.break_connections();
    bench.idling().await;
}

#[tokio::test(start_paused = true)]
async fn idle_is_begun_anew_as_often_as_the_provider_wants() {
    let (bench, _said) = bench(quirks(Quirks {
        idle_minutes: Some(3),
        ..Quirks::default()
    }));
    bench.idling().await;
    sleep(Duration::from_secs(10 * 60)).await;
    let commands = bench.server.look(|mailbox| mailbox.commands.clone());
    let idles = commands.iter().filter(|line| line.starts_with("IDLE"));
    assert_eq!(idles.count(), 4, "{commands:?}");
}
