//! The certificate of a gRPC listener.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use mailbell_runtime::{drain::DrainHandle, tls::ReloadingCert};

use crate::{certificate::Certificates, failure::Failure};

/// How often files of secrets are looked at, and on SIGHUP.
pub const RELOAD_EVERY: Duration = Duration::from_secs(60);

/// TLS of the listener for devices.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate chain (PEM); looked at every minute and on SIGHUP
    #[arg(
        long,
        env = "MAILBELL_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// Key of the certificate (PEM), mode 0600
    #[arg(
        long,
        env = "MAILBELL_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Listen without TLS for other machines too. Tokens and mail then cross the network in the clear, unless something in front encrypts
    #[arg(long, env = "MAILBELL_INSECURE_PLAINTEXT")]
    pub insecure_plaintext: bool,
}

impl TlsArgs {
    /// The certificate, if there is one, which is from now on replaced when its files are, and told of; refuses to serve other machines without.
    ///
    /// # Errors
    /// When the files cannot be used, or plain text is not safe here.
    pub fn load(
        &self,
        addr: SocketAddr,
        flag: &str,
        drain: DrainHandle,
        certificates: &Certificates,
    ) -> Result<Option<Arc<ReloadingCert>>, Failure> {
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let cert = ReloadingCert::load(cert, key)?;
            certificates.add(flag, &cert);
            tokio::spawn(Arc::clone(&cert).watch(RELOAD_EVERY, drain));
            return Ok(Some(cert));
        }
        if addr.ip().is_loopback() || self.insecure_plaintext {
            return Ok(None);
        }
        Err(Failure::usage(format!(
            "{flag} {addr} can be reached from other machines: give it a certificate with --tls-cert and --tls-key, \
             or say --insecure-plaintext if something in front of it encrypts"
        )))
    }
}

#[cfg(test)]
mod tests {
    use mailbell_runtime::{ExitCode, drain::Drain};

    use super::*;

    #[tokio::test]
    async fn other_machines_are_not_served_in_the_clear_by_accident() {
        let (_drain, handle) = Drain::new();
        let load = |args: &TlsArgs, addr: &str| {
            let addr = addr.parse().unwrap();
            args.load(
                addr,
                "--push-listen",
                handle.clone(),
                &Certificates::default(),
            )
        };
        let plain = TlsArgs::default();
        assert!(load(&plain, "127.0.0.1:1").unwrap().is_none());
        assert!(load(&plain, "[::1]:1").unwrap().is_none());
        for open in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let failure = load(&plain, open).unwrap_err();
            assert_eq!(failure.code, ExitCode::Usage);
            assert!(failure.message.contains("--tls-cert"));
        }
        let meant = TlsArgs {
            insecure_plaintext: true,
            ..TlsArgs::default()
        };
        assert!(load(&meant, "0.0.0.0:1").unwrap().is_none());
        let missing = TlsArgs {
            tls_cert: Some("/nowhere/cert".into()),
            tls_key: Some("/nowhere/key".into()),
            ..TlsArgs::default()
        };
        assert_eq!(
            load(&missing, "127.0.0.1:1").unwrap_err().code,
            ExitCode::NoInput
        );
    }
}
