//! `mailbell listen`: what a device sees, for a person or a program.

mod json;
mod source;
mod text;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use mailbell_client::{
    AppEvent, Builder, Client, DisconnectReason, Error as ClientError, FileState, MemoryState,
    StateError,
};
use mailbell_runtime::{
    ExitCode as Code,
    signals::Signals,
    telemetry::{Telemetry, TelemetryArgs},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    admin_client::AdminArgs,
    duration,
    failure::Failure,
    terminal::{Paint, Style, clean_line},
    token::Content,
};

/// No wait of a person is longer: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a device sees.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
In a standalone installation nothing has to be said: it finds the service and a token in the state directory, and hears of every
account of the tenant. Elsewhere give it --url and a token.

Without --cursor-file it begins now. With one it goes on where it stopped: what came meanwhile is told first, and nothing twice.

With --json each line is one object; `kind` is one of connected, live, arrived, changed, gone, account-state, replace-folder,
unlistable, disconnected. `times` are microseconds since the epoch: detected, fetched, appended (stored in the log), received (by
the gateway), shown (here); `latency_us` is from detected to shown.

Exit codes: 0 after --count messages, --exit-after or Ctrl-C; 64 wrong flags; 66 no such account; 69 no service; 73 the cursor
file is in use; 75 --exit-after was over before --count messages came; 77 the token is refused.

Examples:
  mailbell listen
  mailbell listen --account default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --json | jq -r 'select(.alert) | .message.subject'
  mailbell listen --url https://push.example.org --token-file device.token --cursor-file ~/.cache/mailbell.cursor
  mailbell listen --count 1 --exit-after 30s && notify-send 'You have mail'")]
pub struct Args {
    /// Only this account; may be repeated [default: every account that the token names]
    #[arg(long = "account", value_name = "ID")]
    pub accounts: Vec<String>,

    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,

    /// Go on where the last run with this file stopped
    #[arg(long, env = "MAILBELL_CURSOR_FILE", value_name = "FILE")]
    pub cursor_file: Option<PathBuf>,

    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// End after this time
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub exit_after: Option<Duration>,

    /// How much of each message to ask for
    #[arg(long, value_enum)]
    pub content: Option<Content>,

    /// The service for devices, such as `https://push.example.org` [default: the standalone installation of the state directory]
    #[arg(long, env = "MAILBELL_PUSH_URL", value_name = "URL")]
    pub url: Option<String>,

    /// File with the device token, mode 0600; --token wins
    #[arg(long, env = "MAILBELL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// The device token itself. Others on this machine can see what is typed: prefer the variable or --token-file
    #[arg(
        long,
        env = "MAILBELL_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,

    /// File of root certificates (PEM) to trust beside the system's
    #[arg(long, env = "MAILBELL_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Allow a service without TLS on another machine
    #[arg(long, env = "MAILBELL_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,

    /// The tenant whose accounts are heard of, in a standalone installation
    #[arg(long, env = "MAILBELL_TENANT", default_value = "default")]
    pub tenant: String,

