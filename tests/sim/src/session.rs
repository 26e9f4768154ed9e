//! Drives the real sessions: carries out their effects on the models, and checks after each input what must be true always.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use mailbell_core::{
    checkpoint::Checkpoint,
    event::{Event, Fact},
    ids::{Generation, Position, Uid},
    session::{Effect, Input, Known, Now, Op, Outcome, Session, Tail},
};

use mailbell_proto::push::v1::{self as push, Health};
use prost::Message as _;

use crate::{
    breach::Breach,
    bus::Stored,
    device::ListAsk,
    drive::Ev,
    mailbox::Work,
    read::{Job, Purpose, Range},
    world::World,
};

/// No input may ask for more than this at once.
const MOST_EFFECTS: usize = 40;
/// Nor all inputs of a simulated second together: a session that spins asks for far more.
const MOST_A_SECOND: u32 = 1500;

/// One session.
pub(crate) struct Run {
    pub(crate) session: Session,
    pub(crate) account: usize,
    pub(crate) owner: usize,
    pub(crate) alive: bool,
    pub(crate) conn: Option<usize>,
    pub(crate) interrupted: bool,
    /// The append that is awaited.
    pub(crate) append: Option<(Op, Event)>,
    tail: Option<Op>,
    store: Option<Op>,
    mail: Option<Op>,
    timer: u64,
    /// Who waits for a listing.
    pub(crate) waiting: Vec<ListAsk>,
    /// What the session must know: the fold of what the log told it.
    oracle: Checkpoint,
    second: u64,
    effects: u32,
}

/// What was acknowledged to any session of an account.
pub(crate) struct Acked {
    pub(crate) history: u64,
    pub(crate) position: u64,
    pub(crate) event: Event,
}

/// UIDs that were told of a folder, one by one or by a range.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) one_by_one: std::collections::HashSet<(usize, Generation, Uid)>,
    pub(crate) ranges: Vec<(usize, Generation, Uid, Uid)>,
    pub(crate) acked: VecDeque<Acked>,
    /// Up to here an old owner's checkpoint may have left out what its successor told.
    pub(crate) forgiven: Position,
}

/// All that the log of an account ever held, and what that began with: what is known at the end must follow from it.
pub(crate) struct Ledger {
    pub(crate) first: Checkpoint,
    pub(crate) entries: Vec<Rc<Stored>>,
    /// No longer: something was lost, or a session that was over told what its successor need not know.
    pub(crate) broken: bool,
}

impl Told {
    fn has(&self, folder: usize, generation: Generation, uid: Uid) -> bool {
        self.one_by_one.contains(&(folder, generation, uid))
            || self.ranges.iter().any(|(of, told, first, last)| {
                (*of, *told) == (folder, generation) && (*first..=*last).contains(&uid)
            })
    }
}

impl World {
    /// A session of an owner begins.
    pub(crate) fn start_run(&mut self, owner: usize, account: usize, known: Known) {
        let config = self.config(owner, account);
        let oracle = known.checkpoint.clone();
        let now = self.session_now(owner);
        let session = Session::new(config, known, now);
        let run = self.runs.len();
        self.runs.push(Run {
            session,
            account,
            owner,
            alive: true,
            conn: None,
            interrupted: false,
            append: None,
            tail: None,
            store: None,
            mail: None,
            timer: 0,
            waiting: Vec::new(),
            oracle,
            second: 0,
            effects: 0,
        });
        self.say(|| format!("run {run}: account {account} under owner {owner}"));
        self.owners[owner].runs.insert(account, run);
        self.give(run, Input::Start);
    }

    fn session_now(&self, owner: usize) -> Now {
        let skew = self.processes[self.owners[owner].process].skew_us;
        Now {
            mono: self.now,
            wall_us: self.wall_us() + skew,
        }
    }

    /// Everything that a live process runs.
    pub(crate) fn runs_of(&self, process: usize) -> Vec<usize> {
        let of = |owner: usize| self.owners[owner].process == process;
        (0..self.runs.len())
            .filter(|run| self.runs[*run].alive && of(self.runs[*run].owner))
            .collect()
    }

