//! A mail server in memory, with one folder, that does what a test says.

use std::{
    fmt::Write as _,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

use mailbell_imap::{Connection, Endpoint, Error, Login, Settings};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream, DuplexStream},
    sync::watch,
    time::Duration,
};

use crate::driver::Connect;

/// What a test changes and looks at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mailbox {
    /// Ascending.
    pub(crate) uids: Vec<u32>,
    pub(crate) generation: u32,
    pub(crate) idle: bool,
    /// Says nothing any more, on any connection that is open now or later.
    pub(crate) mute: bool,
    /// Mute once it has read more commands than this.
    pub(crate) mute_after: Option<usize>,
    /// Refuses every login.
    pub(crate) refuse: bool,
    pub(crate) logins: u32,
    pub(crate) logouts: u32,
    /// Connections that idle now.
    pub(crate) idling: u32,
    /// Commands in the order in which they came, without tags.
    pub(crate) commands: Vec<String>,
}

/// The server. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) mailbox: Arc<watch::Sender<Mailbox>>,
    /// Connections break when it changes.
    breaks: Arc<watch::Sender<u32>>,
    tasks: Arc<Mutex<tokio::task::JoinSet<()>>>,
}

impl Server {
    pub(crate) fn new(uids: &[u32]) -> Self {
        let (mailbox, _) = watch::channel(Mailbox {
            uids: uids.to_vec(),
            generation: 9,
            idle: true,
            ..Mailbox::default()
        });
        Self {
            mailbox: Arc::new(mailbox),
            breaks: Arc::new(watch::channel(0).0),
            tasks: Arc::default(),
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Mailbox)) {
        self.mailbox.send_modify(change);
    }

    pub(crate) fn deliver(&self, uid: u32) {
        self.change(|mailbox| mailbox.uids.push(uid));
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&Mailbox) -> T) -> T {
        look(&self.mailbox.borrow())
    }

    /// Waits until the mailbox is as `wanted` says.
    pub(crate) async fn until(&self, wanted: impl FnMut(&Mailbox) -> bool) {
        let mut changes = self.mailbox.subscribe();
        tokio::time::timeout(Duration::from_secs(7200), changes.wait_for(wanted))
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) fn break_connections(&self) {
        self.breaks.send_modify(|count| *count += 1);
    }
}

impl Connect for Server {
    fn connect<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        login: &'a Login,
        settings: &'a Settings,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let serving = serve(theirs, self.clone());
        let mut breaks = self.breaks.subscribe();
        self.tasks.lock().unwrap().spawn(async move {
            tokio::select! {
                _ = serving => {}
                _ = breaks.changed() => {}
            }
        });
        Box::pin(Connection::over(
            Box::new(ours),
            endpoint,
            login,
            settings,
            Duration::ZERO,
        ))
    }
}

async fn serve(stream: DuplexStream, server: Server) -> Option<()> {
    let mut stream = BufStream::new(stream);
    let capabilities = if server.look(|mailbox| mailbox.idle) {
        "IMAP4rev1 IDLE AUTH=PLAIN SASL-IR"
    } else {
        "IMAP4rev1 AUTH=PLAIN SASL-IR"
    };
    say(
        &mut stream,
        &server,
        &format!("* OK [CAPABILITY {capabilities}] hi\r\n"),
    )
    .await?;
    let mut seen = 0;
    loop {
        let line = read(&mut stream).await?;
        let (tag, command) = line.split_once(' ')?;
        let shown = command
            .split(" PLAIN")
            .next()
            .unwrap_or_default()
            .to_owned();
        server.change(|mailbox| {
            mailbox.commands.push(shown);
            let most = mailbox.mute_after;
            mailbox.mute |= most.is_some_and(|most| mailbox.commands.len() > most);
        });
        let word = command.split(' ').next().unwrap_or_default();
        let mailbox = server.mailbox.borrow().clone();
        let mut answer = String::new();
        match word {
            "AUTHENTICATE" if mailbox.refuse => {
                let no = format!("{tag} NO [AUTHENTICATIONFAILED] no\r\n");
                say(&mut stream, &server, &no).await?;
                continue;
            }
            "AUTHENTICATE" => {
                server.change(|mailbox| mailbox.logins += 1);
                let _ = write!(answer, "* CAPABILITY {capabilities}\r\n");
            }
            "EXAMINE" => {
                seen = mailbox.uids.len();
                let next = mailbox.uids.last().map_or(1, |uid| uid + 1);
                let _ = write!(
                    answer,
                    "* {seen} EXISTS\r\n* OK [UIDVALIDITY {}] x\r\n* OK [UIDNEXT {next}] x\r\n",
                    mailbox.generation
                );
            }
            "FETCH" | "UID" => answer = fetch(command, &mailbox),
            "IDLE" => {
                seen = idle(&mut stream, &server, seen).await?;
            }
            "NOOP" if seen != mailbox.uids.len() => {
                seen = mailbox.uids.len();
                let _ = write!(answer, "* {seen} EXISTS\r\n");
            }
            "LOGOUT" => {
                server.change(|mailbox| mailbox.logouts += 1);
                answer.push_str("* BYE\r\n");
            }
            _ => {}
        }
        answer.push_str(&format!("{tag} OK done\r\n"));
        say(&mut stream, &server, &answer).await?;
        if word == "LOGOUT" {
            return Some(());
        }
    }
}

