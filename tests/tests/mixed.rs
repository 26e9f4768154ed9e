//! This release and the one before it on one installation: upgraded process by process, taken back, upgraded again, finished.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::time::{Duration, Instant};

use mailbell_bus::{Bus, BusOptions, Role};
use mailbell_proto::bus::v1::{
    LoginNow, OwnerRequest, owner_request::Request, owner_response::Response,
};
use mailbell_test_servers::{NatsOptions, NatsServer, synthetic::LoginAnswer};
use mailbell_tests::{
    crowd::{Crowd, CrowdOptions},
    device::Device,
    http,
    installation::{Installation, Options, Part},
    leaks::PASSWORD,
    process::{Release, until},
};

const USERS: usize = 12;
const SOON: Duration = Duration::from_secs(120);
/// What a process ends with that is too old for its installation (`EX_DATAERR`).
const TOO_OLD: i32 = 65;
/// Its sentence.
const SENTENCE: &str = "its upgrade was finished";
/// What `--finish-upgrade` ends with while an older watcher runs (`EX_TEMPFAIL`).
const OLDER_RUN: i32 = 75;

const WATCHERS: [Part; 2] = [Part::Watcher(0), Part::Watcher(1)];

struct World {
    crowd: Crowd,
    device: Device,
}

impl World {
    /// Both watchers, gateway and admin of the release before, and a device that is told of everything.
    async fn before(nats: &NatsServer) -> Self {
        let mut world = Self::small(nats).await;
        let crowd = &mut world.crowd;
        assert_eq!(crowd.add_watcher().await.unwrap(), WATCHERS[1]);
        crowd.installation.ready().await.unwrap();
        world
    }

    /// The same with one watcher.
    async fn small(nats: &NatsServer) -> Self {
        let mut crowd = Crowd::start(CrowdOptions {
            users: USERS,
            watchers: 1,
            own_ways: true,
            installation: Options {
                nats_url: Some(nats.url()),
                release: Release::Before,
                ..Options::default()
            },
        })
        .await
        .unwrap();
        crowd.watched(SOON).await.unwrap();
        let device = crowd.device_of_all().await.unwrap();
        Self { crowd, device }
    }

    fn mail_for_all(&self) {
        for user in 0..USERS {
            self.crowd.deliver(user, 1).unwrap();
        }
    }

    /// Mail for all, which must have arrived before this returns.
    async fn mail_arrives(&self) {
        self.mail_for_all();
        if let Err(error) = self.crowd.judge(&[&self.device]).await {
            self.crowd.installation.keep();
            panic!("{error:?}");
        }
    }

    /// Ends one process and starts it again as of this release; mail comes all along, and all of it arrives.
    async fn replace(&mut self, part: Part, release: Release) {
        let begin = Instant::now();
        self.mail_for_all();
        let installation = &mut self.crowd.installation;
        installation.terminate(part).await.unwrap();
        self.mail_for_all();
        let since = Instant::now();
        let installation = &mut self.crowd.installation;
        installation.options().release = release;
        installation.launch(part).unwrap();
        installation.ready().await.unwrap();
        if WATCHERS.contains(&part) {
            until(SOON, "the other to give it mailboxes", || async {
                let verdict = self.crowd.verdict(since..Instant::now(), &[]);
                verdict.logins.contains_key(part.to_string().as_str())
            })
            .await
            .unwrap();
        }
        self.mail_arrives().await;
        self.crowd.watched(SOON).await.unwrap();
        let verdict = self.crowd.verdict(begin..Instant::now(), &[]);
        assert!(verdict.overlaps.is_empty(), "{part}: {verdict}");
    }

    /// Ends one process and starts it as of this release.
    async fn restart(&mut self, part: Part, release: Release) {
        let installation = &mut self.crowd.installation;
        installation.terminate(part).await.unwrap();
        installation.options().release = release;
        installation.launch(part).unwrap();
        installation.ready().await.unwrap();
    }

    /// Gives the first account a password, which is the one that it has.
    async fn new_password(&self) {
        let installation = &self.crowd.installation;
        let file = installation.password_file("new", PASSWORD).unwrap();
        let file = file.display().to_string();
        self.account(&["update", "--no-check", "--password-file", &file])
            .await;
    }

