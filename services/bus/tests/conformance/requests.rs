//! Requests to the owner of an account.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;

use mailbell_bus::{AskError, Bus, OwnerService, Role, ServeOptions, refuse};
use mailbell_core::ids::{AccountId, Partition};
use mailbell_proto::bus::v1::{
    CheckResult, ListPage, OwnerRequest, OwnerResponse, owner_request::Request,
    owner_response::Response,
};
use mailbell_test_servers::proxy::Mode;
use prost::Message as _;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::world::{World, account, listen, partition, soon};

const PATIENCE: Duration = Duration::from_secs(20);

fn question() -> OwnerRequest {
    OwnerRequest {
        request: Some(Request::List(ListPage {
            limit: 5,
            ..ListPage::default()
        })),
        ..OwnerRequest::default()
    }
}

fn answer(text: &str) -> OwnerResponse {
    let result = CheckResult {
        ok: true,
        code: text.to_owned(),
        ..CheckResult::default()
    };
    OwnerResponse {
        response: Some(Response::Check(result)),
    }
}

/// The code of an answer, good or bad.
fn code(response: OwnerResponse) -> String {
    match response.response {
        Some(Response::Check(result)) => result.code,
        Some(Response::Error(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

/// An owner that says its name and whom it was asked for.
fn named(bus: &Bus, name: &'static str) -> OwnerService {
    bus.serve(
        ServeOptions::default(),
        move |account: AccountId, request: OwnerRequest| async move {
            assert_eq!(request.account, account.to_string());
            assert_eq!(request.request, question().request);
            answer(&format!("{name} {account}"))
        },
    )
}

#[tokio::test]
async fn nobody_owns_it_and_then_somebody_does() {
    let world = World::start().await;
    let gateway = world.bus(Role::Gateway).await;
    let id = account(5, 0);
    assert_eq!(
        gateway.ask(&id, question(), PATIENCE).await,
        Err(AskError::NoOwner)
    );
    let watcher = world.bus(Role::Watcher).await;
    let owner = named(&watcher, "one");
    let all: Vec<Partition> = Partition::all().collect();
    owner.own(&all).await.unwrap();
    for asker in [&gateway, &world.bus(Role::Admin).await] {
        assert_eq!(
            code(asker.ask(&id, question(), PATIENCE).await.unwrap()),
            format!("one {id}")
        );
    }
    owner.disown(&all).await;
    assert_eq!(soon(until_no_owner(&gateway, &id)).await, AskError::NoOwner);
}

#[tokio::test]
async fn nothing_is_waited_for_where_nobody_answers() {
    let mut world = World::start_with(|options| {
        options.timing.ack_timeout = Duration::from_millis(1500);
    })
    .await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let watcher = Bus::connect(options).await.unwrap();
    let owner = named(&watcher, "one");
    let (deaf, away) = ([partition(5)], [partition(6)]);
    owner.own(&deaf).await.unwrap();
    owner.own(&away).await.unwrap();
    // The connection stands, and the end of the subscription is never confirmed.
    proxy.set(Mode::DEAF);
    soon(owner.disown(&deaf)).await;
    proxy.set(Mode::PASS);
    world.server.kill();
    let mut link = watcher.link();
    soon(link.wait_for(|link| !link.is_up())).await.unwrap();
    soon(owner.disown(&away)).await;
}

/// What takes longer than [`impatient`] askers wait for a sign.
const LONG: Duration = Duration::from_secs(5);

/// With short patience: an owner that is silent for so long has gone.
async fn impatient() -> World {
    World::start_with(|options| options.timing.ack_timeout = Duration::from_millis(1500)).await
}

/// An owner that never answers, and when it has begun to work.
fn that_never_ends(bus: &Bus) -> (OwnerService, Arc<Notify>) {
    let began = Arc::new(Notify::new());
    let begins = Arc::clone(&began);
    let owner = bus.serve(ServeOptions::default(), move |_, _| {
        begins.notify_one();
        std::future::pending::<OwnerResponse>()
    });
    (owner, began)
}

/// Its owner loses NATS, so that the answer never comes, and another one takes the account over.
#[tokio::test]
async fn the_next_owner_is_asked_when_one_falls_silent() {
    let world = impatient().await;
    let (gateway, two) = (
        world.bus(Role::Gateway).await,
        world.bus(Role::Watcher).await,
    );
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let one = Bus::connect(options).await.unwrap();
    let (first, began) = that_never_ends(&one);
    let second = named(&two, "two");
    gateway.check_meta().await.unwrap();
    first.own(&[partition(5)]).await.unwrap();
    let id = account(5, 0);
    let failing = async {
        began.notified().await;
        proxy.set(Mode::Cut);
        second.own(&[partition(5)]).await.unwrap();
    };
    let both = async { tokio::join!(gateway.ask(&id, question(), PATIENCE), failing) };
    let (answered, ()) = soon(both).await;
    assert_eq!(code(answered.unwrap()), format!("two {id}"));
}

#[tokio::test]
async fn one_that_is_gone_without_a_next_is_told_soon() {
    let world = impatient().await;
    let gateway = world.bus(Role::Gateway).await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let watcher = Bus::connect(options).await.unwrap();
    let (owner, began) = that_never_ends(&watcher);
    gateway.check_meta().await.unwrap();
    owner.own(&[partition(5)]).await.unwrap();
    let id = account(5, 0);
    // Far longer than this test may take.
    let asking = gateway.ask(&id, question(), Duration::from_secs(250));
    let failing = async {
        began.notified().await;
        proxy.set(Mode::Cut);
    };
    let both = async { tokio::join!(asking, failing) };
    let (answered, ()) = soon(both).await;
    assert_eq!(answered, Err(AskError::NoOwner));
}

/// Work that takes longer than the patience of a call is not begun twice.
#[tokio::test]
async fn long_work_is_done_once_by_who_gives_signs() {
    let world = impatient().await;
    let (gateway, watcher) = (
        world.bus(Role::Gateway).await,
        world.bus(Role::Watcher).await,
    );
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let owner = watcher.serve(ServeOptions::default(), move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        async {
            tokio::time::sleep(LONG).await;
            answer("done")
        }
    });
    gateway.check_meta().await.unwrap();
    owner.own(&[partition(5)]).await.unwrap();
    let answered = gateway.ask(&account(5, 0), question(), PATIENCE).await;
    assert_eq!(code(answered.unwrap()), "done");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// An owner that hears nothing for a while has the same request several times then, and does its work once.
#[tokio::test]
async fn what_is_asked_again_is_not_begun_twice() {
    let world = impatient().await;
    let gateway = world.bus(Role::Gateway).await;
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Watcher);
    options.urls = vec![url];
    let watcher = Bus::connect(options).await.unwrap();
    let (id, other) = (account(5, 0), account(5, 1));
    let (asked, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, until, last) = (Arc::clone(&asked), Arc::clone(&heard), other.clone());
    // No request waits: a second one of the first would leave no place for the last.
    let options = ServeOptions {
        concurrency: 2,
        queue: 0,
    };
    let owner = watcher.serve(options, move |account, _| {
        let until = Arc::clone(&until);
        if account == last {
            until.add_permits(2);
        } else {
            count.fetch_add(1, Ordering::Relaxed);
        }
        async move {
            until.acquire().await.unwrap().forget();
            answer("done")
        }
    });
    gateway.check_meta().await.unwrap();
    owner.own(&[partition(5)]).await.unwrap();
    let raw = world.raw("watcher").await;
    let mut seen = listen(&raw, "mb.main.req.5").await;
    proxy.set(Mode::STALLED_TO_CLIENT);
    let healing = async {
        for _ in 0..2 {
            seen.next().await.unwrap();
        }
        proxy.set(Mode::PASS);
        gateway.ask(&other, question(), PATIENCE).await
    };
    let both = async { tokio::join!(gateway.ask(&id, question(), PATIENCE), healing) };
    let (first, last) = soon(both).await;
    assert_eq!(
        (code(first.unwrap()), code(last.unwrap())),
        ("done".into(), "done".into())
    );
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// An owner of the release before gives no signs. Until an asker knows that the upgrade is finished there may be such, and who is silent
/// is waited for; then there are none, and who is silent has gone.
#[tokio::test]
async fn who_gives_no_signs_is_waited_for_while_there_may_be_owners_of_before() {
    let world = impatient().await;
    let gateway = world.bus(Role::Gateway).await;
    assert!(!gateway.write_version().has_signs());
    let raw = world.raw("watcher").await;
    let mut requests = listen(&raw, "mb.main.req.5").await;
    let id = account(5, 0);
    let mut next = async |after| {
        let request = requests.next().await.unwrap();
        let signs = OwnerRequest::decode(request.payload).unwrap().signs;
        tokio::time::sleep(after).await;
        (signs, request.reply.unwrap())
    };
    let before = async {
        let (signs, reply) = next(LONG).await;
        assert!(!signs);
        let payload = answer("before").encode_to_vec().into();
        raw.publish(reply, payload).await.unwrap();
    };
    let both = async { tokio::join!(gateway.ask(&id, question(), PATIENCE), before) };
    let (answered, ()) = soon(both).await;
    assert_eq!(code(answered.unwrap()), "before");
    // Nothing was asked in between: the next is another question.
    gateway.check_meta().await.unwrap();
    let after = async {
        let (signs, _) = next(Duration::ZERO).await;
        assert!(signs);
        let (_, reply) = next(Duration::ZERO).await;
        let payload = answer("after").encode_to_vec().into();
        raw.publish(reply, payload).await.unwrap();
    };
    let both = async { tokio::join!(gateway.ask(&id, question(), PATIENCE), after) };
    let (answered, ()) = soon(both).await;
    assert_eq!(code(answered.unwrap()), "after");
}

async fn until_no_owner(asker: &Bus, id: &AccountId) -> AskError {
    loop {
        if let Err(error) = asker.ask(id, question(), PATIENCE).await {
            return error;
        }
    }
}

#[tokio::test]
async fn a_hand_over_has_an_answer_for_everybody() {
    let world = World::start().await;
    let gateway = world.bus(Role::Gateway).await;
    let id = account(5, 0);
    let (one, two) = (
        world.bus(Role::Watcher).await,
        world.bus(Role::Watcher).await,
    );
    let (first, second) = (named(&one, "one"), named(&two, "two"));
    first.own(&[partition(5)]).await.unwrap();
    let asking = async {
        let mut from_one = 0;
        loop {
            match gateway.ask(&id, question(), PATIENCE).await {
                Ok(response) => match code(response).split(' ').next().unwrap() {
                    "one" => from_one += 1,
                    "two" => return from_one,
                    "not-owner" => {}
                    other => panic!("{other}"),
                },
                Err(AskError::NoOwner) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    let handing = async {
        first.disown(&[partition(5)]).await;
        second.own(&[partition(5)]).await.unwrap();
    };
    let (_from_one, ()) = soon(async { tokio::join!(asking, handing) }).await;
}

#[tokio::test]
async fn busy() {
    let world = World::start().await;
    let (gateway, watcher) = (
        world.bus(Role::Gateway).await,
        world.bus(Role::Watcher).await,
    );
    let (go, began) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (gate, begins) = (Arc::clone(&go), Arc::clone(&began));
    let owner = watcher.serve(
        ServeOptions {
            concurrency: 1,
            queue: 1,
        },
        move |_, _| {
            let (gate, begins) = (Arc::clone(&gate), Arc::clone(&begins));
            async move {
                begins.notify_one();
                gate.acquire().await.unwrap().forget();
                answer("done")
            }
        },
    );
    owner.own(&[partition(5)]).await.unwrap();
    let ask = || {
        let gateway = gateway.clone();
        tokio::spawn(async move {
            gateway
                .ask(&account(5, 0), question(), PATIENCE)
                .await
                .map(code)
        })
    };
    let running = ask();
    soon(began.notified()).await;
    // Of two more one waits and one is refused, whichever comes first.
    let (mut two, mut three) = (ask(), ask());
    let two_first = soon(async {
        tokio::select! {
            refused = &mut two => Ok(refused),
            refused = &mut three => Err(refused),
        }
    })
    .await;
    let (refused, waits) = match two_first {
        Ok(refused) => (refused, three),
        Err(refused) => (refused, two),
    };
    assert_eq!(refused.unwrap().unwrap(), "busy");
    go.add_permits(2);
    assert_eq!(soon(running).await.unwrap().unwrap(), "done");
    assert_eq!(soon(waits).await.unwrap().unwrap(), "done");
}

#[tokio::test]
async fn who_gives_up_is_worked_for_no_longer() {
    let world = World::start().await;
    let (gateway, watcher) = (
        world.bus(Role::Gateway).await,
        world.bus(Role::Watcher).await,
    );
    let (dropped, mut drops) = mpsc::channel(1);
    struct OnDrop(mpsc::Sender<()>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.try_send(());
        }
    }
    let owner = watcher.serve(ServeOptions::default(), move |_, _| {
        let guard = OnDrop(dropped.clone());
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    });
    owner.own(&[partition(5)]).await.unwrap();
    let asked = gateway
        .ask(&account(5, 0), question(), Duration::from_millis(300))
        .await;
    assert_eq!(asked, Err(AskError::Timeout));
    soon(drops.recv()).await.unwrap();
}

#[tokio::test]
async fn answers_and_questions_that_make_no_sense() {
    let world = World::start().await;
    let (gateway, watcher) = (
        world.bus(Role::Gateway).await,
        world.bus(Role::Watcher).await,
    );
    let owner = watcher.serve(ServeOptions::default(), |_, _| async {
        refuse("large", &"x".repeat(2 << 20), false)
    });
    owner.own(&[partition(5)]).await.unwrap();
    // An answer that NATS does not take.
    assert_eq!(
        code(
            gateway
                .ask(&account(5, 0), question(), PATIENCE)
                .await
                .unwrap()
        ),
        "too-large"
    );
    // A question that NATS does not take.
    let mut large = question();
    large.traceparent = "x".repeat(2 << 20);
    assert_eq!(
        gateway.ask(&account(5, 0), large, PATIENCE).await,
        Err(AskError::TooLarge)
    );
    let foreign = OwnerRequest {
        account: account(6, 0).to_string(),
        timeout_ms: 1000,
        ..question()
    };
    let raw = world.raw("gateway").await;
    for (payload, expected) in [
        (foreign.encode_to_vec(), "no-such-account"),
        (vec![0xff], "unreadable"),
    ] {
        let answer = soon(raw.request("mb.main.req.5", payload.into()))
            .await
            .unwrap();
        assert_eq!(
            code(OwnerResponse::decode(answer.payload).unwrap()),
            expected
        );
    }
}

#[tokio::test]
async fn only_who_may_asks_and_answers() {
    let world = World::start().await;
    let watcher = world.bus(Role::Watcher).await;
    assert_eq!(
        watcher.ask(&account(5, 0), question(), PATIENCE).await,
        Err(AskError::Denied)
    );
    // A gateway that claims to own a partition is never asked.
    let gateway = world.bus(Role::Gateway).await;
    let owner = named(&gateway, "gateway");
    let _ = owner.own(&[partition(5)]).await;
    let admin = world.bus(Role::Admin).await;
    assert_eq!(
        admin.ask(&account(5, 0), question(), PATIENCE).await,
        Err(AskError::NoOwner)
    );
}
