//! Who should own what among the members that live: computed alike by each of them, and by who only looks on.

use mailbell_proto::bus::v1::Member;

use super::{
    assignment::{Assignment, Candidate, assign},
    liveness::Observer,
};

/// An assignment, and who the candidates were.
#[derive(Debug)]
pub(super) struct Shares {
    /// Names, weights and hard caps (0: none).
    candidates: Vec<(String, u32, u32)>,
    assignment: Assignment,
}

impl Shares {
    /// Nobody should own anything.
    pub(super) fn new() -> Self {
        Self {
            candidates: Vec::new(),
            assignment: assign(&[]),
        }
    }

    /// Computes it anew if the live members that take partitions are others than before.
    pub(super) fn update(&mut self, observer: &Observer, draining: impl Fn(&Member) -> bool) {
        let mut candidates = Vec::new();
        for member in observer.live() {
            if !draining(member) {
                let candidate = (member.id.clone(), member.weight, member.most_partitions);
                candidates.push(candidate);
            }
        }
        if candidates == self.candidates {
            return;
        }
        let assignment = {
            let candidates: Vec<Candidate<'_>> = candidates
                .iter()
                .map(|(id, weight, most)| Candidate {
                    id,
                    weight: *weight,
                    most: u16::try_from(*most).ok().filter(|most| *most > 0),
                })
                .collect();
            assign(&candidates)
        };
        *self = Self {
            candidates,
            assignment,
        };
    }

    /// Whether nobody takes partitions.
    pub(super) fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    pub(super) fn assignment(&self) -> &Assignment {
        &self.assignment
    }
}
