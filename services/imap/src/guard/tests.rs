//! Tests of the guard.

use imap_proto::{AttributeValue, MailboxDatum, Response};
use proptest::prelude::*;

use super::canonical::{Fate, rewrite};
use super::*;

/// All that comes out of a stream, framed and rewritten, and the error that ended it.
type Through = (Vec<(Fate, Vec<u8>)>, Option<GuardError>);

fn through(chunks: &[&[u8]], literals: usize) -> Through {
    discarding(chunks, literals, 0)
}

/// As [`through`], where FETCH responses that are too long are discarded. They are unreadable.
fn discarding(chunks: &[&[u8]], literals: usize, discard: usize) -> Through {
    let mut framer = Framer::default();
    let mut all = Vec::new();
    let mut out = Vec::new();
    for chunk in chunks {
        let mut rest = *chunk;
        while !rest.is_empty() {
            match framer.push(rest, literals, discard) {
                Ok((taken, complete)) => {
                    rest = &rest[taken..];
                    let held = framer.held();
                    assert!(held <= LINE_LIMIT + literals, "{held}");
                    assert!(!framer.is_discarding() || held <= 64, "{held}");
                    if complete {
                        all.push(match framer.response() {
                            Some(response) => (rewrite(response, &mut out), out.clone()),
                            None => (Fate::Unreadable, Vec::new()),
                        });
                        framer.clear();
                    }
                }
                Err(error) => return (all, Some(error)),
            }
        }
    }
    (all, None)
}

fn one(response: &[u8]) -> (Fate, String) {
    let (mut all, error) = through(&[response], 1 << 20);
    assert_eq!(
        (all.len(), error),
        (1, None),
        "{}",
        String::from_utf8_lossy(response)
    );
    let (fate, out) = all.remove(0);
    (fate, String::from_utf8_lossy(&out).into_owned())
}

fn kept(response: &str) -> String {
    let (fate, out) = one(response.as_bytes());
    assert_eq!(fate, Fate::Keep, "{response}");
    out
}

