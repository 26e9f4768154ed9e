//! The handle to NATS.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_nats::{
    Client, ClientError, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, Server,
    ServerError,
};
use mailbell_core::{ids::Installation, timing::Timing};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

use crate::{
    Auth, BusError, BusOptions, Metrics, Role,
    names::Names,
    permissions::inbox_prefix,
    reach::{Others, Turns},
    read::BATCH_OF_BUCKET,
    upgrade,
    wire::{Pending, Wire},
};

/// The server's PING may be put off for as long as data arrives, so ours finds a dead link: after two unanswered ones.
const PING: Duration = Duration::from_secs(5);
/// TCP, TLS and authentication.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Full jitter: a random delay up to this, doubled with each failed try, up to the other.
const RECONNECT_BASE: Duration = Duration::from_millis(100);
const RECONNECT_MOST: Duration = Duration::from_secs(5);
/// How many messages a subscription may hold until it is read. One that overruns is made good by sequence checks.
const SUBSCRIPTION_CAPACITY: usize = 16 * 1024;
/// The answers of all reads come to one subscription, each with one more at its end.
const MOST_READS: usize = SUBSCRIPTION_CAPACITY / (BATCH_OF_BUCKET + 1);
/// After a lame-duck notice, a random delay up to this before another server is looked for.
const LAME_DUCK_SPREAD: Duration = Duration::from_secs(2);

/// How the connection is. Each change of `since` is another connection or the end of one: whoever compares it before and after
/// a wait knows whether the connection broke in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Connected.
    Up {
        /// When it was connected.
        since: Instant,
        /// The server said that it will shut down soon; another one is looked for.
        lame_duck: bool,
    },
    /// Not connected; it is tried again for as long as the bus lives.
    Down {
        /// When the connection was lost.
        since: Instant,
        /// A server that was asked since then has refused the login. Where the others do too it is not by waiting that this ends, but by a
        /// process with other credentials.
        refused: bool,
    },
}

impl Link {
    /// Whether it is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// Whether a server was there and refused the login.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Down { refused: true, .. })
    }
}

/// A connection to NATS as one role of an installation. Clones are cheap and share it; it ends with the last one, or by
/// [`Bus::close`].
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) options: BusOptions,
    pub(crate) names: Names,
    pub(crate) wire: Arc<Wire>,
    /// Batch reads that may run at once.
    pub(crate) reads: Arc<Semaphore>,
    pub(crate) write_version: upgrade::Known,
    /// Tasks hold the wire, never the bus: the last handle ends them.
    _closed_on_drop: DropGuard,
}

/// What follows from the events of the connection.
struct Events {
    link: watch::Sender<Link>,
    pending: Arc<Pending>,
    metrics: Metrics,
    client: OnceLock<Client>,
    closed: CancellationToken,
    others: Others,
    turns: Mutex<Turns>,
}

impl Events {
    fn on(&self, event: Event) {
        match event {
            Event::Connected => {
                // Nothing waits unless the notice of the end before it was lost in the client's queue of events.
                self.pending.fail_all();
                self.metrics.connects.inc();
                self.set(Link::Up {
                    since: Instant::now(),
                    lame_duck: false,
                });
            }
            Event::Disconnected | Event::Closed => {
                self.set(Link::Down {
                    since: Instant::now(),
                    refused: false,
                });
                self.pending.fail_all();
            }
            Event::LameDuckMode => self.on_lame_duck(),
            Event::ServerError(ServerError::Other(text)) => {
                if let Some(subject) = denied_publish(&text) {
                    tracing::warn!(subject, "NATS denies a publish");
                    self.pending.deny(subject);
                } else {
                    // A denied subscription, among others.
                    tracing::warn!(%text, "NATS refuses");
                }
            }
            Event::SlowConsumer(_) => tracing::warn!("a NATS subscription overran"),
            Event::ClientError(ClientError::Other(text)) => self.on_attempt(&text),
            Event::ServerError(_) | Event::ClientError(_) | Event::Draining => {}
        }
    }

