//! The same over TLS.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use mailbell_proto::push::v1::{SubscribeRequest, push_client::PushClient};
use mailbell_runtime::tls::ReloadingCert;
use mailbell_test_servers::Certificate;
use tonic::transport::{Certificate as Root, Channel, ClientTlsConfig};

use crate::support::{Device, Minter, Running, account, arrival, bearer, options};

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_device_over_tls_and_none_without() {
    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = (
        directory.path().join("chain.pem"),
        directory.path().join("key.pem"),
    );
    let certificate = Certificate::localhost();
    write(&chain, &certificate.certificate_pem);
    write(&key, &certificate.key_pem);
    let source = mailbell_gateway::source::memory::MemorySource::new();
    source.put_account(&account(0), Default::default());
    let minter = Minter::new("k1");
    source.put_issuer(minter.issuer());
    let token = minter.token(&[account(0)]);
    let tls = ReloadingCert::load(chain, key).unwrap();
    let gateway = Running::start_tls(std::sync::Arc::new(source.clone()), minter, options(), tls);
    gateway.ready().await;

    let trust = ClientTlsConfig::new()
        .ca_certificate(Root::from_pem(&certificate.authority_pem))
        .domain_name("localhost");
    let channel = Channel::from_shared(format!("https://{}", gateway.addr))
        .unwrap()
        .tls_config(trust)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let request = bearer(SubscribeRequest::default(), &token);
    let stream = PushClient::new(channel).subscribe(request).await.unwrap();
    let mut device = Device::new(stream.into_inner()).await;
    device.live().await;
    source.append(&arrival(&account(0), 1));
    assert_eq!(device.uids(1).await, [1]);

    let plain = Channel::from_shared(format!("http://{}", gateway.addr)).unwrap();
    let request = bearer(SubscribeRequest::default(), &token);
    let refused = match plain.connect().await {
        Ok(channel) => PushClient::new(channel).subscribe(request).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}
