//! What users write, as a watch tells of it; without objects that cannot be read.

use std::{fmt::Debug, sync::Arc};

use futures_util::{Stream, StreamExt as _, future::ready};
use kube::{
    Api, Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use super::metrics::Unreadable;

/// Objects of one kind, and a stream that tells of each that is there or changes.
///
/// One that cannot be read, for instance since a newer release knows more values of a field, is left alone: what runs of it goes on, and what
/// is said of others that name it stays. Else a list that it is in could not be read, and nobody else would be looked after either.
pub(super) fn watched<K>(
    api: Api<DeserializeGuard<K>>,
    unreadable: Arc<Unreadable>,
) -> (
    Store<K>,
    impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let known = store.clone();
    let events = watcher(api, Config::default()).filter_map(move |event| {
        let read = event.map(|event| read(event, &known, &unreadable));
        ready(read.transpose())
    });
    let objects = reflector::reflector(writer, events).applied_objects();
    (store, objects)
}

/// `None`: of an object that cannot be read, and is not known.
fn read<K>(
    event: Event<DeserializeGuard<K>>,
    known: &Store<K>,
    unreadable: &Unreadable,
) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let is_read = |object: K| {
        unreadable.remove(object.meta());
        object
    };
    match event {
        Event::Init => {
            unreadable.begin_list();
            Some(Event::Init)
        }
        Event::InitApply(DeserializeGuard(Ok(object))) => Some(Event::InitApply(is_read(object))),
        Event::InitApply(DeserializeGuard(Err(bad))) => {
            tell::<K>(&bad, unreadable);
            None
        }
        Event::InitDone => {
            unreadable.end_list();
            Some(Event::InitDone)
        }
        Event::Apply(DeserializeGuard(Ok(object))) => Some(Event::Apply(is_read(object))),
        Event::Apply(DeserializeGuard(Err(bad))) => {
            tell::<K>(&bad, unreadable);
            forget(&bad, known)
        }
        Event::Delete(DeserializeGuard(Ok(object))) => Some(Event::Delete(is_read(object))),
        Event::Delete(DeserializeGuard(Err(bad))) => {
            unreadable.remove(&bad.metadata);
            forget(&bad, known)
        }
    }
}

fn tell<K: Resource<DynamicType = ()>>(bad: &InvalidObject, unreadable: &Unreadable) {
    let (kind, of) = (K::kind(&()), &bad.metadata);
    tracing::error!(%kind, namespace = of.namespace, name = of.name, error = bad.error,
        "an object cannot be read, and is left alone until it is changed");
    unreadable.add(of);
}

/// As it was read last it is no more.
fn forget<K>(bad: &InvalidObject, known: &Store<K>) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let of = &bad.metadata;
    let place = ObjectRef::new(of.name.as_deref().unwrap_or_default());
    let place = place.within(of.namespace.as_deref().unwrap_or_default());
    let object = known.get(&place)?;
    Some(Event::Delete((*object).clone()))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::Metrics;

    fn object(name: &str, data: Value) -> DeserializeGuard<ConfigMap> {
        serde_json::from_value(json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": "mail", "uid": name }, "data": data }))
        .unwrap()
    }

    fn good(name: &str) -> DeserializeGuard<ConfigMap> {
        object(name, json!({ "a": "b" }))
    }

    fn bad(name: &str) -> DeserializeGuard<ConfigMap> {
        object(name, json!({ "a": 1 }))
    }

    /// Of one it is told how many there are, and the others are as they were.
    #[test]
    fn one_that_cannot_be_read_is_left_alone_until_it_can() {
        let metrics = Metrics::default();
        let unreadable = metrics.unreadable("ConfigMap");
        let (store, mut writer) = reflector::store::<ConfigMap>();
        let mut see = |event| {
            let event = read(event, &store, &unreadable);
            let is_told = event.is_some();
            if let Some(event) = event {
                writer.apply_watcher_event(&event);
            }
            let all = store.state();
            let mut names: Vec<_> = all.iter().map(|it| it.name_any()).collect();
            names.sort();
            (is_told, names.join(" "), metrics.count("ConfigMap"))
        };
        let state = |told, names: &str, count| (told, names.to_owned(), count);
        see(Event::Init);
        assert_eq!(see(Event::InitApply(bad("a"))), state(false, "", 0));
        see(Event::InitApply(good("b")));
        assert_eq!(see(Event::InitDone), state(true, "b", 1));
        assert_eq!(see(Event::Apply(good("a"))), state(true, "a b", 0));
        assert_eq!(see(Event::Apply(bad("b"))), state(true, "a", 1));
        assert_eq!(see(Event::Apply(bad("b"))), state(false, "a", 1));
        assert_eq!(see(Event::Delete(bad("b"))), state(false, "a", 0));
        see(Event::Apply(bad("c")));
        assert!(unreadable.has("mail", "c") && !unreadable.has("mail", "b"));
        assert_eq!(see(Event::Delete(bad("a"))), state(true, "", 1));
        // What is known stays until all of a list is: it may take long to come.
        assert_eq!(see(Event::Init), state(true, "", 1));
        see(Event::InitApply(good("c")));
        assert_eq!(see(Event::InitApply(bad("d"))), state(false, "", 1));
        assert!(unreadable.has("mail", "c") && !unreadable.has("mail", "d"));
        assert_eq!(see(Event::InitDone), state(true, "c", 1));
        assert!(!unreadable.has("mail", "c") && unreadable.has("mail", "d"));
        drop(unreadable);
        assert_eq!(
            metrics.count("ConfigMap"),
            0,
            "whoever leads next tells of it"
        );
    }

    /// It may be as it was: nothing else would have it looked at.
    #[test]
    fn one_that_can_be_read_again_is_news() {
        let unreadable = Metrics::default().unreadable("ConfigMap");
        let (store, _writer) = reflector::store::<ConfigMap>();
        let is_news = |events: Vec<Event<DeserializeGuard<ConfigMap>>>| {
            for event in events {
                read(event, &store, &unreadable);
            }
            unreadable.news().now_or_never().is_some()
        };
        let relist = |all: Vec<DeserializeGuard<ConfigMap>>| {
            let all = all.into_iter().map(Event::InitApply);
            let all = [Event::Init].into_iter().chain(all);
            all.chain([Event::InitDone]).collect()
        };
        assert!(!is_news(relist(vec![bad("a"), good("b")])));
        assert!(!is_news(vec![
            Event::Apply(good("b")),
            Event::Apply(bad("a"))
        ]));
        assert!(is_news(vec![Event::Apply(good("a"))]));
        assert!(!is_news(vec![
            Event::Apply(good("a")),
            Event::Apply(bad("a"))
        ]));
        // What was missed is in the next list.
        assert!(!is_news(relist(vec![bad("a"), bad("b")])));
        assert!(is_news(relist(vec![good("a"), bad("b")])));
        assert!(!is_news(relist(vec![good("a"), bad("b")])));
    }
}
