//! What JetStream's API speaks: JSON, and headers.

use std::{str::FromStr, time::Duration};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{BusError, wire::Wire};

/// "wrong last sequence": a compare-and-set lost.
const WRONG_LAST_SEQUENCE: [u32; 2] = [10071, 10164];
/// Resources of an account, of the server, of storage, of memory.
const NO_ROOM: [u32; 4] = [10002, 10023, 10047, 10028];
/// "maximum bytes exceeded" and the like, or what the disk said.
const STORE_FAILED: u32 = 10077;
/// "message size exceeds maximum allowed".
const TOO_LARGE: u32 = 10054;
/// "no message found".
pub(crate) const NO_MESSAGE: u32 = 10037;
/// "stream not found".
pub(crate) const NO_STREAM: u32 = 10059;
/// "stream name already in use with a different configuration".
pub(crate) const STREAM_EXISTS: u32 = 10058;
/// There are not as many servers as a stream is to have copies, or they have not met yet.
pub(crate) const NO_PEERS: u32 = 10005;
/// A stream is offline, its cluster has no leader, JetStream is not ready.
const NO_LEADER: [u32; 3] = [10008, 10118, 10009];

/// What JetStream says when it refuses.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ApiError {
    pub(crate) code: u16,
    #[serde(default)]
    pub(crate) err_code: u32,
    #[serde(default)]
    pub(crate) description: String,
}

impl ApiError {
    pub(crate) fn is_conflict(&self) -> bool {
        WRONG_LAST_SEQUENCE.contains(&self.err_code)
    }

    pub(crate) fn into_bus(self, what: &str) -> BusError {
        let full = NO_ROOM.contains(&self.err_code) || self.err_code == STORE_FAILED;
        match self.err_code {
            _ if full => BusError::StorageFull(self.description),
            TOO_LARGE => BusError::TooLarge(self.description),
            NO_STREAM => BusError::NoStream(what.to_owned()),
            code if NO_LEADER.contains(&code) => BusError::NoStream(what.to_owned()),
            _ => BusError::Refused {
                code: self.code,
                err_code: self.err_code,
                description: self.description,
            },
        }
    }
}

#[derive(Deserialize)]
struct Envelope {
    error: Option<ApiError>,
}

/// The acknowledgement of a publish.
#[derive(Debug, Deserialize)]
pub(crate) struct PubAck {
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) duplicate: bool,
}

/// Where a stream stands.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct StreamState {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    #[serde(default)]
    pub(crate) first_ts: String,
    #[serde(default)]
    pub(crate) num_subjects: u64,
}

/// A stream, as its leader says.
#[derive(Debug, Deserialize)]
pub(crate) struct StreamInfo {
    pub(crate) config: serde_json::Map<String, serde_json::Value>,
    pub(crate) created: String,
    pub(crate) state: StreamState,
}

/// A message as `STREAM.MSG.GET` gives it.
#[derive(Debug, Deserialize)]
struct RawMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: Option<String>,
    #[serde(default)]
    data: Option<String>,
    time: String,
}

#[derive(Deserialize)]
struct RawMessageResponse {
    message: RawMessage,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub(crate) struct StreamMessage {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) time_us: i64,
    pub(crate) payload: Bytes,
    /// Whether it says that its key is gone.
    pub(crate) removes: bool,
}

/// The answer to a publish: acknowledged, or refused.
pub(crate) type Published = Result<PubAck, ApiError>;

/// Which message `STREAM.MSG.GET` is to give.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Get<'a> {
    Last { last_by_subj: &'a str },
    Next { seq: u64, next_by_subj: &'a str },
}

/// Microseconds since the epoch of a time as JetStream writes it.
pub(crate) fn micros(text: &str) -> Result<i64, BusError> {
    jiff::Timestamp::from_str(text)
        .map(jiff::Timestamp::as_microsecond)
        .map_err(|_| BusError::Garbled("a time"))
}

/// Whether headers say that a key is gone: by its owner, or by a limit.
pub(crate) fn removes(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|headers| {
        headers
            .get("KV-Operation")
            .is_some_and(|operation| operation.as_str() != "PUT")
            || headers.get("Nats-Marker-Reason").is_some()
    })
}

fn decode_base64(text: Option<String>) -> Result<Vec<u8>, BusError> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text.unwrap_or_default())
        .map_err(|_| BusError::Garbled("a message's text"))
}

