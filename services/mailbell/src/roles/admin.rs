//! `mailbell admin`, and what standalone shares with it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use mailbell_admin::{Callers, Options, Policy, Service, SigningKey, TokenHash};
use mailbell_bus::{Bus, Role};
use mailbell_runtime::{
    ExitCode as Code, listen, reload, secretfile,
    telemetry::TelemetryArgs,
    tls::{ALPN_H2, server_config},
};

use super::{
    nats::NatsArgs,
    process::{Process, ProcessArgs, Work, end_when_outdated},
    server_certificates::ServerCertificates,
    tls::{RELOAD_EVERY, TlsArgs},
};
use crate::failure::Failure;

/// How long a drain may take: the calls that run.
const WINDOW: Duration = Duration::from_secs(25);

/// The admin API.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Serves mailbell.admin.v1 (gRPC). Callers send `authorization: Bearer <admin token>`; the file holds one token a line, made for
instance by `echo mba_$(openssl rand -base64 32)`; what is shorter, or not random, is refused. Both files of tokens are looked at every
minute and on SIGHUP. The signing key is made if its file does not exist.

With a token of the operator accounts are kept as they are declared elsewhere, by MailAccount objects on Kubernetes: those are changed
and deleted with it only. It sees accounts and how watchers share them, and makes no device tokens.

Accounts name mail servers, and watchers connect to them: whoever holds an admin token can make watchers reach any address that
they can reach. Where strangers add accounts, leave --allow-private-hosts out and bound the watchers by a network policy too.

Example:
  mailbell admin --admin-listen 0.0.0.0:7444 --tls-cert /tls/tls.crt --tls-key /tls/tls.key \\
    --admin-token-file /run/secrets/admin-tokens --signing-key-file /run/secrets/signing.pem --nats-url tls://nats:4222")]
pub struct Args {
    /// Where the admin API is served
    #[arg(
        long,
        env = "MAILBELL_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7444"
    )]
    pub admin_listen: SocketAddr,

    /// File with the admin tokens, one a line, mode 0600
    #[arg(long, env = "MAILBELL_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: PathBuf,

    /// File with the tokens of the operator, made as admin tokens are, one a line, mode 0600
    #[arg(long, env = "MAILBELL_OPERATOR_TOKEN_FILE", value_name = "FILE")]
    pub operator_token_file: Option<PathBuf>,

    /// File with the Ed25519 key (PKCS#8, PEM, mode 0600) that signs device tokens; made if it does not exist
    #[arg(long, env = "MAILBELL_SIGNING_KEY_FILE", value_name = "FILE")]
    pub signing_key_file: PathBuf,

    /// Allow mail servers on loopback, private and link-local addresses
    #[arg(long, env = "MAILBELL_ALLOW_PRIVATE_HOSTS")]
    pub allow_private_hosts: bool,

    /// Allow mail servers without TLS (imap+plaintext://)
    #[arg(long, env = "MAILBELL_ALLOW_PLAINTEXT_IMAP")]
    pub allow_plaintext_imap: bool,

    /// Certificate chain (PEM) that the NATS servers are to show: one that shows another is told to read its files again, every minute and on
    /// SIGHUP. For servers that the operator runs, which have a user for it
    #[arg(
        long,
        env = "MAILBELL_NATS_SERVER_CERT",
        value_name = "FILE",
        requires = "nats_password_file",
        help_heading = "NATS",
        hide = true
    )]
    pub nats_server_cert: Option<PathBuf>,

    /// The certificate.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// How to reach NATS.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Metrics, health and the end.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Runs the role.
///
/// # Errors
/// What it cannot start with, or failed of.
pub async fn run(args: Args, telemetry: &TelemetryArgs) -> Result<ExitCode, Failure> {
    let mut process = Process::begin("admin", &args.process, telemetry, WINDOW)?;
    let listener = listen::bind(args.admin_listen, "--admin-listen")?;
    let tls = args.tls.load(
        listener.addr(),
        "--admin-listen",
        process.drain(),
        &process.certificates,
    )?;
    let files = TokenFiles {
        admins: args.admin_token_file,
        operators: args.operator_token_file,
    };
    let signing = signing_key(&args.signing_key_file)?;
    let policy = Policy {
        plaintext: args.allow_plaintext_imap,
        private_hosts: args.allow_private_hosts,
    };
    let mut options = Options::new(listener, Vec::new(), signing);
    files.read_into(&options.callers)?;
    options.tls = tls
        .map(|cert| server_config(cert, &[ALPN_H2]))
        .transpose()?;
    options.policy = policy;
    let bus_options =
        args.nats
            .options(Role::Admin, "admin".to_owned(), process.bus_metrics.clone())?;
    let servers = args
        .nats_server_cert
        .map(|file| ServerCertificates::new(file, &bus_options, &mut process));
    let connect = async { Ok(Bus::connect(bus_options).await?) };
    let Some(bus) = process.unless_stopped(Box::pin(connect)).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut work = Work::new();
    if let Some(servers) = servers {
        let drain = process.drain();
        work.spawn(async move {
            servers.keep(drain).await;
            Ok(())
        });
    }
    let (callers, drain) = (options.callers.clone(), process.drain());
    work.spawn(async move {
        let look = move || files.read_into(&callers);
        reload::watch("admin tokens", RELOAD_EVERY, drain, look).await;
        Ok(())
    });
    start(&mut process, &mut work, options, bus.clone());
    process
        .run(work, |_| {}, async move { bus.close().await })
        .await
}

