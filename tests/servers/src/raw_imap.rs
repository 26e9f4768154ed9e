//! The plainest IMAP client: what lies in a mailbox, read without any of the code under test.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

/// A logged-in connection in plain text to a test server on loopback.
#[derive(Debug)]
pub struct RawImap {
    stream: BufStream<TcpStream>,
    tags: u32,
}

impl RawImap {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn login(port: u16, user: &str, password: &str) -> io::Result<Self> {
        let stream = BufStream::new(TcpStream::connect(("127.0.0.1", port)).await?);
        let mut this = Self { stream, tags: 0 };
        this.read_response().await?;
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let (user, password) = (escape(user), escape(password));
        this.command(&format!("LOGIN \"{user}\" \"{password}\""))
            .await?;
        Ok(this)
    }

    /// Sends a command and returns everything up to its tagged answer, which is included.
    ///
    /// # Errors
    /// When the connection ends or the answer isn't OK.
    pub async fn command(&mut self, command: &str) -> io::Result<String> {
        let tag = self.begin(command).await?;
        self.finish(&tag).await
    }

    /// Appends a message to a folder; returns the server's answer, which has the APPENDUID.
    ///
    /// # Errors
    /// When the connection ends or the answer isn't OK.
    pub async fn append(
        &mut self,
        folder: &str,
        flags: &str,
        message: &[u8],
    ) -> io::Result<String> {
        let tag = self
            .begin(&format!(
                "APPEND \"{folder}\" ({flags}) {{{}}}",
                message.len()
            ))
            .await?;
        let go_on = self.read_response().await?;
        if !go_on.starts_with(b"+") {
            return Err(io::Error::other(
                String::from_utf8_lossy(&go_on).into_owned(),
            ));
        }
        self.stream.write_all(message).await?;
        self.stream.write_all(b"\r\n").await?;
        self.stream.flush().await?;
        self.finish(&tag).await
    }

    /// Reads one response, literals included.
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn read_response(&mut self) -> io::Result<Vec<u8>> {
        let mut response = Vec::new();
        loop {
            let start = response.len();
            if self.stream.read_until(b'\n', &mut response).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = response.get(start..).unwrap_or_default().trim_ascii_end();
            let literal = line
                .strip_suffix(b"}")
                .and_then(|rest| {
                    rest.iter()
                        .rposition(|b| *b == b'{')
                        .and_then(|at| rest.get(at + 1..))
                })
                .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
            let Some(size) = literal else {
                return Ok(response);
            };
            let at = response.len();
            response.resize(at + size, 0);
            self.stream
                .read_exact(response.get_mut(at..).unwrap_or_default())
                .await?;
        }
    }

    /// Sends a command and returns its tag; what is answered is for [`RawImap::read_response`].
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn begin(&mut self, command: &str) -> io::Result<String> {
        self.tags += 1;
        let tag = format!("T{}", self.tags);
        self.stream
            .write_all(format!("{tag} {command}\r\n").as_bytes())
            .await?;
        self.stream.flush().await?;
        Ok(tag)
    }

    async fn finish(&mut self, tag: &str) -> io::Result<String> {
        let mut answer = String::new();
        loop {
            let response = self.read_response().await?;
            answer.push_str(&String::from_utf8_lossy(&response));
            if let Some(status) = response.strip_prefix(tag.as_bytes()) {
                return if status.trim_ascii_start().starts_with(b"OK") {
                    Ok(answer)
                } else {
                    Err(io::Error::other(answer))
                };
            }
        }
    }
}
