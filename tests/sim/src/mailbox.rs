//! The model of mail servers: folders, connections, notices; and what the IMAP adapter makes of them.

use std::{collections::BTreeMap, time::Duration};

use mailbell_core::{
    ids::{Generation, Uid},
    session::{Failure, Fetched, Input, Look, Op, Severity, Wake},
};
use mailbell_proto::push::v1 as push;
use rand::RngExt as _;

use crate::{
    device::ListAsk,
    drive::Ev,
    world::{MS, S, World},
};

/// A message.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// Differs from message to message, the same for copies.
    pub(crate) content: u64,
    pub(crate) arrived: Duration,
    pub(crate) seen: bool,
    /// Whether it can be fetched yet.
    pub(crate) visible: bool,
    /// Whoever fetches it is disconnected.
    pub(crate) unreadable: bool,
}

/// A folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) name: &'static str,
    pub(crate) generation: Generation,
    pub(crate) uid_next: Uid,
    pub(crate) messages: BTreeMap<Uid, Message>,
    /// Counts the changes.
    version: u64,
}

/// A mailbox on its server.
pub(crate) struct Mailbox {
    pub(crate) folders: Vec<Folder>,
    pub(crate) idle: bool,
    /// Says IDLE and never notifies.
    pub(crate) mute: bool,
    pub(crate) says_uid_next: bool,
    /// SEARCH names messages before FETCH gives them.
    pub(crate) search_ahead: bool,
    pub(crate) up: bool,
    pub(crate) password_right: bool,
}

/// A connection.
pub(crate) struct Conn {
    pub(crate) run: usize,
    pub(crate) account: usize,
    pub(crate) alive: bool,
    /// The folder, its generation then, and its version when the adapter last heard of it.
    selected: Option<(usize, Generation, u64)>,
    parked: Option<(Op, bool)>,
}

/// What the adapter is asked for.
#[derive(Debug)]
pub(crate) enum Work {
    Open,
    Look {
        folder: String,
        select: bool,
        from: Uid,
        most: u32,
        holes: Vec<(Uid, Uid)>,
    },
    Fetch(Vec<Uid>),
    Park {
        idle: bool,
        most: Duration,
    },
    Poll,
    Serve(Vec<ListAsk>),
    Close,
}

fn failure(code: &'static str, severity: Severity) -> Failure {
    Failure {
        code,
        sentence: format!("The simulation says {code}."),
        severity,
    }
}

impl World {
    pub(crate) fn new_mailbox(&mut self, account: usize) -> Mailbox {
        let folders = self.places[account].folders;
        let folders = folders
            .iter()
            .map(|name| Folder {
                name,
                generation: 10,
                uid_next: 1,
                messages: BTreeMap::new(),
                version: 0,
            })
            .collect();
        Mailbox {
            folders,
            idle: self.chance(0.7),
            mute: self.chance(0.1),
            says_uid_next: self.chance(0.8),
            search_ahead: self.chance(0.5),
            up: true,
            password_right: true,
        }
    }

    /// A message is put into a folder; it can be fetched after `hidden`.
    pub(crate) fn deliver(&mut self, account: usize, folder: usize, hidden: Duration) -> Uid {
        let content = u64::from(self.rng.random_range(0..u32::MAX));
        let seen = self.chance(0.1);
        let arrived = self.now;
        let place = &mut self.mailboxes[account].folders[folder];
        let (uid, generation) = (place.uid_next, place.generation);
        place.uid_next += 1;
        let message = Message {
            content,
            arrived,
            seen,
            visible: hidden.is_zero(),
            unreadable: false,
        };
        place.messages.insert(uid, message);
        self.say(|| format!("mail {account}/{folder}: uid {uid} arrives, hidden {hidden:?}"));
        self.count("arrivals");
        if !hidden.is_zero() {
            self.after(
                hidden,
                Ev::Visible {
                    account,
                    folder,
                    generation,
                    uid,
                },
            );
        }
        uid
    }

