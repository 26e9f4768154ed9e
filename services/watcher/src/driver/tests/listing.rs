//! Pages that are listed over the connection of a session.

use super::*;

#[tokio::test(start_paused = true)]
async fn pages_are_listed_over_the_parked_connection() {
    let uids: Vec<u32> = (1..=150).collect();
    let bench = Bench::new(&uids);
    bench.idling().await;
    let page = |newest, first_uid, last_uid, limit| ListPage {
        folder: 1,
        first_uid,
        last_uid,
        limit,
        newest,
        generation: 9,
    };
    let listed = |page: PageResult| {
        let uids = page.messages.iter().map(|message| message.uid);
        (uids.collect::<Vec<_>>(), page.more)
    };
    let answer = bench.list(page(true, 0, 0, 100)).await.unwrap().unwrap();
    assert_eq!((answer.exists, answer.uid_next), (150, 151));
    assert_eq!(answer.folders, [1]);
    assert_eq!(listed(answer), ((51..=150).collect(), true));
    let answer = bench.list(page(true, 0, 50, 100)).await.unwrap().unwrap();
    assert_eq!(listed(answer), ((1..=50).collect(), false));
    let answer = bench.list(page(false, 141, 0, 100)).await.unwrap().unwrap();
    assert_eq!(listed(answer), ((141..=150).collect(), false));
    let answer = bench.list(page(false, 10, 12, 100)).await.unwrap().unwrap();
    assert_eq!(listed(answer), ((10..=12).collect(), false));
    let other = ListPage {
        generation: 8,
        ..page(true, 0, 0, 5)
    };
    let error = bench.list(other).await.unwrap().unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.retry),
        ("generation-changed", false)
    );
    let other = ListPage {
        folder: 5,
        ..page(true, 0, 0, 5)
    };
    let error = bench.list(other).await.unwrap().unwrap_err();
    assert_eq!(error.code, "no-such-folder");
    // It idles again, and hears what comes.
    bench.idling().await;
    bench.server.deliver(151);
    bench.log.until_arrived(&[151]).await;
}

#[tokio::test(start_paused = true)]
async fn pages_are_listed_while_the_log_is_in_trouble() {
    for fate in [Fate::NoAnswer, Fate::Refused] {
        let bench = Bench::new(&[1]);
        bench.idling().await;
        bench.log.with(|state| state.append_fates.push_back(fate));
        bench.server.deliver(2);
        bench.log.until(|state| state.appends == 1).await;
        for _ in 0..3 {
            bench.list(newest(10)).await.unwrap().unwrap();
        }
        // None of them waited until the event was told again.
        assert_eq!(bench.log.with(|state| state.appends), 1, "{fate:?}");
        bench.log.until_arrived(&[2]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_in_the_middle_of_a_listing_keeps_nobody_waiting() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    // The connection does not even idle: the log's answer is awaited.
    bench
        .log
        .with(|state| state.append_fates.push_back(Fate::NoAnswer));
    bench.server.deliver(2);
    bench.log.until(|state| state.appends == 1).await;
    bench
        .server
        .change(|mailbox| mailbox.mute_after = Some(mailbox.commands.len()));
    let interrupted = bench.list(newest(10));
    bench.server.until(|mailbox| mailbox.mute).await;
    bench.slot.change(Arc::new(AccountRecord {
        paused: true,
        ..(*bench.record).clone()
    }));
    assert!(interrupted.await.is_err());
    let answer = timeout(Duration::from_secs(600), bench.list(newest(10))).await;
    assert_eq!(answer.unwrap().unwrap().unwrap_err().code, "paused");
    bench.server.change(|mailbox| {
        mailbox.mute = false;
        mailbox.mute_after = None;
    });
    bench.slot.change(Arc::clone(&bench.record));
    bench.server.until(|mailbox| mailbox.logins == 2).await;
    bench.idling().await;
    bench.list(newest(10)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn listing_without_end_does_not_keep_arrivals_from_being_told() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    let page = newest(10);
    bench.server.deliver(2);
    let mut pages = 0;
    while bench.log.arrived().is_empty() {
        let (first, second) = (bench.list(page), bench.list(page));
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        pages += 2;
        assert!(pages < 50, "arrivals wait for listings");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_there_is_no_connection_is_told_to_try_again() {
    let server = Server::new(&[1]);
    server.change(|mailbox| mailbox.refuse = true);
    let log = MemoryLog::new();
    log.with(|state| state.checkpoint = Some((watching(2), 1)));
    let bench = Bench::start(server, log);
    bench
        .log
        .until(|state| {
            state
                .statuses
                .iter()
                .any(|(_, status)| status.state.as_ref().unwrap().health() == Health::ActionNeeded)
        })
        .await;
    let error = bench.list(ListPage::default()).await.unwrap().unwrap_err();
    assert_eq!((error.code.as_str(), error.retry), ("not-connected", true));
    // The right password, and a new version of the credential: it logs in at once.
    bench.server.change(|mailbox| mailbox.refuse = false);
    let since = Instant::now();
    bench.slot.change(Arc::new(AccountRecord {
        credential_version: 2,
        ..(*bench.record).clone()
    }));
    bench.idling().await;
    assert!(since.elapsed() < Duration::from_secs(2));
}
