//! Reading a range of a stream by batches, complete whatever replica answers.

use std::{collections::VecDeque, sync::Arc};

use futures_util::future::try_join_all;
use mailbell_core::{
    ids::{AccountId, Group, Partition, Position, Tenant},
    read::{Next, ReadUpTo},
};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::{
    Bus, BusError, Entry,
    api::{Get, StreamMessage, direct_message, number},
    logs::Opener,
    pull::Pull,
    wire::Wire,
};

/// Messages in one batch. With [`BATCH_BYTES`] it bounds what a read holds.
const BATCH: usize = 256;
/// The same of a bucket, whose values are small. For each batch the server counts how many are left, and where some were overwritten it
/// looks through all keys for that: of 62,500 a tenth of a second each time.
pub(crate) const BATCH_OF_BUCKET: usize = 1024;
/// The filter that lets everything pass.
pub(crate) const EVERYTHING: &str = ">";
/// Bytes of one batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// Up to this many accounts are read one by one; beyond it, reading all of their tenant's, or the whole group, is cheaper.
const MERGED_ACCOUNTS: usize = 16;

/// Whose events of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Everybody's.
    All,
    /// Those of one partition.
    Partition(Partition),
    /// Those of one tenant.
    Tenant(Tenant),
    /// Those of one account.
    Account(AccountId),
    /// Those of several accounts of the group, merged in order. A few are read one by one, many by reading all of their tenant's,
    /// or the whole group if they have several.
    Accounts(Vec<AccountId>),
}

/// How a range is read.
#[derive(Debug)]
enum By {
    /// By direct gets, of which nothing stays in the server.
    Batches,
    /// By a consumer of all that the stream has, and where it is, once it was made. See `pull.rs`.
    Consumer(Option<(Box<Pull>, u64)>),
}

/// Reads what lies in a stream after one sequence and up to another that its leader named.
#[derive(Debug)]
pub(crate) struct RangeReader {
    wire: Arc<Wire>,
    reads: Arc<Semaphore>,
    stream: String,
    filter: String,
    by: By,
    batch: usize,
    batch_bytes: usize,
    range: ReadUpTo,
    end: u64,
    next: Next,
    /// The leader had nothing more that matches, also after the range.
    exhausted: bool,
}

/// What one batch gave.
pub(crate) struct Batch {
    pub(crate) messages: Vec<StreamMessage>,
    /// Whether what answered has more, as far as can be told.
    pub(crate) more: bool,
}

impl RangeReader {
    pub(crate) fn new(bus: &Bus, stream: String, filter: String, after: u64, up_to: u64) -> Self {
        let range = ReadUpTo::new(after, up_to);
        Self {
            wire: Arc::clone(&bus.inner.wire),
            reads: Arc::clone(&bus.inner.reads),
            stream,
            filter,
            by: By::Batches,
            batch: BATCH,
            batch_bytes: BATCH_BYTES,
            next: range.first(),
            range,
            end: up_to,
            exhausted: false,
        }
    }

    /// Of a bucket.
    pub(crate) fn of_bucket(mut self) -> Self {
        self.batch = BATCH_OF_BUCKET;
        self
    }

    /// Of all that a stream has: the filter must let everything pass.
    pub(crate) fn by_consumer(mut self) -> Self {
        self.by = By::Consumer(None);
        self
    }

    /// One of so many whose batches are held together. With [`MERGED_ACCOUNTS`] each still takes several of the largest events.
    fn one_of(mut self, count: usize) -> Self {
        self.batch = BATCH / count.max(1);
        self.batch_bytes = BATCH_BYTES / count.max(1);
        self
    }

    /// The next messages in order, maybe none yet; `None` once the end was reached.
    pub(crate) async fn next_batch(&mut self) -> Result<Option<Vec<StreamMessage>>, BusError> {
        match self.next {
            Next::Done => Ok(None),
            Next::More(after) => {
                let batch = match self.by {
                    By::Batches => self.ask(after).await,
                    By::Consumer(_) => self.pull(after).await,
                };
                let batch = batch.inspect_err(|_| self.wire.metrics().read("failed"))?;
                self.wire.metrics().read("ok");
                let last = batch.messages.last().map(|message| message.sequence);
                // No answer says up to where the one who answered knows the stream.
                self.next = self.range.on_batch(last, batch.more, None);
                Ok(Some(self.within(batch.messages)))
            }
            Next::AskLeader(after) => {
                let which = Get::Next {
                    seq: after + 1,
                    next_by_subj: &self.filter,
                };
                let found = self.wire.leader_get(&self.stream, &which).await;
                let found = found.inspect_err(|_| self.wire.metrics().read("failed"))?;
                self.wire.metrics().read("asked-leader");
                self.exhausted = found.is_none();
                self.next = self
                    .range
                    .on_leader(found.as_ref().map(|message| message.sequence));
                Ok(Some(self.within(found.into_iter().collect())))
            }
        }
    }

