//! A message of our own, put into a mailbox and followed to a device: whether all of it works, from outside.
//!
//! Whatever is made for it is removed again, also if a person ends the command: the message, and the token of the device.

mod made;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mailbell_client::{AppEvent, Events};
use mailbell_imap::{Canary, Error as ImapError, Put};
use mailbell_proto::{
    admin::v1::{Account, GetAccountRequest, get_account_request::By},
    push::v1::{Health, Times},
};
use mailbell_runtime::{secretfile, signals::Signals};
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use self::made::{Made, Mailbox};
use super::Report;
use crate::{
    admin_client::{AdminArgs, AdminClient},
    duration,
    failure::Failure,
    standalone::addresses::Addresses,
};

const NAME: &str = "canary";
/// Of one call of the admin API, or one step with the mail server.
const STEP: Duration = Duration::from_secs(30);
/// The device may take so long to hear what happens now.
const LIVE: Duration = Duration::from_secs(20);
/// The message is waited for so long at most, within the life of the token.
const LONGEST_WAIT: Duration = Duration::from_secs(1800);

/// Which mailbox gets a message, and how a device hears of it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Canary")]
pub struct CanaryArgs {
    /// Put a message into this account's mailbox, see that a device is told, and remove it
    #[arg(long, value_name = "ACCOUNT", requires = "canary_password_file")]
    pub canary: Option<String>,

    /// File with the mailbox's password, mode 0600; an installation tells it to nobody
    #[arg(long, value_name = "FILE", requires = "canary")]
    pub canary_password_file: Option<PathBuf>,

    /// How long the message is waited for (at most 30m)
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = wait)]
    pub canary_wait: Duration,

    /// The service for devices, such as `https://push.example.org` [default: the standalone installation of the state directory]
    #[arg(long, env = "MAILBELL_PUSH_URL", value_name = "URL")]
    pub url: Option<String>,

    /// File of root certificates (PEM) of the service for devices to trust beside the system's
    #[arg(long, env = "MAILBELL_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Allow a service for devices without TLS on another machine
    #[arg(long, env = "MAILBELL_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,

    /// File of root certificates (PEM) of the mail server to trust beside the system's
    #[arg(long, env = "MAILBELL_IMAP_CA", value_name = "FILE")]
    pub imap_ca: Option<PathBuf>,
}

fn wait(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        wait if wait > LONGEST_WAIT => Err("at most 30m".to_owned()),
        wait => Ok(wait),
    }
}

/// What did not work, and what to do.
struct Fault {
    said: String,
    advice: String,
}

impl Fault {
    fn new(said: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            said: said.into(),
            advice: advice.into(),
        }
    }

    fn of_mail(error: &ImapError) -> Self {
        let advice = match error {
            ImapError::BadCredentials(_) => {
                "see whether the file of --canary-password-file has the mailbox's password"
            }
            _ => {
                "see whether the mail server is reached from this machine; --imap-ca has it trust another authority"
            }
        };
        Self::new(format!("the mailbox: {}", error.user_sentence()), advice)
    }

    fn of_admin(failure: Failure) -> Self {
        Self::new(
            format!("the admin API: {}", failure.message),
            "--admin-url and --admin-token-file say where it is, and by what it knows you",
        )
    }
}

/// If it was asked for.
pub(super) async fn examine(report: &mut Report, args: &CanaryArgs, admin: &AdminArgs) {
    let (Some(account), Some(file)) = (&args.canary, &args.canary_password_file) else {
        return;
    };
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return report.fail(NAME, error.to_string(), "look again"),
    };
    let mut flight = Flight {
        args,
        signals,
        made: Made::default(),
    };
    let flown = flight.fly(account, file, admin).await;
    flight.made.undo(report).await;
    match flown {
        Ok(said) => report.ok(NAME, said),
        Err(Fault { said, advice }) => report.fail(NAME, said, advice),
    }
}

struct Flight<'a> {
    args: &'a CanaryArgs,
    signals: Signals,
    made: Made,
}