    /// A session is told something.
    pub(crate) fn give(&mut self, run: usize, input: Input) {
        if !self.runs[run].alive {
            return;
        }
        let process = self.owners[self.runs[run].owner].process;
        if self.processes[process].stopped {
            return self.defer(process, Ev::Give { run, input });
        }
        if !matches!(input, Input::Tick) {
            self.say(|| format!("  run {run} <- {input:?}"));
        }
        self.note_answer(run, &input);
        let now = self.session_now(self.runs[run].owner);
        let mut effects = Vec::new();
        let state = &mut self.runs[run];
        state
            .session
            .handle(now, &mut self.rng, input, &mut effects);
        self.check_run(run, effects.len());
        for effect in effects {
            if !matches!(effect, Effect::Timer(_)) {
                self.say(|| format!("  run {run} -> {effect:?}"));
            }
            self.carry_out(run, effect);
        }
    }

    /// What an answer means for what is awaited, and for what must be known.
    fn note_answer(&mut self, run: usize, input: &Input) {
        let holds = self.holds(self.runs[run].owner);
        let state = &mut self.runs[run];
        match input {
            Input::Appended { op, outcome } => {
                if state
                    .append
                    .as_ref()
                    .is_none_or(|(awaited, _)| awaited != op)
                {
                    return self.count("answer to an old op");
                }
                let (_, event) = state.append.take().unwrap();
                if let Outcome::Stored { log_id, position } = *outcome {
                    state.oracle.acknowledge(log_id, position, &event);
                    let account = state.account;
                    let history = self.logs[self.places[account].log].history;
                    let acked = Acked {
                        history,
                        position,
                        event,
                    };
                    // What an old owner appends, its successor need not know: it is told again.
                    let place = &self.places[account];
                    let epoch = self.owners[state.owner].epoch;
                    let log = &self.logs[place.log];
                    let mut there = log.after(position.saturating_sub(1));
                    let own = there
                        .next()
                        .is_some_and(|entry| entry.event.owner_epoch == epoch);
                    if own && holds {
                        let told = &mut self.mailboxes_told[account].acked;
                        told.push_back(acked);
                        if told.len() > 200 {
                            told.pop_front();
                        }
                    }
                }
            }
            Input::TailRead { op, tail } if state.tail == Some(*op) => {
                state.tail = None;
                for (position, event) in tail.iter().flat_map(|tail| &tail.events) {
                    let log_id = tail.as_ref().unwrap().log_id;
                    state.oracle.fold(log_id, *position, event);
                }
            }
            Input::CheckpointStored { op, .. }
            | Input::CheckpointNotStored { op, .. }
            | Input::CheckpointConflict { op } => {
                state.store.take_if(|awaited| awaited == op);
            }
            Input::Opened { op, .. }
            | Input::Looked { op, .. }
            | Input::FetchedPage { op, .. }
            | Input::Woke { op, .. }
            | Input::Polled { op, .. }
            | Input::Served { op }
            | Input::Closed { op }
            | Input::Failed { op, .. }
                if state.mail.take_if(|awaited| awaited == op).is_none() =>
            {
                self.count("answer to an old op");
            }
            _ => {}
        }
    }

    fn check_run(&mut self, run: usize, effects: usize) {
        let second = self.now.as_secs();
        let state = &mut self.runs[run];
        if state.second != second {
            state.second = second;
            state.effects = 0;
        }
        state.effects += u32::try_from(effects).unwrap();
        self.effects += u64::try_from(effects).unwrap();
        let spins = state.effects > MOST_A_SECOND || effects > MOST_EFFECTS;
        let queued = state.session.queued();
        let told = state.session.checkpoint().same_told(&state.oracle);
        let most = self.scenario.limits.page + 4;
        if spins {
            self.fail(
                Breach::Restless,
                format!("run {run} spins: {effects} effects at once"),
            );
        }
        if queued > most {
            self.fail(
                Breach::Contract,
                format!("run {run} queues {queued} events"),
            );
        }
        if !told {
            let state = &self.runs[run];
            let (knows, log) = (state.session.checkpoint().clone(), state.oracle.clone());
            self.fail(Breach::NotTheFold, format!(
                "checkpoint = fold(log) is broken in run {run}: it knows {knows:?}, the log says {log:?}"
            ));
        }
    }

