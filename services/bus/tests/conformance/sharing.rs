//! Sharing the partitions on the real server. What the machine decides is tested in `core`; here it meets real records, ages
//! and connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use mailbell_bus::{Before, Bus, BusOptions, Role, Shards, Share, ShareOptions};
use mailbell_core::{
    ids::{LogId, OwnerEpoch, Partition, Position},
    sharding::assignment::{Candidate, assign},
    timing::Timing,
};
use mailbell_test_servers::proxy::Mode;
use tokio::{sync::watch, task::JoinHandle};

use crate::world::{World, partition, soon};

const LOG: LogId = LogId([7; 16]);

/// A member dies in little more than a second.
pub(crate) fn quick(options: &mut BusOptions) {
    options.timing = Timing {
        member_renew: Duration::from_millis(300),
        member_dead: Duration::from_millis(1300),
        take_back: Duration::from_secs(2),
        claim_refresh: Duration::from_secs(2),
        ..Timing::default()
    };
}

/// What a watcher would have of its part.
#[derive(Debug, Clone, Default)]
struct View {
    owned: BTreeMap<Partition, OwnerEpoch>,
    before: BTreeMap<Partition, Option<Before>>,
    /// Ever.
    stopped: BTreeSet<Partition>,
    /// Given away, ever.
    finished: BTreeSet<Partition>,
    renewed: BTreeSet<Partition>,
    replaced: bool,
}

/// What it is told from outside.
enum Order {
    Leave,
    Drain(bool),
}

