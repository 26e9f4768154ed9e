//! Creating and verifying what an installation stores in NATS.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mailbell_core::{
    event::MAX_EVENT,
    ids::{GROUPS, Group, PARTITIONS},
    schema::WriteVersion,
    timing::Timing,
};
use mailbell_proto::bus::v1::Meta;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Bus, BusError, BusOptions, LogIds,
    api::{NO_PEERS, STREAM_EXISTS, StreamInfo, micros},
    consumer::nanos,
    kv,
    log_ids::Absent,
    names::{Bucket, Names},
    patience,
};

/// A cluster needs a while to place a stream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Servers that start together find each other within this time.
const GATHERING: Duration = Duration::from_secs(15);
/// Streams that are worked on at once.
const AT_ONCE: usize = 16;
/// Subject, message id and trace take some room besides the event.
const MAX_LOG_MESSAGE: usize = MAX_EVENT + 2 * 1024;
/// The schema of [`Meta`] that this release writes.
const META_SCHEMA: u32 = 1;
pub(crate) const META: &str = "meta";

/// A field of a stream that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The stream's name.
    pub stream: String,
    /// The field; empty if the stream is missing as a whole.
    pub field: String,
    /// As it is, as JSON.
    pub found: String,
    /// As it should be, as JSON.
    pub wanted: String,
    /// Whether putting it right would lose data, so that setup refuses.
    pub loses_data: bool,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() {
            write!(f, "{} is missing", self.stream)
        } else {
            write!(
                f,
                "{}: {} is {}, should be {}",
                self.stream, self.field, self.found, self.wanted
            )
        }
    }
}

/// What setup found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetupReport {
    /// Streams that were made.
    pub created: Vec<String>,
    /// Fields that were changed.
    pub changed: Vec<Drift>,
    /// Fields that are not as they should be and were left so (by [`Bus::verify`]).
    pub drift: Vec<Drift>,
    /// The newest schema that may be written ([`mailbell_core::schema`]); `None` if nothing is set up.
    pub write_version: Option<WriteVersion>,
}

type Fields = Map<String, Value>;

/// A stream as it should be: every field that the server knows, so that any difference is drift.
struct Wanted {
    name: String,
    fields: Fields,
}

impl Wanted {
    fn new(
        name: String,
        description: &str,
        subject: String,
        max_bytes: u64,
        options: &BusOptions,
    ) -> Self {
        let fields = json!({
            "name": name,
            "description": description,
            "subjects": [subject],
            "retention": "limits",
            "storage": "file",
            "compression": "none",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": max_bytes,
            "max_msg_size": -1,
            "max_msgs_per_subject": -1,
            "max_age": 0,
            "num_replicas": options.replicas.max(1),
            "allow_direct": true,
        });
        let fields = if let Value::Object(fields) = fields {
            fields
        } else {
            Fields::new()
        };
        Self { name, fields }
    }

    fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    fn log(names: &Names, group: Group, options: &BusOptions) -> Self {
        let Timing {
            log_age,
            duplicate_window,
            ..
        } = options.timing;
        let (name, subjects) = (names.log_stream(group), names.log_subjects(group));
        Self::new(
            name,
            "Mailbell: events",
            subjects,
            options.storage.log_bytes,
            options,
        )
        .with("max_age", nanos(log_age))
        .with("duplicate_window", nanos(duplicate_window))
        .with("max_msg_size", MAX_LOG_MESSAGE)
        .with("discard", "old")
    }

    fn bucket(names: &Names, bucket: Bucket, options: &BusOptions) -> Self {
        let storage = &options.storage;
        let (description, max_bytes) = match bucket {
            Bucket::State(_) => ("Mailbell: accounts and their states", storage.state_bytes),
            Bucket::Checkpoints(_) => ("Mailbell: checkpoints", storage.checkpoint_bytes),
            Bucket::Credentials(_) => ("Mailbell: sealed credentials", storage.credential_bytes),
            Bucket::Control => ("Mailbell: the installation", storage.control_bytes),
            Bucket::Live => ("Mailbell: who owns what", storage.live_bytes),
            Bucket::Revoked => ("Mailbell: revoked tokens", storage.revoked_bytes),
        };
        // Nothing is written with a message id; the server wants a window all the same, shorter than what it keeps.
        let window = options.timing.duplicate_window;
        let wanted = Self::new(
            names.bucket_stream(bucket),
            description,
            names.key_subject(bucket, ">"),
            max_bytes,
            options,
        )
        .with("max_msgs_per_subject", 1)
        // A record that is in use must not go because another one came.
        .with("discard", "new")
        .with("allow_rollup_hdrs", true)
        .with("deny_delete", true)
        .with("allow_msg_ttl", true)
        .with("duplicate_window", nanos(window));
        if bucket == Bucket::Live {
            let age = options.timing.live_age;
            return wanted
                .with("max_age", nanos(age))
                .with("duplicate_window", nanos(window.min(age)));
        }
        wanted
    }

