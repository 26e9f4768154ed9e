//! Device tokens, and who may call at all.
use std::time::Duration;

use crate::world::{World, request};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use mailbell_bus::state::Change;
use mailbell_core::{
    ids::Tenant,
    token::{AUDIENCE, Claims},
};
use mailbell_proto::{
    admin::v1::{
        ListAccountsRequest, ListTokensRequest, MintTokenRequest, RevokeTokenRequest,
        accounts_client::AccountsClient,
    },
    push::v1::ContentLevel,
};
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

async fn verified(world: &World, token: &str) -> Claims {
    let header = jsonwebtoken::decode_header(token).unwrap();
    let mut issuers = world.bus.issuers().watch();
    let issuer = loop {
        match issuers.next().await.unwrap() {
            Change::Put { key, value, .. } if Some(&key) == header.kid.as_ref() => break value,
            Change::Loaded { .. } => panic!("the issuer is not published"),
            _ => {}
        }
    };
    let key = DecodingKey::from_ed_der(&issuer.ed25519_public_key);
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[AUDIENCE]);
    jsonwebtoken::decode::<Claims>(token, &key, &validation)
        .unwrap()
        .claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_what_was_asked_for_and_can_be_revoked() {
    let mut world = World::start().await;
    let account = world
        .accounts
        .create_account(request(""))
        .await
        .unwrap()
        .into_inner()
        .account
        .unwrap()
        .id;
    let wanted = MintTokenRequest {
        accounts: vec![account.clone()],
        content: ContentLevel::Headers.into(),
        ttl_seconds: 3600,
        label: "Pixel".to_owned(),
        ..MintTokenRequest::default()
    };
    let minted = world.tokens.mint_token(wanted).await.unwrap().into_inner();
    let info = minted.info.unwrap();
    let claims = verified(&world, &minted.token).await;
    assert_eq!(claims.accounts, [account]);
    assert_eq!(
        (claims.content.as_str(), claims.iss.as_str()),
        ("headers", "test")
    );
    assert_eq!(claims.exp - claims.iat, 3600);
    assert_eq!(info.id, format!("default.{}", claims.jti));
    assert!(claims.grant().is_ok());

    let whole = MintTokenRequest {
        tenant: "other".to_owned(),
        whole_tenant: true,
        ..MintTokenRequest::default()
    };
    let whole = world.tokens.mint_token(whole).await.unwrap().into_inner();
    let claims = verified(&world, &whole.token).await;
    assert_eq!(
        (claims.tenant.as_str(), claims.content.as_str()),
        ("other", "preview")
    );
    assert_eq!(claims.exp - claims.iat, 90 * 24 * 3600);

    let mut revocations = world.bus.revocations().watch();
    let revoke = RevokeTokenRequest {
        id: info.id.clone(),
    };
    for _ in 0..2 {
        world.tokens.revoke_token(revoke.clone()).await.unwrap();
    }
    let expected: (Tenant, String) = {
        let (tenant, id) = info.id.split_once('.').unwrap();
        (tenant.parse().unwrap(), id.to_owned())
    };
    loop {
        if let Change::Put { key, .. } = revocations.next().await.unwrap() {
            assert_eq!(key, expected);
            break;
        }
    }
    let listed = world
        .tokens
        .list_tokens(ListTokensRequest::default())
        .await
        .unwrap()
        .into_inner()
        .tokens;
    let revoked: Vec<_> = listed
        .iter()
        .map(|token| (token.tenant.as_str(), token.label.as_str(), token.revoked))
        .collect();
    assert_eq!(revoked, [("default", "Pixel", true), ("other", "", false)]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_what_is_not_there_is_refused() {
    let mut world = World::start().await;
    let nobody = "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned();
    let cases = [
        (vec![], false, Code::InvalidArgument),
        (vec![nobody.clone()], true, Code::InvalidArgument),
        (vec!["x".to_owned()], false, Code::InvalidArgument),
        (
            vec!["b.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()],
            false,
            Code::InvalidArgument,
        ),
        (
            vec![nobody.clone(), nobody.clone()],
            false,
            Code::InvalidArgument,
        ),
        (vec![nobody.clone()], false, Code::NotFound),
    ];
    for (accounts, whole_tenant, code) in cases {
        let wanted = MintTokenRequest {
            accounts,
            whole_tenant,
            ..MintTokenRequest::default()
        };
        let status = world.tokens.mint_token(wanted).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    for (id, code) in [
        (nobody.as_str(), Code::NotFound),
        ("x", Code::InvalidArgument),
    ] {
        let status = world
            .tokens
            .revoke_token(RevokeTokenRequest { id: id.to_owned() })
            .await
            .unwrap_err();
        assert_eq!(status.code(), code);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_calls_without_the_admin_token() {
    let world = World::start().await;
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", world.addr)).unwrap();
    let channel = endpoint
        .timeout(Duration::from_secs(10))
        .connect()
        .await
        .unwrap();
    let mut bare = AccountsClient::new(channel.clone());
    let status = bare
        .list_accounts(ListAccountsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut wrong = Request::new(ListAccountsRequest::default());
    wrong
        .metadata_mut()
        .insert("authorization", "Bearer mba_wrong".parse().unwrap());
    let status = bare.list_accounts(wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // Whether it serves may be asked by anybody.
    let mut health = HealthClient::new(channel);
    let request = HealthCheckRequest {
        service: "mailbell.admin.v1.Accounts".to_owned(),
    };
    assert_eq!(health.check(request).await.unwrap().into_inner().status, 1);
    drop((bare, health));
    world.stop().await;
}
