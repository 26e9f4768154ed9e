//! One task a group reads its log and tells the dispatcher, in order: where it begins, what comes, what was missed.
//!
//! The order at the start is what makes a position true: ask the leader for the tail L, make the consumer from L + 1, and
//! only when it is there say "this gateway stands at L". Whatever is appended from then on comes through the consumer.

use std::{sync::Arc, time::Duration};

use mailbell_bus::{Entry, Followed, LogTail};
use mailbell_core::{
    backoff::Backoff,
    cursor::Place,
    delivery::LogState,
    ids::{Group, LogId, PerGroup, Position},
};
use mailbell_proto::push::v1::ResyncReason;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    clock::now_us,
    entry::SharedEntry,
    metrics::{Metrics, observe},
    source::{Follow, Source},
};

/// The shortest pause between two questions to a leader.
const FLOOR: Duration = Duration::from_millis(50);

/// What a follower tells the dispatcher.
#[derive(Debug)]
pub(crate) enum Heard {
    /// This gateway stands here.
    Begin(Group, Place),
    /// From now on it hears what is appended.
    Following(Group),
    /// It hears nothing since then.
    Lost(Group, Instant),
    /// The next entry.
    Entry(Group, Position, SharedEntry),
    /// Nothing of interest lies up to here.
    Skipped(Group, Position),
    /// The history is another, or something was missed: it goes on from here.
    Changed(Group, Place, ResyncReason),
}

/// What a follower's consumer says about the position that is known.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing is missing.
    Whole,
    /// Something may be missing; it goes on from here.
    Changed(Place, ResyncReason),
}

/// Judges a consumer that was made, or made anew, and goes on at `next`.
fn judge(at: Place, log_id: LogId, tail: LogTail, next: Position) -> Verdict {
    let going_on = Place {
        log_id,
        position: next.saturating_sub(1),
    };
    if log_id != at.log_id || next > tail.last.saturating_add(1) || at.position > tail.last {
        return Verdict::Changed(going_on, ResyncReason::LogChanged);
    }
    // What lies between the known position and the first one that the log holds has aged out unread.
    if tail.first > at.position.saturating_add(1) {
        let position = going_on.position.max(tail.first - 1);
        let place = Place {
            position,
            ..going_on
        };
        return Verdict::Changed(place, ResyncReason::CursorTooOld);
    }
    Verdict::Whole
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FollowerTask {
    pub(crate) group: Group,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) log_ids: watch::Receiver<PerGroup<LogId>>,
    pub(crate) heard: mpsc::Sender<Heard>,
    pub(crate) metrics: Metrics,
}

/// The dispatcher or the source is gone.
struct Closed;

impl FollowerTask {
    /// Until the dispatcher or the source is gone.
    pub(crate) async fn run(mut self) {
        let _: Result<(), Closed> = self.follow().await;
    }

    async fn follow(&mut self) -> Result<(), Closed> {
        let mut known: Option<Place> = None;
        loop {
            let log = self.state().await?;
            let mut follower = self.source.follow(self.group, log.tail.saturating_add(1));
            // The consumer is there once it says so; what it says then is the proof.
            let place = self.begin(follower.as_mut(), log).await?;
            match known {
                None => self.tell(Heard::Begin(self.group, place)).await?,
                Some(_) => {
                    self.changed(place, ResyncReason::LogChanged).await?;
                }
            }
            self.tell(Heard::Following(self.group)).await?;
            known = Some(self.until_another_history(follower.as_mut(), place).await?);
            self.tell(Heard::Lost(self.group, Instant::now())).await?;
            // Who says that the history is another and who was just asked may disagree for a moment.
            tokio::time::sleep(FLOOR).await;
        }
    }

    /// Asks the leader until it answers.
    async fn state(&self) -> Result<LogState, Closed> {
        let mut backoff = Backoff::new(FLOOR, FLOOR * 2, Duration::from_secs(5));
        loop {
            match self.source.log_state(self.group).await {
                Ok(log) => return Ok(log),
                Err(error) => {
                    tracing::debug!(group = %self.group, %error, "the log's leader does not answer");
                }
            }
            tokio::select! {
                // Cancel-safe on both sides, and no order matters.
                () = tokio::time::sleep(backoff.next(&mut rand::rng())) => {}
                () = self.heard.closed() => return Err(Closed),
            }
        }
    }

    async fn begin(&self, follower: &mut dyn Follow, log: LogState) -> Result<Place, Closed> {
        loop {
            let (log_id, next) = match self.next(follower).await? {
                Followed::Made { log_id, next, .. } | Followed::Cut { log_id, next, .. } => {
                    (log_id, next)
                }
                // Lost before anybody was told that it was there; the others don't come before one of the above.
                Followed::Lost { .. } | Followed::Jump { .. } | Followed::Entry(_) => continue,
            };
            if log_id != log.log_id {
                tracing::info!(group = %self.group, "the log's history changed while it was joined");
            }
            return Ok(Place {
                log_id,
                position: next.saturating_sub(1),
            });
        }
    }

