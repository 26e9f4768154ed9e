//! Which member should own which partition: weighted rendezvous hashing with bounded loads.
//!
//! Every member computes this by itself and must come to the same result, so it is a function of the set of candidates alone:
//! no history, no order, no floating point (whose logarithm differs between platforms). It stays as it is: members of two releases
//! would disagree for as long as an upgrade lasts. Another algorithm comes with a schema of its own, and all go over to it when the
//! installation may be written in that ([`WriteVersion`](crate::schema::WriteVersion)).
//!
//! # How
//!
//! 1. **Preference.** A member puts all partitions into an order of its own, by xxh3-64 of its id and the partition. From the place in
//!    that order (and the hash, within the place) comes a number `u` between 0 and 1, and from that the cost `-ln(1 - u) / weight`.
//!    Without bounds each partition would go where it costs least: to a member with probability `weight / sum of weights`. The place
//!    rather than the bare hash makes what one member gets differ less by chance: by about `0.7 * sqrt(share)` instead of `sqrt(share)`.
//! 2. **Bound.** A member's share is `1024 * weight / sum of weights`; it gets at most `floor(share + sqrt(share)) + 1`, and never more
//!    than its own `most`. What members with a low `most` leave is shared by the others, and their bounds grow with it.
//! 3. **Placement.** Of all pairs of a partition without an owner and a member with room, the cheapest is made, again and again. This is
//!    the one stable matching: no partition and member both would rather have each other. It places every partition as long as there is
//!    a member with room.
//!
//! # How much moves
//!
//! A member that comes takes partitions for itself, at most its bound. Beside these only what a full member had to refuse moves on: a
//! full member that loses a partition takes back the best one that it refused, and one whose bound shrinks gives its worst away. The
//! slack of `sqrt(share)` is 1.4 times what a share differs by chance, so few members are full, and these *followers* are few. Less slack
//! is more even and moves more: a flat 1/16 moves up to three shares at 64 members.
//!
//! **Stated bound:** one more member moves at most `floor(share + sqrt(share)) + 1` partitions to itself (this holds for any ids), and,
//! without hard caps that bind, at most 16 between the others. Where hard caps bind, most members are full and more follows: at most twice
//! as many as the newcomer takes, and these 16. What follows was measured, and the tests ask for it; no useful bound holds for any ids
//! whatever. Of members that come one by one, with equal weights or weights from 1 to 10, each moves on average at most 1.05 times its
//! share up to 16 members, 1.1 times up to 48 and 1.15 times up to 64. Removing a member is adding it read backwards, so it moves the same.

use std::{cmp::Reverse, collections::BinaryHeap};

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{PARTITIONS, Partition};

#[cfg(test)]
mod tests;

/// A member that may own partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate<'a> {
    /// Its name, unique among the candidates. The same name gets (about) the same partitions again.
    pub id: &'a str,
    /// Its part of the work, relative to the other members' weights. 0: it gets nothing.
    pub weight: u32,
    /// How many partitions it may have at most, whatever its share. `None`: no limit.
    pub most: Option<u16>,
}

/// Who should own which partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// In the order of their ids.
    members: Vec<Box<str>>,
    /// For each partition, in order, the index of its owner in `members`.
    owners: Vec<Option<usize>>,
}

impl Assignment {
    /// Who should own this partition. `None`: there is no room for it below the members' hard caps, or no member.
    #[must_use]
    pub fn owner(&self, partition: Partition) -> Option<&str> {
        let member = (*self.owners.get(usize::from(partition.number()))?)?;
        self.members.get(member).map(AsRef::as_ref)
    }

    /// What the member `id` should own, in order.
    pub fn partitions(&self, id: &str) -> impl Iterator<Item = Partition> {
        let member = self
            .members
            .binary_search_by(|member| (**member).cmp(id))
            .ok();
        self.with_owner(member, member.is_some())
    }

