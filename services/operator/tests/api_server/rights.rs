//! Who may do what. Each service account tries it on a real API server, with a token of its own; that of `helm test` is the operator's.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, stream};
use http::{Request, StatusCode};
use k8s_openapi::api::{
    authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    client::Body,
};
use serde_json::json;

use crate::{
    actors::{IMAGE, Operator},
    charts::MAILBELL,
    world::{World, mailbell, provider, with},
};

/// The operator of a namespace.
const ONE: &str = "operator";
/// That of all namespaces.
pub(crate) const ALL: &str = "operator-of-all";

/// Those that an operator makes.
pub(crate) const OF_PODS: [&str; 6] = [
    "main-watcher",
    "main-gateway",
    "main-admin",
    "main-setup",
    "main-nats",
    "main-secrets",
];

/// An object, what may be done to it, by whom in the namespace of the installation, and by whom in another one. `*` is any name. Each
/// verb that is not said here of one of these objects is refused. No Secret can be listed or made by anybody; watchers themselves, which
/// have no token, are the job that makes the key ring here.
const TABLE: &str = "
    mailbell.dev/v1alpha1 mailbells/*               | get list watch                     | operator operator-of-all | operator-of-all
    mailbell.dev/v1alpha1 mailbells/*/status        | get patch                          | operator operator-of-all | operator-of-all
    mailbell.dev/v1alpha1 mailbells/*/finalizers    | update                             | operator operator-of-all | operator-of-all
    mailbell.dev/v1alpha1 mailaccounts/*            | get list watch patch               | operator operator-of-all | operator-of-all
    mailbell.dev/v1alpha1 mailaccounts/*/status     | get patch                          | operator operator-of-all | operator-of-all
    mailbell.dev/v1alpha1 mailproviders/*           | get list watch                     | operator operator-of-all | operator-of-all
    mailbell.dev/v1alpha1 mailproviders/*/status    | get patch                          | operator operator-of-all | operator-of-all
    apps/v1 deployments/*                           | get list watch create patch delete | operator operator-of-all | operator-of-all
    apps/v1 statefulsets/*                          | get list watch create patch delete | operator operator-of-all | operator-of-all
    batch/v1 jobs/*                                 | get list watch create patch delete | operator operator-of-all | operator-of-all
    v1 configmaps/*                                 | get list watch create patch delete | operator operator-of-all | operator-of-all
    v1 serviceaccounts/*                            | get list watch create patch delete | operator operator-of-all | operator-of-all
    v1 services/*                                   | get list watch create patch delete | operator operator-of-all | operator-of-all
    policy/v1 poddisruptionbudgets/*                | get list watch create patch delete | operator operator-of-all | operator-of-all
    networking.k8s.io/v1 networkpolicies/*          | get list watch create patch delete | operator operator-of-all | operator-of-all
    gateway.networking.k8s.io/v1 grpcroutes/*       | get list watch create patch delete | operator operator-of-all | operator-of-all
    events.k8s.io/v1 events/*                       | create patch                       | operator operator-of-all | operator-of-all
    coordination.k8s.io/v1 leases/*                 | create                             | operator operator-of-all |
    coordination.k8s.io/v1 leases/mailbell-operator | get update                         | operator operator-of-all |
    v1 secrets/*                                    |                                    |                          |
    v1 secrets/main-key-ring                        | get update                         | main-watcher             |
    v1 secrets/main-nats-users                      | get update                         | main-secrets             |
    v1 secrets/main-nats-tls                        | get update                         | main-secrets             |
    v1 secrets/main-admin-token                     | get update                         | main-secrets             |
    v1 secrets/main-signing-key                     | get update                         | main-secrets             |
    v1 secrets/main-operator-token                  | get update                         | main-secrets             |
    v1 secrets/main-operator-token                  | get                                | operator operator-of-all |
    v1 secrets/mail-passwords                       | get                                | operator operator-of-all |
    v1 serviceaccounts/*/token                      |                                    |                          |
    rbac.authorization.k8s.io/v1 roles/*            |                                    |                          |
    rbac.authorization.k8s.io/v1 rolebindings/*     |                                    |                          |
    v1 pods/*                                       |                                    |                          |
    v1 pods/*/exec                                  |                                    |                          |
    v1 pods/*/attach                                |                                    |                          |
    v1 pods/*/portforward                           |                                    |                          |
    v1 pods/*/proxy                                 |                                    |                          |
    v1 pods/*/log                                   |                                    |                          |
    v1 pods/*/ephemeralcontainers                   |                                    |                          |
    v1 pods/*/eviction                              |                                    |                          |
    v1 services/*/proxy                             |                                    |                          |
    v1 persistentvolumeclaims/*                     |                                    |                          |
    apps/v1 daemonsets/*                            |                                    |                          |
    apps/v1 statefulsets/*/scale                    |                                    |                          |
    batch/v1 cronjobs/*                             |                                    |                          |
";

/// A line of the table.
struct Right {
    object: Object<'static>,
    verbs: &'static str,
    here: &'static str,
    elsewhere: &'static str,
}

fn table() -> impl Iterator<Item = Right> {
    let lines = TABLE.lines().filter(|line| !line.is_empty());
    lines.map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let mut next = || columns.next().unwrap();
        Right {
            object: Object::of(next()),
            verbs: next(),
            here: next(),
            elsewhere: next(),
        }
    })
}

/// Of no namespace, and refused to everybody.
const OF_CLUSTER: &[&str] = &[
    "v1 nodes/*",
    "v1 nodes/*/proxy",
    "v1 namespaces/*",
    "v1 persistentvolumes/*",
    "apiextensions.k8s.io/v1 customresourcedefinitions/*",
    "rbac.authorization.k8s.io/v1 clusterroles/*",
    "rbac.authorization.k8s.io/v1 clusterrolebindings/*",
    "admissionregistration.k8s.io/v1 validatingwebhookconfigurations/*",
    "admissionregistration.k8s.io/v1 mutatingwebhookconfigurations/*",
    "certificates.k8s.io/v1 certificatesigningrequests/*",
    "authentication.k8s.io/v1 tokenreviews/*",
    "authorization.k8s.io/v1 subjectaccessreviews/*",
    "apiregistration.k8s.io/v1 apiservices/*",
];

