//! `mailbell shards --watch`, as somebody leaves it running.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};

use crate::installation::Installation;

/// It ends at once when it is asked to, also while it waits for an answer. The rest is for two busy cores.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The command, running. Dropped, it is killed.
#[derive(Debug)]
pub struct Watching {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watching {
    /// Starts it with further arguments.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(installation: &Installation, args: &[&str]) -> anyhow::Result<Self> {
        let args = [&["shards", "--watch"], args].concat();
        let mut child = installation.command(&args)?.spawn()?;
        let out = child.stdout.take().context("it has no output")?;
        Ok(Self {
            child,
            lines: BufReader::new(out).lines(),
        })
    }

    /// Reads on, up to a line of which this is so.
    ///
    /// # Errors
    /// When it ends, or prints no such line in time; the text has the last one.
    pub async fn prints(
        &mut self,
        limit: Duration,
        what: &str,
        mut is_it: impl FnMut(&str) -> bool,
    ) -> anyhow::Result<String> {
        let mut last = String::new();
        let reading = async {
            while let Some(line) = self.lines.next_line().await? {
                if is_it(&line) {
                    return Ok(line);
                }
                last = line;
            }
            anyhow::bail!("it has ended");
        };
        let read = timeout(limit, reading).await;
        read.map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| format!("no line that shows {what}; the last was {last}"))
    }

    /// Sends it a signal and waits for its end; its exit code, or `None` if the signal ended it.
    ///
    /// # Errors
    /// When it runs on.
    pub async fn end(mut self, signal: Signal) -> anyhow::Result<Option<i32>> {
        ensure!(self.child.try_wait()?.is_none(), "it had ended before");
        let pid = self.child.id().context("it has ended")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("it has no id")?;
        kill_process(pid, signal)?;
        let ended = timeout(END_LIMIT, self.child.wait()).await;
        Ok(ended.context("it runs on")??.code())
    }
}
