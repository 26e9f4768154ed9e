//! Header fields: encoded words, raw UTF-8, addresses, dates.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_parser::{DateTime, HeaderValue, MessageParser};

use super::charset::Shifted;
use super::preview::{base64, quoted_printable};
use super::{
    ADDRESS_LIMIT, Address, FROM_LIMIT, ID_LIMIT, Message, NAME_LIMIT, SUBJECT_LIMIT, TO_LIMIT,
    cut, fold,
};

static PARSER: LazyLock<MessageParser> = LazyLock::new(MessageParser::default);

/// Fills in what the header fields say.
pub(crate) fn read(header: &[u8], message: &mut Message) {
    // Without the empty line at the end a cut header would lose its last field.
    let mut text = reword(&utf8(header)).into_bytes();
    text.extend_from_slice(b"\r\n\r\n");
    let Some(parsed) = PARSER.parse_headers(&text) else {
        return;
    };
    message.from = addresses(parsed.from().or_else(|| parsed.sender()), FROM_LIMIT);
    message.to = addresses(parsed.to(), TO_LIMIT);
    message.subject = fold(parsed.subject().unwrap_or_default(), SUBJECT_LIMIT);
    message.date = parsed.date().and_then(millis);
    message.message_id = parsed.message_id().and_then(id);
    if message.thread.is_none() {
        message.thread = first(parsed.references())
            .or_else(|| first(parsed.in_reply_to()))
            .or_else(|| message.message_id.clone());
    }
}

/// Old mailers send eight-bit text without saying in which charset; what isn't UTF-8 then is most often this.
fn utf8(header: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(header) {
        Ok(text) => Cow::Borrowed(text),
        // Cut in the middle of a character.
        Err(error) if error.error_len().is_none() => String::from_utf8_lossy(header),
        Err(_) => {
            encoding_rs::WINDOWS_1252
                .decode_without_bom_handling(header)
                .0
        }
    }
}

/// Encoded words in charsets that the parser doesn't read, in one that it does.
fn reword(header: &str) -> String {
    let mut text = String::with_capacity(header.len());
    let mut rest = header;
    while let Some((before, behind)) = rest.split_once("=?") {
        text.push_str(before);
        if let Some((decoded, after)) = shifted_word(behind) {
            text.push_str(&format!("=?utf-8?B?{}?=", STANDARD.encode(decoded)));
            rest = after;
        } else {
            text.push_str("=?");
            rest = behind;
        }
    }
    text.push_str(rest);
    text
}

/// The text of the encoded word that begins here, if it is in a shifted charset, and what is behind it.
fn shifted_word(word: &str) -> Option<(String, &str)> {
    let (charset, rest) = word.split_once('?')?;
    let shifted = Shifted::of(charset.split('*').next()?)?;
    let (encoding, rest) = rest.split_once('?')?;
    let (encoded, after) = rest.split_once("?=")?;
    let bytes = match encoding {
        "B" | "b" => base64(encoded.as_bytes()),
        "Q" | "q" => quoted_printable(encoded.replace('_', " ").as_bytes()),
        _ => return None,
    };
    Some((shifted.decode(&bytes), after))
}

fn addresses(list: Option<&mail_parser::Address<'_>>, most: usize) -> Vec<Address> {
    let all = list.into_iter().flat_map(mail_parser::Address::iter);
    all.map(|address| Address {
        name: fold(address.name().unwrap_or_default(), NAME_LIMIT),
        address: fold(address.address().unwrap_or_default(), ADDRESS_LIMIT),
    })
    .filter(|address| !address.name.is_empty() || !address.address.is_empty())
    .take(most)
    .collect()
}

fn millis(date: &DateTime) -> Option<i64> {
    date.is_valid()
        .then(|| date.to_timestamp().checked_mul(1000))
        .flatten()
}

/// The first id of a list.
fn first(value: &HeaderValue<'_>) -> Option<String> {
    match value {
        HeaderValue::Text(text) => id(text),
        HeaderValue::TextList(list) => list.iter().find_map(|text| id(text)),
        _ => None,
    }
}

/// An id without white space and brackets.
pub(crate) fn id(text: &str) -> Option<String> {
    let clean = text
        .chars()
        .filter(|c| !c.is_whitespace() && !c.is_control())
        .collect::<String>();
    let clean = cut(clean.trim_matches(['<', '>']), ID_LIMIT);
    (!clean.is_empty()).then(|| clean.to_owned())
}

