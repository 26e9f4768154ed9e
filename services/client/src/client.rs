//! Making a client.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use mailbell_core::host::is_loopback;
use mailbell_proto::push::v1::{ContentLevel, EventKind, SubscribeRequest};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::{
    driver,
    error::Error,
    event::AppEvent,
    events::Events,
    session::SessionOptions,
    state::{MemoryState, StateStore},
    token::{Token, TokenError, TokenSource},
};

const MOST_CLIENT_NAME: usize = 128;
/// A page of 100 messages of 8 KiB, or a Hello with 256 accounts, and room to spare.
pub(crate) const MOST_MESSAGE: usize = 2 * 1024 * 1024;

/// How long a client waits for what. The defaults are for use; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From opening a stream to its first frame. 20 s.
    pub open: Duration,
    /// One page of a listing. 30 s.
    pub page: Duration,
    /// No back-off is shorter. 0.1 s.
    pub backoff_floor: Duration,
    /// The first back-off is at most so long; each further one may be twice as long. 1 s.
    pub backoff_first: Duration,
    /// No back-off is longer. 60 s; 5 s if the endpoint is on this host and no timing is set: somebody is likely to sit before
    /// a service that was restarted, and it has no crowd of clients to be spared.
    pub backoff_most: Duration,
    /// A stream that has lasted so long was a good one: the next back-off begins anew. 30 s.
    pub healthy: Duration,
    /// What the app has taken is acknowledged this often. 1 s.
    pub acks: Duration,
    /// What the app has taken is stored at most this often. 0.2 s.
    pub store: Duration,
    /// A cursor that moved without anything taken is stored at most this often. 30 s.
    pub store_cursor: Duration,
    /// HTTP/2 PING on a quiet connection, and how long its answer may take. 30 s, 10 s.
    pub keep_alive: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            open: s(20),
            page: s(30),
            backoff_floor: Duration::from_millis(100),
            backoff_first: s(1),
            backoff_most: s(60),
            healthy: s(30),
            acks: s(1),
            store: Duration::from_millis(200),
            store_cursor: s(30),
            keep_alive: (s(30), s(10)),
        }
    }
}

/// [`Timing::backoff_most`] for a service on this host.
const BACKOFF_MOST_LOOPBACK: Duration = Duration::from_secs(5);

/// Where connections come from.
#[derive(Clone)]
pub(crate) enum Connections {
    /// A new one each time, so that names are resolved anew and nothing of a dead one stays.
    New(Box<Endpoint>),
    /// The app's own.
    Given(Channel),
}

impl Connections {
    pub(crate) fn channel(&self) -> Channel {
        match self {
            Self::New(endpoint) => endpoint.connect_lazy(),
            Self::Given(channel) => channel.clone(),
        }
    }
}

/// What may be on the way while the app does not read: some dozens of events.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all streams: a page of a listing must get through beside the stream of events.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// All that a client is told by its builder.
pub(crate) struct Config {
    pub(crate) connections: Connections,
    pub(crate) tokens: TokenSource,
    pub(crate) request: SubscribeRequest,
    pub(crate) session: SessionOptions,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) acks: bool,
    pub(crate) queue: usize,
    pub(crate) explicit: bool,
    pub(crate) timing: Timing,
}

/// A client that is set up and not running.
pub struct Client {
    config: Config,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("accounts", &self.config.request.accounts)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Begins to set up a client of the gateway at `endpoint`, such as `https://push.example.org`.
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder {
            endpoint: endpoint.into(),
            channel: None,
            authorities: Vec::new(),
            plaintext: false,
            tokens: None,
            request: SubscribeRequest {
                client: concat!("mailbell-client/", env!("CARGO_PKG_VERSION")).to_owned(),
                ..SubscribeRequest::default()
            },
            session: SessionOptions::default(),
            store: Arc::new(MemoryState::default()),
            acks: true,
            queue: 64,
            explicit: false,
            timing: None,
        }
    }

    /// Runs the client in a task of its own, until the stream that it gives is dropped or has ended with an error.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn into_stream(self) -> Events {
        driver::start(self.config)
    }

    /// Runs the client, and gives each event to `handler`; an event counts as taken when its handler has returned.
    ///
    /// # Errors
    /// What ended the client. It never ends otherwise.
    pub async fn run(self, mut handler: impl AsyncFnMut(AppEvent)) -> Result<(), Error> {
        let mut events = self.into_stream();
        while let Some(event) = events.recv().await {
            handler(event?).await;
        }
        Ok(())
    }
}

