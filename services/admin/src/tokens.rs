//! The service `Tokens`.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mailbell_bus::{Bus, BusError, state::PageToken};
use mailbell_core::{
    ids::{AccountId, Tenant},
    token::{AUDIENCE, Claims, MAX_ACCOUNTS},
};
use mailbell_proto::{
    admin::v1::{self as api, tokens_server},
    bus::v1::TokenRecord,
    push::v1::ContentLevel,
};
use tonic::{Request, Response, Status};
use ulid::Ulid;

use crate::{Error, SigningKey, auth::Caller, convert, metrics::Metrics, mirror::Mirror, validate};

/// Accounts that are looked up at the same time.
const READS: usize = 16;

pub(crate) struct Tokens {
    bus: Bus,
    mirror: Mirror,
    key: SigningKey,
    metrics: Metrics,
}

impl Tokens {
    pub(crate) fn new(bus: Bus, mirror: Mirror, key: SigningKey, metrics: Metrics) -> Self {
        Self {
            bus,
            mirror,
            key,
            metrics,
        }
    }

    async fn mint(&self, request: api::MintTokenRequest) -> Result<api::MintTokenResponse, Error> {
        let tenant = validate::tenant(&request.tenant)?;
        validate::label(&request.label)?;
        let ttl_ms = validate::token_ttl(request.ttl_seconds)?;
        let content = content(&request)?;
        self.check_accounts(&tenant, &request).await?;
        let now = convert::now_ms();
        let record = TokenRecord {
            schema: convert::TOKEN_SCHEMA,
            id: Ulid::generate().to_string(),
            tenant: tenant.to_string(),
            accounts: request.accounts,
            whole_tenant: request.whole_tenant,
            content: content.into(),
            issued_at_ms: now,
            expires_at_ms: now.saturating_add(ttl_ms),
            label: request.label,
        };
        let claims = Claims {
            jti: record.id.clone(),
            aud: AUDIENCE.to_owned(),
            iss: self.bus.installation().to_string(),
            tenant: record.tenant.clone(),
            accounts: record.accounts.clone(),
            whole_tenant: record.whole_tenant,
            content: mailbell_core::content::word(content).to_owned(),
            iat: now / 1000,
            exp: record.expires_at_ms / 1000,
        };
        let token = self.key.sign(&claims)?;
        // Before it is handed out: what nobody has listed nobody can revoke.
        self.bus.tokens().put(&record).await?;
        tracing::info!(%tenant, token_id = record.id, "device token minted");
        Ok(api::MintTokenResponse {
            token,
            info: Some(convert::token(record, false)),
        })
    }

    /// They are there, and the tenant's.
    async fn check_accounts(
        &self,
        tenant: &Tenant,
        request: &api::MintTokenRequest,
    ) -> Result<(), Error> {
        match (request.whole_tenant, request.accounts.len()) {
            (true, 0) => return Ok(()),
            (true, _) => {
                return Err(Error::Invalid(
                    "accounts: with whole_tenant no account is named.".to_owned(),
                ));
            }
            (false, 0) => {
                return Err(Error::Invalid(
                    "accounts: name at least one account, or set whole_tenant.".to_owned(),
                ));
            }
            (false, count) if count > MAX_ACCOUNTS => {
                return Err(Error::Invalid(format!(
                    "accounts: a token names at most {MAX_ACCOUNTS} accounts; use whole_tenant."
                )));
            }
            (false, _) => {}
        }
        let mut ids = Vec::with_capacity(request.accounts.len());
        for text in &request.accounts {
            let id: AccountId = text
                .parse()
                .map_err(|error| Error::Invalid(format!("accounts: {error}.")))?;
            if id.tenant() != tenant {
                return Err(Error::Invalid(format!(
                    "accounts: {id} is not an account of the tenant {tenant}."
                )));
            }
            if ids.contains(&id) {
                return Err(Error::Invalid(format!("accounts: {id} is named twice.")));
            }
            ids.push(id);
        }
        stream::iter(ids)
            .map(|id| async move {
                match self.bus.accounts().get(&id).await? {
                    Some(record) if record.value.removed_at_ms == 0 => Ok(()),
                    _ => Err(Error::NotFound(format!("there is no account {id}"))),
                }
            })
            .buffer_unordered(READS)
            .try_collect::<()>()
            .await
    }