    /// One more attempt to connect has failed, of which the client has no more than words.
    fn on_attempt(&self, text: &str) {
        let refusals = [
            ConnectErrorKind::AuthorizationViolation,
            ConnectErrorKind::Authentication,
        ];
        if !refusals.iter().any(|kind| kind.to_string() == text) {
            return;
        }
        let is_new = self.link.send_if_modified(|link| match link {
            Link::Down { refused, .. } => !std::mem::replace(refused, true),
            Link::Up { .. } => false,
        });
        if is_new {
            tracing::warn!("NATS refuses the login: it has another password for this role by now");
        }
    }

    /// Where to go next. The first time any will do, and all of them are tried.
    fn choose(&self, servers: &[Server]) -> Option<ReconnectToServer> {
        self.client.get()?;
        // Nothing that holds the lock can leave it half changed.
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let addr = turns.next(servers)?;
        Some(ReconnectToServer { addr, delay: None })
    }

    fn set(&self, link: Link) {
        self.metrics.link_up.set(i64::from(link.is_up()));
        self.link.send_replace(link);
    }

    fn on_lame_duck(&self) {
        self.link.send_if_modified(|link| match link {
            Link::Up { lame_duck, .. } if !*lame_duck => {
                *lame_duck = true;
                true
            }
            _ => false,
        });
        // The client only tells of it; the server would end the connection at a time of its own.
        let Some(client) = self.client.get().cloned() else {
            return;
        };
        if self.others.count(&client) > 0 {
            let closed = self.closed.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = closed.cancelled() => {}
                    () = tokio::time::sleep(jitter(LAME_DUCK_SPREAD)) => {
                        let _ = client.force_reconnect().await;
                    }
                }
            });
        }
    }
}

/// The subject of `Permissions Violation for Publish to "x"`.
fn denied_publish(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("Permissions Violation for Publish to \"")?;
    rest.split('"').next()
}

fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::random::<f64>())
}

/// Whether TLS is asked for; an error if it is missing where it must not be.
fn wants_tls(options: &BusOptions) -> Result<bool, BusError> {
    if options.urls.is_empty() {
        return Err(BusError::Options("no NATS URL".to_owned()));
    }
    let mut tls = options.tls.is_some();
    let mut plain_hosts = Vec::new();
    for url in &options.urls {
        // It would show in logs and errors.
        if url.contains('@') {
            return Err(BusError::Options(
                "a NATS URL must not hold a user or password".to_owned(),
            ));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(BusError::Options(format!(
                "{url:?} is no URL like nats://host:4222"
            )));
        };
        match scheme {
            "tls" => tls = true,
            "nats" => {}
            _ => {
                return Err(BusError::Options(format!(
                    "{url:?} is neither nats:// nor tls://"
                )));
            }
        }
        let end = if rest.starts_with('[') {
            rest.find(']').map_or(rest.len(), |at| at + 1)
        } else {
            rest.find([':', '/']).unwrap_or(rest.len())
        };
        let host = rest.get(..end).unwrap_or(rest);
        if !mailbell_core::host::is_loopback(host) {
            plain_hosts.push(host);
        }
    }
    if !tls
        && !options.allow_plain
        && let Some(host) = plain_hosts.first()
    {
        return Err(BusError::Options(format!(
            "{host} is not this machine: use tls:// or allow a plain connection explicitly"
        )));
    }
    Ok(tls)
}

