//! A preview from the first bytes of a part, cut anywhere.

use std::borrow::Cow;

use super::charset::decode;
use super::structure::{TextPart, Transfer};
use super::{fold, html};

/// First bytes of a plain text part that are fetched: enough for 256 characters in any encoding.
pub(crate) const PLAIN_BYTES: usize = 2 << 10;
/// First bytes of an HTML part that are fetched: newsletters begin with kilobytes of style sheets.
pub(crate) const HTML_BYTES: usize = 12 << 10;

/// The first characters of a text, from the first bytes of its part.
pub(crate) fn make(part: &TextPart, bytes: &[u8], most_chars: usize) -> String {
    let decoded = match part.transfer {
        Transfer::Identity => Cow::Borrowed(bytes),
        Transfer::Base64 => Cow::Owned(base64(bytes)),
        Transfer::QuotedPrintable => Cow::Owned(quoted_printable(bytes)),
    };
    let text = decode(&decoded, part.charset.as_deref());
    let text = if part.html {
        html::to_text(&text)
    } else {
        text
    };
    // Four bytes are the longest character.
    let line = fold(&text, most_chars.saturating_mul(4));
    let end = line
        .char_indices()
        .nth(most_chars)
        .map_or(line.len(), |(at, _)| at);
    line.get(..end).unwrap_or_default().trim_end().to_owned()
}

/// Base64 with anything between, up to its end or where it is cut.
pub(super) fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in bytes {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => break,
            _ => continue,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            let [_, _, _, byte] = (bits >> count).to_be_bytes();
            decoded.push(byte);
        }
    }
    decoded
}

/// Quoted-printable; what isn't valid stays as it is, a cut escape is dropped.
pub(super) fn quoted_printable(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'=' {
            decoded.push(*first);
            continue;
        }
        match rest {
            [b'\r', b'\n', tail @ ..] | [b'\n', tail @ ..] => rest = tail,
            [high, low, tail @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    rest = tail;
                }
                // Spaces between a soft line break and the line end.
                _ if high.is_ascii_whitespace() => rest = rest.trim_ascii_start(),
                _ => decoded.push(b'='),
            },
            _ => return decoded,
        }
    }
    decoded
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(transfer: Transfer, charset: Option<&str>, html: bool) -> TextPart {
        TextPart {
            section: "1".into(),
            html,
            charset: charset.map(ToOwned::to_owned),
            transfer,
        }
    }

    fn preview(transfer: Transfer, charset: Option<&str>, bytes: &[u8]) -> String {
        make(&part(transfer, charset, false), bytes, 256)
    }

    #[test]
    fn decodes_charsets() {
        use Transfer::Identity;
        assert_eq!(
            preview(Identity, Some("ISO-8859-1"), b"Gr\xfc\xdfe"),
            "Grüße"
        );
        assert_eq!(
            preview(Identity, Some("koi8-r"), b"\xf0\xd2\xc9\xd7\xc5\xd4"),
            "Привет"
        );
        assert_eq!(
            preview(Identity, Some("iso-2022-jp"), b"\x1b$B$3$s$K$A$O\x1b(B"),
            "こんにちは"
        );
        assert_eq!(
            preview(Identity, Some("gb18030"), b"\xc4\xe3\xba\xc3"),
            "你好"
        );
        assert_eq!(preview(Identity, Some("utf-16le"), b"h\0i\0"), "hi");
        assert_eq!(preview(Identity, Some("utf-7"), b"Hi +AOQ-"), "Hi ä");
        assert_eq!(preview(Identity, None, "ä".as_bytes()), "ä");
        assert_eq!(preview(Identity, None, b"Gr\xfc\xdfe"), "Grüße");
        assert_eq!(preview(Identity, Some("no-such"), b"abc"), "abc");
    }

    #[test]
    fn decodes_transfer_encodings_cut_anywhere() {
        let text = "Grüße an 你好 und 😀 weiter im Text";
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        let quoted = text
            .bytes()
            .map(|b| format!("={b:02X}"))
            .collect::<String>();
        for end in 0..encoded.len() {
            let preview = preview(Transfer::Base64, Some("utf-8"), &encoded.as_bytes()[..end]);
            assert!(text.starts_with(&preview), "{preview}");
        }
        for end in 0..quoted.len() {
            let preview = preview(
                Transfer::QuotedPrintable,
                Some("utf-8"),
                &quoted.as_bytes()[..end],
            );
            assert!(text.starts_with(&preview), "{preview}");
        }
        assert_eq!(
            preview(Transfer::QuotedPrintable, None, b"a=\r\nb= \r\nc=3Dd=zz"),
            "abc=d=zz"
        );
        assert_eq!(
            preview(Transfer::Base64, None, b"aGVs\r\nbG8=\r\ntrailing"),
            "hello"
        );
    }

    #[test]
    fn is_cut_to_characters_and_folded() {
        let long = "ä ".repeat(1000);
        assert_eq!(
            preview(Transfer::Identity, Some("utf-8"), long.as_bytes())
                .chars()
                .count(),
            255
        );
        assert_eq!(
            preview(Transfer::Identity, None, b"  a\r\n\t b\x00\x1b[31m  "),
            "a b [31m"
        );
        assert_eq!(
            make(
                &part(Transfer::Identity, None, true),
                b"<p>a</p>\n<p>b</p>",
                256
            ),
            "a b"
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_stays_bounded(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            charset in prop::option::of(prop::sample::select(vec!["utf-8", "utf-7", "utf-16", "iso-2022-jp", "iso-2022-kr", "hz-gb-2312", "big5", "cp437", "x"])),
            transfer in prop::sample::select(vec![Transfer::Identity, Transfer::Base64, Transfer::QuotedPrintable]),
            html in any::<bool>(),
        ) {
            let preview = make(&part(transfer, charset, html), &bytes, 100);
            prop_assert!(preview.chars().count() <= 100);
        }

        #[test]
        fn html_never_panics(html in "(<[a-z/!]{0,6}|>|&[a-z#0-9]{0,9};?|\"|'|--|[a-zé ]{0,5}){0,40}") {
            let _ = html::to_text(&html);
        }

        #[test]
        fn headers_never_panic(header in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::super::headers::read(&header, &mut super::super::Message::default());
        }
    }
}