    pub(crate) fn on_visible(
        &mut self,
        account: usize,
        folder: usize,
        generation: Generation,
        uid: Uid,
    ) {
        let place = &mut self.mailboxes[account].folders[folder];
        if place.generation == generation
            && let Some(message) = place.messages.get_mut(&uid)
        {
            message.visible = true;
            self.say(|| format!("mail {account}/{folder}: uid {uid} can be fetched"));
            // Most servers have told of it and do not again.
            if self.chance(0.3) {
                self.changed(account, folder);
            }
        }
    }

    /// Everything in a folder can be fetched.
    pub(crate) fn reveal(&mut self, account: usize, folder: usize) {
        for message in self.mailboxes[account].folders[folder]
            .messages
            .values_mut()
        {
            message.visible = true;
        }
    }

    /// Tells the connections that wait on a folder.
    pub(crate) fn changed(&mut self, account: usize, folder: usize) {
        self.mailboxes[account].folders[folder].version += 1;
        if self.mailboxes[account].mute {
            return;
        }
        for index in 0..self.conns.len() {
            let conn = &self.conns[index];
            if conn.alive
                && conn.account == account
                && conn
                    .selected
                    .is_some_and(|(selected, ..)| selected == folder)
                && let Some((op, true)) = conn.parked
            {
                let delay = self.between(5 * MS, 300 * MS);
                self.after(delay, Ev::Notice { conn: index, op });
            }
        }
    }

    /// The folder is made anew with some messages in it.
    pub(crate) fn new_generation(&mut self, account: usize, folder: usize) {
        let many = self.below(6);
        let place = &mut self.mailboxes[account].folders[folder];
        place.generation += 1;
        place.uid_next = 1;
        place.messages.clear();
        for _ in 0..many {
            self.deliver(account, folder, Duration::ZERO);
        }
        self.say(|| format!("mail {account}/{folder}: another generation"));
        self.changed(account, folder);
        // Some servers end such connections, some leave them mute.
        for index in 0..self.conns.len() {
            let conn = &self.conns[index];
            let selected = conn
                .selected
                .is_some_and(|(selected, ..)| selected == folder);
            if conn.alive && conn.account == account && selected && self.chance(0.7) {
                self.cut_conn(index);
            }
        }
    }

    pub(crate) fn expunge(&mut self, account: usize, folder: usize) {
        let uids: Vec<_> = self.mailboxes[account].folders[folder]
            .messages
            .keys()
            .map(|uid| *uid as usize)
            .collect();
        if let Some(uid) = self.pick(&uids) {
            let uid = Uid::try_from(uid).unwrap();
            self.mailboxes[account].folders[folder]
                .messages
                .remove(&uid);
            self.say(|| format!("mail {account}/{folder}: uid {uid} expunged"));
            self.changed(account, folder);
        }
    }

    /// The connection breaks; whoever waits on it learns of it.
    pub(crate) fn cut_conn(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if !std::mem::replace(&mut conn.alive, false) {
            return;
        }
        let run = conn.run;
        if let Some((op, _)) = conn.parked.take() {
            let failure = failure("connection-lost", Severity::Transient);
            self.soon(Ev::Give {
                run,
                input: Input::Failed { op, failure },
            });
        }
    }

    fn answer(&mut self, run: usize, input: Input) {
        if self.mishap(self.scenario.doubled, "doubled answer") {
            let later = self.between(MS, 5 * S);
            let input = input.clone();
            self.after(later, Ev::Give { run, input });
        }
        self.soon(Ev::Give { run, input });
    }

    fn fail_op(&mut self, run: usize, op: Op, code: &'static str, severity: Severity) {
        let failure = failure(code, severity);
        self.answer(run, Input::Failed { op, failure });
    }

