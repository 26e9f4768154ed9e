//! A look at an installation where the API server answers one of its requests as none in a test does: overloaded, without room, cut off,
//! or never.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
};

use http::{Method, Request, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::sizing::WINDOW;

/// How one request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Status(u16, &'static str),
    /// A part of an object.
    Half,
    Never,
}

const ANSWERS: [Answer; 7] = [
    Answer::Status(409, "the object has been modified"),
    Answer::Status(403, "exceeded quota: pods"),
    Answer::Status(429, "too many requests"),
    Answer::Status(500, "failed calling webhook"),
    Answer::Status(503, "the server is unable to handle the request"),
    Answer::Half,
    Answer::Never,
];

/// Keeps what is applied, and says of each that it does its work.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    asked: Vec<(Method, String)>,
    /// How the requests to this place, or the one after so many, are answered.
    wrong: Option<(Place, Answer)>,
    /// The watchers are being replaced, and nothing has happened to them for so many seconds.
    stuck_s: Option<i64>,
    /// A number in the status of the gateways.
    gateways: Option<(&'static str, i64)>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Nth(usize),
    Path(&'static str),
}

impl Server {
    fn wrong(&mut self, method: &Method, path: &str) -> Option<Answer> {
        let nth = self.asked.len();
        self.asked.push((method.clone(), path.to_owned()));
        let (place, answer) = self.wrong?;
        let is_meant = match place {
            Place::Nth(one) => one == nth,
            Place::Path(end) => method == Method::PATCH && path.ends_with(end),
        };
        is_meant.then_some(answer)
    }

    fn right(&mut self, method: &Method, path: &str, body: &[u8]) -> Option<Value> {
        let (_, below) = path.split_once("/namespaces/mail/").unwrap();
        let is_list = !below.contains('/');
        match *method {
            Method::GET if is_list => {
                let all = self.objects.iter();
                let all = all.filter(|(place, _)| place.rsplit_once('/').unwrap().0 == path);
                let all: Vec<_> = all.map(|(_, object)| object.clone()).collect();
                Some(json!({ "metadata": {}, "items": all }))
            }
            Method::GET => self.objects.get(path).cloned(),
            Method::POST => Some(serde_json::from_slice(body).unwrap()),
            Method::DELETE => self.objects.remove(path),
            _ => {
                let (place, is_status) = match path.strip_suffix("/status") {
                    Some(place) => (place, true),
                    None => (path, false),
                };
                let mut object: Value = serde_json::from_slice(body).unwrap();
                if is_status {
                    let status = object["status"].take();
                    object = self.objects[place].clone();
                    object["status"] = status;
                } else {
                    object["status"] = works(&object);
                    self.roll_out(&mut object);
                    if let Some((field, number)) =
                        self.gateways.filter(|_| path.ends_with("/main-gateway"))
                    {
                        object["status"][field] = number.into();
                    }
                }
                self.objects.insert(place.to_owned(), object.clone());
                Some(object)
            }
        }
    }

    fn roll_out(&self, object: &mut Value) {
        let Some(stuck_s) = self.stuck_s.filter(|_| object["kind"] == "StatefulSet") else {
            return;
        };
        let status = &mut object["status"];
        (status["currentRevision"], status["updateRevision"]) = (json!("a"), json!("b"));
        let then = Timestamp::from_second(cluster::now().as_second() - stuck_s).unwrap();
        let writer = json!({ "manager": "kube-controller-manager", "subresource": "status", "operation": "Update",
            "time": then.to_string() });
        object["metadata"]["managedFields"] = json!([writer]);
    }

    fn of(&self, method: &Method) -> Vec<&str> {
        let asked = self.asked.iter().filter(|(asked, _)| asked == method);
        asked.map(|(_, path)| path.as_str()).collect()
    }
}

fn works(object: &Value) -> Value {
    let count = &object["spec"]["replicas"];
    json!({ "replicas": count, "readyReplicas": count, "updatedReplicas": count, "availableReplicas": count,
        "conditions": [{ "type": "Complete", "status": "True" }] })
}

fn answer(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string().into_bytes()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn client(server: &Arc<Mutex<Server>>) -> Client {
    let server = Arc::clone(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&server);
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let body = request.into_body().collect_bytes().await.unwrap();
            let wrong = server.lock().unwrap().wrong(&method, &path);
            let failure = |code: u16, words: &str| {
                let reason = if code == 404 { "NotFound" } else { "" };
                let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "code": code, "reason": reason, "message": words });
                answer(code, &status)
            };
            let response = match wrong {
                Some(Answer::Status(code, words)) => failure(code, words),
                Some(Answer::Half) => Response::new(Body::from(b"{\"metadata\":{\"na".to_vec())),
                Some(Answer::Never) => std::future::pending().await,
                None => match server.lock().unwrap().right(&method, &path, &body) {
                    Some(object) => answer(200, &object),
                    None => failure(404, "not found"),
                },
            };
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "mail")
}

