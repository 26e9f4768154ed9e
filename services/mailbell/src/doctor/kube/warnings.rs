//! What the cluster's own parts warn of: they say there why something is not made.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::{Api, Client, api::ListParams};

use super::{
    MOST,
    access::{Seen, seen},
};

/// What is told of a sentence.
const MAX_SENTENCE: usize = 300;

/// The warnings of a namespace, of the last hour on most clusters.
pub(super) struct Warnings(pub(super) Result<Vec<Event>, String>);

impl Warnings {
    pub(super) async fn read(client: &Client, namespace: &str) -> Self {
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let params = ListParams::default().fields("type=Warning").limit(MOST);
        Self(match seen(api.list(&params).await) {
            Seen::There(found) => Ok(found.items),
            Seen::Missing => Ok(Vec::new()),
            Seen::Denied(why) => Err(format!("you may not see the events that say why: {why}")),
            Seen::Failed(why) => Err(format!("the events that say why cannot be read: {why}")),
        })
    }

    /// The last one about an object, of its kind and name; or that it cannot be known.
    pub(super) fn about(&self, is_it: impl Fn(&str, &str) -> bool) -> Option<String> {
        let all = match &self.0 {
            Ok(all) => all,
            Err(why) => return Some(why.clone()),
        };
        let about = all.iter().filter(|event| {
            let of = &event.involved_object;
            let (kind, name) = (of.kind.as_deref(), of.name.as_deref());
            is_it(kind.unwrap_or_default(), name.unwrap_or_default())
        });
        let last = about.max_by_key(|event| time(event))?;
        let said = last.message.as_deref().unwrap_or_default();
        Some(said.chars().take(MAX_SENTENCE).collect())
    }
}

/// In microseconds. Those who write events of the new kind set one field, others another one.
fn time(event: &Event) -> i64 {
    let micros = |at: Timestamp| at.as_microsecond();
    let series = event
        .series
        .as_ref()
        .and_then(|it| it.last_observed_time.as_ref());
    let times = [
        event.last_timestamp.as_ref().map(|it| micros(it.0)),
        event.event_time.as_ref().map(|it| micros(it.0)),
        series.map(|it| micros(it.0)),
    ];
    times.into_iter().flatten().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn warned(events: &[Value]) -> Warnings {
        let events = events
            .iter()
            .map(|event| serde_json::from_value(event.clone()).unwrap());
        Warnings(Ok(events.collect()))
    }

    #[test]
    fn the_last_warning_counts_however_its_time_is_told() {
        let event = |name: &str, message: &str, field: &str, minute: u32| {
            json!({ "metadata": {}, "involvedObject": { "kind": "Job", "name": name }, "message": message,
                field: format!("2026-01-01T00:{minute:02}:00.000000Z") })
        };
        let warnings = warned(&[
            event("a", "first", "lastTimestamp", 1),
            event("a", "last", "eventTime", 2),
            event("b", "of another", "eventTime", 3),
        ]);
        let about = |wanted: &str| warnings.about(|kind, name| kind == "Job" && name == wanted);
        assert_eq!(about("a").as_deref(), Some("last"));
        assert_eq!(about("c"), None);
        let unknown = Warnings(Err("you may not see".to_owned()));
        assert_eq!(
            unknown.about(|_, _| true).as_deref(),
            Some("you may not see")
        );
    }
}
