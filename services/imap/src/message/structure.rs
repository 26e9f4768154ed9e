//! Which part of a message is its text, and whether it has attachments. No bytes of the parts are needed for that.

use imap_proto::{BodyContentCommon, BodyContentSinglePart, BodyStructure, ContentEncoding};

/// Deepest level at which a text is looked for; the guard lets through 40 levels of parentheses at most.
const DEPTH_LIMIT: usize = 20;

/// How the bytes of a part travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// As they are.
    Identity,
    Base64,
    QuotedPrintable,
}

/// The part that a preview is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextPart {
    /// As in `BODY[1.2]`.
    pub(crate) section: String,
    pub(crate) html: bool,
    pub(crate) charset: Option<String>,
    pub(crate) transfer: Transfer,
}

/// What a body structure tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) text: Option<TextPart>,
    /// The HTML, where the text is a plain one: plain alternatives may be white space only.
    pub(crate) html: Option<TextPart>,
    pub(crate) has_attachments: bool,
}

/// Walks through a body structure.
pub(crate) fn summarize(body: &BodyStructure<'_>) -> Summary {
    let mut walk = Walk {
        plain: None,
        html: None,
        has_attachments: false,
    };
    walk.part(body, &mut Vec::new(), "");
    let (text, html) = match walk.plain {
        Some(plain) => (Some(plain), walk.html),
        None => (walk.html, None),
    };
    Summary {
        text,
        html,
        has_attachments: walk.has_attachments,
    }
}

struct Walk {
    plain: Option<TextPart>,
    html: Option<TextPart>,
    has_attachments: bool,
}

impl Walk {
    fn part(&mut self, body: &BodyStructure<'_>, path: &mut Vec<usize>, parent: &str) {
        match body {
            BodyStructure::Multipart { common, bodies, .. } => {
                if path.len() < DEPTH_LIMIT {
                    let subtype = common.ty.subtype.to_ascii_lowercase();
                    for (number, body) in bodies.iter().enumerate() {
                        path.push(number + 1);
                        self.part(body, path, &subtype);
                        path.pop();
                    }
                }
            }
            // Somebody else's message: what it says is not what this one says.
            BodyStructure::Message { .. } => self.has_attachments = true,
            BodyStructure::Text { common, other, .. } => {
                if is_file(common) {
                    self.has_attachments = true;
                } else {
                    self.text(common, other, path);
                }
            }
            BodyStructure::Basic { common, other, .. } => {
                self.has_attachments |= is_file(common) || is_content(common, other, parent);
            }
        }
    }

    fn text(
        &mut self,
        common: &BodyContentCommon<'_>,
        other: &BodyContentSinglePart<'_>,
        path: &[usize],
    ) {
        let html = match common.ty.subtype.to_ascii_lowercase().as_str() {
            "plain" => false,
            "html" => true,
            _ => return,
        };
        let place = if html {
            &mut self.html
        } else {
            &mut self.plain
        };
        if place.is_some() || other.octets == 0 {
            return;
        }
        let transfer = match &other.transfer_encoding {
            ContentEncoding::Base64 => Transfer::Base64,
            ContentEncoding::QuotedPrintable => Transfer::QuotedPrintable,
            _ => Transfer::Identity,
        };
        // A message that isn't multipart has one part, and its number is 1.
        let section = if path.is_empty() {
            "1".to_owned()
        } else {
            path.iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(".")
        };
        *place = Some(TextPart {
            section,
            html,
            charset: parameter(&common.ty.params, "charset"),
            transfer,
        });
    }
}

fn parameter(parameters: &imap_proto::BodyParams<'_>, name: &str) -> Option<String> {
    let found = parameters
        .iter()
        .flatten()
        .find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.clone().into_owned())
}

/// Whether a part calls itself a file.
fn is_file(common: &BodyContentCommon<'_>) -> bool {
    match &common.disposition {
        Some(disposition) if disposition.ty.eq_ignore_ascii_case("attachment") => true,
        // Pictures and signatures within the text have names too.
        Some(disposition) if disposition.ty.eq_ignore_ascii_case("inline") => false,
        _ => has_name(common),
    }
}

