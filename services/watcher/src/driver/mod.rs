//! The task of one account: the state machine, and what carries out its effects.
//!
//! Everything that is awaited lies in a box of its own and is gone when it is over. While the connection is parked, that is the
//! parked stream: so what an account costs then is this struct, the session and the stream.

mod context;
mod login;
mod mail;
mod status;
mod store;
mod traces;

use std::{future::poll_fn, sync::Arc, task::Poll};

use mailbell_bus::Link;
use mailbell_core::{
    event::{Event, Fact},
    ids::OwnerEpoch,
    ownership::Flush,
    pace::{Cause, Urgency, last_active_us},
    session::{Effect, Input, Known, Op, Outcome, Pause, Session, Stop},
};
use mailbell_proto::bus::v1::AccountRecord;
use mailbell_runtime::failpoint;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};

use self::{
    context::{config_of, pause_of},
    mail::{Done, Mail},
    status::StatusWriter,
    store::{Stored, Unsure},
    traces::Traces,
};
pub(crate) use context::Context;
pub(crate) use login::connect;
pub(crate) use mail::{Connect, Dial};
pub(crate) use status::record as status_record;

use crate::{failure, ledger::Boxed, message::content_of, policy::Said, slot::Slot};

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// What is known is stored, or is left to whoever comes next.
    HandedOver,
    /// Somebody else owns the account.
    Lost,
    /// Devices were told that the account is gone.
    Removed,
    /// The account was removed and nothing is known of it: it was never watched, or is purged already.
    Unknown,
    /// Somebody else wrote the checkpoint.
    Conflict,
}

/// What an append or a read of the tail brought.
enum Logged {
    Append {
        op: Op,
        event: Box<Event>,
        outcome: Outcome,
        sent_us: i64,
    },
    Tail(Input),
}

/// See the module.
pub(crate) struct Driver {
    context: Arc<Context>,
    slot: Arc<Slot>,
    record: Arc<AccountRecord>,
    /// What the operator says of it.
    said: Said,
    epoch: OwnerEpoch,
    session: Session,
    mail: Mail,
    /// The append or the read of the log's tail that is awaited.
    log: Option<Boxed<Logged>>,
    store: Option<Boxed<Stored>>,
    /// Checkpoints that may have been stored. They tell our own writes from somebody else's.
    unsure: Unsure,
    status: StatusWriter,
    link: watch::Receiver<Link>,
    /// When the session wants to be ticked.
    tick: Option<Instant>,
    timer: std::pin::Pin<Box<Sleep>>,
    traces: Traces,
    stop: Option<Stop>,
    conflict: bool,
    /// The session was asked to serve and has not answered yet.
    asked: bool,
    /// Why the next connection is wanted.
    cause: Cause,
    /// When something last happened in the mailbox, in microseconds since the epoch.
    active_us: i64,
}

impl Driver {
    pub(crate) fn new(
        context: Arc<Context>,
        slot: Arc<Slot>,
        record: Arc<AccountRecord>,
        epoch: OwnerEpoch,
        known: Known,
    ) -> Self {
        let said = context.said(&slot.account, &record.host);
        let config = config_of(&context, &slot, &record, &said, epoch);
        let active_us = last_active_us(&known);
        let session = Session::new(config, known, context.now());
        slot.set_flush(Flush::of(&session));
        Self {
            link: context.ledger.link(),
            timer: Box::pin(sleep_until(context.started)),
            status: StatusWriter::new(context.metrics.clone()),
            context,
            slot,
            record,
            said,
            epoch,
            session,
            mail: Mail::gone(),
            log: None,
            store: None,
            unsure: Unsure::default(),
            tick: None,
            traces: Traces::default(),
            stop: None,
            conflict: false,
            asked: false,
            cause: Cause::Start,
            active_us,
        }
    }