    /// The session asked for something on its connection: it happens at the server now.
    pub(crate) fn on_mail(&mut self, run: usize, conn: Option<usize>, op: Op, work: Work) {
        if !self.runs[run].alive {
            return;
        }
        if matches!(work, Work::Open) {
            return self.open_conn(run, op);
        }
        let broken = self.mishap(self.scenario.mail_fails, "mail connection broken");
        let Some(index) = conn.filter(|conn| self.conns[*conn].alive && !broken) else {
            if let Some(index) = conn {
                self.cut_conn(index);
            }
            if let Work::Serve(asks) = work {
                self.refuse(asks);
            }
            return self.fail_op(run, op, "connection-lost", Severity::Transient);
        };
        match work {
            Work::Open => {}
            Work::Look {
                folder,
                select,
                from,
                most,
                holes,
            } => match self.look(index, &folder, select, from, most, &holes) {
                Ok(look) => self.answer(run, Input::Looked { op, look }),
                Err((code, severity)) => {
                    if severity == Severity::Transient {
                        self.cut_conn(index);
                    }
                    self.fail_op(run, op, code, severity);
                }
            },
            Work::Fetch(uids) => match self.fetch(index, &uids) {
                Some(messages) => self.answer(run, Input::FetchedPage { op, messages }),
                None => {
                    self.cut_conn(index);
                    self.fail_op(run, op, "connection-lost", Severity::Transient);
                }
            },
            Work::Park { idle, most } => {
                self.conns[index].parked = Some((op, idle));
                self.after(most, Ev::ParkEnds { conn: index, op });
                if std::mem::take(&mut self.runs[run].interrupted) {
                    self.soon(Ev::Interrupted { conn: index, op });
                }
                // What was read on the way to here counts as a notice.
                if idle && self.unheard(index) {
                    let delay = self.between(MS, 300 * MS);
                    self.after(delay, Ev::Notice { conn: index, op });
                }
            }
            Work::Poll => {
                let changed = self.unheard(index);
                self.heard(index);
                self.answer(run, Input::Polled { op, changed });
            }
            Work::Serve(asks) => {
                for ask in asks {
                    self.select_listed(index, &ask);
                    self.list(ask);
                }
                self.answer(run, Input::Served { op });
            }
            Work::Close => {
                self.conns[index].alive = false;
                self.answer(run, Input::Closed { op });
            }
        }
    }

    fn open_conn(&mut self, run: usize, op: Op) {
        let account = self.runs[run].account;
        let mailbox = &self.mailboxes[account];
        let (up, right, idle) = (mailbox.up, mailbox.password_right, mailbox.idle);
        if !up || self.mishap(self.scenario.mail_fails, "mail connection broken") {
            return self.fail_op(run, op, "unreachable", Severity::Transient);
        }
        if !right {
            self.count("wrong password");
            return self.fail_op(run, op, "bad-credentials", Severity::Permanent);
        }
        self.conns.push(Conn {
            run,
            account,
            alive: true,
            selected: None,
            parked: None,
        });
        self.runs[run].conn = Some(self.conns.len() - 1);
        let handshake = self.between(10 * MS, 80 * MS);
        self.answer(
            run,
            Input::Opened {
                op,
                idle,
                handshake,
                quiet_folders: Vec::new(),
            },
        );
    }

    fn unheard(&self, conn: usize) -> bool {
        let conn = &self.conns[conn];
        let mailbox = &self.mailboxes[conn.account];
        !mailbox.mute
            && conn
                .selected
                .is_some_and(|(folder, _, version)| mailbox.folders[folder].version != version)
    }

    fn heard(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if let Some((folder, _, version)) = &mut conn.selected {
            *version = self.mailboxes[conn.account].folders[*folder].version;
        }
    }

    pub(crate) fn on_notice(&mut self, index: usize, op: Op) {
        if !self.conns[index].alive || !self.unparked(index, op) {
            return;
        }
        self.heard(index);
        let (run, noticed_us) = (self.conns[index].run, self.wall_us());
        let wake = Wake::Changed { noticed_us };
        self.answer(run, Input::Woke { op, wake });
    }

    pub(crate) fn on_park_ends(&mut self, index: usize, op: Op, wake: Wake) {
        if self.conns[index].alive && self.unparked(index, op) {
            let run = self.conns[index].run;
            self.answer(run, Input::Woke { op, wake });
        }
    }

    fn unparked(&mut self, index: usize, op: Op) -> bool {
        let conn = &mut self.conns[index];
        conn.parked.take_if(|(parked, _)| *parked == op).is_some()
    }

