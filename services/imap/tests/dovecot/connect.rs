//! Every way to connect, and what can go wrong with it.

use crate::common::{EditedStream, endpoint, login, settings};
use crate::{common, dovecot};
use mailbell_imap::{
    Capability, Class, Connection, Error, LoginFault, TlsFault, TlsMode, TlsSettings,
};
use mailbell_test_servers::{Certificate, Dovecot, DovecotOptions};
use std::time::Duration;
use tokio::net::TcpStream;

fn fault(result: Result<Connection, Error>) -> TlsFault {
    match result.map(|_| ()) {
        Err(Error::Tls(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn connects_in_every_mode() {
    let server = dovecot().await;
    let settings = settings(&server);
    for tls in [TlsMode::Implicit, TlsMode::StartTls, TlsMode::Plain] {
        let mut connection = Connection::open(&endpoint(&server, tls), &login("secret"), &settings)
            .await
            .unwrap();
        for capability in [
            Capability::Idle,
            Capability::UidPlus,
            Capability::CondStore,
            Capability::Id,
        ] {
            assert!(connection.capabilities().has(capability), "{capability:?}");
        }
        assert!(connection.handshake() > Duration::ZERO);
        assert!(!connection.noop().await.unwrap());
        connection.logout().await;
    }
    let mut strict = settings.clone();
    strict.allow_plaintext = false;
    let refused = Connection::open(
        &endpoint(&server, TlsMode::Plain),
        &login("secret"),
        &strict,
    )
    .await;
    assert_eq!(refused.unwrap_err().class(), Class::PlaintextNotAllowed);
}

#[tokio::test]
async fn tells_tls_troubles_apart() {
    let server = dovecot().await;
    let mut endpoint = endpoint(&server, TlsMode::Implicit);
    let mut others = settings(&server);
    others.tls = TlsSettings::only([Certificate::localhost().authority_pem.as_bytes()]).unwrap();
    assert_eq!(
        fault(Connection::open(&endpoint, &login("secret"), &others).await),
        TlsFault::UnknownIssuer
    );

    endpoint.port = server.imap_port();
    assert_eq!(
        fault(Connection::open(&endpoint, &login("secret"), &settings(&server)).await),
        TlsFault::NotTls
    );

    for (certificate, expected) in [
        (
            Certificate::for_names(&["mail.example.org"]),
            TlsFault::WrongName,
        ),
        (Certificate::expired(), TlsFault::Expired),
    ] {
        let options = DovecotOptions {
            certificate: Some(certificate),
            ..Default::default()
        };
        let server = Dovecot::start(options).await.unwrap();
        for tls in [TlsMode::Implicit, TlsMode::StartTls] {
            let endpoint = common::endpoint(&server, tls);
            assert_eq!(
                fault(Connection::open(&endpoint, &login("secret"), &settings(&server)).await),
                expected
            );
        }
    }
}

#[tokio::test]
async fn tells_network_troubles_apart() {
    let mut server = dovecot().await;
    let mut unknown = endpoint(&server, TlsMode::Implicit);
    unknown.host = "no-such-host.invalid".into();
    let error = Connection::open(&unknown, &login("secret"), &settings(&server))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Dns);
    server.stop().await;
    let error = Connection::open(
        &endpoint(&server, TlsMode::Implicit),
        &login("secret"),
        &settings(&server),
    )
    .await;
    assert_eq!(error.unwrap_err().class(), Class::Refused);
}

#[tokio::test]
async fn a_wrong_password_is_one_until_it_is_right() {
    let mut server = dovecot().await;
    let endpoint = endpoint(&server, TlsMode::Implicit);
    let settings = settings(&server);
    for password in ["wrong", "", "päßwörd"] {
        let error = Connection::open(&endpoint, &login(password), &settings)
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::BadCredentials(LoginFault::Refused)),
            "{error:?}"
        );
        assert!(error.is_permanent());
    }
    server.set_password("alice", "changed").await.unwrap();
    Connection::open(&endpoint, &login("changed"), &settings)
        .await
        .unwrap();

    server.set_password("alice", "pä\"ß\\ x").await.unwrap();
    Connection::open(&endpoint, &login("pä\"ß\\ x"), &settings)
        .await
        .unwrap();
    let error = Connection::open(&endpoint, &login("pä\"ß\\ "), &settings)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::BadCredentials);
}

/// Dovecot always announces AUTH=PLAIN along with LOGIN, so its announcement is changed on the way.
#[tokio::test]
async fn logs_in_by_login_whatever_the_password() {
    let mut server = dovecot().await;
    let endpoint = endpoint(&server, TlsMode::Plain);
    let settings = settings(&server);
    let passwords = ["secret", "a \"b\\c\" {5}", "pä\"ß\\ x"];
    for password in passwords {
        server.set_password("alice", password).await.unwrap();
        for edits in [
            // What isn't ASCII goes as a literal at once, or when it is asked for.
            &[("AUTH=PLAIN", "AUTH=OTHER")][..],
            &[("AUTH=PLAIN", "AUTH=OTHER"), ("LITERAL+", "LITERAL?")],
        ] {
            for (tried, right) in [(password, true), ("wrong", false)] {
                let inner = TcpStream::connect(("127.0.0.1", server.imap_port()))
                    .await
                    .unwrap();
                let stream = Box::new(EditedStream { inner, edits });
                let result =
                    Connection::over(stream, &endpoint, &login(tried), &settings, Duration::ZERO)
                        .await;
                match result {
                    Ok(mut connection) => {
                        assert!(right, "{tried}");
                        assert!(!connection.noop().await.unwrap());
                    }
                    Err(error) => assert!(
                        !right && matches!(error, Error::BadCredentials(LoginFault::Refused)),
                        "{tried}: {error:?}"
                    ),
                }
            }
        }
    }
}
