//! The plainest client that IDLE allows, as the measure beside Mailbell: it reads EXISTS, fetches the new headers, and waits again.
//!
//! It shares no code with Mailbell's own way on purpose, and does the least that a mail program must do to show a message.

use std::{io, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufStream,
    },
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// A line that is longer is no answer to anything that is asked here.
const MAX_LINE: u64 = 64 * 1024;
/// The headers of one message, and then some.
const MAX_LITERAL: usize = 256 * 1024;
/// One answer may take so long.
const LIMIT: Duration = Duration::from_secs(30);

/// Any stream to a mail server.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Where the mailbox is.
#[derive(Debug, Clone)]
pub(super) struct Mailbox {
    /// Name or address.
    pub(super) host: String,
    /// Port.
    pub(super) port: u16,
    /// TLS from the first byte; plain text else.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Who logs in.
    pub(super) user: String,
    /// With this.
    pub(super) password: Zeroizing<String>,
}

/// When the bare client saw a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BareReceipt {
    /// Which.
    pub(super) uid: u32,
    /// It had read the EXISTS that announced the message.
    pub(super) exists: Instant,
    /// It had the message's headers.
    pub(super) fetched: Instant,
}

/// A logged-in connection with INBOX open.
pub(super) struct BareClient {
    stream: BufStream<Box<dyn Wire>>,
    tags: u32,
    next_uid: u32,
    generation: u32,
}

impl BareClient {
    /// Connects, logs in and opens INBOX read-only.
    pub(super) async fn connect(mailbox: &Mailbox) -> io::Result<Self> {
        let tcp = TcpStream::connect((mailbox.host.as_str(), mailbox.port)).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Wire> = match &mailbox.tls {
            None => Box::new(tcp),
            Some(config) => {
                let name = ServerName::try_from(mailbox.host.clone())
                    .map_err(|error| io::Error::other(error.to_string()))?;
                Box::new(
                    TlsConnector::from(config.clone())
                        .connect(name, tcp)
                        .await?,
                )
            }
        };
        let mut client = Self {
            stream: BufStream::new(stream),
            tags: 0,
            next_uid: 1,
            generation: 0,
        };
        client.response().await?;
        let (user, password) = (quoted(&mailbox.user)?, quoted(&mailbox.password)?);
        let login = Zeroizing::new(format!("LOGIN {} {}", *user, *password));
        client.command(&login).await?;
        let answer = client.command("EXAMINE INBOX").await?;
        client.next_uid =
            number_after(&answer, "[UIDNEXT ").ok_or_else(|| odd("EXAMINE without UIDNEXT"))?;
        client.generation = number_after(&answer, "[UIDVALIDITY ")
            .ok_or_else(|| odd("EXAMINE without UIDVALIDITY"))?;
        Ok(client)
    }

    /// UIDVALIDITY.
    pub(super) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Waits for the next EXISTS and fetches the headers of what is new. Not cancel-safe: a client that was dropped in the middle is
    /// of no more use.
    pub(super) async fn next(&mut self) -> io::Result<Vec<BareReceipt>> {
        let tag = self.send("IDLE").await?;
        let mut exists = None;
        while exists.is_none() {
            // No limit: it may take as long as it takes until a message comes.
            let line = self.response().await?;
            let now = Instant::now();
            if is_exists(&line) {
                exists = Some(now);
            } else if line.starts_with(&tag) {
                return Err(odd("IDLE ended by itself"));
            }
        }
        self.write("DONE\r\n").await?;
        self.finish(&tag).await?;
        let answer = self
            .command(&format!(
                "UID FETCH {}:* (UID BODY.PEEK[HEADER])",
                self.next_uid
            ))
            .await?;
        let fetched = Instant::now();
        let exists = exists.unwrap_or(fetched);
        // `n:*` names the last message even when its UID is below n.
        let mut uids: Vec<u32> = answer
            .split("\r\n* ")
            .filter_map(|part| number_after(part.split_once(" FETCH (")?.1, "UID "))
            .filter(|uid| *uid >= self.next_uid)
            .collect();
        uids.sort_unstable();
        if let Some(last) = uids.last() {
            self.next_uid = last.saturating_add(1);
        }
        Ok(uids
            .into_iter()
            .map(|uid| BareReceipt {
                uid,
                exists,
                fetched,
            })
            .collect())
    }

