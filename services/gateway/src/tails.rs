//! What the leaders of the logs say now, asked once for all who ask at the same time.
//!
//! In a reconnect storm every device needs to know where some logs end. An answer serves whoever asked before its question
//! went out, and nobody who came later: so it is never old news.

use std::{sync::Arc, time::Duration};

use mailbell_core::{
    delivery::LogState,
    ids::{Group, PerGroup},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::source::Source;

/// How long a leader may think.
const LIMIT: Duration = Duration::from_secs(5);

/// The log's leader did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoAnswer;

/// See the module.
#[derive(Debug)]
pub(crate) struct Tails {
    source: Arc<dyn Source>,
    last: PerGroup<Mutex<Option<Answer>>>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    /// When the question went out.
    asked: Instant,
    /// A failure serves those who wait too: else each of them would wait for its own, one after the other.
    log: Result<LogState, NoAnswer>,
}

impl Tails {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            last: PerGroup::from_fn(|_| Mutex::new(None)),
        }
    }

    /// Where the log stands, by an answer to a question that went out after this call.
    pub(crate) async fn now(&self, group: Group) -> Result<LogState, NoAnswer> {
        let came = Instant::now();
        let mut last = self.last[group].lock().await;
        if let Some(answer) = *last
            && answer.asked > came
        {
            return answer.log;
        }
        let asked = Instant::now();
        let log = match timeout(LIMIT, self.source.log_state(group)).await {
            Ok(Ok(log)) => Ok(log),
            Ok(Err(error)) => {
                tracing::debug!(%group, %error, "the log's leader does not answer");
                Err(NoAnswer)
            }
            Err(_elapsed) => Err(NoAnswer),
        };
        *last = Some(Answer { asked, log });
        log
    }
}
