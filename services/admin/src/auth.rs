//! Who may call: a bearer token whose SHA-256 is known here. The token itself is kept nowhere.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use prometheus_client::metrics::counter::Counter;
use rand::CryptoRng;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::{Request, Status, metadata::MetadataMap, service::Interceptor};
use zeroize::Zeroizing;

use crate::Error;

/// What every admin token begins with, so that a person and a secret scanner know one.
pub const TOKEN_PREFIX: &str = "mba_";
/// Wrong tokens that are answered at once, and how soon one more is: a token has 256 bits, so this is no defence against guessing
/// but keeps a misconfigured caller's loop out of the log and the CPU.
const FAILURES: u32 = 20;
const FAILURE_EVERY: Duration = Duration::from_secs(1);
/// The longest header that is looked at.
const MAX_HEADER: usize = 512;
/// What follows the prefix: at least this many characters, of which so many differ. 32 random ones of base64 are 192 bits; what a
/// person makes up has less of both.
const LEAST: usize = 32;
const LEAST_DIFFERENT: usize = 12;
/// With `Bearer ` before it, it stays below [`MAX_HEADER`].
const MOST: usize = 256;

/// The SHA-256 of an admin token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

impl TokenHash {
    /// Of this token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.trim().as_bytes()).into())
    }

    /// Of this token, if it looks like one that cannot be guessed.
    ///
    /// # Errors
    /// [`Error::Setup`], which says what a token is, and nothing of this one.
    pub fn parse(token: &str) -> Result<Self, Error> {
        let token = token.trim();
        let rest = token.strip_prefix(TOKEN_PREFIX).unwrap_or_default();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
        let different: HashSet<u8> = rest.bytes().collect();
        let good = (LEAST..=MOST).contains(&rest.len())
            && rest.bytes().all(allowed)
            && different.len() >= LEAST_DIFFERENT;
        match good {
            true => Ok(Self::of(token)),
            false => Err(Error::Setup(format!(
                "an admin token is `{TOKEN_PREFIX}` and at least {LEAST} random characters of A-Z, a-z, 0-9, +, /, -, _ and =; \
                 `echo {TOKEN_PREFIX}$(openssl rand -base64 32)` makes one"
            ))),
        }
    }

    /// Compares every byte whatever the others are.
    fn equals(&self, other: &Self) -> bool {
        let differing = self
            .0
            .iter()
            .zip(&other.0)
            .fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(differing) == 0
    }

    fn is_in(&self, tokens: &[Self]) -> bool {
        let all = tokens.iter();
        all.fold(false, |found, token| found | token.equals(self))
    }
}

/// Makes an admin token.
#[must_use]
pub fn new_token(rng: &mut impl CryptoRng) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    rng.fill_bytes(bytes.as_mut_slice());
    let mut token = Zeroizing::new(String::with_capacity(64));
    token.push_str(TOKEN_PREFIX);
    BASE64_URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut token);
    token
}

/// Whose token a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Whoever holds an admin token: a person, or an app's back end.
    Admin,
    /// The operator, who keeps accounts as they are declared elsewhere.
    Operator,
}

impl Caller {
    /// Of a call that the [`Authenticator`] has let through.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        // Whoever is not known to be the operator is not.
        let known = request.extensions().get::<Self>();
        known.copied().unwrap_or(Self::Admin)
    }
}

/// Every token that lets somebody in. They can be replaced while calls are made, by whoever has a clone.
#[derive(Debug, Clone, Default)]
pub struct Callers(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    admins: Vec<TokenHash>,
    operators: Vec<TokenHash>,
}

impl Callers {
    /// The admin tokens, from the next call on; whether they are others than before.
    pub fn set_admins(&self, tokens: Vec<TokenHash>) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        replace(&mut known.admins, tokens)
    }

    /// As [`Callers::set_admins`], of the operator. With several one can be replaced by another without a gap.
    pub fn set_operators(&self, tokens: Vec<TokenHash>) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        replace(&mut known.operators, tokens)
    }

    fn find(&self, given: &TokenHash) -> Option<Caller> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // All of them, also after one fits.
        let (admin, operator) = (given.is_in(&known.admins), given.is_in(&known.operators));
        match (admin, operator) {
            (true, _) => Some(Caller::Admin),
            (false, true) => Some(Caller::Operator),
            (false, false) => None,
        }
    }
}

fn replace(before: &mut Vec<TokenHash>, now: Vec<TokenHash>) -> bool {
    let differs = *before != now;
    *before = now;
    differs
}

/// Lets calls with a good token through. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Authenticator {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    callers: Callers,
    failures: Mutex<Failures>,
    refused: Counter,
}

#[derive(Debug)]
struct Failures {
    left: u32,
    since: Instant,
}

impl Authenticator {
    pub(crate) fn new(callers: Callers, refused: Counter) -> Self {
        let failures = Mutex::new(Failures {
            left: FAILURES,
            since: Instant::now(),
        });
        Self {
            inner: Arc::new(Inner {
                callers,
                failures,
                refused,
            }),
        }
    }

    fn check(&self, metadata: &MetadataMap) -> Result<Caller, Error> {
        let given = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .filter(|value| value.len() <= MAX_HEADER)
            .and_then(bearer)
            .map(TokenHash::of);
        if let Some(caller) = given.and_then(|given| self.inner.callers.find(&given)) {
            return Ok(caller);
        }
        self.inner.refused.inc();
        let mut failures = self
            .inner
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if failures.allow() {
            Err(Error::Unauthenticated)
        } else {
            Err(Error::TooManyFailures)
        }
    }
}