    async fn command(&mut self, command: &str) -> io::Result<String> {
        let tag = self.send(command).await?;
        self.finish(&tag).await
    }

    async fn send(&mut self, command: &str) -> io::Result<String> {
        self.tags += 1;
        let tag = format!("B{} ", self.tags);
        let line = Zeroizing::new(format!("{tag}{command}\r\n"));
        self.write(&line).await?;
        Ok(tag)
    }

    async fn write(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await
    }

    /// Everything up to the tagged answer, which must be OK.
    async fn finish(&mut self, tag: &str) -> io::Result<String> {
        let all = async {
            let mut answer = String::from("\r\n");
            loop {
                let response = self.response().await?;
                if let Some(status) = response.strip_prefix(tag) {
                    return if status.starts_with("OK") {
                        answer.push_str(&response);
                        Ok(answer)
                    } else {
                        // Its text may hold anything, also the user's name.
                        Err(odd("the mail server refused a command"))
                    };
                }
                answer.push_str(&response);
            }
        };
        tokio::time::timeout(LIMIT, all)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// One response with its literals.
    async fn response(&mut self) -> io::Result<String> {
        let mut response = Vec::new();
        loop {
            let start = response.len();
            let read = (&mut self.stream)
                .take(MAX_LINE)
                .read_until(b'\n', &mut response)
                .await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = response.get(start..).unwrap_or_default();
            if !line.ends_with(b"\n") {
                return Err(odd("a line without an end"));
            }
            let Some(size) = literal(line) else {
                return Ok(String::from_utf8_lossy(&response).into_owned());
            };
            if size > MAX_LITERAL {
                return Err(odd("a literal that nobody asked for"));
            }
            let at = response.len();
            response.resize(at + size, 0);
            self.stream
                .read_exact(response.get_mut(at..).unwrap_or_default())
                .await?;
        }
    }
}

fn odd(what: &'static str) -> io::Error {
    io::Error::other(what)
}

/// The size that a line announces at its end.
fn literal(line: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(line.trim_ascii_end()).ok()?;
    let (_, size) = line.strip_suffix('}')?.rsplit_once('{')?;
    size.parse().ok()
}

/// `* 12 EXISTS`
fn is_exists(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    words.next() == Some("*")
        && words.next().is_some_and(|n| n.parse::<u32>().is_ok())
        && words.next() == Some("EXISTS")
}

fn number_after(text: &str, word: &str) -> Option<u32> {
    let (_, rest) = text.split_once(word)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

/// A quoted string; other characters would need a literal.
fn quoted(text: &str) -> io::Result<Zeroizing<String>> {
    if !text.chars().all(|c| (' '..='~').contains(&c)) {
        return Err(odd(
            "user and password of the bench must be printable ASCII",
        ));
    }
    let escaped = Zeroizing::new(text.replace('\\', "\\\\").replace('"', "\\\""));
    Ok(Zeroizing::new(format!("\"{}\"", *escaped)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        assert!(is_exists("* 12 EXISTS\r\n"));
        assert!(!is_exists("* 12 RECENT\r\n"));
        assert!(!is_exists("* OK Still here\r\n"));
        assert_eq!(
            literal(b"* 1 FETCH (UID 4 BODY[HEADER] {312}\r\n"),
            Some(312)
        );
        assert_eq!(literal(b"* 1 FETCH (UID 4)\r\n"), None);
        assert_eq!(number_after("* OK [UIDNEXT 17] x", "[UIDNEXT "), Some(17));
        assert_eq!(quoted(r#"a"\"#).unwrap().as_str(), r#""a\"\\""#);
        assert!(quoted("a\r\nb").is_err());
    }
}
