//! Cuts a byte stream into complete responses, with bounds.

use super::GuardError;

/// Most bytes of a response outside of its literals. The longest honest ones are BODYSTRUCTUREs of messages with
/// hundreds of parts.
pub(crate) const LINE_LIMIT: usize = 64 << 10;

/// How much of a line is kept while its response is discarded: enough for the literal that it may announce.
const TAIL: usize = 64;

/// Collects one response: a line, or lines joined by literals.
///
/// A FETCH response that is too long is not collected but discarded up to its end, if the caller allows for it: it is
/// about one message, and the others must not suffer. Where it ends is told as for any other, so what comes behind it
/// is never mistaken.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    /// The response so far; while it is discarded, the last bytes of its current line.
    bytes: Vec<u8>,
    /// Where the current line begins.
    line: usize,
    /// Bytes of all literals so far.
    literals: usize,
    /// Bytes of the response so far, kept or not.
    size: usize,
    /// Bytes that the current literal still lacks.
    literal: u32,
    discarding: bool,
}

impl Framer {
    /// Takes bytes up to the end of a response; how many, and whether it is complete. A FETCH response with a line or
    /// literals beyond their bounds is discarded as long as it has no more than `discard` bytes.
    pub(crate) fn push(
        &mut self,
        input: &[u8],
        literal_limit: usize,
        discard: usize,
    ) -> Result<(usize, bool), GuardError> {
        let mut taken = 0;
        while let Some(rest) = input.get(taken..).filter(|rest| !rest.is_empty()) {
            if self.literal > 0 {
                let most = usize::try_from(self.literal).unwrap_or(usize::MAX);
                let part = rest.get(..most).unwrap_or(rest);
                if !self.discarding {
                    self.bytes.extend_from_slice(part);
                    self.line = self.bytes.len();
                }
                self.literal -= u32::try_from(part.len()).unwrap_or(self.literal);
                self.size = self.size.saturating_add(part.len());
                taken += part.len();
                continue;
            }
            let end = rest.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            self.push_line(part, discard)?;
            taken += part.len();
            if end.is_some() && !self.starts_literal(literal_limit, discard)? {
                return Ok((taken, true));
            }
        }
        Ok((taken, false))
    }

    /// Takes a part of a line.
    fn push_line(&mut self, mut part: &[u8], discard: usize) -> Result<(), GuardError> {
        self.size = self.size.saturating_add(part.len());
        if !self.discarding {
            let room = (LINE_LIMIT + self.literals).saturating_sub(self.bytes.len());
            // As much as fits first, so that it makes no difference in which chunks it came.
            let (fits, rest) = part.split_at_checked(room).unwrap_or((part, &[]));
            self.bytes.extend_from_slice(fits);
            if rest.is_empty() {
                return Ok(());
            }
            self.begin_discarding(GuardError::Line, discard)?;
            part = rest;
        }
        if self.size > discard {
            return Err(GuardError::Answer);
        }
        self.bytes
            .extend_from_slice(part.get(part.len().saturating_sub(TAIL)..).unwrap_or(part));
        self.bytes.drain(..self.bytes.len().saturating_sub(TAIL));
        Ok(())
    }

    /// Goes on without keeping the response, or fails with `error` if it isn't one that may be left out.
    fn begin_discarding(&mut self, error: GuardError, discard: usize) -> Result<(), GuardError> {
        if discard == 0 || !is_fetch(&self.bytes) {
            return Err(error);
        }
        let tail = self.line.max(self.bytes.len().saturating_sub(TAIL));
        self.bytes.drain(..tail.min(self.bytes.len()));
        self.bytes.shrink_to(TAIL);
        self.line = 0;
        self.discarding = true;
        Ok(())
    }

    /// At the end of a line: whether it announces a literal.
    fn starts_literal(&mut self, limit: usize, discard: usize) -> Result<bool, GuardError> {
        let line = self.bytes.get(self.line..).unwrap_or_default();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // The text of a status response may end like a literal and is none.
        if !line.ends_with(b"}") || !(self.discarding || is_data(&self.bytes)) {
            return Ok(false);
        }
        let Some((before, size)) = split_literal(line) else {
            // A number that is longer than what is kept of the line.
            let cut = self.discarding && self.bytes.len() >= TAIL;
            return match line.first() {
                Some(first) if cut && first.is_ascii_digit() => Err(GuardError::Framing),
                _ => Ok(false),
            };
        };
        let before = before.strip_suffix(b"~").unwrap_or(before);
        if !matches!(before.last(), Some(b' ' | b'(')) {
            // Where the parser would see no literal, its bytes would be read as responses, and they are mail.
            return Err(GuardError::Framing);
        }
        let size = size.ok_or(GuardError::Literal)?;
        self.literal = u32::try_from(size).map_err(|_| GuardError::Literal)?;
        self.literals = self.literals.saturating_add(size);
        if self.literals > limit && !self.discarding {
            self.begin_discarding(GuardError::Literal, discard)?;
        }
        if self.discarding {
            // Not begun when it is known not to end in time.
            if self.size.saturating_add(size) > discard {
                return Err(GuardError::Literal);
            }
            self.bytes.clear();
        }
        self.line = self.bytes.len();
        Ok(true)
    }

    /// The complete response, or `None` if it was discarded.
    pub(crate) fn response(&self) -> Option<&[u8]> {
        (!self.discarding).then_some(&self.bytes)
    }

    /// Whether the response at hand is too long to be kept.
    pub(crate) fn is_discarding(&self) -> bool {
        self.discarding
    }

    /// Bytes of the response so far, whether they are kept or not.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Bytes in memory.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no part of a response is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.size == 0
    }

    /// Forgets the response. Keeps a small buffer only.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(LINE_LIMIT);
        *self = Self {
            bytes: std::mem::take(&mut self.bytes),
            ..Self::default()
        };
    }

    /// Keeps bytes unframed, to be given back by [`Framer::take`].
    pub(crate) fn hold(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives back what was held, to be framed anew. Not while it is discarded.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes);
        self.clear();
        bytes
    }
}

/// Whether a response is about one message: `* 12 FETCH …`.
fn is_fetch(response: &[u8]) -> bool {
    let Some(rest) = response.strip_prefix(b"* ") else {
        return false;
    };
    let mut words = rest
        .split(|byte| b" (".contains(byte))
        .filter(|word| !word.is_empty());
    words
        .next()
        .is_some_and(|word| word.iter().all(u8::is_ascii_digit))
        && words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case(b"FETCH"))
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
