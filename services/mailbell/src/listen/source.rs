//! Where `listen` connects, and with which token.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mailbell_client::{Builder, Token, TokenError};
use mailbell_core::token::Claims;
use mailbell_proto::admin::v1::{ListAccountsRequest, MintTokenRequest};
use mailbell_runtime::{ExitCode as Code, secretfile};

use super::Args;
use crate::{
    admin_client::{AdminArgs, AdminClient},
    failure::Failure,
    standalone::addresses::Addresses,
};

/// How long the token lives that a standalone installation makes for its own `listen`.
const TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// A token with less left is not worth using.
const LEAST_LEFT_S: i64 = 3600;
/// Accounts that are asked for at once, and at most: a resync of more lists those that were heard of.
const KNOWN: u32 = 1000;

/// Where to connect, and with what.
pub(super) struct Source {
    pub(super) url: String,
    pub(super) whole_tenant: bool,
    pub(super) known_accounts: Vec<String>,
    tokens: Tokens,
}

enum Tokens {
    Given(String),
    Minted(Arc<Minter>),
}

impl Source {
    pub(super) async fn find(args: &Args) -> Result<Self, Failure> {
        let given = match (&args.token, &args.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(secretfile::read_text(file)?.trim().to_owned()),
            (None, None) => None,
        };
        let directory = args.admin.state.path()?;
        let url = match &args.url {
            Some(url) => url.clone(),
            None => Addresses::of_running(&directory)?.push_url(),
        };
        if let Some(token) = given {
            let whole_tenant = claims(&token).is_some_and(|claims| claims.whole_tenant);
            return Ok(Self {
                url,
                whole_tenant,
                known_accounts: Vec::new(),
                tokens: Tokens::Given(token),
            });
        }
        if args.url.is_some()
            && args.admin.admin_url.is_none()
            && Addresses::of_running(&directory).is_err()
        {
            return Err(Failure::new(
                Code::Usage,
                "a service that is named by --url needs a token: --token-file, or the variable MAILBELL_TOKEN",
            ));
        }
        let minter = Arc::new(Minter {
            admin: args.admin.clone(),
            tenant: args.tenant.clone(),
            file: directory.join(format!("listen-{}.token", args.tenant)),
            asked: AtomicBool::new(false),
        });
        Ok(Self {
            url,
            whole_tenant: true,
            known_accounts: minter.accounts().await?,
            tokens: Tokens::Minted(minter),
        })
    }

    pub(super) fn tokens(self, builder: Builder) -> Builder {
        match self.tokens {
            Tokens::Given(token) => builder.token(token),
            Tokens::Minted(minter) => builder.token_provider(move || {
                let minter = Arc::clone(&minter);
                async move { minter.token().await }
            }),
        }
    }
}

/// Makes itself a token, as whoever holds the admin token may, and keeps it for the next time.
struct Minter {
    admin: AdminArgs,
    tenant: String,
    file: PathBuf,
    /// The kept token was tried: when it is asked for again, that one was refused or is about to expire.
    asked: AtomicBool,
}

impl Minter {
    async fn token(&self) -> Result<Token, TokenError> {
        if !self.asked.swap(true, Ordering::Relaxed)
            && let Some(token) = kept(&self.file)
        {
            return Ok(Token::new(token));
        }
        self.mint()
            .await
            .map(Token::new)
            .map_err(|failure| match failure.code {
                Code::Unavailable | Code::TempFail => TokenError::Retry(failure.message),
                _ => TokenError::Never(failure.message),
            })
    }

    async fn mint(&self) -> Result<String, Failure> {
        let mut client = AdminClient::connect(&self.admin).await?;
        let request = MintTokenRequest {
            tenant: self.tenant.clone(),
            whole_tenant: true,
            ttl_seconds: TTL.as_secs(),
            label: "mailbell listen".to_owned(),
            ..MintTokenRequest::default()
        };
        let token = client.tokens.mint_token(request).await?.into_inner().token;
        // Only to save minting the next time: a directory of somebody else is no reason to fail.
        if let Err(error) = secretfile::write(&self.file, token.as_bytes()) {
            tracing::debug!(%error, "the token cannot be kept");
        }
        Ok(token)
    }

    async fn accounts(&self) -> Result<Vec<String>, Failure> {
        let mut client = AdminClient::connect(&self.admin).await?;
        let request = ListAccountsRequest {
            tenant: self.tenant.clone(),
            page_size: KNOWN,
            page_token: String::new(),
        };
        let page = client.accounts.list_accounts(request).await?.into_inner();
        Ok(page
            .accounts
            .into_iter()
            .map(|account| account.id)
            .collect())
    }
}

fn kept(file: &Path) -> Option<String> {
    let token = secretfile::read_text(file).ok()?;
    let left = claims(&token)?.exp - jiff::Timestamp::now().as_second();
    (left > LEAST_LEFT_S).then(|| token.to_string())
}

/// What a token says of itself. Not verified: the service does that.
fn claims(token: &str) -> Option<Claims> {
    let payload = token.trim().split('.').nth(1)?;
    let json = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_token_is_used_until_it_expires() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        assert_eq!(kept(&file), None);
        let token = |left: i64| {
            let claims = Claims {
                jti: "1".to_owned(),
                aud: "a".to_owned(),
                iss: "main".to_owned(),
                tenant: "default".to_owned(),
                accounts: Vec::new(),
                whole_tenant: true,
                content: "preview".to_owned(),
                iat: 0,
                exp: jiff::Timestamp::now().as_second() + left,
            };
            let json = serde_json::to_vec(&claims).unwrap();
            format!("e30.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(json))
        };
        for (left, good) in [(7200, true), (60, false)] {
            secretfile::write(&file, token(left).as_bytes()).unwrap();
            assert_eq!(kept(&file).is_some(), good, "{left}");
        }
        assert!(claims(&token(1)).unwrap().whole_tenant);
        assert!(claims("no token").is_none() && claims("a.!.c").is_none());
    }
}