    /// Drives the session to its end.
    pub(crate) async fn run(mut self: Box<Self>) -> End {
        self.on_link();
        self.give(Input::Start);
        self.on_told();
        while !self.session.is_stopped() {
            let deadline = self.deadline();
            if let Some(at) = deadline
                && self.timer.deadline() != at
            {
                self.timer.as_mut().reset(at);
            }
            tokio::select! {
                // In order of urgency: a stop must not wait behind a mail server that talks without end, and an
                // acknowledgement frees memory, so it goes before what makes more. Every arm but the last holds its state
                // outside of the future that is dropped here, so nothing is lost by a cancellation.
                biased;
                () = self.slot.notified() => self.on_told(),
                // An error means that the bus is gone, and with it the watcher; until then the state stands.
                Ok(()) = self.link.changed() => self.on_link(),
                logged = finished(&mut self.log) => self.on_logged(logged),
                stored = finished(&mut self.store) => self.on_stored(stored),
                done = self.mail.finished() => self.on_mail(done),
                written = finished(&mut self.status.writing) => self.status.on_written(written),
                // Last: a tick only says that time has passed.
                () = self.timer.as_mut(), if deadline.is_some() => self.on_timer(),
            }
        }
        match self.stop {
            _ if self.conflict => End::Conflict,
            Some(Stop::HandOver) => End::HandedOver,
            Some(Stop::Removed) => End::Removed,
            Some(Stop::Lost) | None => End::Lost,
        }
    }

    /// Tells the session, and carries out what it asks for.
    fn give(&mut self, input: Input) {
        let mut next = Some(input);
        let mut effects = Vec::new();
        while let Some(input) = next.take() {
            let now = self.context.now();
            self.session
                .handle(now, &mut rand::rng(), input, &mut effects);
            // Before any effect: a claim must never call flushed what an append is about to add.
            self.slot.set_flush(Flush::of(&self.session));
            for effect in effects.drain(..) {
                // At most one effect on the mail connection is asked for at a time, so at most one cannot be begun.
                next = self.carry_out(effect).or(next);
            }
        }
    }

