//! The operator's process: one of its replicas leads, and keeps each installation as it is wanted.
//!
//! It is never on the way of a message: while nobody leads, or the API server is away, everything that runs goes on.

mod cluster;
mod error;
mod reconcile;

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
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
    runtime::{
        Controller,
        controller::Action,
        events::{Recorder, Reporter},
        watcher::Config,
    },
};
use kube_lease_manager::LeaseManagerBuilder;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{api::Mailbell, desired::MANAGER};

pub use error::Error;

/// The lease by which one replica leads.
const LEASE: &str = "mailbell-operator";
/// A leader that has not renewed it for so long leads no longer.
const LEASE_SECONDS: u64 = 15;
/// It renews it so long before that.
const LEASE_GRACE_SECONDS: u64 = 5;
/// Everything is looked at anyway, also if nothing was heard of it: what a watch has missed is found then.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

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
}

/// What every reconciliation needs.
struct Context {
    client: Client,
    events: Recorder,
    image: String,
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
/// When the lease can be neither read nor made at the start.
pub async fn run(client: Client, options: Options, stop: CancellationToken) -> Result<(), Error> {
    let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
        .with_namespace(&options.own_namespace)
        .with_identity(&options.identity)
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_GRACE_SECONDS)
        .build()
        .await
        .map_err(|error| Error::Lease(Box::new(error)))?;
    let (mut leads, task) = manager.watch().await;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // It never ends by itself: what fails is logged, and tried again.
            led = leads.wait_for(|leads| *leads) => if led.is_err() { break },
        }
        tracing::info!("this operator leads");
        let mut still = leads.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // At once, in the middle of whatever it does: each step of that can be done again by the next leader. One that the API
            // server cannot hear learns of it late, and has changed nothing meanwhile.
            _ = still.wait_for(|leads| !*leads) => tracing::warn!("this operator leads no longer"),
            () = look_after(&client, &options) => {}
        }
    }
    // The lease is given away when nobody listens any more.
    drop(leads);
    let _ = tokio::time::timeout(Duration::from_secs(5), task).await;
    Ok(())
}

/// Until it is dropped.
async fn look_after(client: &Client, options: &Options) {
    let reporter = Reporter {
        controller: MANAGER.to_owned(),
        instance: Some(options.identity.clone()),
    };
    let context = Context {
        client: client.clone(),
        events: Recorder::new(client.clone(), reporter),
        image: options.image.clone(),
    };
    let children = Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    let children = || children.clone();
    let controller = Controller::new(api::<Mailbell>(client, options), Config::default())
        .owns(api::<Deployment>(client, options), children())
        .owns(api::<StatefulSet>(client, options), children())
        .owns(api::<Job>(client, options), children())
        .owns(api::<Service>(client, options), children())
        .owns(api::<ServiceAccount>(client, options), children())
        .owns(api::<ConfigMap>(client, options), children())
        .owns(api::<PodDisruptionBudget>(client, options), children())
        .owns(api::<NetworkPolicy>(client, options), children());
    controller
        .run(reconcile, on_error, Arc::new(context))
        .for_each(|result| async move {
            // Of a reconciliation it is told below, of its watches here.
            if let Err(error @ kube::runtime::controller::Error::QueueError(_)) = result {
                tracing::warn!(%error, "the API server cannot be watched; it is tried again");
            }
        })
        .await;
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
    reconcile::installation(&mailbell, &context).await?;
    Ok(Action::requeue(LOOK_AGAIN))
}

fn on_error(mailbell: Arc<Mailbell>, error: &Error, _: Arc<Context>) -> Action {
    let name = mailbell.metadata.name.as_deref().unwrap_or_default();
    tracing::warn!(installation = name, %error, "an installation could not be looked after; it is tried again");
    Action::requeue(Duration::from_secs(5))
}
