use super::*;

const S: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_secs(30);
const UNIX: u64 = 1_800_000_000;

fn partition() -> Partition {
    Partition::new(0).unwrap()
}

fn foreign(epoch: OwnerEpoch) -> Claim {
    Claim {
        schema: CLAIM_SCHEMA,
        member: "b".to_owned(),
        incarnation: "1".to_owned(),
        owner_epoch: epoch,
        ..Claim::default()
    }
}

/// A claim lives as long as four rewrites.
fn timing() -> Timing {
    Timing {
        claim_refresh: REFRESH,
        live_age: REFRESH * 4,
        ..Timing::default()
    }
}

/// What is written by the only effect.
fn written(effects: &[Effect]) -> (Claim, u64) {
    match effects {
        [
            Effect::Write {
                claim, revision, ..
            },
        ] => (claim.clone(), *revision),
        other => panic!("not one write: {other:?}"),
    }
}

fn reads(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Read { .. }])
}

fn stops(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Stop { .. }, ..])
}

/// Of one that took the partition under revision 7 at the beginning.
fn owner() -> Claims {
    let mut claims = Claims::new("a", "1", &timing());
    let take = claims.take(UNIX, partition()).unwrap();
    let (claim, _) = written(&[take]);
    let effects = claims.wrote(Duration::ZERO, UNIX, partition(), claim, Written::Stored(7));
    assert!(matches!(effects[..], [Effect::Load { .. }, ..]));
    if let Some(Effect::Write { claim, .. }) = effects.get(1) {
        let stored = Written::Stored(8);
        claims.wrote(Duration::ZERO, UNIX, partition(), claim.clone(), stored);
    }
    claims
}

#[test]
fn another_claim_in_a_bucket_that_begins_anew_is_found() {
    let mut claims = owner();
    claims.forget();
    // Its revisions begin anew, so this may be newer than ours, or what a watch that lags has of the time before.
    assert_eq!(claims.see(S, partition(), 3, Some(foreign(UNIX + 1))), []);
    claims.loaded(S);
    let effects = claims.due(S, UNIX, &[partition()]);
    assert!(reads(&effects), "{effects:?}");
    let found = Ok(Some((3, Some(foreign(UNIX + 1)))));
    let effects = claims.read(S, UNIX, partition(), found);
    assert!(stops(&effects), "{effects:?}");
    assert_eq!(claims.held(), 0);
}

#[test]
fn a_claim_that_is_gone_is_not_written_under_its_old_number() {
    let mut claims = owner();
    claims.forget();
    claims.loaded(S);
    let effects = claims.due(S, UNIX, &[partition()]);
    assert!(reads(&effects), "{effects:?}");
    let effects = claims.read(S, UNIX, partition(), Ok(None));
    let (claim, revision) = written(&effects);
    assert_eq!((claim.owner_epoch, revision), (UNIX + 1, 0));
}

#[test]
fn an_answer_of_the_bucket_before_says_nothing() {
    let mut claims = owner();
    let (claim, _) = written(&claims.due(REFRESH, UNIX, &[partition()]));
    claims.forget();
    let effects = claims.wrote(REFRESH, UNIX, partition(), claim, Written::Stored(90));
    assert!(reads(&effects), "{effects:?}");
    let found = Ok(Some((3, Some(foreign(UNIX + 1)))));
    let effects = claims.read(REFRESH, UNIX, partition(), found);
    assert!(stops(&effects), "{effects:?}");
}

#[test]
fn the_leader_counts_before_the_bucket_is_told_anew() {
    let mut claims = owner();
    let (claim, _) = written(&claims.due(REFRESH, UNIX, &[partition()]));
    let effects = claims.wrote(REFRESH, UNIX, partition(), claim, Written::Conflict);
    assert!(reads(&effects), "{effects:?}");
    let found = Ok(Some((3, Some(foreign(UNIX + 1)))));
    let effects = claims.read(REFRESH, UNIX, partition(), found);
    assert!(stops(&effects), "{effects:?}");
}

/// The bucket was lost and made anew, which the watch has not noticed yet.
#[test]
fn another_claim_under_the_revision_of_the_one_before_is_new() {
    let mut claims = Claims::new("a", "1", &timing());
    claims.see(S, partition(), 7, Some(foreign(UNIX)));
    // Told twice, it is as old as it was.
    claims.see(S * 2, partition(), 7, Some(foreign(UNIX)));
    let since = |claims: &Claims| match claims.standing(partition()) {
        Standing::Foreign { since, .. } => since,
        other => panic!("{other:?}"),
    };
    assert_eq!(since(&claims), S);
    claims.see(S * 20, partition(), 7, Some(foreign(UNIX + 19)));
    assert_eq!(since(&claims), S * 20);
}

#[test]
fn one_write_at_a_time_also_after_a_read_that_failed() {
    let mut claims = owner();
    claims.forget();
    claims.loaded(S);
    assert!(reads(&claims.due(S, UNIX, &[partition()])));
    claims.read(S, UNIX, partition(), Err(()));
    assert_eq!(
        claims.take(UNIX, partition()),
        None,
        "it is to be read first"
    );
    assert!(reads(&claims.due(S * 3, UNIX, &[partition()])));
    let effects = claims.read(S * 3, UNIX, partition(), Ok(None));
    written(&effects);
    assert_eq!(claims.due(S * 9, UNIX, &[partition()]), []);
}

#[test]
fn what_aged_out_while_nothing_could_be_written_is_loaded_anew() {
    for (away, kept) in [(REFRESH * 3, true), (REFRESH * 5, false)] {
        let mut claims = owner();
        let effects = claims.see(away, partition(), 9, None);
        assert_eq!(effects, []);
        let (claim, _) = written(&claims.due(away, UNIX, &[partition()]));
        let effects = claims.wrote(away, UNIX, partition(), claim, Written::Stored(10));
        if kept {
            assert!(matches!(effects[..], [Effect::Renewed { .. }, ..]));
        } else {
            // Somebody may have had it, and have let it age out as well.
            assert!(stops(&effects), "{effects:?}");
            assert!(matches!(effects[1], Effect::Load { before: None, .. }));
        }
        assert_eq!(claims.held(), 1);
    }
}

#[test]
fn a_claim_that_nobody_rewrites_is_looked_for() {
    let mut claims = Claims::new("a", "1", &timing());
    claims.see(Duration::ZERO, partition(), 7, Some(foreign(UNIX)));
    assert_eq!(claims.due(REFRESH * 4, UNIX, &[partition()]), []);
    let effects = claims.due(REFRESH * 4 + S, UNIX, &[partition()]);
    assert!(reads(&effects), "{effects:?}");
    claims.read(REFRESH * 4 + S, UNIX, partition(), Ok(None));
    assert_eq!(
        claims.standing(partition()),
        Standing::Free { successor: "" }
    );
}

#[test]
fn a_next_owner_that_is_faster_than_our_own_acknowledgement_is_no_loss() {
    let mut claims = owner();
    let effects = claims.release(S, UNIX, partition(), "b");
    let (claim, _) = written(&effects);
    assert_eq!((claim.released, claim.successor.as_str()), (true, "b"));
    let next = Some(foreign(UNIX + 1));
    assert_eq!(
        claims.see(S, partition(), 20, next),
        [Effect::Released {
            partition: partition()
        }]
    );
    assert_eq!(claims.held(), 0);
    // The acknowledgement of the release changes nothing any more.
    let effects = claims.wrote(S, UNIX, partition(), claim, Written::Stored(19));
    assert_eq!(effects, []);
}