    /// How many partitions the member `id` should own.
    #[must_use]
    pub fn count(&self, id: &str) -> usize {
        self.partitions(id).count()
    }

    /// The partitions that nobody should own, in order.
    pub fn unassigned(&self) -> impl Iterator<Item = Partition> {
        self.with_owner(None, true)
    }

    fn with_owner(&self, owner: Option<usize>, exists: bool) -> impl Iterator<Item = Partition> {
        Partition::all()
            .zip(&self.owners)
            .filter(move |(_, is)| exists && **is == owner)
            .map(|(partition, _)| partition)
    }
}

/// Shares out all partitions over `candidates`, in whatever order they are.
///
/// Each partition gets exactly one owner, as long as there is a member with a weight and the hard caps of those that have one add up to
/// all partitions; what is beyond is unassigned. Ids are to be unique; of candidates with the same id the one with the least weight counts.
#[must_use]
pub fn assign(candidates: &[Candidate<'_>]) -> Assignment {
    let mut members = candidates.to_vec();
    members.sort_unstable();
    members.dedup_by(|later, first| later.id == first.id);
    members.retain(|member| member.weight > 0);

    let mut seekers: Vec<_> = members
        .iter()
        .zip(rooms(&members))
        .map(|(member, room)| Seeker::new(member, room))
        .collect();
    let mut offers: BinaryHeap<_> = seekers
        .iter_mut()
        .enumerate()
        .filter_map(|(index, seeker)| seeker.next_offer(index))
        .collect();
    let mut owners = vec![None; usize::from(PARTITIONS)];
    let mut left = owners.len();
    // Each member's offers come in the order of their cost, so the top of the heap is the cheapest of all.
    while left > 0
        && let Some(Reverse(offer)) = offers.pop()
        && let Some(seeker) = seekers.get_mut(offer.member)
        && let Some(owner) = owners.get_mut(usize::from(offer.partition.number()))
    {
        if owner.is_none() {
            *owner = Some(offer.member);
            seeker.room -= 1;
            left -= 1;
        }
        offers.extend(seeker.next_offer(offer.member));
    }
    Assignment {
        members: members.iter().map(|member| member.id.into()).collect(),
        owners,
    }
}

/// How many partitions each of `members` may have; all have a weight.
fn rooms(members: &[Candidate<'_>]) -> Vec<u16> {
    // What members with a low hard cap leave makes the others' share larger, which may take another one to its cap. The share only grows,
    // so who is at its cap stays there, and the result does not depend on the order.
    let mut rest = u64::from(PARTITIONS);
    let mut weights: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
    let mut free: Vec<_> = members.iter().collect();
    loop {
        let (capped, below): (Vec<&Candidate<'_>>, _) = free.into_iter().partition(|member| {
            member.most.is_some_and(|most| {
                u64::from(most).saturating_mul(weights) <= rest * u64::from(member.weight)
            })
        });
        free = below;
        if capped.is_empty() {
            break;
        }
        for member in capped {
            rest = rest.saturating_sub(u64::from(member.most.unwrap_or_default()));
            weights -= u64::from(member.weight);
        }
    }
    members
        .iter()
        .map(|member| {
            let most = member.most.unwrap_or(PARTITIONS);
            // No weights left: all are at their caps.
            let bound = bound(rest, member.weight, weights).unwrap_or(most);
            bound.min(most)
        })
        .collect()
}

/// `floor(share + sqrt(share)) + 1` for the share `rest * weight / weights`: more than the share, so that the bounds of all members
/// together have room for `rest`. `None` without weights.
fn bound(rest: u64, weight: u32, weights: u64) -> Option<u16> {
    // In units of 2^-20 partitions: 2^10 partitions * 2^32 * 2^20 fits.
    const UNIT: u32 = 20;
    let share = ((rest * u64::from(weight)) << UNIT).checked_div(weights)?;
    let slack = (share << UNIT).isqrt();
    let bound = ((share + slack) >> UNIT) + 1;
    Some(u16::try_from(bound).unwrap_or(PARTITIONS).min(PARTITIONS))
}

/// A member that makes offers for partitions, the cheapest first, as long as it has room.
struct Seeker {
    weight: u32,
    room: u16,
    /// Place and [`wish`] of each partition, the first place first.
    wishes: std::iter::Enumerate<std::vec::IntoIter<u64>>,
}

/// What a partition costs at a member. Members are in the order of their ids, so that equal costs are decided for good as well.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Offer {
    cost: u64,
    member: usize,
    partition: Partition,
}