impl Flight<'_> {
    async fn fly(&mut self, id: &str, password: &Path, admin: &AdminArgs) -> Result<String, Fault> {
        let password = secretfile::read_text(password)
            .map_err(|error| Fault::new(error.to_string(), "name a file of mode 0600"))?;
        let secret = password.lines().next().unwrap_or_default();
        let secret = Zeroizing::new(secret.as_bytes().to_vec());
        let asked = async {
            let mut client = AdminClient::connect(admin).await?;
            let request = GetAccountRequest {
                by: Some(By::Id(id.to_owned())),
            };
            let account = client.accounts.get_account(request).await?.into_inner();
            Ok((client, account))
        };
        let (client, account) = self
            .step("the admin API", asked)
            .await?
            .map_err(Fault::of_admin)?;
        is_watched(&account)?;
        let mailbox = Mailbox::of(&account, secret, self.args)?;
        let opened = self.step("the mailbox", mailbox.open()).await?;
        let connection = opened.map_err(|error| Fault::of_mail(&error))?;
        let Some(canary) = Canary::over(connection) else {
            return Err(Fault::new(
                "the mail server cannot remove a single message (UIDPLUS), so none was put there",
                "send a message to the mailbox yourself while `mailbell listen` runs",
            ));
        };
        let url = self
            .url(admin)
            .map_err(|failure| Fault::new(failure.message, "--url says where devices connect"))?;
        let events = self.made.device(client, &account, url, self.args).await?;
        self.live(events).await?;
        let folder = account.folders.first().map_or("INBOX", String::as_str);
        let put = self.made.message(mailbox, canary, folder).await?;
        let begin = Instant::now();
        self.wait_for(&put, begin).await
    }

    /// A step that leaves nothing behind: it may be ended in the middle.
    async fn step<T>(&mut self, what: &str, step: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::select! {
            biased;
            // First: somebody wants it to end.
            _ = self.signals.next() => Err(ended()),
            done = timeout(STEP, step) => {
                done.map_err(|_elapsed| Fault::new(format!("{what}: no answer in time"), "look again"))
            }
        }
    }

    fn url(&self, admin: &AdminArgs) -> Result<String, Failure> {
        match &self.args.url {
            Some(url) => Ok(url.clone()),
            None => Ok(Addresses::of_running(&admin.state.path()?)?.push_url()),
        }
    }

    async fn live(&mut self, mut events: Events) -> Result<(), Fault> {
        let advice = "see whether --url is where devices connect, its certificate is trusted (--ca), and the gateways run";
        let mut why = "it does not say why".to_owned();
        let deadline = Instant::now() + LIVE;
        let outcome = loop {
            let event = tokio::select! {
                biased;
                _ = self.signals.next() => break Err(ended()),
                event = timeout_at(deadline, events.recv()) => event,
            };
            match event {
                Ok(Some(Ok(AppEvent::Live))) => break Ok(()),
                Ok(Some(Ok(AppEvent::Disconnected { reason, .. }))) => why = reason.to_string(),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => {
                    break Err(Fault::new(format!("the device: {error}"), advice));
                }
                Ok(None) | Err(_) => {
                    break Err(Fault::new(format!("no device can connect: {why}"), advice));
                }
            }
        };
        self.made.events = Some(events);
        outcome
    }

    async fn wait_for(&mut self, put: &Put, begin: Instant) -> Result<String, Fault> {
        let Some(events) = &mut self.made.events else {
            return Err(ended());
        };
        let deadline = begin + self.args.canary_wait;
        loop {
            let event = tokio::select! {
                biased;
                _ = self.signals.next() => return Err(ended()),
                event = timeout_at(deadline, events.recv()) => event,
            };
            match event {
                Ok(Some(Ok(event))) => {
                    if let Some(times) = is_told(&event, put) {
                        return Ok(told(begin.elapsed(), times));
                    }
                }
                Ok(Some(Err(error))) => {
                    return Err(Fault::new(format!("the device: {error}"), "look again"));
                }
                Ok(None) | Err(_) => {
                    let waited = self.args.canary_wait.as_secs();
                    return Err(Fault::new(
                        format!(
                            "the message is in the mailbox, and no device was told within {waited} s"
                        ),
                        "`mailbell account show` says how the mailbox is watched: one that is polled needs minutes (--canary-wait); else see the watchers' log",
                    ));
                }
            }
        }
    }
}

fn ended() -> Fault {
    Fault::new("ended before the message was told", "look again")
}

fn is_watched(account: &Account) -> Result<(), Fault> {
    let state = account.state.clone().unwrap_or_default();
    if state.health() == Health::Watching {
        return Ok(());
    }
    let advice = format!("mailbell account show {}", account.id);
    let sentence = match account.paused {
        true => "it is paused",
        false => state.sentence.as_str(),
    };
    Err(Fault::new(
        format!("the mailbox is not watched: {sentence}"),
        advice,
    ))
}

/// When it passed each milestone, if this tells of it; a listing does not say.
fn is_told(event: &AppEvent, put: &Put) -> Option<Option<Times>> {
    match event {
        AppEvent::Arrived(arrived) => {
            let key = &arrived.key;
            let is_it = (key.generation, key.uid) == (put.uid_validity, put.uid);
            is_it.then_some(Some(arrived.times))
        }
        AppEvent::ReplaceFolder(replace) if replace.generation == put.uid_validity => {
            let mut messages = replace.messages.iter();
            messages.any(|it| it.message.uid == put.uid).then_some(None)
        }
        _ => None,
    }
}

fn told(took: Duration, times: Option<Times>) -> String {
    let all = took.as_millis();
    // Both by clocks of the installation, which are compared with each other only.
    let inside = times.map(|times| times.received_us.saturating_sub(times.detected_us) / 1000);
    match inside {
        Some(inside) if inside >= 0 => format!(
            "a message was pushed {all} ms after it was in the mailbox, {inside} ms of them between the watcher's notice and the gateway"
        ),
        _ => format!("a message was pushed {all} ms after it was in the mailbox"),
    }
}