pub(crate) async fn connect_options(
    options: &BusOptions,
    tls: bool,
) -> Result<ConnectOptions, BusError> {
    let mut connect = ConnectOptions::new()
        .name(format!(
            "mailbell {} {}",
            options.installation, options.name
        ))
        .custom_inbox_prefix(inbox_prefix(options.role, &options.installation))
        .ping_interval(PING)
        .connection_timeout(CONNECT_LIMIT)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .max_reconnects(None)
        .require_tls(tls);
    if !tls && !options.allow_plain {
        // A cluster names its other servers, which may be elsewhere.
        connect = connect.ignore_discovered_servers();
    }
    connect = match &options.auth {
        Auth::None => connect,
        Auth::UserPassword { user, password } => {
            connect.user_and_password(user.clone(), password.expose().to_owned())
        }
        Auth::NKey(seed) => connect.nkey(seed.expose().to_owned()),
        Auth::Creds(path) => {
            let path = path.clone();
            let text =
                tokio::task::spawn_blocking(move || mailbell_runtime::secretfile::read_text(&path))
                    .await;
            // The client finds the seed only with a line's end behind the file's last line.
            let text = text
                .map_err(|_| BusError::Closed)?
                .map_err(|error| BusError::Options(error.to_string()))?;
            let text = Zeroizing::new(format!("{}\n", *text));
            connect.credentials(&text).map_err(|_| {
                BusError::Options("the NATS credentials file cannot be read".to_owned())
            })?
        }
    };
    if let Some(tls) = &options.tls {
        if let Some(ca) = &tls.ca {
            connect = connect.add_root_certificates(ca.clone());
        }
        connect = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => connect.add_client_certificate(cert.clone(), key.clone()),
            (None, None) => connect,
            _ => {
                return Err(BusError::Options(
                    "a client certificate needs its key, and a key its certificate".to_owned(),
                ));
            }
        };
    }
    Ok(connect)
}

impl Bus {
    /// Connects; fails if no server answers. Later the connection is made anew without end, with full jitter.
    ///
    /// # Errors
    /// [`BusError::Options`], [`BusError::Connect`], [`BusError::Authentication`], [`BusError::Tls`].
    pub async fn connect(options: BusOptions) -> Result<Self, BusError> {
        options
            .timing
            .check()
            .map_err(|error| BusError::Options(error.to_string()))?;
        let tls = wants_tls(&options)?;
        let closed = CancellationToken::new();
        let pending = Arc::<Pending>::default();
        let (link, mut link_rx) = watch::channel(Link::Down {
            since: Instant::now(),
            refused: false,
        });
        let others = Others {
            named: options.urls.len(),
            discovers: tls || options.allow_plain,
        };
        let events = Arc::new(Events {
            link,
            pending: Arc::clone(&pending),
            metrics: options.metrics.clone(),
            client: OnceLock::new(),
            closed: closed.clone(),
            others,
            turns: Mutex::default(),
        });
        let (for_events, for_delay) = (Arc::clone(&events), Arc::clone(&events));
        let for_choice = Arc::clone(&events);
        let client = connect_options(&options, tls)
            .await?
            .event_callback(move |event| {
                for_events.on(event);
                std::future::ready(())
            })
            .reconnect_to_server_callback(move |servers, _info| {
                std::future::ready(for_choice.choose(&servers))
            })
            .reconnect_delay_callback(move |attempt| {
                if for_delay.client.get().is_none() {
                    return Duration::ZERO;
                }
                let doubled = u32::try_from(attempt.saturating_sub(1))
                    .unwrap_or(u32::MAX)
                    .min(16);
                jitter(
                    RECONNECT_BASE
                        .saturating_mul(1 << doubled)
                        .min(RECONNECT_MOST),
                )
            })
            .connect(options.urls.clone())
            .await
            .map_err(|error| connect_error(&error, &options))?;
        let _ = events.client.set(client.clone());
        // The event of this connection must be behind us: it would end the first calls.
        let up = tokio::time::timeout(CONNECT_LIMIT, link_rx.wait_for(Link::is_up))
            .await
            .is_ok_and(|up| up.is_ok());
        if !up {
            return Err(BusError::Disconnected);
        }
        let wire = Wire::start(client, &options, others, pending, link_rx, closed.clone()).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                names: Names::new(options.installation.clone()),
                wire: Arc::new(wire),
                reads: Arc::new(Semaphore::new(
                    options.concurrent_reads.clamp(1, MOST_READS),
                )),
                write_version: upgrade::Known::default(),
                options,
                _closed_on_drop: closed.drop_guard(),
            }),
        })
    }

    /// How the connection is, now and later.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.inner.wire.link()
    }

    /// Whether it is connected to a server that will stay.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.inner.wire.is_up()
            && matches!(
                *self.inner.wire.link().borrow(),
                Link::Up {
                    lame_duck: false,
                    ..
                }
            )
    }

    /// Which Mailbell.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.inner.options.installation
    }

    /// The role it connected as.
    #[must_use]
    pub fn role(&self) -> Role {
        self.inner.options.role
    }

    /// The periods of the installation.
    #[must_use]
    pub fn timing(&self) -> &Timing {
        &self.inner.options.timing
    }

    /// Ends the connection and every task of it. What is queued is sent first, within a second.
    pub async fn close(&self) {
        self.inner.wire.flush(Duration::from_secs(1)).await;
        self.inner.wire.closed().cancel();
    }

    pub(crate) fn wire(&self) -> &Wire {
        &self.inner.wire
    }

    pub(crate) fn names(&self) -> &Names {
        &self.inner.names
    }
}