    /// Ends the waiting of a session's connection.
    pub(crate) fn interrupt(&mut self, run: usize) {
        if let Some(conn) = self.runs[run].conn {
            match self.conns[conn].parked {
                Some((op, _)) => self.soon(Ev::Interrupted { conn, op }),
                // It is about to wait.
                None => self.runs[run].interrupted = true,
            }
        }
    }

    fn look(
        &mut self,
        index: usize,
        name: &str,
        select: bool,
        from: Uid,
        most: u32,
        holes: &[(Uid, Uid)],
    ) -> Result<Look, (&'static str, Severity)> {
        let account = self.conns[index].account;
        let folders = &self.mailboxes[account].folders;
        let number = folders.iter().position(|folder| folder.name == name);
        let number = number.ok_or(("no-such-folder", Severity::NoSuchFolder))?;
        let new = folders[number].messages.range(from..).count();
        if self.mailboxes[account].search_ahead && new > self.scenario.limits.flood as usize {
            // Nor can anybody say what was there when a flood was told: as with `Fault::NewGeneration`.
            self.reveal(account, number);
        }
        let mailbox = &self.mailboxes[account];
        let folder = &mailbox.folders[number];
        let generation = match self.conns[index].selected {
            Some((selected, generation, _)) if !select && selected == number => generation,
            _ => folder.generation,
        };
        if generation != folder.generation {
            // Deleted under the connection's feet.
            return Err(("connection-lost", Severity::Transient));
        }
        let there: Vec<Uid> = folder
            .messages
            .iter()
            .filter(|(_, message)| message.visible || mailbox.search_ahead)
            .map(|(uid, _)| *uid)
            .collect();
        let new: Vec<Uid> = there.iter().copied().filter(|uid| *uid >= from).collect();
        let surplus = new.len().saturating_sub(most as usize);
        let within = |uid: &Uid| holes.iter().any(|(a, b)| (*a..=*b).contains(uid));
        let exact = mailbox.says_uid_next;
        let look = Look {
            generation,
            uid_next: if exact {
                folder.uid_next
            } else {
                there.last().map_or(1, |last| last + 1)
            },
            uid_next_exact: exact,
            total_new: u32::try_from(new.len()).unwrap(),
            uids: new[surplus..].to_vec(),
            late: there
                .iter()
                .copied()
                .filter(|uid| *uid < from && within(uid))
                .collect(),
        };
        self.conns[index].selected = Some((number, generation, folder.version));
        Ok(look)
    }

    /// A listing leaves its folder selected: what is fetched next without a look comes from there.
    fn select_listed(&mut self, index: usize, ask: &ListAsk) {
        let conn = &mut self.conns[index];
        let number = ask.folder();
        if let Some(folder) = self.mailboxes[conn.account].folders.get(number) {
            conn.selected = Some((number, folder.generation, folder.version));
        }
    }

    fn fetch(&mut self, index: usize, uids: &[Uid]) -> Option<Vec<Fetched>> {
        let conn = &self.conns[index];
        let (number, generation, _) = conn.selected?;
        let folder = &self.mailboxes[conn.account].folders[number];
        let unreadable = |uid| {
            let message: Option<&Message> = folder.messages.get(uid);
            message.is_some_and(|message| message.unreadable)
        };
        if folder.generation != generation || uids.iter().any(unreadable) {
            return None;
        }
        let fetched = |uid: &Uid| {
            let message = folder.messages.get(uid).filter(|message| message.visible)?;
            Some(Fetched {
                message: self.show(*uid, message),
                traceparent: String::new(),
            })
        };
        Some(uids.iter().filter_map(fetched).collect())
    }

    pub(crate) fn show(&self, uid: Uid, message: &Message) -> push::Message {
        let arrived = i64::try_from(message.arrived.as_millis()).unwrap();
        let now = i64::try_from(self.now.as_millis()).unwrap();
        push::Message {
            uid,
            message_id: format!("{}@sim", message.content),
            subject: format!("message {}", message.content),
            internal_date_ms: self.wall_us() / 1000 - now + arrived,
            size: 100,
            flags: message
                .seen
                .then(|| "\\Seen".to_owned())
                .into_iter()
                .collect(),
            ..push::Message::default()
        }
    }
}
