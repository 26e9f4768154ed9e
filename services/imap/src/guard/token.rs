//! Reads the pieces of a complete response: words, strings, parentheses.

use std::borrow::Cow;

use super::framer::split_literal;

/// A piece of a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Open,
    Close,
    /// A quoted string or literal, as the bytes that it stands for.
    Text(Cow<'a, [u8]>),
    /// Anything else up to a space or parenthesis.
    Word(&'a [u8]),
}

impl<'a> Token<'a> {
    /// The bytes of a string or word, which is what IMAP calls an astring.
    pub(super) fn into_bytes(self) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Word(word) => Some(Cow::Borrowed(word)),
            Self::Open | Self::Close => None,
        }
    }
}

/// Where reading stands.
#[derive(Clone, Debug)]
pub(super) struct Tokens<'a> {
    rest: &'a [u8],
}

impl<'a> Tokens<'a> {
    pub(super) fn new(response: &'a [u8]) -> Self {
        Self { rest: response }
    }

    /// Skips spaces and says whether there were any.
    pub(super) fn skip_spaces(&mut self) -> bool {
        let before = self.rest.len();
        self.rest = self.rest.trim_ascii_start();
        self.rest.len() < before
    }

    /// The next piece; `None` at the end and when there is no telling.
    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        self.skip_spaces();
        match self.rest.first()? {
            b'(' => self.single(Token::Open),
            b')' => self.single(Token::Close),
            b'"' => self.quoted(),
            b'{' => self.literal(),
            b'~' if self.rest.get(1) == Some(&b'{') => {
                self.rest = self.rest.get(1..)?;
                self.literal()
            }
            _ => {
                let end = self
                    .rest
                    .iter()
                    .position(|b| b.is_ascii_whitespace() || b"()\"".contains(b));
                self.word(end.unwrap_or(self.rest.len()))
            }
        }
    }

    /// The name of a FETCH item, with the section in brackets that may hold spaces, parentheses and strings.
    pub(super) fn item_name(&mut self) -> Option<&'a [u8]> {
        self.skip_spaces();
        let mut inside = false;
        let end = self.rest.iter().position(|byte| match byte {
            b'[' => {
                inside = true;
                false
            }
            b']' => {
                inside = false;
                false
            }
            b'\r' | b'\n' => true,
            byte => !inside && (byte.is_ascii_whitespace() || b"()\"".contains(byte)),
        })?;
        match self.word(end)? {
            Token::Word(word) if !word.is_empty() && !inside => Some(word),
            _ => None,
        }
    }

    /// Skips one value, whatever it is; `false` when its end can't be told.
    pub(super) fn skip_value(&mut self) -> bool {
        let mut depth = 0_usize;
        loop {
            match self.next() {
                Some(Token::Open) => depth += 1,
                Some(Token::Close) if depth == 0 => return false,
                Some(Token::Close) => depth -= 1,
                Some(_) => {}
                None => return false,
            }
            if depth == 0 {
                return true;
            }
        }
    }

    fn single(&mut self, token: Token<'a>) -> Option<Token<'a>> {
        self.rest = self.rest.get(1..)?;
        Some(token)
    }

    fn word(&mut self, end: usize) -> Option<Token<'a>> {
        let (word, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(Token::Word(word))
    }

    fn quoted(&mut self) -> Option<Token<'a>> {
        let body = self.rest.get(1..)?;
        let mut escaped = false;
        let mut escapes = false;
        let end = body.iter().position(|byte| {
            if escaped {
                escaped = false;
                return false;
            }
            escaped = *byte == b'\\';
            escapes |= escaped;
            matches!(byte, b'"' | b'\r' | b'\n')
        })?;
        let (text, rest) = body.split_at_checked(end)?;
        self.rest = rest.strip_prefix(b"\"")?;
        if !escapes {
            return Some(Token::Text(Cow::Borrowed(text)));
        }
        let mut plain = Vec::with_capacity(text.len());
        let mut bytes = text.iter();
        while let Some(byte) = bytes.next() {
            plain.push(if *byte == b'\\' {
                *bytes.next()?
            } else {
                *byte
            });
        }
        Some(Token::Text(Cow::Owned(plain)))
    }

    fn literal(&mut self) -> Option<Token<'a>> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let line = self.rest.get(..end)?;
        let (before, size) = split_literal(line.strip_suffix(b"\r").unwrap_or(line))?;
        if !before.is_empty() {
            return None;
        }
        let (text, rest) = self.rest.get(end + 1..)?.split_at_checked(size?)?;
        self.rest = rest;
        Some(Token::Text(Cow::Borrowed(text)))
    }
}