const VERBS: [&str; 8] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];

/// Where something is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Here(&'a str),
    Elsewhere(&'a str),
    /// In a namespace whose installation the chart of an operator of all namespaces names.
    Named(&'a str),
    /// In no namespace, which is all of them for what is in some.
    Everywhere,
}

/// One object, or all of a kind: its API, and its resource, name and subresource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Object<'a> {
    api: &'a str,
    path: &'a str,
}

impl<'a> Object<'a> {
    fn of(text: &'a str) -> Self {
        let (api, path) = text.split_once(' ').unwrap();
        Self { api, path }
    }

    fn group(self) -> &'a str {
        self.api.split_once('/').map_or("", |(group, _)| group)
    }

    fn parts(self) -> (&'a str, &'a str, Option<&'a str>) {
        let mut parts = self.path.split('/');
        let mut next = || parts.next();
        (next().unwrap(), next().unwrap(), next())
    }

    /// Whether there is this verb for it. A rule for one name says nothing of what has none yet.
    fn has(self, verb: &str, place: Place<'_>) -> bool {
        let of_many = ["list", "watch", "deletecollection"].contains(&verb);
        match (self.parts(), place) {
            ((_, _, Some(_)), Place::Everywhere) => false,
            ((_, _, Some(_)), _) => !of_many,
            (_, Place::Everywhere) => of_many,
            ((_, name, None), _) => verb != "create" || name == "*",
        }
    }

    /// What the server is asked; nothing comes of it.
    fn request(self, verb: &str, place: Place<'_>) -> Request<Body> {
        let (resource, name, sub) = self.parts();
        let root = if self.api == "v1" { "/api" } else { "/apis" };
        let namespace = match place {
            Place::Here(name) | Place::Elsewhere(name) | Place::Named(name) => {
                format!("/namespaces/{name}")
            }
            Place::Everywhere => String::new(),
        };
        let all = format!("{root}/{}{namespace}/{resource}", self.api);
        // The name in a selector is as good for a rule as the name itself.
        let selector = match name {
            "*" => String::new(),
            name => format!("&fieldSelector=metadata.name%3D{name}"),
        };
        let name = name.replace('*', "any");
        let one = match sub {
            Some(sub) => format!("{all}/{name}/{sub}?dryRun=All"),
            None => format!("{all}/{name}?dryRun=All"),
        };
        let (method, path) = match verb {
            "get" => ("GET", one),
            "list" => ("GET", format!("{all}?limit=1{selector}")),
            "watch" => ("GET", format!("{all}?watch=1&timeoutSeconds=1{selector}")),
            "create" if sub.is_some() => ("POST", one),
            "create" => ("POST", format!("{all}?dryRun=All")),
            "update" => ("PUT", one),
            "patch" => ("PATCH", one),
            "delete" => ("DELETE", one),
            "deletecollection" => ("DELETE", format!("{all}?dryRun=All{selector}")),
            other => panic!("{other}"),
        };
        let kind = match verb {
            "patch" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = match method {
            "GET" => Body::empty(),
            _ => Body::from(b"{}".to_vec()),
        };
        let request = Request::builder().method(method).uri(path);
        request.header("content-type", kind).body(body).unwrap()
    }
}

