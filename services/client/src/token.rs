//! Where device tokens come from.

use std::{fmt, future::Future, pin::Pin};

/// A device token. Its `Debug` output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token alone, without "Bearer".
    #[must_use]
    pub fn new(token: impl Into<String>) -> Self {
        let mut token: String = token.into();
        token.truncate(token.trim_end().len());
        Self(token)
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Token {
    fn from(token: &str) -> Self {
        Self::new(token)
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self::new(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// For a passing reason: it is asked for again, with back-off.
    #[error("no token for now: {0}")]
    Retry(String),
    /// There will be none: the client's stream ends.
    #[error("no token: {0}")]
    Never(String),
}

/// The answer to a request for a token, once it is there.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Token, TokenError>> + Send>>;

/// A token, or whoever is asked for one: before the first connection, when one was refused, and before one expires.
pub(crate) enum TokenSource {
    Fixed(Token),
    Asked(Box<dyn Fn() -> Answer + Send + Sync>),
}

impl TokenSource {
    pub(crate) fn asked<F, A>(source: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<Token, TokenError>> + Send + 'static,
    {
        Self::Asked(Box::new(move || Box::pin(source())))
    }

    pub(crate) fn is_fixed(&self) -> bool {
        matches!(self, Self::Fixed(_))
    }

    pub(crate) fn ask(&self) -> Answer {
        match self {
            Self::Fixed(token) => {
                let token = token.clone();
                Box::pin(async move { Ok(token) })
            }
            Self::Asked(source) => source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        let token = Token::from("secret\n");
        assert_eq!(token.reveal(), "secret");
        assert!(!format!("{token:?}").contains("secret"));
    }
}
