//! What the status says when several things are wrong.

use super::*;

/// The words of the status as it is now.
fn shown(bench: &Bench) -> (Health, &'static str) {
    let status = bench.session.condition.shown().unwrap();
    (status.health, status.code)
}

fn full() -> Outcome {
    Outcome::Refused {
        code: "storage-full",
        sentence: "No room.".to_owned(),
    }
}

/// The first append gets this answer, and the next one as well once it is due.
fn answer(bench: &mut Bench, outcome: Outcome) {
    let (op, _) = bench.append();
    bench.give(Input::Appended { op, outcome });
    bench.now.mono += Duration::from_secs(20);
    bench.give(Input::Tick);
}

#[test]
fn a_full_log_is_told_before_the_first_good_look() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    bench.fetch();
    answer(&mut bench, full());
    assert_eq!(shown(&bench), (Health::Starting, "storage-full"));
    bench.appends();
    assert_eq!(shown(&bench), (Health::Watching, "watching"));
}

#[test]
fn a_full_log_is_told_once_the_mail_server_is_back() {
    let mut bench = Bench::watching();
    bench.look(look(&[]));
    let op = bench.take(|effect| match effect {
        Effect::Park { op, .. } => Some(*op),
        _ => None,
    });
    bench.disconnect(op);
    bench.look(look(&[10]));
    bench.fetch();
    answer(&mut bench, full());
    assert_eq!(shown(&bench).1, "storage-full");
}

#[test]
fn a_log_that_does_not_answer_twice_in_a_row_is_told_until_it_does() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    bench.fetch();
    answer(&mut bench, Outcome::NoAnswer);
    assert_eq!(shown(&bench).1, "starting");
    answer(&mut bench, Outcome::NoAnswer);
    assert_eq!(shown(&bench).1, "log-unavailable");
    bench.appends();
    assert_eq!(shown(&bench).1, "watching");
}

#[test]
fn a_checkpoint_that_cannot_be_stored_is_told_until_it_is() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    bench.fetch();
    bench.appends();
    let store = |bench: &mut Bench| {
        bench.now.mono += Duration::from_secs(10);
        bench.give(Input::Tick);
        bench.take(|effect| match effect {
            Effect::StoreCheckpoint { op, .. } => Some(*op),
            _ => None,
        })
    };
    for expected in ["watching", "watching", "checkpoint-not-stored"] {
        let op = store(&mut bench);
        bench.give(Input::CheckpointNotStored {
            op,
            code: "checkpoint-not-stored",
            sentence: "It cannot be stored.".to_owned(),
        });
        assert_eq!(shown(&bench).1, expected);
    }
    let (op, revision) = (store(&mut bench), 2);
    bench.give(Input::CheckpointStored { op, revision });
    assert_eq!(shown(&bench).1, "watching");
}

#[test]
fn a_missing_folder_is_told_from_the_start_and_until_the_folders_change() {
    let mut bench = Bench::watching();
    let mut config = bench.session.config.clone();
    config.folders.push("Wrok".to_owned());
    bench.give(Input::Reconfigure {
        config: Box::new(config.clone()),
    });
    bench.open();
    let (op, folder) = bench.take(|effect| match effect {
        Effect::Look { op, folder, .. } => Some((*op, folder.clone())),
        _ => None,
    });
    assert_eq!(folder, "Wrok");
    bench.give(Input::Failed {
        op,
        failure: Failure {
            code: "no-such-folder",
            sentence: "The folder \"Wrok\" does not exist.".to_owned(),
            severity: Severity::NoSuchFolder,
        },
    });
    bench.look(look(&[]));
    assert_eq!(shown(&bench), (Health::Watching, "no-such-folder"));
    config.folders.pop();
    bench.give(Input::Reconfigure {
        config: Box::new(config),
    });
    bench.open();
    bench.look(look(&[]));
    assert_eq!(shown(&bench), (Health::Watching, "watching"));
}

fn held() -> Failure {
    Failure {
        code: "host-unavailable",
        sentence: "It fails for many.".to_owned(),
        severity: Severity::Transient,
    }
}

