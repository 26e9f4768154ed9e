//! How a member writes its record over the one before, so that of two processes under one name only the later one goes on.

/// What is asked of the bucket's leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The key's last revision, a mark of its removal included: [`Answer::Last`].
    Last,
    /// To write the record if the key's revision is `over` (0: there is none): [`Answer::Written`].
    Write {
        /// Over what.
        over: u64,
    },
    /// What lies under the key: [`Answer::Value`].
    Value,
}

/// What the leader says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The last revision; `None`: the key was never written, or all of it has aged out.
    Last(Option<u64>),
    /// The record has this revision; `None`: another revision stood there.
    Written(Option<u64>),
    /// The record that stands there.
    Value(Option<Found>),
}

/// A record under a member's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its revision.
    pub revision: u64,
    /// It was written by this incarnation.
    pub ours: bool,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To be asked next.
    Ask(Ask),
    /// The record stands there.
    Renewed,
    /// Another process runs under this name: this one must end.
    Replaced,
}

/// The renewals of one incarnation. An attempt that fails, or takes too long, is given up: [`Renewal::begin`] begins the next one, and
/// answers to the one before no longer count.
#[derive(Debug, Clone, Default)]
pub struct Renewal {
    /// The revision of ours that was acknowledged last.
    acknowledged: Option<u64>,
    /// What this attempt goes by.
    known: Option<u64>,
}

impl Renewal {
    /// Begins an attempt.
    pub fn begin(&mut self) -> Ask {
        self.known = self.acknowledged;
        match self.known {
            Some(over) => Ask::Write { over },
            // What another incarnation left is written over: this name is ours now.
            None => Ask::Last,
        }
    }

    /// An answer to what this attempt asked last.
    pub fn on(&mut self, answer: Answer) -> Step {
        match answer {
            Answer::Last(last) => Step::Ask(Ask::Write {
                over: last.unwrap_or(0),
            }),
            Answer::Written(Some(revision)) => {
                self.acknowledged = Some(revision);
                Step::Renewed
            }
            Answer::Written(None) => Step::Ask(Ask::Value),
            Answer::Value(Some(found)) if !found.ours && self.known.is_some() => Step::Replaced,
            // An earlier write of ours whose acknowledgement was lost.
            Answer::Value(Some(Found { revision, .. })) => {
                self.known = Some(revision);
                Step::Ask(Ask::Write { over: revision })
            }
            // It aged out while we were away.
            Answer::Value(None) => {
                self.known = None;
                Step::Ask(Ask::Last)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process whose record stands there with revision 5.
    fn renewed() -> Renewal {
        let mut renewal = Renewal::default();
        assert_eq!(renewal.begin(), Ask::Last);
        let write = Step::Ask(Ask::Write { over: 4 });
        assert_eq!(renewal.on(Answer::Last(Some(4))), write);
        assert_eq!(renewal.on(Answer::Written(Some(5))), Step::Renewed);
        renewal
    }

    fn found(revision: u64, ours: bool) -> Answer {
        Answer::Value(Some(Found { revision, ours }))
    }

    #[test]
    fn each_renewal_is_written_over_the_one_before() {
        let mut renewal = renewed();
        assert_eq!(renewal.begin(), Ask::Write { over: 5 });
        assert_eq!(renewal.on(Answer::Written(Some(8))), Step::Renewed);
        assert_eq!(renewal.begin(), Ask::Write { over: 8 });
    }

    #[test]
    fn a_name_that_was_never_used_is_written_over_nothing() {
        let mut renewal = Renewal::default();
        renewal.begin();
        let write = Step::Ask(Ask::Write { over: 0 });
        assert_eq!(renewal.on(Answer::Last(None)), write);
    }

    #[test]
    fn a_write_whose_acknowledgement_was_lost_is_ours() {
        let mut renewal = renewed();
        renewal.begin();
        // Given up: no answer came.
        assert_eq!(renewal.begin(), Ask::Write { over: 5 });
        let look = Step::Ask(Ask::Value);
        assert_eq!(renewal.on(Answer::Written(None)), look);
        let write = Step::Ask(Ask::Write { over: 6 });
        assert_eq!(renewal.on(found(6, true)), write);
        assert_eq!(renewal.on(Answer::Written(Some(7))), Step::Renewed);
    }

    #[test]
    fn a_later_process_of_the_same_name_replaces_it() {
        let mut renewal = renewed();
        renewal.begin();
        renewal.on(Answer::Written(None));
        assert_eq!(renewal.on(found(6, false)), Step::Replaced);
    }

    #[test]
    fn what_an_earlier_process_writes_late_replaces_nobody() {
        let mut renewal = Renewal::default();
        renewal.begin();
        renewal.on(Answer::Last(Some(4)));
        // That of the process before came in between.
        renewal.on(Answer::Written(None));
        let write = Step::Ask(Ask::Write { over: 5 });
        assert_eq!(renewal.on(found(5, false)), write);
    }

    #[test]
    fn a_record_that_aged_out_is_written_anew() {
        let mut renewal = renewed();
        renewal.begin();
        renewal.on(Answer::Written(None));
        assert_eq!(renewal.on(Answer::Value(None)), Step::Ask(Ask::Last));
        // The mark of its removal has a revision.
        let write = Step::Ask(Ask::Write { over: 9 });
        assert_eq!(renewal.on(Answer::Last(Some(9))), write);
    }

    #[test]
    fn what_an_attempt_learned_that_failed_is_forgotten() {
        let mut renewal = renewed();
        renewal.begin();
        renewal.on(Answer::Written(None));
        renewal.on(Answer::Value(None));
        // Meanwhile another process may have come: it must not be written over.
        assert_eq!(renewal.begin(), Ask::Write { over: 5 });
    }
}