/// Sets up a [`Client`].
#[must_use]
pub struct Builder {
    endpoint: String,
    channel: Option<Channel>,
    authorities: Vec<Vec<u8>>,
    plaintext: bool,
    tokens: Option<TokenSource>,
    request: SubscribeRequest,
    session: SessionOptions,
    store: Arc<dyn StateStore>,
    acks: bool,
    queue: usize,
    explicit: bool,
    timing: Option<Timing>,
}

impl Builder {
    /// The device token. If it is refused, or expires, the client's stream ends.
    pub fn token(mut self, token: impl Into<Token>) -> Self {
        self.tokens = Some(TokenSource::Fixed(token.into()));
        self
    }

    /// Whom to ask for a device token: at first, when one was refused, and before one expires.
    pub fn token_provider<F, A>(mut self, source: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<Token, TokenError>> + Send + 'static,
    {
        self.tokens = Some(TokenSource::asked(source));
        self
    }

    /// Only these accounts. Unset: every account that the token names.
    pub fn accounts<T: Into<String>>(mut self, accounts: impl IntoIterator<Item = T>) -> Self {
        self.request.accounts = accounts.into_iter().map(Into::into).collect();
        self.session.accounts = self.request.accounts.clone();
        self
    }

    /// Every account of the token's tenant, also those that are added later.
    pub fn whole_tenant(mut self) -> Self {
        self.request.whole_tenant = true;
        self
    }

    /// With [`Builder::whole_tenant`]: accounts that the app knows of, so that a resync of everything lists them even if this
    /// client has never heard of them.
    pub fn known_accounts<T: Into<String>>(
        mut self,
        accounts: impl IntoIterator<Item = T>,
    ) -> Self {
        self.session.accounts = accounts.into_iter().map(Into::into).collect();
        self
    }

    /// How much of a message's content to get. Unset: as much as the token allows.
    pub fn content(mut self, content: ContentLevel) -> Self {
        self.request.content = content.into();
        self
    }

    /// The kinds of facts to hear of. Unset: all.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.request.kinds = kinds.into_iter().map(Into::into).collect();
        self
    }

    /// A name of the app and its version for the server's operator, at most 128 bytes. Never a person's data.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.request.client = name.into();
        self
    }

    /// Where the state is kept. Unset: in memory, so that a new process hears of what comes from then on.
    pub fn state(mut self, store: impl StateStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// A certificate authority (PEM, one or more) to trust beside those of the system.
    pub fn tls(mut self, authority_pem: impl Into<Vec<u8>>) -> Self {
        self.authorities.push(authority_pem.into());
        self
    }

    /// Allows `http://` to another host than this one. The token and all mail can then be read on the way.
    pub fn allow_plaintext(mut self) -> Self {
        self.plaintext = true;
        self
    }

    /// A channel of the app's own, instead of one that the client makes of `endpoint`: through a proxy, or in memory.
    pub fn channel(mut self, channel: Channel) -> Self {
        self.channel = Some(channel);
        self
    }

    /// How many of a folder's newest messages a resync lists at least; if more came than these, it lists them all. Unset: 200.
    /// At most 10,000.
    pub fn resync_depth(mut self, newest: u32) -> Self {
        self.session.resync_depth = newest;
        self
    }

    /// How many events wait for the app at most, before the client stops reading. Unset: 64.
    pub fn queue(mut self, events: usize) -> Self {
        self.queue = events;
        self
    }

    /// Uses `Subscribe`, without acknowledgements or a way to renew the token in place, instead of `Connect`: for networks
    /// that let no request stream through.
    pub fn without_acks(mut self) -> Self {
        self.acks = false;
        self
    }

    /// An event counts as taken when the app says so by [`crate::Acker::taken`], and not when it asks for the next one. With
    /// 4096 events read and not taken the client stops reading until the app says more: say it at least that often.
    pub fn explicit_acks(mut self) -> Self {
        self.explicit = true;
        self
    }

    /// How long to wait for what. Unset: [`Timing::default`], with a shorter [`Timing::backoff_most`] for a service on this host.
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = Some(timing);
        self
    }

    /// The client.
    ///
    /// # Errors
    /// [`Error::Config`]: what makes no sense.
    pub fn build(self) -> Result<Client, Error> {
        let wrong = |what: &str| Err(Error::Config(what.to_owned()));
        let Some(tokens) = self.tokens else {
            return wrong("a client needs a token, or a token provider");
        };
        if self.request.whole_tenant && !self.request.accounts.is_empty() {
            return wrong("either accounts or the whole tenant, not both");
        }
        if self.request.client.len() > MOST_CLIENT_NAME {
            return wrong("a client's name is at most 128 bytes long");
        }
        if !(1..=crate::session::MOST_DEPTH).contains(&self.session.resync_depth) {
            return wrong("the resync depth is 1 to 10,000");
        }
        let mut timing = self.timing.unwrap_or_default();
        let connections = match self.channel {
            Some(channel) => Connections::Given(channel),
            None => {
                let endpoint =
                    endpoint(&self.endpoint, &self.authorities, self.plaintext, &timing)?;
                if self.timing.is_none() && endpoint.uri().host().is_some_and(is_loopback) {
                    timing.backoff_most = BACKOFF_MOST_LOOPBACK;
                }
                Connections::New(Box::new(endpoint))
            }
        };
        Ok(Client {
            config: Config {
                connections,
                tokens,
                request: self.request,
                session: self.session,
                store: self.store,
                acks: self.acks,
                queue: self.queue.max(1),
                explicit: self.explicit,
                timing,
            },
        })
    }
}

