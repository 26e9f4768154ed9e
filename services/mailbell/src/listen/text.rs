//! Events for people. Everything that others have written is cleaned before it reaches the terminal.

use std::io::{self, Write};

use mailbell_client::{AppEvent, Arrived, ReplaceFolder};
use mailbell_proto::push::v1::{Address, Health, Message};

use crate::{
    duration::age,
    terminal::{Paint, Style, clean_line, shorten},
};

const MAX_SENDER: usize = 60;
const MAX_SUBJECT: usize = 160;
const MAX_PREVIEW: usize = 200;
/// What was detected longer ago, in microseconds, came from the log: how long its way took says nothing.
const LIVE_US: i64 = 10_000_000;

pub(super) fn arrived(
    out: &mut impl Write,
    paint: Paint,
    arrived: &Arrived,
    now_us: i64,
) -> io::Result<()> {
    let detected_us = arrived.times.detected_us;
    let latency_us = now_us.saturating_sub(detected_us);
    let told_live = detected_us > 0 && (0..LIVE_US).contains(&latency_us);
    alert(
        out,
        paint,
        arrived.message.as_ref(),
        &arrived.folder_name,
        arrived.alert,
        now_us,
        told_live.then_some(latency_us),
    )
}

/// After a hole that could not be told one by one: what a person should hear of now.
pub(super) fn replaced(
    out: &mut impl Write,
    paint: Paint,
    replace: &ReplaceFolder,
    now_us: i64,
) -> io::Result<()> {
    for message in replace.alert_for() {
        alert(
            out,
            paint,
            Some(message),
            &replace.folder_name,
            true,
            now_us,
            None,
        )?;
    }
    Ok(())
}

fn alert(
    out: &mut impl Write,
    paint: Paint,
    message: Option<&Message>,
    folder: &str,
    alert: bool,
    now_us: i64,
    latency_us: Option<i64>,
) -> io::Result<()> {
    let (mark, name) = if alert {
        (paint.paint(Style::Cyan, "●"), Style::Bold)
    } else {
        (paint.paint(Style::Dim, "○"), Style::Dim)
    };
    let Some(message) = message else {
        // Content level KEY.
        return writeln!(out, "{mark} {}", paint.paint(name, "New message"));
    };
    let mut when = Vec::new();
    if message.internal_date_ms != 0 {
        when.push(age(now_us / 1000, message.internal_date_ms));
    }
    let folder = clean_line(folder);
    if !folder.is_empty() && folder != "INBOX" {
        when.push(format!("in {folder}"));
    }
    if let Some(us) = latency_us {
        #[expect(clippy::cast_precision_loss, reason = "at most LIVE_US")]
        let ms = us as f64 / 1000.0;
        when.push(format!("detected {ms:.1} ms ago"));
    }
    let sender = paint.paint(name, &sender(&message.from));
    let when = paint.paint(Style::Dim, &when.join(", "));
    writeln!(out, "{mark} {sender}  {when}")?;
    let subject = shorten(&clean_line(&message.subject), MAX_SUBJECT);
    let subject = match subject.trim() {
        "" => "(no subject)",
        subject => subject,
    };
    let clip = if message.has_attachments { " 📎" } else { "" };
    writeln!(out, "  {subject}{clip}")?;
    let preview = shorten(&clean_line(&message.preview), MAX_PREVIEW);
    if !preview.trim().is_empty() {
        writeln!(out, "  {}", paint.paint(Style::Dim, preview.trim()))?;
    }
    writeln!(out)
}

fn sender(from: &[Address]) -> String {
    let Some(first) = from.first() else {
        return "(unknown sender)".to_owned();
    };
    let name = clean_line(&first.name);
    let address = clean_line(&first.address);
    let shown = match (name.trim(), address.trim()) {
        ("", "") => "(unknown sender)",
        ("", address) => address,
        (name, _) => name,
    };
    let shown = shorten(shown, MAX_SENDER);
    match from.len() {
        1 => shown,
        more => format!("{shown} and {} more", more - 1),
    }
}