/// The deepest nesting in what the parser gets, strings or not: only what a literal holds is left out.
fn raw_depth(response: &[u8]) -> usize {
    let (mut depth, mut deepest, mut at) = (0_usize, 0, 0);
    while let Some(byte) = response.get(at) {
        at += 1;
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'\n' => {
                if let Some((_, Some(size))) =
                    framer::split_literal(response[..at].trim_ascii_end())
                {
                    at += size;
                }
            }
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[test]
fn status_texts_lose_what_panics_the_parser() {
    assert_eq!(kept("* OK [ALERT]é\r\n"), "* OK [ALERT]??\r\n");
    assert_eq!(
        kept("M1 NO [ALERT]\u{1f600} x\n"),
        "M1 NO [ALERT]???? x\r\n"
    );
    assert_eq!(kept("+ [ALERT]ü\r\n"), "+ [ALERT]??\r\n");
    // Text that ends like a literal is none.
    assert_eq!(kept("* OK see {12}\r\n"), "* OK see {12}\r\n");
    assert_eq!(kept("M1 BAD {99999999}\r\n"), "M1 BAD {99999999}\r\n");
}

#[test]
fn lists_and_capabilities_are_read_leniently() {
    assert_eq!(
        kept(
            "* LIST (\\HasNoChildren foo \\Sent) \"\\\\\" {3}\r\na\"b (\"CHILDINFO\" (\"x\"))\r\n"
        ),
        "* LIST (\\HasNoChildren \\Sent) \"\\\\\" {3}\r\na\"b\r\n"
    );
    assert_eq!(
        kept("* LIST () NIL INBOX\r\n"),
        "* LIST () NIL {5}\r\nINBOX\r\n"
    );
    assert_eq!(
        kept("* CAPABILITY IMAP4rev2 IDLE  \r\n"),
        "* CAPABILITY IMAP4rev1 IMAP4rev2 IDLE\r\n"
    );
    for ignored in [
        "* SEARCH 1 2 3",
        "* STATUS INBOX (MESSAGES 5)",
        "* ID (\"a\" NIL)",
        "* METADATA \"\" (/x y)",
        "* FLAGS (a)",
        "* 5 XFOO",
        "* X {x}",
        "* ",
        "*",
    ] {
        let (fate, _) = one(format!("{ignored}\r\n").as_bytes());
        assert!(fate == Fate::Ignore || ignored == "*", "{ignored}");
    }
    for unreadable in [
        "* 1 FETCH",
        "* 1 FETCH (UID",
        "* 1 FETCH (UID 1",
        "* LIST x",
        "* 1 FETCH (FLAGS (",
    ] {
        assert_eq!(
            one(format!("{unreadable}\r\n").as_bytes()).0,
            Fate::Unreadable,
            "{unreadable}"
        );
    }
}

#[test]
fn fetches_have_one_form() {
    assert_eq!(
        kept(
            "* 2 fetch (uid 7 FLAGS (\\Seen $a) X-FOO (a \"b)\" (c)) RFC822.SIZE 99999999999 INTERNALDATE NIL MODSEQ (5))\r\n"
        ),
        "* 2 FETCH (UID 7 FLAGS (\\Seen $a) MODSEQ (5))\r\n"
    );
    assert_eq!(
        kept(
            "* 2 FETCH (BODY[HEADER.FIELDS (\"FROM\" TO)]<0> \"a\\\"b\" BODY[1.2]<0> NIL UID 1)\r\n"
        ),
        "* 2 FETCH (BODY[HEADER]<0> {3}\r\na\"b BODY[1.2]<0> NIL UID 1)\r\n"
    );
    assert_eq!(
        kept(
            "* 2 FETCH (BODYSTRUCTURE (\"text\" \"plain\" (\"name\" {5}\r\na\"(\r\n) NIL \"x\\\"(y\" 7BIT 12 1))\r\n"
        ),
        "* 2 FETCH (BODYSTRUCTURE (\"text\" \"plain\" (\"name\" \"a____\") NIL \"x__y\" \"7BIT\" 12 1))\r\n"
    );
    assert_eq!(
        kept("* 2 FETCH (X-FOO 1)\r\n"),
        "* 2 FETCH (X-NONE NIL)\r\n"
    );
    assert_eq!(
        kept("* 2 FETCH (EMAILID (M1) THREADID NIL UID 3)\r\n"),
        "* 2 FETCH (EMAILID (M1) UID 3)\r\n"
    );
}

#[test]
fn nesting_is_bounded_in_every_reading() {
    let deep = "(".repeat(4000);
    let closed = deep.clone() + &")".repeat(4000);
    for attack in [
        format!("* 1 FETCH (UID 1 BODYSTRUCTURE {closed})\r\n"),
        // What the parser skips in its own way opens a quote that it doesn't see.
        format!("* 1 FETCH (X (\") BODYSTRUCTURE {deep}\" ) UID 1)\r\n"),
        format!("* 1 FETCH (FLAGS (\") BODYSTRUCTURE {deep}\") UID 1)\r\n"),
        format!("* 1 FETCH (X a\" BODYSTRUCTURE {deep}\" UID 1)\r\n"),
        format!("* 1 FETCH (BODYSTRUCTURE (X \" y) BODYSTRUCTURE {deep}\") UID 1)\r\n"),
        format!(
            "* 1 FETCH (BODYSTRUCTURE (X {{4028}}\r\n ) BODYSTRUCTURE {deep}{:10}) UID 1)\r\n",
            ""
        ),
        format!(
            "* 1 FETCH (X ({{4024}}\r\n) BODYSTRUCTURE {deep}{:8}) UID 1)\r\n",
            ""
        ),
        format!("* 1 FETCH (EMAILID (\"a) BODYSTRUCTURE {deep}\") UID 1)\r\n"),
        format!("* 1 FETCH (INTERNALDATE \"a) BODYSTRUCTURE {deep}\" UID 1)\r\n"),
        format!("* 1 FETCH (BODY[X \" ] BODYSTRUCTURE {deep}\" UID 1)\r\n"),
    ] {
        let (all, error) = through(&[attack.as_bytes()], 1 << 20);
        assert_eq!(error, None);
        for (_, out) in all {
            assert!(raw_depth(&out) <= 42, "{attack:.60}");
            let _ = Response::parse(&out);
        }
    }
    // A message that is deep and honest.
    let text = "(\"text\" \"plain\" NIL NIL NIL \"7bit\" 1 1)";
    let nested = (0..30).fold(text.to_owned(), |inner, _| format!("({inner} \"mixed\")"));
    let out = kept(&format!("* 1 FETCH (BODYSTRUCTURE {nested})\r\n"));
    assert!(
        matches!(Response::parse(out.as_bytes()), Ok((_, Response::Fetch(1, items)))
        if matches!(items[..], [AttributeValue::BodyStructure(_)]))
    );
}

#[test]
fn lines_and_literals_are_bounded_as_they_arrive() {
    let line = [b'x'; LINE_LIMIT + 1];
    assert_eq!(through(&[b"* OK ", &line], 100).1, Some(GuardError::Line));
    assert_eq!(
        through(&[b"* 1 FETCH (BODY[1] {101}\r\n"], 100).1,
        Some(GuardError::Literal)
    );
    assert_eq!(
        through(&[b"* 1 FETCH (BODY[1] {99999999999999999999}\r\n"], 100).1,
        Some(GuardError::Literal)
    );
    assert_eq!(
        through(
            &[
                b"* 1 FETCH (BODY[1] {60}\r\n",
                &line[..60],
                b" BODY[2] {60}\r\n"
            ],
            100
        )
        .1,
        Some(GuardError::Literal)
    );
    // Not where a literal may stand: what follows could be mail, or not.
    assert_eq!(
        through(&[b"* 1 FETCH (BODY[1]x{5}\r\n"], 100).1,
        Some(GuardError::Framing)
    );
    let lines = [&b"* 1 FETCH (BODY[1] {0}\r\n"[..]; LINE_LIMIT / 20];
    let many = lines.concat();
    assert_eq!(
        through(
            &[b"* 1 FETCH (", many.strip_prefix(b"* 1 FETCH (").unwrap()],
            100
        )
        .1,
        Some(GuardError::Line)
    );
}

#[test]
fn a_fetch_that_is_too_long_is_discarded_alone() {
    let parts = "(x) ".repeat(LINE_LIMIT);
    let mail = "x\r\n* BYE\r\n".repeat(100);
    let size = mail.len();
    let behind = "* 3 EXISTS\r\n";
    for long in [
        format!("* 1 FETCH (BODYSTRUCTURE ({parts}) UID 1)\r\n"),
        format!("* 1 fetch (BODY[1] {{{size}}}\r\n{mail} UID 1)\r\n"),
        // A literal behind what is too long, and the other way round.
        format!("* 1 FETCH (BODYSTRUCTURE ({parts} {{{size}}}\r\n{mail} x) UID 1)\r\n"),
        format!("* 1 FETCH (X {{{size}}}\r\n{mail} Y ~{{{size}+}}\r\n{mail} ({parts}))\r\n"),
        format!(
            "* 1 FETCH (X {{60}}\r\n{:60} Y {{60}}\r\n{:60} Z {{0}}\r\n)\r\n",
            "", ""
        ),
    ] {
        let stream = long + behind;
        let (all, error) = discarding(&[stream.as_bytes()], 100, 1 << 20);
        assert_eq!(error, None);
        assert_eq!(
            all,
            [
                (Fate::Unreadable, Vec::new()),
                (Fate::Keep, behind.as_bytes().to_vec())
            ],
            "{stream:.40}"
        );
    }
    // What isn't about one message, is too long even for this, or whose end can't be told, ends all.
    let digits = "0".repeat(100);
    for (bad, expected) in [
        (format!("* LIST () NIL {parts}\r\n"), GuardError::Line),
        (format!("* OK 1 FETCH {parts}\r\n"), GuardError::Line),
        (format!("* LIST () NIL {{{size}}}\r\n"), GuardError::Literal),
        (
            format!("* 1 FETCH ({}\r\n", "(x) ".repeat(1 << 19)),
            GuardError::Answer,
        ),
        ("* 1 FETCH (X {2000000}\r\n".to_owned(), GuardError::Literal),
        (
            format!("* 1 FETCH (X ({parts} {{99999999999}}\r\n"),
            GuardError::Literal,
        ),
        (
            format!("* 1 FETCH (X ({parts}x{{5}}\r\n"),
            GuardError::Framing,
        ),
        (
            format!("* 1 FETCH (X ({parts} {{{digits}5}}\r\n"),
            GuardError::Framing,
        ),
    ] {
        let found = discarding(&[bad.as_bytes()], 100, 1 << 20);
        assert_eq!(found, (Vec::new(), Some(expected)), "{bad:.40}");
    }
}

/// Bytes that look like IMAP more often than chance would have it.
fn imapish() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "* ",
            "1 ",
            "FETCH ",
            "(",
            ")",
            "\"",
            "\\",
            "{3}\r\nabc",
            "{5}\r\n",
            "\r\n",
            "\n",
            "UID 5 ",
            "FLAGS (\\Seen) ",
            "BODYSTRUCTURE ",
            "BODY[1]<0> ",
            "BODY[HEADER.FIELDS (A)] ",
            "NIL ",
            "INTERNALDATE ",
            "STATUS ",
            "LIST ",
            "OK ",
            "[UIDNEXT 5]",
            "]",
            "[",
            "EXISTS",
            "CAPABILITY IMAP4rev1",
            "M1 ",
            "+ ",
            "BYE ",
            "é",
            "\"text\" \"plain\" NIL NIL NIL \"7bit\" 1 1",
            "MODSEQ (1) ",
            "EMAILID (x) ",
            "~{1}\r\n",
        ])
        .prop_map(|piece| piece.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_comes_out_is_safe_for_the_parser(bytes in imapish()) {
        let (all, _) = through(&[&bytes, b"\r\n"], 1000);
        for (fate, out) in all {
            prop_assert_eq!(fate == Fate::Keep, !out.is_empty());
            prop_assert!(raw_depth(&out) <= 42);
            let parsed = Response::parse(&out);
            let data = out.starts_with(b"* ") && !out.windows(13).any(|window| window == b"BODYSTRUCTURE");
            if fate == Fate::Keep && data && out.get(2).is_some_and(u8::is_ascii_digit) {
                prop_assert!(matches!(parsed, Ok((b"", _))), "{}", String::from_utf8_lossy(&out));
            }
        }
    }

    #[test]
    fn chunks_make_no_difference(
        bytes in imapish(),
        cuts in prop::collection::vec(0_usize..200, 0..8),
        discard in prop::sample::select(vec![0, 100, 1000]),
    ) {
        let chunks = cut(&bytes, cuts);
        prop_assert_eq!(discarding(&chunks, 4, discard), discarding(&[&bytes], 4, discard));
        prop_assert_eq!(through(&chunks, 50), through(&[&bytes], 50));
    }
}