pub(crate) fn connect_error(error: &async_nats::ConnectError, options: &BusOptions) -> BusError {
    use std::error::Error as _;
    let reason = || {
        error
            .source()
            .map_or_else(|| error.kind().to_string(), ToString::to_string)
    };
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            BusError::Authentication
        }
        ConnectErrorKind::Tls => BusError::Tls(reason()),
        ConnectErrorKind::ServerParse => BusError::Options(reason()),
        _ => {
            let reason = reason();
            if is_of_tls(&reason) {
                BusError::Tls(reason)
            } else {
                BusError::Connect {
                    urls: options.urls.join(", "),
                    reason,
                }
            }
        }
    }
}

/// The client reports a failed handshake as a failed read; a refusal by the server comes as an alert.
fn is_of_tls(reason: &str) -> bool {
    ["certificate", "tls", "fatal alert"]
        .iter()
        .any(|word| reason.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tls_says_is_not_taken_for_a_server_that_is_away() {
        for reason in [
            "invalid peer certificate: UnknownIssuer",
            "received fatal alert: CertificateRequired",
            "received fatal alert: UnknownCA",
        ] {
            assert!(is_of_tls(reason), "{reason}");
        }
        assert!(!is_of_tls("Connection refused (os error 111)"));
    }

    fn options(urls: &[&str]) -> BusOptions {
        BusOptions::new(
            urls.iter().map(|&url| url.to_owned()).collect(),
            Installation::default(),
            Role::Watcher,
        )
    }

    #[test]
    fn plain_only_on_this_machine_or_if_allowed() {
        for url in [
            "nats://127.0.0.1:4222",
            "nats://localhost",
            "nats://[::1]:4222",
        ] {
            assert!(matches!(wants_tls(&options(&[url])), Ok(false)), "{url}");
        }
        for url in [
            "nats://nats.example:4222",
            "nats://10.0.0.1",
            "nats://localhost.example/",
        ] {
            assert!(
                matches!(wants_tls(&options(&[url])), Err(BusError::Options(_))),
                "{url}"
            );
            let allowed = BusOptions {
                allow_plain: true,
                ..options(&[url])
            };
            assert!(matches!(wants_tls(&allowed), Ok(false)));
        }
        assert!(matches!(
            wants_tls(&options(&["tls://nats.example"])),
            Ok(true)
        ));
        assert!(matches!(
            wants_tls(&options(&["nats://127.0.0.1", "nats://nats.example"])),
            Err(BusError::Options(_))
        ));
        for url in [
            "nats://user:pass@127.0.0.1",
            "127.0.0.1:4222",
            "http://127.0.0.1",
        ] {
            let error = wants_tls(&options(&[url])).unwrap_err().to_string();
            assert!(!error.contains("pass@"), "{error}");
        }
        assert!(wants_tls(&options(&[])).is_err());
    }

    #[test]
    fn no_secret_is_printed() {
        let mut options = options(&["nats://127.0.0.1"]);
        options.auth = Auth::UserPassword {
            user: "watcher".to_owned(),
            password: crate::Secret::new("hunter2"),
        };
        assert!(!format!("{options:?}").contains("hunter2"));
        options.auth = Auth::NKey(crate::Secret::new("SUAHUNTER2"));
        assert!(!format!("{options:?}").contains("HUNTER2"));
    }

    #[test]
    fn the_subject_of_a_denial() {
        assert_eq!(
            denied_publish("Permissions Violation for Publish to \"mb.main.log.1\""),
            Some("mb.main.log.1")
        );
        assert_eq!(denied_publish("Stale Connection"), None);
    }
}