    async fn revoke(
        &self,
        request: api::RevokeTokenRequest,
    ) -> Result<api::RevokeTokenResponse, Error> {
        let (tenant, id) = token_id(&request.id)?;
        let Some(record) = self.bus.tokens().get(&tenant, &id).await? else {
            return Err(Error::NotFound(format!("there is no token {}", request.id)));
        };
        let expires_at_ms = record.value.expires_at_ms;
        if expires_at_ms > convert::now_ms() && !self.mirror.is_revoked(&tenant, &id) {
            self.bus
                .revocations()
                .revoke(&tenant, &id, expires_at_ms)
                .await?;
            self.mirror.note_revoked(&tenant, &id);
            tracing::info!(%tenant, token_id = id, "device token revoked");
        }
        Ok(api::RevokeTokenResponse {})
    }

    async fn list(
        &self,
        request: api::ListTokensRequest,
    ) -> Result<api::ListTokensResponse, Error> {
        let tenant = validate::tenant_filter(&request.tenant)?;
        let page_token = Some(request.page_token)
            .filter(|token| !token.is_empty())
            .map(PageToken::from_text);
        // What is not known yet would be answered as good.
        if !self.mirror.knows_revocations() {
            return Err(Error::Unavailable(
                "the revocations are still being read; try again".to_owned(),
            ));
        }
        let limit = validate::page_size(request.page_size);
        let page = self
            .bus
            .tokens()
            .list(tenant.as_ref(), limit, page_token.as_ref())
            .await
            .map_err(|error| match error {
                BusError::Options(_) => {
                    Error::Invalid("page_token: it is not one that a list answered.".to_owned())
                }
                other => other.into(),
            })?;
        let tokens = page.records.into_iter().map(|((tenant, id), record)| {
            let revoked = self.mirror.is_revoked(&tenant, &id);
            convert::token(record.value, revoked)
        });
        Ok(api::ListTokensResponse {
            tokens: tokens.collect(),
            next_page_token: page
                .next
                .map(|token| token.as_str().to_owned())
                .unwrap_or_default(),
        })
    }
}

fn content(request: &api::MintTokenRequest) -> Result<ContentLevel, Error> {
    match request.content() {
        ContentLevel::Unspecified if request.content != 0 => Err(Error::Invalid(
            "content: this content level is not known here.".to_owned(),
        )),
        ContentLevel::Unspecified => Ok(ContentLevel::Preview),
        level => Ok(level),
    }
}

fn token_id(text: &str) -> Result<(Tenant, String), Error> {
    let wrong = || {
        Error::Invalid("id: a token's id looks like default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z.".to_owned())
    };
    // The same form as an account's id.
    let id: AccountId = text.parse().map_err(|_| wrong())?;
    let (_, ulid) = text.split_once('.').ok_or_else(wrong)?;
    Ok((id.tenant().clone(), ulid.to_owned()))
}

/// The operator has nothing to do with devices: who gets at its token must not hear of mail.
fn for_admins(caller: Caller) -> Result<(), Error> {
    match caller {
        Caller::Admin => Ok(()),
        Caller::Operator => Err(Error::Denied(
            "device tokens are made and revoked with an admin token; this is the operator's"
                .to_owned(),
        )),
    }
}

#[tonic::async_trait]
impl tokens_server::Tokens for Tokens {
    async fn mint_token(
        &self,
        request: Request<api::MintTokenRequest>,
    ) -> Result<Response<api::MintTokenResponse>, Status> {
        let caller = Caller::of(&request);
        let work = async {
            for_admins(caller)?;
            self.mint(request.into_inner()).await
        };
        self.metrics.call("MintToken", work).await
    }

    async fn revoke_token(
        &self,
        request: Request<api::RevokeTokenRequest>,
    ) -> Result<Response<api::RevokeTokenResponse>, Status> {
        let caller = Caller::of(&request);
        let work = async {
            for_admins(caller)?;
            self.revoke(request.into_inner()).await
        };
        self.metrics.call("RevokeToken", work).await
    }

    async fn list_tokens(
        &self,
        request: Request<api::ListTokensRequest>,
    ) -> Result<Response<api::ListTokensResponse>, Status> {
        let caller = Caller::of(&request);
        let work = async {
            for_admins(caller)?;
            self.list(request.into_inner()).await
        };
        self.metrics.call("ListTokens", work).await
    }
}
