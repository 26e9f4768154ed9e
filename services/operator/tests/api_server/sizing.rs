//! How many pods there are, by what an admin API and gateways say. They are played here: no real ones have thousands of mailboxes and
//! devices within a test.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    actors::{IMAGE, NEXT, Operator},
    fake_admin::{FakeAdmin, TOKEN},
    world::{World, mailbell, with},
};

/// Health and metrics of a gateway.
#[derive(Default)]
struct Gateway {
    /// `None`: it does not say.
    devices: Mutex<Option<u64>>,
    looks: AtomicUsize,
}

impl Gateway {
    async fn serve(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = Arc::clone(self);
        let metrics = get(async move || {
            gateway.looks.fetch_add(1, Ordering::Relaxed);
            let devices = *gateway.devices.lock().unwrap();
            let devices = devices.map(|count| format!("mailbell_gateway_devices {count}\n"));
            format!(
                "mailbell_build_info{{version=\"0.2.0\",role=\"gateway\"}} 1\n{}",
                devices.unwrap_or_default()
            )
        });
        let router = Router::new().route("/metrics", metrics);
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn has(&self, devices: Option<u64>) {
        *self.devices.lock().unwrap() = devices;
    }
}

impl World {
    async fn watchers(&self) -> i32 {
        let set: StatefulSet = self.there("main-watcher").await;
        set.spec.unwrap().replicas.unwrap()
    }

    async fn gateways(&self) -> i32 {
        let deployment: Deployment = self.there("main-gateway").await;
        deployment.spec.unwrap().replicas.unwrap()
    }

    async fn until_pods(&self, watchers: i32, gateways: i32) {
        let look = async || {
            // Each part waits for those before it.
            self.all_is_ready().await;
            let there = (self.watchers().await, self.gateways().await);
            (there == (watchers, gateways)).then_some(())
        };
        self.once(
            look,
            &format!("{watchers} watchers and {gateways} gateways"),
        )
        .await;
        let runs = async || {
            self.all_is_ready().await;
            let status = self.mailbells().get("main").await.unwrap().status?;
            let mut ready = status.conditions.iter();
            ready.any(|it| it.reason == "Running").then_some(())
        };
        self.once(runs, "all of it to run").await;
    }

    /// What the status says of the admin API and of the NATS servers.
    async fn images(&self) -> (String, String) {
        let status = self.mailbells().get("main").await.unwrap().status.unwrap();
        let versions = status.versions.unwrap();
        let [admin, nats] = [versions.admin_image, versions.nats_image];
        (admin.unwrap(), nats.unwrap())
    }

