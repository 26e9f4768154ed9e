//! The text of HTML whose end may be missing.

use mail_parser::decoders::html::add_html_token;

/// Elements whose content nobody reads.
const SILENT: [&str; 7] = [
    "head", "style", "script", "title", "template", "noscript", "svg",
];
/// Elements that stand within a line: their tags part no words.
const WITHIN: [&str; 22] = [
    "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "em", "font", "i", "ins", "kbd", "mark",
    "q", "s", "small", "span", "strong", "sub", "sup", "u",
];
/// Longest entity, without `&` and `;`.
const ENTITY_LIMIT: usize = 32;

/// The text outside of tags, entities decoded, a space where a block begins or ends.
pub(super) fn to_text(html: &str) -> String {
    let mut text = String::with_capacity(html.len() / 2);
    let mut silent: Option<&str> = None;
    let mut rest = html;
    loop {
        if let Some(name @ ("script" | "style")) = silent {
            // What looks like a tag in there is none, but for the end.
            let Some(end) = find_end(rest, name) else {
                return text;
            };
            rest = rest.get(end..).unwrap_or_default();
        }
        let Some(at) = rest.find(['<', '&']) else {
            break;
        };
        let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
        if silent.is_none() {
            text.push_str(before);
        }
        if let Some(comment) = from.strip_prefix("<!--") {
            // Conditional comments of Outlook end the same way.
            rest = comment
                .find("-->")
                .and_then(|end| comment.get(end + 3..))
                .unwrap_or_default();
        } else if let Some(inside) = from.strip_prefix('<') {
            if !inside
                .starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '!' | '?'))
            {
                // A lone "less than".
                if silent.is_none() {
                    text.push('<');
                }
                rest = inside;
                continue;
            }
            let Some((tag, behind)) = split_tag(inside) else {
                return text;
            };
            rest = behind;
            let closes = tag.starts_with('/');
            let name = tag
                .trim_start_matches('/')
                .split(|c: char| !c.is_ascii_alphanumeric())
                .next()
                .unwrap_or_default();
            let name = name.to_ascii_lowercase();
            match silent {
                Some(waiting) if closes && name == waiting => silent = None,
                // A body begins even if nobody has closed the head.
                Some("head" | "title") if name == "body" => silent = None,
                Some(_) => {}
                None if !closes && !tag.ends_with('/') => {
                    silent = SILENT.into_iter().find(|known| *known == name)
                }
                None => {}
            }
            if silent.is_none() && !WITHIN.contains(&name.as_str()) {
                text.push(' ');
            }
        } else {
            let entity = from.get(1..).unwrap_or_default();
            let end = entity
                .bytes()
                .take(ENTITY_LIMIT + 1)
                .position(|b| !b.is_ascii_alphanumeric() && b != b'#');
            let token = match end {
                Some(end) if entity.as_bytes().get(end) == Some(&b';') && end > 0 => {
                    from.get(..end + 2)
                }
                _ => None,
            };
            let token = token.unwrap_or("&");
            if silent.is_none() {
                add_html_token(&mut text, token.as_bytes(), false);
            }
            rest = from.get(token.len()..).unwrap_or_default();
        }
    }
    if silent.is_none() {
        text.push_str(rest);
    }
    text
}

/// Where the end tag of an element begins.
fn find_end(html: &str, name: &str) -> Option<usize> {
    let is_end = |at: &usize| {
        html.get(at + 2..at + 2 + name.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(name))
    };
    html.match_indices("</").map(|(at, _)| at).find(is_end)
}

/// Splits behind the end of a tag, which isn't a `>` in quotes; `None` when the tag was cut.
fn split_tag(inside: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    // A quote that nobody closes would swallow the rest: then any `>` ends the tag.
    let end = inside
        .bytes()
        .position(|byte| match (quote, byte) {
            (None, b'"' | b'\'') => {
                quote = Some(byte);
                false
            }
            (Some(open), byte) if open == byte => {
                quote = None;
                false
            }
            (None, b'>') => true,
            _ => false,
        })
        .or_else(|| inside.find('>'))?;
    Some((inside.get(..end)?, inside.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::fold;

    #[test]
    fn gives_the_text_only() {
        for (html, text) in [
            (
                "<html><head><title>T</title><style>p{a:b}</style></head><body><p>Hi &amp; <b>by</b>e</p></body>",
                "Hi & bye",
            ),
            ("<script>if (a<b) { x('</p>') }</script>after", "after"),
            ("<!-- a > b --><div>one</div><div>two</div>", "one two"),
            ("<td>a</td><td>b</td>", "a b"),
            ("a<br>b<br/>c", "a b c"),
            (
                "1 < 2 & 3 &lt; 4 &#8364; &#x20ac; &euro; &nosuch; &",
                "1 < 2 & 3 < 4 € € € &nosuch; &",
            ),
            ("x<a href=\"a>b\">y</a>z", "xyz"),
            ("text <img alt=\"cut of", "text"),
            ("<head><style>a{}</style><body>b", "b"),
            ("a&nbsp;&nbsp;b&zwnj;&shy;c", "a b\u{200c} c"),
            ("<style>never closed", ""),
            ("<style/>x", "x"),
        ] {
            assert_eq!(fold(&to_text(html), 1000), text, "{html}");
        }
    }
}
