//! The connections of a standalone installation's roles.
//!
//! Its own server may die while they are made, and runs again a moment later: that is waited for. Not so a server of somebody
//! else's: nobody knows that it comes back, and a wrong address is to be told at once.

use std::time::Duration;

use mailbell_bus::{Bus, BusError, BusOptions, Code, SetupReport, Upgrade, patience};
use mailbell_core::schema::WriteVersion;
use tokio::time::{sleep, timeout};

use super::nats_child::NatsChildError;
use crate::failure::Failure;

/// How long the own server may take to come back.
const LIMIT: Duration = Duration::from_secs(30);

/// What each role connects with.
pub(super) struct Connections {
    pub(super) setup: BusOptions,
    pub(super) watcher: BusOptions,
    pub(super) gateway: BusOptions,
    pub(super) admin: BusOptions,
    /// Whether the newest schema may be written from now on.
    pub(super) finish_upgrade: bool,
}

impl Connections {
    /// Sets up streams and buckets, then connects watcher, gateway and admin. May be repeated.
    pub(super) async fn open(&self) -> Result<(Bus, Bus, Bus), BusError> {
        let setup = Bus::connect(self.setup.clone()).await?;
        let report = self.prepare(&setup).await;
        setup.close().await;
        let report = report?;
        tracing::info!(
            created = report.created.len(),
            "streams and buckets are as they should be"
        );
        if report.write_version < Some(WriteVersion::NEWEST) {
            tracing::info!(
                "all that is stored can be read by the release before; once that need not come back, start with --finish-upgrade"
            );
        }
        tokio::try_join!(
            Bus::connect(self.watcher.clone()),
            Bus::connect(self.gateway.clone()),
            Bus::connect(self.admin.clone()),
        )
    }
}

impl Connections {
    async fn prepare(&self, setup: &Bus) -> Result<SetupReport, BusError> {
        let mut report = setup.setup().await?;
        if self.finish_upgrade {
            match setup.finish_upgrade().await? {
                Upgrade::Finished { .. } => tracing::info!("older releases do not start any more"),
                Upgrade::Nothing => {}
                Upgrade::OlderMembers(members) => {
                    let members = members.join(", ");
                    tracing::warn!(%members, "watchers of an older release run: the upgrade is not finished");
                }
            }
            report.write_version = Some(setup.write_version());
        }
        Ok(report)
    }
}

/// Tries until it works, for as long as all that is wrong is that the own server is away.
pub(super) async fn to_own_server<T>(
    attempt: impl AsyncFn() -> Result<T, BusError>,
    no_answer: impl FnOnce() -> NatsChildError,
) -> Result<T, Failure> {
    let opened = async {
        let mut backoff = patience();
        loop {
            match attempt().await {
                // No other error that may pass: a full disk is to be told.
                Err(error) if matches!(error.code(), Code::Unavailable | Code::Unknown) => {
                    tracing::warn!(%error, "the own nats-server is away; it is tried again");
                    let wait = backoff.next(&mut rand::rng());
                    sleep(wait).await;
                }
                done => return done,
            }
        }
    };
    match timeout(LIMIT, opened).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(no_answer().into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, path::PathBuf};

    use mailbell_runtime::ExitCode;

    use super::*;

    fn no_answer() -> NatsChildError {
        NatsChildError::NoAnswer {
            addr: "127.0.0.1:4222".parse().unwrap(),
            log: PathBuf::from("/state/nats.log"),
            end: "the end".to_owned(),
        }
    }

    /// What comes of these outcomes, and then of a server that is away for ever.
    async fn outcome(of: Vec<Result<u8, BusError>>) -> Result<u8, Failure> {
        let outcomes = RefCell::new(of.into_iter());
        let attempt = async || {
            let next = outcomes.borrow_mut().next();
            next.unwrap_or(Err(BusError::Disconnected))
        };
        to_own_server(attempt, no_answer).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_own_server_that_dies_meanwhile_is_waited_for() {
        let away = vec![
            Err(BusError::Disconnected),
            Err(BusError::Timeout(LIMIT)),
            Ok(7),
        ];
        assert_eq!(outcome(away).await.unwrap(), 7);
        let full = vec![Err(BusError::StorageFull("a log".to_owned())), Ok(7)];
        let failure = outcome(full).await.unwrap_err();
        assert_eq!(failure.code, ExitCode::CannotCreate);
    }

    #[tokio::test(start_paused = true)]
    async fn an_own_server_that_stays_away_is_told_with_its_log() {
        let failure = outcome(Vec::new()).await.unwrap_err();
        assert_eq!(failure.code, ExitCode::Unavailable);
        assert!(failure.message.contains("nats.log"), "{failure}");
        // Nor does an attempt last for ever that gets no answer at all.
        let silent = async || std::future::pending::<Result<u8, BusError>>().await;
        let failure = to_own_server(silent, no_answer).await.unwrap_err();
        assert!(failure.message.contains("nats.log"), "{failure}");
    }
}
