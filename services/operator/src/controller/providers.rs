//! MailProviders: what watchers are told of all those of an installation goes with its other objects; each says in its status what came of
//! it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller,
        controller::{self, Action},
        events::Recorder,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde_json::json;

use super::{
    Context, Error, LONGEST_WAIT,
    cluster::{Cluster, Key, differ_in_numbers_only, now, publish},
    metrics::Unreadable,
};
use crate::{
    api::{MailProvider, Mailbell},
    desired::{MANAGER, POLICY, POLICY_FILE, policy_name},
    policy::{self, Made, Maker, ROOTS, Verdict},
    progress::{Found, Progress},
};

/// Of how many one answer of the API server tells.
const PAGE: u32 = 200;
/// So many of such answers are read: 10,000 MailProviders, ten times what watchers are told of one installation.
const MOST_PAGES: usize = 50;
/// Whether its installation has come or gone is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Which ConfigMaps installations take root certificates from.
#[derive(Debug, Default)]
pub(super) struct Authorities(Mutex<HashMap<ObjectRef<Mailbell>, BTreeSet<String>>>);

impl Authorities {
    fn all(&self) -> MutexGuard<'_, HashMap<ObjectRef<Mailbell>, BTreeSet<String>>> {
        // Nothing that holds the lock can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn are(&self, mailbell: &Mailbell, names: BTreeSet<String>) {
        let place = ObjectRef::from_obj(mailbell);
        let mut all = self.all();
        match names.is_empty() {
            true => drop(all.remove(&place)),
            false => drop(all.insert(place, names)),
        }
    }

    /// The installations that take some from this ConfigMap.
    pub(super) fn users(&self, config: &PartialObjectMeta<ConfigMap>) -> Vec<ObjectRef<Mailbell>> {
        let (namespace, name) = (config.namespace(), config.name_any());
        let all = self.all();
        let users = all
            .iter()
            .filter(|(mailbell, names)| mailbell.namespace == namespace && names.contains(&name));
        users.map(|(mailbell, _)| mailbell.clone()).collect()
    }
}

/// Whom a MailProvider is for. Of one that cannot be read nobody knows: it may be any installation in its namespace.
pub(super) fn users(
    provider: DeserializeGuard<MailProvider>,
    mailbells: &Store<Mailbell>,
) -> Vec<ObjectRef<Mailbell>> {
    match provider.0 {
        Ok(provider) => {
            let name = ObjectRef::new(&provider.spec.mailbell);
            vec![name.within(&provider.namespace().unwrap_or_default())]
        }
        Err(bad) => {
            let mailbells = mailbells.state();
            let beside = mailbells
                .iter()
                .filter(|it| it.metadata.namespace == bad.metadata.namespace);
            beside.map(|it| ObjectRef::from_obj(&**it)).collect()
        }
    }
}

/// What the watchers of this installation are told, and its MailProviders of that.
pub(super) async fn made(mailbell: &Mailbell, context: &Context) -> Result<Made, Error> {
    let namespace = mailbell.namespace().unwrap_or_default();
    let mut providers = list(mailbell, &context.client, &namespace).await?;
    policy::sort(&mut providers);
    let read = providers.iter().filter_map(|it| it.0.as_ref().ok());
    let named = read.filter_map(|it| it.spec.ca_config_map.clone());
    // Before they are read: what changes from now on is heard of.
    context.authorities.are(mailbell, named.collect());
    let configs: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let tenants = &mailbell.spec.watchers.paused_tenants;
    let mut maker = Maker::new(tenants).map_err(Error::Json)?;
    let mut told = match providers.iter().all(|it| it.0.is_ok()) {
        true => HashMap::new(),
        false => {
            let name = policy_name(&mailbell.name_any());
            let file = data(&configs, &name, POLICY_FILE).await?;
            policy::entries(&file.unwrap_or_default())
        }
    };
    for provider in providers {
        let provider = match provider.0 {
            Ok(provider) => provider,
            Err(bad) => {
                let name = bad.metadata.name.unwrap_or_default();
                let before = told.remove(&name);
                maker.keep(name, before).map_err(Error::Json)?;
                continue;
            }
        };
        let roots = match &provider.spec.ca_config_map {
            Some(name) if !maker.knows(name) => data(&configs, name, ROOTS).await?,
            _ => None,
        };
        maker.add(provider, roots).map_err(Error::Json)?;
    }
    maker.finish().map_err(Error::Json)
}

