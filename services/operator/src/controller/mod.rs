//! The operator's process: one of its replicas leads, and keeps each installation as it is wanted.
//!
//! It is never on the way of a message: while nobody leads, or the API server is away, everything that runs goes on.

mod accounts;
pub mod admin;
mod cluster;
mod election;
mod error;
mod gateways;
mod left;
mod load;
pub mod metrics;
mod objects;
mod providers;
mod reconcile;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt::Debug,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::Job,
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller, PredicateConfig, WatchStreamExt as _,
        controller::Action,
        events::{Recorder, Reporter},
        predicates,
        reflector::ObjectRef,
        watcher::Config,
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{MailAccount, MailProvider, Mailbell},
    desired::MANAGER,
};

pub use accounts::{Pace, goes_on_by_itself};
use admin::Admins;
use election::Election;
pub use error::Error;
use left::Left;
use load::Loads;
pub use metrics::Metrics;
use providers::Authorities;

/// No look at an installation takes longer: an answer that is lost is not waited for.
const LOOK_LIMIT: Duration = Duration::from_secs(120);
/// The longest wait before a look that failed is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Everything is looked at anyway, also if nothing was heard of it: what a watch has missed is found then. So often a status says that it is.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

/// How often is looked how many mailboxes and devices there are.
pub const LOAD_EVERY: Duration = Duration::from_secs(30);

/// How an operator is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The only namespace that it looks after; `None`: all.
    pub namespace: Option<String>,
    /// The namespace of its lease.
    pub own_namespace: String,
    /// Its name among its replicas: that of its pod.
    pub identity: String,
    /// The image of installations that name none.
    pub image: String,
    /// The address of every admin API, in place of its service's: see [`admin::check_url`].
    pub admin_url: Option<String>,
    /// Where the health and metrics of every gateway are, in place of their names, which are known inside the cluster only.
    pub gateways: Option<Vec<SocketAddr>>,
    /// How often is looked how much there is to do: [`LOAD_EVERY`], but in tests.
    pub look_every: Duration,
    /// For so long fewer watchers, or gateways, must have been enough before one goes, and again before the next one.
    pub scale_down_after: Duration,
    /// By which ports pods reach the API server, for their network policies.
    pub api_server_ports: Vec<u16>,
    /// Of what is done for MailAccounts.
    pub pace: Pace,
}

/// What every reconciliation needs.
struct Context {
    client: Client,
    events: Recorder,
    image: String,
    admins: Arc<Admins>,
    gateways: Option<Vec<SocketAddr>>,
    api_server_ports: Vec<u16>,
    /// How much there is to do in each.
    loads: Loads,
    /// Accounts that nobody declares any more.
    left: Arc<Left>,
    metrics: Metrics,
    /// Whom mail providers are trusted by.
    authorities: Authorities,
    /// How often in a row the look at an installation has failed.
    failures: Mutex<HashMap<ObjectRef<Mailbell>, u32>>,
}

impl Context {
    fn failures(&self) -> MutexGuard<'_, HashMap<ObjectRef<Mailbell>, u32>> {
        // Nothing that holds the lock can leave it half changed.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the cluster is reached, knows the custom resources, and lets an operator of this namespace, or of all, read them.
///
/// # Errors
/// Why not.
pub async fn check(client: &Client, namespace: Option<&str>) -> Result<(), Error> {
    let api: Api<Mailbell> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let asked = api.list_metadata(&ListParams::default().limit(1)).await;
    asked.map(drop).map_err(Error::of_start)
}

/// Leads when nobody else does, until `stop`; then gives the lead away.
///
/// # Errors
/// When it may neither read nor write the lease.
pub async fn run(
    client: Client,
    options: Options,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut election = Election::new(client.clone(), &options.own_namespace, &options.identity);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            won = election.won() => won?,
        }
        tracing::info!("this operator leads");
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // At once, in the middle of whatever it does: each step of that can be done again by the next leader.
            () = election.lost() => tracing::warn!("this operator leads no longer"),
            () = Box::pin(look_after(&client, &options, &metrics)) => {}
        }
    }
    election.give_away().await;
    Ok(())
}

