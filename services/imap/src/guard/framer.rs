//! Cuts a byte stream into complete responses, with bounds.

use super::GuardError;

/// Most bytes of a response outside of its literals. The longest honest ones are BODYSTRUCTUREs of messages with
/// hundreds of parts.
pub(crate) const LINE_LIMIT: usize = 64 << 10;

/// Collects one response: a line, or lines joined by literals.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    bytes: Vec<u8>,
    /// Where the current line begins.
    line: usize,
    /// Bytes that the current literal still lacks.
    literal: usize,
    /// Bytes of all literals so far.
    literals: usize,
}

impl Framer {
    /// Takes bytes up to the end of a response; how many, and whether it is complete.
    pub(crate) fn push(
        &mut self,
        input: &[u8],
        literal_limit: usize,
    ) -> Result<(usize, bool), GuardError> {
        let mut taken = 0;
        while let Some(rest) = input.get(taken..).filter(|rest| !rest.is_empty()) {
            if self.literal > 0 {
                let count = rest.len().min(self.literal);
                self.bytes
                    .extend_from_slice(rest.get(..count).unwrap_or_default());
                self.literal -= count;
                taken += count;
                if self.literal == 0 {
                    self.line = self.bytes.len();
                }
                continue;
            }
            let end = rest.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            if self.bytes.len() + part.len() > LINE_LIMIT + self.literals {
                return Err(GuardError::Line);
            }
            self.bytes.extend_from_slice(part);
            taken += part.len();
            if end.is_some() && !self.starts_literal(literal_limit)? {
                return Ok((taken, true));
            }
        }
        Ok((taken, false))
    }

    /// At the end of a line: whether it announces a literal.
    fn starts_literal(&mut self, limit: usize) -> Result<bool, GuardError> {
        let line = self.bytes.get(self.line..).unwrap_or_default();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // The text of a status response may end like a literal and is none.
        if !line.ends_with(b"}") || !is_data(&self.bytes) {
            return Ok(false);
        }
        let Some((before, size)) = split_literal(line) else {
            return Ok(false);
        };
        let before = before.strip_suffix(b"~").unwrap_or(before);
        if !matches!(before.last(), Some(b' ' | b'(')) {
            // Where the parser would see no literal, its bytes would be read as responses, and they are mail.
            return Err(GuardError::Framing);
        }
        let size = size.ok_or(GuardError::Literal)?;
        self.literals = self.literals.saturating_add(size);
        if self.literals > limit {
            return Err(GuardError::Literal);
        }
        self.literal = size;
        self.line = self.bytes.len();
        Ok(true)
    }

    /// The complete response.
    pub(crate) fn response(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether no part of a response is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets the response. Keeps a small buffer only.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(LINE_LIMIT);
        self.line = 0;
        self.literal = 0;
        self.literals = 0;
    }

    /// Keeps bytes unframed, to be given back by [`Framer::take`].
    pub(crate) fn hold(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives back what was held, to be framed anew.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes);
        self.clear();
        bytes
    }
}

/// Whether a response is data, in which literals may stand, rather than text.
fn is_data(response: &[u8]) -> bool {
    let Some(rest) = response.strip_prefix(b"* ") else {
        return false;
    };
    let word = rest
        .split(|byte| byte.is_ascii_whitespace())
        .next()
        .unwrap_or_default();
    ![&b"OK"[..], b"NO", b"BAD", b"BYE", b"PREAUTH"]
        .iter()
        .any(|status| word.eq_ignore_ascii_case(status))
}

/// Splits `…{12}` (or `{12+}`) into what is before it and the number, which is `None` when it is beyond all bounds.
pub(super) fn split_literal(line: &[u8]) -> Option<(&[u8], Option<usize>)> {
    let inner = line.strip_suffix(b"}")?;
    let inner = inner.strip_suffix(b"+").unwrap_or(inner);
    let digits = inner
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (before, digits) = inner.split_at_checked(inner.len() - digits)?;
    let before = before.strip_suffix(b"{")?;
    if digits.is_empty() {
        return None;
    }
    // u32 is what the parser can read.
    let size = std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse::<u32>().ok());
    Some((before, size.and_then(|size| usize::try_from(size).ok())))
}