/// What watchers are told where [`made`] fails. `None`: what they were told before, which stays. Where there is nothing yet, it is the
/// tenants alone, since no watcher starts without.
pub(super) async fn first(
    mailbell: &Mailbell,
    cluster: &Cluster<'_>,
) -> Result<Option<String>, Error> {
    let key = config(policy_name(&mailbell.name_any()));
    if cluster.get(&key).await?.is_some() {
        return Ok(None);
    }
    let maker = Maker::new(&mailbell.spec.watchers.paused_tenants);
    let made = maker.and_then(Maker::finish).map_err(Error::Json)?;
    Ok(Some(made.text))
}

/// Those of this installation, and those in its namespace that cannot be read, and may be.
async fn list(
    mailbell: &Mailbell,
    client: &Client,
    namespace: &str,
) -> Result<Vec<DeserializeGuard<MailProvider>>, Error> {
    let api: Api<DeserializeGuard<MailProvider>> = Api::namespaced(client.clone(), namespace);
    let name = mailbell.name_any();
    let mut own = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    for _ in 0..MOST_PAGES {
        let page = match api.list(&params).await {
            Ok(page) => page,
            // Its definition is not installed: there are none.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(own),
            Err(source) => {
                let mut key = key(&format!("of {namespace}"));
                key.kind.push('s');
                return Err(Error::of(&key, source));
            }
        };
        own.extend(page.items.into_iter().filter(|it| {
            // One that is being removed no longer counts, whoever still holds it.
            let is_going = it.meta().deletion_timestamp.is_some();
            !is_going && it.0.as_ref().map_or(true, |it| it.spec.mailbell == name)
        }));
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(own);
        }
    }
    Err(Error::TooManyProviders)
}

/// What a ConfigMap has under this key, if it is there.
async fn data(configs: &Api<ConfigMap>, name: &str, field: &str) -> Result<Option<String>, Error> {
    let found = configs.get_opt(name).await;
    let found = found.map_err(|source| Error::of(&config(name.to_owned()), source))?;
    Ok(found.and_then(|config| config.data?.remove(field)))
}

fn config(name: String) -> Key {
    Key {
        api: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        name,
    }
}

/// Writes the status of each; what cannot be written of one keeps none of the others from being told.
pub(super) async fn tell(made: Made, found: &Found, context: &Context) -> Result<(), Error> {
    let refused = found.stages.iter().find_map(|(stage, progress)| {
        let Progress::Failed { text, serves } = progress else {
            return None;
        };
        (*stage == POLICY).then(|| policy::refused(text, *serves))
    });
    let mut first = Ok(());
    for (provider, verdict) in made.verdicts {
        let verdict = refused.as_ref().unwrap_or(&verdict);
        let told = say(&provider, verdict, &context.client, &context.events).await;
        first = first.and(told);
    }
    first
}

/// Writes the status if it says something else than before; an event tells of a change of what a person cares about.
async fn say(
    provider: &MailProvider,
    verdict: &Verdict,
    client: &Client,
    events: &Recorder,
) -> Result<(), Error> {
    let before = policy::ready(provider.status.as_ref());
    // Each status that is written is a reason to look: what the API server says may have another port in it each time.
    let same = before.filter(|it| {
        it.reason == verdict.reason && differ_in_numbers_only(&it.message, &verdict.message)
    });
    let verdict = &Verdict {
        message: same.map_or_else(|| verdict.message.clone(), |it| it.message.clone()),
        ..verdict.clone()
    };
    let status = policy::status(provider, verdict, now());
    if provider.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let name = provider.name_any();
    let namespace = provider.namespace().unwrap_or_default();
    let api: Api<MailProvider> = Api::namespaced(client.clone(), &namespace);
    let key = key(&name);
    let patch = json!({ "apiVersion": key.api, "kind": key.kind, "status": status });
    let params = PatchParams::apply(MANAGER).force();
    match api
        .patch_status(&name, &params, &Patch::Apply(&patch))
        .await
    {
        Ok(_) => {}
        // It is gone, and with it whoever would read that.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(source) => return Err(Error::of(&key, source)),
    }
    let said = before.map(|condition| (condition.reason.as_str(), condition.message.as_str()));
    if said != Some((verdict.reason, verdict.message.as_str())) {
        let place = provider.object_ref(&());
        publish(
            events,
            &place,
            verdict.is_good,
            verdict.reason,
            &verdict.message,
        )
        .await;
    }
    Ok(())
}

fn key(name: &str) -> Key {
    Key {
        api: MailProvider::api_version(&()).into_owned(),
        kind: MailProvider::kind(&()).into_owned(),
        name: name.to_owned(),
    }
}