/// Cuts bytes into chunks.
fn cut(bytes: &[u8], cuts: Vec<usize>) -> Vec<&[u8]> {
    let mut cuts = cuts
        .into_iter()
        .map(|cut| cut.min(bytes.len()))
        .collect::<Vec<_>>();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2)
        .map(|pair| &bytes[pair[0]..pair[1]])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn chunks_make_no_difference_to_long_lines(
        kind in prop::sample::select(vec!["* 1 FETCH (X ", "* 1 FETCH (X {3}\r\nabc Y ", "* LIST ", "* OK "]),
        pad in LINE_LIMIT - 60..LINE_LIMIT + 20,
        bytes in imapish(),
        cuts in prop::collection::vec(LINE_LIMIT - 100..LINE_LIMIT + 200, 0..12),
        discard in prop::sample::select(vec![0, LINE_LIMIT, LINE_LIMIT + 50, 2 * LINE_LIMIT]),
    ) {
        let mut all = kind.as_bytes().to_vec();
        all.resize(pad, b' ');
        all.extend_from_slice(&bytes);
        all.extend_from_slice(b"\r\n* 7 EXISTS\r\n");
        prop_assert_eq!(discarding(&cut(&all, cuts), 4, discard), discarding(&[&all], 4, discard));
    }
}

#[tokio::test]
async fn the_parser_gets_one_response_per_permit() {
    use async_imap::Client;
    use tokio::io::AsyncWriteExt as _;

    let (mut server, client) = tokio::io::duplex(64);
    let mut client = Client::new(Guard::new(Box::new(client), b"* 1 EXI".to_vec()));
    let writer = tokio::spawn(async move {
        // The second can't be parsed; the guard lets it pass since its tag might be one.
        server
            .write_all(b"STS\r\n? x\r\n* 3 EXISTS\r\n* SEARCH 1\r\n* 4 EXISTS\r\n")
            .await
            .unwrap();
    });
    let mut seen = Vec::new();
    loop {
        client.get_mut().permit();
        match client.read_response().await {
            Ok(Some(response)) => {
                if let Response::MailboxData(MailboxDatum::Exists(count)) = response.parsed() {
                    seen.push(*count);
                }
            }
            Ok(None) => break,
            Err(_) => {
                let mut guard = client.into_inner();
                guard.skip();
                client = Client::new(guard);
            }
        }
    }
    writer.await.unwrap();
    assert_eq!(seen, [1, 3, 4]);
    assert_eq!(client.get_mut().skipped(), 1);
}