const MAIN: &str = "/apis/mailbell.dev/v1alpha1/namespaces/mail/mailbells/main";
/// Of a release before, which nobody wants any more.
const BEFORE: &str = "/api/v1/namespaces/mail/configmaps/main-before";

fn before() -> Value {
    let owner = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell", "name": "main", "uid": "a" });
    json!({ "metadata": { "name": "main-before", "ownerReferences": [owner] } })
}

struct Bench {
    server: Arc<Mutex<Server>>,
    context: Arc<Context>,
}

impl Bench {
    fn new() -> Self {
        let main = json!({
            "apiVersion": "mailbell.dev/v1alpha1",
            "kind": "Mailbell",
            "metadata": { "name": "main", "namespace": "mail", "uid": "a", "generation": 1 },
            "spec": {
                "gateways": { "tls": { "secretName": "push-tls" } },
                "admin": { "tls": { "secretName": "admin-tls" } },
                "nats": { "external": { "urls": ["tls://nats:4222"], "usersSecret": "users" } },
            },
        });
        let server = Arc::new(Mutex::new(Server {
            objects: BTreeMap::from([(MAIN.to_owned(), main), (BEFORE.to_owned(), before())]),
            ..Server::default()
        }));
        Self::at(server)
    }

    /// Another one that begins to lead.
    fn next(&self) -> Self {
        Self::at(Arc::clone(&self.server))
    }

    fn at(server: Arc<Mutex<Server>>) -> Self {
        let client = client(&server);
        let reporter = Reporter {
            controller: MANAGER.to_owned(),
            instance: None,
        };
        let context = Context {
            events: Recorder::new(client.clone(), reporter),
            image: "mailbell".to_owned(),
            admins: Arc::new(Admins::new(client.clone(), None)),
            client,
            gateways: None,
            api_server_ports: vec![443],
            loads: Loads::new(WINDOW),
            left: Arc::default(),
            metrics: Metrics::default(),
            authorities: Authorities::default(),
            failures: Mutex::default(),
        };
        Self {
            server,
            context: Arc::new(context),
        }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap()
    }

    /// As the controller does it. Answers for how long it waits then, and why.
    async fn look(&self, wrong: Option<(Place, Answer)>) -> (Action, Option<Error>) {
        let mailbell = {
            let mut server = self.server();
            server.asked.clear();
            server.wrong = wrong;
            Arc::new(serde_json::from_value(server.objects[MAIN].clone()).unwrap())
        };
        match reconcile(Arc::clone(&mailbell), Arc::clone(&self.context)).await {
            Ok(action) => (action, None),
            Err(error) => {
                let action = on_error(mailbell, &error, Arc::clone(&self.context));
                (action, Some(error))
            }
        }
    }

    /// Status, reason and sentence of Ready.
    fn ready(&self) -> String {
        let server = self.server();
        let conditions = server.objects[MAIN].pointer("/status/conditions");
        let all = conditions.unwrap().as_array().unwrap();
        let ready = all.iter().find(|it| it["type"] == "Ready").unwrap();
        let words = ["status", "reason", "message"].map(|field| ready[field].as_str().unwrap());
        words.join(" ")
    }

    /// What there is but for its statuses, and events that were told again.
    fn made(&self) -> BTreeMap<String, Value> {
        let server = self.server();
        let objects = server.objects.iter();
        let objects = objects.filter(|(place, _)| !place.contains("/events/"));
        let objects = objects.map(|(place, object)| {
            let mut object = object.clone();
            object["status"].take();
            (place.clone(), object)
        });
        objects.collect()
    }
}

