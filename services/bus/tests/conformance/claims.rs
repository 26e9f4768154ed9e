//! Owning partitions.

use std::time::Duration;

use mailbell_bus::{Before, BusError, Claims, LostClaims, LostReason, Role, Take, Taken};
use mailbell_core::{
    ids::{LogId, Partition},
    timing::Timing,
};
use mailbell_test_servers::proxy::Mode;

use crate::world::{World, partition, soon};

const LOG: LogId = LogId([7; 16]);

async fn claims(world: &World, member: &str, incarnation: &str) -> (Claims, LostClaims) {
    world
        .bus(Role::Watcher)
        .await
        .claims(member, incarnation)
        .await
        .unwrap()
}

async fn take_one(claims: &Claims, number: u16) -> Take {
    claims.take(&[partition(number)]).await.remove(0).1.unwrap()
}

async fn taken(claims: &Claims, number: u16) -> Taken {
    match take_one(claims, number).await {
        Take::Taken(taken) => taken,
        foreign => panic!("{foreign:?}"),
    }
}

#[tokio::test]
async fn all_partitions_of_one_member() {
    let world = World::start().await;
    let (claims, _lost) = claims(&world, "a", "1").await;
    let all: Vec<Partition> = Partition::all().collect();
    let takes = claims.take(&all).await;
    assert_eq!(takes.len(), 1024);
    for (partition, take) in takes {
        let Take::Taken(Taken {
            epoch,
            before: None,
        }) = take.unwrap()
        else {
            panic!("{partition}")
        };
        assert!(epoch > 0);
        assert_eq!(claims.epoch(partition), Some(epoch));
    }
    // Once more changes nothing.
    let again = claims.take(&all).await;
    assert!(again.into_iter().all(|(partition, take)| {
        matches!(take.unwrap(), Take::Taken(taken) if Some(taken.epoch) == claims.epoch(partition))
    }));
    claims.write().await.unwrap();
    claims.release(&all).await.unwrap();
    assert_eq!(claims.held(), []);
}

#[tokio::test]
async fn another_member_waits_for_the_release() {
    let world = World::start().await;
    let (one, _lost_one) = claims(&world, "a", "1").await;
    let (two, _lost_two) = claims(&world, "b", "1").await;
    let first = taken(&one, 9).await;
    assert_eq!(
        take_one(&two, 9).await,
        Take::Foreign {
            member: "a".to_owned()
        }
    );
    one.flushed(partition(9), LOG, 41);
    one.flushed(partition(9), LOG, 40);
    one.release(&[partition(9)]).await.unwrap();
    assert_eq!(one.epoch(partition(9)), None);
    let second = taken(&two, 9).await;
    assert!(second.epoch > first.epoch);
    assert_eq!(
        second.before,
        Some(Before {
            log_id: LOG,
            flushed: 41,
            released: true
        })
    );
    assert_eq!(
        take_one(&one, 9).await,
        Take::Foreign {
            member: "b".to_owned()
        }
    );
}

#[tokio::test]
async fn a_new_incarnation_takes_over_and_the_old_one_learns_of_it() {
    let world = World::start().await;
    let (old, mut lost) = claims(&world, "a", "1").await;
    let all: Vec<Partition> = Partition::all().take(50).collect();
    for (_, take) in old.take(&all).await {
        take.unwrap();
    }
    old.flushed(partition(3), LOG, 12);
    old.write().await.unwrap();
    let (new, _lost_new) = claims(&world, "a", "2").await;
    for (partition, take) in new.take(&all).await {
        let Take::Taken(taken) = take.unwrap() else {
            panic!("{partition}")
        };
        assert!(Some(taken.epoch) > old.epoch(partition) || old.epoch(partition).is_none());
        if partition.number() == 3 {
            assert_eq!(
                taken.before,
                Some(Before {
                    log_id: LOG,
                    flushed: 12,
                    released: false
                })
            );
        }
    }
    let mut gone = Vec::new();
    while gone.len() < 50 {
        let loss = soon(lost.recv()).await.unwrap();
        assert_eq!(
            loss.reason,
            LostReason::Taken {
                member: "a".to_owned()
            }
        );
        gone.push(loss.partition);
    }
    gone.sort();
    assert_eq!(gone, all);
    assert_eq!(old.held(), []);
    // What it still writes changes nothing.
    old.flushed(partition(3), LOG, 99);
    old.write().await.unwrap();
    new.release(&[partition(3)]).await.unwrap();
    assert_eq!(
        taken(&new, 3).await.before,
        Some(Before {
            log_id: LOG,
            flushed: 12,
            released: true
        })
    );
}

