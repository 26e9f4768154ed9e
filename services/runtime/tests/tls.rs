//! Real handshakes against certificates that change underneath.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mailbell_runtime::{
    Error,
    drain::Drain,
    secretfile,
    tls::{self, ALPN_H2, ReloadingCert, Roots},
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};

struct Pair {
    cert: String,
    key: String,
}

fn pair(name: &str) -> Pair {
    let made =
        rcgen::generate_simple_self_signed([name.to_owned(), "localhost".to_owned()]).unwrap();
    Pair {
        cert: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(pair: &Pair) -> Self {
        let files = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        files.put(pair);
        files
    }

    fn put(&self, pair: &Pair) {
        fs::write(self.cert(), &pair.cert).unwrap();
        secretfile::write(&self.key(), pair.key.as_bytes()).unwrap();
    }

    fn cert(&self) -> PathBuf {
        self.dir.path().join("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("tls.key")
    }
}

/// The certificate that a client who trusts `roots` is shown; `Err` when it does not trust it.
async fn shown(
    server: &Arc<ServerConfig>,
    roots: &Path,
) -> std::io::Result<CertificateDer<'static>> {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let client = tls::client_config(Roots::File(roots), &[ALPN_H2]).unwrap();
    let accept = TlsAcceptor::from(Arc::clone(server)).accept(far);
    let connect =
        TlsConnector::from(client).connect(ServerName::try_from("localhost").unwrap(), near);
    let (connected, _accepted) = tokio::join!(connect, accept);
    let connected = connected?;
    let (_, session) = connected.get_ref();
    assert_eq!(session.alpn_protocol(), Some(ALPN_H2));
    Ok(session
        .peer_certificates()
        .unwrap()
        .first()
        .unwrap()
        .clone()
        .into_owned())
}

#[tokio::test]
async fn a_replaced_pair_is_shown_to_the_next_handshake() {
    let (first, second) = (pair("first.test"), pair("second.test"));
    let files = Files::new(&first);
    let cert = ReloadingCert::load(files.cert(), files.key()).unwrap();
    let server = tls::server_config(Arc::clone(&cert), &[ALPN_H2]).unwrap();
    let before = shown(&server, &files.cert()).await.unwrap();
    assert!(!cert.reload().unwrap(), "the files are the same");

    files.put(&second);
    assert!(
        shown(&server, &files.cert()).await.is_err(),
        "the former pair is in force until the reload"
    );
    assert!(cert.reload().unwrap());
    let after = shown(&server, &files.cert()).await.unwrap();
    assert_ne!(before, after);
}

#[tokio::test]
async fn a_half_replaced_pair_leaves_the_former_in_force() {
    let (first, second) = (pair("first.test"), pair("second.test"));
    let files = Files::new(&first);
    let roots = files.dir.path().join("roots.pem");
    fs::copy(files.cert(), &roots).unwrap();
    let cert = ReloadingCert::load(files.cert(), files.key()).unwrap();
    let server = tls::server_config(Arc::clone(&cert), &[ALPN_H2]).unwrap();

    fs::write(files.cert(), &second.cert).unwrap();
    let error = cert.reload().unwrap_err();
    assert!(error.to_string().contains("does not belong to"), "{error}");
    shown(&server, &roots).await.unwrap();
    fs::write(files.cert(), "garbage").unwrap();
    assert!(matches!(cert.reload(), Err(Error::Certificate { .. })));
    fs::remove_file(files.cert()).unwrap();
    assert!(matches!(cert.reload(), Err(Error::Read { .. })));
    shown(&server, &roots).await.unwrap();

    files.put(&second);
    assert!(cert.reload().unwrap());
    assert!(shown(&server, &roots).await.is_err());
    shown(&server, &files.cert()).await.unwrap();
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let files = Files::new(&pair("first.test"));
    fs::set_permissions(files.key(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        ReloadingCert::load(files.cert(), files.key()),
        Err(Error::SecretExposed { .. })
    ));
}

#[tokio::test]
async fn watching_replaces_by_itself_and_ends_with_the_drain() {
    let (first, second) = (pair("first.test"), pair("second.test"));
    let files = Files::new(&first);
    let cert = ReloadingCert::load(files.cert(), files.key()).unwrap();
    let server = tls::server_config(Arc::clone(&cert), &[ALPN_H2]).unwrap();
    let (drain, handle) = Drain::new();
    let watching = tokio::spawn(cert.watch(Duration::from_millis(1), handle));
    files.put(&second);
    // No fixed wait: handshakes until the new one is shown, however long the reload takes; the limit only ends a failed test.
    let replaced = async { while shown(&server, &files.cert()).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), replaced)
        .await
        .unwrap();
    drain
        .drain_with_timeout(Duration::from_secs(20))
        .await
        .unwrap();
    watching.await.unwrap();
}