impl RawMessage {
    fn open(self) -> Result<StreamMessage, BusError> {
        let headers = decode_base64(self.hdrs)?;
        // The header block as on the wire; only these two names matter.
        let headers = String::from_utf8_lossy(&headers);
        let removes = headers.lines().any(|line| {
            line.strip_prefix("KV-Operation:")
                .is_some_and(|operation| operation.trim() != "PUT")
                || line.starts_with("Nats-Marker-Reason:")
        });
        Ok(StreamMessage {
            removes,
            time_us: micros(&self.time)?,
            payload: decode_base64(self.data)?.into(),
            subject: self.subject,
            sequence: self.seq,
        })
    }
}

impl Wire {
    /// Asks JetStream. The inner error is its refusal.
    pub(crate) async fn ask_api<T: DeserializeOwned>(
        &self,
        subject: &str,
        question: &impl Serialize,
        patience: Duration,
    ) -> Result<Result<T, ApiError>, BusError> {
        let payload = serde_json::to_vec(question).map_err(|_| BusError::Garbled("a question"))?;
        let answer = self.call(subject, None, payload.into(), patience).await?;
        read_answer(&answer)
    }

    /// A stream, from its leader; `None` if there is none.
    pub(crate) async fn stream_info(&self, stream: &str) -> Result<Option<StreamInfo>, BusError> {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        match self
            .ask_api(&subject, &serde_json::Map::new(), self.patience())
            .await?
        {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.err_code == NO_STREAM => Ok(None),
            Err(error) => Err(self.failed(error.into_bus(stream))),
        }
    }

    /// A message of a stream, from its leader.
    pub(crate) async fn leader_get(
        &self,
        stream: &str,
        which: &Get<'_>,
    ) -> Result<Option<StreamMessage>, BusError> {
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        match self
            .ask_api::<RawMessageResponse>(&subject, which, self.patience())
            .await?
        {
            Ok(response) => response.message.open().map(Some),
            Err(error) if error.err_code == NO_MESSAGE => Ok(None),
            Err(error) => Err(self.failed(error.into_bus(stream))),
        }
    }

    /// The last message of one subject, from any replica: it may be an older one. For users who may not read the whole stream.
    pub(crate) async fn direct_last(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<StreamMessage>, BusError> {
        let api = format!("$JS.API.DIRECT.GET.{stream}.{subject}");
        let message = self.call(&api, None, Bytes::new(), self.patience()).await?;
        match message.status.map(|status| status.as_u16()) {
            Some(404) => Ok(None),
            Some(code) if code >= 400 => Err(self.failed(BusError::Refused {
                code,
                err_code: 0,
                description: message.description.unwrap_or_default(),
            })),
            _ => direct_message(message).map(Some),
        }
    }

    /// Publishes to a stream and waits for its acknowledgement.
    pub(crate) async fn store(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Published, BusError> {
        read_answer(
            &self
                .call(subject, headers, payload, self.patience())
                .await?,
        )
    }
}

fn read_answer<T: DeserializeOwned>(answer: &Message) -> Result<Result<T, ApiError>, BusError> {
    let unreadable = |_| BusError::Garbled("JetStream's answer");
    let envelope: Envelope = serde_json::from_slice(&answer.payload).map_err(unreadable)?;
    match envelope.error {
        Some(error) => Ok(Err(error)),
        None => serde_json::from_slice(&answer.payload)
            .map(Ok)
            .map_err(unreadable),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(name).map(|value| value.as_str())
}

/// A number in a header.
pub(crate) fn number(headers: Option<&HeaderMap>, name: &'static str) -> Option<u64> {
    header(headers?, name)?.parse().ok()
}

/// A message as a direct get gives it.
pub(crate) fn direct_message(message: Message) -> Result<StreamMessage, BusError> {
    let missing = || BusError::Garbled("a direct get's answer");
    let headers = message.headers.as_ref().ok_or_else(missing)?;
    Ok(StreamMessage {
        subject: header(headers, "Nats-Subject")
            .ok_or_else(missing)?
            .to_owned(),
        sequence: number(Some(headers), "Nats-Sequence").ok_or_else(missing)?,
        time_us: micros(header(headers, "Nats-Time-Stamp").ok_or_else(missing)?)?,
        removes: removes(Some(headers)),
        payload: message.payload,
    })
}
