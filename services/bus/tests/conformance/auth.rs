//! Who may connect, and how.

use std::{io::Write as _, time::Duration};

use base64::Engine as _;
use mailbell_bus::{
    Auth, Bus, BusError, BusOptions, Code, Link, Role, Secret, TlsOptions,
    server_config::{Login, ServerConfig, server_config},
};
use mailbell_core::ids::Installation;
use mailbell_runtime::{drain::Drain, health::Health};
use mailbell_test_servers::{Certificate, NatsOptions, NatsServer};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::world::bare_server;

const SOON: Duration = Duration::from_secs(60);

fn options(server: &NatsServer) -> BusOptions {
    BusOptions::new(vec![server.url()], Installation::default(), Role::Watcher)
}

async fn server(config: String) -> NatsServer {
    NatsServer::start(NatsOptions {
        config,
        ..NatsOptions::default()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn user_and_password() {
    let server = bare_server().await;
    let with = |auth: Auth| BusOptions {
        auth,
        ..options(&server)
    };
    let login = |user: &str, password: &str| Auth::UserPassword {
        user: user.to_owned(),
        password: Secret::new(password),
    };
    let bus = Bus::connect(with(login("watcher", crate::world::PASSWORD)))
        .await
        .unwrap();
    assert!(bus.ready());
    for auth in [
        login("watcher", "wrong"),
        login("nobody", crate::world::PASSWORD),
        Auth::None,
    ] {
        let error = Bus::connect(with(auth)).await.unwrap_err();
        assert_eq!(error, BusError::Authentication);
        assert_eq!((error.code(), error.is_retryable()), (Code::Denied, false));
    }
}

/// Servers have another password after a restart: that is told apart from their absence, and forgotten once they let it in.
#[tokio::test]
async fn a_password_that_is_refused_later() {
    let users = |password| format!("authorization {{ user: watcher, password: {password} }}");
    let mut server = server(users("first")).await;
    let auth = Auth::UserPassword {
        user: "watcher".to_owned(),
        password: Secret::new("first"),
    };
    let options = BusOptions {
        auth,
        ..options(&server)
    };
    let bus = Bus::connect(options).await.unwrap();
    let (mut link, health) = (bus.link(), Health::new());
    let (_drain, drained) = Drain::new();
    let telling = tokio::spawn(bus.tell_health(&health, "nats", drained));
    server.kill();
    let away = |link: &Link| !link.is_up() && !link.is_refused();
    timeout(SOON, link.wait_for(away)).await.unwrap().unwrap();
    let conf = server.directory().join("nats.conf");
    let before = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, before.replace("first", "second")).unwrap();
    server.restart().await.unwrap();
    let refused = timeout(SOON, link.wait_for(Link::is_refused)).await;
    assert!(refused.unwrap().is_ok());
    let said = async {
        while !format!("{:?}", health.readiness()).contains("refuses its password") {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, said).await.unwrap();
    std::fs::write(&conf, before).unwrap();
    server.restart().await.unwrap();
    timeout(SOON, link.wait_for(Link::is_up))
        .await
        .unwrap()
        .unwrap();
    telling.abort();
}

#[tokio::test]
async fn no_authentication() {
    let server = server(String::new()).await;
    assert!(Bus::connect(options(&server)).await.unwrap().ready());
}

#[tokio::test]
async fn nobody_there() {
    let mut server = server(String::new()).await;
    let options = options(&server);
    server.kill();
    let error = Bus::connect(options).await.unwrap_err();
    assert!(matches!(error, BusError::Connect { .. }), "{error:?}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn nkey() {
    let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
    let server = server(format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        key.public_key()
    ))
    .await;
    let with = |key: &KeyPair| BusOptions {
        auth: Auth::NKey(Secret::new(key.seed().unwrap())),
        ..options(&server)
    };
    assert!(Bus::connect(with(&key)).await.unwrap().ready());
    assert_eq!(
        Bus::connect(with(&other)).await.unwrap_err(),
        BusError::Authentication
    );
}

/// A JWT as `nsc` makes it.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let encode = |part: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(part);
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": "test", "nats": nats,
    });
    let signed = format!(
        "{}.{}",
        encode(head.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let signature = encode(&issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn credentials_file() {
    let (operator, account, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let operator_jwt = jwt(
        &operator,
        &operator,
        json!({ "type": "operator", "version": 2 }),
    );
    let limits = json!({ "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "wildcards": true });
    let account_jwt = jwt(
        &operator,
        &account,
        json!({ "type": "account", "version": 2, "limits": &limits }),
    );
    // A server with operators wants one for itself.
    let system = KeyPair::new_account();
    let system_jwt = jwt(
        &operator,
        &system,
        json!({ "type": "account", "version": 2, "limits": limits }),
    );
    let user_jwt = jwt(
        &account,
        &user,
        json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 }),
    );
    let (id, system) = (account.public_key(), system.public_key());
    let server = server(format!(
        "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {id}: {account_jwt}, {system}: {system_jwt} }}\n"
    ))
    .await;
    let creds = |jwt: &str, seed: &str| {
        // Made with mode 0600, as such a file must be.
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(
            file,
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
        .unwrap();
        file
    };
    let with = |file: &tempfile::NamedTempFile| BusOptions {
        auth: Auth::Creds(file.path().to_owned()),
        ..options(&server)
    };
    let good = creds(&user_jwt, &user.seed().unwrap());
    assert!(Bus::connect(with(&good)).await.unwrap().ready());
    let wrong = creds(&user_jwt, &KeyPair::new_user().seed().unwrap());
    assert_eq!(
        Bus::connect(with(&wrong)).await.unwrap_err(),
        BusError::Authentication
    );
    let damaged = creds("", "");
    assert!(matches!(
        Bus::connect(with(&damaged)).await,
        Err(BusError::Options(_))
    ));
    let missing = BusOptions {
        auth: Auth::Creds("/nonexistent/creds".into()),
        ..options(&server)
    };
    assert!(matches!(
        Bus::connect(missing).await,
        Err(BusError::Options(_))
    ));
    // One that others can read is refused.
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(good.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Bus::connect(with(&good)).await.unwrap_err();
    assert!(
        matches!(&error, BusError::Options(text) if text.contains("chmod")),
        "{error:?}"
    );
}

fn pem(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn tls() {
    let certificate = Certificate::localhost();
    let server = NatsServer::start(NatsOptions {
        tls: Some(certificate.clone()),
        ..NatsOptions::default()
    })
    .await
    .unwrap();
    let ca = pem(&certificate.authority_pem);
    let trusting = |file: &tempfile::NamedTempFile| {
        let tls = TlsOptions {
            ca: Some(file.path().to_owned()),
            ..TlsOptions::default()
        };
        BusOptions {
            tls: Some(tls),
            ..options(&server)
        }
    };
    assert!(Bus::connect(trusting(&ca)).await.unwrap().ready());
    let other = pem(&Certificate::localhost().authority_pem);
    for untrusted in [trusting(&other), options(&server)] {
        let error = Bus::connect(untrusted).await.unwrap_err();
        assert!(matches!(error, BusError::Tls(_)), "{error:?}");
    }
    // A certificate of another name.
    let certificate = Certificate::for_names(&["elsewhere.example"]);
    let server = NatsServer::start(NatsOptions {
        tls: Some(certificate.clone()),
        ..NatsOptions::default()
    })
    .await
    .unwrap();
    let ca = pem(&certificate.authority_pem);
    let tls = TlsOptions {
        ca: Some(ca.path().to_owned()),
        ..TlsOptions::default()
    };
    let error = Bus::connect(BusOptions {
        tls: Some(tls),
        ..options(&server)
    })
    .await
    .unwrap_err();
    assert!(matches!(error, BusError::Tls(_)), "{error:?}");
}

/// A server that takes nobody without a certificate of its own authority.
#[tokio::test]
async fn client_certificates() {
    let (certificate, stranger) = (Certificate::localhost(), Certificate::localhost());
    let (ca, cert, key) = (
        pem(&certificate.authority_pem),
        pem(&certificate.certificate_pem),
        pem(&certificate.key_pem),
    );
    let server = server(format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        cert.path(),
        key.path(),
        ca.path()
    ))
    .await;
    let with =
        |scheme: &str, client: Option<(&tempfile::NamedTempFile, &tempfile::NamedTempFile)>| {
            let tls = TlsOptions {
                ca: Some(ca.path().to_owned()),
                cert: client.map(|(cert, _)| cert.path().to_owned()),
                key: client.map(|(_, key)| key.path().to_owned()),
            };
            BusOptions {
                urls: vec![format!("{scheme}://localhost:{}", server.port())],
                tls: Some(tls),
                ..options(&server)
            }
        };
    for scheme in ["tls", "nats"] {
        let bus = Bus::connect(with(scheme, Some((&cert, &key)))).await;
        assert!(bus.unwrap().ready(), "{scheme}");
    }
    let (other_cert, other_key) = (pem(&stranger.certificate_pem), pem(&stranger.key_pem));
    for client in [None, Some((&other_cert, &other_key))] {
        let error = Bus::connect(with("tls", client)).await.unwrap_err();
        // The end of the connection may overtake the server's alert.
        assert!(
            matches!(error, BusError::Tls(_) | BusError::Connect { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn no_tls_where_it_is_asked_for() {
    let server = server(String::new()).await;
    let asking = BusOptions {
        tls: Some(TlsOptions::default()),
        ..options(&server)
    };
    assert!(Bus::connect(asking).await.is_err());
    let half = BusOptions {
        tls: Some(TlsOptions {
            cert: Some("/nonexistent".into()),
            ..TlsOptions::default()
        }),
        ..options(&server)
    };
    assert!(matches!(
        Bus::connect(half).await,
        Err(BusError::Options(_))
    ));
}

/// The configuration of a server of our own, with every role in it.
#[tokio::test]
async fn a_server_of_our_own() {
    let key = KeyPair::new_user();
    let password = Secret::new("0123456789abcdef");
    let directory = tempfile::tempdir().unwrap();
    let port = mailbell_test_servers::free_port().unwrap();
    let config = ServerConfig {
        installation: Installation::default(),
        port,
        monitor_port: None,
        store_dir: directory.path().join("store"),
        max_file_store: 2 << 30,
        pid_file: Some(directory.path().join("pid")),
        log_file: Some(directory.path().join("server.log")),
        users: vec![
            (Role::Setup, Login::Password(password.clone())),
            (Role::Watcher, Login::NKey(key.public_key())),
        ],
    };
    let path = directory.path().join("nats.conf");
    std::fs::write(&path, server_config(&config).unwrap().expose()).unwrap();
    let arguments = [std::path::Path::new("-c"), &path];
    let log = directory.path().join("log");
    let _process = mailbell_test_servers::process::Process::start(
        &mailbell_test_servers::nats::nats_binary(),
        &arguments,
        &log,
    )
    .unwrap();
    let storage = mailbell_bus::StorageLimits::fitting(config.max_file_store);
    let connect = |role: Role, auth: Auth| {
        let url = format!("nats://127.0.0.1:{port}");
        BusOptions {
            auth,
            storage,
            ..BusOptions::new(vec![url], Installation::default(), role)
        }
    };
    let setup = Auth::UserPassword {
        user: "setup".to_owned(),
        password,
    };
    let bus = crate::world::soon(Box::pin(async {
        loop {
            // Until it listens.
            match Bus::connect(connect(Role::Setup, setup.clone())).await {
                Ok(bus) => return bus,
                Err(BusError::Connect { .. }) => {}
                Err(error) => panic!("{error}: {}", std::fs::read_to_string(&log).unwrap()),
            }
        }
    }))
    .await;
    bus.setup().await.unwrap();
    let watcher = Bus::connect(connect(
        Role::Watcher,
        Auth::NKey(Secret::new(key.seed().unwrap())),
    ))
    .await
    .unwrap();
    let logs = watcher.logs().await.unwrap();
    crate::world::append(&logs, &crate::world::event(&crate::world::account(5, 0), 1)).await;
    let said = std::fs::read_to_string(directory.path().join("server.log")).unwrap();
    assert!(said.contains("Server is ready"), "{said}");
    // Who has no user cannot connect.
    let gateway = Auth::UserPassword {
        user: "gateway".to_owned(),
        password: Secret::new("0123456789abcdef"),
    };
    assert_eq!(
        Bus::connect(connect(Role::Gateway, gateway))
            .await
            .unwrap_err(),
        BusError::Authentication
    );
}
