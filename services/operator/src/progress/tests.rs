use serde_json::json;

use super::*;

/// Two gateways: the generation that was seen, and pods: all, of the new kind, available.
fn deployment(seen: i64, all: i64, updated: i64, available: i64) -> Value {
    json!({
        "kind": "Deployment",
        "metadata": { "name": "main-gateway", "generation": 2 },
        "spec": { "replicas": 2 },
        "status": { "observedGeneration": seen, "replicas": all, "updatedReplicas": updated, "availableReplicas": available },
    })
}

/// Servers or watchers: wanted, there, ready, and whether all are of the new kind.
fn set(part: &str, wanted: i64, all: i64, ready: i64, is_rolled_out: bool) -> Value {
    let update = if is_rolled_out { "a" } else { "b" };
    json!({
        "kind": "StatefulSet",
        "metadata": { "name": "main-x", "generation": 1, "labels": { "app.kubernetes.io/component": part } },
        "spec": { "replicas": wanted },
        "status": { "observedGeneration": 1, "replicas": all, "readyReplicas": ready,
            "currentRevision": "a", "updateRevision": update },
    })
}

fn text(ready: i64, wanted: i64) -> String {
    format!("{ready} of {wanted} pods of main-x are ready")
}

#[test]
fn a_deployment_is_waited_for_until_all_its_pods_are_of_the_new_kind() {
    let text = |ready: i64| format!("{ready} of 2 pods of main-gateway are ready");
    assert_eq!(of(&deployment(2, 2, 2, 2)), Progress::Done);
    // What it says is of the generation before.
    assert_eq!(of(&deployment(1, 2, 2, 2)), Progress::Changing(text(2)));
    // One of the old ones is still there.
    assert_eq!(of(&deployment(2, 3, 2, 2)), Progress::Changing(text(2)));
    assert_eq!(of(&deployment(2, 2, 1, 2)), Progress::Changing(text(2)));
    assert_eq!(of(&deployment(2, 2, 2, 1)), Progress::Usable(text(1)));
    assert_eq!(of(&deployment(2, 1, 1, 1)), Progress::Usable(text(1)));
    assert_eq!(of(&deployment(2, 1, 0, 1)), Progress::Changing(text(1)));
    assert_eq!(of(&deployment(2, 2, 2, 0)), Progress::Waiting(text(0)));
    for (available, serves) in [(0, false), (1, true)] {
        let mut stuck = deployment(2, 3, 1, available);
        stuck["status"]["conditions"] = json!([{ "type": "Progressing", "status": "False" }]);
        assert_eq!(of(&stuck).serves(), serves);
        assert!(matches!(of(&stuck), Progress::Failed { .. }));
    }
    // As it is when it was just made.
    let new =
        json!({ "kind": "Deployment", "metadata": { "generation": 1 }, "spec": { "replicas": 2 } });
    assert!(matches!(of(&new), Progress::Waiting(_)));
}

#[test]
fn servers_need_a_majority() {
    assert_eq!(of(&set("nats", 3, 3, 3, true)), Progress::Done);
    assert_eq!(
        of(&set("nats", 3, 3, 3, false)),
        Progress::Changing(text(3, 3))
    );
    assert_eq!(
        of(&set("nats", 3, 3, 2, true)),
        Progress::Usable(text(2, 3))
    );
    assert_eq!(
        of(&set("nats", 3, 3, 2, false)),
        Progress::Changing(text(2, 3))
    );
    assert_eq!(
        of(&set("nats", 3, 3, 1, true)),
        Progress::Waiting(text(1, 3))
    );
    assert_eq!(
        of(&set("nats", 1, 1, 0, true)),
        Progress::Waiting(text(0, 1))
    );
    let new = json!({ "kind": "StatefulSet", "metadata": { "generation": 1 }, "spec": { "replicas": 3 } });
    assert!(matches!(of(&new), Progress::Waiting(_)));
}

#[test]
fn one_watcher_takes_what_the_others_leave() {
    // As in each rolling restart of two.
    assert_eq!(
        of(&set("watcher", 2, 2, 1, false)),
        Progress::Changing(text(1, 2))
    );
    assert_eq!(
        of(&set("watcher", 2, 2, 1, true)),
        Progress::Usable(text(1, 2))
    );
    assert_eq!(
        of(&set("watcher", 2, 2, 0, true)),
        Progress::Waiting(text(0, 2))
    );
    // More come, fewer are wanted, none are.
    assert_eq!(
        of(&set("watcher", 5, 5, 2, true)),
        Progress::Usable(text(2, 5))
    );
    // There may be no room for them, and what comes after need not wait for it.
    assert_eq!(
        of(&set("watcher", 5, 3, 2, true)),
        Progress::Usable(text(2, 5))
    );
    assert_eq!(
        of(&set("watcher", 5, 3, 2, false)),
        Progress::Changing(text(2, 5))
    );
    assert_eq!(
        of(&set("watcher", 3, 5, 5, true)),
        Progress::Changing(text(3, 3))
    );
    assert_eq!(
        of(&set("watcher", 0, 2, 2, true)),
        Progress::Changing(text(0, 0))
    );
    assert_eq!(of(&set("watcher", 0, 0, 0, true)), Progress::Done);
}