/// Whether the table says so, of an object of this group and path.
fn is_written(who: &str, verb: &str, group: &str, path: &str, place: Place<'_>) -> bool {
    let has = |column: &str, word: &str| column.split(' ').any(|it| it == word);
    table().any(|right| {
        let by = match place {
            Place::Here(_) => right.here,
            // Its Secrets are read there as at home; its lease is not there.
            Place::Named(_) if right.object.path.starts_with("secrets/") => right.here,
            Place::Named(_) | Place::Elsewhere(_) | Place::Everywhere => right.elsewhere,
        };
        let is_it = (right.object.group(), right.object.path) == (group, path);
        is_it && has(right.verbs, verb) && has(by, who)
    })
}

/// Whether the server lets this client do it. Whatever else is wrong with the request is found later.
async fn may(client: &Client, request: Request<Body>) -> bool {
    let what = format!("{} {}", request.method(), request.uri());
    let answer = client.send(request).await.unwrap();
    let status = answer.status();
    let unheard = [StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS];
    let is_heard = !unheard.contains(&status) && !status.is_server_error();
    assert!(is_heard, "{what}: {status}");
    status != StatusCode::FORBIDDEN
}

/// What of the table an account does at a place though it may not, or may not do though it should.
async fn tried(who: &str, client: &Client, place: Place<'_>) -> Vec<String> {
    let objects: BTreeSet<Object<'_>> = table().map(|right| right.object).collect();
    let all = |object| VERBS.map(|verb| (verb, object));
    let all = objects.into_iter().flat_map(all);
    let all = all.filter(|(verb, object): &(&str, Object<'_>)| object.has(verb, place));
    let tried = stream::iter(all).map(|(verb, object)| async move {
        let expected = is_written(who, verb, object.group(), object.path, place);
        let found = may(client, object.request(verb, place)).await;
        (found != expected).then(|| format!("{who}: {verb} {object:?} {place:?}: {found}"))
    });
    // Some at once, since a server that is busy is waited for.
    let wrong = tried.buffer_unordered(8).filter_map(async |it| it);
    wrong.collect().await
}

/// The same of what is of no namespace, or no object at all.
async fn tried_beside(who: &str, client: &Client, namespace: &str) -> Vec<String> {
    let mut requests: Vec<Request<Body>> = others(namespace);
    for text in OF_CLUSTER {
        let requested = |verb| Object::of(text).request(verb, Place::Everywhere);
        requests.extend(VERBS.map(requested));
    }
    let mut wrong = Vec::new();
    for request in requests {
        let (uri, headers) = (request.uri(), request.headers());
        let what = format!("{who}: {} {uri} {headers:?}", request.method());
        if may(client, request).await {
            wrong.push(what);
        }
    }
    wrong
}

/// Each of these accounts of the world's namespace may what the table says, and nothing else. Who it is for the table, and its name.
pub(crate) async fn are_as_written(world: &World, accounts: &[(&str, &str)], elsewhere: &World) {
    let (here, there) = (&world.namespace, &elsewhere.namespace);
    let places = [Place::Here(here), Place::Elsewhere(there)];
    let mut wrong = Vec::new();
    for (who, account) in accounts {
        let client = client_of(world, account).await;
        wrong.extend(tried_at(world, who, account, &places).await);
        wrong.extend(tried(who, &client, Place::Everywhere).await);
        wrong.extend(tried_beside(who, &client, &world.namespace).await);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The same of an operator of all namespaces where its chart names an installation, of what is there.
pub(crate) async fn are_as_written_where_named(world: &World, account: &str, named: &World) {
    let place = Place::Named(&named.namespace);
    let wrong = tried_at(world, ALL, account, &[place]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn client_of(world: &World, account: &str) -> Client {
    let made = world.server.client_of(&world.namespace, account).await;
    made.unwrap()
}

async fn tried_at(world: &World, who: &str, account: &str, places: &[Place<'_>]) -> Vec<String> {
    let anybody =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "anybody" } });
    world.apply(anybody).await;
    let (client, anybody) = (
        client_of(world, account).await,
        client_of(world, "anybody").await,
    );
    let mut wrong = Vec::new();
    for place in places {
        wrong.extend(tried(who, &client, *place).await);
        wrong.extend(beyond(who, &client, &anybody, *place).await);
    }
    wrong
}

/// What is no object: to be somebody else, and what the server says of itself.
fn others(namespace: &str) -> Vec<Request<Body>> {
    let get = |path: &str| Request::get(path);
    let as_user = |user: &str| get("/version").header("impersonate-user", user);
    let watcher = format!("system:serviceaccount:{namespace}:main-watcher");
    let group = as_user("any").header("impersonate-group", "system:masters");
    let all = [
        as_user("admin"),
        as_user(&watcher),
        group,
        get("/metrics"),
        get("/logs/"),
        get("/configz"),
    ];
    all.map(|request| request.body(Body::empty()).unwrap())
        .into()
}

/// What the server itself lists as this account's rights, beyond the table, and beyond what anybody may.
async fn beyond(who: &str, client: &Client, anybody: &Client, place: Place<'_>) -> Vec<String> {
    let (common, own) = (rules(anybody, place).await, rules(client, place).await);
    let mut all = Vec::new();
    for (group, resource, name, verb) in own.difference(&common) {
        let path = match resource.split_once('/') {
            Some((resource, sub)) => format!("{resource}/{name}/{sub}"),
            None => format!("{resource}/{name}"),
        };
        if !is_written(who, verb, group, &path, place) {
            all.push(format!(
                "{who}: {verb} {group} {path} {place:?}, says the server"
            ));
        }
    }
    all
}

/// Group, resource, name and verb of each right; of what is no object, its path and verb.
async fn rules(client: &Client, place: Place<'_>) -> BTreeSet<(String, String, String, String)> {
    let (Place::Here(namespace) | Place::Elsewhere(namespace) | Place::Named(namespace)) = place
    else {
        panic!("{place:?}");
    };
    let spec = SelfSubjectRulesReviewSpec {
        namespace: Some(namespace.to_owned()),
    };
    let review = SelfSubjectRulesReview {
        spec,
        ..SelfSubjectRulesReview::default()
    };
    let (api, params) = (Api::all(client.clone()), PostParams::default());
    let status = api.create(&params, &review).await.unwrap().status.unwrap();
    assert!(!status.incomplete, "{status:?}");
    let any = || vec!["*".to_owned()];
    let mut all = BTreeSet::new();
    for rule in status.resource_rules {
        for group in &rule.api_groups.unwrap_or_default() {
            for resource in &rule.resources.clone().unwrap_or_default() {
                for name in &rule.resource_names.clone().unwrap_or_else(any) {
                    for verb in &rule.verbs {
                        all.insert((group.clone(), resource.clone(), name.clone(), verb.clone()));
                    }
                }
            }
        }
    }
    for rule in status.non_resource_rules {
        for path in rule.non_resource_urls.unwrap_or_default() {
            let paths = rule
                .verbs
                .iter()
                .map(|verb| (String::new(), path.clone(), "*".to_owned(), verb.clone()));
            all.extend(paths);
        }
    }
    all
}

/// The role is enough for all that an operator does, and for nothing that it need not; what it makes may less.
#[tokio::test]
async fn an_operator_may_what_it_does_and_nothing_else() {
    let Some(world) = World::new().await else {
        return;
    };
    let beside = world.beside().await;
    beside.create(&mailbell()).await;
    let (installed, said) = world.helm(&["install", "mailbell", MAILBELL]).await;
    assert!(
        installed
            && said.contains("kubectl explain mailbell.spec")
            && said.contains(&format!(
                "helm --namespace {} test mailbell",
                world.namespace
            )),
        "{said}"
    );
    let operator = Operator::start_as(&world, "one", Some("mailbell-operator"));
    world.create(&mailbell()).await;
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
    // What one of them may be trusted by is read too.
    let roots = [
        "create",
        "configmap",
        "example-roots",
        "--from-literal=ca.crt=none",
    ];
    let (made, said) = world.kubectl(&roots, "").await;
    assert!(made, "{said}");
    let trusting = with(&provider(), "/spec/caConfigMap", json!("example-roots"));
    world.has(&trusting).await;
    world
        .until_provider_says("example", "example-roots: no certificate in it")
        .await;
    let (listed, events) = world.kubectl(&["get", "events"], "").await;
    assert!(listed && events.contains("Running"), "{events}");
    operator.stop().await;
    // Of another namespace it has seen nothing.
    assert_eq!(beside.mailbells().get("main").await.unwrap().status, None);
    let made = beside
        .api::<ServiceAccount>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert!(made.items.is_empty(), "{made:?}");
    let mut accounts = vec![(ONE, "mailbell-operator")];
    accounts.extend(OF_PODS.map(|made| (made, made)));
    are_as_written(&world, &accounts, &beside).await;
}