/// A watcher without mailboxes: everything is loaded and finished at once, flushed up to 40 + its partition.
struct Member {
    view: watch::Receiver<View>,
    orders: tokio::sync::mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Member {
    fn start(bus: &Bus, id: &str, incarnation: &str) -> Self {
        let shards = bus.share(ShareOptions::new(id, incarnation)).unwrap();
        let (tx, view) = watch::channel(View::default());
        let (orders, rx) = tokio::sync::mpsc::channel(4);
        let task = tokio::spawn(work(shards, tx, rx));
        Self { view, orders, task }
    }

    async fn on(world: &World, id: &str, incarnation: &str) -> Self {
        Self::start(&world.bus(Role::Watcher).await, id, incarnation)
    }

    async fn until(&mut self, is: impl FnMut(&View) -> bool) -> View {
        soon(self.view.wait_for(is)).await.unwrap().clone()
    }

    async fn owns(&mut self, many: usize) -> View {
        self.until(|view| view.owned.len() == many).await
    }

    fn now(&self) -> View {
        self.view.borrow().clone()
    }

    /// As by `kill -9`.
    async fn kill(self) -> View {
        self.task.abort();
        let _ = self.task.await;
        self.view.borrow().clone()
    }

    async fn leave(self) {
        self.orders.send(Order::Leave).await.unwrap();
        soon(self.task).await.unwrap();
    }
}

async fn work(
    mut shards: Shards,
    view: watch::Sender<View>,
    mut orders: tokio::sync::mpsc::Receiver<Order>,
) {
    let mut leaving = false;
    loop {
        let share = tokio::select! {
            biased;
            Some(order) = orders.recv() => {
                match order {
                    Order::Leave => {
                        leaving = true;
                        shards.leave(Duration::from_secs(4));
                    }
                    Order::Drain(drain) => shards.drain(drain),
                }
                continue;
            }
            share = shards.next() => share,
        };
        let Some(share) = share else { return };
        match share {
            Share::Load {
                partition,
                epoch,
                before,
            } => {
                view.send_modify(|view| {
                    view.owned.insert(partition, epoch);
                    view.before.insert(partition, before);
                });
                shards.serving(partition, epoch, 3);
                shards.flushed(partition, LOG, 40 + u64::from(partition.number()), 3);
            }
            Share::Renewed { partition, epoch } => view.send_modify(|view| {
                view.owned.insert(partition, epoch);
                view.renewed.insert(partition);
            }),
            Share::Finish { partition, epoch } => {
                view.send_modify(|view| {
                    view.owned.remove(&partition);
                    view.finished.insert(partition);
                });
                shards.flushed(partition, LOG, 50 + u64::from(partition.number()), 3);
                shards.finished(partition, epoch);
            }
            Share::Stop { partition, .. } => view.send_modify(|view| {
                view.owned.remove(&partition);
                view.stopped.insert(partition);
            }),
            Share::Released { .. } => {}
            Share::Replaced => view.send_modify(|view| view.replaced = true),
        }
        if leaving && shards.held() == 0 {
            break;
        }
    }
    shards.left().await;
}

/// Waits until the members own everything, each partition once, each of them a part.
async fn shared_out(members: &mut [&mut Member]) {
    soon(async {
        loop {
            let mut all: Vec<Partition> = Vec::new();
            let mut parts = true;
            for member in members.iter() {
                let view = member.now();
                parts &= view.owned.len() >= 900 / members.len();
                all.extend(view.owned.keys());
            }
            all.sort();
            if parts && all == Partition::all().collect::<Vec<_>>() {
                return;
            }
            // Any of them may be the next to change.
            let changed = members
                .iter_mut()
                .map(|member| Box::pin(member.view.changed()));
            let _ = futures_util::future::select_all(changed).await;
        }
    })
    .await;
}

/// What an owner leaves behind that has flushed so far, if it gave the partition away, and if it did not.
fn left(flushed: Position, released: bool) -> Before {
    Before {
        log_id: LOG,
        flushed,
        released,
    }
}

#[tokio::test]
async fn one_takes_all_and_a_second_gets_a_part_of_it_flushed() {
    let world = World::start_with(quick).await;
    let mut one = Member::on(&world, "a", "1").await;
    let first = one.owns(1024).await;
    assert!(first.before.values().all(Option::is_none));
    let mut two = Member::on(&world, "b", "1").await;
    shared_out(&mut [&mut one, &mut two]).await;
    let (kept, given) = (one.now(), two.now());
    assert!(kept.stopped.is_empty() && given.stopped.is_empty());
    for (partition, epoch) in &given.owned {
        assert!(*epoch > first.owned[partition]);
        let flushed = 50 + u64::from(partition.number());
        assert_eq!(given.before[partition], Some(left(flushed, true)));
    }
}

#[tokio::test]
async fn who_is_killed_is_replaced_once_it_has_been_silent() {
    let world = World::start_with(quick).await;
    let mut one = Member::on(&world, "a", "1").await;
    let mut two = Member::on(&world, "b", "1").await;
    shared_out(&mut [&mut one, &mut two]).await;
    let dead = two.kill().await;
    let heir = one.owns(1024).await;
    for (partition, epoch) in &dead.owned {
        assert!(heir.owned[partition] > *epoch);
        // Nothing, of one that was not flushed yet.
        let given = heir.before[partition].map(|before| before.released);
        assert_ne!(given, Some(true));
    }
    let known = dead.owned.keys().filter_map(|of| heir.before[of]);
    assert!(known.count() > 0);
}

#[tokio::test]
async fn who_leaves_in_order_is_replaced_at_once() {
    let world = World::start_with(|options| {
        options.timing = Timing {
            // Nobody is taken for dead within the test.
            member_renew: Duration::from_millis(300),
            member_dead: Duration::from_secs(100),
            ..Timing::default()
        };
    })
    .await;
    let mut one = Member::on(&world, "a", "1").await;
    let mut two = Member::on(&world, "b", "1").await;
    shared_out(&mut [&mut one, &mut two]).await;
    two.leave().await;
    one.owns(1024).await;
    one.leave().await;
    // The next one finds everything released, and what was flushed.
    let next = Member::on(&world, "c", "1").await.owns(1024).await;
    let flushed = 50 + 7;
    assert_eq!(next.before[&partition(7)], Some(left(flushed, true)));
}

#[tokio::test]
async fn a_new_incarnation_takes_over_and_the_old_one_learns_of_it() {
    let world = World::start_with(quick).await;
    let mut old = Member::on(&world, "a", "1").await;
    let before = old.owns(1024).await;
    let mut new = Member::on(&world, "a", "2").await;
    let after = new.owns(1024).await;
    old.until(|view| view.replaced && view.owned.is_empty())
        .await;
    assert!(
        before
            .owned
            .iter()
            .all(|(partition, epoch)| after.owned[partition] > *epoch)
    );
}

#[tokio::test]
async fn several_at_once_end_with_one_owner_each() {
    let world = World::start_with(quick).await;
    let bus = world.bus(Role::Watcher).await;
    let mut members: Vec<Member> = ["a", "b", "c"]
        .iter()
        .map(|id| Member::start(&bus, id, "1"))
        .collect();
    let mut all: Vec<&mut Member> = members.iter_mut().collect();
    shared_out(&mut all).await;
}

#[tokio::test]
async fn one_that_drains_gives_all_away_and_lives() {
    let world = World::start_with(quick).await;
    let mut one = Member::on(&world, "a", "1").await;
    let mut two = Member::on(&world, "b", "1").await;
    shared_out(&mut [&mut one, &mut two]).await;
    two.orders.send(Order::Drain(true)).await.unwrap();
    one.owns(1024).await;
    two.owns(0).await;
    two.orders.send(Order::Drain(false)).await.unwrap();
    shared_out(&mut [&mut one, &mut two]).await;
}

#[tokio::test]
async fn who_was_cut_off_keeps_its_sessions_until_it_sees_another_owner() {
    let world = World::start_with(quick).await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let bus = Bus::connect(options).await.unwrap();
    let mut near = Member::on(&world, "a", "1").await;
    let mut far = Member::start(&bus, "b", "1");
    shared_out(&mut [&mut near, &mut far]).await;
    let before = far.now();
    proxy.set(Mode::Cut);
    near.owns(1024).await;
    assert_eq!(far.now().owned, before.owned, "it cannot know better");
    proxy.set(Mode::PASS);
    let gone: BTreeSet<Partition> = before.owned.keys().copied().collect();
    // It may be about to give one away that it should not own, before it sees that it has lost it.
    far.until(|view| {
        let mut left = gone.difference(&view.stopped);
        left.all(|partition| view.finished.contains(partition))
    })
    .await;
    // Later it has its share again.
    shared_out(&mut [&mut near, &mut far]).await;
}

#[tokio::test]
async fn claims_that_aged_out_in_an_outage_are_taken_again() {
    let world = World::start_with(|options| {
        options.timing = Timing {
            member_renew: Duration::from_millis(200),
            member_dead: Duration::from_millis(700),
            claim_refresh: Duration::from_millis(500),
            live_age: Duration::from_secs(2),
            ..Timing::default()
        };
    })
    .await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let bus = Bus::connect(options).await.unwrap();
    let mut far = Member::start(&bus, "a", "1");
    let before = far.owns(1024).await;
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
    // Somebody may have had them meanwhile: what ran is over, and everything is loaded anew.
    let anew = |view: &View| {
        let newer =
            |(partition, epoch): (&Partition, &OwnerEpoch)| *epoch > before.owned[partition];
        view.owned.len() == 1024 && view.owned.iter().all(newer)
    };
    let after = far.until(anew).await;
    assert!(!after.replaced);
}

#[tokio::test]
async fn writes_whose_acknowledgements_were_lost_are_ours() {
    let world = World::start_with(|options| {
        quick(options);
        options.timing.ack_timeout = Duration::from_millis(500);
        // The membership goes the same way: nobody must be taken for dead meanwhile.
        options.timing.member_dead = Duration::from_millis(7900);
    })
    .await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let bus = Bus::connect(options).await.unwrap();
    let mut far = Member::start(&bus, "a", "1");
    let before = far.owns(1024).await;
    proxy.set(Mode::DEAF);
    proxy.swallowed().await;
    proxy.set(Mode::PASS);
    far.orders.send(Order::Leave).await.unwrap();
    let after = far.owns(0).await;
    assert!(after.stopped.is_empty() && !after.replaced);
    let next = Member::on(&world, "b", "1").await.owns(1024).await;
    assert!(
        before
            .owned
            .iter()
            .all(|(partition, epoch)| next.owned[partition] > *epoch)
    );
}

#[tokio::test]
async fn who_does_not_answer_itself_says_so() {
    let world = World::start_with(quick).await;
    let mut one = Member::on(&world, "a", "1").await;
    one.owns(1024).await;
    // Its part is no longer driven; the thread goes on renewing.
    let bus = world.bus(Role::Watcher).await;
    let stuck = bus.share(ShareOptions::new("b", "1")).unwrap();
    let stuck = Arc::new(Mutex::new(stuck));
    let mut two = Member::on(&world, "c", "1").await;
    // The others share all of it among them once it has said so.
    shared_out(&mut [&mut one, &mut two]).await;
    drop(stuck);
}

/// What a member had is spread over those that are left, each of which keeps what it has.
#[tokio::test]
async fn what_the_dead_one_had_is_spread_over_the_others() {
    let world = World::start_with(quick).await;
    let mut one = Member::on(&world, "a", "1").await;
    let mut two = Member::on(&world, "b", "1").await;
    let mut three = Member::on(&world, "c", "1").await;
    let wanted = assign(&["a", "b", "c"].map(|id| Candidate {
        id,
        weight: ShareOptions::new(id, "1").weight,
        most: None,
    }));
    // Nothing changes hands any more.
    for (id, member) in [("a", &mut one), ("b", &mut two), ("c", &mut three)] {
        let its: Vec<Partition> = wanted.partitions(id).collect();
        let level = |view: &View| view.owned.keys().eq(&its);
        member.until(level).await;
    }
    let kept = [one.now().owned, two.now().owned];
    let dead = three.kill().await.owned;
    shared_out(&mut [&mut one, &mut two]).await;
    let now = [one.now().owned, two.now().owned];
    for (before, now) in kept.iter().zip(&now) {
        let stays = before.iter().filter(|(p, epoch)| now.get(p) == Some(epoch));
        // The bounds of the two shares are not those of three shares, so a few may move beside.
        assert!(stays.count() + before.len() / 10 >= before.len());
        let gained = now.keys().filter(|p| dead.contains_key(p)).count();
        let half = dead.len() / 2;
        assert!(
            gained.abs_diff(half) <= half / 4,
            "{gained} of {}",
            dead.len()
        );
    }
}

/// A member whose process is busy with other things is no dead member: its record is written from a thread of its own.
#[test]
fn a_member_is_renewed_while_its_runtime_stands_still() {
    /// More than two, and one may have been on its way before.
    const RENEWALS: usize = 4;
    let runtime = |workers| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()
            .unwrap()
    };
    let (tests, busy) = (runtime(2), runtime(1));
    let (world, observer) = tests.block_on(async {
        let world = World::start_with(|options| {
            options.timing = Timing {
                member_renew: Duration::from_millis(300),
                // It is not so busy for so long.
                member_dead: Duration::from_secs(10),
                ..Timing::default()
            };
        })
        .await;
        let observer = world.bus(Role::Admin).await;
        (world, observer)
    });
    let _member = busy.block_on(async {
        let mut member = Member::on(&world, "a", "1").await;
        member.owns(1024).await;
        member
    });
    // Its only worker is occupied until the test is over.
    let (over, wait) = std::sync::mpsc::sync_channel::<()>(1);
    let (stands, is_still) = std::sync::mpsc::sync_channel(1);
    busy.spawn(async move {
        stands.send(()).unwrap();
        let _ = wait.recv();
    });
    is_still.recv().unwrap();
    tests.block_on(async {
        let mut revisions = BTreeSet::new();
        let renewed = async {
            while revisions.len() <= RENEWALS {
                let members = observer.live().members().await.unwrap();
                let one = &members[0];
                assert!(!one.value.stalled && !one.value.left);
                revisions.insert(one.revision);
            }
        };
        let renewed = tokio::time::timeout(Duration::from_secs(10), renewed).await;
        assert!(renewed.is_ok(), "its record stands still");
    });
    drop(over);
}
