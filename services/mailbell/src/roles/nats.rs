//! How a role reaches NATS.

use std::path::PathBuf;

use mailbell_bus::{Auth, BusOptions, Metrics, Role, Secret, TlsOptions};
use mailbell_core::ids::Installation;
use mailbell_runtime::secretfile;

use crate::failure::Failure;

/// NATS, and as whom.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// Servers, separated by commas: nats://host:port or tls://host:port
    #[arg(
        long,
        env = "MAILBELL_NATS_URL",
        value_name = "URLS",
        value_delimiter = ','
    )]
    pub nats_url: Vec<String>,

    /// User; needs --nats-password-file
    #[arg(
        long,
        env = "MAILBELL_NATS_USER",
        value_name = "USER",
        requires = "nats_password_file"
    )]
    pub nats_user: Option<String>,

    /// File with the user's password, mode 0600
    #[arg(
        long,
        env = "MAILBELL_NATS_PASSWORD_FILE",
        value_name = "FILE",
        requires = "nats_user"
    )]
    pub nats_password_file: Option<PathBuf>,

    /// Credentials file (JWT and seed)
    #[arg(long, env = "MAILBELL_NATS_CREDS", value_name = "FILE", conflicts_with_all = ["nats_user", "nats_nkey_file"])]
    pub nats_creds: Option<PathBuf>,

    /// File with an nkey seed, mode 0600
    #[arg(
        long,
        env = "MAILBELL_NATS_NKEY_FILE",
        value_name = "FILE",
        conflicts_with = "nats_user"
    )]
    pub nats_nkey_file: Option<PathBuf>,

    /// File of root certificates (PEM) of the servers, in place of the system's
    #[arg(long, env = "MAILBELL_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,

    /// Client certificate (PEM); needs --nats-key
    #[arg(
        long,
        env = "MAILBELL_NATS_CERT",
        value_name = "FILE",
        requires = "nats_key"
    )]
    pub nats_cert: Option<PathBuf>,

    /// Key of the client certificate (PEM)
    #[arg(
        long,
        env = "MAILBELL_NATS_KEY",
        value_name = "FILE",
        requires = "nats_cert"
    )]
    pub nats_key: Option<PathBuf>,

    /// Allow a connection without TLS to another machine
    #[arg(long, env = "MAILBELL_NATS_ALLOW_PLAIN")]
    pub nats_allow_plain: bool,

    /// Name of the installation: prefixes every stream and subject
    #[arg(
        long,
        env = "MAILBELL_INSTALLATION",
        value_name = "NAME",
        default_value = "main"
    )]
    pub installation: String,
}

impl NatsArgs {
    /// Which Mailbell.
    ///
    /// # Errors
    /// A name that is none.
    pub fn installation(&self) -> Result<Installation, Failure> {
        self.installation
            .parse()
            .map_err(|error| Failure::usage(format!("--installation: {error}")))
    }

    /// Whether it is said as whom.
    #[must_use]
    pub fn has_user(&self) -> bool {
        self.nats_user.is_some()
            || self.nats_creds.is_some()
            || self.nats_nkey_file.is_some()
            || self.nats_cert.is_some()
    }

    /// What a connection of this role needs.
    ///
    /// # Errors
    /// A file that cannot be read, or a setting that makes no sense.
    pub fn options(
        &self,
        role: Role,
        name: String,
        metrics: Metrics,
    ) -> Result<BusOptions, Failure> {
        let urls = match self.nats_url.as_slice() {
            [] => vec!["nats://127.0.0.1:4222".to_owned()],
            urls => urls.to_vec(),
        };
        let auth = if let (Some(user), Some(file)) = (&self.nats_user, &self.nats_password_file) {
            Auth::UserPassword {
                user: user.clone(),
                password: secret(file)?,
            }
        } else if let Some(file) = &self.nats_creds {
            Auth::Creds(file.clone())
        } else if let Some(file) = &self.nats_nkey_file {
            Auth::NKey(secret(file)?)
        } else {
            Auth::None
        };
        let tls = (self.nats_ca.is_some() || self.nats_cert.is_some()).then(|| TlsOptions {
            ca: self.nats_ca.clone(),
            cert: self.nats_cert.clone(),
            key: self.nats_key.clone(),
        });
        Ok(BusOptions {
            auth,
            tls,
            allow_plain: self.nats_allow_plain,
            name,
            metrics,
            ..BusOptions::new(urls, self.installation()?, role)
        })
    }
}

fn secret(file: &std::path::Path) -> Result<Secret, Failure> {
    let text = secretfile::read_text(file)?;
    Ok(Secret::new(text.trim()))
}
