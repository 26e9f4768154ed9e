//! `mailbell account`: mail accounts, through the admin API.

mod print;
pub(crate) use print::{health_word, time};
pub mod url;

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Subcommand;
use mailbell_core::content::{policy, word};
use mailbell_proto::{
    admin::v1::{
        Account, CheckAccountRequest, CreateAccountRequest, DeleteAccountRequest,
        GetAccountRequest, ListAccountsRequest, UpdateAccountRequest, get_account_request::By,
    },
    push::v1::ContentLevel,
};
use mailbell_runtime::secretfile;
use zeroize::Zeroizing;

use crate::{
    admin_client::{AdminArgs, AdminClient, patiently},
    failure::Failure,
    terminal::{clean_line, done},
    token::Content,
};
use url::MailboxUrl;

/// The longest password on standard input.
const MAX_PASSWORD: u64 = 4096;

/// Mail accounts.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch a mailbox
    #[command(after_long_help = "\
The login is tried first, and what is wrong with it is said in one sentence; nothing is stored then.

  imaps://user@host[:993]           TLS from the first byte
  imap://user@host[:143]            STARTTLS, never without TLS
  imap+plaintext://user@host[:143]  no TLS; only if the installation allows it

A user that is an address is written as it is: imaps://you@example.org@imap.example.org

Examples:
  mailbell account add imaps://you@example.org@imap.example.org
  mailbell account add imaps://bob@mail.example.com --folder INBOX --folder Lists/rust --password-file ~/.secret
  pass show mail | mailbell account add imaps://bob@mail.example.com --password-stdin --external-id bob")]
    Add(Add),
    /// List accounts
    List(List),
    /// Show one account
    Show(One),
    /// Log in anew, now, and say how it went
    ///
    /// If it went well, an account that waits after a failure does so no longer.
    Check(One),
    /// Change an account's settings
    #[command(after_long_help = "\
Only what is named changes. Another server or user needs the password anew.

Examples:
  mailbell account update default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --password     asks for the new password
  mailbell account update default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --pause
  mailbell account update default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --folder INBOX --folder Work
  mailbell account update default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --content headers     no text of its mail from now on")]
    Update(Box<Update>),
    /// Stop watching a mailbox and forget its password
    Remove(Remove),
}

#[derive(Debug, Clone, clap::Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct PasswordSource {
    /// Read the password from this file (its first line; mode 0600)
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Read the password from standard input (its first line)
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, clap::Args)]
struct Add {
    /// The mailbox: imaps://user@host[:port], imap:// (STARTTLS) or imap+plaintext://
    mailbox: MailboxUrl,
    /// A folder to watch; may be repeated. The first is held open [default: INBOX]
    #[arg(long = "folder", value_name = "NAME")]
    folders: Vec<String>,
    /// Your own id of the account: adding it again answers the account that exists
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// The tenant that owns it
    #[arg(long, env = "MAILBELL_TENANT", default_value = "default")]
    tenant: String,
    /// Do not try the login first
    #[arg(long)]
    no_check: bool,
    /// Add it without watching it yet
    #[arg(long)]
    paused: bool,
    /// The most of its messages that leaves the mailbox, whatever tokens allow [default: as much as the installation allows]
    #[arg(long, value_enum, value_name = "LEVEL")]
    content: Option<Content>,
    #[command(flatten)]
    password: PasswordSource,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only this tenant's
    #[arg(long, env = "MAILBELL_TENANT")]
    tenant: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Args)]
struct One {
    /// The account's id, as `account list` shows it
    id: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Args)]
struct Update {
    /// The account's id, as `account list` shows it
    id: String,
    /// Another server or user: imaps://user@host[:port] and the like
    #[arg(long, value_name = "URL")]
    mailbox: Option<MailboxUrl>,
    /// The folders to watch, in place of the present ones; may be repeated
    #[arg(long = "folder", value_name = "NAME")]
    folders: Vec<String>,
    /// Ask for a new password
    #[arg(long)]
    password: bool,
    #[command(flatten)]
    source: PasswordSource,
    /// Stop watching it for now
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Watch it again
    #[arg(long)]
    resume: bool,
    /// The most of its messages that leaves the mailbox from now on; `preview` is as much as the installation allows
    #[arg(long, value_enum, value_name = "LEVEL")]
    content: Option<Content>,
    /// Do not try the login first
    #[arg(long)]
    no_check: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// The account's id, as `account list` shows it
    id: String,
    /// Do not ask whether that is meant
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
///
/// # Errors
/// What the admin API said.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Add(args) => add(args).await,
        Command::List(args) => list(args).await,
        Command::Show(args) => show(args).await,
        Command::Check(args) => check(args).await,
        Command::Update(args) => update(*args).await,
        Command::Remove(args) => remove(args).await,
    }
}