pub(super) fn note(event: &AppEvent) -> Option<(Style, String)> {
    match event {
        AppEvent::AccountState(state) => {
            let style = match state.health() {
                Health::Watching | Health::Starting => Style::Dim,
                Health::ActionNeeded => Style::Red,
                _ => Style::Yellow,
            };
            let sentence = clean_line(&state.sentence);
            Some((style, format!("{}: {sentence}", clean_line(&state.account))))
        }
        AppEvent::Unlistable(unlistable) => Some((
            Style::Yellow,
            format!(
                "{}: a folder cannot be listed",
                clean_line(&unlistable.account)
            ),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mailbell_proto::push::v1::{EventKey, Priority, Times};

    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    fn message() -> Message {
        Message {
            from: vec![Address {
                name: "Anna Schmidt".to_owned(),
                address: "anna@example.org".to_owned(),
            }],
            subject: "Lunch tomorrow?".to_owned(),
            preview: "Shall we meet at noon?".to_owned(),
            internal_date_ms: NOW - 180_000,
            ..Message::default()
        }
    }

    fn shown(message: Option<&Message>, folder: &str, is_alert: bool, paint: bool) -> String {
        let mut out = Vec::new();
        let paint = Paint::new(paint);
        alert(&mut out, paint, message, folder, is_alert, NOW * 1000, None).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_live_one_says_how_long_its_way_took() {
        let detected = |detected_us| {
            let mut out = Vec::new();
            let arrived_at = Arrived {
                key: EventKey::default(),
                folder_name: "INBOX".to_owned(),
                alert: true,
                priority: Priority::Normal,
                message: Some(message()),
                times: Times {
                    detected_us,
                    ..Times::default()
                },
                traceparent: String::new(),
            };
            arrived(&mut out, Paint::new(false), &arrived_at, NOW * 1000).unwrap();
            let text = String::from_utf8(out).unwrap();
            text.lines().next().unwrap().to_owned()
        };
        assert_eq!(
            detected(NOW * 1000 - 2_340),
            "● Anna Schmidt  3 min ago, detected 2.3 ms ago"
        );
        for replayed_or_unknown in [NOW * 1000 - 60_000_000, NOW * 1000 + 5, 0] {
            assert_eq!(detected(replayed_or_unknown), "● Anna Schmidt  3 min ago");
        }
    }

    #[test]
    fn an_alert_as_a_person_reads_it() {
        assert_eq!(
            shown(Some(&message()), "INBOX", true, false),
            "● Anna Schmidt  3 min ago\n  Lunch tomorrow?\n  Shall we meet at noon?\n\n"
        );
        let bare = Message {
            from: vec![Address::default(), Address::default()],
            internal_date_ms: NOW,
            has_attachments: true,
            ..Message::default()
        };
        assert_eq!(
            shown(Some(&bare), "Work", false, false),
            "○ (unknown sender) and 1 more  just now, in Work\n  (no subject) 📎\n\n"
        );
        assert_eq!(shown(None, "INBOX", true, false), "● New message\n");
    }

    #[test]
    fn mail_does_not_command_the_terminal() {
        let evil = "\u{1b}]52;c;ZXZpbA==\u{7}\u{9b}2J\u{1b}[8m\r\nFrom: you\u{202e}";
        let message = Message {
            from: vec![Address {
                name: evil.to_owned(),
                address: evil.to_owned(),
            }],
            subject: evil.to_owned(),
            preview: evil.to_owned(),
            ..message()
        };
        let text = shown(Some(&message), evil, true, false);
        let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(harmful), "{text:?}");
        assert_eq!(text.lines().count(), 4);
        // With colours the only escapes are ours.
        let text = shown(Some(&message), evil, true, true);
        let ours = ["\u{1b}[36m", "\u{1b}[1m", "\u{1b}[2m", "\u{1b}[0m"];
        let rest = ours.iter().fold(text, |text, ours| text.replace(ours, ""));
        assert!(!rest.contains('\u{1b}'), "{rest:?}");
    }
}
