//! The ground truth: what a folder holds, by the mail server's own word, read with none of the code under test.

use std::{io, str};

use mailbell_test_servers::{Dovecot, RawImap};

use crate::{
    auditor::{Mail, Truth},
    load::number_in,
};

/// Reads a folder of a user of the test server.
///
/// # Errors
/// When the server refuses, or answers what this small reader doesn't understand.
pub async fn read(dovecot: &Dovecot, user: &str, folder: &str) -> io::Result<Truth> {
    let mut imap = dovecot.imap(user).await?;
    read_from(&mut imap, folder).await
}

async fn read_from(imap: &mut RawImap, folder: &str) -> io::Result<Truth> {
    let examined = imap.command(&format!("EXAMINE \"{folder}\"")).await?;
    let generation = number_after(&examined, "[UIDVALIDITY ")
        .ok_or_else(|| io::Error::other("EXAMINE has no UIDVALIDITY"))?;
    let answer = imap
        .command("UID FETCH 1:* (UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        .await?;
    let mut mail = Vec::new();
    for response in answer.split("* ").filter(|part| part.contains(" FETCH (")) {
        let uid = number_after(response, "(UID ")
            .ok_or_else(|| io::Error::other(format!("FETCH has no UID: {response}")))?;
        // A message of somebody else's making has no number; 0 stands for it.
        let number = number_in(response).unwrap_or(0);
        mail.push(Mail { uid, number });
    }
    mail.sort_unstable();
    Ok(Truth { generation, mail })
}

fn number_after(text: &str, word: &str) -> Option<u32> {
    let (_, rest) = text.split_once(word)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_their_words() {
        assert_eq!(
            number_after("* OK [UIDVALIDITY 17] x", "[UIDVALIDITY "),
            Some(17)
        );
        assert_eq!(number_after("UID 5", "UID "), Some(5));
        assert_eq!(number_after("UID", "UID "), None);
    }
}
