//! Finding the admin API and calling it.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use mailbell_proto::admin::v1::{
    accounts_client::AccountsClient, shards_client::ShardsClient, tokens_client::TokensClient,
};
use mailbell_runtime::{ExitCode, secretfile};
use tokio::time::{Instant, sleep};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    cli::StateArgs, failure::Failure, standalone::addresses::Addresses, terminal::clean_line,
};

/// The name of the admin token in a state directory.
pub const TOKEN_FILE: &str = "admin.token";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Above what the server gives a watcher to try a login.
const CALL_LIMIT: Duration = Duration::from_secs(180);

/// How long a call is repeated that nothing came of, and says so: an installation that has just been started.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries, whatever the server says.
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(2);

/// How to reach the admin API.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Admin API")]
pub struct AdminArgs {
    /// The state directory.
    #[command(flatten)]
    pub state: StateArgs,

    /// The admin API, for example `https://admin.example.org:7444` [default: the standalone installation of the state directory]
    #[arg(long, env = "MAILBELL_ADMIN_URL", value_name = "URL")]
    pub admin_url: Option<String>,

    /// File with the admin token, mode 0600 [default: the one in the state directory]
    #[arg(long, env = "MAILBELL_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// File of root certificates (PEM) for an https admin API, in place of the system's
    #[arg(long, env = "MAILBELL_ADMIN_CA", value_name = "FILE")]
    pub admin_ca: Option<PathBuf>,
}

/// Puts the admin token into each call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The channel of all services.
pub type Transport = InterceptedService<Channel, Bearer>;

/// A connection to the admin API.
#[derive(Clone)]
pub struct AdminClient {
    /// Accounts.
    pub accounts: AccountsClient<Transport>,
    /// How watchers share the mailboxes.
    pub shards: ShardsClient<Transport>,
    /// Tokens.
    pub tokens: TokensClient<Transport>,
}

impl AdminClient {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers, or a file cannot be read.
    pub async fn connect(args: &AdminArgs) -> Result<Self, Failure> {
        let (url, token_file) = args.find()?;
        let token = secretfile::read_text(&token_file)?;
        let mut header: MetadataValue<Ascii> =
            format!("Bearer {}", token.as_str()).parse().map_err(|_| {
                Failure::new(
                    ExitCode::Data,
                    format!("{} holds no admin token", token_file.display()),
                )
            })?;
        header.set_sensitive(true);
        let channel = connect(&url, args.admin_ca.as_deref()).await?;
        let bearer = Bearer(header);
        Ok(Self {
            accounts: AccountsClient::with_interceptor(channel.clone(), bearer.clone()),
            shards: ShardsClient::with_interceptor(channel.clone(), bearer.clone()),
            tokens: TokensClient::with_interceptor(channel, bearer),
        })
    }
}

/// Makes the call, and makes it again for some seconds as long as the answer is that nothing was done and to try again.
///
/// # Errors
/// What the admin API said at last.
pub async fn patiently<T>(
    mut call: impl AsyncFnMut() -> Result<Response<T>, Status>,
) -> Result<T, Failure> {
    let until = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let status = match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        let wait = match pushback(&status) {
            Some(wait) if Instant::now() + wait < until => wait,
            _ => return Err(status.into()),
        };
        if !told {
            let sentence = clean_line(status.message());
            // Nobody is left to tell if this fails.
            let _ = writeln!(
                io::stderr(),
                "mailbell: not yet ({sentence}): trying again for up to {PATIENCE:?}"
            );
            told = true;
        }
        sleep(wait).await;
    }
}

/// When the call may be repeated, if so.
fn pushback(status: &Status) -> Option<Duration> {
    let value = status.metadata().get(mailbell_admin::PUSHBACK)?;
    let ms = value.to_str().ok()?.parse().ok()?;
    (status.code() == Code::Unavailable).then(|| Duration::from_millis(ms).clamp(SOONEST, LATEST))
}

impl AdminArgs {
    /// Where the API is, and the file of its token.
    fn find(&self) -> Result<(String, PathBuf), Failure> {
        if let (Some(url), Some(file)) = (&self.admin_url, &self.admin_token_file) {
            return Ok((url.clone(), file.clone()));
        }
        let directory = self.state.path()?;
        let file = self
            .admin_token_file
            .clone()
            .unwrap_or_else(|| directory.join(TOKEN_FILE));
        let url = match &self.admin_url {
            Some(url) => url.clone(),
            None => Addresses::of_running(&directory)?.admin_url(),
        };
        Ok((url, file))
    }
}

async fn connect(url: &str, ca: Option<&Path>) -> Result<Channel, Failure> {
    let wrong =
        |reason: String| Failure::usage(format!("{url} is no address of an admin API: {reason}"));
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| wrong(error.to_string()))?
        .connect_timeout(CONNECT_LIMIT)
        .timeout(CALL_LIMIT)
        .user_agent(concat!("mailbell/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| wrong(error.to_string()))?;
    match endpoint.uri().scheme_str() {
        // The admin token, and passwords of mailboxes, go over it.
        Some("http")
            if endpoint
                .uri()
                .host()
                .is_some_and(mailbell_core::host::is_loopback) => {}
        Some("http") => {
            return Err(wrong(
                "without TLS the admin API is only spoken to on this machine: use https://, or forward its port".to_owned(),
            ));
        }
        Some("https") => {
            let tls = match ca {
                None => ClientTlsConfig::new().with_native_roots(),
                Some(file) => {
                    let pem = fs::read(file).map_err(|error| {
                        Failure::new(
                            ExitCode::NoInput,
                            format!("cannot read {}: {error}", file.display()),
                        )
                    })?;
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
                }
            };
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|error| wrong(chain(&error)))?;
        }
        _ => return Err(wrong("it begins with http:// or https://".to_owned())),
    }
    endpoint.connect().await.map_err(|error| {
        Failure::unavailable(format!(
            "the admin API at {url} does not answer: {}",
            chain(&error)
        ))
    })
}

/// tonic's errors say "transport error" and keep the reason behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_yet(ms: u32) -> Status {
        let mut status = Status::unavailable("no watcher has offered a key");
        let pushback = MetadataValue::from(ms);
        status
            .metadata_mut()
            .insert(mailbell_admin::PUSHBACK, pushback);
        status
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_only_just_starting_is_waited_for() {
        let (begin, mut calls) = (Instant::now(), 0);
        let answer = patiently(async || {
            calls += 1;
            match calls {
                1 | 2 => Err(not_yet(500)),
                // As soon as that it is not asked.
                3 => Err(not_yet(0)),
                _ => Ok(Response::new(7)),
            }
        });
        assert_eq!(answer.await.unwrap(), 7);
        assert_eq!(begin.elapsed(), Duration::from_millis(1100));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_repeated_for_ever_or_without_being_told_to() {
        let (begin, mut calls) = (Instant::now(), 0);
        let answer = patiently::<()>(async || {
            calls += 1;
            Err(not_yet(500))
        });
        let failure = answer.await.unwrap_err();
        assert_eq!(failure.code, ExitCode::TempFail);
        assert!(begin.elapsed() <= PATIENCE && calls == 30, "{calls}");
        // It may have been done.
        for status in [Status::unavailable("broken"), Status::internal("")] {
            let mut calls = 0;
            let answer = patiently::<()>(async || {
                calls += 1;
                Err(status.clone())
            });
            assert!(answer.await.is_err());
            assert_eq!(calls, 1);
        }
    }
}