    /// A release that is too old says so and ends.
    async fn refused(&mut self, part: Part) {
        let installation = &mut self.crowd.installation;
        installation.options().release = Release::Before;
        installation.launch(part).unwrap();
        let code = installation.ends(part, SOON).await.unwrap();
        assert_eq!(code, TOO_OLD, "{part}");
        installation.options().release = Release::This;
    }

    async fn account(&self, args: &[&str]) -> serde_json::Value {
        let id = &self.crowd.accounts.first().unwrap().id;
        let mut line = vec!["account"];
        line.extend(args);
        line.extend([id.as_str(), "--json"]);
        let said = self.crowd.installation.cli(&line).await.unwrap();
        serde_json::from_str(&said.ok().unwrap()).unwrap()
    }
}

#[tokio::test]
async fn an_upgrade_with_a_way_back_until_it_is_finished() {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let mut world = World::before(&nats).await;
    let [first, second] = WATCHERS;
    world.mail_arrives().await;

    // One by one; each step hands mailboxes from one release to the other, in both directions by the end.
    world.replace(first, Release::This).await;
    world.replace(Part::Gateway, Release::This).await;
    world.replace(second, Release::This).await;
    let check = world.account(&["check"]).await;
    assert_eq!(check.get("ok"), Some(&true.into()), "{check}");

    // Something is wrong with the new one: back.
    world.replace(first, Release::Before).await;
    world.replace(Part::Gateway, Release::Before).await;
    world.crowd.installation.options().release = Release::This;
    let said = world.crowd.installation.setup(&["--finish-upgrade"]).await;
    let said = said.unwrap();
    assert_eq!(said.code, Some(OLDER_RUN), "{said:?}");
    assert!(said.err.contains("watcher-0") && !said.err.contains("watcher-1"));

    // And forth again, but for the admin, which somebody forgets.
    world.replace(first, Release::This).await;
    world.replace(Part::Gateway, Release::This).await;
    let said = world.crowd.installation.setup(&["--finish-upgrade"]).await;
    said.unwrap().ok().unwrap();
    let code = world.crowd.installation.ends(Part::Admin, SOON).await;
    assert_eq!(code.unwrap(), TOO_OLD);
    world.crowd.installation.launch(Part::Admin).unwrap();
    world.crowd.installation.ready().await.unwrap();

    // What only the new one stores outlives every watcher that knew it.
    world.mail_arrives().await;
    for watcher in WATCHERS {
        world.replace(watcher, Release::This).await;
    }
    let shown = world.account(&["show"]).await;
    let arrived = shown.get("last_arrival_ms").and_then(|at| at.as_i64());
    assert!(arrived.is_some_and(|at| at > 0), "{shown}");
    let check = world.account(&["check"]).await;
    assert_eq!(check.get("ok"), Some(&true.into()), "{check}");

    // There is no way back any more.
    for part in [second, Part::Gateway] {
        world.crowd.installation.terminate(part).await.unwrap();
        world.refused(part).await;
    }
    assert!(world.crowd.installation.log().contains(SENTENCE));
    world.crowd.installation.options().release = Release::Before;
    let said = world.crowd.installation.setup(&[]).await.unwrap();
    assert_eq!(said.code, Some(TOO_OLD), "{said:?}");
    assert!(said.err.contains(SENTENCE), "{said:?}");
    world.crowd.installation.options().release = Release::This;
    world.crowd.installation.start_all().await.unwrap();
    world.crowd.watched(SOON).await.unwrap();
    let World { crowd, device } = world;
    crowd.finish(&[&device]).await.unwrap();
}

/// How many requests of a kind the watcher has answered.
async fn requests(crowd: &Crowd, kind: &str) -> u64 {
    let watcher = crowd.installation.page_of(WATCHERS[0], "/metrics").await;
    let label = format!("kind=\"{kind}\"");
    let name = "mailbell_watcher_requests_total";
    let count = http::metric(&watcher.unwrap().body, name, &[&label]);
    // They are whole numbers.
    count.unwrap_or_default() as u64
}