/// Where both are not the same.
fn others<'a>(
    these: &'a BTreeMap<String, Value>,
    those: &'a BTreeMap<String, Value>,
) -> Vec<&'a str> {
    let all: BTreeSet<_> = these.keys().chain(those.keys()).collect();
    let others = all
        .into_iter()
        .filter(|place| these.get(*place) != those.get(*place));
    others.map(String::as_str).collect()
}

const RUNS: &str = "True Running Everything runs.";

/// Whichever request it is, and whether the installation is new or has been there before: nothing is removed by such an answer, hardly more
/// is asked than if all were well, and the next look puts all right.
#[tokio::test(start_paused = true)]
async fn whatever_one_answer_is_nothing_is_removed_and_the_next_look_puts_all_right() {
    let bench = Bench::new();
    assert_eq!(bench.look(None).await.1.map(|it| it.to_string()), None);
    assert_eq!(bench.ready(), RUNS);
    let wanted = bench.made();
    assert!(!wanted.contains_key(BEFORE));
    let whole = bench.server().asked.len();
    assert!(whole > 30, "{whole}");
    let mut unapplied = 0;
    for nth in 0..whole {
        let bench = Bench::new();
        // Every request gets two of the answers, and every answer comes at every stage.
        for (turn, wrong) in [("new", nth), ("old", nth + 3)] {
            let wrong = ANSWERS[wrong % ANSWERS.len()];
            let what = format!("{wrong:?} for the request {nth} of a {turn} one");
            bench.server().objects.insert(BEFORE.to_owned(), before());
            let (wait, error) = bench.look(Some((Place::Nth(nth), wrong))).await;
            {
                let server = bench.server();
                assert!(server.asked.len() <= whole + 2, "{what}");
                let removed = server.of(&Method::DELETE);
                let mut removed = removed.into_iter().filter(|path| *path != BEFORE);
                assert_eq!(removed.next(), None, "{what}");
                // Of what was not applied it is not known what it needs.
                let is_applied = matches!(server.asked.get(nth), Some((method, path))
                    if method == Method::PATCH && !path.ends_with("/status") && !path.contains("/events/"));
                if is_applied {
                    unapplied += 1;
                    assert_eq!(server.of(&Method::DELETE), [""; 0], "{what}");
                    assert!(server.objects.contains_key(BEFORE), "{what}");
                }
            }
            let again = if error.is_some() { 2 } else { 300 };
            assert_eq!(wait, Action::requeue(Duration::from_secs(again)), "{what}");
            let (_, error) = bench.look(None).await;
            assert!(error.is_none(), "{what}: {error:?}");
            assert_eq!(bench.ready(), RUNS, "{what}");
            assert_eq!(others(&bench.made(), &wanted), [""; 0], "{what}");
        }
    }
    assert!(unapplied > 40, "{unapplied}");
}

/// What is refused is said where people look, and of what class it is; whoever goes on to be refused asks less and less often.
#[tokio::test(start_paused = true)]
async fn each_answer_has_a_class_and_is_asked_for_less_and_less_often() {
    for (wrong, class) in ANSWERS.into_iter().zip([
        "refused",
        "refused",
        "unavailable",
        "unavailable",
        "unavailable",
        "unreadable",
        "too-long",
    ]) {
        let bench = Bench::new();
        bench.look(None).await;
        let place = Place::Path("/services/main-gateway");
        let mut waits = Vec::new();
        for _ in 0..8 {
            let (wait, error) = bench.look(Some((place, wrong))).await;
            assert_eq!(error.unwrap().class(), class, "{wrong:?}");
            waits.push(wait);
        }
        let seconds = [2, 4, 8, 16, 32, 60, 60, 60];
        assert_eq!(
            waits,
            seconds.map(|it| Action::requeue(Duration::from_secs(it)))
        );
        if let Answer::Status(_, words) = wrong {
            let said = format!("True Impaired The gateways: Service main-gateway: {words}.");
            assert_eq!(bench.ready(), said);
        }
        bench.look(None).await;
        assert_eq!(bench.ready(), RUNS);
        let (wait, _) = bench.look(Some((place, wrong))).await;
        assert_eq!(wait, Action::requeue(Duration::from_secs(2)), "{wrong:?}");
    }
}

