//! One connection: reads commands, answers, and tells what is new.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::conduct::{Conduct, Greeting, LoginAnswer};
use super::{Shared, fetch, mailbox};

/// No command is longer.
const LINE_LIMIT: usize = 64 * 1024;

const CAPABILITIES: &str = "IMAP4rev1 SASL-IR AUTH=PLAIN ID IDLE";

/// Ends the record of a connection, however that ends.
struct Recorded<'a> {
    shared: &'a Shared,
    id: usize,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        self.shared.records.end(self.id);
    }
}

/// Serves a connection to its end.
pub(super) async fn run(stream: TcpStream, holder: Arc<str>, shared: Arc<Shared>) {
    let (id, cut) = shared.records.begin(holder);
    let recorded = Recorded {
        shared: &shared,
        id,
    };
    let mut session = Session {
        stream,
        shared: &shared,
        id,
        inbound: Vec::new(),
        user: None,
        open: None,
    };
    tokio::select! {
        // First, so that a busy client can't put off its end.
        biased;
        () = cut.notified() => {}
        _ = session.serve() => {}
    }
    // In this order: nobody holds a session of which the record says that it has ended.
    drop(session);
    drop(recorded);
}

/// The INBOX, opened.
struct Open {
    exists: watch::Receiver<u32>,
    /// How many messages the client knows of.
    told: u32,
}

struct Session<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    id: usize,
    /// What was read and not used; without a buffer while there is nothing.
    inbound: Vec<u8>,
    user: Option<usize>,
    open: Option<Open>,
}

