//! The dispatcher on a paused clock, without a connection.

use std::task::{Context, Poll, Waker};

use mailbell_core::{
    cursor::{Cursor, Subject},
    delivery::{ALL_KINDS, Subscription},
    ids::AccountId,
    token::Grant,
};
use mailbell_proto::push::v1::{ContentLevel, server_frame::Frame};
use mailbell_runtime::drain::Drain;
use tokio::task::JoinHandle;

use super::*;
use crate::{
    device::{Device, Registration},
    entry::tests::event,
    queue::{Queue, Taken},
    source::{Source as _, memory::MemorySource},
    tails::Tails,
};

struct Hall {
    source: MemorySource,
    commands: mpsc::Sender<Command>,
    heard: mpsc::Sender<Heard>,
    options: Arc<Options>,
    drain: Drain,
    task: JoinHandle<Result<(), Error>>,
}

fn account() -> AccountId {
    event(gone(1), Vec::new()).account
}

fn gone(uid: u32) -> mailbell_core::event::Fact {
    mailbell_core::event::Fact::Gone { uid }
}

impl Hall {
    fn open(options: Options) -> Self {
        let source = MemorySource::new();
        let options = Arc::new(options);
        let (commands_tx, commands) = mpsc::channel(8);
        let (heard_tx, heard) = mpsc::channel(64);
        let shared: Arc<dyn crate::source::Source> = Arc::new(source.clone());
        let metrics = Metrics::default();
        let tails = Arc::new(Tails::new(Arc::clone(&shared)));
        let most = options.replays;
        let replays = Replays::new(Arc::clone(&shared), tails, metrics.clone(), most);
        let parts = Parts {
            options: Arc::clone(&options),
            metrics,
            health: Health::new(),
            heard,
            commands,
            bell: Arc::new(Bell::default()),
            authority: Arc::new(Authority::new("main".to_owned(), source.link())),
            link: source.link(),
            replays,
        };
        let ids = source.log_ids();
        let ids = ids.borrow().clone();
        for group in Group::all() {
            let place = Place {
                log_id: ids[group],
                position: 0,
            };
            heard_tx.try_send(Heard::Begin(group, place)).unwrap();
            heard_tx.try_send(Heard::Following(group)).unwrap();
        }
        let (drain, handle) = Drain::new();
        let dispatcher = Dispatcher::new(parts);
        Self {
            source,
            commands: commands_tx,
            heard: heard_tx,
            options,
            drain,
            task: tokio::spawn(dispatcher.run(handle)),
        }
    }

    async fn attach(&self, from: From) -> (Arc<Device>, Registration) {
        self.attach_to(&[account()], from).await
    }

    async fn attach_to(&self, accounts: &[AccountId], from: From) -> (Arc<Device>, Registration) {
        // What is heard has been taken in by then.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let grant = Grant {
            token_id: "1".to_owned(),
            tenant: account().tenant().clone(),
            subject: Subject::accounts(accounts.iter().cloned()),
            content: ContentLevel::Preview,
            expires: i64::MAX,
        };
        let subscription = Subscription {
            subject: grant.subject.clone(),
            kinds: ALL_KINDS,
        };
        let queue = Queue::new(self.options.queue, Default::default());
        let credential = crate::authority::Credential::for_test(grant);
        let level = ContentLevel::Preview;
        let device = Device::new(queue, level, subscription, Default::default(), credential);
        let device = Arc::new(device);
        let (reply, answer) = oneshot::channel();
        let mut logs = PerGroup::default();
        for group in accounts.iter().map(AccountId::group) {
            logs[group] = self.source.log_state(group).await.ok();
        }
        let request = AttachRequest {
            device: Arc::clone(&device),
            from,
            logs: Box::new(logs),
            reply,
        };
        let command = Command::Attach(Box::new(request));
        self.commands.send(command).await.unwrap();
        match answer.await.unwrap() {
            Attached::Yes(registration) => (device, registration),
            other => panic!("{other:?}"),
        }
    }

    /// An entry, in the log and through its follower.
    async fn append(&self, account: AccountId, uid: u32) {
        let event = mailbell_core::event::Event {
            account,
            ..event(gone(uid), Vec::new())
        };
        let group = event.account.group();
        let position = self.source.append(&event);
        let entry = SharedEntry::new(event, 1, 1);
        let heard = Heard::Entry(group, position, entry);
        self.heard.send(heard).await.unwrap();
    }
}

/// What waits for a device; its queue is empty then.
fn take(device: &Device, registration: &Registration) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Taken::Frame { item, room }) =
        device.queue.poll_take(&mut cx, Instant::now())
    {
        if room {
            registration.room();
        }
        frames.push(crate::frame::decode(&item.frame));
    }
    frames
}

/// Two reads at once, and hardly any window.
fn few_reads() -> Options {
    Options {
        replays: 2,
        window: mailbell_core::delivery::WindowLimits {
            entries: 1,
            bytes: 1 << 20,
        },
        ..Options::default()
    }
}

