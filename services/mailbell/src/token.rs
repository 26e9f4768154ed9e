//! `mailbell token`: device tokens, through the admin API.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Subcommand, ValueEnum};
use mailbell_proto::{
    admin::v1::{ListTokensRequest, MintTokenRequest, RevokeTokenRequest, Token},
    push::v1::ContentLevel,
};
use serde_json::{Value, json};

use crate::{
    account,
    admin_client::{AdminArgs, AdminClient, patiently},
    duration,
    failure::Failure,
    terminal::{Paint, clean_line, done, table},
};

/// Device tokens.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mint a token for a device or an app back end
    #[command(after_long_help = "\
The token is all that is printed on standard output, and is stored nowhere: keep it.

Examples:
  mailbell token mint --account default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --label 'my phone'
  mailbell token mint --whole-tenant --ttl 30d --content headers > backend.token")]
    Mint(Mint),
    /// End a token; streams that use it are closed within seconds
    Revoke(Revoke),
    /// List tokens
    List(List),
}

#[derive(Debug, clap::Args)]
struct Mint {
    /// An account that the token may hear of; may be repeated
    #[arg(
        long = "account",
        value_name = "ID",
        required_unless_present = "whole_tenant"
    )]
    accounts: Vec<String>,
    /// Every account of the tenant, also those added later
    #[arg(long, conflicts_with = "accounts")]
    whole_tenant: bool,
    /// The tenant; with --account, theirs
    #[arg(long, env = "MAILBELL_TENANT")]
    tenant: Option<String>,
    /// How long it lives: 90d, 12h, 30m (at most 400d)
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = ttl)]
    ttl: Duration,
    /// The most content it may see
    #[arg(long, value_enum, default_value_t = Content::Preview)]
    content: Content,
    /// A note for the list, such as the device's name
    #[arg(long, default_value = "")]
    label: String,
    /// Print JSON: the token and what it allows
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// None at all would ask the service for its default.
fn ttl(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("a token lives for at least a second".to_owned()),
        ttl => Ok(ttl),
    }
}

/// How much of a message is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Content {
    /// That there is a message
    Key,
    /// Also addresses, subject, dates, size and flags
    Headers,
    /// Also the beginning of the text
    Preview,
}

impl From<Content> for ContentLevel {
    fn from(content: Content) -> Self {
        match content {
            Content::Key => Self::Key,
            Content::Headers => Self::Headers,
            Content::Preview => Self::Preview,
        }
    }
}

#[derive(Debug, clap::Args)]
struct Revoke {
    /// The token's id, as `token list` shows it
    id: String,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only this tenant's
    #[arg(long, env = "MAILBELL_TENANT")]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
///
/// # Errors
/// What the admin API said.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Mint(args) => mint(args).await,
        Command::Revoke(args) => revoke(args).await,
        Command::List(args) => list(args).await,
    }
}

async fn mint(args: Mint) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    let tenant = args.tenant.unwrap_or_else(|| {
        let first = args.accounts.first().and_then(|id| id.split_once('.'));
        first.map_or("default", |(tenant, _)| tenant).to_owned()
    });
    let request = MintTokenRequest {
        tenant,
        accounts: args.accounts,
        whole_tenant: args.whole_tenant,
        content: ContentLevel::from(args.content).into(),
        ttl_seconds: args.ttl.as_secs(),
        label: args.label,
    };
    let answer = client.tokens.mint_token(request).await?.into_inner();
    let info = answer.info.unwrap_or_default();
    if args.json {
        let mut value = token_json(&info);
        if let Some(object) = value.as_object_mut() {
            object.insert("token".to_owned(), answer.token.into());
        }
        done(writeln!(io::stdout().lock(), "{value}"))?;
    } else {
        done(writeln!(
            io::stdout().lock(),
            "{}",
            clean_line(&answer.token)
        ))?;
        let until = account::time(info.expires_at_ms);
        let note = format!("token {} until {until}", info.id);
        done(writeln!(io::stderr().lock(), "{}", clean_line(&note)))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn revoke(args: Revoke) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    let request = RevokeTokenRequest {
        id: args.id.clone(),
    };
    client.tokens.revoke_token(request).await?;
    done(writeln!(
        io::stdout().lock(),
        "{}  revoked",
        clean_line(&args.id)
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn list(args: List) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    let mut request = ListTokensRequest {
        tenant: args.tenant.unwrap_or_default(),
        page_size: 1000,
        page_token: String::new(),
    };
    let heading = ["ID", "SCOPE", "CONTENT", "EXPIRES", "LABEL", "STATE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let now = now_ms();
    loop {
        let page = patiently(async || client.tokens.list_tokens(request.clone()).await).await?;
        for token in &page.tokens {
            if args.json {
                done(writeln!(io::stdout().lock(), "{}", token_json(token)))?;
            } else {
                rows.push(row(token, now));
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if !args.json {
        done(if rows.len() == 1 {
            writeln!(
                io::stdout().lock(),
                "no tokens yet: mint one with `mailbell token mint`"
            )
        } else {
            table(&mut io::stdout().lock(), Paint::stdout(), &rows)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(token: &Token, now_ms: i64) -> Vec<String> {
    let scope = match (token.whole_tenant, token.accounts.as_slice()) {
        (true, _) => format!("tenant {}", token.tenant),
        (false, [one]) => one.clone(),
        (false, accounts) => format!("{} accounts", accounts.len()),
    };
    let state = if token.revoked {
        "revoked"
    } else if token.expires_at_ms <= now_ms {
        "expired"
    } else {
        "good"
    };
    vec![
        token.id.clone(),
        scope,
        mailbell_core::content::word(token.content()).to_owned(),
        account::time(token.expires_at_ms),
        token.label.clone(),
        state.to_owned(),
    ]
}

fn token_json(token: &Token) -> Value {
    json!({
        "id": token.id,
        "tenant": token.tenant,
        "accounts": token.accounts,
        "whole_tenant": token.whole_tenant,
        "content": mailbell_core::content::word(token.content()),
        "issued_at_ms": token.issued_at_ms,
        "expires_at_ms": token.expires_at_ms,
        "label": token.label,
        "revoked": token.revoked,
    })
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_revoked_or_expired() {
        let state = |revoked, expires_at_ms| {
            let token = Token {
                revoked,
                expires_at_ms,
                ..Token::default()
            };
            row(&token, 10).pop().unwrap()
        };
        assert_eq!(
            (state(false, 11), state(false, 10), state(true, 11)),
            ("good".into(), "expired".into(), "revoked".into())
        );
    }
}
