//! What is done on the mail connection, one thing at a time, each as a future that owns the connection while it runs.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use mailbell_core::{
    checkpoint::{Checkpoint, Folder},
    ids::{FolderId, INBOX},
    session::{Failure, Look, Op, Wake},
};
use mailbell_imap::{self as imap, Connection, Endpoint, Login, Parked, Patience};
use mailbell_proto::{bus::v1::PageResult, push::v1::Message};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use super::context::{Context, time_of};
use crate::{
    clock::Clock,
    failure,
    ledger::Boxed,
    message::convert,
    requests::list::{self, Problem},
    slot::ListRequest,
};

/// A server that has IDLE and refuses it is looked at this often.
const IDLE_REFUSED: Duration = Duration::from_secs(60);
/// A server that ends IDLE by itself is asked for it no more often than this.
const IDLE_LEAST: Duration = Duration::from_secs(5);
/// How a connection is made: over the network, or to a test's server.
pub(crate) trait Connect: Send + Sync + 'static {
    fn connect<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        login: &'a Login,
        settings: &'a imap::Settings,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, imap::Error>> + Send + 'a>>;
}

/// Over the network.
#[derive(Debug)]
pub(crate) struct Dial;

impl Connect for Dial {
    fn connect<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        login: &'a Login,
        settings: &'a imap::Settings,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, imap::Error>> + Send + 'a>> {
        Box::pin(Connection::open(endpoint, login, settings))
    }
}

/// What a piece of work on the connection brought.
pub(super) enum Done {
    Opened {
        connection: Box<Connection>,
        quiet_folders: Vec<String>,
    },
    Looked {
        connection: Box<Connection>,
        look: Look,
    },
    Fetched {
        connection: Box<Connection>,
        messages: Vec<Message>,
        began: SystemTime,
    },
    /// Ready to wait.
    Armed {
        parked: Parked,
        park: Park,
    },
    /// The server was silent but is there: wait on.
    Again {
        connection: Box<Connection>,
        park: Park,
    },
    Woken {
        connection: Box<Connection>,
        wake: Wake,
    },
    Polled {
        connection: Box<Connection>,
        changed: bool,
    },
    Served {
        connection: Box<Connection>,
    },
    Closed,
    /// Not even begun, since the host fails for many; the rest goes on to wait.
    Held {
        rest: Boxed<Done>,
    },
    Failed {
        connection: Option<Box<Connection>>,
        failure: Failure,
    },
}

impl Done {
    fn failed(error: &imap::Error, folder: &str) -> Self {
        Self::Failed {
            connection: None,
            failure: failure::of_mail(error, folder),
        }
    }
}

enum State {
    Gone,
    Free(Box<Connection>),
    Busy(Op, Boxed<Done>),
}

/// The connection, or what is being done with it.
pub(super) struct Mail {
    state: State,
    /// Wakes a connection that is parked, or is about to be.
    interrupt: Option<oneshot::Sender<()>>,
}

impl Mail {
    pub(super) fn gone() -> Self {
        Self {
            state: State::Gone,
            interrupt: None,
        }
    }

    /// Drops the connection, whatever it does.
    pub(super) fn drop_it(&mut self) {
        *self = Self::gone();
    }

    /// The connection has nothing to do.
    pub(super) fn free(&mut self, connection: Box<Connection>) {
        self.state = State::Free(connection);
    }

    pub(super) fn busy(&mut self, op: Op, work: Boxed<Done>) {
        self.state = State::Busy(op, work);
    }

    /// Takes the connection out, if it has nothing to do.
    pub(super) fn take(&mut self) -> Option<Box<Connection>> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Free(connection) => Some(connection),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Begins to park the free connection; whether there is one.
    pub(super) fn park(&mut self, op: Op, idle: bool, until: Instant, context: &Context) -> bool {
        let (wake, interrupt) = oneshot::channel();
        let park = Park {
            idle,
            until,
            quiet: context.quiet,
            clock: Arc::clone(&context.clock),
            interrupt,
        };
        self.interrupt = Some(wake);
        self.arm(op, park)
    }