async fn idle(
    stream: &mut BufStream<DuplexStream>,
    server: &Server,
    mut seen: usize,
) -> Option<usize> {
    say(stream, server, "+ idling\r\n").await?;
    server.change(|mailbox| mailbox.idling += 1);
    let mut changes = server.mailbox.subscribe();
    let done = loop {
        let now = changes.borrow_and_update().uids.len();
        if now != seen {
            seen = now;
            if say(stream, server, &format!("* {seen} EXISTS\r\n"))
                .await
                .is_none()
            {
                break None;
            }
        }
        let mut line = String::new();
        tokio::select! {
            _ = changes.changed() => {}
            read = stream.read_line(&mut line) => {
                break read.ok().filter(|bytes| *bytes > 0);
            }
        }
    };
    server.change(|mailbox| mailbox.idling -= 1);
    done.map(|_| seen)
}

/// Answers `FETCH 1:3 (UID)`, `UID FETCH 5,7:9 (...)`.
fn fetch(command: &str, mailbox: &Mailbox) -> String {
    let by_uid = command.starts_with("UID ");
    let command = command.trim_start_matches("UID ");
    let mut words = command.splitn(3, ' ').skip(1);
    let (set, items) = (words.next().unwrap(), words.next().unwrap());
    let within = |number: u32| {
        set.split(',').any(|range| {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            (first.parse::<u32>().unwrap()..=last.parse().unwrap()).contains(&number)
        })
    };
    let mut answer = String::new();
    for (index, uid) in mailbox.uids.iter().enumerate() {
        let sequence = u32::try_from(index).unwrap() + 1;
        if !within(if by_uid { *uid } else { sequence }) {
            continue;
        }
        let _ = write!(answer, "* {sequence} FETCH (UID {uid}");
        if items.contains("INTERNALDATE") {
            let header = format!("Subject: message {uid}\r\nMessage-ID: <{uid}@test>\r\n\r\n");
            let _ = write!(
                answer,
                " FLAGS () INTERNALDATE \"23-Nov-2033 10:00:00 +0000\" RFC822.SIZE 100 \
                 BODYSTRUCTURE (\"TEXT\" \"PLAIN\" NIL NIL NIL \"7BIT\" 4 1) \
                 BODY[HEADER.FIELDS (SUBJECT)]<0> {{{}}}\r\n{header}",
                header.len()
            );
        } else if items.contains("BODY.PEEK[1]") {
            answer.push_str(" BODY[1]<0> {4}\r\ntext");
        }
        answer.push_str(")\r\n");
    }
    answer
}

async fn read(stream: &mut BufStream<DuplexStream>) -> Option<String> {
    let mut line = String::new();
    stream
        .read_line(&mut line)
        .await
        .ok()
        .filter(|bytes| *bytes > 0)?;
    Some(line.trim_end().to_owned())
}

async fn say(stream: &mut BufStream<DuplexStream>, server: &Server, text: &str) -> Option<()> {
    if server.look(|mailbox| mailbox.mute) {
        // The link is dead: nobody hears anything, and nobody says that it broke.
        std::future::pending::<()>().await;
    }
    stream.write_all(text.as_bytes()).await.ok()?;
    stream.flush().await.ok()
}
