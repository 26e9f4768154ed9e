//! How many pods there are to be. Pure.
//!
//! More at once, as soon as they are needed; fewer one by one, and only when nothing has spoken against it for a while: each pod that goes
//! moves mailboxes, or sends devices elsewhere. Who does not know how much there is to do changes nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::Scale;

/// For so long fewer pods must have been enough before one goes, and again before the next one, where nobody says otherwise.
pub const WINDOW: Duration = Duration::from_secs(300);
/// Who has not looked for so long knows nothing of the time between.
pub(crate) const GAP: Duration = Duration::from_secs(120);
/// Who has not known for so long says so: a restart of what is asked takes less.
const BLIND: Duration = Duration::from_secs(180);
/// One pod fewer must be filled to nine tenths at most: else a few mailboxes, or devices, more or less would move all of them again and again.
const FILL: (u64, u64) = (9, 10);

/// What was seen of one part of an installation.
#[derive(Debug, Clone, Default)]
pub struct Sizer {
    /// When was last looked, and what was seen: how much there is to do, if that is known.
    last: Option<(Instant, Option<u64>)>,
    /// The most of each moment in which there was less, from old to new: each is more than those after it.
    most: Vec<(Instant, u64)>,
    /// Since when it has been known without a gap, and no pod was taken away.
    since: Option<Instant>,
    /// Since when it has not been known.
    blind: Option<Instant>,
}

/// What is wanted of it.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many pods there may be.
    pub scale: Scale,
    /// How much is meant for a pod.
    pub per_pod: u32,
}

impl Bounds {
    /// So many, or as many as there may be.
    #[must_use]
    pub fn hold(self, pods: i32) -> i32 {
        pods.min(self.scale.max).max(self.scale.min)
    }

    fn needed(self, load: u64) -> i32 {
        let pods = load.div_ceil(u64::from(self.per_pod.max(1)));
        self.hold(i32::try_from(pods).unwrap_or(i32::MAX))
    }
}

impl Sizer {
    /// Whether it has been looked at for a while, and was not known all the time.
    #[must_use]
    pub fn is_blind(&self, now: Instant) -> bool {
        self.blind
            .is_some_and(|since| now.duration_since(since) >= BLIND)
    }

    /// Notes how much there is to do now. `window`: what [`Self::wanted`] is asked with.
    pub fn observe(&mut self, now: Instant, load: Option<u64>, window: Duration) {
        match load {
            Some(_) => self.blind = None,
            None => _ = self.blind.get_or_insert(now),
        }
        let is_late = |(last, _): (Instant, _)| now.duration_since(last) > GAP.min(window);
        match load {
            Some(load) => {
                if self.last.is_none_or(is_late) {
                    self.since = None;
                }
                self.since.get_or_insert(now);
                while self.most.pop_if(|(_, less)| *less <= load).is_some() {}
                self.most.push((now, load));
                self.most
                    .retain(|(seen, _)| now.duration_since(*seen) <= window);
            }
            None => {
                self.since = None;
                self.most.clear();
            }
        }
        self.last = Some((now, load));
    }

    /// How many pods there are to be where there are so many. `window`: for so long fewer must have been enough before one goes.
    #[must_use]
    pub fn wanted(&self, now: Instant, there: i32, bounds: Bounds, window: Duration) -> i32 {
        let held = bounds.hold(there);
        let known = self
            .last
            .filter(|(seen, _)| now.duration_since(*seen) <= GAP);
        let Some((_, Some(load))) = known else {
            return held;
        };
        let needed = bounds.needed(load);
        if needed >= held {
            return needed;
        }
        let is_long = self
            .since
            .is_some_and(|since| now.duration_since(since) >= window);
        // The most of the whole time.
        let most = self.most.first().map_or(load, |(_, most)| *most);
        let (part, whole) = FILL;
        let with_room = most.saturating_mul(whole) / part;
        if is_long && bounds.needed(with_room) < held {
            bounds.hold(held - 1)
        } else {
            held
        }
    }

    /// A pod is taken away: the next one is thought about anew.
    pub fn stepped(&mut self, now: Instant) {
        self.since = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        scale: Scale { min: 2, max: 10 },
        per_pod: 100,
    };
    const LOOK: Duration = Duration::from_secs(30);

    /// Time, and the pods that there are.
    struct Run {
        sizer: Sizer,
        now: Instant,
        pods: i32,
    }

    impl Run {
        fn new(pods: i32) -> Self {
            Self {
                sizer: Sizer::default(),
                now: Instant::now(),
                pods,
            }
        }

