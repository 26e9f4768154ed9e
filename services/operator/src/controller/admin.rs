//! The admin API of an installation, as the operator calls it.
//!
//! Whatever is on the other side: a call takes a bounded time, an answer is of a bounded size, and nothing is repeated here. Who calls
//! does so again when it looks again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt as _};
use mailbell_core::host::is_loopback;
use mailbell_proto::admin::v1::{
    Account, CreateAccountRequest, CreateAccountResponse, DeleteAccountRequest, ExternalId,
    GetAccountRequest, GetShardsRequest, GetShardsResponse, ListAccountsRequest,
    ListAccountsResponse, UpdateAccountRequest, accounts_client::AccountsClient,
    get_account_request::By, shards_client::ShardsClient,
};
use tokio::time::timeout;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{Error as ClusterError, cluster::Key};
use crate::{api::Mailbell, desired::ADMIN_PORT};

/// Of a connection, from its first packet to the end of the TLS handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Of a call. A page of accounts is read from the store one by one; nothing here waits for a login.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Accounts of a page: with 16 folders and a long sentence each they are about 5 KiB, and so the page is below [`MAX_ANSWER`].
const PAGE: u32 = 500;
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// What is taken of a sentence of the admin API.
const MAX_SENTENCE: usize = 1000;
/// The key of a ConfigMap with root certificates.
const ROOTS: &str = "ca.crt";
/// The key of the Secret with the operator's token.
const TOKEN: &str = "token";

/// Why a call came to nothing. No text here has a token or a password in it.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What is needed for a call cannot be read from the cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// What was read is not as it must be.
    #[error("{0}")]
    Setup(String),
    /// Nobody answers, or not in time.
    #[error("the admin API does not answer: {0}")]
    Away(String),
    /// It has answered, and this is what it says.
    #[error("{sentence}")]
    Refused {
        /// Its status.
        code: Code,
        /// Its words.
        sentence: String,
    },
}

impl AdminError {
    /// What the admin API answered, if it did.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Cluster(_) | Self::Setup(_) | Self::Away(_) => None,
        }
    }

    fn of(status: &Status) -> Self {
        // What tonic says of a connection has a reason behind it, and an answer has none.
        match std::error::Error::source(status) {
            Some(source) => Self::Away(clip(&last(source))),
            None => Self::Refused {
                code: status.code(),
                sentence: clip(status.message()),
            },
        }
    }
}

/// Somebody reads it in a status: no line breaks, and not without end.
fn clip(text: &str) -> String {
    let clean = text.chars().filter(|it| !it.is_control());
    clean.take(MAX_SENTENCE).collect()
}

/// The admin APIs of all installations.
pub struct Admins {
    client: Client,
    /// One address for all of them, in place of their services'.
    url: Option<String>,
    known: Mutex<HashMap<Place, Known>>,
}

impl std::fmt::Debug for Admins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admins").finish_non_exhaustive()
    }
}

/// Namespace and name of an installation.
type Place = (String, String);

struct Known {
    /// Of the spec by which it was made.
    generation: Option<i64>,
    admin: Admin,
}

impl Admins {
    /// `url`: one address for all of them, in place of their services': from outside the cluster, with its port forwarded.
    #[must_use]
    pub fn new(client: Client, url: Option<String>) -> Self {
        Self {
            client,
            url,
            known: Mutex::default(),
        }
    }

    /// That of this installation. It is connected to with the first call.
    ///
    /// # Errors
    /// What is missing on the cluster, or may not be read.
    pub async fn of(&self, mailbell: &Mailbell) -> Result<Admin, AdminError> {
        let place = place(mailbell);
        let generation = mailbell.metadata.generation;
        if let Some(known) = self.known().get(&place)
            && known.generation == generation
        {
            return Ok(known.admin.clone());
        }
        let admin = self.connect(mailbell).await?;
        let known = Known {
            generation,
            admin: admin.clone(),
        };
        self.known().insert(place, known);
        Ok(admin)
    }

