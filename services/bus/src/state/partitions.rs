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

/// So many partitions of a bucket are read at once, each by itself.
const AT_ONCE: usize = 4;
/// More of them than this are read by one pass over all of the bucket. That takes as long as 18 by themselves, or as 5 while others
/// write.
const SINGLY: usize = 8;

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
        if wanted.len() > SINGLY {
            let whole = vec![self.kv_whole(bucket)];
            return self
                .read_ranges(whole, bucket, prefix, &wanted, &mut on_message)
                .await;
        }
        let mut reads = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(AT_ONCE) {
            let range = |partition| self.kv_range(bucket, &format!("{prefix}{partition}.>"), 0);
            let ranges = some.iter().map(range).collect();
            let read = self.read_ranges(ranges, bucket, prefix, some, &mut on_message);
            reads.extend(read.await?);
        }
        Ok(reads)
    }

    /// Reads these partitions by a range each, or all of them by one.
    async fn read_ranges(
        &self,
        mut ranges: Vec<KvRange>,
        bucket: Bucket,
        prefix: &str,
        partitions: &[Partition],
        on_message: &mut impl FnMut(AccountId, StreamMessage),
    ) -> Result<Vec<PartitionRead>, BusError> {
        loop {
            let batches = try_join_all(ranges.iter_mut().map(KvRange::next_batch)).await?;
            if batches.iter().all(Option::is_none) {
                break;
            }
            for message in batches.into_iter().flatten().flatten() {
                // Other prefixes too.
                let account = self
                    .names()
                    .key_of(bucket, &message.subject)
                    .and_then(|key| key.strip_prefix(prefix))
                    .and_then(account_of_key);
                if let Some(account) = account
                    && partitions.binary_search(&account.partition()).is_ok()
                {
                    on_message(account, message);
                }
            }
        }
        // Those that were read one by one ended at ends of their own; one range stands for all.
        let ends = ranges.iter().cycle();
        let read = |(partition, range): (&Partition, &KvRange)| PartitionRead {
            partition: *partition,
            up_to: range.position(),
            created: range.created().to_owned(),
        };
        Ok(partitions.iter().zip(ends).map(read).collect())
    }
}
