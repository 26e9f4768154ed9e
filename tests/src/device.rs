//! A device: the client crate with its state in a file, and a journal of what its app was told.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use mailbell_client::{Client, Events, FileState, StoredState, Timing};
use mailbell_core::{cursor::Cursor, ids::AccountId};
use mailbell_proto::push::v1::push_client::PushClient;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};

use crate::{
    auditor::{Place, Truth},
    journal::Journal,
    logs::Logs,
    process::until,
    world::SETTLE_LIMIT,
};

/// A device that can be switched off and on; its state and journal stay.
#[derive(Debug)]
pub struct Device {
    url: String,
    token: String,
    /// Whom it trusts beside the usual ones.
    authority: Option<String>,
    places: Vec<Place>,
    /// Subscribed to the tenant, whatever the places are.
    tenant: bool,
    directory: TempDir,
    journal: watch::Sender<Journal>,
    reading: watch::Sender<bool>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Device {
    /// A device that is not switched on yet, for folders whose accounts the token names.
    ///
    /// # Errors
    /// When there is no place for its state.
    pub fn new(url: String, token: String, places: Vec<Place>) -> anyhow::Result<Self> {
        Ok(Self {
            url,
            token,
            authority: None,
            places,
            tenant: false,
            directory: TempDir::with_prefix("mailbell-device-")?,
            journal: watch::Sender::default(),
            reading: watch::Sender::new(true),
            running: None,
        })
    }

    /// Subscribes to the token's whole tenant, from the next start on; the places are what is known of it.
    #[must_use]
    pub fn of_tenant(mut self) -> Self {
        self.tenant = true;
        self
    }

    /// Trusts whoever has a certificate of this authority, from the next start on.
    #[must_use]
    pub fn trusting(mut self, authority_pem: String) -> Self {
        self.authority = Some(authority_pem);
        self
    }

    /// Switches it on.
    ///
    /// # Errors
    /// When its state is in use.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let mut accounts: Vec<String> = Vec::new();
        for place in &self.places {
            if !accounts.contains(&place.account) {
                accounts.push(place.account.clone());
            }
        }
        let mut builder = Client::builder(&self.url).token(self.token.as_str());
        if let Some(authority) = &self.authority {
            builder = builder.tls(authority.as_str());
        }
        let subscribed = if self.tenant {
            builder.whole_tenant().known_accounts(accounts)
        } else {
            builder.accounts(accounts)
        };
        let events = subscribed
            .state(FileState::open(self.state_file())?)
            .client_name("mailbell-tests")
            .timing(impatient())
            .build()?
            .into_stream();
        let stop = CancellationToken::new();
        let task = tokio::spawn(read(
            events,
            self.journal.clone(),
            self.reading.subscribe(),
            stop.clone(),
        ));
        self.running = Some(Running { stop, task });
        Ok(())
    }

    /// Switches it off; its state is stored.
    ///
    /// # Errors
    /// When it wasn't on.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let running = self.running.take().context("the device isn't on")?;
        running.stop.cancel();
        running.task.await?;
        self.journal.send_modify(|journal| journal.live = false);
        Ok(())
    }

    /// Subscribes to something else, from the next start on.
    pub fn subscribe(&mut self, token: String, places: Vec<Place>) {
        self.token = token;
        self.places = places;
    }

    /// Its app reads nothing until [`Device::resume`].
    pub fn pause(&self) {
        self.reading.send_replace(false);
    }

    /// Its app reads again.
    pub fn resume(&self) {
        self.reading.send_replace(true);
    }

    /// What its app was told so far.
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.journal.borrow().clone()
    }

    /// What its app is told, as it is told.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Journal> {
        self.journal.subscribe()
    }

    /// Waits until what was told satisfies `enough`.
    ///
    /// # Errors
    /// When it doesn't within `limit`; the text says what was waited for.
    pub async fn wait(
        &self,
        limit: Duration,
        what: &str,
        enough: impl Fn(&Journal) -> bool,
    ) -> anyhow::Result<()> {
        let mut journal = self.journal.subscribe();
        let result = timeout(limit, journal.wait_for(|journal| enough(journal))).await;
        if result.is_err() {
            let journal = self.journal();
            bail!(
                "waited {limit:?} for {what}: {} facts, {} connections, live {}, last end {:?}, ended {:?}",
                journal.seen.len(),
                journal.connections,
                journal.live,
                journal.last_disconnect,
                journal.ended,
            );
        }
        Ok(())
    }

    /// The part of the truth that this device is subscribed to.
    ///
    /// # Errors
    /// When a folder is missing: a fault of the test.
    pub fn expected(&self, all: &BTreeMap<Place, Truth>) -> anyhow::Result<BTreeMap<Place, Truth>> {
        self.places
            .iter()
            .map(|place| {
                let truth = all.get(place).context("nobody read this folder")?;
                Ok((place.clone(), truth.clone()))
            })
            .collect()
    }

    /// Waits until what it has stored resumes at the end of what these accounts' logs hold now.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn stores_the_end(&self, logs: &Logs, accounts: &[&str]) -> anyhow::Result<()> {
        for account in accounts {
            let group = account.parse::<AccountId>()?.partition().group();
            let last = logs.last(account).await?;
            until(SETTLE_LIMIT, "the stored cursor", || async {
                let cursor = self.stored_cursor();
                cursor.is_some_and(|cursor| cursor.0[group].position >= last)
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until it has stored a place to resume from: who has none when its stream breaks must list everything.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn can_resume(&self) -> anyhow::Result<()> {
        until(SETTLE_LIMIT, "a stored cursor", || async {
            self.stored_cursor().is_some()
        })
        .await
    }

    fn stored_cursor(&self) -> Option<Cursor> {
        let state = StoredState::decode(&fs::read(self.state_file()).ok()?).ok()?;
        Cursor::decode(state.cursor()).ok()
    }

    fn state_file(&self) -> PathBuf {
        self.directory.path().join("state")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

/// As much as the protocol's smallest window; tonic's own takes megabytes from a server before anybody reads.
const WINDOW: u32 = 64 * 1024;

/// A client of the bare protocol, for what no device of ours would do.
///
/// # Errors
/// When nobody answers.
pub async fn bare(url: String) -> anyhow::Result<PushClient<Channel>> {
    let endpoint = Channel::from_shared(url)?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    Ok(PushClient::new(endpoint.connect().await?))
}

/// A request with a device token.
///
/// # Errors
/// When the token can't stand in a header.
pub fn with_token<T>(message: T, token: &str) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse()?;
    request.metadata_mut().insert("authorization", bearer);
    Ok(request)
}

/// A test doesn't want to wait for a device that is polite to its server.
fn impatient() -> Timing {
    Timing {
        open: Duration::from_secs(10),
        page: Duration::from_secs(20),
        backoff_floor: Duration::from_millis(20),
        backoff_first: Duration::from_millis(100),
        backoff_most: Duration::from_secs(1),
        store_cursor: Duration::from_secs(1),
        ..Timing::default()
    }
}

async fn read(
    mut events: Events,
    journal: watch::Sender<Journal>,
    mut reading: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            // First: what is read from then on would not be in the journal of the test's next step.
            () = stop.cancelled() => break,
            // The device is dropped together with its switch.
            paused = reading.wait_for(|reading| *reading) => if paused.is_err() { break },
        }
        let item = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            item = events.recv() => item,
        };
        match item {
            Some(Ok(event)) => journal.send_modify(|journal| journal.note(&event)),
            Some(Err(error)) => {
                journal.send_modify(|journal| journal.ended = Some(error.to_string()));
            }
            None => return,
        }
    }
    events.close().await;
}
