//! Text in the charsets of mail.

use encoding_rs::{EUC_KR, Encoding, GBK, WINDOWS_1252};
use mail_parser::decoders::charsets::map::charset_decoder;

/// Text in a charset. A character that was cut at the end is dropped.
pub(super) fn decode(bytes: &[u8], charset: Option<&str>) -> String {
    let label = charset.unwrap_or("us-ascii").trim();
    if ["us-ascii", "ascii", "utf-8", "utf8"]
        .iter()
        .any(|known| label.eq_ignore_ascii_case(known))
    {
        match std::str::from_utf8(bytes) {
            Ok(text) => return text.to_owned(),
            Err(error) => {
                let (valid, rest) = bytes
                    .split_at_checked(error.valid_up_to())
                    .unwrap_or((bytes, &[]));
                if error.error_len().is_none() {
                    return String::from_utf8_lossy(valid).into_owned();
                }
                // Who says ASCII or nothing, and sends eight bits, most often means this.
                if charset.is_none_or(|label| !label.to_ascii_lowercase().starts_with("utf")) {
                    return WINDOWS_1252
                        .decode_without_bom_handling(bytes)
                        .0
                        .into_owned();
                }
                return String::from_utf8_lossy(valid).into_owned()
                    + &String::from_utf8_lossy(rest);
            }
        }
    }
    let text = if let Some(shifted) = Shifted::of(label) {
        shifted.decode(bytes)
    } else if let Some(encoding) = Encoding::for_label_no_replacement(label.as_bytes()) {
        // A byte order mark knows better than a label.
        encoding.decode(bytes).0.into_owned()
    } else {
        // UTF-7 and the rarer ones.
        match charset_decoder(label.as_bytes()) {
            Some(decoder) => decoder(bytes),
            None => String::from_utf8_lossy(bytes).into_owned(),
        }
    };
    text.trim_end_matches(char::REPLACEMENT_CHARACTER)
        .to_owned()
}

/// Seven-bit charsets of old mailers, which browsers read no more, and so neither do the decoders made for them: all
/// of such a text becomes one replacement character there.
#[derive(Clone, Copy)]
pub(super) struct Shifted {
    /// What it is once the shifted bytes have their eighth bit.
    encoding: &'static Encoding,
    /// Shifts are `~{` and `~}`, rather than the control characters SO and SI.
    tilde: bool,
}

impl Shifted {
    pub(super) fn of(label: &str) -> Option<Self> {
        let (encoding, tilde) = match label.to_ascii_lowercase().as_str() {
            "iso-2022-kr" | "csiso2022kr" => (EUC_KR, false),
            // Of its characters, those of the mainland.
            "iso-2022-cn" | "iso-2022-cn-ext" => (GBK, false),
            "hz-gb-2312" => (GBK, true),
            _ => return None,
        };
        Some(Self { encoding, tilde })
    }

    pub(super) fn decode(self, bytes: &[u8]) -> String {
        let mut plain = Vec::with_capacity(bytes.len());
        let (mut high, mut rest) = (false, bytes);
        while let Some((first, behind)) = rest.split_first() {
            rest = behind;
            match (self.tilde, first, behind) {
                (true, b'~', [b'{', tail @ ..]) => (high, rest) = (true, tail),
                (true, b'~', [b'}', tail @ ..]) => (high, rest) = (false, tail),
                (true, b'~', [b'\r', b'\n', tail @ ..] | [b'\n', tail @ ..]) => rest = tail,
                (true, b'~', [b'~', tail @ ..]) if !high => {
                    plain.push(b'~');
                    rest = tail;
                }
                (false, 0x0e, _) => high = true,
                (false, 0x0f, _) => high = false,
                // Which characters a shift leads to.
                (false, 0x1b, [b'$', b')' | b'*' | b'+', _, tail @ ..]) => rest = tail,
                (_, b'\n', _) => {
                    plain.push(b'\n');
                    high = false;
                }
                (_, 0x21..=0x7e, _) if high => plain.push(first | 0x80),
                _ => plain.push(*first),
            }
        }
        self.encoding
            .decode_without_bom_handling(&plain)
            .0
            .into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_browsers_refuse() {
        for (label, bytes, text) in [
            ("iso-2022-kr", &b"\x1b$)Cplain"[..], "plain"),
            (
                "ISO-2022-KR",
                b"\x1b$)C\x0eGQ1[\x0f ok\r\nnext",
                "한글 ok\r\nnext",
            ),
            ("hz-gb-2312", b"~{<:Ky2;S{~} ~~ ~\nok", "己所不欲 ~ ok"),
            ("iso-2022-cn", b"\x1b$)A\x0eDc:C\x0f!", "你好!"),
            // Cut within a character.
            ("iso-2022-kr", b"\x0eGQ1", "한"),
        ] {
            assert_eq!(decode(bytes, Some(label)), text, "{label}");
        }
    }

    #[test]
    fn a_byte_order_mark_goes_before_the_label() {
        for (label, bytes) in [
            ("utf-16", &b"\xfe\xff\0h\0i"[..]),
            ("utf-16", b"\xff\xfeh\0i\0"),
            ("utf-16le", b"h\0i\0"),
            ("utf-16be", b"\0h\0i"),
            ("iso-8859-1", b"\xef\xbb\xbfhi"),
        ] {
            assert_eq!(decode(bytes, Some(label)), "hi", "{label} {bytes:?}");
        }
    }
}
