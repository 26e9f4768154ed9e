//! Events for programs: one object a line.

use mailbell_client::{AppEvent, Arrived, ReplaceFolder, UnlistableReason};
use mailbell_proto::push::v1::{AccountState, Address, ContentLevel, EventKey, Message, Priority};
use serde_json::{Value, json};

use crate::account::health_word;

pub(super) fn line(event: &AppEvent, now_us: i64) -> Option<Value> {
    Some(match event {
        AppEvent::Arrived(arrived) => self::arrived(arrived, now_us),
        AppEvent::Changed(changed) => {
            with_key("changed", &changed.key, json!({ "flags": changed.flags }))
        }
        AppEvent::Gone(gone) => with_key("gone", &gone.key, json!({})),
        AppEvent::AccountState(state) => account_state(state),
        AppEvent::ReplaceFolder(replace) => replace_folder(replace),
        AppEvent::Unlistable(unlistable) => json!({
            "kind": "unlistable",
            "account": unlistable.account,
            "folder": unlistable.folder,
            "reason": match unlistable.reason {
                UnlistableReason::NotFound => "not-found",
                UnlistableReason::PermissionDenied => "permission-denied",
                _ => "refused",
            },
        }),
        AppEvent::Connected(connected) => json!({
            "kind": "connected",
            "session": connected.session,
            "resumed": connected.resumed,
            "content": content_word(connected.content),
        }),
        AppEvent::Live => json!({ "kind": "live" }),
        AppEvent::Disconnected { reason, retry_in } => json!({
            "kind": "disconnected",
            "reason": reason.to_string(),
            "retry_in_ms": u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX),
        }),
        // A kind of a newer release of the client.
        _ => return None,
    })
}

fn content_word(level: ContentLevel) -> &'static str {
    mailbell_core::content::word(level)
}

fn with_key(kind: &str, key: &EventKey, more: Value) -> Value {
    let mut value = json!({
        "kind": kind,
        "account": key.account,
        "folder": key.folder,
        "generation": key.generation,
        "uid": key.uid,
        "modseq": key.modseq,
    });
    if let (Some(object), Value::Object(more)) = (value.as_object_mut(), more) {
        object.extend(more);
    }
    value
}

fn arrived(arrived: &Arrived, now_us: i64) -> Value {
    let times = arrived.times;
    let latency_us = (times.detected_us > 0).then(|| now_us.saturating_sub(times.detected_us));
    let priority = match arrived.priority {
        Priority::Unspecified => "unspecified",
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
    };
    let more = json!({
        "folder_name": arrived.folder_name,
        "alert": arrived.alert,
        "priority": priority,
        "message": arrived.message.as_ref().map(message),
        "times": {
            "detected_us": times.detected_us,
            "fetched_us": times.fetched_us,
            "appended_us": times.appended_us,
            "received_us": times.received_us,
            "shown_us": now_us,
        },
        "latency_us": latency_us,
        "traceparent": arrived.traceparent,
    });
    with_key("arrived", &arrived.key, more)
}

fn addresses(addresses: &[Address]) -> Vec<Value> {
    addresses
        .iter()
        .map(|address| json!({ "name": address.name, "address": address.address }))
        .collect()
}

fn message(message: &Message) -> Value {
    json!({
        "uid": message.uid,
        "from": addresses(&message.from),
        "to": addresses(&message.to),
        "subject": message.subject,
        "message_id": message.message_id,
        "date_ms": message.date_ms,
        "internal_date_ms": message.internal_date_ms,
        "size": message.size,
        "flags": message.flags,
        "has_attachments": message.has_attachments,
        "thread": message.thread,
        "preview": message.preview,
        "content_id": message.content_id,
    })
}

fn account_state(state: &AccountState) -> Value {
    json!({
        "kind": "account-state",
        "account": state.account,
        "health": health_word(state.health),
        "code": state.code,
        "sentence": state.sentence,
        "since_ms": state.since_ms,
        "mode": state.mode,
    })
}

fn replace_folder(replace: &ReplaceFolder) -> Value {
    let messages: Vec<Value> = replace
        .messages
        .iter()
        .map(|listed| {
            let mut value = message(&listed.message);
            if let Some(object) = value.as_object_mut() {
                object.insert("known".to_owned(), listed.known.into());
                object.insert("alert".to_owned(), listed.alert.into());
            }
            value
        })
        .collect();
    json!({
        "kind": "replace-folder",
        "account": replace.account,
        "folder": replace.folder,
        "folder_name": replace.folder_name,
        "generation": replace.generation,
        "first_uid": replace.uids.start(),
        "last_uid": replace.uids.end(),
        "complete": replace.complete,
        "messages": messages,
    })
}

#[cfg(test)]
mod tests {
    use mailbell_proto::push::v1::Times;

    use super::*;

    #[test]
    fn a_line_has_all_times_and_no_control_characters() {
        let arrived = AppEvent::Arrived(Box::new(Arrived {
            key: EventKey {
                account: "default.x".to_owned(),
                uid: 7,
                ..EventKey::default()
            },
            folder_name: "INBOX".to_owned(),
            alert: true,
            priority: Priority::High,
            message: Some(Message {
                subject: "a\u{1b}[2J\nb".to_owned(),
                ..Message::default()
            }),
            times: Times {
                detected_us: 1000,
                ..Times::default()
            },
            traceparent: String::new(),
        }));
        let value = line(&arrived, 3500).unwrap();
        assert_eq!(
            (value["latency_us"].as_i64(), value["uid"].as_u64()),
            (Some(2500), Some(7))
        );
        assert_eq!(value["times"]["shown_us"], 3500);
        // JSON escapes what a terminal would act on.
        let text = value.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert_eq!(
            line(&AppEvent::Live, 0).unwrap().to_string(),
            r#"{"kind":"live"}"#
        );
    }
}
