//! Words that are planted where secrets and mail are, and must never turn up where logs and metrics are.

/// The password of every planted mail user.
pub const PASSWORD: &str = "planted-password-zq81";
/// In every subject.
pub const SUBJECT: &str = "planted-subject-zq82";
/// In every body, and so in every preview.
pub const BODY: &str = "planted-body-zq83";
/// The sender of every message.
pub const SENDER: &str = "planted-sender-zq84@example.org";
/// Part of every mail user's name.
pub const USER: &str = "planted-user-zq85";

/// The planted words that `text` has, apart from further `secrets` such as tokens, of which at most the beginning is named.
#[must_use]
pub fn find(text: &str, secrets: &[&str]) -> Vec<String> {
    let planted = [PASSWORD, SUBJECT, BODY, SENDER, USER];
    let mut found: Vec<String> = planted
        .into_iter()
        .filter(|word| text.contains(word))
        .map(|word| line_with(text, word))
        .collect();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        if text.contains(secret) {
            found.push(line_with(text, secret));
        }
    }
    found
}

fn line_with(text: &str, word: &str) -> String {
    let line = text.lines().find(|line| line.contains(word));
    format!("{word}: {}", line.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_word_is_found_with_its_line() {
        let log = format!("all is well\nlogin as {USER}\n");
        let found = find(&log, &["eyJ"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("login as"));
        assert_eq!(find("bearer eyJabc", &["eyJ"]).len(), 1);
        assert!(find("nothing to see", &["eyJ", ""]).is_empty());
    }
}