    fn all(names: &Names, options: &BusOptions) -> Vec<Self> {
        let logs = Group::all().map(|group| Self::log(names, group, options));
        let buckets = Bucket::all().map(|bucket| Self::bucket(names, bucket, options));
        logs.chain(buckets).collect()
    }

    fn drift(&self, info: &StreamInfo) -> Vec<Drift> {
        let mut names: Vec<&String> = self.fields.keys().chain(info.config.keys()).collect();
        names.sort();
        names.dedup();
        let mut drift = Vec::new();
        for field in names {
            let (found, wanted) = (said(info.config.get(field)), said(self.fields.get(field)));
            // The server's own notes, and those of whoever made a backup.
            if field == "metadata" || found == wanted {
                continue;
            }
            // More copies than asked for are no fault: who doesn't say how many (standalone on a cluster) must not thin them out.
            let copies = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(1);
            if field == "num_replicas" && copies(found) > copies(wanted) {
                continue;
            }
            let loses_data = loses_data(field, found, wanted, info);
            let text =
                |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), Value::to_string);
            drift.push(Drift {
                stream: self.name.clone(),
                field: field.clone(),
                found: text(found),
                wanted: text(wanted),
                loses_data,
            });
        }
        drift
    }

    fn missing(&self) -> Drift {
        Drift {
            stream: self.name.clone(),
            field: String::new(),
            found: "unset".to_owned(),
            wanted: "a stream".to_owned(),
            loses_data: false,
        }
    }
}

/// A value that says something: fields that are unset come as nothing, zero or empty, depending on the server's release.
fn said(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) => true,
    })
}

/// Whether the server would drop, or nobody could reach any more, what lies in the stream now.
fn loses_data(
    field: &str,
    found: Option<&Value>,
    wanted: Option<&Value>,
    info: &StreamInfo,
) -> bool {
    let state = &info.state;
    if state.messages == 0 {
        return false;
    }
    let limit = |value: Option<&Value>| {
        value
            .and_then(Value::as_i64)
            .filter(|limit| *limit > 0)
            .and_then(|limit| u64::try_from(limit).ok())
    };
    match field {
        "max_bytes" => limit(wanted).is_some_and(|limit| state.bytes > limit),
        "max_msgs" => limit(wanted).is_some_and(|limit| state.messages > limit),
        "max_msgs_per_subject" => limit(wanted).is_some() && state.messages > state.num_subjects,
        "max_age" => limit(wanted).is_some_and(|limit| {
            let now = jiff::Timestamp::now().as_microsecond();
            // A first entry whose time cannot be read counts as old.
            let age_us = now.saturating_sub(micros(&state.first_ts).unwrap_or(0));
            u64::try_from(age_us).unwrap_or(0) > limit / 1000
        }),
        "subjects" => found != wanted,
        // None of them can be changed in place; by hand it would be a new stream.
        "storage" | "retention" | "mirror" | "sources" | "sealed" => true,
        _ => false,
    }
}

/// What is to be done for one stream.
enum Step {
    Create(Wanted),
    Update(Wanted, Vec<Drift>),
    Nothing,
}

impl Bus {
    async fn look(&self, wanted: Wanted) -> Result<Step, BusError> {
        let Some(info) = self.wire().stream_info(&wanted.name).await? else {
            return Ok(Step::Create(wanted));
        };
        let drift = wanted.drift(&info);
        Ok(if drift.is_empty() {
            Step::Nothing
        } else {
            Step::Update(wanted, drift)
        })
    }

