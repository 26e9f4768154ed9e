//! Finding the admin API and calling it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mailbell_proto::admin::v1::{accounts_client::AccountsClient, tokens_client::TokensClient};
use mailbell_runtime::{ExitCode, secretfile};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{cli::StateArgs, failure::Failure, standalone::addresses::Addresses};

/// The name of the admin token in a state directory.
pub const TOKEN_FILE: &str = "admin.token";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Above what the server gives a watcher to try a login.
const CALL_LIMIT: Duration = Duration::from_secs(180);

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

/// The channel of both services.
pub type Transport = InterceptedService<Channel, Bearer>;

/// A connection to the admin API.
#[derive(Clone)]
pub struct AdminClient {
    /// Accounts.
    pub accounts: AccountsClient<Transport>,
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
            tokens: TokensClient::with_interceptor(channel, bearer),
        })
    }
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
            None => Addresses::read(&directory)?.admin_url(),
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