/// A cursor from before the first entry.
async fn start(hall: &Hall) -> Cursor {
    let (device, registration) = hall.attach(From::Now).await;
    let frames = take(&device, &registration);
    let Some(Frame::Cursor(cursor)) = frames.last() else {
        panic!("{frames:?}");
    };
    Cursor::decode(&cursor.token).unwrap()
}

fn cursors(frames: &[Frame]) -> usize {
    let cursor = |frame: &&Frame| matches!(frame, Frame::Cursor(_));
    frames.iter().filter(cursor).count()
}

#[tokio::test(start_paused = true)]
async fn every_device_hears_a_cursor_each_heartbeat_and_hardly_more() {
    let hall = Hall::open(Options::default());
    let mut devices = Vec::new();
    for _ in 0..20 {
        devices.push(hall.attach(From::Now).await);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let mut last = vec![Instant::now(); devices.len()];
    let mut heard = vec![0; devices.len()];
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (n, (device, registration)) in devices.iter().enumerate() {
            if cursors(&take(device, registration)) > 0 {
                (last[n], heard[n]) = (Instant::now(), heard[n] + 1);
            }
            let quiet = last[n].elapsed();
            assert!(quiet <= Duration::from_secs(30), "{n}: {quiet:?}");
        }
    }
    // 5 minutes: a quiet device is not woken without need.
    assert!(heard.iter().all(|count| *count <= 15), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cursor_follows_an_event_within_its_delay() {
    let hall = Hall::open(Options::default());
    let (device, registration) = hall.attach(From::Now).await;
    take(&device, &registration);
    hall.append(account(), 1).await;
    tokio::time::sleep(Duration::from_millis(1001)).await;
    let frames = take(&device, &registration);
    assert!(matches!(frames[0], Frame::Event(_)), "{frames:?}");
    let Some(Frame::Cursor(cursor)) = frames.last() else {
        panic!("{frames:?}");
    };
    let cursor = Cursor::decode(&cursor.token).unwrap();
    assert_eq!(cursor.0[account().group()].position, 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_reads_at_once_than_allowed() {
    let hall = Hall::open(few_reads());
    let start = start(&hall).await;
    for uid in 1..=10 {
        hall.append(account(), uid).await;
    }
    hall.source.hold_reads(true);
    let mut devices = Vec::new();
    for _ in 0..9 {
        let from = From::Cursor(Box::new(start.clone()));
        devices.push(hall.attach(from).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(hall.source.reads(), 2);
    // One leaves while it waits: its turn is passed over.
    devices.pop();
    hall.source.hold_reads(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (device, registration) in &devices {
        let events = take(device, registration);
        let events = events.iter().filter(|f| matches!(f, Frame::Event(_)));
        assert_eq!(events.count(), 10);
    }
    assert_eq!(hall.source.reads(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_cannot_be_read_holds_back_no_other() {
    let hall = Hall::open(few_reads());
    let start = start(&hall).await;
    let others = (1..).map(|n| {
        let ulid = ulid::Ulid::from_parts(1_700_000_000_000, n);
        AccountId::new(account().tenant().clone(), ulid)
    });
    let mut others = others.filter(|other| other.group() != account().group());
    let mut both = [account(), others.next().unwrap()];
    // The one that is read first is away.
    both.sort_by_key(AccountId::group);
    let [away, there] = both.clone();
    for uid in 1..=10 {
        hall.append(away.clone(), uid).await;
        hall.append(there.clone(), uid).await;
    }
    hall.source.hold_reads(true);
    let from = || From::Cursor(Box::new(start.clone()));
    let (device, registration) = hall.attach_to(&both, from()).await;
    let mut stuck = Vec::new();
    for _ in 0..50 {
        stuck.push(hall.attach_to(std::slice::from_ref(&away), from()).await);
    }
    hall.source.set_away(away.group(), true);
    hall.source.hold_reads(false);
    let uids = |account: &AccountId| -> usize {
        let frames = take(&device, &registration);
        let of = |frame: &&Frame| matches!(frame, Frame::Event(event) if event.key.as_ref().unwrap().account == account.to_string());
        frames.iter().filter(of).count()
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(uids(&there), 10);
    // One read at a time tries whether it is back.
    assert!(hall.source.reads() < 50, "{}", hall.source.reads());
    hall.source.set_away(away.group(), false);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(uids(&away), 10);
    for (device, registration) in &stuck {
        let events = take(device, registration);
        let events = events.iter().filter(|f| matches!(f, Frame::Event(_)));
        assert_eq!(events.count(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_devices_is_over_at_once() {
    let hall = Hall::open(Options::default());
    let since = Instant::now();
    hall.drain.begin(Duration::from_secs(30));
    hall.task.await.unwrap().unwrap();
    assert!(since.elapsed() < Duration::from_secs(1));
}