/// Until it is dropped.
async fn look_after(client: &Client, options: &Options, metrics: &Metrics) {
    let reporter = Reporter {
        controller: MANAGER.to_owned(),
        instance: Some(options.identity.clone()),
    };
    let events = Recorder::new(client.clone(), reporter);
    let context = Context {
        client: client.clone(),
        events: events.clone(),
        image: options.image.clone(),
        admins: Arc::new(Admins::new(client.clone(), options.admin_url.clone())),
        gateways: options.gateways.clone(),
        api_server_ports: options.api_server_ports.clone(),
        loads: Loads::new(options.scale_down_after),
        left: Arc::default(),
        metrics: metrics.clone(),
        authorities: Authorities::default(),
        failures: Mutex::default(),
    };
    let context = Arc::new(context);
    let children = Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    let children = || children.clone();
    let of = Arc::clone(&context);
    let unreadable = metrics.unreadable("Mailbell");
    let of_providers = metrics.unreadable("MailProvider");
    let both = [Arc::clone(&unreadable), Arc::clone(&of_providers)];
    let news = stream::unfold((Arc::clone(&context), both), |(context, both)| async {
        tokio::select! {
            // Unbiased: each has all of them looked at.
            () = context.loads.news() => {}
            () = context.left.news() => {}
            () = both[0].news() => {}
            () = both[1].news() => {}
        }
        Some(((), (context, both)))
    });
    let (store, mailbells) =
        objects::watched::<Mailbell>(api(client, options), Arc::clone(&unreadable));
    let known = store.clone();
    // Not of a status: we write that ourselves, and whoever cannot get on would write another sentence each time, at once.
    let mailbells = mailbells.predicate_filter(predicates::generation, PredicateConfig::default());
    let controller = Controller::for_stream(mailbells, store.clone())
        .owns(api::<Deployment>(client, options), children())
        .owns(api::<StatefulSet>(client, options), children())
        .owns(api::<Job>(client, options), children())
        .owns(api::<Service>(client, options), children())
        .owns(api::<ServiceAccount>(client, options), children())
        .owns(api::<ConfigMap>(client, options), children())
        .owns(api::<PodDisruptionBudget>(client, options), children())
        .owns(api::<NetworkPolicy>(client, options), children())
        .watches(
            api::<DeserializeGuard<MailProvider>>(client, options),
            Config::default(),
            move |provider| providers::users(provider, &known),
        )
        .watches(
            // Of their names alone it is told, not of what they hold.
            api::<PartialObjectMeta<ConfigMap>>(client, options),
            Config::default(),
            move |config| of.authorities.users(&config),
        )
        .reconcile_all_on(news);
    let _leading = metrics.lead(store.clone());
    let providers = providers::run(
        objects::watched::<MailProvider>(api(client, options), of_providers),
        providers::Lost {
            client: client.clone(),
            events: events.clone(),
            mailbells: store.clone(),
            unreadable: Arc::clone(&unreadable),
        },
    );
    let of_accounts = metrics.unreadable("MailAccount");
    let setup = accounts::Setup {
        client: client.clone(),
        events,
        admins: Arc::clone(&context.admins),
        mailbells: store.clone(),
        unreadable: accounts::Unreadables {
            mailbells: unreadable,
            accounts: Arc::clone(&of_accounts),
        },
        left: Arc::clone(&context.left),
        pace: options.pace,
    };
    let accounts = objects::watched::<MailAccount>(api(client, options), of_accounts);
    let accounts = accounts::run(accounts, setup);
    let work = controller
        .run(reconcile, on_error, Arc::clone(&context))
        .for_each(|result| async move {
            // Of a reconciliation it is told below, of its watches here.
            if let Err(error @ kube::runtime::controller::Error::QueueError(_)) = result {
                tracing::warn!(%error, "the API server cannot be watched; it is tried again");
            }
        });
    let look = load::watch(&context, store, options.look_every);
    tokio::join!(work, look, accounts, providers);
}

fn api<K>(client: &Client, options: &Options) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    match &options.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

async fn reconcile(mailbell: Arc<Mailbell>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let look = reconcile::installation(&mailbell, &context);
    let done = match tokio::time::timeout(LOOK_LIMIT, look).await {
        Ok(done) => done,
        Err(_elapsed) => Err(Error::TooLong),
    };
    context.metrics.look(done.as_ref().err(), begun.elapsed());
    let wait = done?;
    context.failures().remove(&ObjectRef::from_obj(&*mailbell));
    Ok(Action::requeue(wait))
}

fn on_error(mailbell: Arc<Mailbell>, error: &Error, context: Arc<Context>) -> Action {
    let name = mailbell.metadata.name.as_deref().unwrap_or_default();
    tracing::warn!(installation = name, %error, "an installation could not be looked after; it is tried again");
    let mut failures = context.failures();
    let failures = failures.entry(ObjectRef::from_obj(&*mailbell)).or_default();
    *failures = failures.saturating_add(1);
    Action::requeue(Duration::from_secs(1 << (*failures).min(6)).min(LONGEST_WAIT))
}