    /// Of what runs, and not yet of what is to.
    async fn says_the_images_that_run(&self) {
        let image = |admin: &str, nats: &str| (admin.to_owned(), nats.to_owned());
        assert_eq!(self.images().await, image(IMAGE, "nats:2.12"));
        let nats = json!({ "managed": { "image": "nats:2.13" } });
        self.change(json!({ "spec": { "image": NEXT, "nats": nats } }))
            .await;
        self.secrets_are_made(NEXT).await;
        self.until_ready_says("True Changing The NATS servers: ")
            .await;
        assert_eq!(self.images().await, image(IMAGE, "nats:2.12"));
        self.set_is_ready("main-nats").await;
        let setup = self.setup(NEXT).await;
        self.job_is_done(&setup, "Complete").await;
        self.until_ready_says("True Changing The gateways: ").await;
        self.deployment_is_ready("main-gateway").await;
        self.until_ready_says("True Changing The watchers: ").await;
        self.set_is_ready("main-watcher").await;
        self.until_ready_says("True Changing The admin API: ").await;
        assert_eq!(self.images().await, image(IMAGE, "nats:2.13"));
        self.deployment_is_ready("main-admin").await;
        self.until_ready_says("True Running").await;
        assert_eq!(self.images().await, image(NEXT, "nats:2.13"));
    }
}

/// Whoever goes on has as many pods as before at once, and need not be asked for how many mailboxes and devices there are: nobody can tell
/// before they are there.
#[tokio::test]
async fn what_is_paused_goes_on_with_as_many_pods_as_before() {
    let Some(world) = World::new().await else {
        return;
    };
    world
        .secret("main-operator-token", json!({ "token": TOKEN }))
        .await;
    let (admin, gateway) = (FakeAdmin::start(None), Arc::new(Gateway::default()));
    let address = gateway.serve().await;
    let start = |identity: &str| {
        Operator::start_with(&world, identity, |options| {
            options.admin_url = Some(admin.url("http"));
            options.gateways = Some(vec![address; 8]);
            options.look_every = Duration::from_millis(100);
        })
    };
    admin.watches(1_950, 0, Duration::ZERO);
    gateway.has(Some(30));
    let scale = json!({ "min": 2, "max": 30 });
    let mut wanted = with(
        &mailbell(),
        "/spec/watchers",
        json!({ "scale": scale, "mailboxesPerPod": 100 }),
    );
    wanted = with(&wanted, "/spec/gateways/scale", scale);
    wanted = with(&wanted, "/spec/gateways/devicesPerPod", json!(80));
    let operator = start("one");
    world.create(&wanted).await;
    world.is_installed(IMAGE).await;
    world.until_pods(20, 3).await;
    world.change(json!({ "spec": { "paused": true } })).await;
    let rests = async || {
        world.all_is_ready().await;
        let there = (world.watchers().await, world.gateways().await);
        (there == (0, 0)).then_some(())
    };
    world.once(rests, "nothing to run").await;
    admin.has_mailboxes(None);
    gateway.has(Some(0));
    world
        .until_ready_says("False Paused Paused: nothing is watched, and nobody is served.")
        .await;
    let told = || async {
        let status = world.mailbells().get("main").await.unwrap().status?;
        let counts = status.counts?;
        let counts = (counts.mailboxes?, counts.watched?, counts.devices?);
        (counts == (1_950, 0, 0) && status.versions.is_none()).then_some(())
    };
    world
        .once(told, "what is registered, and nothing else")
        .await;
    // What is stored stays where it is.
    let nats: StatefulSet = world.there("main-nats").await;
    assert_eq!(nats.spec.unwrap().replicas, Some(3));
    // Another one, which has seen nothing of it.
    operator.stop().await;
    let operator = start("two");
    world.change(json!({ "spec": { "paused": false } })).await;
    let first = |count: i32| (count > 0).then_some(count);
    let gateways = world.once(async || first(world.gateways().await), "gateways");
    assert_eq!(gateways.await, 3);
    let watchers = async || {
        world.all_is_ready().await;
        first(world.watchers().await)
    };
    assert_eq!(world.once(watchers, "watchers").await, 20);
    world.until_pods(20, 3).await;
    let set: StatefulSet = world.there("main-watcher").await;
    assert_eq!(set.metadata.annotations.unwrap_or_default().len(), 0);
    operator.stop().await;
}

/// More mailboxes make more watchers, more devices more gateways, up to the bound; what is not known, or was needed a while ago, takes
/// none away.
#[tokio::test]
async fn there_are_as_many_pods_as_are_needed() {
    let Some(world) = World::new().await else {
        return;
    };
    world
        .secret("main-operator-token", json!({ "token": TOKEN }))
        .await;
    let (admin, gateway) = (FakeAdmin::start(None), Arc::new(Gateway::default()));
    let address = gateway.serve().await;
    let operator = Operator::start_with(&world, "one", |options| {
        options.admin_url = Some(admin.url("http"));
        // One answers for all.
        options.gateways = Some(vec![address; 8]);
        options.look_every = Duration::from_millis(100);
    });
    let see = |mailboxes: Option<u64>, devices: u64| {
        admin.has_mailboxes(mailboxes);
        gateway.has(Some(devices));
    };
    let scale = json!({ "min": 2, "max": 5 });
    let mut wanted = with(
        &mailbell(),
        "/spec/watchers",
        json!({ "scale": scale, "mailboxesPerPod": 100 }),
    );
    wanted = with(&wanted, "/spec/gateways/scale", scale);
    wanted = with(&wanted, "/spec/gateways/devicesPerPod", json!(80));
    world.create(&wanted).await;
    world.is_installed(IMAGE).await;
    world.until_pods(2, 2).await;
    // Eight times what the one says.
    see(Some(301), 30);
    world.until_pods(4, 3).await;
    let told = || async {
        let status = world.mailbells().get("main").await.unwrap().status?;
        let (counts, versions) = (status.counts?, status.versions?);
        let counts = (counts.mailboxes?, counts.watched?, counts.devices?);
        (counts == (301, 17, 240) && versions.running == "0.1.0, 0.2.0").then_some(())
    };
    world.once(told, "the counts").await;
    let (_, listed) = world.kubectl(&["get", "mailbells"], "").await;
    assert!(listed.contains("301") && listed.contains("240"), "{listed}");
    world.says_the_images_that_run().await;
    see(Some(1_000_000), 30);
    world.until_pods(5, 3).await;
    // Neither at once, nor where nobody answers.
    for (mailboxes, devices) in [(Some(0), 0), (None, 0)] {
        see(mailboxes, devices);
        let begin = gateway.looks.load(Ordering::Relaxed);
        let looked = || async {
            let looks = gateway.looks.load(Ordering::Relaxed);
            (looks > begin + 80).then_some(())
        };
        world.once(looked, "ten more looks").await;
        assert_eq!((world.watchers().await, world.gateways().await), (5, 3));
    }
    operator.stop().await;
}

/// Each only after the others have been enough for a while; none while nobody can say how much there is to do, and none of the least.
#[tokio::test]
async fn pods_that_are_not_needed_go_one_by_one() {
    let Some(world) = World::new().await else {
        return;
    };
    world
        .secret("main-operator-token", json!({ "token": TOKEN }))
        .await;
    let (admin, gateway) = (FakeAdmin::start(None), Arc::new(Gateway::default()));
    let address = gateway.serve().await;
    let (window, look) = (Duration::from_secs(1), Duration::from_millis(100));
    let operator = Operator::start_with(&world, "one", |options| {
        options.admin_url = Some(admin.url("http"));
        options.gateways = Some(vec![address; 8]);
        options.look_every = look;
        options.scale_down_after = window;
    });
    let scale = json!({ "min": 2, "max": 5 });
    let mut wanted = with(
        &mailbell(),
        "/spec/watchers",
        json!({ "scale": scale, "mailboxesPerPod": 100 }),
    );
    wanted = with(&wanted, "/spec/gateways/scale", scale);
    wanted = with(&wanted, "/spec/gateways/devicesPerPod", json!(80));
    admin.has_mailboxes(Some(500));
    gateway.has(Some(50));
    world.create(&wanted).await;
    world.is_installed(IMAGE).await;
    world.until_pods(5, 5).await;
    // Of the time of several windows nothing is known.
    let looks = async |seen: &AtomicUsize| {
        seen.fetch_add(admin.calls().len(), Ordering::Relaxed);
        (seen.load(Ordering::Relaxed) > 30).then_some(())
    };
    admin.has_mailboxes(None);
    gateway.has(None);
    admin.calls();
    let seen = AtomicUsize::new(0);
    world
        .once(async || looks(&seen).await, "looks that know nothing")
        .await;
    assert_eq!((world.watchers().await, world.gateways().await), (5, 5));
    admin.has_mailboxes(Some(0));
    gateway.has(Some(0));
    let steps = Mutex::new((vec![5], vec![5]));
    let least = async || {
        world.all_is_ready().await;
        let there = (world.watchers().await, world.gateways().await);
        let mut steps = steps.lock().unwrap();
        steps.0.push(there.0);
        steps.1.push(there.1);
        (there == (2, 2)).then_some(())
    };
    world.once(least, "the least of both").await;
    let (mut watchers, mut gateways) = steps.into_inner().unwrap();
    watchers.dedup();
    gateways.dedup();
    assert_eq!((watchers, gateways), (vec![5, 4, 3, 2], vec![5, 4, 3, 2]));
    admin.calls();
    let seen = AtomicUsize::new(0);
    world
        .once(async || looks(&seen).await, "looks at the least")
        .await;
    assert_eq!((world.watchers().await, world.gateways().await), (2, 2));
    operator.stop().await;
}
