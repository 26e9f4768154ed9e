//! The part of controllers and nodes, on a server that has none.

use std::{fmt::Debug, io};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::Job,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Jobs, StatefulSets and Deployments of one namespace, of which is said that they do their work.
#[derive(Clone)]
pub struct Workloads {
    client: Client,
    namespace: String,
}

impl Workloads {
    /// Those of this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
        }
    }

    /// Whatever there is does its work. What is made, or changed, afterwards does not.
    ///
    /// # Errors
    /// What the server says.
    pub async fn all_are_ready(&self) -> io::Result<()> {
        for job in self.all::<Job>().await? {
            let status = job.status.as_ref();
            if status.is_none_or(|status| status.succeeded.is_none()) {
                self.job_is_done(&job, "Complete").await?;
            }
        }
        for set in self.all().await? {
            self.set_is_ready(&set).await?;
        }
        for deployment in self.all().await? {
            self.deployment_is_ready(&deployment).await?;
        }
        Ok(())
    }

    /// All its pods run what is wanted, and are ready.
    ///
    /// # Errors
    /// What the server says.
    pub async fn set_is_ready(&self, set: &StatefulSet) -> io::Result<()> {
        let count = set.spec.as_ref().and_then(|spec| spec.replicas);
        let status = json!({ "observedGeneration": set.metadata.generation, "replicas": count,
            "readyReplicas": count, "currentRevision": "a", "updateRevision": "a" });
        self.says(set, status).await
    }

    /// The same.
    ///
    /// # Errors
    /// What the server says.
    pub async fn deployment_is_ready(&self, deployment: &Deployment) -> io::Result<()> {
        let count = deployment.spec.as_ref().and_then(|spec| spec.replicas);
        let status = json!({ "observedGeneration": deployment.metadata.generation, "replicas": count,
            "updatedReplicas": count, "readyReplicas": count, "availableReplicas": count });
        self.says(deployment, status).await
    }

    /// It is over: `Complete` or `Failed`.
    ///
    /// # Errors
    /// What the server says.
    pub async fn job_is_done(&self, job: &Job, kind: &str) -> io::Result<()> {
        let condition = |kind: &str| json!({ "type": kind, "status": "True" });
        let mut status = json!({
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
            "completionTime": "2026-01-01T00:01:00Z",
            "succeeded": 1,
        });
        if kind == "Failed" {
            status = json!({
                "startTime": "2026-01-01T00:00:00Z",
                "conditions": [condition("FailureTarget"), condition("Failed")],
            });
        }
        self.says(job, status).await
    }

    /// This is in its status, beside what is there.
    ///
    /// # Errors
    /// What the server says.
    pub async fn says<K>(&self, object: &K, status: Value) -> io::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let patch = Patch::Merge(json!({ "status": status }));
        let (params, name) = (PatchParams::default(), object.name_any());
        let api = self.api::<K>();
        let patched = api.patch_status(&name, &params, &patch);
        patched.await.map(drop).map_err(io::Error::other)
    }

    async fn all<K>(&self) -> io::Result<Vec<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let listed = self.api::<K>().list(&ListParams::default()).await;
        Ok(listed.map_err(io::Error::other)?.items)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}