impl Seeker {
    fn new(member: &Candidate<'_>, room: u16) -> Self {
        let mut text = member.id.as_bytes().to_vec();
        let mut wishes: Vec<_> = Partition::all()
            .map(|partition| {
                text.truncate(member.id.len());
                text.extend_from_slice(&partition.number().to_be_bytes());
                wish(xxh3_64(&text), partition)
            })
            .collect();
        wishes.sort_unstable();
        Self {
            weight: member.weight,
            room,
            wishes: wishes.into_iter().enumerate(),
        }
    }

    fn next_offer(&mut self, member: usize) -> Option<Reverse<Offer>> {
        if self.room == 0 {
            return None;
        }
        let (place, wish) = self.wishes.next()?;
        Some(Reverse(Offer {
            cost: cost(place, wish, self.weight)?,
            member,
            partition: wished(wish)?,
        }))
    }
}

/// The hash but for its low bits, and the partition in their place: one number sorts faster than a pair.
fn wish(hash: u64, partition: Partition) -> u64 {
    hash & !LOW_BITS | u64::from(partition.number())
}

/// The partition of a [`wish`].
fn wished(wish: u64) -> Option<Partition> {
    u16::try_from(wish & LOW_BITS).ok().and_then(Partition::new)
}

/// Those that number the partitions.
const LOW_BITS: u64 = PARTITIONS as u64 - 1;
const _: () = assert!(PARTITIONS.is_power_of_two());

/// `-ln(1 - u) / weight` in units of 2^-56, where `u` lies in the stratum `place` of 1024; grows with `place`.
fn cost(place: usize, wish: u64, weight: u32) -> Option<u64> {
    let low = *LOGARITHM.get(place)?;
    let high = *LOGARITHM.get(place + 1)?;
    // Where within its stratum: by the bits of the hash that neither say the place nor were given to the partition.
    const WITHIN: u32 = u64::BITS - 2 * LOW_BITS.count_ones();
    let within = (wish >> LOW_BITS.count_ones()) & ((1 << WITHIN) - 1);
    let part = (u128::from(high - low) * u128::from(within)) >> WITHIN;
    let cost = low + u64::try_from(part).ok()?;
    cost.checked_div(u64::from(weight))
}

/// `-ln(1 - place / 1024)` in units of 2^-56. Straight lines between are near enough; integers are the same everywhere.
static LOGARITHM: [u64; PARTITIONS as usize + 1] = logarithm();

#[expect(
    clippy::indexing_slicing,
    reason = "computed by the compiler, which would refuse it"
)]
const fn logarithm() -> [u64; PARTITIONS as usize + 1] {
    let mut table = [0; PARTITIONS as usize + 1];
    let mut place = 0;
    // From place to place it grows by ln(k / (k - 1)) = 2 * artanh(1 / (2k - 1)), where k places are left.
    while place + 1 < PARTITIONS as usize {
        let z = 2 * (PARTITIONS as u64 - place as u64) - 1;
        let mut power = (1 << 57) / z;
        let mut exponent = 1;
        let mut sum = 0;
        while power > 0 {
            sum += power / exponent;
            power /= z * z;
            exponent += 2;
        }
        table[place + 1] = table[place] + sum;
        place += 1;
    }
    // The last place reaches to infinity, and is 1 above its beginning on average.
    table[place + 1] = table[place] + (2 << 56);
    table
}
