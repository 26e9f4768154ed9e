//! Which tokens are good.
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use jsonwebtoken::{EncodingKey, Header, encode};
use mailbell_core::ids::Group;
use tokio::time::advance;

use super::*;

const NOW: i64 = 1_700_000_000;

struct Minter {
    key: SigningKey,
    kid: &'static str,
}

impl Minter {
    fn new(kid: &'static str) -> Self {
        let key = SigningKey::from_bytes(&rand::random());
        Self { key, kid }
    }

    fn issuer(&self, tenant: &str) -> Change<String, Issuer> {
        Change::Put {
            key: self.kid.to_owned(),
            value: Issuer {
                schema: 1,
                kid: self.kid.to_owned(),
                tenant: tenant.to_owned(),
                ed25519_public_key: self.key.verifying_key().to_bytes().to_vec().into(),
            },
            revision: 1,
        }
    }

    fn token(&self, claims: &Claims) -> String {
        let der = self.key.to_pkcs8_der().unwrap();
        let header = Header {
            kid: Some(self.kid.to_owned()),
            ..Header::new(Algorithm::EdDSA)
        };
        encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap()
    }
}

fn claims() -> Claims {
    Claims {
        jti: "t1".to_owned(),
        aud: AUDIENCE.to_owned(),
        iss: "main".to_owned(),
        tenant: "a".to_owned(),
        accounts: vec!["a.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()],
        whole_tenant: false,
        content: "preview".to_owned(),
        iat: NOW - 10,
        exp: NOW + 10,
    }
}

fn loaded<K, V>() -> Change<K, V> {
    let group = Group::new(0).unwrap();
    Change::Loaded { group }
}

fn linked() -> watch::Sender<Link> {
    watch::Sender::new(Link::Up {
        since: Instant::now(),
        lame_duck: false,
    })
}

fn authority(minter: &Minter) -> Authority {
    authority_on(&linked(), minter)
}

fn authority_on(link: &watch::Sender<Link>, minter: &Minter) -> Authority {
    let authority = Authority::new("main".to_owned(), link.subscribe());
    authority.on_issuer(minter.issuer(""));
    assert!(authority.missing().is_some());
    authority.on_issuer(loaded());
    assert!(authority.missing().is_some());
    authority.on_revocation(loaded());
    assert_eq!(authority.missing(), None);
    authority
}

#[tokio::test(start_paused = true)]
async fn what_a_token_must_be() {
    let minter = Minter::new("k1");
    let authority = authority(&minter);
    advance(SETTLING).await;
    let judge = |token: &str| authority.verify(token, NOW).map(|good| good.grant.token_id);
    assert_eq!(judge(&minter.token(&claims())), Ok("t1".to_owned()));

    let spoiled = |spoil: fn(&mut Claims)| {
        let mut claims = claims();
        spoil(&mut claims);
        judge(&minter.token(&claims)).unwrap_err()
    };
    assert_eq!(spoiled(|claims| claims.exp = NOW), Refusal::Expired);
    assert_eq!(spoiled(|claims| claims.exp = NOW - 99), Refusal::Expired);
    assert_eq!(
        spoiled(|claims| claims.aud = "other".to_owned()),
        Refusal::Claims
    );
    assert_eq!(
        spoiled(|claims| claims.iss = "other".to_owned()),
        Refusal::Claims
    );
    assert_eq!(
        spoiled(|claims| claims.tenant = "b".to_owned()),
        Refusal::Claims
    );
    assert_eq!(spoiled(|claims| claims.accounts.clear()), Refusal::Claims);

    // Another key under the known name, and a key that is not known.
    let forger = Minter::new("k1");
    assert_eq!(judge(&forger.token(&claims())), Err(Refusal::Signature));
    let stranger = Minter::new("k2");
    assert_eq!(judge(&stranger.token(&claims())), Err(Refusal::UnknownKey));

    // The same bytes with another payload, and algorithms that need no private key.
    let good = minter.token(&claims());
    let mut richer = claims();
    richer.exp = NOW + 1_000_000;
    let other = minter.token(&richer);
    let parts: Vec<_> = good.split('.').collect();
    let payload = other.split('.').nth(1).unwrap();
    let mixed = format!("{}.{payload}.{}", parts[0], parts[2]);
    assert_eq!(judge(&mixed), Err(Refusal::Signature));
    let public = minter.key.verifying_key().to_bytes();
    let header = Header {
        kid: Some("k1".to_owned()),
        ..Header::new(Algorithm::HS256)
    };
    let hmac = encode(&header, &claims(), &EncodingKey::from_secret(&public)).unwrap();
    assert_eq!(judge(&hmac), Err(Refusal::Signature));

    for nonsense in [
        "",
        "a.b.c",
        "eyJhbGciOiJub25lIn0.e30.",
        &"x".repeat(MAX_TOKEN + 1),
    ] {
        assert_eq!(judge(nonsense), Err(Refusal::Malformed), "{nonsense:.20}");
    }
}

#[test]
fn a_tenants_key_signs_for_that_tenant_only() {
    let ours = Minter::new("ours");
    let authority = authority(&ours);
    let theirs = Minter::new("theirs");
    authority.on_issuer(theirs.issuer("b"));
    let token = theirs.token(&claims());
    assert_eq!(authority.verify(&token, NOW).unwrap_err(), Refusal::Claims);
    let own = Claims {
        tenant: "b".to_owned(),
        accounts: vec!["b.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()],
        ..claims()
    };
    assert!(authority.verify(&theirs.token(&own), NOW).is_ok());
}

#[test]
fn a_revoked_token_stays_revoked_until_it_has_expired() {
    let minter = Minter::new("k1");
    let authority = authority(&minter);
    let token = minter.token(&claims());
    let credential = authority.verify(&token, NOW).unwrap();
    let mut version = authority.version();
    version.borrow_and_update();
    let revoke = |id: &str| Change::Put {
        key: ("a".parse().unwrap(), id.to_owned()),
        value: (NOW + 10) * 1000,
        revision: 1,
    };
    authority.on_revocation(revoke("another"));
    assert!(authority.stands(&credential).is_ok());
    authority.on_revocation(revoke("t1"));
    assert!(version.has_changed().unwrap());
    assert_eq!(authority.stands(&credential), Err(Refusal::Revoked));
    assert_eq!(authority.verify(&token, NOW).unwrap_err(), Refusal::Revoked);
    // The bucket is lost: nothing comes back to life, and nobody is judged until it is told anew.
    let group = Group::new(0).unwrap();
    authority.on_revocation(Change::Restarted { group });
    assert!(authority.missing().is_some());
    assert_eq!(authority.stands(&credential), Err(Refusal::Revoked));
    authority.sweep((NOW + 10) * 1000);
    assert_eq!(authority.stands(&credential), Err(Refusal::Revoked));
    authority.sweep((NOW + 71) * 1000);
    assert!(authority.stands(&credential).is_ok());
    // By then it has expired.
    assert_eq!(
        authority.verify(&token, NOW + 71).unwrap_err(),
        Refusal::Expired
    );
}

#[test]
fn a_withdrawn_key_ends_what_it_signed() {
    let minter = Minter::new("k1");
    let authority = authority(&minter);
    let credential = authority.verify(&minter.token(&claims()), NOW).unwrap();
    let key = "k1".to_owned();
    authority.on_issuer(Change::Removed { key });
    assert_eq!(authority.stands(&credential), Err(Refusal::UnknownKey));
    let damaged = Change::Put {
        key: "k1".to_owned(),
        value: Issuer::default(),
        revision: 2,
    };
    authority.on_issuer(damaged);
    assert_eq!(authority.stands(&credential), Err(Refusal::UnknownKey));
    authority.on_issuer(minter.issuer(""));
    assert!(authority.stands(&credential).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_may_only_be_new_is_no_reason_to_give_up() {
    let known = Minter::new("k1");
    let link = linked();
    let authority = authority_on(&link, &known);
    let new = Minter::new("k2");
    let token = new.token(&claims());
    let judge = || authority.verify(&token, NOW).map(|_| ()).unwrap_err();
    let almost = SETTLING - Duration::from_millis(1);
    let rest = Duration::from_millis(1);
    assert_eq!(judge(), Refusal::KeyNotYetKnown);
    advance(almost).await;
    assert_eq!(judge(), Refusal::KeyNotYetKnown);
    advance(rest).await;
    assert_eq!(judge(), Refusal::UnknownKey);
    // Nobody tells of new keys while there is no connection, nor at once when there is one again.
    link.send_replace(Link::Down {
        since: Instant::now(),
        refused: false,
    });
    advance(SETTLING * 2).await;
    assert_eq!(judge(), Refusal::KeyNotYetKnown);
    let (since, lame_duck) = (Instant::now(), false);
    link.send_replace(Link::Up { since, lame_duck });
    advance(almost).await;
    assert_eq!(judge(), Refusal::KeyNotYetKnown);
    advance(rest).await;
    assert_eq!(judge(), Refusal::UnknownKey);
    // Nor while they are told anew.
    let group = Group::new(0).unwrap();
    authority.on_issuer(Change::Restarted { group });
    advance(SETTLING * 2).await;
    assert_eq!(judge(), Refusal::KeyNotYetKnown);
    authority.on_issuer(loaded());
    assert_eq!(judge(), Refusal::KeyNotYetKnown);
    authority.on_issuer(new.issuer(""));
    assert!(authority.verify(&token, NOW).is_ok());
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_told_anew_stay_known_meanwhile() {
    let stays = Minter::new("k1");
    let authority = authority(&stays);
    let goes = Minter::new("k2");
    authority.on_issuer(goes.issuer(""));
    let credential = |minter: &Minter| authority.verify(&minter.token(&claims()), NOW);
    let (first, second) = (credential(&stays).unwrap(), credential(&goes).unwrap());
    let mut version = authority.version();
    let group = Group::new(0).unwrap();
    authority.on_issuer(Change::Restarted { group });
    assert_eq!(authority.missing(), None);
    advance(SETTLING * 2).await;
    authority.sweep(0);
    assert!(authority.stands(&first).is_ok() && credential(&stays).is_ok());
    authority.on_issuer(stays.issuer(""));
    authority.on_issuer(loaded());
    advance(SETTLING - Duration::from_millis(1)).await;
    authority.sweep(0);
    assert!(authority.stands(&second).is_ok() && credential(&goes).is_ok());
    // Withdrawn while nobody could say so.
    version.borrow_and_update();
    advance(Duration::from_millis(1)).await;
    authority.sweep(0);
    assert!(version.has_changed().unwrap());
    assert_eq!(authority.stands(&second), Err(Refusal::UnknownKey));
    assert!(authority.stands(&first).is_ok());
    // All of them gone at once is a loss and no withdrawal.
    authority.on_issuer(Change::Restarted { group });
    authority.on_issuer(loaded());
    advance(SETTLING * 2).await;
    authority.sweep(0);
    assert!(authority.stands(&first).is_ok() && credential(&stays).is_ok());
}