impl Failures {
    fn allow(&mut self) -> bool {
        let now = Instant::now();
        let earned = now.saturating_duration_since(self.since).as_secs() / FAILURE_EVERY.as_secs();
        if earned > 0 {
            self.since = now;
            self.left = self
                .left
                .saturating_add(u32::try_from(earned).unwrap_or(u32::MAX))
                .min(FAILURES);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl Interceptor for Authenticator {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        match self.check(request.metadata()) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Ok(request)
            }
            Err(error) => Err(error.into_status()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};
    use tonic::Code;

    use super::*;

    fn admins(tokens: &[&str]) -> Callers {
        let callers = Callers::default();
        callers.set_admins(tokens.iter().map(|token| TokenHash::of(token)).collect());
        callers
    }

    fn with(header: Option<&str>) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        if let Some(header) = header {
            metadata.insert("authorization", header.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn only_a_known_token_gets_through() {
        let mut rng = StdRng::seed_from_u64(1);
        let (good, other) = (new_token(&mut rng), new_token(&mut rng));
        assert_ne!(*good, *other);
        assert_eq!(good.len(), TOKEN_PREFIX.len() + 43);
        let refused = Counter::default();
        let auth = Authenticator::new(admins(&[&other, &good]), refused.clone());
        for header in [format!("Bearer {}", *good), format!("bearer {}\t", *other)] {
            assert!(auth.check(&with(Some(&header))).is_ok(), "{header}");
        }
        let wrong = format!("Bearer {}x", *good);
        for header in [
            None,
            Some(""),
            Some("Bearer "),
            Some(good.as_str()),
            Some(&wrong),
        ] {
            let error = auth.check(&with(header)).unwrap_err();
            assert_eq!(error.code(), Code::Unauthenticated, "{header:?}");
        }
        assert_eq!(refused.get(), 5);
        assert!(!format!("{auth:?}").contains(good.as_str()));
    }

    #[tokio::test(start_paused = true)]
    async fn many_wrong_tokens_are_refused_shortly_and_good_ones_still_pass() {
        let auth = Authenticator::new(admins(&["good"]), Counter::default());
        let wrong = || auth.check(&with(Some("Bearer wrong"))).unwrap_err().code();
        for _ in 0..FAILURES {
            assert_eq!(wrong(), Code::Unauthenticated);
        }
        assert_eq!(wrong(), Code::ResourceExhausted);
        assert!(auth.check(&with(Some("Bearer good"))).is_ok());
        tokio::time::advance(FAILURE_EVERY).await;
        assert_eq!(wrong(), Code::Unauthenticated);
        assert_eq!(wrong(), Code::ResourceExhausted);
    }

    #[test]
    fn what_can_be_guessed_is_no_token() {
        let made = new_token(&mut StdRng::seed_from_u64(1));
        assert!(TokenHash::parse(&made).unwrap() == TokenHash::of(&made));
        let openssl = "mba_3q2+7wAAAB/xyzABCDEFGHIJKLMNOPQRSTUVWXYZ012=";
        for good in [openssl, &format!(" {openssl}\r")] {
            assert!(TokenHash::parse(good).is_ok(), "{good}");
        }
        let bare = made.trim_start_matches(TOKEN_PREFIX);
        for bad in [
            "",
            "mba_",
            "secret",
            bare,
            "mba_0123456789abcdef0123456789abcde",
            "mba_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "mba_1234123412341234123412341234123412341234",
            "mba_0123456789abcdef 0123456789abcdef",
            &format!("mba_{}", bare.repeat(6)),
            "# mba_0123456789abcdef0123456789abcdef",
        ] {
            let error = TokenHash::parse(bad).expect_err(bad).to_string();
            assert!(error.contains("openssl"), "{error}");
            assert!(bad.len() < 10 || !error.contains(bad));
        }
    }

    #[test]
    fn no_token_at_all_lets_nobody_in() {
        let auth = Authenticator::new(Callers::default(), Counter::default());
        assert!(auth.check(&with(Some("Bearer x"))).is_err());
    }

    #[test]
    fn the_operator_is_told_from_an_admin_and_tokens_can_be_replaced() {
        let callers = admins(&["admin", "both"]);
        callers.set_operators(vec![TokenHash::of("operator"), TokenHash::of("both")]);
        let auth = Authenticator::new(callers.clone(), Counter::default());
        let who = |token: &str| auth.check(&with(Some(&format!("Bearer {token}")))).ok();
        assert_eq!(who("admin"), Some(Caller::Admin));
        assert_eq!(who("operator"), Some(Caller::Operator));
        assert_eq!(who("both"), Some(Caller::Admin));
        assert!(!callers.set_admins(vec![TokenHash::of("admin"), TokenHash::of("both")]));
        assert!(callers.set_operators(vec![TokenHash::of("next")]));
        assert_eq!(who("operator"), None);
        assert_eq!(who("next"), Some(Caller::Operator));
        // What nobody has marked is an admin's, who may change less.
        assert_eq!(Caller::of(&Request::new(())), Caller::Admin);
    }
}