fn endpoint(
    url: &str,
    authorities: &[Vec<u8>],
    plaintext: bool,
    timing: &Timing,
) -> Result<Endpoint, Error> {
    let wrong = |what: &str| Error::Config(format!("{url}: {what}"));
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|_| wrong("not a URL; try https://push.example.org"))?
        .connect_timeout(timing.open / 2)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(timing.keep_alive.0))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(timing.keep_alive.0)
        .keep_alive_timeout(timing.keep_alive.1)
        .keep_alive_while_idle(true);
    let host = endpoint.uri().host().unwrap_or_default().to_owned();
    match endpoint.uri().scheme_str() {
        Some("https") => {
            let tls = ClientTlsConfig::new()
                .with_enabled_roots()
                .ca_certificates(authorities.iter().map(Certificate::from_pem));
            endpoint
                .tls_config(tls)
                .map_err(|_| wrong("the certificate authority is not PEM"))
        }
        Some("http") if plaintext || is_loopback(&host) => Ok(endpoint),
        Some("http") => Err(wrong(
            "without TLS everybody on the way can read the token and the mail; use https://, or allow plaintext explicitly",
        )),
        _ => Err(wrong("the URL must begin with https:// or http://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(url: &str) -> Result<Client, Error> {
        Client::builder(url).token("t").build()
    }

    #[tokio::test]
    async fn plaintext_only_to_this_host_or_if_allowed() {
        for url in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            assert!(build(url).is_ok(), "{url}");
        }
        for url in [
            "http://example.org",
            "http://127.0.0.1.example.org",
            "ftp://x",
            "x",
            "",
        ] {
            assert!(matches!(build(url), Err(Error::Config(_))), "{url}");
        }
        let allowed = Client::builder("http://example.org")
            .token("t")
            .allow_plaintext();
        assert!(allowed.build().is_ok());
    }

    #[tokio::test]
    async fn a_service_on_this_host_is_tried_again_within_seconds() {
        let longest = |client: Client| client.config.timing.backoff_most.as_secs();
        for (url, seconds) in [
            ("http://127.0.0.1:1", 5),
            ("http://[::1]:1", 5),
            ("https://localhost:1", 5),
            ("https://example.org", 60),
            ("https://127.0.0.1.example.org", 60),
        ] {
            assert_eq!(longest(build(url).unwrap()), seconds, "{url}");
        }
        // Whoever says how long means it.
        let timed = Client::builder("http://localhost:1")
            .token("t")
            .timing(Timing::default());
        assert_eq!(longest(timed.build().unwrap()), 60);
        // Where an app's own channel leads is not known.
        let channel = Endpoint::from_static("http://localhost:1").connect_lazy();
        let given = Client::builder("http://localhost:1")
            .token("t")
            .channel(channel);
        assert_eq!(longest(given.build().unwrap()), 60);
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused() {
        let url = "http://localhost:1";
        assert!(Client::builder(url).build().is_err());
        let both = Client::builder(url)
            .token("t")
            .accounts(["a"])
            .whole_tenant();
        assert!(both.build().is_err());
        assert!(
            Client::builder(url)
                .token("t")
                .resync_depth(0)
                .build()
                .is_err()
        );
        assert!(
            Client::builder(url)
                .token("t")
                .resync_depth(10_001)
                .build()
                .is_err()
        );
        let long = "x".repeat(129);
        assert!(
            Client::builder(url)
                .token("t")
                .client_name(long)
                .build()
                .is_err()
        );
    }
}