    fn carry_out(&mut self, run: usize, effect: Effect) {
        match effect {
            Effect::Open { op } => {
                self.runs[run].conn = None;
                self.mail(run, op, Work::Open);
            }
            Effect::Look {
                op,
                folder,
                select,
                from,
                most,
                holes,
            } => {
                let work = Work::Look {
                    folder,
                    select,
                    from,
                    most,
                    holes,
                };
                self.mail(run, op, work);
            }
            Effect::Fetch { op, uids } => {
                if uids.is_empty() || uids.len() > self.scenario.limits.page {
                    self.fail(
                        Breach::Contract,
                        format!("run {run} fetches {} messages", uids.len()),
                    );
                }
                self.mail(run, op, Work::Fetch(uids));
            }
            Effect::Park { op, idle, most } => self.mail(run, op, Work::Park { idle, most }),
            Effect::Interrupt => self.interrupt(run),
            Effect::Poll { op } => self.mail(run, op, Work::Poll),
            Effect::Serve { op } => {
                let asks = std::mem::take(&mut self.runs[run].waiting);
                self.mail(run, op, Work::Serve(asks));
            }
            Effect::RefuseRequests => {
                let asks = std::mem::take(&mut self.runs[run].waiting);
                self.refuse(asks);
            }
            Effect::Close { op } => self.mail(run, op, Work::Close),
            Effect::Drop => {
                self.runs[run].mail = None;
                if let Some(conn) = self.runs[run].conn.take() {
                    self.cut_conn(conn);
                }
            }
            Effect::Append { op, event, retry } => {
                let state = &mut self.runs[run];
                let busy = state.append.is_some() || state.tail.is_some();
                let over = state.session.checkpoint().health == Health::Removed;
                state.append = Some((op, (*event).clone()));
                if busy {
                    self.fail(
                        Breach::Contract,
                        format!("run {run} has two appends in flight"),
                    );
                }
                if over && !retry {
                    self.fail(
                        Breach::Contract,
                        format!("run {run} tells of an account after its removal"),
                    );
                }
                self.send_append(run, op, event, retry);
            }
            Effect::ReadTail { op, log_id, after } => {
                let state = &mut self.runs[run];
                let busy = state.append.is_some() || state.tail.is_some();
                state.tail = Some(op);
                if busy {
                    self.fail(
                        Breach::Contract,
                        format!("run {run} reads a tail with an append in flight"),
                    );
                }
                self.count("tail read");
                let account = state_account(self, run);
                let log = self.places[account].log;
                let process = self.owners[self.runs[run].owner].process;
                let Some(stand) = self.look_at_log(process, log) else {
                    let input = Input::TailRead { op, tail: None };
                    return self.soon(Ev::Give { run, input });
                };
                let same = stand.log_id == log_id;
                let range = Range {
                    log,
                    accounts: [account].into(),
                    log_id: stand.log_id,
                    after: if same { after } else { stand.first - 1 },
                    up_to: stand.last,
                };
                self.read(process, range, Purpose::Tail { run, op });
            }
            Effect::StoreCheckpoint {
                op,
                checkpoint,
                revision,
            } => {
                if self.runs[run].store.replace(op).is_some() {
                    self.fail(
                        Breach::Contract,
                        format!("run {run} stores two checkpoints at once"),
                    );
                }
                self.soon(Ev::Store {
                    run,
                    op,
                    checkpoint,
                    revision,
                });
            }
            Effect::Status(_) => {}
            Effect::Timer(at) => {
                self.runs[run].timer += 1;
                let number = self.runs[run].timer;
                self.after(at.saturating_sub(self.now), Ev::Timer { run, number });
            }
            Effect::Stopped => self.run_stopped(run),
        }
    }

    pub(crate) fn on_timer(&mut self, run: usize, number: u64) {
        if self.runs[run].timer == number {
            self.give(run, Input::Tick);
        }
    }

    fn mail(&mut self, run: usize, op: Op, work: Work) {
        if self.runs[run].mail.replace(op).is_some() {
            self.fail(
                Breach::Contract,
                format!("run {run} asks twice of one connection"),
            );
        }
        self.runs[run].interrupted = false;
        let conn = self.runs[run].conn;
        // A mail server takes longer than a network.
        let delay = self.delay() + self.delay() + Duration::from_millis(2);
        self.after(
            delay,
            Ev::Mail {
                run,
                conn,
                op,
                work,
            },
        );
    }

    pub(crate) fn tail_read(&mut self, job: Job, whole: bool) {
        let Purpose::Tail { run, op } = job.purpose else {
            return;
        };
        let tail = whole.then(|| Tail {
            log_id: job.log_id,
            read_to: job.read_to(),
            events: job
                .entries
                .iter()
                .map(|stored| (stored.position, stored.event.clone()))
                .collect(),
        });
        if whole {
            self.check_whole(&job, "the tail");
        }
        self.soon(Ev::Give {
            run,
            input: Input::TailRead { op, tail },
        });
    }