/// What a command's answer begins with.
enum Answer {
    Ok(&'static str),
    No(&'static str),
    Bad,
    /// The connection ends without a word.
    HangUp,
}

impl Session<'_> {
    async fn serve(&mut self) -> io::Result<()> {
        let (greeting, delay) = {
            let conduct = self.shared.conduct.borrow();
            (conduct.greeting, conduct.delays.greeting)
        };
        pause(delay).await;
        match greeting {
            Greeting::Silence => {
                // To its end, which only reading finds.
                while self.line().await.is_ok() {}
                return Ok(());
            }
            Greeting::Unavailable => {
                return self
                    .send(b"* BYE [UNAVAILABLE] Service not available\r\n")
                    .await;
            }
            Greeting::TooManyConnections => {
                return self.send(b"* BYE Too many connections\r\n").await;
            }
            Greeting::Ok => {
                let line = format!("* OK [CAPABILITY {CAPABILITIES}] ready\r\n");
                self.send(line.as_bytes()).await?;
            }
        }
        loop {
            let line = self.line().await?;
            let (tag, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let (name, arguments) = rest.split_once(' ').unwrap_or((rest, ""));
            let name = name.to_ascii_uppercase();
            let mut out = Vec::new();
            let answer = match name.as_str() {
                "AUTHENTICATE" => self.authenticate(arguments).await?,
                "LOGIN" => self.log_in(strings(arguments)).await,
                "IDLE" if self.open.is_some() => {
                    self.idle().await?;
                    Answer::Ok("idled")
                }
                "LOGOUT" => {
                    let text = format!("* BYE bye\r\n{tag} OK done\r\n");
                    return self.send(text.as_bytes()).await;
                }
                _ => self.command(&name, arguments, &mut out),
            };
            if !matches!(name.as_str(), "AUTHENTICATE" | "LOGIN") {
                let delay = self.conduct(|conduct| conduct.delays.command);
                pause(delay).await;
            }
            self.tell_news(&mut out);
            let (word, text) = match answer {
                Answer::Ok(text) => ("OK", text),
                Answer::No(text) => ("NO", text),
                Answer::Bad => ("BAD", "not understood"),
                Answer::HangUp => return Ok(()),
            };
            out.extend_from_slice(format!("{tag} {word} {text}\r\n").as_bytes());
            self.send(&out).await?;
        }
    }

    fn conduct<T>(&self, read: impl FnOnce(&Conduct) -> T) -> T {
        read(&self.shared.conduct.borrow())
    }

    /// Commands that need no further word of the client.
    fn command(&mut self, name: &str, arguments: &str, out: &mut Vec<u8>) -> Answer {
        let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
        match name {
            "CAPABILITY" => put(&format!("* CAPABILITY {CAPABILITIES}\r\n")),
            "ID" => put("* ID (\"name\" \"synthetic\")\r\n"),
            "NOOP" => {}
            _ if self.user.is_none() => return Answer::Bad,
            "LIST" => put("* LIST (\\HasNoChildren) \"/\" INBOX\r\n"),
            "EXAMINE" | "SELECT" | "STATUS" => return self.look_at(name, arguments, out),
            "FETCH" => return self.fetch(arguments, false, out),
            "UID" => match arguments.split_once(' ') {
                Some((verb, rest)) if verb.eq_ignore_ascii_case("FETCH") => {
                    return self.fetch(rest, true, out);
                }
                _ => return Answer::Bad,
            },
            "CLOSE" | "UNSELECT" if self.open.is_some() => self.open = None,
            _ => return Answer::Bad,
        }
        Answer::Ok("done")
    }

    fn look_at(&mut self, name: &str, arguments: &str, out: &mut Vec<u8>) -> Answer {
        let folder = strings(arguments).into_iter().next();
        if !folder.is_some_and(|folder| folder.eq_ignore_ascii_case("INBOX")) {
            return Answer::No("[NONEXISTENT] no such folder");
        }
        let Some(mailbox) = self.user.and_then(|user| self.shared.mailboxes.get(user)) else {
            return Answer::Bad;
        };
        let mut receiver = mailbox.exists();
        let exists = *receiver.borrow_and_update();
        let (generation, next) = (mailbox::GENERATION, mailbox::uid_next(exists));
        if name == "STATUS" {
            let line = format!(
                "* STATUS INBOX (MESSAGES {exists} UIDNEXT {next} UIDVALIDITY {generation} UNSEEN {exists})\r\n"
            );
            out.extend_from_slice(line.as_bytes());
            return Answer::Ok("done");
        }
        self.open = Some(Open {
            exists: receiver,
            told: exists,
        });
        let text = format!(
            "* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n* OK [PERMANENTFLAGS ()] none\r\n* {exists} EXISTS\r\n\
             * 0 RECENT\r\n* OK [UIDVALIDITY {generation}] valid\r\n* OK [UIDNEXT {next}] next\r\n"
        );
        out.extend_from_slice(text.as_bytes());
        Answer::Ok("[READ-ONLY] opened")
    }

    fn fetch(&mut self, arguments: &str, by_uid: bool, out: &mut Vec<u8>) -> Answer {
        let (Some(_), Some(user)) = (&self.open, self.user) else {
            return Answer::Bad;
        };
        let parsed = arguments
            .split_once(' ')
            .and_then(|(set, items)| Some((fetch::parse_set(set)?, fetch::parse_items(items)?)));
        let (Some((set, items)), Some(mailbox)) = (parsed, self.shared.mailboxes.get(user)) else {
            return Answer::Bad;
        };
        for message in mailbox.select(&set, by_uid) {
            fetch::answer(&message, &items, by_uid, out);
        }
        Answer::Ok("fetched")
    }

    /// How many messages there are, if the client doesn't know yet.
    fn tell_news(&mut self, out: &mut Vec<u8>) {
        if let Some(open) = &mut self.open {
            let exists = *open.exists.borrow_and_update();
            if exists > open.told {
                open.told = exists;
                out.extend_from_slice(format!("* {exists} EXISTS\r\n").as_bytes());
            }
        }
    }

    async fn idle(&mut self) -> io::Result<()> {
        self.shared.records.idle(self.id);
        let mut out = b"+ idling\r\n".to_vec();
        loop {
            self.tell_news(&mut out);
            if !out.is_empty() {
                self.send(&out).await?;
                out = Vec::new();
            }
            let news = self.open.as_ref().map(|open| open.exists.clone());
            tokio::select! {
                // The client first: who ends IDLE hears of news with its end.
                biased;
                line = self.line() => {
                    line?;
                    // Any line ends it; clients send no other than DONE.
                    self.shared.records.wake(self.id);
                    return Ok(());
                }
                () = changed(news) => {}
            }
        }
    }

    async fn authenticate(&mut self, arguments: &str) -> io::Result<Answer> {
        let (mechanism, initial) = arguments.split_once(' ').unwrap_or((arguments, ""));
        if !mechanism.eq_ignore_ascii_case("PLAIN") {
            return Ok(Answer::Bad);
        }
        let initial = if initial.is_empty() {
            self.send(b"+ \r\n").await?;
            self.line().await?
        } else {
            initial.to_owned()
        };
        let words = STANDARD.decode(initial.trim()).unwrap_or_default();
        let words = words
            .split(|byte| *byte == 0)
            .skip(1)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        Ok(self.log_in(words).await)
    }

    /// A login with these words: user and password.
    async fn log_in(&mut self, words: Vec<String>) -> Answer {
        let delay = self.conduct(|conduct| conduct.delays.login);
        pause(delay).await;
        let [name, password] = words.as_slice() else {
            return Answer::Bad;
        };
        let user = name
            .strip_prefix('u')
            .and_then(|number| number.parse().ok())
            .filter(|user| *user < self.shared.mailboxes.len());
        let (answer, most) = self.conduct(|conduct| match user {
            Some(user) if *password == self.shared.password => {
                (conduct.login_of(user), conduct.most_sessions)
            }
            _ => (LoginAnswer::WrongPassword, None),
        });
        let too_many =
            Answer::No("[UNAVAILABLE] Maximum number of connections from user+IP exceeded");
        match (answer, user) {
            (LoginAnswer::Ok, Some(user)) => {
                if !self.shared.records.log_in(self.id, user, most) {
                    return too_many;
                }
                self.user = Some(user);
                Answer::Ok("logged in")
            }
            (LoginAnswer::TooManyConnections, _) => too_many,
            (LoginAnswer::Unavailable, _) => {
                Answer::No("[UNAVAILABLE] Temporary authentication failure")
            }
            (LoginAnswer::HangUp, _) => Answer::HangUp,
            (LoginAnswer::WrongPassword | LoginAnswer::Ok, _) => {
                Answer::No("[AUTHENTICATIONFAILED] Authentication failed")
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next line without its end. Safe to cancel: what was read stays.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.inbound.iter().position(|byte| *byte == b'\n') {
                let rest = self.inbound.split_off(at + 1);
                let line = std::mem::replace(&mut self.inbound, rest);
                if self.inbound.is_empty() {
                    self.inbound = Vec::new();
                }
                return Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
            }
            if self.inbound.len() > LINE_LIMIT {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.stream.readable().await?;
            self.take()?;
        }
    }

    /// Takes what has come. The buffer is on the stack of this call, so that a connection that waits has none.
    fn take(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        match self.stream.try_read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let bytes = chunk.get(..count).unwrap_or_default();
                self.inbound.extend_from_slice(bytes);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Waits until there is more mail than was told.
async fn changed(news: Option<watch::Receiver<u32>>) {
    if let Some(mut news) = news
        && news.changed().await.is_ok()
    {
        return;
    }
    // Nothing is open, so nothing comes.
    pending().await
}

async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// The words of a command, quoted or not.
fn strings(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.next() {
        match first {
            ' ' => {}
            '"' => {
                let mut word = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => word.extend(chars.next()),
                        c => word.push(c),
                    }
                }
                words.push(word);
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| *c != ' ') {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_be_quoted() {
        assert_eq!(strings(r#"u1 "a \"b\" \\c""#), ["u1", r#"a "b" \c"#]);
        assert_eq!(strings(r#""" x"#), ["", "x"]);
        assert!(strings("").is_empty());
    }
}
