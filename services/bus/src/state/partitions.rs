//! Reading what a bucket has of whole partitions.

use std::collections::BTreeSet;

use futures_util::future::try_join_all;
use mailbell_core::ids::{AccountId, Partition};

use crate::{
    Bus, BusError,
    api::StreamMessage,
    kv::KvRange,
    names::{Bucket, account_of_key},
};

/// So many partitions of a bucket are read at once, each by itself. One pass over all of a bucket takes as long as 64 of them, and far
/// longer while others write.
const AT_ONCE: usize = 4;

/// That a partition was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartitionRead {
    pub(super) partition: Partition,
    /// Every write up to this revision was seen.
    pub(super) up_to: u64,
    /// When the bucket's stream was created.
    pub(super) created: String,
}

impl Bus {
    /// Gives every value, and every mark of a removal, that a bucket has under `<prefix><partition>.<account>` for these
    /// partitions. One that is written meanwhile may come twice, the later one last. Messages are to be decoded at once: each
    /// holds on to the buffer that it was received in.
    pub(super) async fn kv_partitions(
        &self,
        bucket: Bucket,
        prefix: &str,
        partitions: &[Partition],
        mut on_message: impl FnMut(AccountId, StreamMessage),
    ) -> Result<Vec<PartitionRead>, BusError> {
        let wanted: BTreeSet<Partition> = partitions.iter().copied().collect();
        let wanted: Vec<Partition> = wanted.into_iter().collect();
        let mut reads = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(AT_ONCE) {
            let range = |partition| self.kv_range(bucket, &format!("{prefix}{partition}.>"), 0);
            let mut ranges: Vec<KvRange> = some.iter().map(range).collect();
            loop {
                let batches = try_join_all(ranges.iter_mut().map(KvRange::next_batch)).await?;
                if batches.iter().all(Option::is_none) {
                    break;
                }
                for message in batches.into_iter().flatten().flatten() {
                    let account = self
                        .names()
                        .key_of(bucket, &message.subject)
                        .and_then(|key| key.strip_prefix(prefix))
                        .and_then(account_of_key);
                    if let Some(account) = account
                        && some.contains(&account.partition())
                    {
                        on_message(account, message);
                    }
                }
            }
            // Each ended at an end of its own.
            let ends = some.iter().zip(&ranges);
            reads.extend(ends.map(|(partition, range)| PartitionRead {
                partition: *partition,
                up_to: range.position(),
                created: range.created().to_owned(),
            }));
        }
        Ok(reads)
    }
}