async fn add(args: Add) -> Result<ExitCode, Failure> {
    // Before the password is asked for: nobody types one for nothing.
    let mut client = AdminClient::connect(&args.admin).await?;
    let prompt = format!("Password of {}: ", args.mailbox);
    let mut password = args.password.read(&prompt).await?;
    let request = CreateAccountRequest {
        tenant: args.tenant,
        external_id: args.external_id.unwrap_or_default(),
        server: Some(args.mailbox.server()),
        password: std::mem::take(&mut password),
        folders: args.folders,
        no_check: args.no_check,
        paused: args.paused,
        managed_by: String::new(),
        content: level(args.content),
    };
    let answer = patiently(async || client.accounts.create_account(request.clone()).await).await?;
    let account = answer.account.unwrap_or_default();
    kept(args.content, &account)?;
    let mut out = io::stdout().lock();
    if args.output.json {
        let value = print::account_json(&account, Some(answer.created));
        return printed(writeln!(out, "{value}"));
    }
    let said = if answer.created {
        "added"
    } else {
        "exists already"
    };
    printed(writeln!(out, "{}  {said}", clean_line(&account.id)))
}

async fn list(args: List) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    let mut request = ListAccountsRequest {
        tenant: args.tenant.unwrap_or_default(),
        page_size: 1000,
        page_token: String::new(),
    };
    let mut accounts: Vec<Account> = Vec::new();
    loop {
        let page = patiently(async || client.accounts.list_accounts(request.clone()).await).await?;
        if args.output.json {
            // A line an account, as they come: a large installation is not gathered first.
            let mut out = io::stdout().lock();
            for account in &page.accounts {
                done(writeln!(out, "{}", print::account_json(account, None)))?;
            }
        } else {
            accounts.extend(page.accounts);
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if !args.output.json {
        printed(print::account_table(&mut io::stdout().lock(), &accounts))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: One) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    let by = Some(By::Id(args.id));
    let account = client
        .accounts
        .get_account(GetAccountRequest { by })
        .await?
        .into_inner();
    shown(&account, &args.output)
}

fn shown(account: &Account, output: &Output) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    printed(if output.json {
        writeln!(out, "{}", print::account_json(account, None))
    } else {
        print::account_page(&mut out, account)
    })
}

async fn check(args: One) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    let request = CheckAccountRequest { id: args.id };
    let result = patiently(async || client.accounts.check_account(request.clone()).await).await?;
    let mut out = io::stdout().lock();
    done(if args.output.json {
        writeln!(out, "{}", print::check_json(&result))
    } else {
        print::check_page(&mut out, &result)
    })?;
    Ok(if result.ok {
        ExitCode::SUCCESS
    } else {
        mailbell_runtime::ExitCode::Data.into()
    })
}

async fn update(args: Update) -> Result<ExitCode, Failure> {
    let given = args.source.password_file.is_some() || args.source.password_stdin;
    let changes = args.mailbox.is_some()
        || !args.folders.is_empty()
        || args.password
        || given
        || args.pause
        || args.resume
        || args.content.is_some();
    if !changes {
        return Err(Failure::usage(
            "nothing to change: see `mailbell account update --help`",
        ));
    }
    let mut client = AdminClient::connect(&args.admin).await?;
    let password = if args.password || given || args.mailbox.is_some() {
        let prompt = format!("New password of {}: ", clean_line(&args.id));
        Some(args.source.read(&prompt).await?)
    } else {
        None
    };
    let request = UpdateAccountRequest {
        id: args.id,
        server: args.mailbox.as_ref().map(MailboxUrl::server),
        password: password.map(|mut password| std::mem::take(&mut *password)),
        folders: args.folders,
        paused: match (args.pause, args.resume) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        },
        no_check: args.no_check,
        revision: 0,
        managed_by: String::new(),
        content: level(args.content),
    };
    let account = patiently(async || client.accounts.update_account(request.clone()).await).await?;
    kept(args.content, &account)?;
    shown(&account, &args.output)
}

