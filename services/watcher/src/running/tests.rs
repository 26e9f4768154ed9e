//! Who answers requests after an outage, with a real nats-server.

use mailbell_bus::{AskError, Bus};
use mailbell_core::ids::AccountId;
use mailbell_proto::bus::v1::{LoginBegun, OwnerRequest, OwnerResponse, owner_response::Response};
use tokio::time::timeout;

use super::*;
use crate::installation::Installation;

const LIMIT: Duration = Duration::from_secs(60);

fn logged_in() -> OwnerResponse {
    OwnerResponse {
        response: Some(Response::Login(LoginBegun::default())),
    }
}

/// Asks for as long as this connection is not back.
async fn ask(bus: &Bus, account: &AccountId) -> Result<OwnerResponse, AskError> {
    loop {
        let answer = bus.ask(account, OwnerRequest::default(), LIMIT).await;
        if answer != Err(AskError::Disconnected) {
            return answer;
        }
        let mut link = bus.link();
        link.wait_for(mailbell_bus::Link::is_up).await.unwrap();
    }
}

#[tokio::test]
async fn who_kept_a_partition_over_an_outage_answers_for_it() {
    let Installation {
        admin: asker,
        ledger: BusLedger { bus, .. },
        mut nats,
    } = Installation::new().await;
    let [kept, lost]: [AccountId; 2] = [
        "default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "acme.01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ]
    .map(|id| id.parse().unwrap());
    let partitions = vec![kept.partition(), lost.partition()];
    let registry = Arc::new(Registry::default());
    registry.serve(partitions.iter().map(|partition| (*partition, 1)));
    let answer = |_, _| async { logged_in() };
    let service = Arc::new(bus.serve(ServeOptions::default(), answer));
    nats.kill();
    let mut link = bus.link();
    link.wait_for(|link| !link.is_up()).await.unwrap();
    let owning = own(Arc::clone(&service), Arc::clone(&registry), partitions);
    let owning = tokio::spawn(owning);
    // Both claims age out meanwhile. One is ours again, by another; the other somebody else has.
    registry.renew(kept.partition(), 2);
    registry.lose(lost.partition(), 1);
    nats.restart().await.unwrap();
    timeout(LIMIT, owning).await.unwrap().unwrap();
    let answer = timeout(LIMIT, ask(&asker, &kept)).await.unwrap();
    assert_eq!(answer, Ok(logged_in()));
    let answer = timeout(LIMIT, ask(&asker, &lost)).await.unwrap();
    assert_eq!(answer, Err(AskError::NoOwner));
}
