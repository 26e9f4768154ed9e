//! `mailbell secrets`: what an installation on Kubernetes needs and nobody else should know, made where it is kept.
//!
//! The operator lets a job of it run before anything that needs a Secret. It fills what is missing and changes nothing that is there, so
//! that whoever brings a password or a certificate of his own puts it there before, and it is run with each release.

mod content;

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Config, api::PostParams};
use mailbell_core::ids::Installation;
use mailbell_runtime::ExitCode as Code;

pub use content::{Made, Names, What, missing};

use crate::{failure::Failure, terminal::done};

/// So often it is begun anew because somebody else has written the same Secret meanwhile.
const ATTEMPTS: usize = 5;
/// How long all of it may take. The job that runs it tries again.
const LIMIT: Duration = Duration::from_secs(60);

/// Which Secrets, and where.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Fills `<installation>-<WHAT>` for each, and changes nothing that is there. On a cluster the operator runs it as jobs, with the rights to
fill these Secrets and no others; whoever has set generateSecrets to false runs it, or makes the Secrets in any other way.

A key ring belongs into a backup: without it no stored password can be opened.

Examples:
  mailbell secrets --namespace mail nats-users nats-tls admin-token operator-token signing-key key-ring
  kubectl --namespace mail get secret main-admin-token -o jsonpath='{.data.token}' | base64 -d")]
pub struct Args {
    /// What is needed
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<What>,

    /// Name of the installation, with which the names of its Secrets begin
    #[arg(
        long,
        env = "MAILBELL_INSTALLATION",
        value_name = "NAME",
        default_value = "main"
    )]
    pub installation: Installation,

    /// The namespace of the Secrets [default: that of the pod, or of the current context]
    #[arg(long, short, env = "MAILBELL_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// What the API server said, or what is in a Secret and cannot be completed.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    let config = Config::infer().await.map_err(|error| {
        let text = format!("no way to a cluster: {error}; inside a pod it has one, elsewhere KUBECONFIG names a file");
        Failure::usage(text)
    })?;
    let namespace = args.namespace.clone();
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)
        .map_err(|error| Failure::usage(format!("no way to a cluster: {error}")))?;
    let all = async {
        for what in &args.what {
            let place = Place {
                api: Api::namespaced(client.clone(), &namespace),
                name: format!("{}-{}", args.installation, what.as_str()),
                names: Names {
                    installation: &args.installation,
                    namespace: &namespace,
                },
            };
            let filled = place.fill(*what).await?;
            let said = match filled.is_empty() {
                true => format!("there  {}", place.name),
                false => format!("made   {}: {}", place.name, filled.join(", ")),
            };
            done(writeln!(io::stdout().lock(), "{said}"))?;
        }
        Ok(ExitCode::SUCCESS)
    };
    let late = || Failure::unavailable("the API server took too long to answer");
    tokio::time::timeout(LIMIT, all).await.map_err(|_| late())?
}

/// One Secret.
struct Place<'a> {
    api: Api<Secret>,
    name: String,
    names: Names<'a>,
}

impl Place<'_> {
    /// Which keys were missing and are there now.
    async fn fill(&self, what: What) -> Result<Vec<&'static str>, Failure> {
        for _ in 0..ATTEMPTS {
            let found = self.api.get_opt(&self.name).await;
            let found = found.map_err(|error| self.failure(&error))?;
            let is_new = found.is_none();
            let mut secret = found.unwrap_or_else(|| Secret {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                ..Secret::default()
            });
            let there = secret.data.take().unwrap_or_default();
            let there: BTreeMap<String, Vec<u8>> = there
                .into_iter()
                .map(|(key, value)| (key, value.0))
                .collect();
            let made = missing(what, self.names, &there).map_err(|why| {
                Failure::new(Code::Data, format!("the Secret {}: {why}", self.name))
            })?;
            if made.is_empty() {
                return Ok(Vec::new());
            }
            let keys = made.iter().map(|(key, _)| *key).collect();
            let made = made
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_vec()));
            let data = there.into_iter().chain(made);
            secret.data = Some(data.map(|(key, value)| (key, ByteString(value))).collect());
            let params = PostParams::default();
            let written = match is_new {
                true => self.api.create(&params, &secret).await,
                // With the version that was read: what somebody else has put there is never replaced.
                false => self.api.replace(&self.name, &params, &secret).await,
            };
            match written {
                Ok(_) => return Ok(keys),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(kube::Error::Api(status)) if status.code == 403 && is_new => {
                    return Err(self.not_there());
                }
                Err(error) => return Err(self.failure(&error)),
            }
        }
        let text = format!(
            "the Secret {} is written by somebody else again and again",
            self.name
        );
        Err(Failure::new(Code::TempFail, text))
    }

    fn not_there(&self) -> Failure {
        let (name, installation) = (&self.name, self.names.installation);
        Failure::new(
            Code::Permission,
            format!(
                "there is no Secret {name}, and none may be made: add {installation} to the installations of the chart mailbell, which \
                 makes it empty with the right to fill it, or make it yourself, and say generateSecrets: false"
            ),
        )
    }

    fn failure(&self, error: &kube::Error) -> Failure {
        let name = &self.name;
        match error {
            kube::Error::Api(status) if [401, 403].contains(&status.code) => Failure::new(
                Code::Permission,
                format!(
                    "the Secret {name} may not be filled: {}; add {} to the installations of the chart mailbell, or make it yourself, \
                     and say generateSecrets: false",
                    status.message, self.names.installation
                ),
            ),
            kube::Error::Api(status) => {
                Failure::unavailable(format!("the Secret {name}: {}", status.message))
            }
            error => Failure::unavailable(format!("the API server does not answer: {error}")),
        }
    }
}
