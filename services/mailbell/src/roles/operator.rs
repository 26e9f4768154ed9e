//! `mailbell operator`.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use kube::{Client, Config};
use mailbell_operator::{
    controller::{self, Error, LOAD_EVERY, Metrics, Options, Pace},
    desired::API_SERVER_PORTS,
};
use mailbell_runtime::{ExitCode as Code, telemetry::TelemetryArgs};
use tokio_util::sync::CancellationToken;

use super::{
    process::{Process, ProcessArgs, Work},
    watcher::host_name,
};
use crate::{duration, failure::Failure};

/// Each step can be done again by the next one, so there is nothing to wait for but the lease to be given away.
const WINDOW: Duration = Duration::from_secs(10);

/// Installations on a cluster.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Keeps every Mailbell object of its namespace, or of all, as it is wanted: NATS servers, the setup of what is stored, gateways, admin API
and watchers. Registers the mailbox of every MailAccount object with the installation that it names, and says how it is. Of several only one works at a time; the others wait for its lease. What runs goes on while there is none.

The custom resource definitions must be there before (`mailbell crds`). Outside a cluster it goes by the current context of kubectl.

It calls the admin API of each installation under the name of its service, with the token in the Secret `<name>-operator-token`. Outside
a cluster that of one installation can be forwarded (--admin-url); the certificate is that of the service also then.

Examples:
  mailbell operator --image registry.example.org/mailbell:0.1.0
  mailbell operator --image mailbell.dev/mailbell:0.1.0 --namespace mail")]
pub struct Args {
    /// Image of installations that name none
    #[arg(long, env = "MAILBELL_IMAGE", value_name = "NAME:TAG")]
    pub image: String,

    /// Look after this namespace only [default: all of them]
    #[arg(long, env = "MAILBELL_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// The namespace of its lease [default: that of its pod, or of the current context]
    #[arg(long, env = "MAILBELL_LEASE_NAMESPACE", value_name = "NAME")]
    pub lease_namespace: Option<String>,

    /// Its name among its replicas [default: the host's name]
    #[arg(long, env = "MAILBELL_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,

    /// Address of every admin API, such as a forwarded port [default: port 7444 of the service NAME-admin of each]
    #[arg(long, env = "MAILBELL_ADMIN_URL", value_name = "URL", value_parser = admin_url)]
    pub admin_url: Option<String>,

    /// Health and metrics of every gateway, such as forwarded ports, separated by commas [default: port 7445 of
    /// all addresses of the service NAME-gateway-pods]
    #[arg(
        long,
        env = "MAILBELL_GATEWAY_HTTP",
        value_name = "ADDRESSES",
        value_delimiter = ','
    )]
    pub gateway_http: Vec<SocketAddr>,

    /// By which ports pods reach the API server, where the cluster's network enforces policies: those of its service and of the
    /// servers behind it
    #[arg(
        long,
        env = "MAILBELL_API_SERVER_PORTS",
        value_name = "PORTS",
        value_delimiter = ',',
        default_values_t = API_SERVER_PORTS
    )]
    pub api_server_ports: Vec<u16>,

    /// For so long fewer watchers, or gateways, must have been enough before one goes, and again before the next one
    #[arg(long, env = "MAILBELL_SCALE_DOWN_AFTER", value_name = "DURATION", default_value = "5m", value_parser = scale_down_after)]
    pub scale_down_after: Duration,

    /// Metrics, health and the end.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Less is less than two looks at how much there is to do.
fn scale_down_after(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        short if short < LOAD_EVERY * 2 => Err("at least a minute".to_owned()),
        long => Ok(long),
    }
}

fn admin_url(text: &str) -> Result<String, String> {
    controller::admin::check_url(text).map(|()| text.to_owned())
}

/// Runs the role.
///
/// # Errors
/// What it cannot start with.
pub async fn run(args: Args, telemetry: &TelemetryArgs) -> Result<ExitCode, Failure> {
    let mut process = Process::begin("operator", &args.process, telemetry, WINDOW)?;
    let config = Config::infer().await.map_err(|error| {
        let text = format!("no way to a cluster: {error}; inside a pod it has one, elsewhere KUBECONFIG names a file");
        Failure::new(Code::Usage, text)
    })?;
    let options = Options {
        namespace: args.namespace,
        own_namespace: args
            .lease_namespace
            .unwrap_or_else(|| config.default_namespace.clone()),
        identity: match args.identity {
            Some(name) => name,
            None => host_name()?,
        },
        image: args.image,
        admin_url: args.admin_url,
        gateways: (!args.gateway_http.is_empty()).then_some(args.gateway_http),
        look_every: LOAD_EVERY,
        scale_down_after: args.scale_down_after,
        api_server_ports: args.api_server_ports,
        pace: Pace::default(),
    };
    let mut config = config;
    // Above the time for which the API server keeps a watch open: an answer that is lost is not waited for.
    config.read_timeout = Some(Duration::from_secs(300));
    let client = Client::try_from(config)
        .map_err(|error| Failure::new(Code::Usage, format!("no way to a cluster: {error}")))?;
    // That it is reached, and knows our kinds: a role that is missing is found at the start, and named.
    let known = async { Ok(controller::check(&client, options.namespace.as_deref()).await?) };
    if process.unless_stopped(Box::pin(known)).await?.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    let metrics = Metrics::register(process.metrics.registry());
    let mut work = Work::new();
    let mut drain = process.drain();
    work.spawn(async move {
        let stop = CancellationToken::new();
        let lead = controller::run(client, options, metrics, stop.clone());
        tokio::pin!(lead);
        tokio::select! {
            biased;
            // First: whoever drains ends anyway.
            _ = drain.signaled() => stop.cancel(),
            ended = &mut lead => return Ok(ended?),
        }
        Ok(lead.await?)
    });
    process.run(work, |_| {}, async {}).await
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Denied(_) => Self::new(Code::Permission, text),
            Error::NoDefinitions => Self::new(Code::Usage, text),
            Error::Object { .. }
            | Error::Foreign { .. }
            | Error::Json(_)
            | Error::TooManyProviders
            | Error::TooLong
            | Error::Unreachable(_) => Self::unavailable(text),
        }
    }
}
