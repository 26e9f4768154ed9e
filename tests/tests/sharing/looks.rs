//! What operators see of watchers that come, go and die: `mailbell shards`, the gauges of the admin process, and the log.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mailbell_tests::{
    http,
    installation::Part,
    process::LOOK_EVERY,
    sessions::Fault,
    sharing::{ALONE, SOON, Scene, SceneOptions},
    watching::Watching,
};
use rustix::process::Signal;
use serde_json::Value;

use super::{W, board, finish_after, nats_server, row, scene};

/// How long a watcher may take to end, unless it is told otherwise.
const GRACE: Duration = Duration::from_secs(25);
/// The machine is busy for so long: longer than the twelve seconds after which a silent member is dead, and some renewals more.
const BUSY: Duration = Duration::from_secs(20);
/// How long the mail server takes for the end of IDLE: longer than a watcher is silent, which says with each sign of life what it hands
/// over.
const SLOW: Duration = Duration::from_secs(5);

/// A board in the names of the gauges, but for the times.
fn as_gauges(board: &Value) -> BTreeMap<String, u64> {
    let totals = |field: &str| board["totals"][field].as_u64().unwrap();
    let mut gauges = BTreeMap::from(
        [
            ("partitions owned", "partitions_owned"),
            ("partitions handing-over", "partitions_handing_over"),
            ("partitions unowned", "partitions_unowned"),
            ("accounts unowned", "accounts_unowned"),
        ]
        .map(|(gauge, field)| (gauge.to_owned(), totals(field))),
    );
    for row in board["members"].as_array().unwrap() {
        let state = row["state"].as_str().unwrap();
        *gauges.entry(format!("members {state}")).or_default() += 1;
    }
    gauges
}

/// The gauges that aren't 0, and the partitions, as [`as_gauges`] names them; and for how long accounts have been unowned.
async fn gauges(scene: &Scene) -> (BTreeMap<String, u64>, u64) {
    let installation = &scene.crowd.installation;
    let page = installation.page_of(Part::Admin, "/metrics").await.unwrap();
    let gauge = |name: &str, labels: &[&str]| {
        let name = format!("mailbell_shards_{name}");
        let value = http::metric(&page.body, &name, labels);
        // They are whole numbers.
        value.map(|value| value as u64)
    };
    let mut gauges = BTreeMap::new();
    for state in ["live", "draining", "quiet", "stalled", "dead", "left"] {
        let label = format!("state=\"{state}\"");
        if let Some(count) = gauge("members", &[&label]).filter(|count| *count > 0) {
            gauges.insert(format!("members {state}"), count);
        }
    }
    for state in ["owned", "handing-over", "unowned"] {
        let count = gauge("partitions", &[&format!("state=\"{state}\"")]);
        gauges.insert(format!("partitions {state}"), count.unwrap_or_default());
    }
    let accounts = gauge("accounts_unowned", &[]).unwrap();
    gauges.insert("accounts unowned".to_owned(), accounts);
    (gauges, gauge("unowned_seconds", &[]).unwrap())
}

/// Whether the admin process says that it can tell who has died.
async fn is_steady(scene: &Scene) -> bool {
    let installation = &scene.crowd.installation;
    let page = installation.page_of(Part::Admin, "/metrics").await.unwrap();
    http::metric(&page.body, "mailbell_shards_steady", &[]) == Some(1.0)
}

