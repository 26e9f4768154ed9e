//! What the cluster's own parts warn of: they say there why something is not made.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Event, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::ListParams};

use super::{
    MOST,
    access::{Seen, seen},
};

/// What is told of a sentence.
const MAX_SENTENCE: usize = 300;
/// Who makes pods tries again after seventeen minutes at most, and warns again if that fails. What is older has been overcome.
const RECENT: SignedDuration = SignedDuration::from_mins(20);
/// Reasons of the API server that it puts right by itself: of a Service that it has not seen in its own list yet it warns at times, and says
/// nothing of why something else about it is not made.
const REPAIRED: [&str; 2] = ["ClusterIPNotAllocated", "PortNotAllocated"];

/// The last warning about an object; or why it cannot be known. `since`: what was warned of before has been overcome.
pub(super) async fn about(
    client: &Client,
    namespace: &str,
    object: &ObjectMeta,
    since: Option<Timestamp>,
) -> Result<Option<String>, String> {
    let name = object.name.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let fields = format!("type=Warning,involvedObject.name={name}");
    let params = ListParams::default().fields(&fields).limit(MOST);
    match seen(api.list(&params).await) {
        Seen::There(found) => {
            let recent = Timestamp::now().checked_sub(RECENT).ok();
            Ok(last(&found.items, object, recent.max(since)))
        }
        Seen::Missing => Ok(None),
        Seen::Denied(why) => Err(format!("you may not see the events that say why: {why}")),
        Seen::Failed(why) => Err(format!("the events that say why cannot be read: {why}")),
    }
}

/// Of this very object: one before it may have had its name.
fn last(events: &[Event], object: &ObjectMeta, since: Option<Timestamp>) -> Option<String> {
    let about = events.iter().filter_map(|event| {
        let is_it = event.involved_object.uid == object.uid;
        let reason = event.reason.as_deref().unwrap_or_default();
        let counts = is_it && !REPAIRED.contains(&reason);
        let time = time(event).filter(|time| counts && Some(*time) >= since)?;
        Some((time, event))
    });
    let (_, last) = about.max_by_key(|(time, _)| *time)?;
    let said = last.message.as_deref().unwrap_or_default();
    Some(said.chars().take(MAX_SENTENCE).collect())
}

/// Those who write events of the new kind set one field, others another one.
fn time(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|it| it.last_observed_time.as_ref());
    let times = [
        event.last_timestamp.as_ref().map(|it| it.0),
        event.event_time.as_ref().map(|it| it.0),
        series.map(|it| it.0),
    ];
    times.into_iter().flatten().max()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(uid: &str, message: &str, field: &str, minute: u32) -> Value {
        json!({ "metadata": {}, "involvedObject": { "kind": "Job", "name": "a", "uid": uid }, "message": message,
            field: format!("2026-01-01T00:{minute:02}:00.000000Z") })
    }

    fn at(minute: i64) -> Timestamp {
        let midnight: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        midnight + SignedDuration::from_mins(minute)
    }

    fn told_since(events: &[Value], since: Timestamp) -> Option<String> {
        let events = events.iter();
        let events: Vec<Event> = events
            .map(|event| serde_json::from_value(event.clone()).unwrap())
            .collect();
        let object = ObjectMeta {
            name: Some("a".to_owned()),
            uid: Some("1".to_owned()),
            ..ObjectMeta::default()
        };
        last(&events, &object, Some(since))
    }

    fn told(events: &[Value], minute: i64) -> Option<String> {
        told_since(events, at(minute) - RECENT)
    }

    #[test]
    fn the_last_warning_counts_however_its_time_is_told() {
        let events = [
            event("1", "first", "lastTimestamp", 1),
            event("1", "last", "eventTime", 2),
        ];
        assert_eq!(told(&events, 3).as_deref(), Some("last"));
        assert_eq!(told(&[], 3), None);
    }

    #[test]
    fn a_warning_about_what_had_the_name_before_or_of_long_ago_says_nothing() {
        let of_another = [
            event("1", "its own", "eventTime", 1),
            event("0", "of the one before", "eventTime", 2),
        ];
        assert_eq!(told(&of_another, 3).as_deref(), Some("its own"));
        assert_eq!(told(&of_another, 21).as_deref(), Some("its own"));
        assert_eq!(told(&of_another, 22), None);
    }

    #[test]
    fn a_warning_of_what_the_api_server_repairs_itself_says_nothing() {
        let mut events = vec![event("1", "no address is free", "eventTime", 1)];
        for reason in ["ClusterIPNotAllocated", "PortNotAllocated"] {
            let mut repaired = event("1", "is not allocated; repairing", "eventTime", 2);
            repaired["reason"] = reason.into();
            events.push(repaired);
        }
        assert_eq!(told(&events, 3).as_deref(), Some("no address is free"));
        assert_eq!(told(&events[1..], 3), None);
    }

    #[test]
    fn a_warning_of_the_time_before_says_nothing() {
        let events = [
            event("1", "before", "eventTime", 1),
            event("1", "after", "eventTime", 3),
        ];
        assert_eq!(told_since(&events[..1], at(2)), None);
        assert_eq!(told_since(&events, at(2)).as_deref(), Some("after"));
    }
}