    /// What was appended after the range's end does not belong to it.
    fn within(&self, mut messages: Vec<StreamMessage>) -> Vec<StreamMessage> {
        messages.retain(|message| message.sequence <= self.end);
        messages
    }

    pub(crate) fn position(&self) -> u64 {
        self.range.at().min(self.end)
    }

    /// Whether the leader was asked at the end, and had nothing more that matches, also after the range.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// A batch of a consumer, which is made anew if it doesn't go on from there, or no longer. Where that does not work, or the server in
    /// which it lives knows of nothing more, the rest is read by direct gets.
    async fn pull(&mut self, after: u64) -> Result<Batch, BusError> {
        let before = match &mut self.by {
            By::Batches => None,
            By::Consumer(before) => before.take(),
        };
        if let Some((pull, at)) = before
            && at == after
            && let Ok(batch) = self.pull_from(pull).await
        {
            return Ok(batch);
        }
        if let Ok(pull) = Pull::after(&self.wire, &self.stream, after).await
            && let Ok(batch) = self.pull_from(Box::new(pull)).await
        {
            return Ok(batch);
        }
        // The slow way works without a leader of the cluster, and without the right to make consumers of it.
        self.by = By::Batches;
        self.ask(after).await
    }

    async fn pull_from(&mut self, mut pull: Box<Pull>) -> Result<Batch, BusError> {
        let reads = Arc::clone(&self.reads);
        let _permit = reads.acquire().await.map_err(|_| BusError::Closed)?;
        let batch = pull.next_batch(self.batch, self.batch_bytes).await?;
        match batch.messages.last() {
            Some(last) if batch.more && pull.is_whole() => {
                self.by = By::Consumer(Some((pull, last.sequence)));
            }
            Some(_) => {}
            // If there is more, it lags: each message would cost another consumer.
            None => self.by = By::Batches,
        }
        Ok(batch)
    }

    async fn ask(&self, after: u64) -> Result<Batch, BusError> {
        let _permit = self.reads.acquire().await.map_err(|_| BusError::Closed)?;
        let question = json!({
            "seq": after + 1,
            "next_by_subj": self.filter,
            "batch": self.batch,
            "max_bytes": self.batch_bytes,
        });
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        let mut answers = self
            .wire
            .call_many(&subject, question.to_string().into(), self.batch + 1)
            .await?;
        let mut messages: Vec<StreamMessage> = Vec::new();
        loop {
            let answer = match answers.next(self.wire.patience()).await {
                Ok(answer) => answer,
                // What came is good, and in order.
                Err(_) if !messages.is_empty() => {
                    return Ok(Batch {
                        messages,
                        more: true,
                    });
                }
                Err(error) => return Err(error),
            };
            // Each answer names the one before it: one that was lost shows, and it is read on from there. If the first one was,
            // the leader is asked for it.
            let before = number(answer.headers.as_ref(), "Nats-Last-Sequence");
            let last = messages.last().map_or(0, |message| message.sequence);
            match answer.status.map(|status| status.as_u16()) {
                None | Some(200) => {
                    if before.is_some_and(|before| before != last) {
                        return Ok(Batch {
                            messages,
                            more: true,
                        });
                    }
                    messages.push(direct_message(answer)?);
                }
                Some(204) => {
                    let pending = number(answer.headers.as_ref(), "Nats-Num-Pending").unwrap_or(0);
                    let whole = before.is_none_or(|before| before == last);
                    return Ok(Batch {
                        messages,
                        more: pending > 0 || !whole,
                    });
                }
                Some(404) => {
                    return Ok(Batch {
                        messages,
                        more: false,
                    });
                }
                Some(code) => {
                    let description = answer.description.unwrap_or_default();
                    return Err(self.wire.failed(BusError::Refused {
                        code,
                        err_code: 0,
                        description,
                    }));
                }
            }
        }
    }
}