        /// As the operator does it, for so long: how many pods there are after each look.
        fn sees(&mut self, load: Option<u64>, time: Duration) -> Vec<i32> {
            let mut all = Vec::new();
            let end = self.now + time;
            while self.now < end {
                self.sizer.observe(self.now, load, WINDOW);
                let wanted = self.sizer.wanted(self.now, self.pods, BOUNDS, WINDOW);
                if wanted < self.pods {
                    self.sizer.stepped(self.now);
                }
                self.pods = wanted;
                all.push(wanted);
                self.now += LOOK;
            }
            all
        }
    }

    #[test]
    fn more_at_once_and_never_beyond_the_bounds() {
        let mut run = Run::new(2);
        assert_eq!(run.sees(Some(200), LOOK), [2]);
        assert_eq!(run.sees(Some(201), LOOK), [3]);
        assert_eq!(run.sees(Some(950), LOOK), [10]);
        assert_eq!(run.sees(Some(u64::MAX), LOOK), [10]);
        assert_eq!(Run::new(1).sees(None, LOOK), [2]);
        assert_eq!(Run::new(99).sees(Some(0), LOOK), [10]);
    }

    #[test]
    fn fewer_one_by_one_each_after_a_while() {
        let mut run = Run::new(5);
        let seen = run.sees(Some(0), WINDOW * 4);
        // Ten looks a window; the first pod goes when one is over.
        let mut expected = vec![5; 10];
        expected.extend([4; 10]);
        expected.extend([3; 10]);
        expected.extend([2; 10]);
        assert_eq!(seen, expected);
        assert_eq!(run.sees(Some(0), WINDOW * 3), [2; 30]);
    }

    #[test]
    fn a_moment_in_which_all_were_needed_counts() {
        let mut run = Run::new(5);
        run.sees(Some(0), WINDOW - LOOK);
        assert_eq!(run.sees(Some(500), LOOK), [5]);
        assert_eq!(run.sees(Some(0), WINDOW), [5; 10]);
        assert_eq!(run.sees(Some(0), LOOK * 2), [4, 4]);
        // Of one that is smaller than the last, too, but only of what is needed still.
        let mut run = Run::new(5);
        run.sees(Some(300), LOOK);
        assert_eq!(run.sees(Some(250), WINDOW), [vec![5; 9], vec![4]].concat());
    }

    #[test]
    fn what_is_nearly_full_stays() {
        let mut run = Run::new(5);
        // Four pods would hold it, and be fuller than nine tenths.
        assert_eq!(run.sees(Some(361), WINDOW * 2), [5; 20]);
        run.sees(Some(360), WINDOW);
        assert_eq!(run.sees(Some(360), LOOK), [4]);
    }

    #[test]
    fn who_does_not_know_takes_nothing_away() {
        let mut run = Run::new(5);
        assert_eq!(run.sees(None, BLIND), [5; 6]);
        assert!(!run.sizer.is_blind(run.now - LOOK));
        assert!(run.sizer.is_blind(run.now));
        assert_eq!(run.sees(None, WINDOW * 2), [5; 20]);
        run.sees(Some(0), WINDOW - LOOK);
        run.sees(None, LOOK);
        assert_eq!(run.sees(Some(0), WINDOW), [5; 10]);
        assert_eq!(run.sees(Some(0), LOOK), [4]);
        assert!(!run.sizer.is_blind(run.now));
        // Nor who has not looked for a while: a laptop that slept, an operator that was stopped.
        let mut run = Run::new(5);
        run.sees(Some(0), LOOK * 3);
        run.now += WINDOW;
        assert_eq!(run.sees(Some(0), WINDOW), [5; 10]);
        // What was seen long ago is not known now.
        let mut run = Run::new(3);
        run.sizer.observe(run.now, Some(900), WINDOW);
        let wanted = |now| run.sizer.wanted(now, 3, BOUNDS, WINDOW);
        assert_eq!(wanted(run.now + GAP), 9);
        assert_eq!(wanted(run.now + GAP + LOOK), 3);
    }

    /// Of the time between two looks nothing is known: it is not enough for a pod to go.
    #[test]
    fn a_window_that_is_shorter_than_a_gap_is_looked_at_all_the_same() {
        let (mut sizer, mut now) = (Sizer::default(), Instant::now());
        let window = Duration::from_secs(60);
        let mut looks = |after: u64| {
            now += Duration::from_secs(after);
            sizer.observe(now, Some(0), window);
            sizer.wanted(now, 5, BOUNDS, window)
        };
        assert_eq!([0, 30, 61].map(&mut looks), [5; 3]);
        assert_eq!([30, 30].map(&mut looks), [5, 4]);
    }

    #[test]
    fn what_is_kept_of_the_past_is_bounded() {
        let mut run = Run::new(5);
        for load in (0..1_000).rev() {
            run.sees(Some(load), LOOK);
        }
        let looks = WINDOW.as_secs() / LOOK.as_secs();
        assert!(run.sizer.most.len() <= usize::try_from(looks).unwrap() + 1);
    }
}
