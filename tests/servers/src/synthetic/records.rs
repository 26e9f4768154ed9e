//! Who held which session when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::Notify;

use super::lock;

/// A time in IDLE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// When the server said that it idles.
    pub from: Instant,
    /// When the client ended it, or the connection ended; `None` if it still idles.
    pub until: Option<Instant>,
}

/// One connection, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// The way by which it came, and so who held it.
    pub holder: Arc<str>,
    /// When it was let in.
    pub opened: Instant,
    /// Whose mailbox it is, as soon as the login is answered with OK.
    pub user: Option<usize>,
    /// When that was.
    pub logged_in: Option<Instant>,
    /// Each time in IDLE, in order.
    pub idles: Vec<Idle>,
    /// When the connection ended; `None` if it is open.
    pub ended: Option<Instant>,
}

impl SessionRecord {
    /// Whether it idles now.
    #[must_use]
    pub fn idles_now(&self) -> bool {
        self.idles.last().is_some_and(|idle| idle.until.is_none())
    }
}

#[derive(Default)]
pub(super) struct Records(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    sessions: Vec<SessionRecord>,
    /// By the index of their record, those that are open, and how to end them.
    open: BTreeMap<usize, Arc<Notify>>,
}

impl Records {
    /// Begins the record of a connection.
    pub(super) fn begin(&self, holder: Arc<str>) -> (usize, Arc<Notify>) {
        let mut inner = lock(&self.0);
        let id = inner.sessions.len();
        let cut = Arc::new(Notify::new());
        inner.sessions.push(SessionRecord {
            holder,
            opened: Instant::now(),
            user: None,
            logged_in: None,
            idles: Vec::new(),
            ended: None,
        });
        inner.open.insert(id, Arc::clone(&cut));
        (id, cut)
    }

    /// Notes a login, unless the user has as many sessions as are allowed.
    pub(super) fn log_in(&self, id: usize, user: usize, most: Option<usize>) -> bool {
        let mut inner = lock(&self.0);
        if let Some(most) = most {
            let of_user = inner.live().filter(|session| session.user == Some(user));
            if of_user.count() >= most {
                return false;
            }
        }
        if let Some(session) = inner.sessions.get_mut(id) {
            session.user = Some(user);
            session.logged_in = Some(Instant::now());
        }
        true
    }

    pub(super) fn idle(&self, id: usize) {
        if let Some(session) = lock(&self.0).sessions.get_mut(id) {
            session.idles.push(Idle {
                from: Instant::now(),
                until: None,
            });
        }
    }

    pub(super) fn wake(&self, id: usize) {
        if let Some(session) = lock(&self.0).sessions.get_mut(id) {
            end_idle(session, Instant::now());
        }
    }

    pub(super) fn end(&self, id: usize) {
        let mut inner = lock(&self.0);
        inner.open.remove(&id);
        if let Some(session) = inner.sessions.get_mut(id) {
            let now = Instant::now();
            end_idle(session, now);
            session.ended = Some(now);
        }
    }

    pub(super) fn cut(&self, mut which: impl FnMut(&SessionRecord) -> bool) -> usize {
        let inner = lock(&self.0);
        let chosen = inner
            .open
            .iter()
            .filter(|(id, _)| inner.sessions.get(**id).is_some_and(&mut which));
        chosen.map(|(_, cut)| cut.notify_one()).count()
    }

    pub(super) fn all(&self) -> Vec<SessionRecord> {
        lock(&self.0).sessions.clone()
    }

    pub(super) fn open(&self) -> usize {
        lock(&self.0).open.len()
    }

    pub(super) fn held(&self) -> BTreeMap<usize, BTreeSet<Arc<str>>> {
        let mut held: BTreeMap<usize, BTreeSet<Arc<str>>> = BTreeMap::new();
        for session in lock(&self.0).live() {
            if let Some(user) = session.user {
                let holders = held.entry(user).or_default();
                holders.insert(Arc::clone(&session.holder));
            }
        }
        held
    }

    pub(super) fn idling_users(&self) -> usize {
        let inner = lock(&self.0);
        let idling = inner.live().filter(|session| session.idles_now());
        idling
            .filter_map(|session| session.user)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Now, if each of so many users has sessions of one holder alone, and one of them is in IDLE.
    pub(super) fn all_watched(&self, users: usize) -> Option<Instant> {
        let inner = lock(&self.0);
        let mut watched = BTreeMap::new();
        for session in inner.live() {
            let Some(user) = session.user else { continue };
            let (holder, idles) = watched.entry(user).or_insert((&session.holder, false));
            if **holder != session.holder {
                return None;
            }
            *idles |= session.idles_now();
        }
        let all = watched.len() == users && watched.values().all(|(_, idles)| *idles);
        // While nothing can change.
        all.then(Instant::now)
    }
}

impl Inner {
    fn live(&self) -> impl Iterator<Item = &SessionRecord> {
        self.open.keys().filter_map(|id| self.sessions.get(*id))
    }
}

fn end_idle(session: &mut SessionRecord, now: Instant) {
    if let Some(idle) = session.idles.last_mut() {
        idle.until.get_or_insert(now);
    }
}