    /// Parks again what was only silent.
    pub(super) fn arm(&mut self, op: Op, park: Park) -> bool {
        let Some(connection) = self.take() else {
            return false;
        };
        self.busy(op, Box::pin(arm(connection, park)));
        true
    }

    /// Waits with what is ready to wait.
    pub(super) fn wait(&mut self, op: Op, parked: Parked, park: Park) {
        self.busy(op, Box::pin(wait(parked, park)));
    }

    /// Wakes the parked connection.
    pub(super) fn interrupt(&mut self) {
        if let Some(interrupt) = self.interrupt.take() {
            // It may have woken by itself.
            let _ = interrupt.send(());
        }
    }

    /// What the work brought, once; never if there is none. Cancel-safe: the work goes on where it was.
    pub(super) async fn finished(&mut self) -> (Op, Done) {
        poll_fn(|cx| {
            let State::Busy(op, work) = &mut self.state else {
                return Poll::Pending;
            };
            let done = std::task::ready!(work.as_mut().poll(cx));
            let op = *op;
            self.state = State::Gone;
            if !matches!(done, Done::Armed { .. } | Done::Again { .. }) {
                self.interrupt = None;
            }
            Poll::Ready((op, done))
        })
        .await
    }
}

/// How a connection is parked.
pub(super) struct Park {
    idle: bool,
    until: Instant,
    quiet: Duration,
    clock: Arc<Clock>,
    interrupt: oneshot::Receiver<()>,
}

async fn arm(connection: Box<Connection>, park: Park) -> Done {
    match connection.park().await {
        Ok(parked) => Done::Armed { parked, park },
        Err(error) => Done::failed(&error, ""),
    }
}

async fn wait(parked: Parked, mut park: Park) -> Done {
    let begun = Instant::now();
    let refused = park.idle && !parked.is_idling() && !parked.is_dirty();
    let until = if refused {
        park.until.min(begun + IDLE_REFUSED)
    } else {
        park.until
    };
    // Only a server that idles has anything to say, and only there silence means anything.
    let quiet = if parked.is_idling() {
        park.quiet
    } else {
        until.saturating_duration_since(begun) + Duration::from_secs(1)
    };
    let interrupt = async {
        // Its sender lives as long as this future.
        let _ = (&mut park.interrupt).await;
    };
    let waited = parked.wait(Patience { until, quiet }, interrupt).await;
    let (mut connection, wake) = match waited {
        Ok((connection, wake)) => (Box::new(connection), wake),
        Err(error) => return Done::failed(&error, ""),
    };
    let wake = match wake {
        imap::Wake::Changed => {
            let ago = connection
                .noticed_at()
                .map_or(Duration::ZERO, |at| at.elapsed());
            let ago_us = i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
            // The session knows now. It may have to wait with the look, while NATS is away; the connection then waits too.
            connection.acknowledge();
            Wake::Changed {
                noticed_us: park.clock.now_us().saturating_sub(ago_us),
            }
        }
        imap::Wake::Quiet => return Done::Again { connection, park },
        imap::Wake::Interrupted => Wake::Interrupted,
        imap::Wake::Expired => Wake::Expired,
        imap::Wake::Ended => {
            let again = begun + IDLE_LEAST;
            tokio::select! {
                // Whichever: both lead to a look. No arm holds anything.
                biased;
                _ = &mut park.interrupt => Wake::Interrupted,
                () = sleep_until(again) => Wake::Expired,
            }
        }
    };
    Done::Woken { connection, wake }
}

pub(super) async fn look(
    mut connection: Box<Connection>,
    folder: String,
    select: bool,
    from: u32,
    most: u32,
    holes: Vec<(u32, u32)>,
) -> Done {
    let found = async {
        let mut found = connection.look(&folder, from, most, select).await?;
        if !found.complete {
            // Announced, but not to be fetched yet. What UIDNEXT is says whether more is to be expected.
            found = connection.look(&folder, from, most, true).await?;
        }
        let late = connection.existing(&holes).await?;
        Ok::<_, imap::Error>((found, late))
    };
    match found.await {
        Ok((found, late)) => Done::Looked {
            connection,
            look: Look {
                generation: found.uid_validity,
                uid_next: found.uid_next,
                uid_next_exact: found.uid_next_exact,
                total_new: found.total_new,
                uids: found.uids,
                late,
            },
        },
        Err(error @ imap::Error::NoSuchFolder) => Done::Failed {
            connection: Some(connection),
            failure: failure::of_mail(&error, &folder),
        },
        Err(error) => Done::failed(&error, &folder),
    }
}

