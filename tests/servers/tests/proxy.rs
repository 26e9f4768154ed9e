//! What a cut network does to the two ends of a connection.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::SocketAddr;
use std::time::Duration;

use mailbell_test_servers::proxy::{Mode, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A client and a server with the proxy between them.
async fn pair(proxy: &Proxy, server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    (client, server.accept().await.unwrap().0)
}

async fn scene() -> (Proxy, TcpListener) {
    let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
    (proxy, server)
}

async fn read(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes, expected);
}

#[tokio::test]
async fn bytes_and_ends_pass() {
    let (proxy, server) = scene().await;
    let (mut client, mut served) = pair(&proxy, &server).await;
    client.write_all(b"question").await.unwrap();
    read(&mut served, b"question").await;
    client.shutdown().await.unwrap();
    assert_eq!(served.read(&mut [0; 8]).await.unwrap(), 0);
    // Half a connection is one.
    served.write_all(b"answer").await.unwrap();
    read(&mut client, b"answer").await;
    drop(served);
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    proxy.connections(|count| *count == 0).await;
}

#[tokio::test]
async fn one_direction_is_lost_and_the_other_passes() {
    let (proxy, server) = scene().await;
    for (mode, deaf) in [(Mode::DEAF, true), (Mode::MUTE, false)] {
        let (mut client, mut served) = pair(&proxy, &server).await;
        proxy.set(mode);
        let (lost, heard) = if deaf {
            (&mut served, &mut client)
        } else {
            (&mut client, &mut served)
        };
        lost.write_all(b"lost").await.unwrap();
        proxy.swallowed().await;
        heard.write_all(b"heard").await.unwrap();
        read(lost, b"heard").await;
        proxy.set(Mode::PASS);
        lost.write_all(b"again").await.unwrap();
        read(heard, b"again").await;
    }
}

#[tokio::test]
async fn what_a_stalled_network_holds_comes_when_it_heals() {
    let (proxy, server) = scene().await;
    let (mut client, mut served) = pair(&proxy, &server).await;
    proxy.set(Mode::STALLED_TO_SERVER);
    client.write_all(b"late").await.unwrap();
    served.write_all(b"at once").await.unwrap();
    // The other direction's answer proves that the proxy has had its turn.
    read(&mut client, b"at once").await;
    assert!(served.try_read(&mut [0; 8]).is_err());
    proxy.set(Mode::STALLED);
    drop(client);
    proxy.set(Mode::PASS);
    read(&mut served, b"late").await;
    assert_eq!(served.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_black_hole_hides_even_the_end() {
    let (proxy, server) = scene().await;
    let (mut client, mut served) = pair(&proxy, &server).await;
    proxy.set(Mode::BLACK_HOLE);
    client.write_all(b"lost").await.unwrap();
    proxy.swallowed().await;
    drop(client);
    let mut byte = [0; 1];
    let silence = timeout(Duration::from_millis(50), served.read(&mut byte)).await;
    silence.unwrap_err();
    proxy.set(Mode::PASS);
    assert_eq!(served.read(&mut byte).await.unwrap(), 0);
}

#[tokio::test]
async fn who_is_cut_off_knows_it_and_comes_back_on_the_same_address() {
    let (proxy, server) = scene().await;
    let (mut client, mut served) = pair(&proxy, &server).await;
    let address: SocketAddr = proxy.address();
    proxy.set(Mode::Cut);
    proxy.connections(|count| *count == 0).await;
    client.read(&mut [0; 8]).await.unwrap_err();
    served.read(&mut [0; 8]).await.unwrap_err();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    proxy.set(Mode::PASS);
    let (mut client, mut served) = loop {
        if let Ok(client) = TcpStream::connect(address).await {
            break (client, server.accept().await.unwrap().0);
        }
        tokio::task::yield_now().await;
    };
    client.write_all(b"back").await.unwrap();
    read(&mut served, b"back").await;
}