/// Unset: nothing is said of it.
fn level(content: Option<Content>) -> i32 {
    content.map_or(ContentLevel::Unspecified, Into::into).into()
}

/// An admin API of an older release passes over a policy, and does all else.
fn kept(asked: Option<Content>, account: &Account) -> Result<(), Failure> {
    let (has, Some(asked)) = (policy(account.content), asked.map(ContentLevel::from)) else {
        return Ok(());
    };
    if has == asked {
        return Ok(());
    }
    let (id, has, asked) = (clean_line(&account.id), word(has), word(asked));
    Err(Failure::unavailable(format!(
        "the admin API did all of it for {id} but the content policy, which is `{has}` and not `{asked}`: it is of an older release; \
         upgrade it, then run `mailbell account update {id} --content {asked}`"
    )))
}

async fn remove(args: Remove) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    // A wrong id is said before the question, and before an idempotent call answers "done" to it.
    let by = Some(By::Id(args.id.clone()));
    let account = client
        .accounts
        .get_account(GetAccountRequest { by })
        .await?
        .into_inner();
    if !args.yes {
        let server = account.server.unwrap_or_default();
        let question = format!(
            "Remove {} ({} at {})? Its password is forgotten and devices are told. [y/N] ",
            account.id, server.user, server.host
        );
        if !confirmed(&question)? {
            return Err(Failure::usage("nothing was removed"));
        }
    }
    let request = DeleteAccountRequest {
        id: args.id.clone(),
    };
    client.accounts.delete_account(request).await?;
    printed(writeln!(
        io::stdout().lock(),
        "{}  removed",
        clean_line(&args.id)
    ))
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "there is no terminal to ask on: confirm with --yes",
        ));
    }
    let mut err = io::stderr().lock();
    let asked = write!(err, "{}", clean_line(question)).and_then(|()| err.flush());
    done(asked)?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

impl PasswordSource {
    async fn read(&self, prompt: &str) -> Result<Zeroizing<String>, Failure> {
        if let Some(file) = &self.password_file {
            let text = secretfile::read_text(file)?;
            return Ok(first_line(&text));
        }
        let stdin = self.password_stdin;
        let prompt = clean_line(prompt);
        // Reading a terminal blocks its thread.
        let read = tokio::task::spawn_blocking(move || {
            if stdin {
                let mut line = Zeroizing::new(String::with_capacity(256));
                let input = io::stdin().lock();
                io::Read::take(input, MAX_PASSWORD).read_line(&mut line)?;
                Ok(first_line(&line))
            } else {
                rpassword::prompt_password(prompt).map(Zeroizing::new)
            }
        });
        match read.await {
            Ok(Ok(password)) => Ok(password),
            Ok(Err(error)) if stdin => {
                Err(Failure::usage(format!("cannot read the password: {error}")))
            }
            Ok(Err(_)) => Err(Failure::usage(
                "there is no terminal to ask for the password on: use --password-file or --password-stdin",
            )),
            Err(error) => Err(Failure::internal(error.to_string())),
        }
    }
}

fn first_line(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.lines().next().unwrap_or_default().to_owned())
}

fn printed(result: io::Result<()>) -> Result<ExitCode, Failure> {
    done(result)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_an_older_admin_passed_over_is_a_failure() {
        let with = |content: ContentLevel| Account {
            id: "default.x".to_owned(),
            content: content.into(),
            ..Account::default()
        };
        let none = with(ContentLevel::Unspecified);
        for (asked, answered) in [
            (None, ContentLevel::Key),
            (None, ContentLevel::Unspecified),
            (Some(Content::Preview), ContentLevel::Unspecified),
            (Some(Content::Headers), ContentLevel::Headers),
            (Some(Content::Key), ContentLevel::Key),
        ] {
            kept(asked, &with(answered)).unwrap();
        }
        for asked in [Content::Key, Content::Headers] {
            let failure = kept(Some(asked), &none).unwrap_err();
            let advice = format!("update default.x --content {}", word(asked.into()));
            assert!(failure.message.contains(&advice), "{failure}");
        }
    }
}
