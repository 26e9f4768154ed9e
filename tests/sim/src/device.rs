//! Drives the real clients: streams, listings, what is taken and stored, crashes.

use std::{collections::VecDeque, time::Duration};

use mailbell_client::{
    event::{AppEvent, DisconnectReason, Handed, UnlistableReason},
    session::{
        ClientSession, ListFailure, ListRequest, Listing, Now, Output, SessionOptions, Span,
        StoredState,
    },
};
use mailbell_core::{
    cursor::Subject,
    delivery::{ALL_KINDS, Frame, Subscription},
};
use mailbell_proto::push::v1::{self as push, Hello, ServerFrame, server_frame::Frame as Wire};
use rand::RngExt as _;

use crate::{
    app::{App, Source, Told},
    breach::Breach,
    drive::Ev,
    frames::{Queued, wire},
    gateway::Attach,
    world::{MS, S, World},
};

/// A device with its app.
pub(crate) struct Device {
    pub(crate) subject: Subject,
    client: ClientSession,
    started: Duration,
    pub(crate) incarnation: u64,
    pub(crate) alive: bool,
    pub(crate) stream: Option<usize>,
    pub(crate) stored: Option<StoredState>,
    inbox: VecDeque<(u64, Told)>,
    /// The last position that was handed.
    handed: u64,
    taking: bool,
    pub(crate) slow: bool,
    pub(crate) app: App,
}

/// A listing on its way to the owner of an account.
#[derive(Debug, Clone)]
pub(crate) struct ListAsk {
    device: usize,
    incarnation: u64,
    account: usize,
    request: ListRequest,
}

impl ListAsk {
    /// The index of the folder that is asked for. By number: INBOX is 1, and the only other one is 2.
    pub(crate) fn folder(&self) -> usize {
        self.request.folder as usize - 1
    }
}

impl World {
    /// What devices subscribe to.
    pub(crate) fn subject(&self, number: usize) -> Subject {
        let id = |account: usize| self.places[account].account.clone();
        match number {
            0 => Subject::accounts([id(0)]),
            1 => Subject::accounts([id(0), id(3)]),
            2 => Subject::Tenant(id(0).tenant().clone()),
            3 => Subject::accounts([id(1), id(2)]),
            _ => Subject::accounts([id(3)]),
        }
    }

    fn new_client(&mut self, subject: &Subject, stored: Option<StoredState>) -> ClientSession {
        let accounts = match subject {
            Subject::Accounts(accounts) => accounts.iter().map(ToString::to_string).collect(),
            Subject::Tenant(_) => Vec::new(),
        };
        let options = SessionOptions {
            accounts,
            resync_depth: 10_000,
            ..SessionOptions::default()
        };
        ClientSession::new(options, stored, self.rng.random())
    }

    pub(crate) fn new_device(&mut self, subject: Subject) {
        let client = self.new_client(&subject, None);
        let device = self.devices.len();
        self.devices.push(Device {
            subject,
            client,
            started: self.now,
            incarnation: 0,
            alive: true,
            stream: None,
            stored: None,
            inbox: VecDeque::new(),
            handed: 0,
            taking: false,
            slow: false,
            app: App::default(),
        });
        self.soon(Ev::Connect {
            device,
            incarnation: 0,
        });
        self.after(S, Ev::Persist { device });
    }

    fn client_now(&self, device: usize) -> Now {
        Now {
            elapsed: self.now - self.devices[device].started,
            wall_ms: self.wall_us() / 1000,
        }
    }

    pub(crate) fn on_connect(&mut self, device: usize, incarnation: u64) {
        let state = &self.devices[device];
        if !state.alive || state.incarnation != incarnation || state.stream.is_some() {
            return;
        }
        let (cursor, digest) = state.client.resume_point();
        let subscription = Subscription {
            subject: state.subject.clone(),
            kinds: ALL_KINDS,
        };
        let gateways = self.ready_gateways();
        let Some(gateway) = self.pick(&gateways) else {
            return self.connect_later(device);
        };
        self.soon(Ev::Attach(Box::new(Attach {
            device,
            incarnation,
            gateway,
            subscription,
            cursor,
            digest,
        })));
    }

    pub(crate) fn attach_failed(&mut self, attach: &Attach) {
        self.connect_later(attach.device);
    }