#[tokio::test]
async fn two_at_once_and_one_wins() {
    let world = World::start().await;
    let (one, _l1) = claims(&world, "a", "1").await;
    let (two, _l2) = claims(&world, "b", "1").await;
    let all: Vec<Partition> = Partition::all().take(200).collect();
    let (first, second) = tokio::join!(one.take(&all), two.take(&all));
    for ((partition, a), (_, b)) in first.into_iter().zip(second) {
        let won =
            |take: Result<Take, BusError>| usize::from(matches!(take.unwrap(), Take::Taken(_)));
        assert_eq!(won(a) + won(b), 1, "{partition}");
    }
}

fn short_lived(options: &mut mailbell_bus::BusOptions) {
    options.timing = Timing {
        claim_refresh: Duration::from_millis(500),
        ..Timing::default()
    };
}

#[tokio::test]
async fn renewed_claims_live_and_others_age_out() {
    let world = World::start_with(short_lived).await;
    let (one, mut lost) = claims(&world, "a", "1").await;
    let (two, _l2) = claims(&world, "b", "1").await;
    let first = taken(&one, 4).await;
    taken(&two, 5).await;
    // One that nobody renews: its process is gone.
    let (gone, lost_gone) = claims(&world, "c", "1").await;
    let left = taken(&gone, 6).await;
    drop((gone, lost_gone));
    let next = soon(async {
        loop {
            if let Take::Taken(taken) = take_one(&two, 6).await {
                return taken;
            }
        }
    })
    .await;
    // Nothing is known of the owner before, but the numbers grow.
    assert_eq!(next.before, None);
    assert!(next.epoch > left.epoch);
    // By then the others would have aged out too.
    assert_eq!(
        take_one(&two, 4).await,
        Take::Foreign {
            member: "a".to_owned()
        }
    );
    assert_eq!(one.epoch(partition(4)), Some(first.epoch));
    assert!(
        tokio::time::timeout(Duration::ZERO, lost.recv())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_owner_that_was_away_for_too_long_has_lost_its_claim() {
    let world = World::start_with(short_lived).await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let bus = mailbell_bus::Bus::connect(options).await.unwrap();
    let (far, mut lost) = bus.claims("a", "1").await.unwrap();
    let first = taken(&far, 4).await;
    proxy.set(Mode::Cut);
    let (near, _l) = claims(&world, "b", "1").await;
    let other = soon(async {
        loop {
            if let Take::Taken(taken) = take_one(&near, 4).await {
                return taken;
            }
        }
    })
    .await;
    assert!(other.epoch > first.epoch);
    assert_eq!(
        far.epoch(partition(4)),
        Some(first.epoch),
        "it keeps its sessions while it cannot know better"
    );
    proxy.set(Mode::PASS);
    let loss = soon(lost.recv()).await.unwrap();
    assert_eq!((loss.partition, loss.epoch), (partition(4), first.epoch));
    assert_eq!(
        loss.reason,
        LostReason::Taken {
            member: "b".to_owned()
        }
    );
}

#[tokio::test]
async fn a_claim_that_aged_out_is_lost_too() {
    let world = World::start_with(short_lived).await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let bus = mailbell_bus::Bus::connect(options).await.unwrap();
    let (far, mut lost) = bus.claims("a", "1").await.unwrap();
    taken(&far, 4).await;
    proxy.set(Mode::Cut);
    let operator = world.operator().await;
    let question = serde_json::json!({ "last_by_subj": "$KV.MB_main_LIVE.claim.4" });
    soon(async {
        while crate::world::api(
            &operator,
            "STREAM.MSG.GET.KV_MB_main_LIVE",
            question.clone(),
        )
        .await
        .get("message")
        .is_some()
        {}
    })
    .await;
    proxy.set(Mode::PASS);
    let loss = soon(lost.recv()).await.unwrap();
    assert_eq!(
        (loss.partition, loss.reason),
        (partition(4), LostReason::Expired)
    );
    taken(&far, 4).await;
}

#[tokio::test]
async fn a_renewal_whose_acknowledgement_was_lost_is_ours() {
    let world = World::start_with(|options| {
        options.timing = Timing {
            ack_timeout: Duration::from_millis(1500),
            ..Timing::default()
        };
    })
    .await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let bus = mailbell_bus::Bus::connect(options).await.unwrap();
    let (far, mut lost) = bus.claims("a", "1").await.unwrap();
    let first = taken(&far, 4).await;
    far.flushed(partition(4), LOG, 5);
    proxy.set(Mode::DEAF);
    assert!(matches!(far.write().await, Err(BusError::Timeout(_))));
    proxy.set(Mode::PASS);
    far.flushed(partition(4), LOG, 6);
    far.write().await.unwrap();
    assert_eq!(far.epoch(partition(4)), Some(first.epoch));
    assert!(
        tokio::time::timeout(Duration::ZERO, lost.recv())
            .await
            .is_err()
    );
    far.release(&[partition(4)]).await.unwrap();
    let (near, _l) = claims(&world, "b", "1").await;
    assert_eq!(
        taken(&near, 4).await.before,
        Some(Before {
            log_id: LOG,
            flushed: 6,
            released: true
        })
    );
}