    /// After a call has failed: where nobody answers, or the token is wrong, both and the roots are read anew for the next one, since
    /// somebody may have replaced them.
    pub fn note(&self, mailbell: &Mailbell, error: &AdminError) {
        let is_stale = match error {
            AdminError::Refused { code, .. } => *code == Code::Unauthenticated,
            AdminError::Away(_) => true,
            AdminError::Cluster(_) | AdminError::Setup(_) => false,
        };
        if is_stale {
            self.forget(mailbell);
        }
    }

    /// Of an installation that is gone.
    pub fn forget(&self, mailbell: &Mailbell) {
        self.known().remove(&place(mailbell));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Place, Known>> {
        // Nothing that holds the lock can leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self, mailbell: &Mailbell) -> Result<Admin, AdminError> {
        let header = self.token(mailbell).await?;
        let endpoint = self.endpoint(mailbell).await?;
        let channel = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("mailbell-operator/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| AdminError::Setup(error.to_string()))?
            .connect_lazy();
        let bearer = Bearer(header);
        Ok(Admin {
            accounts: AccountsClient::with_interceptor(channel.clone(), bearer.clone())
                .max_decoding_message_size(MAX_ANSWER),
            shards: ShardsClient::with_interceptor(channel, bearer)
                .max_decoding_message_size(MAX_ANSWER),
        })
    }

    async fn token(&self, mailbell: &Mailbell) -> Result<MetadataValue<Ascii>, AdminError> {
        let name = format!("{}-operator-token", mailbell.name_any());
        let namespace = mailbell.namespace().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let found = api.get_opt(&name).await;
        let found = found.map_err(|source| ClusterError::of(&key("Secret", &name), source))?;
        let data = found.and_then(|secret| secret.data?.remove(TOKEN));
        // Of several the first one: while one is replaced by another the API takes both.
        let token = data.as_ref().and_then(|data| {
            let text = std::str::from_utf8(&data.0).ok()?;
            text.lines().map(str::trim).find(|line| !line.is_empty())
        });
        let Some(token) = token else {
            return Err(AdminError::Setup(format!(
                "there is no Secret {name} with a {TOKEN} yet, by which the admin API knows the operator"
            )));
        };
        let mut header: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
            AdminError::Setup(format!(
                "what is in {TOKEN} of the Secret {name} is no token"
            ))
        })?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn endpoint(&self, mailbell: &Mailbell) -> Result<Endpoint, AdminError> {
        let admin = &mailbell.spec.admin;
        let namespace = mailbell.namespace().unwrap_or_default();
        let host = format!("{}-admin.{namespace}.svc", mailbell.name_any());
        let url = match &self.url {
            Some(url) => url.clone(),
            None if admin.tls.insecure_plaintext => format!("http://{host}:{ADMIN_PORT}"),
            None => format!("https://{host}:{ADMIN_PORT}"),
        };
        let wrong = |reason: String| AdminError::Setup(format!("{url}: {reason}"));
        let endpoint =
            Endpoint::from_shared(url.clone()).map_err(|error| wrong(error.to_string()))?;
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        // Whatever the address is: a forwarded port has that of this machine.
        let tls = ClientTlsConfig::new().domain_name(host);
        let tls = match &admin.ca_config_map {
            None => tls.with_native_roots(),
            Some(name) => tls.ca_certificate(self.roots(&namespace, name).await?),
        };
        endpoint
            .tls_config(tls)
            .map_err(|error| wrong(last(&error)))
    }

    async fn roots(&self, namespace: &str, name: &str) -> Result<Certificate, AdminError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        let found = found.map_err(|source| ClusterError::of(&key("ConfigMap", name), source))?;
        let pem = found.and_then(|config| config.data?.remove(ROOTS));
        let missing = || {
            AdminError::Setup(format!(
                "there is no ConfigMap {name} with a {ROOTS}, which admin.caConfigMap names"
            ))
        };
        pem.map(Certificate::from_pem).ok_or_else(missing)
    }
}