fn has_name(common: &BodyContentCommon<'_>) -> bool {
    let given = common.ty.params.iter().flatten();
    let disposed = common
        .disposition
        .iter()
        .flat_map(|disposition| disposition.params.iter().flatten());
    given.chain(disposed).any(|(key, _)| {
        let key = key.split('*').next().unwrap_or_default();
        key.eq_ignore_ascii_case("name") || key.eq_ignore_ascii_case("filename")
    })
}

/// Whether a part that isn't text and has no name is there for its own sake, rather than for another part's.
fn is_content(
    common: &BodyContentCommon<'_>,
    other: &BodyContentSinglePart<'_>,
    parent: &str,
) -> bool {
    let inline = common
        .disposition
        .as_ref()
        .is_some_and(|disposition| disposition.ty.eq_ignore_ascii_case("inline"));
    let helper = matches!(
        parent,
        "related" | "signed" | "encrypted" | "report" | "alternative"
    );
    !inline && !helper && other.id.is_none()
}

#[cfg(test)]
mod tests {
    use imap_proto::{AttributeValue, Response};

    use super::*;

    fn summary(body: &str) -> Summary {
        let line = format!("* 1 FETCH (BODYSTRUCTURE {body})\r\n");
        match Response::parse(line.as_bytes()) {
            Ok((_, Response::Fetch(_, items))) => match items.first() {
                Some(AttributeValue::BodyStructure(body)) => summarize(body),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    const PLAIN: &str =
        r#"("text" "plain" ("charset" "utf-8") NIL NIL "quoted-printable" 12 1 NIL NIL NIL NIL)"#;
    const HTML: &str =
        r#"("text" "html" ("charset" "iso-8859-1") NIL NIL "base64" 12 1 NIL NIL NIL NIL)"#;
    const PDF: &str = r#"("application" "pdf" ("name" "a.pdf") NIL NIL "base64" 52428800 NIL ("attachment" ("filename" "a.pdf")) NIL NIL)"#;
    const LOGO: &str = r#"("image" "png" ("name" "l.png") "<l@x>" NIL "base64" 99 NIL ("inline" ("filename" "l.png")) NIL NIL)"#;

    #[test]
    fn finds_the_text() {
        let one = summary(PLAIN).text.unwrap();
        assert_eq!(
            (one.section.as_str(), one.html, one.transfer),
            ("1", false, Transfer::QuotedPrintable)
        );
        let both = summary(&format!("({PLAIN}{HTML} \"alternative\" NIL NIL NIL NIL)"));
        let (plain, html) = (both.text.unwrap(), both.html.unwrap());
        assert_eq!((plain.section.as_str(), plain.html), ("1", false));
        assert_eq!((html.section.as_str(), html.html), ("2", true));
        let nested = summary(&format!(
            "((({HTML}{LOGO} \"related\") \"alternative\"){PDF} \"mixed\")"
        ));
        let text = nested.text.unwrap();
        assert_eq!(
            (text.section.as_str(), text.html, text.charset.as_deref()),
            ("1.1.1", true, Some("iso-8859-1"))
        );
        assert!(nested.has_attachments);
    }

    #[test]
    fn tells_attachments_from_what_belongs_to_the_text() {
        assert!(!summary(&format!("({HTML}{LOGO} \"related\")")).has_attachments);
        assert!(
            !summary(&format!(
                "({PLAIN}(\"application\" \"pgp-signature\" NIL NIL NIL \"7bit\" 9) \"signed\")"
            ))
            .has_attachments
        );
        assert!(summary(PDF).has_attachments);
        let file = r#"("text" "plain" NIL NIL NIL "7bit" 5 1 NIL ("attachment" ("filename" "a.txt")) NIL NIL)"#;
        let with_file = summary(&format!("({PLAIN}{file} \"mixed\")"));
        assert!(with_file.has_attachments);
        assert_eq!(with_file.text.unwrap().section, "1");
        assert_eq!(summary(file).text, None);
    }

    #[test]
    fn empty_parts_give_no_preview() {
        let empty = PLAIN.replace(" 12 1 ", " 0 0 ");
        let text = summary(&format!("({empty}{HTML} \"alternative\")"))
            .text
            .unwrap();
        assert_eq!((text.section.as_str(), text.html), ("2", true));
    }
}