pub(super) async fn fetch(
    mut connection: Box<Connection>,
    uids: Vec<u32>,
    clock: Arc<Clock>,
) -> Done {
    let began = time_of(clock.now_us());
    match connection.fetch(&uids).await {
        Ok(messages) => {
            let now_ms = clock.now_us() / 1000;
            let content = connection.content();
            Done::Fetched {
                connection,
                messages: messages
                    .into_iter()
                    .map(|message| convert(message, now_ms, content))
                    .collect(),
                began,
            }
        }
        Err(error) => Done::failed(&error, ""),
    }
}

pub(super) async fn poll(mut connection: Box<Connection>) -> Done {
    match connection.noop().await {
        Ok(changed) => {
            connection.acknowledge();
            Done::Polled {
                connection,
                changed,
            }
        }
        Err(error) => Done::failed(&error, ""),
    }
}

pub(super) async fn close(connection: Box<Connection>) -> Done {
    connection.logout().await;
    Done::Closed
}

/// A request with the name of its folder, if the account has it.
pub(super) type Named = (Option<String>, ListRequest);

pub(super) fn name_folders(requests: Vec<ListRequest>, checkpoint: &Checkpoint) -> Vec<Named> {
    let name = |id| match checkpoint.folder(id) {
        Some(folder) => Some(folder.name.clone()),
        None if id == INBOX => Some("INBOX".to_owned()),
        None => None,
    };
    requests
        .into_iter()
        .map(|request| (name(request.page.folder.max(INBOX)), request))
        .collect()
}

/// The numbers of the folders that are watched, of those that have one: a client that lists an account anew asks for each.
pub(super) fn watched_folders(names: &[String], checkpoint: &Checkpoint) -> Vec<FolderId> {
    let is_watched = |folder: &Folder| folder.id == INBOX || names.contains(&folder.name);
    checkpoint
        .folders
        .iter()
        .filter(|folder| is_watched(folder))
        .map(|folder| folder.id)
        .collect()
}

/// Answers requests one after the other. What fails on the connection's side ends it, and all that wait are told to try again.
pub(super) async fn serve(
    mut connection: Box<Connection>,
    requests: Vec<Named>,
    watched: Vec<FolderId>,
    page_time: Duration,
) -> Done {
    let mut broken: Option<Failure> = None;
    for (folder, request) in requests {
        if request.reply.is_closed() {
            continue;
        }
        if broken.is_some() {
            request.refuse(failure::NOT_CONNECTED);
            continue;
        }
        let Some(folder) = folder else {
            request.refuse("no-such-folder");
            continue;
        };
        let page = list::page(&mut connection, &folder, &request.page);
        let answer = match timeout(page_time, page).await {
            Ok(Ok(page)) => Ok(PageResult {
                folders: watched.clone(),
                ..page
            }),
            Ok(Err(Problem::Refused(code))) => Err(failure::refused(code)),
            Ok(Err(Problem::Mail(error @ imap::Error::NoSuchFolder))) => {
                Err(failure::refuse(&failure::of_mail(&error, &folder)))
            }
            Ok(Err(Problem::Mail(error))) => Err(failure::refuse(
                broken.insert(failure::of_mail(&error, &folder)),
            )),
            // An answer is half read: the connection is of no more use.
            Err(_) => Err(failure::refuse(
                broken.insert(failure::of_mail(&imap::Error::Timeout("a page"), &folder)),
            )),
        };
        // Who asked may be gone.
        let _ = request.reply.send(answer);
    }
    match broken {
        None => Done::Served { connection },
        Some(failure) => Done::Failed {
            connection: None,
            failure,
        },
    }
}