    async fn look_at_all(&self) -> Result<Vec<Step>, BusError> {
        let wanted = Wanted::all(self.names(), &self.inner.options);
        stream::iter(wanted.into_iter().map(|wanted| self.look(wanted)))
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Creates what is missing and puts right what differs. Safe to run again, and twice at once.
    ///
    /// # Errors
    /// [`BusError::WouldLoseData`] before anything is changed; [`BusError::Layout`]; why NATS did not do it.
    pub async fn setup(&self) -> Result<SetupReport, BusError> {
        let mut steps = self.look_at_all().await?;
        let mut report = SetupReport::default();
        // Somebody else may make a stream between our look and our try: then it is looked at again.
        for _ in 0..3 {
            refuse_losses(&steps)?;
            let done = stream::iter(steps.into_iter().map(|step| self.take_step(step)));
            let done: Vec<(Done, Option<Wanted>)> = done.buffered(AT_ONCE).try_collect().await?;
            let mut again = Vec::new();
            for (done, left) in done {
                report.created.extend(done.created);
                report.changed.extend(done.changed);
                again.extend(left);
            }
            let looks = stream::iter(again.into_iter().map(|wanted| self.look(wanted)));
            steps = looks.buffered(AT_ONCE).try_collect().await?;
            if steps.is_empty() {
                break;
            }
        }
        while_leaders_settle(|| self.write_meta()).await?;
        // Gives an id to each log that has none.
        while_leaders_settle(|| LogIds::load_and_check(self, Absent::Refused)).await?;
        report.write_version = Some(self.write_version());
        Ok(report)
    }

    async fn take_step(&self, step: Step) -> Result<(Done, Option<Wanted>), BusError> {
        let (call, wanted, drift) = match step {
            Step::Nothing => return Ok((Done::default(), None)),
            Step::Create(wanted) => ("CREATE", wanted, Vec::new()),
            Step::Update(wanted, drift) => ("UPDATE", wanted, drift),
        };
        let subject = format!("$JS.API.STREAM.{call}.{}", wanted.name);
        let begun = Instant::now();
        let mut backoff = patience();
        // An answer is lost where the leader of the cluster changes. What was done is answered as if it were done again.
        let ask_again = self.wire().patience() * 2;
        let answer = loop {
            let ask = self
                .wire()
                .ask_api::<Value>(&subject, &wanted.fields, ask_again);
            let answer = match ask.await {
                Err(BusError::Timeout(_)) if begun.elapsed() < PATIENCE => {
                    tracing::warn!(
                        stream = wanted.name,
                        "NATS does not answer yet; it is asked again"
                    );
                    continue;
                }
                Err(BusError::Timeout(_)) => return Err(BusError::Timeout(PATIENCE)),
                answer => answer?,
            };
            match answer {
                Err(error) if error.err_code == NO_PEERS && begun.elapsed() < GATHERING => {
                    let error = self.wire().failed(error.into_bus(&wanted.name));
                    tracing::warn!(%error, "the NATS servers may still be meeting; it is tried again");
                    let wait = backoff.next(&mut rand::rng());
                    sleep(wait).await;
                }
                answer => break answer,
            }
        };
        match answer {
            Ok(_) if drift.is_empty() => Ok((
                Done {
                    created: Some(wanted.name),
                    changed: Vec::new(),
                },
                None,
            )),
            Ok(_) => Ok((
                Done {
                    created: None,
                    changed: drift,
                },
                None,
            )),
            Err(error) if error.err_code == STREAM_EXISTS => Ok((Done::default(), Some(wanted))),
            Err(error) => Err(self.wire().failed(error.into_bus(&wanted.name))),
        }
    }

    /// Looks only.
    ///
    /// # Errors
    /// [`BusError::Layout`]; why NATS did not answer.
    pub async fn verify(&self) -> Result<SetupReport, BusError> {
        let mut report = SetupReport::default();
        for step in self.look_at_all().await? {
            match step {
                Step::Nothing => {}
                Step::Create(wanted) => report.drift.push(wanted.missing()),
                Step::Update(_, drift) => report.drift.extend(drift),
            }
        }
        match self.check_meta().await {
            // Told already, stream by stream.
            Err(BusError::NotSetUp(_)) => Ok(report),
            Ok(()) => {
                report.write_version = Some(self.write_version());
                Ok(report)
            }
            Err(error) => Err(error),
        }
    }

    /// Checks that the installation was set up with this release's fixed numbers, and is written in a schema that it knows; notes
    /// the write version.
    ///
    /// # Errors
    /// [`BusError::NotSetUp`], [`BusError::Layout`], [`BusError::TooOld`], or why NATS did not answer.
    pub async fn check_meta(&self) -> Result<(), BusError> {
        let stream = self.names().bucket_stream(Bucket::Control);
        let subject = self.names().key_subject(Bucket::Control, META);
        // Its fixed numbers are written once, so a replica that lags can only not have it yet, or name an older write version.
        match self.wire().direct_last(&stream, &subject).await {
            Ok(Some(message)) => {
                let meta =
                    Meta::decode(message.payload).map_err(|_| BusError::Record(META.to_owned()))?;
                check_layout(&meta)?;
                self.note_written(meta.write_version).map(drop)
            }
            Ok(None) => Err(self.not_set_up()),
            // Nobody answers for a stream without a leader either, as after a restart of the whole cluster.
            Err(BusError::NoStream(missing)) => match self.wire().stream_info(&stream).await? {
                None => Err(self.not_set_up()),
                Some(_) => Err(BusError::NoStream(missing)),
            },
            Err(error) => Err(error),
        }
    }

    pub(crate) fn not_set_up(&self) -> BusError {
        BusError::NotSetUp(self.installation().to_string())
    }

    async fn write_meta(&self) -> Result<(), BusError> {
        let meta = Meta {
            schema: META_SCHEMA,
            partitions: u32::from(PARTITIONS),
            groups: u32::from(GROUPS),
            // Nobody can want to go back with an installation that no older release has seen.
            write_version: WriteVersion::NEWEST.number(),
        };
        let subject = self.names().key_subject(Bucket::Control, META);
        let written =
            kv::put_expecting(self.wire(), &subject, meta.encode_to_vec().into(), 0).await?;
        match written {
            crate::state::Cas::Stored(_) => self.note_written(meta.write_version).map(drop),
            crate::state::Cas::Conflict => self.check_meta().await,
        }
    }
}

/// Tries again for a while where nobody answers for a stream: it was made a moment ago, and the server that is asked may not have heard
/// yet who leads it.
async fn while_leaders_settle<T, F>(attempt: impl Fn() -> F) -> Result<T, BusError>
where
    F: Future<Output = Result<T, BusError>>,
{
    let begun = Instant::now();
    let mut backoff = patience();
    loop {
        match attempt().await {
            Err(error @ BusError::NoStream(_)) if begun.elapsed() < GATHERING => {
                tracing::warn!(%error, "the stream may be too new; it is tried again");
                let wait = backoff.next(&mut rand::rng());
                sleep(wait).await;
            }
            done => return done,
        }
    }
}

#[derive(Default)]
struct Done {
    created: Option<String>,
    changed: Vec<Drift>,
}

fn refuse_losses(steps: &[Step]) -> Result<(), BusError> {
    let mut losses = Vec::new();
    for step in steps {
        if let Step::Update(_, drift) = step {
            losses.extend(
                drift
                    .iter()
                    .filter(|drift| drift.loses_data)
                    .map(ToString::to_string),
            );
        }
    }
    if losses.is_empty() {
        Ok(())
    } else {
        Err(BusError::WouldLoseData(losses.join("; ")))
    }
}

pub(crate) fn check_layout(meta: &Meta) -> Result<(), BusError> {
    for (what, found, expected) in [
        ("partitions", meta.partitions, u32::from(PARTITIONS)),
        ("groups", meta.groups, u32::from(GROUPS)),
    ] {
        if found != expected {
            return Err(BusError::Layout {
                what,
                found,
                expected,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn no_leader() -> BusError {
        BusError::NoStream("s".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_a_leader_is_waited_for_but_not_for_ever() {
        let tries = Cell::new(0);
        let third = || async {
            tries.set(tries.get() + 1);
            if tries.get() < 3 {
                Err(no_leader())
            } else {
                Ok(7)
            }
        };
        assert_eq!(while_leaders_settle(third).await.unwrap(), 7);
        assert_eq!(tries.get(), 3);

        let begun = Instant::now();
        let never = while_leaders_settle(|| async { Err::<(), _>(no_leader()) });
        assert!(matches!(never.await, Err(BusError::NoStream(_))));
        assert!(begun.elapsed() >= GATHERING && begun.elapsed() < GATHERING * 2);

        let begun = Instant::now();
        let denied = while_leaders_settle(|| async { Err::<(), _>(BusError::Closed) });
        assert!(matches!(denied.await, Err(BusError::Closed)));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
