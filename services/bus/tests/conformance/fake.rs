//! A replica of a log that lags, or loses messages: real ones do so only by chance.
//!
//! The server is told not to answer direct gets of the log; the fake answers instead, out of what the log has. It speaks the
//! protocol itself, since a client library writes no status lines.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::Engine as _;
use mailbell_core::ids::Group;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
    task::JoinHandle,
};

use crate::world::{PASSWORD, World, api};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Lag {
    /// It knows nothing, and answers a bare 404.
    Nothing,
    /// It knows the log up to this position.
    Knows(u64),
    /// The message of this position is lost on its way, once.
    Loses(u64),
}

pub(crate) struct Fake {
    task: JoinHandle<()>,
    asked: Arc<AtomicUsize>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Known {
    position: u64,
    subject: String,
    payload: Vec<u8>,
}

impl Fake {
    pub(crate) async fn start(world: &World, group: Group, lag: Lag) -> Self {
        let client = world.operator().await;
        let stream = format!("MB_main_LOG_{group}");
        let info = api(&client, &format!("STREAM.INFO.{stream}"), json!({})).await;
        let mut config = info["config"].clone();
        config["allow_direct"] = json!(false);
        let updated = api(&client, &format!("STREAM.UPDATE.{stream}"), config).await;
        assert_ne!(updated["config"]["allow_direct"], json!(true), "{updated}");
        let mut log = Vec::new();
        for position in 1..=info["state"]["last_seq"].as_u64().unwrap() {
            let got = api(
                &client,
                &format!("STREAM.MSG.GET.{stream}"),
                json!({ "seq": position }),
            )
            .await;
            let data = got["message"]["data"].as_str().unwrap();
            let payload = base64::engine::general_purpose::STANDARD
                .decode(data)
                .unwrap();
            log.push(Known {
                position,
                subject: got["message"]["subject"].as_str().unwrap().to_owned(),
                payload,
            });
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let mut wire = BufStream::new(
            TcpStream::connect(("127.0.0.1", world.server.port()))
                .await
                .unwrap(),
        );
        let connect = json!({ "user": "operator", "pass": PASSWORD, "verbose": false, "headers": true, "echo": true });
        let hello = format!("CONNECT {connect}\r\nSUB $JS.API.DIRECT.GET.{stream} 1\r\nPING\r\n");
        wire.write_all(hello.as_bytes()).await.unwrap();
        wire.flush().await.unwrap();
        let mut line = String::new();
        while line != "PONG\r\n" {
            line.clear();
            assert_ne!(wire.read_line(&mut line).await.unwrap(), 0);
        }
        let task = tokio::spawn(serve(wire, stream, log, lag, Arc::clone(&asked)));
        Self { task, asked }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn serve(
    mut wire: BufStream<TcpStream>,
    stream: String,
    log: Vec<Known>,
    mut lag: Lag,
    asked: Arc<AtomicUsize>,
) {
    let mut line = String::new();
    loop {
        line.clear();
        if wire.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["PING"] => wire.write_all(b"PONG\r\n").await.unwrap(),
            ["MSG", _subject, _sid, reply, length] => {
                asked.fetch_add(1, Ordering::Relaxed);
                let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
                wire.read_exact(&mut payload).await.unwrap();
                let question = serde_json::from_slice(&payload).unwrap();
                let answers = answers(&stream, &log, &question, &mut lag);
                for (headers, payload) in answers {
                    let head = format!(
                        "HPUB {reply} {} {}\r\n{headers}",
                        headers.len(),
                        headers.len() + payload.len()
                    );
                    wire.write_all(head.as_bytes()).await.unwrap();
                    wire.write_all(&payload).await.unwrap();
                    wire.write_all(b"\r\n").await.unwrap();
                }
            }
            _ => {}
        }
        wire.flush().await.unwrap();
    }
}

/// What the server answers to a batch direct get, header block and payload each.
fn answers(stream: &str, log: &[Known], question: &Value, lag: &mut Lag) -> Vec<(String, Vec<u8>)> {
    let (start, batch) = (
        question["seq"].as_u64().unwrap(),
        question["batch"].as_u64().unwrap(),
    );
    let filter = question["next_by_subj"].as_str().unwrap();
    let matches = |subject: &str| match filter.strip_suffix('>') {
        Some(prefix) => subject.starts_with(prefix),
        None => subject == filter,
    };
    let end = match *lag {
        Lag::Nothing => 0,
        Lag::Knows(end) => end,
        Lag::Loses(_) => u64::MAX,
    };
    let found: Vec<&Known> = log
        .iter()
        .filter(|known| (start..=end).contains(&known.position) && matches(&known.subject))
        .collect();
    if found.is_empty() {
        return vec![(
            "NATS/1.0 404 Message Not Found\r\n\r\n".to_owned(),
            Vec::new(),
        )];
    }
    let mut answers = Vec::new();
    let (mut last, mut pending) = (0, found.len());
    for known in found.into_iter().take(usize::try_from(batch).unwrap()) {
        let Known {
            position,
            subject,
            payload,
        } = known;
        pending -= 1;
        let headers = format!(
            "NATS/1.0\r\nNats-Stream: {stream}\r\nNats-Subject: {subject}\r\nNats-Sequence: {position}\r\n\
             Nats-Time-Stamp: 2026-01-01T00:00:00.000000001Z\r\nNats-Num-Pending: {pending}\r\n\
             Nats-Last-Sequence: {last}\r\n\r\n"
        );
        last = *position;
        if matches!(lag, Lag::Loses(lost) if *lost == last) {
            *lag = Lag::Loses(0);
        } else {
            answers.push((headers, payload.clone()));
        }
    }
    let end = format!(
        "NATS/1.0 204 EOB\r\nNats-Num-Pending: {pending}\r\nNats-Last-Sequence: {last}\r\n\r\n"
    );
    answers.push((end, Vec::new()));
    answers
}
