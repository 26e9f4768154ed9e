//! What is said of a mail provider, and changes while a session runs.

use mailbell_core::provider::Quirks;

use super::*;
use crate::providers::Provider;

type Said = watch::Sender<Arc<Providers>>;

/// As when the file has changed: the session is told.
fn say(said: &Said, bench: Option<&Bench>, provider: Option<Provider>) {
    let mut hosts = Providers::default();
    if let Some(provider) = provider {
        hosts.insert("*.test", Arc::new(provider));
    }
    said.send_replace(Arc::new(hosts));
    if let Some(bench) = bench {
        bench.slot.providers_changed();
    }
}

fn bench(provider: Option<Provider>) -> (Bench, Said) {
    let said = Said::default();
    say(&said, None, provider);
    let log = MemoryLog::new();
    log.with(|state| state.checkpoint = Some((watching(2), 1)));
    let bench = Bench::start_with(Server::new(&[1]), log, said.subscribe());
    (bench, said)
}

fn quirks(quirks: Quirks) -> Option<Provider> {
    Some(Provider {
        quirks,
        ..Provider::default()
    })
}

fn paused() -> Option<Provider> {
    Some(Provider {
        paused: true,
        ..Provider::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_paused_provider_ends_the_session_and_resumes_where_it_was() {
    let (bench, said) = bench(None);
    bench.idling().await;
    say(&said, Some(&bench), paused());
    bench
        .log
        .until_shown(Health::Paused, "provider-paused")
        .await;
    bench.server.until(|mailbox| mailbox.idling == 0).await;
    let refused = bench.list(newest(1)).await.unwrap().unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.retry),
        ("provider-paused", false)
    );
    bench.server.deliver(2);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.server.look(|mailbox| mailbox.logins), 1);
    // Also if somebody wants it to log in now.
    bench.slot.hurry();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.server.look(|mailbox| mailbox.logins), 1);
    say(&said, Some(&bench), quirks(Quirks::default()));
    bench.log.until_arrived(&[2]).await;
    bench.log.until_shown(Health::Watching, "watching").await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_begins_at_a_paused_provider_does_not_connect() {
    let (bench, said) = bench(paused());
    bench
        .log
        .until_shown(Health::Paused, "provider-paused")
        .await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.server.look(|mailbox| mailbox.logins), 0);
    say(&said, Some(&bench), None);
    bench.idling().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_checks_a_login_at_a_paused_provider() {
    let (bench, _said) = bench(paused());
    let sealed = bench.log.with(|state| state.credential.clone()).unwrap();
    let (context, record) = (&bench.context, &bench.record);
    let refused = crate::driver::connect(context, &account(), record, &sealed).await;
    assert_eq!(refused.err().unwrap().code, "provider-paused");
    assert_eq!(bench.server.look(|mailbox| mailbox.logins), 0);
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
    tokio::time::sleep(Duration::from_secs(3500)).await;
    let count = |word: &str| {
        bench.server.look(|mailbox| {
            let commands = mailbox.commands.iter();
            commands.filter(|line| line.starts_with(word)).count()
        })
    };
    assert_eq!((count("IDLE"), count("NOOP")), (0, 3));
    // The next connection is as any other.
    say(&said, Some(&bench), None);
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
    tokio::time::sleep(Duration::from_secs(10 * 60)).await;
    let commands = bench.server.look(|mailbox| mailbox.commands.clone());
    let idles = commands.iter().filter(|line| line.starts_with("IDLE"));
    assert_eq!(idles.count(), 4, "{commands:?}");
}