    async fn next(&self, follower: &mut dyn Follow) -> Result<Followed, Closed> {
        tokio::select! {
            // First: nobody would hear what comes.
            biased;
            () = self.heard.closed() => Err(Closed),
            // Cancel-safe by its contract.
            next = follower.next() => next.ok_or(Closed),
        }
    }

    /// Follows until the identity of the log is said to be another than the one followed.
    async fn until_another_history(
        &mut self,
        follower: &mut dyn Follow,
        mut at: Place,
    ) -> Result<Place, Closed> {
        let mut log_ids = self.log_ids.clone();
        let group = self.group;
        loop {
            let another =
                log_ids.wait_for(|ids| ids[group] != at.log_id && ids[group] != LogId::default());
            let followed = tokio::select! {
                // First: entries of a history that is over must not go out under its old name.
                biased;
                changed = another => match changed {
                    Ok(_) => return Ok(at),
                    Err(_gone) => return Err(Closed),
                },
                followed = self.next(follower) => followed?,
            };
            at = self.on_followed(followed, at).await?;
        }
    }

    async fn on_followed(&self, followed: Followed, at: Place) -> Result<Place, Closed> {
        match followed {
            Followed::Made { tail, log_id, next } => {
                let at = match judge(at, log_id, tail, next) {
                    Verdict::Whole => at,
                    Verdict::Changed(place, reason) => self.changed(place, reason).await?,
                };
                self.tell(Heard::Following(self.group)).await?;
                Ok(at)
            }
            Followed::Lost { since } => {
                self.tell(Heard::Lost(self.group, since)).await?;
                Ok(at)
            }
            Followed::Cut { log_id, next, .. } => {
                let place = Place {
                    log_id,
                    position: next.saturating_sub(1),
                };
                self.changed(place, ResyncReason::LogChanged).await
            }
            Followed::Jump { from, to, tail } => {
                let position = to.max(at.position);
                let place = Place { position, ..at };
                // What a consumer that was made anew has told of is no news.
                if tail.first > from.max(at.position.saturating_add(1)) {
                    return self.changed(place, ResyncReason::CursorTooOld).await;
                }
                let skipped = Heard::Skipped(self.group, place.position);
                self.tell(skipped).await?;
                Ok(place)
            }
            Followed::Entry(entry) => self.on_entry(entry, at).await,
        }
    }

    async fn on_entry(&self, entry: Entry, at: Place) -> Result<Place, Closed> {
        let position = entry.position;
        if position <= at.position {
            return Ok(at);
        }
        let heard = match self.shared(entry) {
            Some(entry) => Heard::Entry(self.group, position, entry),
            None => Heard::Skipped(self.group, position),
        };
        self.tell(heard).await?;
        Ok(Place { position, ..at })
    }

    fn shared(&self, entry: Entry) -> Option<SharedEntry> {
        let received_us = now_us();
        let shared = SharedEntry::new(entry.event?, entry.stored_us, received_us);
        self.metrics.received.inc();
        let detected_us = shared.event().detected_us;
        observe(&self.metrics.detected_received, detected_us, received_us);
        observe(
            &self.metrics.appended_received,
            entry.stored_us,
            received_us,
        );
        shared.trace_received();
        Some(shared)
    }

    async fn changed(&self, place: Place, reason: ResyncReason) -> Result<Place, Closed> {
        tracing::warn!(
            group = %self.group,
            log_id = %place.log_id,
            position = place.position,
            reason = reason.as_str_name(),
            "the log lacks something that was not read: devices are told to list"
        );
        self.tell(Heard::Changed(self.group, place, reason)).await?;
        Ok(place)
    }

    /// Waits while the dispatcher is busy: then the consumer waits, and behind it the server.
    async fn tell(&self, heard: Heard) -> Result<(), Closed> {
        self.heard.send(heard).await.map_err(|_| Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(first: Position, last: Position) -> LogTail {
        LogTail {
            first,
            last,
            created_us: 0,
        }
    }

    #[test]
    fn anything_but_purged_accounts_is_a_resync() {
        let id = LogId([1; 16]);
        let at = Place {
            log_id: id,
            position: 20,
        };
        let went_on = |position, log_id| Place { log_id, position };
        assert_eq!(judge(at, id, tail(1, 20), 21), Verdict::Whole);
        assert_eq!(judge(at, id, tail(21, 30), 21), Verdict::Whole);
        // All of it has aged out, and nothing came since.
        assert_eq!(judge(at, id, tail(21, 20), 21), Verdict::Whole);
        let aged = Verdict::Changed(went_on(21, id), ResyncReason::CursorTooOld);
        assert_eq!(judge(at, id, tail(22, 30), 21), aged);
        let cut = Verdict::Changed(went_on(20, id), ResyncReason::LogChanged);
        assert_eq!(judge(at, id, tail(1, 15), 21), cut);
        let other = LogId([2; 16]);
        let another = Verdict::Changed(went_on(20, other), ResyncReason::LogChanged);
        assert_eq!(judge(at, other, tail(1, 20), 21), another);
    }
}