/// Whether the operator may be given this as the address of every admin API.
///
/// # Errors
/// What is wrong with it.
pub fn check_url(url: &str) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| error.to_string())?;
    let host = endpoint.uri().host().unwrap_or_default();
    match endpoint.uri().scheme_str() {
        Some("https") => Ok(()),
        // Passwords of mailboxes go over it.
        Some("http") if is_loopback(host) => Ok(()),
        Some("http") => Err(
            "without TLS the admin API is only spoken to on this machine: use https://, or forward its port"
                .to_owned(),
        ),
        _ => Err("it begins with http:// or https://".to_owned()),
    }
}

fn place(mailbell: &Mailbell) -> Place {
    (
        mailbell.namespace().unwrap_or_default(),
        mailbell.name_any(),
    )
}

fn key(kind: &str, name: &str) -> Key {
    Key {
        api: "v1".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

/// tonic's errors say "transport error" and keep the reason behind it.
fn last(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Puts the token into each call.
#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Transport = InterceptedService<Channel, Bearer>;

/// The admin API of one installation. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    accounts: AccountsClient<Transport>,
    shards: ShardsClient<Transport>,
}

impl Admin {
    /// How watchers share the mailboxes, and how many there are.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn shards(&self) -> Result<GetShardsResponse, AdminError> {
        let mut client = self.shards.clone();
        within(client.get_shards(GetShardsRequest {})).await
    }

    /// One account; `None`: there is none with this external id.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn account(
        &self,
        tenant: &str,
        external_id: &str,
    ) -> Result<Option<Account>, AdminError> {
        let request = GetAccountRequest {
            by: Some(By::ExternalId(ExternalId {
                tenant: tenant.to_owned(),
                id: external_id.to_owned(),
            })),
        };
        let mut client = self.accounts.clone();
        match within(client.get_account(request)).await {
            Ok(account) => Ok(Some(account)),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page of the accounts of a tenant; `after` is what the page before says of the next one.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn accounts(
        &self,
        tenant: &str,
        after: String,
    ) -> Result<ListAccountsResponse, AdminError> {
        let request = ListAccountsRequest {
            tenant: tenant.to_owned(),
            page_size: PAGE,
            page_token: after,
        };
        let mut client = self.accounts.clone();
        within(client.list_accounts(request)).await
    }

    /// Adds one, or answers the one that has its external id.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn create(
        &self,
        request: CreateAccountRequest,
    ) -> Result<CreateAccountResponse, AdminError> {
        let mut client = self.accounts.clone();
        within(client.create_account(request)).await
    }

    /// Changes one.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn update(&self, request: UpdateAccountRequest) -> Result<Account, AdminError> {
        let mut client = self.accounts.clone();
        within(client.update_account(request)).await
    }

    /// Deletes one; one that is not there is deleted.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn delete(&self, id: &str) -> Result<(), AdminError> {
        let request = DeleteAccountRequest { id: id.to_owned() };
        let mut client = self.accounts.clone();
        within(client.delete_account(request)).await.map(drop)
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

async fn within<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, AdminError> {
    match timeout(CALL_LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(AdminError::of(&status)),
        Err(_elapsed) => Err(AdminError::Away("not in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_may_be() {
        for good in [
            "https://admin.example.org:7444",
            "http://127.0.0.1:7444",
            "http://localhost:1",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "http://admin.example.org:7444",
            "admin:7444",
            "ftp://localhost",
            "",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_said_is_one_short_line() {
        let said = AdminError::of(&Status::not_found(
            "a\nb\u{1b}[2J".to_owned() + &"c".repeat(5000),
        ));
        assert_eq!(said.code(), Some(Code::NotFound));
        let text = said.to_string();
        assert!(
            text.starts_with("ab[2Jc") && text.len() == MAX_SENTENCE,
            "{text}"
        );
    }
}
