use mailbell_client::{AppEvent, Builder, Client, DisconnectReason};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::gateway::{arrived, serve, service, uids};

/// Why the server cannot be reached.
async fn unreachable(builder: Builder) -> String {
    let mut events = builder.token("secret").build().unwrap().into_stream();
    match events.recv().await.unwrap().unwrap() {
        AppEvent::Disconnected {
            reason: DisconnectReason::Unreachable(why),
            ..
        } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_and_a_stranger_is_not() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let authority = certified.cert.pem();
    let identity = Identity::from_pem(&authority, certified.signing_key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap();
    let (service, mut visitors, _asked) = service();
    let serving = tokio::spawn(serve(server, service, TcpListenerStream::new(listener)));

    // A stranger, a name that isn't his, and nobody: each in its own words.
    let words = unreachable(Client::builder(&url)).await;
    assert!(words.contains("UnknownIssuer"), "{words}");
    let other = url.replace("localhost", "127.0.0.1");
    let words = unreachable(Client::builder(&other).tls(authority.as_str())).await;
    assert!(words.contains("not valid for name"), "{words}");
    let words = unreachable(Client::builder("http://127.0.0.1:1")).await;
    assert!(words.contains("refused"), "{words}");

    let builder = Client::builder(&url).token("secret").tls(authority);
    let mut events = builder.build().unwrap().into_stream();
    let open = visitors.recv().await.unwrap().greet().await;
    open.send(arrived(1)).await;
    assert_eq!(uids(&mut events, 1).await, [1]);
    serving.abort();
}
