//! Sealing: what opens where, and what is refused.

use rand::{SeedableRng as _, rngs::StdRng};

use super::*;

const SECRET: &[u8] = b"correct horse battery staple";

fn account() -> AccountId {
    "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap()
}

fn binding(account: &AccountId) -> Binding<'_> {
    Binding {
        account,
        host: "mail.example.org",
        port: 993,
        tls: 1,
        user: "alice",
    }
}

fn ring() -> (KeyRing, StdRng) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut ring = KeyRing::default();
    ring.add(1, &mut rng).unwrap();
    (ring, rng)
}

#[test]
fn what_is_sealed_opens_for_the_same_settings_only() {
    let (ring, mut rng) = ring();
    let id = account();
    let bound = binding(&id);
    let sealed = seal(ring.newest().unwrap(), &bound, SECRET, &mut rng).unwrap();
    assert_eq!(open(&ring, &bound, &sealed).unwrap().as_slice(), SECRET);
    let other: AccountId = "default.01ARZ3NDEKTSV4RRFFQ69G5FAW".parse().unwrap();
    let elsewhere = [
        Binding {
            account: &other,
            ..bound
        },
        Binding {
            host: "mail.example.com",
            ..bound
        },
        Binding { port: 994, ..bound },
        Binding { tls: 3, ..bound },
        Binding {
            user: "bob",
            ..bound
        },
        // The same bytes in a row, cut elsewhere.
        Binding {
            host: "mail.example.orga",
            user: "lice",
            ..bound
        },
    ];
    for wrong in elsewhere {
        assert_eq!(
            open(&ring, &wrong, &sealed),
            Err(SealError::NotTheseSettings)
        );
    }
}

#[test]
fn another_ring_does_not_open_it() {
    let (ring, mut rng) = ring();
    let id = account();
    let mut sealed = seal(ring.newest().unwrap(), &binding(&id), SECRET, &mut rng).unwrap();
    let mut other = KeyRing::default();
    assert_eq!(
        open(&other, &binding(&id), &sealed),
        Err(SealError::MissingKey(sealed.key_id.clone()))
    );
    other.add(2, &mut rng).unwrap();
    sealed.key_id = other.newest().unwrap().id().to_owned();
    assert_eq!(
        open(&other, &binding(&id), &sealed),
        Err(SealError::NotTheseSettings)
    );
    sealed.key_id = "\u{1b}[31mnot a key".to_owned();
    assert_eq!(
        open(&ring, &binding(&id), &sealed),
        Err(SealError::MissingKey("?".to_owned()))
    );
}

#[test]
fn every_damaged_byte_is_noticed() {
    let (ring, mut rng) = ring();
    let id = account();
    let sealed = seal(ring.newest().unwrap(), &binding(&id), SECRET, &mut rng).unwrap();
    let refused = |sealed: &bus::SealedCredential| {
        open(&ring, &binding(&id), sealed) == Err(SealError::NotTheseSettings)
    };
    for index in 0..sealed.ciphertext.len() {
        let mut bytes = sealed.ciphertext.to_vec();
        bytes[index] ^= 1;
        assert!(refused(&bus::SealedCredential {
            ciphertext: bytes.into(),
            ..sealed.clone()
        }));
    }
    for index in 0..sealed.encapsulated_key.len() {
        let mut bytes = sealed.encapsulated_key.to_vec();
        bytes[index] ^= 1;
        assert!(refused(&bus::SealedCredential {
            encapsulated_key: bytes.into(),
            ..sealed.clone()
        }));
    }
    for length in [0, 1, 15, 16, 40] {
        let ciphertext = sealed.ciphertext.slice(..length);
        assert!(refused(&bus::SealedCredential {
            ciphertext,
            ..sealed.clone()
        }));
        let encapsulated_key = sealed.encapsulated_key.slice(..length.min(31));
        assert!(refused(&bus::SealedCredential {
            encapsulated_key,
            ..sealed.clone()
        }));
    }
    assert!(refused(&bus::SealedCredential {
        ciphertext: vec![0; 100_000].into(),
        ..sealed.clone()
    }));
    let newer = bus::SealedCredential {
        schema: 2,
        ..sealed
    };
    assert_eq!(
        open(&ring, &binding(&id), &newer),
        Err(SealError::Schema(2))
    );
}

#[test]
fn the_length_of_a_password_is_not_told_and_is_bounded() {
    let (ring, mut rng) = ring();
    let id = account();
    let public = ring.newest().unwrap().clone();
    let mut sealed = |secret: &[u8]| seal(&public, &binding(&id), secret, &mut rng);
    let short = sealed(b"a").unwrap();
    assert_eq!(
        short.ciphertext.len(),
        sealed(&[b'x'; 62]).unwrap().ciphertext.len()
    );
    assert_ne!(
        short.ciphertext.len(),
        sealed(&[b'x'; 63]).unwrap().ciphertext.len()
    );
    let longest = vec![b'x'; MAX_SECRET];
    let record = sealed(&longest).unwrap();
    assert_eq!(
        open(&ring, &binding(&id), &record).unwrap().as_slice(),
        longest
    );
    assert_eq!(sealed(&vec![b'x'; MAX_SECRET + 1]), Err(SealError::Length));
    assert_eq!(sealed(b""), Err(SealError::Length));
}

#[test]
fn a_ring_survives_its_file_and_the_newest_is_offered() {
    let (mut ring, mut rng) = ring();
    let id = account();
    let old = seal(ring.newest().unwrap(), &binding(&id), SECRET, &mut rng).unwrap();
    let newest = ring.add(2, &mut rng).unwrap();
    let read = KeyRing::from_text(&ring.to_text()).unwrap();
    assert_eq!(read.newest(), Some(&newest));
    assert_eq!(read.public_keys().count(), 2);
    assert_eq!(open(&read, &binding(&id), &old).unwrap().as_slice(), SECRET);
    assert_eq!(
        PublicKey::from_record(&newest.to_record()),
        Ok(newest.clone())
    );
    let mut swapped = newest.to_record();
    swapped.key_id = old.key_id;
    assert!(matches!(
        PublicKey::from_record(&swapped),
        Err(SealError::BadKey(_))
    ));
}

#[test]
fn a_damaged_ring_names_its_line_and_nothing_else() {
    let (ring, _) = ring();
    let text = ring.to_text();
    assert_eq!(KeyRing::from_text("").unwrap_err(), SealError::BadRing(1));
    for wrong in [
        text.replace(" 1 ", " x "),
        text.trim_end().to_owned() + "0",
        text.to_lowercase()
            .replacen(ring.newest().unwrap().id(), "00", 1),
        format!("{}\nmore", text.trim_end()).replace("more", "more of it"),
    ] {
        assert!(matches!(
            KeyRing::from_text(&wrong),
            Err(SealError::BadRing(2 | 3))
        ));
    }
}

#[test]
fn no_secret_in_debug() {
    let (ring, _) = ring();
    let text = ring.to_text();
    let secret = text.split_ascii_whitespace().last().unwrap();
    assert_eq!(secret.len(), 64);
    let id = account();
    let shown = format!("{ring:?} {:?}", binding(&id));
    assert!(shown.contains(ring.newest().unwrap().id()));
    assert!(!shown.contains(secret) && !shown.contains("mail.example") && !shown.contains("alice"));
}