/// One of several ranges that are merged.
#[derive(Debug)]
struct Source {
    range: RangeReader,
    waiting: VecDeque<StreamMessage>,
    done: bool,
}

impl Source {
    async fn fill(&mut self) -> Result<(), BusError> {
        while self.waiting.is_empty() && !self.done {
            match self.range.next_batch().await? {
                Some(messages) => self.waiting.extend(messages),
                None => self.done = true,
            }
        }
        Ok(())
    }
}

/// Reads a range of a log, a bounded batch at a time.
#[derive(Debug)]
pub struct LogReader {
    opener: Opener,
    sources: Vec<Source>,
    /// With many accounts, who of all that is read is asked for. Sorted.
    only: Option<Vec<AccountId>>,
}

impl LogReader {
    pub(crate) fn new(
        bus: &Bus,
        group: Group,
        filter: Filter,
        after: Position,
        up_to: Position,
    ) -> Self {
        let names = bus.names();
        let range =
            |filter: String| RangeReader::new(bus, names.log_stream(group), filter, after, up_to);
        let (ranges, only) = match filter {
            Filter::All => (vec![range(names.log_subjects(group))], None),
            Filter::Partition(partition) => {
                (vec![range(names.log_partition_subjects(partition))], None)
            }
            Filter::Tenant(tenant) => {
                (vec![range(names.log_tenant_subjects(group, &tenant))], None)
            }
            Filter::Account(account) => (vec![range(names.log_subject(&account))], None),
            Filter::Accounts(mut accounts) => {
                accounts.sort();
                accounts.dedup();
                let count = accounts.len();
                if count <= MERGED_ACCOUNTS {
                    let ranges = accounts
                        .iter()
                        .map(|account| range(names.log_subject(account)).one_of(count));
                    (ranges.collect(), None)
                } else {
                    let one = accounts.first().map(AccountId::tenant).filter(|one| {
                        let mut tenants = accounts.iter().map(AccountId::tenant);
                        tenants.all(|tenant| tenant == *one)
                    });
                    let subjects = match one {
                        Some(tenant) => names.log_tenant_subjects(group, tenant),
                        None => names.log_subjects(group),
                    };
                    (vec![range(subjects)], Some(accounts))
                }
            }
        };
        let sources = ranges
            .into_iter()
            .map(|range| Source {
                range,
                waiting: VecDeque::new(),
                done: false,
            })
            .collect();
        Self {
            opener: Opener::new(bus),
            sources,
            only,
        }
    }

    /// The next entries in order, maybe none yet; `None` once everything up to the end of the range was read. A failed call may
    /// be repeated: it goes on where the last good one ended.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Entry>>, BusError> {
        try_join_all(self.sources.iter_mut().map(Source::fill)).await?;
        let mut entries = Vec::new();
        // As long as every range that is not done shows its next message, the lowest of them is the next one of all.
        while self
            .sources
            .iter()
            .all(|source| source.done || !source.waiting.is_empty())
        {
            let next = self
                .sources
                .iter_mut()
                .filter(|source| !source.waiting.is_empty());
            let Some(next) =
                next.min_by_key(|source| source.waiting.front().map(|message| message.sequence))
            else {
                break;
            };
            if let Some(entry) = next
                .waiting
                .pop_front()
                .and_then(|message| self.opener.open(message))
                && self
                    .only
                    .as_ref()
                    .is_none_or(|only| only.binary_search(&entry.account).is_ok())
            {
                entries.push(entry);
            }
        }
        let over = self
            .sources
            .iter()
            .all(|source| source.done && source.waiting.is_empty());
        // Whoever looks for a few in very many learns how far it is, and can stop here.
        Ok((!over || !entries.is_empty()).then_some(entries))
    }

    /// All that is left, in memory: for ranges that are known to be short.
    ///
    /// # Errors
    /// Why NATS did not answer; what was read until then is lost.
    pub async fn all(mut self) -> Result<Vec<Entry>, BusError> {
        let mut entries = Vec::new();
        while let Some(batch) = self.next_batch().await? {
            entries.extend(batch);
        }
        Ok(entries)
    }

    /// Up to where everything that matches was given out.
    #[must_use]
    pub fn position(&self) -> Position {
        let at = |source: &Source| match source.waiting.front() {
            Some(message) => message.sequence.saturating_sub(1),
            None => source.range.position(),
        };
        self.sources.iter().map(at).min().unwrap_or(0)
    }
}
