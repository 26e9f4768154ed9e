//! `make bench-devices`: by how much each device that is connected over TLS makes the memory of a gateway grow.
//!
//! It starts a private mail server, NATS and an installation, and connects devices to the one account: once, twice more after all of
//! them have gone, and then they are told of messages. `--devices 4000` how many; each takes a descriptor here and one of the gateway.
//! Run it from a release build.
#![expect(clippy::print_stdout, reason = "it prints what it measures")]

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mailbell_client::{AppEvent, Client, Events};
use mailbell_test_servers::{Authority, NatsOptions, NatsServer};
use mailbell_tests::{
    installation::{Layout, Options, Part, write_secret},
    process::{resident, until},
    world::{World, WorldOptions},
};

const LIMIT: Duration = Duration::from_secs(120);
/// Connecting at the same time.
const AT_ONCE: usize = 32;
/// What a gateway needs with any device is there after these.
const FIRST: usize = 100;
/// To each device.
const MESSAGES: usize = 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let count: usize = match (args.next().as_deref(), args.next()) {
        (None, None) => 4000,
        (Some("--devices"), Some(count)) => count.parse()?,
        _ => bail!("usage: devices [--devices 4000]"),
    };
    let nats = NatsServer::start(NatsOptions::default()).await?;
    let installation = Options {
        layout: Layout::Roles,
        nats_url: Some(nats.url()),
        ..Options::default()
    };
    let mut world = World::start(WorldOptions {
        installation,
        ..WorldOptions::default()
    })
    .await?;
    let authority = with_tls(&mut world).await?;
    let token = world.token(&[0]).await?;
    let account = world.account(0).id.clone();
    let url = world.installation.push_url()?.replace("http:", "https:");
    let connect = async |count: usize| {
        let opened = stream::iter(0..count).map(|_| async {
            let client = Client::builder(&url)
                .token(token.as_str())
                .accounts([account.as_str()])
                .tls(authority.as_str());
            let mut device = client.build()?.into_stream();
            read_until(&mut device, |event| matches!(event, AppEvent::Live)).await?;
            anyhow::Ok(device)
        });
        let opened = opened.buffer_unordered(AT_ONCE);
        opened.try_collect::<Vec<Events>>().await
    };
    let gateway = world.installation.pid(Part::Gateway);
    let first = connect(FIRST).await?;
    let before = resident(gateway);
    let print = |when: &str| {
        let each = resident(gateway).saturating_sub(before) / u64::try_from(count).unwrap_or(1);
        println!(
            "{count} devices, {when}: {:.1} KiB each",
            each as f64 / 1024.0
        );
    };
    println!("{FIRST} devices: {} KiB in all", before / 1024);
    let mut devices = connect(count).await?;
    print("connected");
    for again in ["once more", "twice more"] {
        devices.clear();
        until(LIMIT, "all devices to be gone", || async {
            let attached = world.installation.metric("mailbell_gateway_devices", &[]);
            attached
                .await
                .is_ok_and(|attached| attached <= FIRST as f64)
        })
        .await?;
        devices = connect(count).await?;
        print(again);
    }
    world.deliver(0, u64::try_from(MESSAGES)?).await?;
    for device in &mut devices {
        for _ in 0..MESSAGES {
            read_until(device, |event| matches!(event, AppEvent::Arrived(_))).await?;
        }
    }
    print("told of messages");
    drop(first);
    Ok(())
}

/// Starts the gateway anew, with a certificate: of whom.
async fn with_tls(world: &mut World) -> anyhow::Result<String> {
    let certificate = Authority::new().certificate(&["127.0.0.1"]);
    let state = world.installation.state_dir().to_owned();
    let options = world.installation.options();
    for (name, variable, text) in [
        (
            "push.crt",
            "MAILBELL_TLS_CERT",
            &certificate.certificate_pem,
        ),
        ("push.key", "MAILBELL_TLS_KEY", &certificate.key_pem),
    ] {
        let file = state.join(name);
        write_secret(&file, text)?;
        let file = file.to_str().context("a path that is no text")?;
        options.env.push((variable.to_owned(), file.to_owned()));
    }
    world.installation.terminate(Part::Gateway).await?;
    world.installation.launch(Part::Gateway)?;
    world.installation.ready().await?;
    Ok(certificate.authority_pem)
}

async fn read_until(device: &mut Events, holds: impl Fn(&AppEvent) -> bool) -> anyhow::Result<()> {
    loop {
        let event = tokio::time::timeout(LIMIT, device.recv()).await?;
        if holds(&event.context("the device's stream ended")??) {
            return Ok(());
        }
    }
}