/// INTERNALDATE (`17-Jul-1996 02:44:25 -0700`) in milliseconds of Unix time.
pub(crate) fn internal_date(text: &str) -> Option<i64> {
    let mut words = text.split_ascii_whitespace();
    let (date, time, zone) = (
        words.next()?,
        words.next()?,
        words.next().unwrap_or("+0000"),
    );
    let rfc822 = format!("{} {time} {zone}", date.replace('-', " "));
    DateTime::parse_rfc822(&rfc822).as_ref().and_then(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &[u8]) -> Message {
        let mut message = Message::default();
        read(header, &mut message);
        message
    }

    #[test]
    fn reads_names_subjects_and_references() {
        let message = parse(
            b"From: =?iso-8859-1?Q?J=FCrgen?= <j@example.org>\r\nTo: Friends: a@example.org,\r\n \"B, C\" <b@example.org>;\r\n\
              Subject: =?UTF-8?B?w6TDtg==?=\r\n =?UTF-8?B?w7w=?= tail\r\nMessage-ID: <m3@x>\r\n\
              In-Reply-To: <m2@x>\r\nReferences: <m1@x>\r\n <m2@x>\r\nDate: Mon, 1 Jun 2026 12:00:00 +0200\r\n\r\n",
        );
        assert_eq!(
            message.from,
            [Address {
                name: "J\u{fc}rgen".into(),
                address: "j@example.org".into()
            }]
        );
        assert_eq!(message.to.len(), 2);
        assert_eq!(
            message.to[1],
            Address {
                name: "B, C".into(),
                address: "b@example.org".into()
            }
        );
        assert_eq!(message.subject, "\u{e4}\u{f6}\u{fc} tail");
        assert_eq!(message.message_id.as_deref(), Some("m3@x"));
        assert_eq!(message.thread.as_deref(), Some("m1@x"));
        assert_eq!(message.date, Some(1_780_308_000_000));
    }

    #[test]
    fn reads_encoded_words_that_the_parser_does_not() {
        let message = parse(
            b"From: =?iso-2022-kr?B?DkdRMVsP?= <k@example.org>\r\nSubject: =?ISO-2022-KR?Q?plain_text?= and\r\n \
              =?hz-gb-2312?Q?~{<:Ky2;S{~}?= =?utf-16?B?/v8AaABp?= =?x?y\r\n\r\n",
        );
        assert_eq!(message.from[0].name, "한글");
        assert_eq!(message.subject, "plain text and 己所不欲hi =?x?y");
    }

    #[test]
    fn threads_begin_at_the_reply_or_at_itself() {
        let reply = parse(b"In-Reply-To: <m2@x>\r\nMessage-ID: <m3@x>\r\n");
        assert_eq!(reply.thread.as_deref(), Some("m2@x"));
        assert_eq!(
            parse(b"Message-ID: <m3@x>\r\n").thread.as_deref(),
            Some("m3@x")
        );
        assert_eq!(parse(b"Subject: x\r\n").thread, None);
    }

    #[test]
    fn reads_eight_bit_headers() {
        assert_eq!(
            parse("Subject: Grüße 😀\r\n".as_bytes()).subject,
            "Grüße 😀"
        );
        assert_eq!(parse(b"Subject: Gr\xfc\xdfe\r\n").subject, "Grüße");
        // Cut within a character, and without a line end.
        assert_eq!(
            parse(&"Subject: Grü".as_bytes()[..12]).subject,
            "Gr\u{fffd}"
        );
    }

    #[test]
    fn bounds_every_field() {
        let many = (0..100)
            .map(|n| format!("{} <{}@example.org>", "n".repeat(500), n))
            .collect::<Vec<_>>()
            .join(", ");
        let header = format!(
            "From: {many}\r\nTo: {many}\r\nSubject: {}\r\nMessage-ID: <{}>\r\n",
            "ä".repeat(5000),
            "i".repeat(5000)
        );
        let message = parse(header.as_bytes());
        assert_eq!(
            (message.from.len(), message.to.len()),
            (FROM_LIMIT, TO_LIMIT)
        );
        assert!(
            message
                .to
                .iter()
                .all(|address| address.name.len() <= NAME_LIMIT)
        );
        assert_eq!(message.subject.len(), SUBJECT_LIMIT);
        assert_eq!(message.message_id.unwrap().len(), ID_LIMIT);
    }

    #[test]
    fn reads_internal_dates() {
        assert_eq!(
            internal_date("17-Jul-1996 02:44:25 -0700"),
            Some(837_596_665_000)
        );
        assert_eq!(internal_date(" 1-Jan-1970 00:00:01 +0000"), Some(1000));
        for bad in ["", "x", "32-Foo-1996 99:99:99 +0000"] {
            assert_eq!(internal_date(bad), None, "{bad}");
        }
    }
}
