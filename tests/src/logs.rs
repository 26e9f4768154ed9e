//! The logs as they lie in NATS, looked at and damaged from outside.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, stream::Stream};
use futures_util::TryStreamExt as _;
use mailbell_core::ids::{AccountId, Group};

use crate::process::until;

/// Logs of the installation `main` on a server of the test.
#[derive(Debug, Clone)]
pub struct Logs {
    context: jetstream::Context,
}

impl Logs {
    /// Connects to a server that takes anybody.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let client = async_nats::connect(url).await?;
        Ok(Self {
            context: jetstream::new(client),
        })
    }

    /// The log that has an account's events.
    ///
    /// # Errors
    /// When there is none.
    pub async fn of(&self, account: &str) -> anyhow::Result<Stream> {
        let name = self.name_of(account).await?;
        Ok(self.context.get_stream(name).await?)
    }

    /// The name of the log that has an account's events.
    ///
    /// # Errors
    /// When there is none.
    pub async fn name_of(&self, account: &str) -> anyhow::Result<String> {
        let account: AccountId = account.parse().context("this is no account")?;
        let end = format!("_LOG_{}", account.partition().group());
        self.names()
            .await?
            .into_iter()
            .find(|name| name.ends_with(&end))
            .context("no log")
    }

    /// The names of all logs.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn names(&self) -> anyhow::Result<Vec<String>> {
        let names: Vec<String> = self.context.stream_names().try_collect().await?;
        Ok(names
            .into_iter()
            .filter(|name| name.starts_with("MB_") && name.contains("_LOG_"))
            .collect())
    }

    /// The last sequence of an account's log.
    ///
    /// # Errors
    /// When there is none.
    pub async fn last(&self, account: &str) -> anyhow::Result<u64> {
        let mut stream = self.of(account).await?;
        Ok(stream.info().await?.state.last_sequence)
    }

    /// Waits until an account's log has come to `sequence`.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn reaches(&self, account: &str, sequence: u64) -> anyhow::Result<()> {
        until(Duration::from_secs(30), "the log", || async {
            self.last(account).await.is_ok_and(|last| last >= sequence)
        })
        .await
    }

    /// Drops all events of all logs, as if they had expired; positions go on.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn expire(&self) -> anyhow::Result<()> {
        for name in self.names().await? {
            self.context.get_stream(name).await?.purge().await?;
        }
        Ok(())
    }

    /// Deletes all logs.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn delete(&self) -> anyhow::Result<()> {
        let groups = Group::all().count();
        let names = self.names().await?;
        anyhow::ensure!(
            names.len() == groups,
            "{} logs instead of {groups}",
            names.len()
        );
        for name in names {
            self.context.delete_stream(name).await?;
        }
        Ok(())
    }
}