    /// How to reach the admin API.
    #[command(flatten)]
    pub admin: AdminArgs,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Config(_)
            | ClientError::InvalidArgument(_)
            | ClientError::Unimplemented(_) => Code::Usage,
            ClientError::State(StateError::InUse(_) | StateError::Io { .. }) => Code::CannotCreate,
            ClientError::Unauthenticated(_)
            | ClientError::NoToken(_)
            | ClientError::PermissionDenied(_) => Code::Permission,
            ClientError::NotFound(_) => Code::NoInput,
            _ => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// Runs the command.
///
/// # Errors
/// What ended the client for good.
pub async fn run(args: Args, telemetry: &TelemetryArgs) -> Result<ExitCode, Failure> {
    // The usual filter is for services; here a person reads mail.
    let logs = if telemetry.log == TelemetryArgs::default().log {
        None
    } else {
        Some(Telemetry::init(telemetry, "listen")?)
    };
    let mut signals = Signals::install()?;
    let deadline = Instant::now() + args.exit_after.unwrap_or(FOREVER);
    let client = client(&args).await?;
    let mut shown = Shown {
        json: args.json,
        out: Paint::stdout(),
        err: Paint::stderr(),
        messages: 0,
        trouble: None,
    };
    let mut events = client.into_stream();
    let result = loop {
        let event = tokio::select! {
            biased;
            // First: somebody wants it to end.
            _ = signals.next() => break Ok(ExitCode::SUCCESS),
            () = sleep_until(deadline) => break Ok(over(&args)),
            event = events.recv() => event,
        };
        match event {
            None => break Err(Failure::internal("the client ended")),
            Some(Err(error)) => break Err(error.into()),
            Some(Ok(event)) => {
                if let Err(error) = shown.show(&event) {
                    // Who reads only the beginning has had enough.
                    break if error.kind() == io::ErrorKind::BrokenPipe {
                        Ok(ExitCode::SUCCESS)
                    } else {
                        Err(Failure::unavailable(format!("cannot write: {error}")))
                    };
                }
                if args.count.is_some_and(|count| shown.messages >= count) {
                    break Ok(ExitCode::SUCCESS);
                }
            }
        }
    };
    // What was shown counts as taken, and is not shown again.
    events.close().await;
    if let Some(logs) = logs {
        logs.shutdown(Duration::from_secs(1)).await;
    }
    result
}

fn over(args: &Args) -> ExitCode {
    if args.count.is_some() {
        Code::TempFail.into()
    } else {
        ExitCode::SUCCESS
    }
}

async fn client(args: &Args) -> Result<Client, Failure> {
    let source = source::Source::find(args).await?;
    let mut builder: Builder = Client::builder(source.url.clone())
        .client_name(concat!("mailbell-listen/", env!("CARGO_PKG_VERSION")));
    if let Some(ca) = &args.ca {
        let pem = fs::read(ca).map_err(|error| {
            Failure::new(
                Code::NoInput,
                format!("cannot read {}: {error}", ca.display()),
            )
        })?;
        builder = builder.tls(pem);
    }
    if args.allow_plaintext {
        builder = builder.allow_plaintext();
    }
    if let Some(content) = args.content {
        builder = builder.content(content.into());
    }
    builder = match &args.cursor_file {
        Some(file) => builder.state(FileState::open(file).map_err(ClientError::from)?),
        None => builder.state(MemoryState::default()),
    };
    builder = if !args.accounts.is_empty() {
        builder.accounts(args.accounts.clone())
    } else if source.whole_tenant {
        builder
            .whole_tenant()
            .known_accounts(source.known_accounts.clone())
    } else {
        builder
    };
    Ok(source.tokens(builder).build()?)
}

fn trouble(reason: &DisconnectReason, retry_in: Duration) -> String {
    let reason = clean_line(&reason.to_string());
    let seconds = retry_in.as_secs_f64();
    format!("{reason}; trying again in {seconds:.1} s, and then until it works")
}

/// What was shown, and how.
struct Shown {
    json: bool,
    out: Paint,
    err: Paint,
    messages: u64,
    /// Why there is no connection, so that a service that stays away is told of once.
    trouble: Option<DisconnectReason>,
}

impl Shown {
    fn show(&mut self, event: &AppEvent) -> io::Result<()> {
        self.messages += match event {
            AppEvent::Arrived(_) => 1,
            AppEvent::ReplaceFolder(replace) => {
                u64::try_from(replace.alert_for().count()).unwrap_or(u64::MAX)
            }
            _ => 0,
        };
        let now = jiff::Timestamp::now();
        if self.json {
            return match json::line(event, now.as_microsecond()) {
                Some(line) => writeln!(io::stdout().lock(), "{line}"),
                None => Ok(()),
            };
        }
        match event {
            AppEvent::Arrived(arrived) => text::arrived(
                &mut io::stdout().lock(),
                self.out,
                arrived,
                now.as_microsecond(),
            ),
            AppEvent::ReplaceFolder(replace) => text::replaced(
                &mut io::stdout().lock(),
                self.out,
                replace,
                now.as_microsecond(),
            ),
            event => {
                if let Some((style, note)) = self.note(event) {
                    // What is no mail is not what a pipe wants; nobody misses a note.
                    let _ = writeln!(io::stderr().lock(), "{}", self.err.paint(style, &note));
                }
                Ok(())
            }
        }
    }

    fn note(&mut self, event: &AppEvent) -> Option<(Style, String)> {
        match event {
            AppEvent::Connected(_) => {
                self.trouble = None;
                Some((Style::Dim, "connected".to_owned()))
            }
            AppEvent::Live => Some((Style::Dim, "listening; Ctrl-C ends".to_owned())),
            AppEvent::Disconnected { reason, retry_in } => {
                let before = self.trouble.replace(reason.clone());
                (before.as_ref() != Some(reason))
                    .then(|| (Style::Yellow, trouble(reason, *retry_in)))
            }
            event => text::note(event),
        }
    }
}