/// What telling those needs whose installation is not there.
pub(super) struct Lost {
    pub(super) client: Client,
    pub(super) events: Recorder,
    pub(super) mailbells: Store<Mailbell>,
    /// Installations that are there, and of which nothing is known.
    pub(super) unreadable: Arc<Unreadable>,
}

/// Tells those whose installation is not there, until it is dropped.
pub(super) async fn run<S>((store, providers): (Store<MailProvider>, S), context: Lost)
where
    S: Stream<Item = Result<MailProvider, watcher::Error>> + Send + 'static,
{
    // An installation that is not known yet is none that is not there. It fails only where nobody lists them any more.
    if context.mailbells.wait_until_ready().await.is_err() {
        return;
    }
    Controller::for_stream(providers, store)
        .run(
            tell_lost,
            |_, _, _| Action::requeue(LONGEST_WAIT),
            Arc::new(context),
        )
        .for_each(|result| async move {
            // One that is gone, or can be read no more, needs nothing.
            let is_gone = matches!(result, Err(controller::Error::ObjectNotFound(_)));
            if let Err(error) = result && !is_gone {
                tracing::warn!(%error, "a MailProvider could not be looked after; it is tried again");
            }
        })
        .await;
}

async fn tell_lost(provider: Arc<MailProvider>, context: Arc<Lost>) -> Result<Action, Error> {
    let namespace = provider.namespace().unwrap_or_default();
    let name = &provider.spec.mailbell;
    let mailbell = ObjectRef::new(name).within(&namespace);
    let is_going = provider.metadata.deletion_timestamp.is_some();
    // Of one that is there it is told together with the others.
    let is_there = context.mailbells.get(&mailbell).is_some();
    if !is_going && !is_there && !context.unreadable.has(&namespace, name) {
        let verdict = policy::no_installation(name);
        say(&provider, &verdict, &context.client, &context.events).await?;
    }
    Ok(Action::requeue(LOOK_AGAIN))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http::{Request, Response};
    use kube::{client::Body, runtime::reflector};

    use super::*;

    fn mailbell(namespace: &str, name: &str) -> Mailbell {
        let spec = json!({
            "gateways": { "tls": { "secretName": "push-tls" } },
            "admin": { "tls": { "secretName": "admin-tls" } },
            "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } },
        });
        let mut mailbell = Mailbell::new(name, serde_json::from_value(spec).unwrap());
        mailbell.metadata.namespace = Some(namespace.to_owned());
        mailbell
    }

    #[test]
    fn one_that_cannot_be_read_may_be_for_any_installation_beside_it() {
        let (store, mut writer) = reflector::store();
        for (namespace, name) in [("mail", "main"), ("mail", "other"), ("post", "main")] {
            let mailbell = mailbell(namespace, name);
            writer.apply_watcher_event(&watcher::Event::Apply(mailbell));
        }
        let told = |mailbell: serde_json::Value| {
            let provider = json!({ "metadata": { "namespace": "mail", "name": "example" },
                "spec": { "mailbell": mailbell, "hosts": ["imap.example.org"] } });
            let provider = serde_json::from_value(provider).unwrap();
            let users = users(provider, &store).into_iter();
            let users = users.map(|it| format!("{}/{}", it.namespace.unwrap(), it.name));
            users
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(told(json!("other")), ["mail/other"]);
        assert_eq!(told(json!(1)), ["mail/main", "mail/other"]);
    }

    /// No real server has that many in a test, and none goes on for ever.
    #[tokio::test]
    async fn a_list_that_does_not_end_is_given_up() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let server = tower::service_fn(move |request: Request<Body>| {
            let n = count.fetch_add(1, Ordering::Relaxed);
            let query = request.uri().query().unwrap_or_default().to_owned();
            assert!(query.contains("limit=200"), "{query}");
            assert_eq!(n > 0, query.contains("continue=more"), "{query}");
            let page = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "MailProviderList",
                "metadata": { "continue": "more" }, "items": [] });
            async move { Ok::<_, Infallible>(Response::new(Body::from(page.to_string().into_bytes()))) }
        });
        let client = Client::new(server, "mail");
        let mailbell = mailbell("mail", "main");
        let found = list(&mailbell, &client, "mail").await;
        assert!(matches!(found, Err(Error::TooManyProviders)), "{found:?}");
        assert_eq!(asked.load(Ordering::Relaxed), MOST_PAGES);
    }
}
