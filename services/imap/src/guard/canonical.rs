//! Writes a response anew in the one form that the parser is known to read.
//!
//! The parser and whoever checks its input must agree on where strings begin and end, or the check can be cheated (a
//! lone quote in an item that the parser skips its own way hides a thousand parentheses behind it). Therefore nothing
//! is passed on as it came: strings at the top of a FETCH, and names, become literals; strings inside of a
//! BODYSTRUCTURE lose every character that means something; words are checked for their kind.

use std::io::Write as _;

use super::token::{Token, Tokens};

/// Deepest nesting of a BODYSTRUCTURE that is passed on. A message forwarded as an attachment ten times has 30.
const DEPTH_LIMIT: usize = 40;
/// Longest string inside of a BODYSTRUCTURE that is passed on: content types and charsets, not file names.
const STRUCTURE_STRING_LIMIT: usize = 128;
/// Longest part number, as in `1.2.3`.
const SECTION_LIMIT: usize = 64;

/// What becomes of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stands rewritten in the output.
    Keep,
    /// Nobody here needs it.
    Ignore,
    /// It is of a kind that is needed, and can't be read.
    Unreadable,
}

/// Rewrites one complete response to `out`.
pub(super) fn rewrite(response: &[u8], out: &mut Vec<u8>) -> Fate {
    out.clear();
    let line_end = response
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(response.len());
    let line = response.get(..line_end).unwrap_or_default();
    let Some(data) = response.strip_prefix(b"* ") else {
        return text_line(line, out);
    };
    let word = data
        .split(|byte| byte.is_ascii_whitespace())
        .next()
        .unwrap_or_default();
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    if ["OK", "NO", "BAD", "BYE", "PREAUTH"].into_iter().any(is) {
        return text_line(line, out);
    }
    let mut tokens = Tokens::new(data.get(word.len()..).unwrap_or_default());
    let done = if is("CAPABILITY") {
        capability(&mut tokens, out)
    } else if is("LIST") {
        list(&mut tokens, out)
    } else if let Some(number) = number(word, u64::from(u32::MAX)) {
        let Some(Token::Word(kind)) = tokens.next() else {
            return Fate::Ignore;
        };
        let kind = kind.to_ascii_uppercase();
        match kind.as_slice() {
            b"EXISTS" | b"RECENT" | b"EXPUNGE" => {
                let _ = write!(out, "* {number} ");
                out.extend_from_slice(&kind);
                out.extend_from_slice(b"\r\n");
                Some(())
            }
            b"FETCH" => fetch(number, &mut tokens, out),
            _ => return Fate::Ignore,
        }
    } else {
        return Fate::Ignore;
    };
    match done {
        Some(()) => Fate::Keep,
        None => {
            out.clear();
            Fate::Unreadable
        }
    }
}

/// Status responses, tagged ones and continuations: text in which any byte may stand. The parser slices it behind
/// `]`, which panics where a character has more than one byte.
fn text_line(line: &[u8], out: &mut Vec<u8>) -> Fate {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Fate::Ignore;
    }
    out.extend(line.iter().map(|byte| {
        if matches!(byte, 0x20..0x7f) {
            *byte
        } else {
            b'?'
        }
    }));
    out.extend_from_slice(b"\r\n");
    Fate::Keep
}

fn number(word: &[u8], most: u64) -> Option<u64> {
    if word.is_empty() || word.len() > 20 || !word.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(word)
        .ok()?
        .parse()
        .ok()
        .filter(|number| *number <= most)
}

fn is_atom(word: &[u8]) -> bool {
    !word.is_empty()
        && word.len() <= 256
        && word
            .iter()
            .all(|b| b.is_ascii_graphic() && !b"(){%*\"\\]".contains(b))
}

fn capability(tokens: &mut Tokens<'_>, out: &mut Vec<u8>) -> Option<()> {
    // The parser refuses a list without the revision it knows; revision 2 includes all that is used here.
    out.extend_from_slice(b"* CAPABILITY IMAP4rev1");
    while let Some(token) = tokens.next() {
        if let Token::Word(word) = token
            && is_atom(word)
        {
            out.push(b' ');
            out.extend_from_slice(word);
        }
    }
    out.extend_from_slice(b"\r\n");
    Some(())
}