#[test]
fn a_job_is_waited_for_until_it_is_complete_or_has_failed() {
    let job = |kind: &str| {
        json!({ "kind": "Job", "metadata": { "name": "main-setup-1" },
            "status": { "conditions": [{ "type": kind, "status": "True" }] } })
    };
    assert_eq!(of(&job("Complete")), Progress::Done);
    assert!(matches!(
        of(&job("SuccessCriteriaMet")),
        Progress::Changing(_)
    ));
    let Progress::Failed { text, serves: true } = of(&job("Failed")) else {
        panic!("it has failed");
    };
    assert!(text.contains("kubectl logs job/main-setup-1"), "{text}");
    let mut tried = job("Suspended");
    tried["status"]["failed"] = 2.into();
    let Progress::Changing(text) = of(&tried) else {
        panic!("it is tried again");
    };
    assert!(text.contains("failed 2 times") && text.contains("kubectl logs job/main-setup-1"));
    tried["status"]["failed"] = 3.into();
    let Progress::Failed { text, serves: true } = of(&tried) else {
        panic!("it needs somebody");
    };
    assert!(text.contains("failed 3 times") && text.contains("kubectl logs job/main-setup-1"));
    assert_eq!(of(&json!({ "kind": "Service" })), Progress::Done);
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// An object whose status was last written at one time, and what is wanted of it at another.
fn written(mut object: Value, wanted: i64, status: i64) -> Value {
    let writer = |manager: &str, subresource: Option<&str>, seconds| {
        let time = at(seconds).to_string();
        json!({ "manager": manager, "subresource": subresource, "operation": "Update", "time": time })
    };
    object["metadata"]["managedFields"] = json!([
        writer(MANAGER, None, wanted),
        writer("kube-controller-manager", Some("status"), status),
        // Somebody notes something on it again and again.
        writer("kubectl-annotate", None, 100_000),
        json!({ "manager": "of-long-ago", "subresource": "status" }),
        json!({ "manager": MANAGER, "time": "soon" }),
    ]);
    object
}

/// Of a StatefulSet, or of a job, Kubernetes does not say so.
#[test]
fn what_changes_and_gets_no_further_has_failed() {
    let rolls = |ready| set("nats", 3, 3, ready, false);
    let job = |status: Value| json!({ "kind": "Job", "metadata": { "name": "main-x" }, "status": status });
    let not_yet = |due: i64| (None, Some(at(due)));
    let failed = |serves| (Some(serves), None);
    let mut made = rolls(2);
    made["metadata"]["creationTimestamp"] = json!(at(1000).to_string());
    let nothing = (None, None);
    let text = "main-x does not get on: look at its pods (kubectl describe pod)";
    for (object, now, expected) in [
        (written(rolls(2), 1000, 1001), 1002, not_yet(1601)),
        (written(rolls(2), 1000, 1001), 1600, not_yet(1601)),
        (written(rolls(2), 1000, 1001), 1601, failed(true)),
        (written(rolls(1), 1000, 1001), 1601, failed(false)),
        // The image is put right, and nobody has begun with it.
        (written(rolls(2), 2000, 1001), 2001, not_yet(2600)),
        (written(rolls(2), 2000, 1001), 2600, failed(true)),
        // Clocks of others may be ahead.
        (written(rolls(2), 1000, 1001), 900, not_yet(1601)),
        (written(rolls(2), 1000, 1001), -9, not_yet(1601)),
        // What lacks a pod is not being changed, and what is done is done.
        (written(set("nats", 3, 3, 2, true), 1, 1), 9900, nothing),
        (written(set("nats", 3, 3, 3, true), 1, 1), 9900, nothing),
        // Somebody has taken the times away.
        (made, 1600, failed(true)),
        (rolls(2), 9900, nothing),
        (
            written(job(json!({ "active": 1 })), 1000, 1000),
            1599,
            not_yet(1600),
        ),
        (
            written(job(json!({ "active": 1 })), 1000, 1000),
            1600,
            failed(true),
        ),
        (
            written(job(json!({ "failed": 1 })), 1000, 1700),
            1700,
            not_yet(2300),
        ),
        // Of a Deployment Kubernetes says it.
        (written(deployment(1, 2, 2, 2), 1, 1), 9900, nothing),
    ] {
        let (progress, due) = Held::default().see(&object, at(now));
        let is_failed = match &progress {
            Progress::Failed { text: said, serves } => {
                assert_eq!(said, text);
                Some(*serves)
            }
            progress => {
                assert_eq!(*progress, of(&object));
                None
            }
        };
        assert_eq!((is_failed, due), expected, "{object} at {now}");
    }
}

/// What it lacks may have been what it waited for.
#[test]
fn what_waits_for_others_is_not_said_to_get_no_further() {
    let watchers = written(set("watcher", 2, 2, 0, true), 1000, 1001);
    let mut held = Held::default();
    let failed = Progress::Failed {
        text: does_not_get_on(&watchers),
        serves: false,
    };
    assert_eq!(held.see(&watchers, at(5000)), (failed.clone(), None));
    for seconds in [4000, 5000] {
        held.note(&watchers, at(seconds));
    }
    let waits = Progress::Waiting(text(0, 2));
    assert_eq!(held.see(&watchers, at(5599)), (waits, Some(at(5600))));
    assert_eq!(held.see(&watchers, at(5600)), (failed, None));
    // Since then it got further.
    let one = written(set("watcher", 2, 2, 1, false), 1000, 5500);
    assert_eq!(held.see(&one, at(5600)).1, Some(at(6100)));
    let other = written(
        json!({ "kind": "Job", "metadata": { "name": "main-y" } }),
        1,
        1,
    );
    held.note(&other, at(5601));
    assert_eq!(held.0.keys().collect::<Vec<_>>(), ["main-y"]);
}

/// What is not there waits for it: the cause is told, and not what it leads to.
#[test]
fn what_is_waited_for_is_what_is_told() {
    let mut setup = Progress::Changing("the job x has failed 1 times".to_owned());
    setup.is_waited_for();
    let waits = Progress::Waiting("waiting for the setup".to_owned());
    let stages = [("the setup", setup), ("the gateways", waits.clone())];
    let said = "False Starting The setup: the job x has failed 1 times.";
    assert_eq!(say(&stages, false)[0], said);
    let failed = Progress::Failed {
        text: "the job x has failed 3 times".to_owned(),
        serves: true,
    };
    let mut setup = failed.clone();
    setup.is_waited_for();
    assert_eq!(setup, failed);
    let stages = [("the setup", setup), ("the gateways", waits)];
    let said = say(&stages, false);
    assert_eq!(
        said[0],
        "False Failed The setup: the job x has failed 3 times."
    );
    assert_eq!(
        said[2],
        "True Failed The setup: the job x has failed 3 times."
    );
}

fn found(stages: &[(&'static str, Progress)], paused: bool) -> Found {
    Found {
        stages: stages.to_vec(),
        paused,
    }
}

fn say_after(found: &Found, before: &[Condition]) -> Vec<Condition> {
    conditions(found, before, Some(3), Timestamp::UNIX_EPOCH)
}

fn words(all: &[Condition]) -> Vec<String> {
    assert!(all.iter().all(|it| it.observed_generation == Some(3)));
    let words = |it: &Condition| format!("{} {} {}", it.status, it.reason, it.message);
    all.iter().map(words).collect()
}

fn say(stages: &[(&'static str, Progress)], paused: bool) -> Vec<String> {
    words(&say_after(&found(stages, paused), &[]))
}

const WHOLE: &str = "False Whole Nothing is missing.";
const SETTLED: &str = "False Settled Nothing is being changed.";

fn nats(progress: Progress) -> (&'static str, Progress) {
    ("the NATS servers", progress)
}

fn one() -> String {
    "1 of 3".to_owned()
}

#[test]
fn what_is_said_of_an_installation() {
    assert_eq!(
        say(&[nats(Progress::Done)], false),
        ["True Running Everything runs.", SETTLED, WHOLE]
    );
    assert_eq!(
        say(&[nats(Progress::Waiting(one()))], false),
        [
            "False Starting The NATS servers: 1 of 3.",
            "True Waiting The NATS servers: 1 of 3.",
            WHOLE
        ]
    );
    assert_eq!(
        say(&[nats(Progress::Usable(one()))], false),
        [
            "True Impaired The NATS servers: 1 of 3.",
            SETTLED,
            "True Impaired The NATS servers: 1 of 3."
        ]
    );
    // What runs goes on while it is changed.
    assert_eq!(
        say(&[nats(Progress::Changing(one()))], false),
        [
            "True Changing The NATS servers: 1 of 3.",
            "True Waiting The NATS servers: 1 of 3.",
            WHOLE
        ]
    );
    assert_eq!(
        say(&[nats(Progress::Done)], true)[0],
        "False Paused Paused: nothing is watched, and nobody is served."
    );
}

/// The worst is what is told, and Ready is about whether it does its work all the same.
#[test]
fn what_has_failed_is_told_and_what_serves_is_ready() {
    for (serves, ready) in [
        (true, "True Impaired The setup: no."),
        (false, "False Failed The setup: no."),
    ] {
        let failed = Progress::Failed {
            text: "no".to_owned(),
            serves,
        };
        let said = say(
            &[nats(Progress::Usable(one())), ("the setup", failed)],
            false,
        );
        assert_eq!(said, [ready, SETTLED, "True Failed The setup: no."]);
    }
    // Of two that are as bad, the first: the other may wait for it.
    let wait = |text: &str| Progress::Waiting(text.to_owned());
    let said = say(&[("a", wait("1")), ("b", wait("2"))], false);
    assert_eq!(said[0], "False Starting A: 1.");
}

/// One that starts is not degraded; one that ran and has lost what it needs is, until it is back.
#[test]
fn what_is_down_is_degraded_until_it_is_back() {
    let down = found(&[nats(Progress::Waiting(one()))], false);
    let runs = say_after(&found(&[nats(Progress::Done)], false), &[]);
    let first = say_after(&down, &runs);
    let second = say_after(&down, &first);
    for said in [&first, &second] {
        assert_eq!(words(said)[2], "True Down The NATS servers: 1 of 3.");
    }
    let back = say_after(&found(&[nats(Progress::Done)], false), &second);
    assert_eq!(words(&back)[2], WHOLE);
}

#[test]
fn a_time_is_that_of_the_last_change() {
    let found = |progress| found(&[("x", progress)], false);
    let first = conditions(&found(Progress::Waiting("a".to_owned())), &[], None, at(1));
    let same = conditions(
        &found(Progress::Waiting("b".to_owned())),
        &first,
        None,
        at(2),
    );
    assert!(same.iter().all(|it| it.last_transition_time == Time(at(1))));
    let done = conditions(&found(Progress::Done), &same, None, at(3));
    let times: Vec<_> = done
        .iter()
        .map(|it| it.last_transition_time.0.as_second())
        .collect();
    assert_eq!(times, [3, 3, 1]);
}

#[test]
fn what_conditions_say_of_a_stage_is_found_in_them_again() {
    let failed = |serves| Progress::Failed {
        text: text(1, 2),
        serves,
    };
    let said = |progress: &Progress, before: Progress| {
        let found = Found {
            stages: vec![
                ("the watchers", before),
                ("the mailboxes", progress.clone()),
            ],
            paused: false,
        };
        let all = conditions(&found, &[], None, Timestamp::UNIX_EPOCH);
        said_of("the mailboxes", &all)
    };
    for progress in [Progress::Usable(text(1, 2)), failed(true), failed(false)] {
        assert_eq!(said(&progress, Progress::Done), Some(progress.clone()));
        assert_eq!(said(&progress, failed(true)), None);
    }
    for progress in [Progress::Done, Progress::Changing(text(1, 2))] {
        assert_eq!(said(&progress, Progress::Done), None);
    }
}

#[test]
fn a_trouble_is_the_same_whatever_its_numbers_are() {
    let said = |stage: &'static str, progress: Progress| {
        let all = say_after(&found(&[(stage, progress)], false), &[]);
        trouble(&all).map(|(kind, stage)| format!("{kind} {stage}"))
    };
    let usable = |ready| Progress::Usable(text(ready, 4));
    let failed = |ready| Progress::Failed {
        text: text(ready, 4),
        serves: true,
    };
    for ready in [2, 3] {
        let impaired = Some("Impaired The watchers".to_owned());
        assert_eq!(said("the watchers", usable(ready)), impaired);
        let has_failed = Some("Failed The watchers".to_owned());
        assert_eq!(said("the watchers", failed(ready)), has_failed);
        let elsewhere = Some("Impaired The gateways".to_owned());
        assert_eq!(said("the gateways", usable(ready)), elsewhere);
    }
    // What comes by itself is none, also where it was there before.
    for progress in [
        Progress::Done,
        Progress::Changing(one()),
        Progress::Waiting(one()),
    ] {
        assert_eq!(said("the watchers", progress), None);
    }
    let runs = say_after(&found(&[nats(Progress::Done)], false), &[]);
    let down = say_after(&found(&[nats(Progress::Waiting(one()))], false), &runs);
    assert_eq!(words(&down)[2], "True Down The NATS servers: 1 of 3.");
    assert_eq!(trouble(&down), None);
}