/// A list alone tells whether anybody leads, and that costs no write at each look.
#[tokio::test(start_paused = true)]
async fn that_somebody_looks_is_written_when_it_is_old_and_not_at_each_look() {
    let bench = Bench::new();
    let told = || {
        let mut told = bench.server().objects[MAIN]["status"].clone();
        let looked_at = told["lookedAt"].take();
        (looked_at.as_str().unwrap().to_owned(), told)
    };
    bench.look(None).await;
    let (_, before) = told();
    // Nothing, something young, something old, and something of a clock that was far ahead.
    for (age_s, is_written) in [
        (None, false),
        (Some(200), false),
        (Some(300), true),
        (Some(-900), true),
    ] {
        let as_it_was = age_s.map_or_else(
            || told().0,
            |age_s: i64| {
                let then = cluster::now().as_second() - age_s;
                Timestamp::from_second(then).unwrap().to_string()
            },
        );
        bench.server().objects.get_mut(MAIN).unwrap()["status"]["lookedAt"] =
            as_it_was.clone().into();
        bench.look(None).await;
        let (looked_at, said) = told();
        assert_eq!(looked_at != as_it_was, is_written, "{age_s:?}");
        assert_eq!(said, before);
        let server = bench.server();
        let statuses = server.of(&Method::PATCH).into_iter();
        let statuses = statuses.filter(|path| path.ends_with("/status")).count();
        assert_eq!(statuses, usize::from(is_written), "{age_s:?}");
        // Of what is no change no event tells.
        assert_eq!(server.of(&Method::POST), [""; 0], "{age_s:?}");
    }
}

const CHANGES: &str = "True Changing The watchers: 2 of 2 pods of main-watcher are ready.";
const STUCK: &str = "True Impaired The watchers: main-watcher does not get on: look at its pods (kubectl describe pod).";

/// Nothing is heard of what gets no further: it is looked at when its ten minutes are over, whoever leads then.
#[tokio::test(start_paused = true)]
async fn what_gets_no_further_is_told_as_soon_as_that_is_so() {
    let bench = Bench::new();
    bench.look(None).await;
    for (stuck_s, waits_s, said) in [
        (0, 300..=300, CHANGES),
        (400, 190..=200, CHANGES),
        (590, 1..=10, CHANGES),
        (601, 300..=300, STUCK),
        (5000, 300..=300, STUCK),
        // It gets further.
        (1, 300..=300, CHANGES),
    ] {
        bench.server().stuck_s = Some(stuck_s);
        for bench in [&bench, &bench.next()] {
            let (wait, error) = bench.look(None).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(bench.ready(), said, "{stuck_s}");
            let is_meant = |s: &u64| wait == Action::requeue(Duration::from_secs(*s));
            assert!(waits_s.clone().any(|s| is_meant(&s)), "{stuck_s}: {wait:?}");
        }
    }
}

/// What it lacks may be what it waits for, if that does not do its work. What is only being changed, or is refused, takes nothing back.
#[tokio::test(start_paused = true)]
async fn what_waited_for_others_is_not_said_to_get_no_further() {
    const REFUSED: &str = "True Impaired The gateways: Service main-gateway: no.";
    const AWAY: &str = "False Starting The gateways: 0 of 2 pods of main-gateway are ready.";
    let refused = (
        Place::Path("/services/main-gateway"),
        Answer::Status(500, "no"),
    );
    let bench = Bench::new();
    bench.look(None).await;
    bench.server().stuck_s = Some(5000);
    for (gateways, wrong, said) in [
        (None, None, STUCK),
        (Some(("updatedReplicas", 1)), None, STUCK),
        (None, Some(refused), REFUSED),
        (None, None, STUCK),
        (Some(("availableReplicas", 0)), None, AWAY),
        (None, None, CHANGES),
    ] {
        bench.server().gateways = gateways;
        let (wait, _) = bench.look(wrong).await;
        let wait_s = if wrong.is_some() { 2 } else { 300 };
        assert_eq!(wait, Action::requeue(Duration::from_secs(wait_s)));
        assert_eq!(bench.ready(), said);
    }
}
