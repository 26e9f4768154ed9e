//! The few things that are done to objects of any kind.

use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::events::{Event, EventType, Recorder},
};
use mailbell_core::event::cut;
use serde_json::Value;

use super::Error;
use crate::desired::{MANAGER, digest};

/// Objects of one namespace.
pub(super) struct Cluster<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
}

/// What an object is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) api: String,
    pub(super) kind: String,
    pub(super) name: String,
}

impl Key {
    /// Of an object of ours, which has all three.
    pub(super) fn of(object: &Value) -> Self {
        let text = |place: &str| {
            let found = object.pointer(place).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        Self {
            api: text("/apiVersion"),
            kind: text("/kind"),
            name: text("/metadata/name"),
        }
    }

    fn resource(&self) -> ApiResource {
        let (group, version) = self.api.split_once('/').unwrap_or(("", &self.api));
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &self.kind))
    }
}

impl Cluster<'_> {
    fn api(&self, key: &Key) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.namespace, &key.resource())
    }

    /// Refuses to make anything of an object of the same name that somebody else has made: what is applied would change it, and it would
    /// go with the installation. What has the labels is taken too, as where its `Mailbell` is made anew.
    pub(super) async fn check_is_ours(&self, object: &Value, owner: &str) -> Result<(), Error> {
        let key = Key::of(object);
        let Some(there) = self.get(&key).await? else {
            return Ok(());
        };
        let owners = there.pointer("/metadata/ownerReferences");
        let owners = owners.and_then(Value::as_array).into_iter().flatten();
        let mut owners = owners.filter_map(|it| it.get("uid")?.as_str());
        let is_labelled = [
            "app.kubernetes.io~1managed-by",
            "app.kubernetes.io~1instance",
        ]
        .into_iter()
        .map(|label| format!("/metadata/labels/{label}"))
        .all(|label| there.pointer(&label) == object.pointer(&label));
        if is_labelled || owners.any(|uid| uid == owner) {
            return Ok(());
        }
        let Key { kind, name, .. } = key;
        Err(Error::Foreign { kind, name })
    }

    /// Makes it so, whatever anybody else has made of the same fields; fields of others stay.
    pub(super) async fn apply(&self, object: &Value) -> Result<Value, Error> {
        let key = Key::of(object);
        let params = PatchParams::apply(MANAGER).force();
        let (api, patch) = (self.api(&key), Patch::Apply(object));
        let applied = api.patch(&key.name, &params, &patch).await;
        let applied = applied.map_err(|source| Error::of(&key, source))?;
        serde_json::to_value(applied).map_err(Error::Json)
    }

    /// As it is; `None`: it is not there.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<Value>, Error> {
        let found = self.api(key).get_opt(&key.name).await;
        let found = found.map_err(|source| Error::of(key, source))?;
        found
            .map(serde_json::to_value)
            .transpose()
            .map_err(Error::Json)
    }

    /// Names of the objects of a kind that have these labels and this owner.
    pub(super) async fn owned(
        &self,
        api: &str,
        kind: &str,
        labels: &str,
        owner: &str,
    ) -> Result<Vec<Key>, Error> {
        let of = |name: String| Key {
            api: api.to_owned(),
            kind: kind.to_owned(),
            name,
        };
        let any = of(String::new());
        let params = ListParams::default().labels(labels);
        let found = match self.api(&any).list_metadata(&params).await {
            Ok(found) => found,
            // Definitions of others that are not installed here.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
            Err(source) => return Err(Error::of(&any, source)),
        };
        let is_owned = |owners: &[_]| {
            let mut owners = owners.iter();
            owners.any(
                |it: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
                    it.uid == owner
                },
            )
        };
        let owned = found.items.into_iter();
        let owned = owned.filter(|object| is_owned(object.owner_references()));
        Ok(owned.map(|object| of(object.name_any())).collect())
    }

    /// Removes it, and what hangs on it.
    pub(super) async fn delete(&self, key: &Key) -> Result<(), Error> {
        let params = DeleteParams::background();
        match self.api(key).delete(&key.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(Error::of(key, source)),
        }
    }
}

/// As the API server keeps it, to the second: what is written and what is read again are the same then.
pub(super) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

/// Whether two sentences say the same reason: that of an expired certificate has the time, and the seconds since then.
pub(super) fn differ_in_numbers_only(a: &str, b: &str) -> bool {
    let is_word = |it: &char| !it.is_ascii_digit();
    a.chars().filter(is_word).eq(b.chars().filter(is_word))
}

/// Bytes of an event's sentence, of which the API server takes 1,024.
const MAX_NOTE: usize = 1000;

/// Tells something that a person should see in `kubectl describe` and `kubectl events`.
pub(super) async fn publish(
    events: &Recorder,
    place: &ObjectReference,
    is_good: bool,
    reason: &str,
    note: &str,
) {
    let event = event(is_good, reason, cut(note, MAX_NOTE));
    // What cannot be told this way stands in the status.
    if let Err(error) = events.publish(&event, place).await {
        let (namespace, kind, name) = (&place.namespace, &place.kind, &place.name);
        tracing::warn!(namespace, kind, name, %error, "an event could not be published");
    }
}

fn event(is_good: bool, reason: &str, note: &str) -> Event {
    Event {
        type_: if is_good {
            EventType::Normal
        } else {
            EventType::Warning
        },
        reason: reason.to_owned(),
        note: Some(note.to_owned()),
        // The recorder counts those that differ in the note alone as one, for some minutes, and keeps the note of the first.
        action: format!("Reconcile-{}", digest(&note.into())),
        secondary: None,
    }
}