fn literal(text: &[u8], out: &mut Vec<u8>) {
    let _ = write!(out, "{{{}}}\r\n", text.len());
    out.extend_from_slice(text);
}

fn list(tokens: &mut Tokens<'_>, out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(b"* LIST (");
    attributes(tokens, out, |word| {
        word.strip_prefix(b"\\").is_some_and(is_atom)
    })?;
    match tokens.next()? {
        // One character, quoted; the parser keeps the escape.
        Token::Text(text) if matches!(*text, [0x20..0x7f]) => {
            let escape = if matches!(*text, [b'"' | b'\\']) {
                "\\"
            } else {
                ""
            };
            let _ = write!(out, " \"{escape}{}\" ", char::from(*text.first()?));
        }
        Token::Word(_) | Token::Text(_) => out.extend_from_slice(b" NIL "),
        Token::Open | Token::Close => return None,
    }
    literal(&tokens.next()?.into_bytes()?, out);
    out.extend_from_slice(b"\r\n");
    Some(())
}

/// A list of words in parentheses; only those that pass are kept.
fn attributes(
    tokens: &mut Tokens<'_>,
    out: &mut Vec<u8>,
    pass: impl Fn(&[u8]) -> bool,
) -> Option<()> {
    if tokens.next()? != Token::Open {
        return None;
    }
    let mut first = true;
    loop {
        match tokens.next()? {
            Token::Close => break,
            Token::Word(word) if pass(word) => {
                if !first {
                    out.push(b' ');
                }
                first = false;
                out.extend_from_slice(word);
            }
            Token::Word(_) | Token::Text(_) => {}
            Token::Open => return None,
        }
    }
    out.push(b')');
    Some(())
}

fn fetch(sequence: u64, tokens: &mut Tokens<'_>, out: &mut Vec<u8>) -> Option<()> {
    let _ = write!(out, "* {sequence} FETCH (");
    if tokens.next()? != Token::Open {
        return None;
    }
    let start = out.len();
    loop {
        let mut ahead = tokens.clone();
        if ahead.next()? == Token::Close {
            break;
        }
        let name = tokens.item_name()?.to_ascii_uppercase();
        // An item that isn't of its kind is left out, if it can be told where it ends.
        let before = out.len();
        let mut reader = tokens.clone();
        if out.len() > start {
            out.push(b' ');
        }
        if item(&name, &mut reader, out).is_some() {
            *tokens = reader;
        } else {
            out.truncate(before);
            if !tokens.skip_value() {
                return None;
            }
        }
    }
    if out.len() == start {
        // The parser wants an item; this one says nothing.
        out.extend_from_slice(b"X-NONE NIL");
    }
    out.extend_from_slice(b")\r\n");
    Some(())
}

/// Writes one FETCH item with its value, or `None` when it isn't one that is used here.
fn item(name: &[u8], tokens: &mut Tokens<'_>, out: &mut Vec<u8>) -> Option<()> {
    match name {
        b"UID" | b"RFC822.SIZE" => digits(name, tokens, u64::from(u32::MAX), out),
        b"X-GM-MSGID" | b"X-GM-THRID" => digits(name, tokens, u64::MAX, out),
        b"FLAGS" => {
            out.extend_from_slice(b"FLAGS (");
            attributes(tokens, out, |word| {
                is_atom(word.strip_prefix(b"\\").unwrap_or(word))
            })
        }
        b"MODSEQ" | b"EMAILID" | b"THREADID" => {
            if tokens.next()? != Token::Open {
                return None;
            }
            let value = tokens.next()?.into_bytes()?;
            let good = if name == b"MODSEQ" {
                number(&value, u64::MAX).is_some()
            } else {
                is_atom(&value)
            };
            if tokens.next()? != Token::Close || !good {
                return None;
            }
            out.extend_from_slice(name);
            out.extend_from_slice(b" (");
            out.extend_from_slice(&value);
            out.push(b')');
            Some(())
        }
        b"INTERNALDATE" => {
            // NIL here panics the parser.
            let Token::Text(text) = tokens.next()? else {
                return None;
            };
            out.extend_from_slice(b"INTERNALDATE ");
            inert_string(&text, out);
            Some(())
        }
        b"BODYSTRUCTURE" => {
            out.extend_from_slice(b"BODYSTRUCTURE ");
            structure(tokens, out)
        }
        _ => section(name, tokens, out),
    }
}

