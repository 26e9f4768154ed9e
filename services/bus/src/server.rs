//! What the server says of itself, for a person who looks for what is wrong.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::{
    Bus, BusError,
    api::{NO_STREAM, micros},
    names::Bucket,
};

/// The server that this connection has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// Its version, such as `2.15.1`.
    pub version: String,
    /// How far its clock is ahead of ours, in microseconds, to half of the round trip.
    pub clock_ahead_us: i64,
    /// The round trip of the question, in microseconds.
    pub round_trip_us: i64,
}

#[derive(Deserialize)]
struct Stamp {
    ts: String,
}

impl Bus {
    /// Asks the server.
    ///
    /// # Errors
    /// [`BusError::NotSetUp`], or why NATS did not answer.
    pub async fn server_status(&self) -> Result<ServerStatus, BusError> {
        let stream = self.names().bucket_stream(Bucket::Control);
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let wire = self.wire();
        let (before, asked) = (now_us(), Instant::now());
        let question = serde_json::Map::new();
        let answer = wire
            .ask_api::<Stamp>(&subject, &question, wire.patience())
            .await?;
        let round_trip = asked.elapsed();
        let stamp = answer.map_err(|error| match error.err_code {
            NO_STREAM => self.not_set_up(),
            _ => wire.failed(error.into_bus(&stream)),
        })?;
        let round_trip_us = i64::try_from(round_trip.as_micros()).unwrap_or(i64::MAX);
        Ok(ServerStatus {
            version: wire.server_version(),
            clock_ahead_us: micros(&stamp.ts)?
                .saturating_sub(before.saturating_add(round_trip_us / 2)),
            round_trip_us,
        })
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
