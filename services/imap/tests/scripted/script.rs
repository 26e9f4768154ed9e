//! A server that says what a test has written down.

use std::time::Duration;

use mailbell_imap::{
    Connection, Endpoint, Error, Login, Patience, Settings, Stream, TlsMode, TlsSettings,
};
use mailbell_test_servers::Certificate;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream, DuplexStream,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What the server does.
pub(crate) enum Step {
    /// Sends text; `{tag}` stands for the tag of the last command.
    Say(String),
    /// Reads a command, which must contain the text, and answers.
    Answer(&'static str, String),
    /// Reads a line that isn't a command and must be exactly this.
    Expect(&'static str),
    /// Waits.
    Pause(Duration),
    /// Sends the same without end, until nobody reads.
    Flood(String),
}

pub(crate) fn say(text: &str) -> Step {
    Step::Say(text.to_owned())
}

pub(crate) fn answer(command: &'static str, text: &str) -> Step {
    Step::Answer(command, text.to_owned())
}

/// Runs the steps, then keeps the connection open and silent until the client goes. Gives back how many bytes it could
/// send.
pub(crate) fn serve(steps: Vec<Step>) -> (Stream, JoinHandle<usize>) {
    let (client, server) = tokio::io::duplex(4096);
    let served = tokio::spawn(async move {
        let mut stream = BufStream::new(server);
        let mut sent = 0;
        let mut tag = String::new();
        for step in steps {
            match step {
                Step::Say(text) => sent += send(&mut stream, &text.replace("{tag}", &tag)).await,
                Step::Answer(expected, text) => {
                    let line = read_line(&mut stream).await;
                    assert!(
                        line.contains(expected),
                        "expected {expected:?}, got {line:?}"
                    );
                    tag = line.split(' ').next().unwrap_or_default().to_owned();
                    sent += send(&mut stream, &text.replace("{tag}", &tag)).await;
                }
                Step::Expect(expected) => assert_eq!(read_line(&mut stream).await, expected),
                Step::Pause(duration) => tokio::time::sleep(duration).await,
                Step::Flood(text) => loop {
                    match send(&mut stream, &text).await {
                        0 => return sent,
                        count => sent += count,
                    }
                },
            }
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
        sent
    });
    (Box::new(client), served)
}

/// Says how much could be sent.
async fn send(stream: &mut BufStream<DuplexStream>, text: &str) -> usize {
    let mut sent = 0;
    for chunk in text.as_bytes().chunks(1000) {
        if stream.write_all(chunk).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        sent += chunk.len();
    }
    sent
}

async fn read_line(stream: &mut BufStream<DuplexStream>) -> String {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.unwrap();
    String::from_utf8(line)
        .unwrap()
        .trim_end_matches(['\r', '\n'])
        .to_owned()
}

pub(crate) fn plain() -> Endpoint {
    Endpoint {
        host: "localhost".into(),
        port: 1,
        tls: TlsMode::Plain,
    }
}

pub(crate) fn settings() -> Settings {
    let tls = TlsSettings::only([Certificate::localhost().authority_pem.as_bytes()]).unwrap();
    let mut settings = Settings::new(tls);
    settings.allow_plaintext = true;
    settings
}

pub(crate) fn login() -> Login {
    Login {
        user: "alice".into(),
        secret: b"secret".to_vec().into(),
    }
}

/// Opens a connection to a server that greets with these steps.
pub(crate) async fn open(steps: Vec<Step>) -> Result<Connection, Error> {
    let (stream, _) = serve(steps);
    Connection::over(stream, &plain(), &login(), &settings(), Duration::ZERO).await
}

/// A logged-in connection to a server with these capabilities, which then takes these steps.
pub(crate) async fn connected(capabilities: &str, steps: Vec<Step>) -> Connection {
    served(capabilities, steps).await.0
}

/// As [`connected`], with the server's task.
pub(crate) async fn served(
    capabilities: &str,
    steps: Vec<Step>,
) -> (Connection, JoinHandle<usize>) {
    let capabilities = format!("IMAP4rev1 {capabilities}");
    let capabilities = capabilities.trim_end();
    let mut all = vec![
        say("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi\r\n"),
        Step::Answer(
            "AUTHENTICATE PLAIN ",
            format!("{{tag}} OK [CAPABILITY {capabilities}] in\r\n"),
        ),
    ];
    all.extend(steps);
    let (stream, served) = serve(all);
    let connection = Connection::over(stream, &plain(), &login(), &settings(), Duration::ZERO)
        .await
        .unwrap();
    (connection, served)
}

/// The answer to EXAMINE of a folder with so many messages.
pub(crate) fn examine(exists: u32, uid_next: u32) -> Step {
    Step::Answer(
        "EXAMINE \"INBOX\"",
        format!(
            "* {exists} EXISTS\r\n* OK [UIDVALIDITY 9] x\r\n* OK [UIDNEXT {uid_next}] x\r\n{{tag}} OK [READ-ONLY] x\r\n"
        ),
    )
}

pub(crate) fn patience(until: u64, quiet: u64) -> Patience {
    Patience {
        until: Instant::now() + Duration::from_secs(until),
        quiet: Duration::from_secs(quiet),
    }
}

/// A connection that has looked at a folder with one message.
pub(crate) async fn looked(capabilities: &str, mut steps: Vec<Step>) -> Connection {
    steps.splice(
        0..0,
        [
            examine(1, 2),
            answer("FETCH 1 (UID)", "* 1 FETCH (UID 1)\r\n{tag} OK\r\n"),
        ],
    );
    let mut connection = connected(capabilities, steps).await;
    assert_eq!(
        connection.look("INBOX", 1, 10, false).await.unwrap().uids,
        [1]
    );
    connection
}
