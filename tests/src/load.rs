//! Numbered mail.

use std::{io, ops::Range};

use mailbell_test_servers::Dovecot;

use crate::leaks;

/// A short message whose subject and body carry its number, and words that must never show up in a log.
#[must_use]
pub fn message(number: u64) -> Vec<u8> {
    sized_message(number, 0)
}

/// A message with an attachment of about `attachment` bytes; without one for 0.
#[must_use]
pub fn sized_message(number: u64, attachment: usize) -> Vec<u8> {
    let (sender, subject, body) = (leaks::SENDER, leaks::SUBJECT, leaks::BODY);
    let head = format!(
        "From: Planted Sender <{sender}>\r\nTo: somebody@example.org\r\nSubject: {subject} #{number}#\r\n\
         Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <{number}.{subject}@example.org>\r\nMIME-Version: 1.0\r\n"
    );
    let text = format!("This is {body}, number {number}.\r\n");
    if attachment == 0 {
        return format!("{head}Content-Type: text/plain; charset=utf-8\r\n\r\n{text}").into_bytes();
    }
    let mut message = format!(
        "{head}Content-Type: multipart/mixed; boundary=part\r\n\r\n--part\r\nContent-Type: text/plain\r\n\r\n{text}\r\n\
         --part\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\
         Content-Disposition: attachment; filename=big.bin\r\n\r\n"
    )
    .into_bytes();
    let line = [b'A'; 76];
    let end = message.len() + attachment;
    message.reserve(attachment + 1024);
    while message.len() < end {
        message.extend_from_slice(&line);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"--part--\r\n");
    message
}

/// The number in a subject made by [`message`].
#[must_use]
pub fn number_in(subject: &str) -> Option<u64> {
    let (_, rest) = subject.split_once('#')?;
    let (number, _) = rest.split_once('#')?;
    number.parse().ok()
}

/// Delivers messages of these numbers by LMTP over one connection, each confirmed before the next.
///
/// # Errors
/// When the server refuses.
pub async fn deliver(dovecot: &Dovecot, user: &str, numbers: Range<u64>) -> io::Result<()> {
    let messages: Vec<Vec<u8>> = numbers.map(message).collect();
    dovecot
        .deliver_many(user, messages.iter().map(Vec::as_slice))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_its_number() {
        let text = String::from_utf8(message(17)).unwrap();
        let subject = text
            .lines()
            .find(|line| line.starts_with("Subject: "))
            .unwrap();
        assert_eq!(number_in(subject), Some(17));
        assert_eq!(number_in("Re: your # 1 offer"), None);
    }

    #[test]
    fn an_attachment_has_the_size_asked_for() {
        let big = sized_message(1, 1_000_000);
        assert!((1_000_000..1_010_000).contains(&big.len()));
    }
}