    fn connect_later(&mut self, device: usize) {
        let delay = self.between(50 * MS, 2 * S);
        let incarnation = self.devices[device].incarnation;
        self.after(
            delay,
            Ev::Connect {
                device,
                incarnation,
            },
        );
    }

    /// The device's stream ended.
    pub(crate) fn device_lost(&mut self, stream: usize) {
        let device = self.streams[stream].device;
        if self.devices[device].stream != Some(stream) {
            return;
        }
        self.devices[device].stream = None;
        let client = &mut self.devices[device].client;
        let outputs = client.on_disconnected(DisconnectReason::Ended, Duration::ZERO);
        self.carry_out_client(device, outputs, None);
        self.connect_later(device);
    }

    /// A frame reaches a device.
    pub(crate) fn device_reads(&mut self, stream: usize, queued: Queued) {
        let device = self.streams[stream].device;
        if self.devices[device].stream != Some(stream) {
            return;
        }
        let mut source = None;
        let frame = match &queued {
            Queued::Hello(digest) => {
                let (now, state) = (self.now, &mut self.devices[device]);
                state.app.since.get_or_insert(now);
                if state.client.is_resyncing() {
                    // The stream may go on from before the hole that is still to be filled.
                    let handed = state.handed;
                    state.inbox.push_back((handed, Told::Break));
                }
                ServerFrame {
                    frame: Some(Wire::Hello(Hello {
                        session: stream.to_string(),
                        digest: digest.clone(),
                        ..Hello::default()
                    })),
                }
            }
            Queued::Frame(frame) => {
                if let Frame::Entry(entry) = frame {
                    source = Some(Source {
                        log: entry.0.log,
                        history: entry.0.history,
                        position: entry.0.position,
                    });
                    let account = &entry.0.event.account;
                    if !self.devices[device].subject.covers(account) {
                        return self.fail(
                            Breach::WronglyTold,
                            format!("device {device} hears of {account}"),
                        );
                    }
                }
                if let Frame::Resync(..) = frame {
                    // What comes may lie after a hole.
                    let handed = self.devices[device].handed;
                    self.devices[device].inbox.push_back((handed, Told::Break));
                }
                wire(frame)
            }
        };
        let now = self.client_now(device);
        let outputs = self.devices[device].client.on_frame(frame, now);
        self.carry_out_client(device, outputs, source);
    }

    fn carry_out_client(&mut self, device: usize, outputs: Vec<Output>, source: Option<Source>) {
        for output in outputs {
            match output {
                Output::Hand(handed) => self.hand(device, handed, source),
                Output::Persist => self.persist(device),
                Output::GoAway(_) => {}
                Output::Violation => {
                    self.fail(Breach::Contract, format!("device {device}: a violation"))
                }
            }
        }
        if !self.devices[device].inbox.is_empty() && !self.devices[device].taking {
            self.devices[device].taking = true;
            let incarnation = self.devices[device].incarnation;
            let delay = self.between(MS / 5, 30 * MS);
            self.after(
                delay,
                Ev::Take_ {
                    device,
                    incarnation,
                },
            );
        }
        self.plan_listing(device);
    }

    fn hand(&mut self, device: usize, handed: Handed, source: Option<Source>) {
        let Handed { position, event } = handed;
        let told = match event {
            AppEvent::Arrived(arrived) => Some(Told::Fact {
                key: arrived.key,
                folder: arrived.folder_name,
                source,
            }),
            AppEvent::Changed(changed) => Some(Told::Fact {
                key: changed.key,
                folder: String::new(),
                source,
            }),
            AppEvent::Gone(gone) => Some(Told::Fact {
                key: gone.key,
                folder: String::new(),
                source,
            }),
            AppEvent::AccountState(state) => state.key.map(|key| Told::Fact {
                key,
                folder: String::new(),
                source,
            }),
            AppEvent::ReplaceFolder(replaced) => {
                self.count("folder replaced");
                self.say(|| format!("device {device}: {replaced:?}"));
                Some(Told::Replaced(Box::new(replaced)))
            }
            AppEvent::Unlistable(unlistable) => {
                let account = self.place_of(&unlistable.account);
                if !account.is_some_and(|account| self.removed[account])
                    && unlistable.reason != UnlistableReason::PermissionDenied
                {
                    self.fail(
                        Breach::WronglyTold,
                        format!("device {device}: {unlistable:?}"),
                    );
                }
                None
            }
            _ => None,
        };
        self.devices[device].handed = position;
        // What leaves no trace in the app is taken like the rest.
        let told = told.unwrap_or(Told::Nothing);
        self.devices[device].inbox.push_back((position, told));
    }

