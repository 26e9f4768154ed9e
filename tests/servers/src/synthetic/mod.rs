//! A mail server for thousands of accounts in the process of the test, which does what the test says and remembers who held which
//! session when.
//!
//! It speaks as much IMAP as Mailbell asks of a server, over plain TCP on loopback. Users are `u0`, `u1` and so on, with one password,
//! and each has an INBOX. New mail is announced at once, also during IDLE. A connection that idles costs a task of about one
//! kilobyte, and its socket.
//!
//! [`Conduct`] says how it treats those who come: logins refused, answers late, nobody let in. [`SyntheticImap::listen`] opens a
//! further way in, so that the sessions of one watcher can be told from those of another; put a [`crate::Proxy`] before it to cut
//! that watcher off. [`SyntheticImap::records`] is what the server saw, for a judge.
//!
//! # What it leaves out
//! TLS and STARTTLS; every folder but INBOX; flags, and whatever changes a mailbox (`STORE`, `APPEND`, `EXPUNGE`: mail comes by
//! [`SyntheticImap::deliver`] and stays); `SEARCH`; `NOTIFY`, `CONDSTORE`, `OBJECTID`; literals in commands; message parts other than
//! one text (a multipart message is told as if it were plain text). A test of such things wants [`crate::Dovecot`].

mod conduct;
mod fetch;
mod mailbox;
mod records;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use self::conduct::{Conduct, Delays, Greeting, LoginAnswer};
use self::mailbox::Mailbox;
pub use self::mailbox::Stored;
use self::records::Records;
pub use self::records::{Idle, SessionRecord};
use crate::door::Door;

/// What to start.
#[derive(Debug, Clone)]
pub struct SyntheticOptions {
    /// So many users, from `u0` on.
    pub users: usize,
    /// The password of each.
    pub password: String,
}

impl Default for SyntheticOptions {
    fn default() -> Self {
        Self {
            users: 1,
            password: "secret".to_owned(),
        }
    }
}

/// What sessions share.
struct Shared {
    password: String,
    mailboxes: Vec<Mailbox>,
    conduct: watch::Sender<Conduct>,
    records: Records,
}

/// The server. Dropped, it ends all its connections.
pub struct SyntheticImap {
    address: SocketAddr,
    shared: Arc<Shared>,
    ways: Mutex<Vec<JoinHandle<()>>>,
}

impl SyntheticImap {
    /// The holder of sessions that come by [`SyntheticImap::port`].
    pub const DIRECT: &str = "direct";

    /// Starts a server.
    ///
    /// # Errors
    /// When there is no free port, or the system refuses to have that many files open.
    pub async fn start(options: SyntheticOptions) -> io::Result<Self> {
        raise_open_files()?;
        let door = Door::open((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let server = Self {
            address: door.address(),
            shared: Arc::new(Shared {
                password: options.password,
                mailboxes: (0..options.users).map(|_| Mailbox::default()).collect(),
                conduct: watch::Sender::new(Conduct::default()),
                records: Records::default(),
            }),
            ways: Mutex::new(Vec::new()),
        };
        server.open(door, Self::DIRECT);
        Ok(server)
    }

    /// Opens a further way in, on a free port; sessions that come by it are of this holder.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn listen(&self, holder: &str) -> io::Result<SocketAddr> {
        let door = Door::anywhere().await?;
        let address = door.address();
        self.open(door, holder);
        Ok(address)
    }

    fn open(&self, door: Door, holder: &str) {
        let task = tokio::spawn(serve(door, holder.into(), Arc::clone(&self.shared)));
        lock(&self.ways).push(task);
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many users it has.
    #[must_use]
    pub fn users(&self) -> usize {
        self.shared.mailboxes.len()
    }

    /// The name of a user.
    #[must_use]
    pub fn user(n: usize) -> String {
        format!("u{n}")
    }

    /// The password of every user.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.shared.password
    }

    /// Puts a message into a user's INBOX and announces it; its UID.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn deliver(&self, user: usize, message: impl Into<Arc<[u8]>>) -> io::Result<u32> {
        Ok(self.mailbox(user)?.deliver(message.into()))
    }

    /// What lies in a user's INBOX, in ascending order of UID.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn messages(&self, user: usize) -> io::Result<Vec<Stored>> {
        Ok(self.mailbox(user)?.from(1))
    }

    /// UIDVALIDITY of every INBOX.
    #[must_use]
    pub fn generation(&self) -> u32 {
        mailbox::GENERATION
    }

    fn mailbox(&self, user: usize) -> io::Result<&Mailbox> {
        let mailbox = self.shared.mailboxes.get(user);
        mailbox.ok_or_else(|| io::Error::other("there is no such user"))
    }

    /// Changes how it treats those who come from now on, and what it answers to those who are there.
    pub fn conduct(&self, change: impl FnOnce(&mut Conduct)) {
        self.shared.conduct.send_modify(change);
    }

    /// The host goes away: every connection ends, and new ones are refused until [`SyntheticImap::heal`].
    pub fn outage(&self) {
        self.conduct(|conduct| conduct.refuse_connections = true);
        self.cut(|_| true);
    }

    /// Treats everybody well again.
    pub fn heal(&self) {
        self.conduct(|conduct| *conduct = Conduct::default());
    }

    /// Ends the connections that `which` chooses, without a word; how many there are. They are gone soon after.
    pub fn cut(&self, which: impl FnMut(&SessionRecord) -> bool) -> usize {
        self.shared.records.cut(which)
    }

    /// Everything that it saw, in the order in which the connections came.
    #[must_use]
    pub fn records(&self) -> Vec<SessionRecord> {
        self.shared.records.all()
    }

    /// How many users have at least one session in IDLE now.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.shared.records.idling_users()
    }

    /// Now, if each user has sessions of one holder alone, and one of them is in IDLE.
    #[must_use]
    pub fn all_watched(&self) -> Option<Instant> {
        self.shared.records.all_watched(self.users())
    }

    /// Who has a session of whom now, by user.
    #[must_use]
    pub fn held(&self) -> BTreeMap<usize, BTreeSet<Arc<str>>> {
        self.shared.records.held()
    }

    /// How many connections are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.records.open()
    }
}

/// Says nothing of the mail.
impl std::fmt::Debug for SyntheticImap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyntheticImap")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Drop for SyntheticImap {
    fn drop(&mut self) {
        for way in lock(&self.ways).drain(..) {
            way.abort();
        }
    }
}

/// One way in.
async fn serve(mut door: Door, holder: Arc<str>, shared: Arc<Shared>) {
    let mut conduct = shared.conduct.subscribe();
    // Dropped with this task, and they with it.
    let mut sessions = JoinSet::new();
    loop {
        let refuse = conduct.borrow_and_update().refuse_connections;
        if refuse {
            door.shut();
        }
        tokio::select! {
            // The conduct first: who connects after it was set is treated by it.
            biased;
            changed = conduct.changed() => if changed.is_err() { return },
            Some(_) = sessions.join_next() => {}
            stream = door.accept(), if !refuse => {
                sessions.spawn(session::run(stream, Arc::clone(&holder), Arc::clone(&shared)));
            }
        }
    }
}

/// Each connection costs a descriptor, and the usual soft limit is 1024.
fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// What is behind a lock is whole between any two statements, so a panic of another test thread spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