    /// Begins what is asked for; answers at once only if it cannot even be begun.
    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Open { op } => {
                let urgency = Urgency::new(self.cause, self.active_us);
                // If this one fails, the next is no more urgent than any other.
                self.cause = Cause::Start;
                let opening = login::open(
                    Arc::clone(&self.context),
                    Arc::clone(&self.slot),
                    Arc::clone(&self.record),
                    urgency,
                );
                self.mail.busy(op, opening);
            }
            Effect::Look {
                op,
                folder,
                select,
                from,
                most,
                holes,
            } => {
                return self.with_connection(op, |connection, _| {
                    Box::pin(mail::look(connection, folder, select, from, most, holes))
                });
            }
            Effect::Fetch { op, uids } => {
                self.context.metrics.milestone("detected", uids.len());
                return self.with_connection(op, |connection, context| {
                    let clock = Arc::clone(&context.clock);
                    Box::pin(mail::fetch(connection, uids, clock))
                });
            }
            Effect::Park { op, idle, most } => {
                let until = Instant::now() + most;
                if !self.mail.park(op, idle, until, &self.context) {
                    return Some(failed(op, failure::no_connection()));
                }
            }
            Effect::Interrupt => self.mail.interrupt(),
            Effect::Poll { op } => {
                return self.with_connection(op, |connection, _| Box::pin(mail::poll(connection)));
            }
            Effect::Serve { op } => {
                self.asked = false;
                let requests = self.slot.take_requests();
                let checkpoint = self.session.checkpoint();
                let named = mail::name_folders(requests, checkpoint);
                let watched = mail::watched_folders(&self.record.folders, checkpoint);
                return self.with_connection(op, |connection, context| {
                    Box::pin(mail::serve(connection, named, watched, context.page_time))
                });
            }
            Effect::RefuseRequests => {
                self.asked = false;
                let pause = pause_of(&self.record, &self.said);
                let code = pause.map_or(failure::NOT_CONNECTED, Pause::code);
                self.slot.refuse_requests(code);
            }
            Effect::Close { op } => {
                return self.with_connection(op, |connection, _| Box::pin(mail::close(connection)));
            }
            Effect::Drop => self.mail.drop_it(),
            Effect::Append { op, event, retry } => {
                if retry {
                    self.context.metrics.milestone("retried", 1);
                }
                let sent_us = self.context.clock.now_us();
                let append = self.context.ledger.append(event);
                self.log = Some(Box::pin(async move {
                    let (event, outcome) = append.await;
                    Logged::Append {
                        op,
                        event,
                        outcome,
                        sent_us,
                    }
                }));
            }
            Effect::ReadTail { op, log_id, after } => {
                let account = self.slot.account.clone();
                let tail = self.context.ledger.tail(account, log_id, after);
                self.log = Some(Box::pin(async move {
                    Logged::Tail(Input::TailRead {
                        op,
                        tail: tail.await,
                    })
                }));
            }
            Effect::StoreCheckpoint {
                op,
                checkpoint,
                revision,
            } => {
                failpoint!("before-checkpoint");
                self.store = Some(Box::pin(store::store(
                    Arc::clone(&self.context),
                    self.slot.account.clone(),
                    op,
                    checkpoint,
                    revision,
                    std::mem::take(&mut self.unsure),
                )));
            }
            Effect::Status(status) => {
                self.slot.set_health(status.health);
                self.status.show(status);
                self.write_status();
            }
            Effect::Timer(at) => self.tick = Some(self.context.started + at),
            // The loop asks the session.
            Effect::Stopped => {}
        }
        None
    }

    /// Begins work on the connection, or answers that there is none.
    fn with_connection(
        &mut self,
        op: Op,
        work: impl FnOnce(Box<mailbell_imap::Connection>, &Context) -> Boxed<Done>,
    ) -> Option<Input> {
        match self.mail.take() {
            Some(mut connection) => {
                connection.set_content(content_of(self.session.content()));
                self.mail.busy(op, work(connection, &self.context));
                None
            }
            None => Some(failed(op, failure::no_connection())),
        }
    }

    fn on_told(&mut self) {
        #[cfg(test)]
        self.panic_if_told();
        let told = self.slot.take();
        if let Some(record) = told.record {
            self.on_record(record);
        }
        if told.policy {
            self.on_policy();
        }
        if let Some(epoch) = told.epoch {
            self.epoch = epoch;
            self.reconfigure();
        }
        if let Some(stop) = told.stop
            && self.stop != Some(stop)
        {
            self.stop = Some(stop);
            self.give(Input::Stop(stop));
        }
        if told.hurry {
            // A person waits for what comes of it.
            self.cause = Cause::Asked;
            self.give(Input::Relogin);
        }
        if told.requested {
            self.request();
        }
    }

    /// Asks the session to serve, once for all who wait.
    fn request(&mut self) {
        if !self.asked {
            self.asked = true;
            self.give(Input::Request);
        }
    }

    fn on_record(&mut self, record: Arc<AccountRecord>) {
        let old = std::mem::replace(&mut self.record, record);
        let new = &self.record;
        let login = |record: &AccountRecord| {
            (
                record.host.clone(),
                record.port,
                record.tls,
                record.user.clone(),
                record.credential_version,
            )
        };
        let relogin = login(&old) != login(new);
        if relogin || old.paused {
            // A person changed something and waits for what comes of it.
            self.cause = Cause::Asked;
        }
        let moved = old.host != new.host;
        if moved {
            self.said = self.context.said(&self.slot.account, &new.host);
        }
        let differs = |old: &AccountRecord, new: &AccountRecord| {
            old.paused != new.paused || old.folders != new.folders || old.content != new.content
        };
        if moved || differs(&old, new) {
            self.reconfigure();
        }
        if relogin {
            self.give(Input::Relogin);
        }
    }

    fn on_policy(&mut self) {
        let said = self.context.said(&self.slot.account, &self.record.host);
        let before = std::mem::replace(&mut self.said, said);
        if !before.is_nothing() || !self.said.is_nothing() {
            self.reconfigure();
        }
    }

    fn reconfigure(&mut self) {
        let config = config_of(
            &self.context,
            &self.slot,
            &self.record,
            &self.said,
            self.epoch,
        );
        let config = Box::new(config);
        self.give(Input::Reconfigure { config });
    }

    fn on_link(&mut self) {
        let up = self.link.borrow_and_update().is_up();
        self.give(Input::Bus { up });
        self.write_status();
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        if self.tick.is_some_and(|at| at <= now) {
            self.tick = None;
            self.give(Input::Tick);
        }
        self.write_status();
    }

    /// When there is something to do. A status that nobody can take is nothing: its time passes and stays, and would spin.
    fn deadline(&self) -> Option<Instant> {
        let status = self.status.due().filter(|_| self.link.borrow().is_up());
        self.tick.into_iter().chain(status).min()
    }

    fn write_status(&mut self) {
        // While NATS is away the newest waits.
        if self.link.borrow().is_up() {
            let account = &self.slot.account;
            self.status.write(&*self.context.ledger, account);
        }
    }

    fn on_mail(&mut self, done: (Op, Done)) {
        let (op, done) = done;
        let input = match done {
            Done::Opened {
                connection,
                quiet_folders,
            } => {
                self.cause = Cause::Reconnect;
                let input = Input::Opened {
                    op,
                    idle: connection.idles(),
                    handshake: connection.handshake(),
                    quiet_folders,
                };
                self.mail.free(connection);
                input
            }
            Done::Looked { connection, look } => {
                self.mail.free(connection);
                Input::Looked { op, look }
            }
            Done::Fetched {
                connection,
                messages,
                began,
            } => {
                self.mail.free(connection);
                self.context.metrics.milestone("fetched", messages.len());
                let messages = self.traces.begin(messages, began);
                Input::FetchedPage { op, messages }
            }
            Done::Armed { parked, park } => {
                self.mail.wait(op, parked, park);
                return;
            }
            Done::Again { connection, park } => {
                self.mail.free(connection);
                self.mail.arm(op, park);
                return;
            }
            Done::Woken { connection, wake } => {
                self.mail.free(connection);
                Input::Woke { op, wake }
            }
            Done::Polled {
                connection,
                changed,
            } => {
                self.mail.free(connection);
                Input::Polled { op, changed }
            }
            Done::Served { connection } => {
                self.mail.free(connection);
                Input::Served { op }
            }
            Done::Held { rest } => {
                self.mail.busy(op, rest);
                let failure = failure::host_unavailable();
                Input::Held { op, failure }
            }
            Done::Closed => Input::Closed { op },
            Done::Failed {
                connection,
                failure,
            } => {
                self.context.metrics.failure(failure.code);
                tracing::debug!(account = %self.slot.account, code = failure.code, "the mail server's side failed");
                if let Some(connection) = connection {
                    self.mail.free(connection);
                }
                failed(op, failure)
            }
        };
        self.give(input);
    }

    fn on_logged(&mut self, logged: Logged) {
        let (op, event, outcome, sent_us) = match logged {
            Logged::Tail(input) => {
                self.give(input);
                return;
            }
            Logged::Append {
                op,
                event,
                outcome,
                sent_us,
            } => (op, event, outcome, sent_us),
        };
        let stored = matches!(outcome, Outcome::Stored { .. });
        if stored {
            self.appended(&event, sent_us);
        }
        self.give(Input::Appended { op, outcome });
        if stored {
            failpoint!("after-ack");
        }
    }

    fn appended(&mut self, event: &Event, sent_us: i64) {
        if !matches!(event.fact, Fact::Arrived { .. }) {
            return;
        }
        let now_us = self.context.clock.now_us();
        self.active_us = event.detected_us;
        let metrics = &self.context.metrics;
        metrics.milestone("appended", 1);
        let bytes = u64::try_from(event.content.len()).unwrap_or(u64::MAX);
        metrics.content_bytes.inc_by(bytes);
        metrics.hop("detected-fetched", event.detected_us, event.fetched_us);
        metrics.hop("fetched-appended", event.fetched_us, now_us);
        self.traces.end(event, sent_us, now_us);
    }

    fn on_stored(&mut self, stored: Stored) {
        self.context.metrics.checkpoint(stored.outcome());
        let input = match stored {
            Stored::Done { op, revision } => Input::CheckpointStored { op, revision },
            Stored::Unsure { op, unsure, error } => {
                self.unsure = unsure;
                let (code, sentence) = failure::of_store(&error);
                Input::CheckpointNotStored { op, code, sentence }
            }
            Stored::Conflict { op } => {
                self.conflict = true;
                Input::CheckpointConflict { op }
            }
        };
        self.give(input);
    }

    #[cfg(test)]
    fn panic_if_told(&self) {
        use std::sync::atomic::Ordering::SeqCst;
        let planted = self
            .context
            .panics
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        assert!(planted.is_err(), "a planted panic");
    }
}

impl Drop for Driver {
    // Also when a panic unwinds: whoever waits for a page hears of it.
    fn drop(&mut self) {
        self.slot.close();
    }
}

fn failed(op: Op, failure: mailbell_core::session::Failure) -> Input {
    Input::Failed { op, failure }
}

/// The output of a future if there is one, once; else never.
pub(crate) async fn finished<T>(future: &mut Option<Boxed<T>>) -> T {
    poll_fn(|cx| {
        let Some(running) = future else {
            return Poll::Pending;
        };
        let output = std::task::ready!(running.as_mut().poll(cx));
        *future = None;
        Poll::Ready(output)
    })
    .await
}

#[cfg(test)]
pub(crate) mod tests;