    /// The app takes some of what it was handed.
    pub(crate) fn on_take_(&mut self, device: usize, incarnation: u64) {
        if self.devices[device].incarnation != incarnation || !self.devices[device].alive {
            return;
        }
        self.devices[device].taking = false;
        let many = 1 + self.below(8);
        for _ in 0..many {
            let Some((position, told)) = self.devices[device].inbox.pop_front() else {
                break;
            };
            if let Told::Fact { key, .. } = &told {
                self.say(|| format!("device {device}: {}", mailbell_core::event::message_id(key)));
                self.count("facts taken by apps");
            }
            // What comes of an account after it was removed, gateways skip by its tombstone. Not modelled.
            let gone = match &told {
                Told::Fact { key, .. } => self.place_of(&key.account),
                _ => None,
            };
            let gone = gone.is_some_and(|account| self.removed[account]);
            let state = &mut self.devices[device];
            let wrong = state.app.take(told).filter(|_| !gone);
            state.client.on_taken(position);
            if let Some(wrong) = wrong {
                return self.fail(Breach::WronglyTold, format!("device {device}: {wrong}"));
            }
        }
        self.carry_out_client(device, Vec::new(), None);
    }

    /// The state is stored now and then; not always does that work.
    pub(crate) fn on_persist(&mut self, device: usize) {
        if self.devices[device].alive {
            self.persist(device);
        }
        let delay = self.between(200 * MS, 3 * S);
        self.after(delay, Ev::Persist { device });
    }

    fn persist(&mut self, device: usize) {
        let fails = self.mishap(0.03, "state not stored");
        let state = &mut self.devices[device];
        let Some(stored) = state.client.storable() else {
            return;
        };
        if fails {
            return state.client.not_stored();
        }
        state.stored = Some(stored);
        state.app.store();
    }

    /// The device's process dies, and another one goes on from what was stored.
    pub(crate) fn crash_device(&mut self, device: usize, subject: Option<Subject>) {
        self.say(|| format!("device {device}: crash, {subject:?}"));
        if self.devices[device].client.is_resyncing() {
            self.count("crash in a listing");
        }
        if let Some(stream) = self.devices[device].stream.take() {
            self.cut_stream(stream);
        }
        let changed = subject.is_some();
        let subject = subject.unwrap_or_else(|| self.devices[device].subject.clone());
        let stored = self.devices[device].stored.clone().map(|stored| {
            StoredState::decode(&stored.encode()).expect("a state is read as it was written")
        });
        let stored_pending = stored.as_ref().map_or(0, StoredState::pending);
        let client = self.new_client(&subject, stored);
        let now = self.now;
        let state = &mut self.devices[device];
        state.client = client;
        state.subject = subject;
        state.started = now;
        state.incarnation += 1;
        state.alive = true;
        state.taking = false;
        state.handed = 0;
        state.inbox.clear();
        state.app.crash();
        if stored_pending > 0 {
            // It goes on from before the hole that it is still to fill.
            let _ = state.app.take(Told::Break);
        }
        if changed {
            state.app.begin_anew();
        }
        self.connect_later(device);
    }

    fn plan_listing(&mut self, device: usize) {
        if let Some(at) = self.devices[device].client.next_listing_at() {
            let at = self.devices[device].started + at;
            let incarnation = self.devices[device].incarnation;
            self.after(
                at.saturating_sub(self.now),
                Ev::List {
                    device,
                    incarnation,
                },
            );
        }
    }

    /// The client lists what it must.
    pub(crate) fn on_list(&mut self, device: usize, incarnation: u64) {
        if self.devices[device].incarnation != incarnation || !self.devices[device].alive {
            return;
        }
        let now = self.client_now(device);
        while let Some(request) = self.devices[device].client.start_listing(now) {
            self.count("listing");
            self.say(|| format!("device {device}: {request:?}"));
            let Some(account) = self.place_of(&request.account) else {
                return self.fail(Breach::Contract, "a listing of no account");
            };
            let ask = ListAsk {
                device,
                incarnation,
                account,
                request,
            };
            self.soon(Ev::Ask(Box::new(ask.clone())));
            self.after(10 * S, Ev::AskOver(Box::new(ask)));
        }
    }