#[test]
fn who_waits_for_a_host_that_fails_for_many_says_so_and_no_delay_grows() {
    let mut bench = Bench::watching();
    bench.look(look(&[]));
    let op = bench.take(|effect| match effect {
        Effect::Park { op, .. } => Some(*op),
        _ => None,
    });
    bench.give(Input::Failed {
        op,
        failure: held(),
    });
    let attempts = bench.session.reconnect.attempts();
    bench.now.mono += Duration::from_secs(10);
    bench.give(Input::Tick);
    let op = bench.take(|effect| match effect {
        Effect::Open { op } => Some(*op),
        _ => None,
    });
    let stale = Op(op.0 + 1);
    for op in [stale, op, op] {
        bench.give(Input::Held {
            op,
            failure: held(),
        });
    }
    assert_eq!(shown(&bench), (Health::Retrying, "host-unavailable"));
    assert_eq!(bench.session.reconnect.attempts(), attempts);
    // Whoever asks for a listing is not kept waiting.
    bench.give(Input::Request);
    assert!(bench.has(|effect| matches!(effect, Effect::RefuseRequests)));
    bench.give(Input::Opened {
        op,
        idle: true,
        handshake: Duration::ZERO,
        quiet_folders: Vec::new(),
    });
    bench.look(look(&[]));
    assert_eq!(shown(&bench), (Health::Watching, "watching"));
}

#[test]
fn who_must_mend_a_password_still_must_while_the_host_fails() {
    let mut bench = Bench::new(Known::default());
    bench.give(Input::Start);
    let open = |bench: &mut Bench| {
        bench.take(|effect| match effect {
            Effect::Open { op } => Some(*op),
            _ => None,
        })
    };
    for _ in 0..2 {
        let op = open(&mut bench);
        bench.give(Input::Failed {
            op,
            failure: Failure {
                code: "bad-credentials",
                sentence: "Refused.".to_owned(),
                severity: Severity::Permanent,
            },
        });
        bench.now.mono += Duration::from_secs(3600);
        bench.give(Input::Tick);
    }
    let op = open(&mut bench);
    bench.give(Input::Held {
        op,
        failure: held(),
    });
    assert_eq!(shown(&bench), (Health::ActionNeeded, "bad-credentials"));
}

fn reconfigure(bench: &mut Bench, change: impl FnOnce(&mut Config)) {
    let mut config = Box::new(bench.session.config.clone());
    change(&mut config);
    bench.give(Input::Reconfigure { config });
}

#[test]
fn a_paused_provider_ends_the_session_and_says_so_until_it_goes_on() {
    let mut bench = Bench::watching();
    bench.look(look(&[]));
    assert_eq!(shown(&bench).0, Health::Watching);
    reconfigure(&mut bench, |config| config.paused = Some(Pause::Provider));
    assert!(bench.has(|effect| matches!(effect, Effect::Drop)));
    assert_eq!(shown(&bench), (Health::Paused, "provider-paused"));
    let paused = |facts: Vec<Fact>| {
        let told = |fact: &Fact| matches!(fact, Fact::AccountState { health, .. } if *health == Health::Paused);
        facts.iter().filter(|fact| told(fact)).count()
    };
    assert_eq!(paused(bench.appends()), 1, "devices are told");
    // Another reason is no news for devices.
    for (pause, code) in [(Pause::Tenant, "tenant-paused"), (Pause::Owner, "paused")] {
        reconfigure(&mut bench, |config| config.paused = Some(pause));
        assert_eq!(shown(&bench), (Health::Paused, code));
        assert_eq!(paused(bench.appends()), 0);
    }
    bench.now.mono += Duration::from_secs(3600);
    bench.give(Input::Tick);
    assert!(!bench.has(|effect| matches!(effect, Effect::Open { .. })));
    reconfigure(&mut bench, |config| config.paused = None);
    assert_eq!(shown(&bench).1, "starting");
    bench.open();
    bench.look(look(&[]));
    assert_eq!(shown(&bench).1, "watching");
}

#[test]
fn a_longer_time_between_polls_counts_at_once() {
    let mut bench = Bench::watching();
    bench.give(Input::Relogin);
    bench.open_with(false, Duration::from_millis(30));
    bench.look(look(&[]));
    assert!(bench.has(|effect| matches!(effect, Effect::Park { .. })));
    reconfigure(&mut bench, |config| {
        config.limits.poll_least = Duration::from_secs(1000)
    });
    bench.effects.clear();
    bench.now.mono += Duration::from_secs(990);
    bench.give(Input::Tick);
    assert!(!bench.has(|effect| matches!(effect, Effect::Poll { .. } | Effect::Interrupt)));
    bench.now.mono += Duration::from_secs(10);
    bench.give(Input::Tick);
    assert!(bench.has(|effect| matches!(effect, Effect::Poll { .. } | Effect::Interrupt)));
}