/// Where the tokens of callers are.
#[derive(Debug)]
struct TokenFiles {
    admins: PathBuf,
    operators: Option<PathBuf>,
}

impl TokenFiles {
    /// Whether they are others than before. With a file that is no good all stay as they were.
    fn read_into(&self, callers: &Callers) -> Result<bool, Failure> {
        let admins = tokens(&self.admins)?;
        let operators = self.operators.as_deref().map(tokens).transpose()?;
        let others = callers.set_admins(admins);
        Ok(callers.set_operators(operators.unwrap_or_default()) || others)
    }
}

/// Reads tokens, one a line.
fn tokens(file: &Path) -> Result<Vec<TokenHash>, Failure> {
    let text = secretfile::read_text(file)?;
    let mut tokens = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let token = TokenHash::parse(line).map_err(|error| {
            let file = file.display();
            Failure::new(Code::Data, format!("{file}, line {number}: {error}"))
        })?;
        tokens.push(token);
    }
    match tokens.is_empty() {
        true => Err(Failure::usage(format!("{} holds no token", file.display()))),
        false => Ok(tokens),
    }
}

/// Starts the service as a part of this process.
pub fn start(process: &mut Process, work: &mut Work, options: Options, bus: Bus) {
    tracing::info!(addr = %options.listener.addr(), tls = options.tls.is_some(), "admin API");
    end_when_outdated(work, bus.clone(), process.drain());
    let service = Service::new(
        options,
        bus,
        process.metrics.registry(),
        process.incoming.clone(),
        process.health.clone(),
    );
    let drain = process.drain();
    work.spawn(async move { Ok(service.run(drain).await?) });
}

/// Reads the signing key, or makes it.
///
/// # Errors
/// When the file cannot be read or written, or holds something else.
pub fn signing_key(file: &Path) -> Result<SigningKey, Failure> {
    if file.try_exists().unwrap_or(true) {
        let pem = secretfile::read_text(file)?;
        return Ok(SigningKey::from_pem(&pem)?);
    }
    let key = SigningKey::generate(&mut rand::rng())?;
    secretfile::write(file, key.to_pem().as_bytes())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_must_be_a_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tokens");
        let good = mailbell_admin::new_token(&mut rand::rng());
        let read = |text: &str| {
            secretfile::write(&file, text.as_bytes()).unwrap();
            tokens(&file).map(|tokens| tokens.len())
        };
        assert_eq!(read(&format!("{0}\n\n{0}\n", *good)).unwrap(), 2);
        let error = read(&format!("{}\nhunter2\n", *good)).unwrap_err();
        assert_eq!(error.code, Code::Data);
        assert!(error.message.contains("line 2"), "{}", error.message);
        assert!(!error.message.contains("hunter2"));
        assert_eq!(read("\n").unwrap_err().code, Code::Usage);
    }

    /// As the kubelet replaces a mounted Secret: by turning a link.
    #[test]
    fn tokens_that_are_replaced_are_seen_and_bad_ones_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mount = |version: &str, admins: &str, operators: &str| {
            std::fs::create_dir(path(version)).unwrap();
            secretfile::write(&path(version).join("admins"), admins.as_bytes()).unwrap();
            secretfile::write(&path(version).join("operators"), operators.as_bytes()).unwrap();
            std::os::unix::fs::symlink(version, path("next")).unwrap();
            std::fs::rename(path("next"), path("data")).unwrap();
        };
        let [one, two, three] = [(); 3].map(|()| mailbell_admin::new_token(&mut rand::rng()));
        let files = TokenFiles {
            admins: path("data/admins"),
            operators: Some(path("data/operators")),
        };
        let callers = Callers::default();
        mount("1", &one, &two);
        assert!(files.read_into(&callers).unwrap());
        assert!(!files.read_into(&callers).unwrap());
        mount("2", &one, &three);
        assert!(files.read_into(&callers).unwrap());
        mount("3", &two, "hunter2");
        assert_eq!(files.read_into(&callers).unwrap_err().code, Code::Data);
        // As it was before the bad one: the next good one differs in the operator's only.
        mount("4", &one, &three);
        assert!(!files.read_into(&callers).unwrap());
    }

    #[test]
    fn the_signing_key_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.pem");
        let made = signing_key(&file).unwrap();
        assert_eq!(signing_key(&file).unwrap().kid(), made.kid());
    }
}
