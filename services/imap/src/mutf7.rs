//! Folder names in IMAP's modified UTF-7 (RFC 3501, 5.1.3).

use base64::Engine as _;
use base64::alphabet::IMAP_MUTF7;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &IMAP_MUTF7,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The name as it goes over the wire.
pub(crate) fn encode(name: &str) -> String {
    let mut wire = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        if matches!(first, ' '..='~') {
            wire.push(first);
            if first == '&' {
                wire.push('-');
            }
            rest = rest.get(1..).unwrap_or_default();
            continue;
        }
        let run = rest.find(|c| matches!(c, ' '..='~')).unwrap_or(rest.len());
        let (foreign, behind) = rest.split_at_checked(run).unwrap_or((rest, ""));
        let units = foreign
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect::<Vec<_>>();
        wire.push('&');
        ENGINE.encode_string(units, &mut wire);
        wire.push('-');
        rest = behind;
    }
    wire
}

/// The name as people know it. What isn't valid is kept as it is, so that such a folder can still be named:
/// `None` when encoding the result would not give the same bytes again.
pub(crate) fn decode(wire: &[u8]) -> Option<String> {
    // Servers with UTF8=ACCEPT in mind, or none, send UTF-8.
    let text = std::str::from_utf8(wire).ok()?;
    let mut name = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        let (before, from) = rest.split_at_checked(at)?;
        name.push_str(before);
        let (shifted, behind) = from.get(1..)?.split_once('-')?;
        if shifted.is_empty() {
            name.push('&');
        } else {
            let bytes = ENGINE.decode(shifted).ok()?;
            let units = bytes.chunks(2).map(|pair| match pair {
                [high, low] => Some(u16::from_be_bytes([*high, *low])),
                _ => None,
            });
            name.push_str(&String::from_utf16(&units.collect::<Option<Vec<_>>>()?).ok()?);
        }
        rest = behind;
    }
    name.push_str(rest);
    Some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples_of_the_rfc() {
        for (name, wire) in [
            ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),
            ("Entwürfe", "Entw&APw-rfe"),
            ("a & b", "a &- b"),
            ("☺!", "&Jjo-!"),
            ("😀", "&2D3eAA-"),
        ] {
            assert_eq!(encode(name), wire);
            assert_eq!(decode(wire.as_bytes()).as_deref(), Some(name));
        }
        for bad in [&b"&"[..], b"&U,BT", b"&AA-", b"&2D0-", b"&A-", b"\xff"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in "\\PC*") {
            prop_assert_eq!(decode(encode(&name).as_bytes()), Some(name));
        }

        #[test]
        fn decoding_never_panics(wire in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&wire);
        }
    }
}
