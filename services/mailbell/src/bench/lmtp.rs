//! Delivers messages as a mail server does (RFC 2033), over one connection, each confirmed before the next.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
const MAX_LINE: u64 = 4096;

/// An open LMTP connection.
pub(super) struct Lmtp {
    stream: BufStream<TcpStream>,
    recipient: String,
}

impl Lmtp {
    /// Connects to `host:port`; everything goes to `recipient`.
    pub(super) async fn connect(server: &str, recipient: &str) -> io::Result<Self> {
        if recipient
            .chars()
            .any(|c| c.is_control() || c == '<' || c == '>')
        {
            return Err(io::Error::other("this is no recipient"));
        }
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let mut lmtp = Self {
            stream: BufStream::new(stream),
            recipient: recipient.to_owned(),
        };
        lmtp.answer("220").await?;
        lmtp.say("LHLO localhost\r\n", "250").await?;
        Ok(lmtp)
    }

    /// Delivers one message whose lines end with CRLF and do not begin with a dot.
    pub(super) async fn deliver(&mut self, message: &str) -> io::Result<()> {
        self.say("MAIL FROM:<bench@example.org>\r\n", "250").await?;
        let recipient = format!("RCPT TO:<{}>\r\n", self.recipient);
        self.say(&recipient, "250").await?;
        self.say("DATA\r\n", "354").await?;
        self.stream.write_all(message.as_bytes()).await?;
        self.say(".\r\n", "250").await
    }

    async fn say(&mut self, text: &str, code: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await?;
        self.answer(code).await
    }

    async fn answer(&mut self, code: &str) -> io::Result<()> {
        loop {
            let mut line = String::new();
            let mut limited = (&mut self.stream).take(MAX_LINE);
            let read = timeout(LIMIT, limited.read_line(&mut line)).await??;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !line.starts_with(code) {
                return Err(io::Error::other(format!(
                    "the LMTP server says {:?}",
                    line.trim_end()
                )));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}