    /// A session ends without a word: its process died, or it was told to stop and did.
    pub(crate) fn end_run(&mut self, run: usize) {
        let state = &mut self.runs[run];
        state.alive = false;
        let asks = std::mem::take(&mut state.waiting);
        if let Some(conn) = state.conn.take() {
            self.cut_conn(conn);
        }
        self.refuse(asks);
    }

    /// What a log holds was told.
    pub(crate) fn note_told(&mut self, account: usize, event: &Event) {
        let names = self.places[account].folders;
        let Some(folder) = names.iter().position(|name| *name == event.folder_name) else {
            return;
        };
        let generation = event.generation;
        let told = &mut self.mailboxes_told[account];
        match event.fact {
            Fact::Arrived { uid, .. } => {
                told.one_by_one.insert((folder, generation, uid));
                self.count("arrivals told");
                self.check_read(account, folder, uid, event);
            }
            Fact::Bulk { first, last, .. } => {
                told.ranges.push((folder, generation, first, last));
                self.count("bulks");
            }
            Fact::Resync { uid_next, .. } => {
                told.ranges
                    .push((folder, generation, 1, uid_next.saturating_sub(1)));
                self.count("resyncs by the log");
            }
            _ => {}
        }
    }

    /// Only what nobody can read is told unread.
    fn check_read(&mut self, account: usize, folder: usize, uid: Uid, event: &Event) {
        let read = push::Message::decode(event.content.clone());
        if read.is_ok_and(|message| !message.message_id.is_empty()) {
            return;
        }
        self.count("message told unread");
        let place = &self.mailboxes[account].folders[folder];
        let message = place
            .messages
            .get(&uid)
            .filter(|_| place.generation == event.generation);
        if message.is_some_and(|message| !message.unreadable) {
            self.fail(
                Breach::ToldUnread,
                format!("uid {uid} of folder {folder} of account {account} is told unread"),
            );
        }
    }

    /// What the session of an account knows at rest is exactly the fold of its log, wherever and by whomever it was folded.
    pub(crate) fn check_ledger(&mut self, account: usize) {
        let partition = self.places[account].partition;
        let ledger = &self.ledgers[account];
        if ledger.broken || self.removed[account] {
            return;
        }
        let log_id = self.identities[self.places[account].log].log_id;
        let owner = self.serving(partition)[0];
        let run = self.owners[owner].runs[&account];
        let knows = self.runs[run].session.checkpoint().clone();
        let mut told = ledger.first.clone();
        let mut there = (told.log_id, told.position);
        for stored in &ledger.entries {
            told.fold(log_id, stored.position, &stored.event);
            if stored.position <= knows.position {
                there = (told.log_id, told.position);
            }
        }
        self.count("log folded as a whole");
        // Behind where it knows the log to be, a late publish may repeat what is known, and nothing else.
        if !knows.same_told(&told) || (knows.log_id, knows.position) != there {
            self.fail(
                Breach::NotTheFold,
                format!("account {account} ends with {knows:?}, its whole log says {told:?}"),
            );
        }
    }

    /// A checkpoint that is stored never knows less of the log than the one before.
    pub(crate) fn check_moves_on(&mut self, account: usize, checkpoint: &Checkpoint) {
        let Some(stored) = &self.checkpoints[account] else {
            return;
        };
        let (log_id, position) = (&stored.record.log_id, stored.record.position);
        if *log_id == checkpoint.log_id.0.as_slice() && position > checkpoint.position {
            let later = checkpoint.position;
            self.fail(
                Breach::GoesBack,
                format!("the checkpoint of account {account} goes back from {position} to {later}"),
            );
        }
    }

    /// A checkpoint that is stored knows of nothing that no log ever told.
    pub(crate) fn check_stored(&mut self, account: usize, checkpoint: &Checkpoint) {
        let names = self.places[account].folders;
        let mut wrong = None;
        for known in &checkpoint.folders {
            let Some(folder) = names.iter().position(|name| *name == known.name) else {
                continue;
            };
            let place = &self.mailboxes[account].folders[folder];
            if place.generation != known.generation {
                continue;
            }
            let told = &self.mailboxes_told[account];
            wrong = wrong.or(place
                .messages
                .keys()
                .find(|uid| known.told(**uid) && !told.has(folder, known.generation, **uid))
                .map(|uid| (folder, *uid)));
        }
        if let Some((folder, uid)) = wrong {
            self.fail(Breach::NeverTold, format!(
                "the checkpoint of account {account} knows uid {uid} of folder {folder}, which was never told"
            ));
        }
    }
}

fn state_account(world: &World, run: usize) -> usize {
    world.runs[run].account
}