/// The mail server refuses the first user once, and the account waits: for a quarter of an hour, unless somebody is faster.
async fn waits_after_a_refusal(world: &World) {
    let server = &world.crowd.server;
    server.conduct(|conduct| {
        conduct.login_of.insert(0, LoginAnswer::WrongPassword);
    });
    server.cut(|session| session.user == Some(0));
    until(SOON, "its login to be refused", || async {
        let shown = world.account(&["show"]).await;
        let state = shown.get("state").and_then(|state| state.get("health"));
        state.is_some_and(|health| health == "action-needed")
    })
    .await
    .unwrap();
    server.conduct(|conduct| conduct.login_of.clear());
}

/// A person asks whether the login works again. An owner of the release before, which knows no request to log in at once, is not asked
/// to; if it is all the same, it says no and goes on.
#[tokio::test]
async fn only_owners_that_know_it_are_asked_to_log_in_at_once() {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let mut world = World::small(&nats).await;
    world.restart(Part::Admin, Release::This).await;
    waits_after_a_refusal(&world).await;
    let check = world.account(&["check"]).await;
    assert_eq!(check.get("ok"), Some(&true.into()), "{check}");
    assert_eq!(requests(&world.crowd, "check").await, 1);
    assert_eq!(requests(&world.crowd, "unknown").await, 0);

    let options = BusOptions::new(vec![nats.url()], "main".parse().unwrap(), Role::Admin);
    let bus = Bus::connect(options).await.unwrap();
    let request = OwnerRequest {
        request: Some(Request::Login(LoginNow {})),
        ..OwnerRequest::default()
    };
    let account = world.crowd.accounts.first().unwrap().id.parse().unwrap();
    let answer = bus.ask(&account, request, SOON).await.unwrap().response;
    let Some(Response::Error(error)) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!((error.code.as_str(), error.retry), ("bad-request", false));
    assert_eq!(requests(&world.crowd, "unknown").await, 1);
    assert!(world.crowd.installation.runs(WATCHERS[0]));
    // It gave up no mailbox for that. (Each leaves IDLE for a look now and then in its first seconds.)
    let mut others = world.crowd.server.records();
    others.retain(|session| session.user.is_some_and(|user| user > 0));
    assert_eq!(others.len(), USERS - 1, "{others:?}");
    assert!(others.iter().all(|session| session.ended.is_none()));

    // A new password is no such request, and reaches every owner at once.
    world.new_password().await;
    world.crowd.watched(SOON).await.unwrap();

    for part in [WATCHERS[0], Part::Gateway] {
        world.restart(part, Release::This).await;
    }
    world.crowd.watched(SOON).await.unwrap();
    let said = world.crowd.installation.setup(&["--finish-upgrade"]).await;
    said.unwrap().ok().unwrap();
    waits_after_a_refusal(&world).await;
    // The admin hears of the end of the upgrade in a moment.
    until(SOON, "the owner to be asked to log in", || async {
        let check = world.account(&["check"]).await;
        assert_eq!(check.get("ok"), Some(&true.into()), "{check}");
        requests(&world.crowd, "login").await > 0
    })
    .await
    .unwrap();
    world.crowd.watched(SOON).await.unwrap();
    waits_after_a_refusal(&world).await;
    world.new_password().await;
    world.mail_arrives().await;
}

#[tokio::test]
async fn one_machine_goes_back_until_it_is_told_that_it_need_not() {
    let mut installation = Installation::start(Options {
        release: Release::Before,
        ..Options::default()
    })
    .await
    .unwrap();
    for release in [Release::This, Release::Before, Release::This] {
        installation.stop().await.unwrap();
        installation.options().release = release;
        installation.start_all().await.unwrap();
    }
    assert!(installation.log().contains("--finish-upgrade"));
    installation.stop().await.unwrap();
    let finish = "--finish-upgrade".to_owned();
    installation.options().args.push(finish);
    installation.start_all().await.unwrap();
    installation.stop().await.unwrap();
    installation.options().args.clear();
    installation.start_all().await.unwrap();
    installation.stop().await.unwrap();
    installation.options().release = Release::Before;
    installation.launch(Part::Standalone).unwrap();
    let code = installation.ends(Part::Standalone, SOON).await.unwrap();
    assert_eq!(code, TOO_OLD);
    assert!(installation.log().contains(SENTENCE));
}