    /// The gateway passes a listing on to whoever says to own the account.
    pub(crate) fn on_ask(&mut self, ask: ListAsk) {
        let id = &self.places[ask.account].account;
        if !self.devices[ask.device].subject.covers(id) {
            let never = ListFailure::Never(UnlistableReason::PermissionDenied);
            return self.answer_listing(ask, Err(never));
        }
        if self.removed[ask.account] {
            let never = ListFailure::Never(UnlistableReason::NotFound);
            return self.answer_listing(ask, Err(never));
        }
        let owners: Vec<_> = self
            .owners_of(self.places[ask.account].partition)
            .into_iter()
            .filter(|owner| self.is_up(self.owners[*owner].process))
            .filter(|owner| self.owners[*owner].runs.contains_key(&ask.account))
            .collect();
        match self.pick(&owners) {
            Some(owner) => {
                let run = self.owners[owner].runs[&ask.account];
                if !self.runs[run].alive {
                    return self.refuse(vec![ask]);
                }
                self.runs[run].waiting.push(ask);
                self.give(run, mailbell_core::session::Input::Request);
            }
            None => self.refuse(vec![ask]),
        }
    }

    pub(crate) fn refuse(&mut self, asks: Vec<ListAsk>) {
        for ask in asks {
            self.count("listing refused");
            self.answer_listing(ask, Err(ListFailure::Retry));
        }
    }

    /// The owner lists a folder from the mailbox.
    pub(crate) fn list(&mut self, ask: ListAsk) {
        let names = self.places[ask.account].folders;
        let folder = ask.folder();
        let Some(name) = names.get(folder) else {
            let never = ListFailure::Never(UnlistableReason::NotFound);
            return self.answer_listing(ask, Err(never));
        };
        let place = &self.mailboxes[ask.account].folders[folder];
        let within = |uid: u32| match ask.request.span {
            Span::Newest => true,
            Span::Uids { first, last } => (first..=last).contains(&uid),
        };
        let messages: Vec<push::Message> = place
            .messages
            .iter()
            .filter(|(uid, message)| message.visible && within(**uid))
            .map(|(uid, message)| self.show(*uid, message))
            .collect();
        let listing = Listing {
            generation: place.generation,
            folder_name: (*name).to_owned(),
            exists: u32::try_from(messages.len()).unwrap(),
            folders: (1..=u32::try_from(names.len()).unwrap()).collect(),
            messages,
            more: false,
        };
        self.answer_listing(ask, Ok(listing));
    }

    fn answer_listing(&mut self, ask: ListAsk, answer: Result<Listing, ListFailure>) {
        let delay = self.delay() + self.delay();
        self.after(
            delay,
            Ev::Listed {
                ask: Box::new(ask),
                answer: Box::new(answer),
            },
        );
    }

    pub(crate) fn on_listed(&mut self, ask: &ListAsk, answer: Result<Listing, ListFailure>) {
        let device = ask.device;
        if self.devices[device].incarnation != ask.incarnation || !self.devices[device].alive {
            return;
        }
        let now = self.client_now(device);
        let client = &mut self.devices[device].client;
        let outputs = client.on_listed(ask.request.ticket, answer, now);
        self.carry_out_client(device, outputs, None);
    }

    pub(crate) fn place_of(&self, account: &str) -> Option<usize> {
        (0..self.places.len()).find(|place| self.places[*place].account.to_string() == account)
    }

    /// Why a device has not come to rest.
    pub(crate) fn is_busy(&self, device: usize) -> Option<String> {
        let state = &self.devices[device];
        let Some(stream) = state.stream else {
            return Some(format!("device {device} has no stream"));
        };
        if !self.is_current(stream) {
            return Some(format!("device {device} is behind"));
        }
        if state.client.is_resyncing() || !state.inbox.is_empty() {
            return Some(format!("device {device} is resyncing"));
        }
        None
    }
}