fn digits(name: &[u8], tokens: &mut Tokens<'_>, most: u64, out: &mut Vec<u8>) -> Option<()> {
    let Token::Word(word) = tokens.next()? else {
        return None;
    };
    let value = number(word, most)?;
    out.extend_from_slice(name);
    let _ = write!(out, " {value}");
    Some(())
}

/// `BODY[1.2]<0>`, `BODY[TEXT]<0>`, `BODY[HEADER.FIELDS (…)]<0>` with a string or NIL.
fn section(name: &[u8], tokens: &mut Tokens<'_>, out: &mut Vec<u8>) -> Option<()> {
    let rest = name.strip_prefix(b"BODY[")?;
    let end = rest.iter().position(|byte| *byte == b']')?;
    let (section, origin) = rest.split_at_checked(end)?;
    let origin = match origin.get(1..)? {
        b"" => None,
        angle => Some(number(
            angle.strip_prefix(b"<")?.strip_suffix(b">")?,
            u64::from(u32::MAX),
        )?),
    };
    out.extend_from_slice(b"BODY[");
    if section.starts_with(b"HEADER") {
        out.extend_from_slice(b"HEADER");
    } else if section == b"TEXT"
        || (section.len() <= SECTION_LIMIT && section.iter().all(|b| b"0123456789.".contains(b)))
    {
        out.extend_from_slice(section);
    } else {
        return None;
    }
    out.push(b']');
    if let Some(origin) = origin {
        let _ = write!(out, "<{origin}>");
    }
    out.push(b' ');
    match tokens.next()? {
        Token::Text(text) => literal(&text, out),
        Token::Word(word) if word.eq_ignore_ascii_case(b"NIL") => out.extend_from_slice(b"NIL"),
        _ => return None,
    }
    Some(())
}

/// A string without any character that could mean something to any reader.
fn inert_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let kept = text.get(..STRUCTURE_STRING_LIMIT).unwrap_or(text);
    out.extend(kept.iter().map(|b| {
        if matches!(b, 0x20..0x7f) && !b"\"\\(){}".contains(b) {
            *b
        } else {
            b'_'
        }
    }));
    out.push(b'"');
}

/// A BODYSTRUCTURE of bounded depth. Keeps where spaces were: between the parts of a multipart there are none.
fn structure(tokens: &mut Tokens<'_>, out: &mut Vec<u8>) -> Option<()> {
    let mut depth = 0_usize;
    loop {
        let space = tokens.skip_spaces();
        let token = tokens.next()?;
        let opened = out.last() == Some(&b'(');
        if space && depth > 0 && !opened && token != Token::Close {
            out.push(b' ');
        }
        match token {
            Token::Open => {
                depth += 1;
                if depth > DEPTH_LIMIT {
                    return None;
                }
                out.push(b'(');
            }
            Token::Close => {
                depth = depth.checked_sub(1)?;
                out.push(b')');
                if depth == 0 {
                    return Some(());
                }
            }
            Token::Text(text) if depth > 0 => inert_string(&text, out),
            Token::Word(word) if depth > 0 => {
                if word.eq_ignore_ascii_case(b"NIL") || number(word, u64::from(u32::MAX)).is_some()
                {
                    out.extend_from_slice(word);
                } else {
                    inert_string(word, out);
                }
            }
            Token::Text(_) | Token::Word(_) => return None,
        }
    }
}