/// Waits until the gauges say what is expected, and `mailbell shards` the same; for how long accounts have been unowned, by the gauge.
async fn both_show(scene: &Scene, expected: &[(&str, u64)]) -> u64 {
    let expected: BTreeMap<String, u64> = expected
        .iter()
        .map(|(gauge, value)| ((*gauge).to_owned(), *value))
        .collect();
    let deadline = Instant::now() + SOON;
    let mut shown = BTreeMap::new();
    loop {
        let (counted, seconds) = gauges(scene).await;
        if counted == expected {
            // At another moment: one may be ahead of the other.
            shown = as_gauges(&board(&scene.crowd.installation).await);
            if shown == expected {
                return seconds;
            }
        }
        assert!(
            Instant::now() < deadline,
            "{counted:?}, and shown {shown:?}, in place of {expected:?}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What the watcher that ends has said of the partitions that it still has, in order; the first and the last are all of them and none.
fn said_of_partitions(log: &str) -> Vec<u64> {
    let number = |line: &str, field: &str| -> Option<u64> {
        let (_, rest) = line.split_once(&format!("{field}="))?;
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
    };
    log.lines()
        .filter_map(|line| match line {
            _ if line.contains("not handed over in time") => None,
            _ if line.contains("still to be handed over") => number(line, "partitions"),
            _ if line.contains("handing over") => number(line, "partitions"),
            _ if line.contains("handed over") => Some(0),
            _ => None,
        })
        .collect()
}

/// One ends in order, and the others are killed, until nobody watches anything; then all come back.
#[tokio::test]
async fn what_is_shown_follows_what_happens() {
    let (_nats, mut scene) = scene().await;
    let users = u64::try_from(scene.crowd.accounts.len()).unwrap();
    let all_is_well = [
        ("members live", 3),
        ("partitions owned", 1024),
        ("partitions handing-over", 0),
        ("partitions unowned", 0),
        ("accounts unowned", 0),
    ];
    let installation = &scene.crowd.installation;
    let json = ["--json", "--interval", "1s"];
    let mut watching = Watching::start(installation, &json).unwrap();
    let mut table = Watching::start(installation, &[]).unwrap();

    // Its sessions take a moment each to end, so that there is something to say meanwhile.
    let server = Arc::clone(&scene.crowd.server);
    let delay = |delay| server.conduct(|conduct| conduct.delays.command = delay);
    delay(SLOW);
    let (name, before) = (W[1].to_string(), scene.crowd.installation.log().len());
    let begin = Instant::now();
    scene.crowd.installation.terminate(W[1]).await.unwrap();
    let took = begin.elapsed();
    delay(Duration::ZERO);
    let log = scene.crowd.installation.log();
    let said = said_of_partitions(&log[before..]);
    println!("ended in {took:?}: {said:?}");
    assert!(took < GRACE, "{took:?}");
    assert!(
        said.len() > 2 && said.is_sorted_by(|a, b| a >= b),
        "{said:?}"
    );
    assert!(said[0] > 0 && said.last() == Some(&0), "{said:?}");
    let of_it = |line: &str| row(&json_of(line), &name).clone();
    let giving = |line: &str| of_it(line)["handing_over"].as_u64().unwrap() > 0;
    let hand_overs = watching.prints(SOON, "hand-overs", giving);
    hand_overs.await.unwrap();
    let left = |line: &str| {
        let row = of_it(line);
        row["state"] == "left" && row["handing_over"] == 0
    };
    watching.prints(SOON, "it left", left).await.unwrap();

    let gone = Instant::now();
    for watcher in [W[0], W[2]] {
        scene.kill(watcher);
    }
    let nobody = |line: &str| json_of(line)["totals"]["accounts_unowned"] == users;
    watching
        .prints(SOON, "that nobody is there", nobody)
        .await
        .unwrap();
    let nobody_is_there = [
        ("members dead", 2),
        ("members left", 1),
        ("partitions owned", 0),
        ("partitions handing-over", 0),
        ("partitions unowned", 1024),
        ("accounts unowned", users),
    ];
    assert!(both_show(&scene, &nobody_is_there).await > 0);
    let check = scene.crowd.installation.cli(&["shards", "--check"]);
    assert_eq!(check.await.unwrap().code, Some(1));
    // One that has just been started does not know it at first, and says nothing else.
    let installation = &mut scene.crowd.installation;
    installation.terminate(Part::Admin).await.unwrap();
    installation.launch(Part::Admin).unwrap();
    installation.ready().await.unwrap();
    let check = installation.cli(&["shards", "--check"]);
    assert_eq!(check.await.unwrap().code, Some(1));
    both_show(&scene, &nobody_is_there).await;
    assert!(is_steady(&scene).await);

    for watcher in &W[..3] {
        scene.crowd.installation.launch(*watcher).unwrap();
    }
    let nobody_was_there = Fault::since(gone, ALONE);
    let nobody_is_missed = |line: &str| json_of(line)["totals"]["accounts_unowned"] == 0;
    let shown = watching.prints(SOON, "that all are owned", nobody_is_missed);
    shown.await.unwrap();
    scene.shared_by(&W[..3]).await.unwrap();
    assert_eq!(both_show(&scene, &all_is_well).await, 0);
    let check = scene.crowd.installation.cli(&["shards", "--check"]);
    check.await.unwrap().ok().unwrap();

    for _ in 0..2 {
        let heading = |line: &str| line.starts_with("MEMBER");
        table.prints(SOON, "a table", heading).await.unwrap();
    }
    assert_eq!(table.end(Signal::TERM).await.unwrap(), Some(0));
    assert_eq!(watching.end(Signal::INT).await.unwrap(), Some(0));
    finish_after("what is shown", scene, &[nobody_was_there]).await;
}

fn json_of(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// Threads that do nothing else than to keep this machine busy. They end when this is dropped.
struct Burning {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burning {
    /// So many for each core.
    fn start(each: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().unwrap().get();
        let burn = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..cores * each).map(burn).collect();
        Self { stop, threads }
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// No core is free for longer than the detection of a dead member takes, and one of two is started anew and logs in to all that it had,
/// as fast as it can: nobody is taken for dead, and nothing is taken from anybody.
#[tokio::test]
async fn a_storm_of_logins_on_busy_cores_is_nobodys_death() {
    let nats = nats_server().await;
    let fast = ["--logins-per-host", "5000", "--connects-per-host", "5000"];
    let options = SceneOptions {
        users: 600,
        watchers: 2,
        args: vec![fast.map(str::to_owned).to_vec(); 2],
        ..SceneOptions::new(nats.url())
    };
    let mut scene = Scene::start(options).await.unwrap();
    let before = scene.crowd.shares();
    let json = ["--json", "--interval", "1s"];
    let mut watching = Watching::start(&scene.crowd.installation, &json).unwrap();
    let burning = Burning::start(2);
    let begin = Instant::now();
    // Its claims are its own at once.
    scene.kill(W[1]);
    scene.crowd.installation.launch(W[1]).unwrap();
    let (mut count, mut still) = (0, 0);
    while begin.elapsed() < BUSY {
        let line = watching.prints(SOON, "anything", |_| true).await.unwrap();
        let board = json_of(&line);
        for member in &W[..2] {
            let row = row(&board, &member.to_string());
            let state = row["state"].as_str().unwrap();
            assert!(["live", "quiet"].contains(&state), "{row}");
            still = still.max(row["still_ms"].as_u64().unwrap());
        }
        assert_eq!(board["totals"]["accounts_unowned"], 0, "{board}");
        count += 1;
    }
    drop(burning);
    println!("a storm: nobody was silent for longer than {still} ms on {count} boards");
    scene.shared_by(&W[..2]).await.unwrap();
    assert_eq!(scene.crowd.shares(), before);
    assert_eq!(watching.end(Signal::INT).await.unwrap(), Some(0));
    let verdict = scene.finish(ALONE).await.unwrap();
    println!("a storm: {verdict}");
    assert_eq!(verdict.moves, 0);
}
